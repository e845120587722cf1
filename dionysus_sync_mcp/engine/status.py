"""Status: reads only, fast, and answers whatever is away."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import anyio
from pydantic import ValidationError

from dionysus_sync_mcp.domain.destruction import Incident
from dionysus_sync_mcp.domain.errors import DionysusError, SchemaMismatch, Unavailable
from dionysus_sync_mcp.domain.exposure import Counts, missing_here, missing_there
from dionysus_sync_mcp.domain.lineage import Lineage, Standing, standing
from dionysus_sync_mcp.domain.text import clause
from dionysus_sync_mcp.engine.incidents import report_of
from dionysus_sync_mcp.engine.ports.embed import VectorStore
from dionysus_sync_mcp.engine.ports.recover import RemoteReader
from dionysus_sync_mcp.engine.ports.shared import Health, Service, StoreIdentity
from dionysus_sync_mcp.engine.ports.status import Activity, LocalState, LocalStatus
from dionysus_sync_mcp.engine.reports import (
    AlertReport,
    CheckReport,
    DrillReport,
    Exposure,
    LocalReport,
    OutageReport,
    QueueReport,
    RemoteReport,
    ServiceReport,
    SessionReport,
    Statistics,
    StatusReport,
    WorkerReport,
)
from dionysus_sync_mcp.engine.tasks import first_error

RUN_INIT = "Run 'dionysus-sync-mcp init' to start protecting this database."
CANNOT_TELL = "Check the rights of the roles that DATABASE_URL and NEO4J_USER name."
RECOVER = "Call recover_from_remote without plan_id to see what can be brought back."
RECOVER_DELETED = (
    "Call recover_from_remote with include_deleted=true, without plan_id, to see what can be brought back."
)
PARKED = (
    "Parked changes are in the local store only: call sync_now with retry_parked=true to try them again, "
    "or change these rows."
)
PARKED_UNSENT = (
    "Parked changes are in the local store only: PostgreSQL cannot make JSON of these rows, so they have to be changed."
)
ROLLED_BACK = (
    "This database is older than what it has pushed: it was restored from an old dump, or is a copy. "
    "Nothing is pushed until a person decides what counts."
)
DECIDE = (
    "Ask the user to decide: 'dionysus-sync-mcp verify --repair --prefer remote' takes what the remote store has, "
    "'dionysus-sync-mcp verify --repair --prefer local' what is here; both show a plan first."
)
INCIDENT = "Call recover_from_remote with before_incident={} to see what can be brought back."
REPAIR = "'dionysus-sync-mcp verify --repair' shows what a repair would do, and changes nothing."
REFILL = "Call sync_now: it queues again what the remote store lacks."
SYNCED = "Nothing to do: every change is in the remote store."
# Looking twice tells a loss from a change that was on its way between the looks at both sides.
SECOND_LOOK_SECONDS = 0.3
NO_ACTIVITY = Activity()
MOST_INCIDENTS = 5
# Of the time for all looks: a local store that hangs must leave some for the remote store's record.
SHARE_OF_LOCAL = 0.5
STATISTICS_SPAN = timedelta(hours=24)


@dataclass(slots=True)
class _Looks:
    """What the looks at each side have brought so far."""

    health: dict[str, Health] = field(default_factory=dict)
    local: LocalState | None = None
    remote: RemoteReport | None = None
    standing: Standing | None = None
    activity: Activity | None = None
    incidents: list[Incident] = field(default_factory=list)
    unread: dict[str, DionysusError] = field(default_factory=dict)


class Shortcomings(NamedTuple):
    """What of the memories is missing on one side or parked.

    Attributes:
        next_step: What to do about it, empty if nothing is.
        failed: How many changes failed for good.
    """

    warnings: Sequence[str] = ()
    next_step: str = ""
    failed: int = 0


class StatusReader:
    """The use-case status.

    Args:
        incidents: The open ones, newest first, given seconds to wait for the local store.
    """

    def __init__(
        self,
        services: Sequence[Service],
        local: LocalStatus,
        reader: RemoteReader,
        vectors: VectorStore,
        version: str,
        incidents: Callable[[float], Awaitable[list[Incident]]] | None = None,
    ) -> None:
        self._services = services
        self._local = local
        self._reader = reader
        self._vectors = vectors
        self._version = version
        self._incidents = incidents

    async def read(
        self,
        now: datetime,
        timeout: float,
        worker: WorkerReport | None,
        session: SessionReport | None,
        session_warnings: Sequence[str] = (),
    ) -> StatusReport:
        """All looks at once, each for at most `timeout` seconds; what did not answer is said, never raised."""
        looks = await self._look(now - STATISTICS_SPAN, timeout)
        health = [looks.health[name] for name in sorted(looks.health, reverse=True)]
        warnings, next_step = advise(
            health,
            looks.local,
            looks.remote,
            worker,
            looks.unread,
            looks.activity or NO_ACTIVITY,
            looks.standing,
            looks.incidents,
        )
        return StatusReport(
            next_step=next_step,
            incidents=[report_of(incident) for incident in looks.incidents[:MOST_INCIDENTS]],
            open_incidents=len(looks.incidents),
            warnings=[*warnings, *session_warnings],
            exposure=_exposure(looks.local, now),
            services=[_service(h) for h in health],
            local=_local(looks.local),
            remote=looks.remote,
            worker=worker,
            last_check=_check(looks.activity),
            statistics=_statistics(looks.activity, now - STATISTICS_SPAN),
            alerts=_alerts(looks.activity),
            last_drill=_drill_of(looks.activity or NO_ACTIVITY),
            session=session,
            version=self._version,
        )

    async def _look(self, since: datetime, timeout: float) -> _Looks:
        looks = _Looks()
        with first_error():
            async with anyio.create_task_group() as tasks:
                for service in self._services:
                    tasks.start_soon(self._look_at_service, service, looks, timeout)
                tasks.start_soon(_within, timeout, "postgresql", self._look_at_local, looks)
                tasks.start_soon(_within, timeout, "neo4j", self._look_at_remote, looks)
                tasks.start_soon(self._look_at_activity, since, looks, timeout)
                tasks.start_soon(self._look_at_incidents, looks, timeout)
        await self._look_again(looks)
        return looks

    async def shortcomings(self, timeout: float) -> Shortcomings:
        """What of the memories is missing on one side or parked."""
        looks = _Looks()
        with first_error():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_within, timeout, "postgresql", self._look_at_local, looks)
                tasks.start_soon(_within, timeout, "neo4j", self._look_at_counts, looks)
        await self._look_again(looks)
        found = [*_losses(looks.local, looks.remote), *_parked(looks.local)]
        return Shortcomings(
            [warning for warning, _ in found],
            next((step for _, step in found if step), ""),
            looks.local.failed if looks.local else 0,
        )

    async def standing(self) -> Standing | None:
        """Where the local store stands beside what the remote remembers of it; `None` where there is no local store.

        A push that is under way moves the remote on first, and its entries are still queued then: without them, a
        remote that is one push ahead is one that this database does not remember. What the local store remembers is
        read after what the remote does: pushes between the two looks are then in both.
        """
        before = await self._local.identity()
        if before is None:
            return None
        there = await self._reader.lineage(before.id)
        waits = there is not None and await self._local.has_entry(there.last_entry)
        here = await self._local.identity()
        if here is None or here.id != before.id:
            return None
        lineage = Lineage(here.epoch, here.generation, here.lineage)
        return standing(lineage, there, last_push_waits=waits, repeated=here.repeated)

    async def _look_again(self, looks: _Looks) -> None:
        """What was missing must still be missing, counted with what the table holds after the remote was read."""
        first = looks.local
        if first is None or looks.remote is None or not _differences(first, looks.remote):
            return
        with anyio.move_on_after(SECOND_LOOK_SECONDS), suppress(DionysusError):
            second = await self._local.state()
            if not _differences(second, looks.remote):
                looks.local = second

    async def _look_at_service(self, service: Service, looks: _Looks, timeout: float) -> None:
        health = await service.health(timeout)
        looks.health[health.service] = health

    async def _look_at_local(self, looks: _Looks) -> None:
        looks.local = await self._local.state()

    async def _look_at_activity(self, since: datetime, looks: _Looks, timeout: float) -> None:
        """Statistics are worth no warning of their own: what keeps them from being read is said by the other looks."""
        with anyio.move_on_after(timeout), suppress(DionysusError):
            looks.activity = await self._local.activity(since)

    async def _look_at_incidents(self, looks: _Looks, timeout: float) -> None:
        """Where neither store can be read, the other looks say why."""
        if self._incidents is None:
            return
        with anyio.move_on_after(timeout), suppress(DionysusError):
            looks.incidents = await self._incidents(SHARE_OF_LOCAL * timeout)

    async def _look_at_remote(self, looks: _Looks) -> None:
        with suppress(DionysusError):
            looks.standing = await self.standing()
        await self._look_at_counts(looks)
        if looks.remote:
            waiting = await self._vectors.count_without_vector()
            looks.remote = looks.remote.model_copy(update={"without_vector": waiting})

    async def _look_at_counts(self, looks: _Looks) -> None:
        counts = await self._reader.counts()
        identity = await self._identity()
        held = await self._reader.holdings(identity.id) if identity else None
        looks.remote = RemoteReport(
            live=counts.live,
            tombstones=counts.tombstones,
            versions=counts.versions,
            own_live=held.live if held else None,
            own_tombstones=held.tombstones if held else 0,
            without_vector=0,
        )

    async def _identity(self) -> StoreIdentity | None:
        """Where the local store cannot be read, what is its own is unknown, and the rest is still worth saying."""
        try:
            with anyio.fail_after(SECOND_LOOK_SECONDS):
                return await self._local.identity()
        except (DionysusError, TimeoutError):
            return None


async def _within(timeout: float, service: str, look: Callable[[_Looks], Awaitable[None]], looks: _Looks) -> None:
    """A look that fails leaves its part of the report empty, and its reason beside it."""
    looks.unread[service] = Unavailable("no answer in time")
    with anyio.move_on_after(timeout):
        try:
            await look(looks)
        except DionysusError as error:
            looks.unread[service] = error
        else:
            del looks.unread[service]


def advise(
    health: Sequence[Health],
    local: LocalState | None,
    remote: RemoteReport | None,
    worker: WorkerReport | None,
    unread: Mapping[str, DionysusError],
    activity: Activity = NO_ACTIVITY,
    standing: Standing | None = None,
    incidents: Sequence[Incident] = (),
) -> tuple[list[str], str]:
    """The warnings, worst first, and the one thing to do next.

    Args:
        worker: `None` where this process does not push in the background.
        unread: By service, why what it holds could not be read.
        standing: Where the local store stands beside what the remote remembers of it, `None` if that is unknown.
        incidents: Those that are open, newest first.
    """
    rolled_back = standing == "behind_here"
    # What a push says of either is not said again.
    explained = rolled_back or any(not h.up and h.service != "ollama" for h in health)
    found = [
        *(_open_incident(incident) for incident in incidents[:MOST_INCIDENTS]),
        *([(ROLLED_BACK, DECIDE)] if rolled_back else []),
        *_losses(local, remote),
        *_blind(health, unread),
        *_outages(health, worker),
        *_parked(local),
        *_drift(activity),
        *_failed_drill(_drill_of(activity)),
        *_troubles(local, None if explained else worker),
        *_undelivered(activity),
    ]
    warnings = [warning for warning, _ in found]
    return warnings, next((step for _, step in found if step), "") or _when_well(local, remote, worker)


def _open_incident(incident: Incident) -> tuple[str, str]:
    advice = INCIDENT.format(incident.id)
    return f"An incident is open: {incident.summary} {advice}", advice


def _when_well(local: LocalState | None, remote: RemoteReport | None, worker: WorkerReport | None) -> str:
    if local and local.queued and worker is None:
        return "Changes wait for a worker, such as Claude Code's; call sync_now to push them now."
    if local and local.queued:
        return "Changes are on their way; call sync_now to wait until they are in the remote store."
    elsewhere = remote.live - local.memories if local and remote else 0
    if elsewhere > 0:
        return f"{SYNCED} It also holds {elsewhere} memories that are not here; recover_from_remote brings them."
    return SYNCED


def _losses(local: LocalState | None, remote: RemoteReport | None) -> list[tuple[str, str]]:
    if local is None:
        return []
    if not local.initialised:
        return [("This database is not protected yet: the bookkeeping is not installed.", RUN_INIT)]
    held = remote.live if remote else 0
    holds = f"the remote store holds {held} memories" if remote else "what the remote store holds is not known now"
    if not local.table_present:
        return [(f"The table memories is gone; {holds}.", RECOVER)]
    if not local.memories and held:
        return [(f"The local store is empty; the remote store holds {held} memories.", RECOVER)]
    if not local.capture_installed:
        return [("Changes are not being captured: the triggers are missing or disabled.", RUN_INIT)]
    return _differences(local, remote) if remote else []


def _differences(local: LocalState, remote: RemoteReport) -> list[tuple[str, str]]:
    """What one side has and the other one lacks, though nothing is on its way that explains it."""
    counts = Counts(local.memories, local.queued + local.parked, remote.live, remote.own_live or 0)
    numbers = f"the local store holds {local.memories} memories, the remote store {{}}"
    if missing := missing_here(counts):
        here = numbers.format(f"{counts.own} that this store wrote")
        return [(f"{missing} memories or more are missing here: {here}.", RECOVER)]
    if missing := missing_there(counts):
        return [(f"{missing} memories or more are missing in the remote store: {numbers.format(counts.live)}.", REFILL)]
    if not counts.memories and not counts.waiting and remote.own_tombstones:
        deleted = f"all {remote.own_tombstones} memories of this store were deleted; the remote store keeps them"
        return [(f"The local store is empty: {deleted}.", RECOVER_DELETED)]
    return []


def _parked(local: LocalState | None) -> list[tuple[str, str]]:
    if local is None or not local.parked:
        return []
    reason = f": {clause(local.last_parked_error)}" if local.last_parked_error else ""
    if local.unsent == local.parked:
        said = f"{local.parked} changes are parked, since PostgreSQL cannot make JSON of their rows{reason}."
        return [(said, PARKED_UNSENT)]
    failed = (
        f" {local.failed} of them failed for good: refused ten times, they are not tried again by themselves."
        if local.failed
        else ""
    )
    unsent = (
        f" {local.unsent} of them were never sent: PostgreSQL cannot make JSON of their rows, which have to be changed."
        if local.unsent
        else ""
    )
    return [(f"{local.parked} changes are parked, refused by the remote store{reason}.{failed}{unsent}", PARKED)]


def _outages(health: Sequence[Health], worker: WorkerReport | None) -> list[tuple[str, str]]:
    meaning = {
        "postgresql": "PostgreSQL is away: memories cannot be read or written now",
        "neo4j": "Neo4j is away: changes wait in the local queue and nothing is lost",
        "ollama": "Ollama is away: new memories are found by words only until it is back",
    }
    outages = {outage.service: outage for outage in worker.outages} if worker else {}
    found = [
        (f"{meaning[h.service]} ({h.error}).{_since(outages.get(h.service))}", h.hint if h.service != "ollama" else "")
        for h in health
        if not h.up
    ]
    back = [outages[h.service] for h in health if h.up and h.service in outages]
    return found + [(f"The background loop still takes {o.service} for away ({o.error}).{_since(o)}", "") for o in back]


def _since(outage: OutageReport | None) -> str:
    if outage is None:
        return ""
    tried = f"; it is tried again by {_clock(outage.next_try_at)}" if outage.next_try_at else ""
    return f" Away since {_clock(outage.since)}{tried}."


def _clock(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _drift(activity: Activity) -> list[tuple[str, str]]:
    check = activity.drift
    if check is None:
        return []
    when = _clock(check.finished_at)
    return [(f"The stores differ in {check.differences} memories, as the {check.kind} check of {when} found.", REPAIR)]


def _failed_drill(drill: DrillReport | None) -> list[tuple[str, str]]:
    if drill is None or drill.result != "failed":
        return []
    found = f"{drill.missing} memories did not come back, {drill.different} came back otherwise"
    return [(f"The last drill, of {_clock(drill.finished_at)}, failed: {found}.", drill.next_step)]


def _undelivered(activity: Activity) -> list[tuple[str, str]]:
    if not activity.undelivered:
        return []
    reason = clause(activity.undelivered_error or "")
    return [(f"{activity.undelivered} alerts could not be delivered yet: {reason}.", "")]


def _blind(health: Sequence[Health], unread: Mapping[str, DionysusError]) -> list[tuple[str, str]]:
    """A service that can be reached but not read: nothing is known of what it holds."""
    stores = {"postgresql": "local", "neo4j": "remote"}
    up = [(stores[h.service], unread[h.service]) for h in health if h.up and h.service in unread]
    return [_not_read(store, error) for store, error in up]


def _not_read(store: str, error: DionysusError) -> tuple[str, str]:
    if isinstance(error, SchemaMismatch):
        return f"Nothing is pushed from here: {clause(error.what)}.", error.hint or RUN_INIT
    return f"The {store} store could not be read: {clause(error.what)}.", CANNOT_TELL


def _troubles(local: LocalState | None, worker: WorkerReport | None) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if local and local.open_conflicts:
        found.append((f"{local.open_conflicts} conflicts were decided; both contents are on record.", ""))
    if worker and worker.error:
        found.append((f"The last push failed: {worker.error}", ""))
    return found


def _exposure(local: LocalState | None, now: datetime) -> Exposure:
    if local is None or not local.initialised:
        return Exposure(unsynced=None)
    oldest = local.oldest_queued_at
    age = max(0.0, round((now - oldest).total_seconds(), 3)) if oldest else None
    return Exposure(unsynced=local.queued + local.parked, oldest_seconds=age)


def _service(health: Health) -> ServiceReport:
    return ServiceReport(
        service=health.service,
        up=health.up,
        error=health.error,
        hint=health.hint,
        version=health.version,
        latency_ms=health.latency_ms,
        degraded=list(health.degraded),
    )


def _local(state: LocalState | None) -> LocalReport | None:
    if state is None:
        return None
    return LocalReport(
        initialised=state.initialised,
        table_present=state.table_present,
        capture_installed=state.capture_installed,
        memories=state.memories,
        queue=QueueReport(
            queued=state.queued,
            parked=state.parked,
            failed=state.failed,
            last_parked_error=state.last_parked_error,
        ),
        last_success_at=state.last_success_at,
        open_conflicts=state.open_conflicts,
    )


def _check(activity: Activity | None) -> CheckReport | None:
    if activity is None or activity.last_check is None:
        return None
    return CheckReport(**activity.last_check._asdict())


def _drill_of(activity: Activity) -> DrillReport | None:
    """As it was put on record, by whatever version of this program."""
    try:
        return DrillReport.model_validate(activity.last_drill) if activity.last_drill else None
    except ValidationError:
        return None


def _statistics(activity: Activity | None, since: datetime) -> Statistics | None:
    if activity is None:
        return None
    return Statistics(
        since=since,
        pushes=activity.pushes,
        pushed=activity.pushed,
        failed_pushes=activity.failed_pushes,
        outages=activity.outages,
        average_ms=None if activity.average_ms is None else round(activity.average_ms, 1),
        slowest_ms=activity.slowest_ms,
        conflicts=activity.conflicts,
        repaired=activity.repaired,
    )


def _alerts(activity: Activity | None) -> list[AlertReport]:
    return [AlertReport(**alert._asdict()) for alert in activity.alerts] if activity else []
