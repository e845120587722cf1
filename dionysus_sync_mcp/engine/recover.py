"""Recover: plan first, then bring back from the remote store what the plan names, and compare every row's hash."""

import difflib
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from uuid import uuid4

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from dionysus_sync_mcp.domain.definition import lacks, reshaped, user_columns
from dionysus_sync_mcp.domain.destruction import Incident
from dionysus_sync_mcp.domain.errors import DionysusError, InputError, PlanOutdated
from dionysus_sync_mcp.domain.lost_columns import LostColumns, with_values
from dionysus_sync_mcp.domain.memory import RemoteMemory, broken_rules
from dionysus_sync_mcp.domain.recovery_plan import (
    LOSES_CONTEXT,
    KnownStore,
    Moment,
    Wishes,
    columns_lost,
    damage_unseen,
    lacking,
    numbers,
    shape_lost,
    shortfall,
    stores_before,
    windows,
    worst_loss,
)
from dionysus_sync_mcp.domain.text import defused
from dionysus_sync_mcp.engine.definitions import damaged_definitions, definition_for
from dionysus_sync_mcp.engine.ports.history import EVERY_ID, Concern, KnownIncidents, LocalRows, RemoteHistory, StateOf
from dionysus_sync_mcp.engine.ports.install import Installation
from dionysus_sync_mcp.engine.ports.recover import PageResult, RemoteReader, Restoration, Restorer
from dionysus_sync_mcp.engine.ports.shared import OnProgress, Scope, SyncEvent
from dionysus_sync_mcp.engine.push import Pusher
from dionysus_sync_mcp.engine.recovery_words import (
    Stores,
    definition_warnings,
    example,
    held_back,
    incident_warnings,
    iso,
    lack_warnings,
    plan_advice,
    plan_warnings,
    purge_warnings,
    shape_warnings,
    store_warnings,
)
from dionysus_sync_mcp.engine.reports import Example, RecoveryClass, RecoveryPlan, RecoveryReport
from dionysus_sync_mcp.engine.survey import Choice, Question, Survey, Surveyor
from dionysus_sync_mcp.engine.tasks import first_error

PUSH_SECONDS = 20.0
BUSY_SECONDS = 0.05
PAGE = 2000
PAGES_AHEAD = 3
# Each has a connection, which keeps one core of the local store busy.
WRITERS = 2
NAMED_FAULTS = 20
LIFETIME = timedelta(minutes=15)
KEPT_PLANS = 8
KEPT_ENDS = 64
RECORD_SECONDS = 5.0
NEAR_NAMES = 3
LONGEST_NAME = 100
GONE = "it is not in the remote store any more"
MISMATCHED = "its hash is not the remote's"
PLAN_AGAIN = "Make a new plan by calling without plan_id."


@dataclass(frozen=True, slots=True)
class RecoveryWish:
    """What somebody wants to have back.

    Attributes:
        as_of: The state of that time, aware; `None` for now.
        before_incident: Id of the incident whose damage is to be brought back.
        include_deleted: What was deleted on purpose too.
        overwrite_newer: Rows too that are newer here than what is brought back.
        only_missing: Nothing that is here is overwritten.
    """

    scope: Scope
    as_of: datetime | None = None
    before_incident: str | None = None
    include_deleted: bool = False
    overwrite_newer: bool = False
    only_missing: bool = False


@dataclass(frozen=True, slots=True)
class _Planned:
    id: str
    wish: RecoveryWish
    store: str | None
    expires_at: datetime
    fingerprint: int
    chosen: int
    overwrites: int


@dataclass(frozen=True, slots=True)
class _Circumstances:
    """What a wish means now."""

    question: Question
    stores: Stores
    before: Incident | None
    concerned: Sequence[Incident]
    shape_of: datetime | None  # when the table was as it should be; `None` for now
    lacking: Sequence[str] = ()  # what the table has not of the shape that an incident took

    @property
    def place(self) -> tuple[str, ...]:
        """Stores in whose place this one is: the one that the incident hit is, first of all."""
        hit = [self.before.store] if self.before else []
        return (*hit, *sorted(self.stores.before))


@dataclass(slots=True)
class _Tally:
    """What a run has done so far."""

    planned: int
    held_back: int = 0
    sessions: int = 0
    references: int = 0
    notes: list[str] = field(default_factory=list)
    restored: int = 0
    overwritten: int = 0
    verified: int = 0
    already_there: int = 0
    faults: list[Example] = field(default_factory=list)
    fault_count: int = 0
    invalid: list[Example] = field(default_factory=list)
    invalid_count: int = 0

    @property
    def done(self) -> int:
        """Planned memories that are as they are to be."""
        return self.verified + self.already_there

    def add(self, rows: Sequence[Restoration], page: PageResult) -> None:
        """What became of a page."""
        memories = {row.memory.id: row.memory for row in rows}
        self.restored += page.restored
        self.overwritten += page.overwritten
        self.verified += page.verified
        self.already_there += page.already_there
        # A reason is the database's own text, which may quote what it refuses; `example` makes it fit to be shown.
        for memory_id, reason in [*page.refused, *((i, MISMATCHED) for i in page.mismatched)]:
            self.refuse(example(memories[memory_id], reason))
        for row in rows:
            if rules := broken_rules(row.memory):
                self._note_invalid(example(row.memory, "; ".join(rules)))

    def refuse(self, fault: Example) -> None:
        """One that is not as it is to be, and why."""
        self.fault_count += 1
        if len(self.faults) < NAMED_FAULTS:
            self.faults.append(fault)

    def _note_invalid(self, fault: Example) -> None:
        self.invalid_count += 1
        if len(self.invalid) < NAMED_FAULTS:
            self.invalid.append(fault)


class Recoverer:
    """The use-case recover. Plans live in this process; they are cheap to make again.

    Args:
        locate: Where the database is, so that a local store is known there of which the database itself is gone.
        install: Puts back the bookkeeping of one, after a look at what is missing.
    """

    def __init__(
        self,
        reader: RemoteReader,
        history: RemoteHistory,
        rows: LocalRows,
        restorer: Restorer,
        installation: Installation,
        pusher: Pusher,
        incidents: KnownIncidents,
        locate: Callable[[], Awaitable[str]],
        install: Callable[[], Awaitable[object]],
    ) -> None:
        self._reader = reader
        self._history = history
        self._rows = rows
        self._restorer = restorer
        self._installation = installation
        self._pusher = pusher
        self._incidents = incidents
        self._locate = locate
        self._install = install
        self._surveyor = Surveyor(history, rows)
        self._plans: dict[str, _Planned] = {}
        self._ends: dict[str, str] = {}

    async def plan(self, wish: RecoveryWish, now: datetime, *, on_progress: OnProgress | None = None) -> RecoveryPlan:
        """Compare both sides by version and hash; changes nothing here, but that a lost bookkeeping is put back.

        What is still queued is pushed first: it is newer than what the remote holds, and a queued delete was meant.

        Raises:
            InputError: The time or the incident cannot be used, or nothing of a name is in either store.
        """
        _check_wish(wish)
        _check_time(wish, now)
        await self._put_back_bookkeeping()
        await self._push_what_waits()
        facts = await self._circumstances(wish, now)
        await self._check_scope(wish.scope)
        survey = await self._surveyor.survey(facts.question, on_progress)
        await self._check_beginning(wish, survey)
        table_missing = not await self._installation.table_present()
        context_lost = any(incident.kind in LOSES_CONTEXT for incident in facts.concerned)
        planned = self._keep(wish, facts, survey, now)
        return RecoveryPlan(
            plan_id=planned.id,
            expires_at=planned.expires_at,
            next_step=plan_advice(
                survey,
                planned.id,
                include_deleted=wish.include_deleted,
                more_lost=bool(context_lost or facts.lacking),
            ),
            warnings=[
                *incident_warnings(facts.before, survey),
                *shape_warnings(facts.lacking),
                *definition_warnings(await damaged_definitions(self._reader)),
                *plan_warnings(survey, include_deleted=wish.include_deleted),
                *store_warnings(facts.stores),
                *purge_warnings(facts.stores, facts.before.restore_point if facts.before else wish.as_of),
                *lack_warnings(
                    await self._lacking(wish, facts, survey), empty=table_missing and not facts.question.memories
                ),
            ],
            as_of=wish.as_of,
            before_incident=wish.before_incident,
            will_restore=survey.chosen,
            will_overwrite=survey.overwrites,
            counts=survey.counts,
            examples=await self._examples(survey),
            table_missing=table_missing,
            table_lacks=[defused(part) for part in facts.lacking[:NAMED_FAULTS]],
            context_lost=context_lost,
        )

    def planned_overwrites(self, plan_id: str, now: datetime) -> int:
        """How many rows that are here a plan would overwrite.

        Raises:
            InputError: The plan is unknown, was used, or has expired.
        """
        return self._find(plan_id, now).overwrites

    async def run(self, plan_id: str, now: datetime, *, on_progress: OnProgress | None = None) -> RecoveryReport:
        """Carry out a plan. Running the same wish again restores only what is still missing (P6).

        Raises:
            InputError: The plan is unknown, was used, has expired, or is another store's; nothing was changed.
            PlanOutdated: The stores have moved in a way that changes the plan; nothing was changed.
        """
        planned = self._find(plan_id, now)
        self._end(planned, "was used")
        started = time.monotonic()
        facts, survey = await self._surveyed_again(planned, now)
        lost = await self._lacking(planned.wish, facts, survey)
        tally = _Tally(survey.chosen + lost, survey.held_back, notes=lack_warnings(lost))
        try:
            async with self._restorer.recovering():
                await self._carry_out(planned, facts, survey.choices, tally, on_progress)
        except BaseException as error:
            await self._record_stop(_report(planned, tally, started), error)
            raise
        report = _report(planned, tally, started)
        await self._restorer.record_recovery(report.model_dump(mode="json"), _event(report))
        return report

    async def _surveyed_again(self, planned: _Planned, now: datetime) -> tuple[_Circumstances, Survey]:
        await self._push_what_waits()
        facts = await self._circumstances(planned.wish, now)
        if facts.stores.own != planned.store:
            raise InputError(
                "the plan was made for another local store than the one that is here now",
                where="plan_id",
                hint=PLAN_AGAIN,
            )
        survey = await self._surveyor.survey(replace(facts.question, keep=True))
        if survey.fingerprint != planned.fingerprint:
            raise PlanOutdated(
                f"the stores have moved since the plan was made: it named {planned.chosen} memories, of which "
                f"{planned.overwrites} are overwritten; now there are {survey.chosen}, of which {survey.overwrites}, "
                "or other states of them",
                where="plan_id",
                hint="Nothing was changed. " + PLAN_AGAIN,
            )
        return facts, survey

    async def _carry_out(
        self,
        planned: _Planned,
        facts: _Circumstances,
        choices: Sequence[Choice],
        tally: _Tally,
        on_progress: OnProgress | None,
    ) -> None:
        definition = await definition_for(self._reader, self._installation, facts.shape_of, facts.place)
        # With no row here to overwrite there may be no table, and no bookkeeping that could tell of it.
        before = await self._installation.definition() if any(choice.here for choice in choices) else None
        tally.notes += await self._restorer.ensure_schema(definition)
        if before is not None and reshaped(await self._installation.definition() or before, before):
            choices = await self._surveyor.reshaped(planned.wish.scope, choices)
        await self._restore_pages(planned, choices, tally, on_progress)
        tally.notes += await self._restorer.complete_schema(definition)
        await self._restore_context(planned.wish.scope, tally)

    async def _record_stop(self, report: RecoveryReport, error: BaseException) -> None:
        """A recovery that was cut off is on record too, where the local store still takes it."""
        reason = str(error) if isinstance(error, DionysusError) else "it was cancelled"
        event = replace(_event(report), error_message=f"cut off: {reason}")
        with anyio.move_on_after(RECORD_SECONDS, shield=True), suppress(DionysusError):
            await self._restorer.record_recovery(report.model_dump(mode="json"), event)

    async def _lacking(self, wish: RecoveryWish, facts: _Circumstances, survey: Survey) -> int:
        """Known only where everything is to come back, as it was before it was lost."""
        loss = worst_loss(facts.concerned)
        if loss is None or wish.scope != Scope() or wish.as_of is not None:
            return 0
        gone_before = await self._history.deleted_before(loss.restore_point, facts.stores.meant)
        return lacking(loss, survey.then - gone_before)

    async def _circumstances(self, wish: RecoveryWish, now: datetime) -> _Circumstances:
        initialised = await self._installation.initialised()
        waiting = frozenset(await self._restorer.waiting_ids()) if initialised else frozenset()
        stores = await self._stores((await self._installation.identity()).id if initialised else None)
        before = await self._before(wish, stores)
        open_ones = [one for one in await self._incidents.open() if stores.concerns(one.store)]
        concerned = [*open_ones, *([before] if before else [])]
        wishes = Wishes(wish.include_deleted, wish.overwrite_newer, wish.only_missing, damage_unseen(concerned))
        concern = Concern(wish.scope, Moment(wish.as_of, windows(concerned, before, now)), stores.meant)
        counts = await self._reader.counts()
        question = Question(concern, wishes, waiting, counts.live + counts.tombstones)
        facts = _Circumstances(question, stores, before, concerned, wish.as_of or shape_lost(open_ones, before))
        return await self._with_shape(facts, initialised=initialised)

    async def _with_shape(self, facts: _Circumstances, *, initialised: bool) -> _Circumstances:
        """What an incident took of the table's shape, and so of its rows; nothing, where a time is asked for."""
        lost = columns_lost(facts.concerned) if facts.question.concern.moment.as_of is None else None
        if lost is None:
            return facts
        noted = (await definition_for(self._reader, self._installation, lost, facts.place)) or ""
        current = await self._installation.definition() if initialised else None
        columns = user_columns(noted)
        filled = frozenset(name for name, anyway in columns.items() if anyway)
        absent = frozenset(columns) - user_columns(current, computed=True).keys() if current else frozenset()
        taken = LostColumns(lost, frozenset(columns) or None, filled, absent)
        lacking = lacks(current, noted) if current and noted else []
        return replace(facts, question=replace(facts.question, lost=taken), lacking=lacking)

    async def _stores(self, own: str | None) -> Stores:
        known = await self._history.known_stores()
        stores = await self._among(own, known)
        purged = [one.purged_before for one in known if one.purged_before and stores.concerns(one.id)]
        return replace(stores, purged_before=max(purged, default=None))

    async def _among(self, own: str | None, known: Sequence[KnownStore]) -> Stores:
        others = frozenset(store.id for store in known) - {own}
        # A store may be named there, by the definition of its table, before it has pushed anything.
        pushed = any(store.id == own and store.last_push_at for store in known)
        stores = Stores(own, pushed, others, stores_before(own, known, await self._locate()))
        if not stores.meant:
            return stores
        held = [await self._reader.holdings(store) for store in stores.meant]
        # One that has pushed no memory may be a lost one, made again at a place that nobody has noted yet.
        if not stores.before and not (held[0].live or held[0].tombstones):
            return Stores(own, False, others)
        live = (await self._reader.counts()).live
        return replace(stores, left_out=live - sum(one.live for one in held))

    async def _before(self, wish: RecoveryWish, stores: Stores) -> Incident | None:
        if wish.before_incident is None:
            return None
        found = await self._incidents.find(wish.before_incident)
        if not stores.concerns(found.store):
            raise InputError(
                f"incident {found.id} is another local store's",
                where="before_incident",
                hint="Recover it where it happened; 'dionysus-sync-mcp incidents' shows this store's.",
            )
        return found

    async def _check_scope(self, scope: Scope) -> None:
        """What neither store has ever heard of is a slip of the pen."""
        unknown = await self._history.unknown(scope)
        for project in unknown.projects:
            if not await self._is_here(Scope(projects=(project,))):
                names = await self._history.project_names()
                near = difflib.get_close_matches(project, names, NEAR_NAMES) or names[:NEAR_NAMES]
                hint = (
                    f"There are, for instance: {', '.join(defused(n, LONGEST_NAME) for n in near)}."
                    if near
                    else "No project is known yet."
                )
                raise InputError(
                    f"the project {defused(project, LONGEST_NAME)!r} is in neither store", where="projects", hint=hint
                )
        for session in unknown.sessions:
            if not await self._is_here(Scope(sessions=(session,))):
                raise InputError(f"the session {session} is in neither store", where="sessions")
        for memory_id in unknown.memory_ids:
            if not await self._is_here(Scope(memory_ids=(memory_id,))):
                raise InputError(f"the memory {memory_id} is in neither store", where="memory_ids")

    async def _is_here(self, scope: Scope) -> bool:
        async with aclosing(self._rows.rows(scope, EVERY_ID)) as pages:
            return await anext(pages, None) is not None

    async def _check_beginning(self, wish: RecoveryWish, survey: Survey) -> None:
        """Nothing was there at that time: it may be before all that was captured."""
        if wish.as_of is None or survey.then:
            return
        begins = await self._history.history_begins()
        if begins is not None and wish.as_of < begins:
            raise InputError(
                f"{iso(wish.as_of)} is before all history: the first state was captured at {iso(begins)}",
                where="as_of",
                hint="Give a later time.",
            )

    async def _put_back_bookkeeping(self) -> None:
        """Without it no row can be compared. A database that was no local store is not made one."""
        if await self._installation.initialised() or not await self._installation.table_present():
            return
        place = await self._locate()
        if any(store.place == place for store in await self._history.known_stores()):
            await self._install()

    async def _push_what_waits(self) -> None:
        """Where it cannot be pushed (a fresh database has no queue), the remote's state is what there is."""
        with anyio.move_on_after(PUSH_SECONDS), suppress(DionysusError):
            while (step := await self._pusher.push_once()).pushed or step.parked or step.busy:
                if step.busy:
                    await anyio.sleep(BUSY_SECONDS)

    def _keep(self, wish: RecoveryWish, facts: _Circumstances, survey: Survey, now: datetime) -> _Planned:
        for plan in [plan for plan in self._plans.values() if plan.expires_at <= now]:
            self._end(plan, "has expired")
        for plan in list(self._plans.values())[: 1 - KEPT_PLANS]:
            self._end(plan, f"was dropped: {KEPT_PLANS} newer ones were made")
        planned = _Planned(
            id=str(uuid4()),
            wish=wish,
            store=facts.stores.own,
            expires_at=now + LIFETIME,
            fingerprint=survey.fingerprint,
            chosen=survey.chosen,
            overwrites=survey.overwrites,
        )
        self._plans[planned.id] = planned
        return planned

    def _end(self, plan: _Planned, how: str) -> None:
        """A plan that is used up is remembered for a while, so that it can be said what became of it."""
        del self._plans[plan.id]
        self._ends[plan.id] = how
        for old in list(self._ends)[:-KEPT_ENDS]:
            del self._ends[old]

    def _find(self, plan_id: str, now: datetime) -> _Planned:
        planned = self._plans.get(plan_id)
        if planned is not None and planned.expires_at <= now:
            self._end(planned, "has expired")
            planned = None
        if planned is None:
            ended = self._ends.get(plan_id)
            what = f"this plan {ended}" if ended else "there is no such plan in this process"
            raise InputError(what, where="plan_id", hint=PLAN_AGAIN)
        return planned

    async def _examples(self, survey: Survey) -> dict[RecoveryClass, list[Example]]:
        wanted = {
            StateOf(n.there.memory_id, n.there.target_version, n.there.target_hash)
            for named in survey.examples.values()
            for n in named
            if n.there.target_version is not None
        }
        found = {m.id: m for m in await self._history.whole_states(sorted(wanted))} if wanted else {}
        return {
            name: [example(found[n.there.memory_id], n.reason) for n in named if n.there.memory_id in found]
            for name, named in survey.examples.items()
        }

    async def _restore_context(self, scope: Scope, tally: _Tally) -> None:
        sessions, projects = await self._reader.sessions(scope), await self._reader.projects(scope)
        refused = (await self._restorer.restore_context(sessions, projects)).refused
        tally.sessions = len(sessions) - sum(fault.startswith("session ") for fault in refused)
        tally.notes += refused
        last = ""
        while page := await self._reader.references(scope, last, PAGE):
            result = await self._restorer.restore_context([], [], page)
            tally.references += result.references
            tally.notes += result.refused
            last = page[-1]["source_id"]

    async def _restore_pages(
        self, planned: _Planned, choices: Sequence[Choice], tally: _Tally, on_progress: OnProgress | None
    ) -> None:
        """Reading runs a few pages ahead of writing; each page is one transaction, so a stop loses no finished one."""
        send, receive = anyio.create_memory_object_stream[list[Restoration]](PAGES_AHEAD)
        with first_error():
            async with anyio.create_task_group() as tasks, receive:
                tasks.start_soon(self._read_pages, choices, tally, send)
                for _ in range(WRITERS):
                    tasks.start_soon(self._write_pages, planned, receive.clone(), tally, on_progress)

    async def _read_pages(
        self, choices: Sequence[Choice], tally: _Tally, send: MemoryObjectSendStream[list[Restoration]]
    ) -> None:
        async with send:
            for start in range(0, len(choices), PAGE):
                page = choices[start : start + PAGE]
                wanted = [StateOf(c.there.memory_id, c.there.target_version or 0, c.there.target_hash) for c in page]
                found = {memory.id: memory for memory in await self._history.whole_states(wanted)}
                for choice in page:
                    if choice.there.memory_id not in found:
                        tally.refuse(Example(memory_id=choice.there.memory_id, project=None, excerpt="", reason=GONE))
                await send.send([_restoration(c, found[c.there.memory_id]) for c in page if c.there.memory_id in found])

    async def _write_pages(
        self,
        planned: _Planned,
        receive: MemoryObjectReceiveStream[list[Restoration]],
        tally: _Tally,
        on_progress: OnProgress | None,
    ) -> None:
        async with receive:
            async for rows in receive:
                tally.add(rows, await self._restorer.restore(planned.id, rows))
                if on_progress:
                    told = f"{tally.done} of {tally.planned} memories verified"
                    await on_progress(tally.done, tally.planned, told)


def _check_wish(wish: RecoveryWish) -> None:
    if wish.overwrite_newer and wish.only_missing:
        raise InputError(
            "overwrite_newer and only_missing say the opposite", where="overwrite_newer", hint="Give one of them."
        )


def _check_time(wish: RecoveryWish, now: datetime) -> None:
    if wish.as_of is None:
        return
    if wish.before_incident is not None:
        raise InputError("as_of and before_incident name two times", where="as_of", hint="Give one of them.")
    if wish.as_of.tzinfo is None:
        raise InputError(
            f"{iso(wish.as_of)} has no time zone", where="as_of", hint="Add its offset, such as 2026-08-01T00:00:00Z."
        )
    if wish.as_of > now:
        raise InputError(f"{iso(wish.as_of)} is in the future", where="as_of", hint=f"It is {iso(now)} now.")


def _restoration(choice: Choice, memory: RemoteMemory) -> Restoration:
    overwrites = choice.here.content_hash if choice.here and choice.action == "overwrite" else None
    refilled = bool(choice.lost)
    if refilled:
        memory = memory._replace(extra=with_values(memory.extra, choice.lost))
    return Restoration(memory, *numbers(choice.here, choice.there, refilled=refilled), overwrites, refilled)


def _report(planned: _Planned, tally: _Tally, started: float) -> RecoveryReport:
    missing = shortfall(tally.planned, tally.verified, tally.already_there)
    warnings = held_back(tally.held_back)
    if missing:
        warnings.append(f"{missing} of {tally.planned} planned memories are not here or not as they were.")
    if tally.invalid_count:
        warnings.append(f"{tally.invalid_count} restored memories break a rule of the data model; see invalid.")
    warnings += [defused(note) for note in tally.notes[:NAMED_FAULTS]]
    mend = "Look at refused, mend what stands in the way, and plan again."
    advice = "Call sync_now, then plan again." if tally.held_back else mend if missing else "Check get_sync_status."
    return RecoveryReport(
        complete=not missing,
        next_step=advice,
        warnings=warnings,
        recovery_id=planned.id,
        planned=tally.planned,
        restored=tally.restored,
        overwritten=tally.overwritten,
        verified=tally.verified,
        already_there=tally.already_there,
        refused=tally.faults,
        refused_count=tally.fault_count,
        invalid=tally.invalid,
        invalid_count=tally.invalid_count,
        sessions_restored=tally.sessions,
        references_restored=tally.references,
        duration_ms=round(1000 * (time.monotonic() - started)),
    )


def _event(report: RecoveryReport) -> SyncEvent:
    return SyncEvent(
        direction="remote_to_local",
        result="success" if report.complete else "partial" if report.verified else "failed",
        record_count=report.restored,
        error_message=report.warnings[0] if report.warnings else None,
        duration_ms=report.duration_ms,
    )
