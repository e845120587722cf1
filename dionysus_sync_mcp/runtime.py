"""The composition root: opens the adapters, builds the engine on them, and closes all in reverse.

Nothing is connected before it is needed, and no service has to be there: the runtime opens at once (P9, P10).
"""

import math
import platform
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import anyio

from dionysus_sync_mcp.adapters.neo4j import RemoteStore
from dionysus_sync_mcp.adapters.ollama import OllamaEmbedder
from dionysus_sync_mcp.adapters.postgres.alerts import PostgresAlerts
from dionysus_sync_mcp.adapters.postgres.database import Database
from dionysus_sync_mcp.adapters.postgres.drilling import PostgresDrilling
from dionysus_sync_mcp.adapters.postgres.incidents import PostgresIncidents
from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.adapters.postgres.observing import PostgresObserving
from dionysus_sync_mcp.adapters.postgres.outbox import PostgresOutbox
from dionysus_sync_mcp.adapters.postgres.place import place_of
from dionysus_sync_mcp.adapters.postgres.planning import PostgresRows
from dionysus_sync_mcp.adapters.postgres.purging import PostgresPurging
from dionysus_sync_mcp.adapters.postgres.reading import PostgresReading
from dionysus_sync_mcp.adapters.postgres.restorer import PostgresRestorer
from dionysus_sync_mcp.adapters.postgres.undoing import PostgresUndoing
from dionysus_sync_mcp.adapters.postgres.verifying import PostgresVerifying
from dionysus_sync_mcp.adapters.session_file import SessionFileOnDisk, session_file_path
from dionysus_sync_mcp.adapters.statements import load_migrations, load_sql
from dionysus_sync_mcp.adapters.webhook import Webhook
from dionysus_sync_mcp.domain.adoption import CAPTURE_TRIGGERS
from dionysus_sync_mcp.domain.destruction import Incident, Thresholds
from dionysus_sync_mcp.domain.drift import Side
from dionysus_sync_mcp.domain.errors import DionysusError, EmbeddedError, Starting
from dionysus_sync_mcp.domain.roles import role_findings
from dionysus_sync_mcp.domain.session import project_name
from dionysus_sync_mcp.embedded.services import Lease, Progress, Service, acquire, default_home
from dionysus_sync_mcp.engine.alerts import Alerter, AlertWatch
from dionysus_sync_mcp.engine.compare import Comparer, Kind
from dionysus_sync_mcp.engine.drill import Driller
from dionysus_sync_mcp.engine.guard import Guard
from dionysus_sync_mcp.engine.incidents import Detector, IncidentRecords, Unrecorded, report_of
from dionysus_sync_mcp.engine.mend import Mender
from dionysus_sync_mcp.engine.ports.shared import OnProgress, Scope
from dionysus_sync_mcp.engine.pruning import prune_once
from dionysus_sync_mcp.engine.purge import Purger
from dionysus_sync_mcp.engine.push import Pusher
from dionysus_sync_mcp.engine.query import QueryRequest, QuestionVectors, query
from dionysus_sync_mcp.engine.recover import Recoverer, RecoveryWish
from dionysus_sync_mcp.engine.refill import Refiller
from dionysus_sync_mcp.engine.reports import (
    DrillReport,
    IncidentReport,
    IncidentsReport,
    InitReport,
    InitStep,
    PurgeReport,
    QueryAnswer,
    RecoveryPlan,
    RecoveryReport,
    SessionReport,
    StatusReport,
    SyncReport,
    UndoReport,
    VerifyReport,
)
from dionysus_sync_mcp.engine.sessions import (
    CurrentSession,
    end_session,
    list_sessions,
    save_session_once,
    start_session,
    touch_session,
)
from dionysus_sync_mcp.engine.status import INCIDENT, StatusReader
from dionysus_sync_mcp.engine.sync import Syncer, Wanted
from dionysus_sync_mcp.engine.tasks import first_error
from dionysus_sync_mcp.engine.undo import Undoer
from dionysus_sync_mcp.engine.verify import LIMIT, Verifier
from dionysus_sync_mcp.engine.worker import Job, Worker
from dionysus_sync_mcp.settings import EMBEDDED, Settings

OnEmbedded = Callable[[Progress], None]

DISTRIBUTION = "dionysus-sync-mcp"
EMBEDDED_RETRY_SECONDS = 30.0
FIND_SECONDS = 0.7  # well under the 2 s in which a tool answers
CLOSE_SECONDS = 2.0
RECORD_SECONDS = 3.0


def utc_now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


class Address:
    """Where a service is: given by the settings, or known once the embedded one runs.

    Args:
        url: From the settings.
        patient: Whether a caller waits for the embedded service, or is told how far it is.
    """

    def __init__(self, url: str, service: Service, *, patient: bool) -> None:
        self.service = service
        self.embedded = url == EMBEDDED
        self._url = None if self.embedded else url
        # An embedded service that runs already is found within this time: the first call need not be refused.
        self._patient_until = math.inf if patient else anyio.current_time() + FIND_SECONDS
        self._message = "it is about to be started"
        self._error: EmbeddedError | None = None
        self._decided = anyio.Event()

    async def __call__(self) -> str:
        """The URL.

        Raises:
            Starting: The embedded service is still being fetched or started.
            EmbeddedError: It could not be.
        """
        if self.embedded:
            with anyio.CancelScope(deadline=self._patient_until):
                await self._decided.wait()
        if self._url is not None:
            return self._url
        if self._error is not None:
            raise self._error
        raise Starting(self._message, where=f"embedded {self.service}", hint="Try again in a moment.")

    def note(self, progress: Progress) -> None:
        """How far it is."""
        self._message = progress.message

    def found(self, url: str) -> None:
        """It runs."""
        self._url, self._error = url, None
        self._decided.set()

    def failed(self, error: EmbeddedError) -> None:
        """It could not be started; it is tried again."""
        self._error = error
        self._decided.set()


class Runtime:
    """What the MCP server and the command line use: the engine's use-cases on real adapters.

    Every method raises errors of `domain.errors` only.
    """

    def __init__(self, settings: Settings, *, start_session: bool, patient: bool) -> None:
        self.settings = settings
        self.addresses = (
            Address(settings.database_url.get_secret_value(), "postgres", patient=patient),
            Address(settings.neo4j_uri, "neo4j", patient=patient),
        )
        self._leases: list[Lease] = []
        self._open_local(settings)
        self._open_remote(settings)
        self._build_engine(settings)
        self._session_file = SessionFileOnDisk(
            session_file_path(settings.dionysus_session_file, settings.claude_project_dir, Path.home())
        )
        self._idle = timedelta(minutes=settings.dionysus_session_idle_minutes)
        self._session = self._start_session() if start_session else None
        self._session_warnings = list(self._session.warnings) if self._session else []
        self._last_activity = utc_now()

    def _open_local(self, settings: Settings) -> None:
        self.database = Database(self.addresses[0], settings.dionysus_schema, load_sql())
        self.installer = Installer(self.database, load_migrations())
        self.outbox = PostgresOutbox(self.database)
        self.reading = PostgresReading(self.database, self.installer)
        self.alerts = PostgresAlerts(self.database)

    def _open_remote(self, settings: Settings) -> None:
        self.remote = RemoteStore(
            self.addresses[1],
            settings.neo4j_user,
            settings.neo4j_password,
            settings.neo4j_database,
            settings.dionysus_embedding_dimensions,
            settings.dionysus_fulltext_analyzer,
        )
        self.embedder = OllamaEmbedder(
            settings.ollama_url, settings.ollama_embed_model, settings.dionysus_embedding_dimensions
        )
        self._questions = QuestionVectors(self.embedder)

    def _build_engine(self, settings: Settings) -> None:
        services = (self.database, self.remote, self.embedder)
        self.pusher = Pusher(
            self.outbox,
            self.remote,
            self.remote,
            rows=settings.dionysus_batch_rows,
            size=settings.dionysus_batch_bytes,
        )
        self._build_detector(settings)
        self.guard = Guard(
            self.installer,
            self.remote,
            self.remote,
            may_initialise=self.addresses[0].embedded,
            look_first=self.detector.watch_once,
        )
        self._status = StatusReader(
            services, self.reading, self.remote, self.remote, version(DISTRIBUTION), self._records.open
        )
        restorer = PostgresRestorer(self.database, self.installer)
        self.verifier = self._build_verifier(restorer, settings.dionysus_verify_seconds)
        refiller = Refiller(self.reading, self.remote, restorer, self.guard)
        self._syncer = Syncer(
            (self.database, self.remote),
            self.pusher,
            self.outbox,
            self.remote,
            self.embedder,
            refill=refiller.refill_once,
            shortcomings=self._status.shortcomings,
            rebuild=self.verifier.rebuild_step,
            check=self._compare,
        )
        self._driller = self._build_driller(settings.dionysus_drill_hours)
        self._purger = Purger(
            self.remote,
            PostgresPurging(self.database),
            self.installer,
            all_judged=self.detector.judge_all,
            open_incidents=self._open_incidents,
            standing=self._status.standing,
        )
        rows = PostgresRows(self.database, self.installer)
        self._undoer = Undoer(PostgresUndoing(self.database), self.remote)
        self._recoverer = Recoverer(
            self.remote,
            self.remote,
            rows,
            restorer,
            self.installer,
            self.pusher,
            self._records,
            locate=self._place,
            install=self._put_back,
        )
        self._worker = Worker(
            self.pusher,
            self.outbox,
            self.guard,
            self.remote,
            self.embedder,
            poll=settings.dionysus_poll_ms / 1000,
            save_session=self._save_session,
            refill=refiller.refill_once,
            services=services,
            jobs=self._jobs(settings),
        )
        self._working = False

    def _build_detector(self, settings: Settings) -> None:
        url, token = settings.dionysus_alert_webhook_url, settings.memory_webhook_token
        self._sink = Webhook(url, token) if url else None
        book = PostgresIncidents(self.database)
        unrecorded = Unrecorded(self.remote, self._sink, settings.dionysus_project)
        self.detector = Detector(
            PostgresObserving(self.database),
            book,
            self.remote,
            self.installer.identity,
            self._place,
            unrecorded,
            thresholds=Thresholds(
                deletes=settings.dionysus_incident_deletes,
                updates=settings.dionysus_incident_updates,
                share=settings.dionysus_incident_share,
                seconds=settings.dionysus_incident_seconds,
            ),
            expected=CAPTURE_TRIGGERS,
        )
        self._records = IncidentRecords(book, self.remote, unrecorded, self.detector.stores)

    async def _put_back(self) -> None:
        await self.guard.look()
        await self.installer.install()

    async def _place(self) -> str:
        return place_of(await self.addresses[0](), platform.node())

    def _build_verifier(self, restorer: PostgresRestorer, seconds: float) -> Verifier:
        verifying = PostgresVerifying(self.database, self.installer)
        return Verifier(
            Comparer(verifying, self.remote),
            Mender(verifying, self.remote, self.remote, self.remote, restorer),
            verifying,
            verifying,
            self.remote,
            self.installer,
            standing=self._status.standing,
            alert=lambda alerts: self.alerter.raise_alerts(alerts),
            altered=self._altered,
            incident_open=self._any_open,
            seconds=seconds,
        )

    def _build_driller(self, hours: float) -> Driller:
        return Driller(
            PostgresVerifying(self.database, self.installer),
            PostgresDrilling(self.database, load_sql()),
            self.remote,
            self.installer,
            incident_open=self._incident_open,
            alert=lambda alerts: self.alerter.raise_alerts(alerts),
            hours=hours,
        )

    async def _open_incidents(self, any_store: bool) -> list[Incident]:
        return await self._records.open_anywhere(None if any_store else await self.detector.stores_here())

    async def _incident_open(self) -> bool:
        return bool(await self._open_incidents(False))

    async def _any_open(self) -> bool:
        return bool(await self._records.open())

    async def _altered(self) -> bool:
        return any(incident.kind == "alter" for incident in await self._records.open())

    def _jobs(self, settings: Settings) -> list[Job]:
        self.alerter = Alerter(self.alerts, self._sink, settings.dionysus_project)
        watch = AlertWatch(self.alerter, self.reading, self._status.standing)
        check = Job("check", self.verifier.check_once)
        drill = Job("drill", lambda: self._driller.drill_if_due(utc_now()))
        retry = Job("retry", self.pusher.retry_due_once)
        jobs = [
            check,
            drill,
            retry,
            Job("alert watch", watch.watch_once),
            Job("pruning", lambda: prune_once(self.alerts)),
            Job("incidents", self.detector.judge_once),
            Job("record of incidents", self.detector.publish_once),
            Job("pruning of observations", self.detector.prune_once),
        ]
        return [*jobs, Job("alerts", self.alerter.deliver_once)] if self._sink else jobs

    async def status(self, timeout: float = 1.5) -> StatusReport:
        """How the memories are protected now; answers within `timeout` seconds and a little."""
        worker = self._worker.report() if self._working else None
        session = self._session.report() if self._session else None
        return await self._status.read(utc_now(), timeout, worker, session, self._session_warnings)

    async def doctor(self, timeout: float) -> StatusReport:
        """The status, and what people should know of the role in use."""
        report = await self.status(timeout)
        try:
            with anyio.fail_after(timeout):
                findings = role_findings(await self.reading.role_in_use())
        except (DionysusError, TimeoutError):
            return report
        return report.model_copy(update={"warnings": [*report.warnings, *findings]})

    async def sync(
        self,
        *,
        timeout: float | None = None,
        embed: bool = True,
        retry_parked: bool = False,
        verify: bool = False,
        rebuild: bool = False,
        on_progress: OnProgress | None = None,
    ) -> SyncReport:
        """Push and embed all that waits, and what else is asked for; see `engine.sync`."""
        wanted = Wanted(embed=embed, retry_parked=retry_parked, rebuild=rebuild, verify=verify)
        report = await self._syncer.sync(wanted, timeout=timeout, on_progress=on_progress)
        if not self._working:
            await self._leave_on_record()
        return report

    async def _leave_on_record(self) -> None:
        """Where this store is, and its incidents, in the remote store; where background loops run, they do that."""
        with anyio.move_on_after(RECORD_SECONDS), suppress(DionysusError):
            await self.guard.look()
            await self.detector.publish_once()

    async def verify(
        self,
        kind: Kind = "full",
        *,
        repair: bool = False,
        limit: int = LIMIT,
        prefer: Side | None = None,
        dry_run: bool = True,
        on_progress: OnProgress | None = None,
    ) -> VerifyReport:
        """Compare both stores, and mend what differs where that is asked for; see `engine.verify`."""
        return await self.verifier.verify_once(
            kind, repair=repair, limit=limit, prefer=prefer, dry_run=dry_run, on_progress=on_progress
        )

    async def plan_recovery(
        self,
        scope: Scope,
        *,
        as_of: datetime | None = None,
        before_incident: str | None = None,
        include_deleted: bool = False,
        overwrite_newer: bool = False,
        only_missing: bool = False,
        on_progress: OnProgress | None = None,
    ) -> RecoveryPlan:
        """What a recovery would do; changes nothing. What has just been destroyed is on record before it is planned."""
        await self.guard.look()
        wish = RecoveryWish(
            scope,
            as_of=as_of,
            before_incident=before_incident,
            include_deleted=include_deleted,
            overwrite_newer=overwrite_newer,
            only_missing=only_missing,
        )
        return await self._recoverer.plan(wish, utc_now(), on_progress=on_progress)

    def planned_overwrites(self, plan_id: str) -> int:
        """How many local rows this plan would overwrite."""
        return self._recoverer.planned_overwrites(plan_id, utc_now())

    async def run_recovery(self, plan_id: str, *, on_progress: OnProgress | None = None) -> RecoveryReport:
        """Carry out a plan. What is missing is on record before it is put back; what was put back is no incident."""
        await self.guard.look()
        try:
            return await self._recoverer.run(plan_id, utc_now(), on_progress=on_progress)
        finally:
            with suppress(DionysusError):
                await self.detector.take_as_it_is()

    async def undo(
        self, recovery_id: str | None, *, dry_run: bool, on_progress: OnProgress | None = None
    ) -> UndoReport:
        """Bring back the rows that a recovery overwrote; see `engine.undo`."""
        return await self._undoer.undo(recovery_id, dry_run=dry_run, on_progress=on_progress)

    async def drill(self, *, on_progress: OnProgress | None = None) -> DrillReport:
        """Recover into a scratch schema, compare, and throw it away; see `engine.drill`."""
        return await self._driller.drill_once(utc_now(), on_progress)

    async def incidents(self, *, open_only: bool, limit: int) -> IncidentsReport:
        """The incidents on record, newest first."""
        found = await self._records.newest(open_only=open_only, limit=limit)
        is_open = next((one for one in found if not one.closed_at), None)
        return IncidentsReport(
            next_step=INCIDENT.format(is_open.id) if is_open else "Nothing to do: no incident is open.",
            incidents=[report_of(one) for one in found],
        )

    async def incident(self, incident_id: str) -> IncidentReport:
        """One incident."""
        return report_of(await self._records.find(incident_id))

    async def close_incident(self, incident_id: str, reason: str) -> IncidentReport:
        """Note that a person has dealt with an incident."""
        return report_of(await self._records.close(incident_id, reason))

    async def purge(
        self,
        older_than: timedelta | None,
        memory_ids: Sequence[str],
        *,
        dry_run: bool,
        on_progress: OnProgress | None = None,
    ) -> PurgeReport:
        """Remove history from the remote store for good, once it is seen what was destroyed; see `engine.purge`."""
        await self.guard.look()
        return await self._purger.purge(older_than, memory_ids, dry_run=dry_run, now=utc_now(), on_progress=on_progress)

    async def query(self, request: QueryRequest) -> QueryAnswer:
        """Search the memories of all projects and sessions."""
        return await query(
            request, self.remote, self.remote, self.reading, self._questions, self.settings.dionysus_words_weight
        )

    async def init(self, *, dry_run: bool) -> InitReport:
        """Make the database a local store, adopting the table `memories` that is there.

        Raises:
            NotAdoptable: The table cannot be used; nothing was changed.
        """
        if not dry_run:
            await self.guard.look()
        look = self.installer.missing_steps if dry_run else self.installer.install
        steps, adopted = await look()
        backfilled = 0 if dry_run else await self.guard.backfill()
        return InitReport(
            dry_run=dry_run,
            adopted=adopted,
            steps=[InitStep(name=step.name, sql=step.sql) for step in steps],
            backfilled=backfilled,
            next_step=_init_advice(dry_run=dry_run, left=bool(steps)),
        )

    async def run_worker(self) -> None:
        """The background loops, until cancelled."""
        self._working = True
        try:
            await self._worker.run()
        finally:
            self._working = False

    async def catch_up_on_questions(self) -> None:
        """Embed questions that could not wait for Ollama, until cancelled."""
        await self._questions.catch_up()

    def session(self) -> SessionReport | None:
        """The session of this process; `None` where none was started."""
        return self._session.report() if self._session else None

    async def end_session(self, summary: str | None = None) -> SessionReport | None:
        """End the session of this folder, so that the next start begins a new one; `None` if none was going on."""
        session = self._session or self._start_session()
        if self._session is None and session.origin == "new":
            self._session_file.remove()
            return None
        now = utc_now()
        await save_session_once(self.reading, session, now)
        ended = await end_session(self.reading, self._session_file, session.session_id, now, summary)
        return session.report().model_copy(update={"ended_at": now, "summary": summary}) if ended else None

    async def list_sessions(self, limit: int) -> list[SessionReport]:
        """The newest sessions of all projects."""
        return await list_sessions(self.reading, None, limit)

    async def touch(self) -> None:
        """Note an activity of the session."""
        self._last_activity = utc_now()
        if self._session:
            self._session_warnings = touch_session(self._session_file, self._session, self._last_activity, self._idle)

    def release(self) -> None:
        """What must happen before the process ends however it ends; instant, harmless when repeated."""
        for lease in self._leases:
            lease.release()

    async def close(self) -> None:
        """Close every connection; bounded."""
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await self.embedder.close()
            await self.remote.close()
            await self.database.close()

    async def hold_embedded(self, address: Address, on_embedded: OnEmbedded | None) -> None:
        """Have an embedded service run as long as this process; what fails is tried again."""

        def note(progress: Progress) -> None:
            address.note(progress)
            if on_embedded:
                on_embedded(progress)

        home = self.settings.dionysus_home or default_home()
        while True:
            try:
                lease = await acquire(home, frozenset({address.service}), self.settings.dionysus_neo4j_version, note)
            except EmbeddedError as error:
                address.failed(error)
                await anyio.sleep(EMBEDDED_RETRY_SECONDS)
                continue
            self._leases.append(lease)
            address.found(lease.database_url or lease.neo4j_uri or "")
            return

    def _start_session(self) -> CurrentSession:
        settings = self.settings
        folder = settings.claude_project_dir
        return start_session(
            self._session_file,
            environment_id=settings.claude_code_session_id,
            project=project_name(settings.dionysus_project, str(folder.resolve()) if folder else None, str(Path.cwd())),
            now=utc_now(),
            idle=timedelta(minutes=settings.dionysus_session_idle_minutes),
            new_id=uuid4(),
        )

    async def _compare(self) -> VerifyReport:
        return await self.verifier.verify_once("full")

    async def _save_session(self) -> None:
        if self._session:
            await save_session_once(self.reading, self._session, self._last_activity)


@asynccontextmanager
async def open_runtime(
    settings: Settings, *, worker: bool, start_session: bool, on_embedded: OnEmbedded | None = None
) -> AsyncIterator[Runtime]:
    """The runtime, at once: embedded services are held, and the worker runs, in the background.

    Args:
        on_embedded: Told how far the embedded services are. With it, calls wait for them; without, they say how far.
    """
    runtime = Runtime(settings, start_session=start_session, patient=on_embedded is not None)
    try:
        with first_error():
            async with anyio.create_task_group() as tasks:
                for address in runtime.addresses:
                    if address.embedded:
                        tasks.start_soon(runtime.hold_embedded, address, on_embedded)
                if worker:
                    tasks.start_soon(runtime.run_worker)
                tasks.start_soon(runtime.catch_up_on_questions)
                yield runtime
                tasks.cancel_scope.cancel()
    finally:
        runtime.release()
        await runtime.close()


def _init_advice(*, dry_run: bool, left: bool) -> str:
    if not left:
        return "All is in place; nothing to do."
    if dry_run:
        return "Nothing was changed. Run the same without --dry-run to carry these steps out."
    return "Every change is captured from now on. Claude Code or a worker pushes it; call sync_now to push it now."
