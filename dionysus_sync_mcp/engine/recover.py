"""Recover: plan first, then bring back from the remote store what the plan names, and compare every row's hash."""

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import get_args
from uuid import uuid4

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from dionysus_sync_mcp.domain.definition import widened
from dionysus_sync_mcp.domain.errors import DionysusError, InputError
from dionysus_sync_mcp.domain.memory import Digest, RemoteMemory, broken_rules
from dionysus_sync_mcp.domain.recovery_plan import classify, is_restored, shortfall
from dionysus_sync_mcp.domain.text import line
from dionysus_sync_mcp.engine.ports.install import Installation
from dionysus_sync_mcp.engine.ports.recover import PageResult, RemoteReader, Restorer
from dionysus_sync_mcp.engine.ports.shared import OnProgress, Scope, SyncEvent
from dionysus_sync_mcp.engine.push import Pusher
from dionysus_sync_mcp.engine.reports import Example, RecoveryClass, RecoveryPlan, RecoveryReport
from dionysus_sync_mcp.engine.tasks import first_error

PUSH_SECONDS = 20.0
BUSY_SECONDS = 0.05
PAGE = 2000
PAGES_AHEAD = 3
# Each has a connection, which keeps one core of the local store busy.
WRITERS = 2
EXAMPLES = 5
NAMED_FAULTS = 20
LIFETIME = timedelta(minutes=15)
KEPT_PLANS = 8
RECORD_SECONDS = 5.0
EXCERPT = 80


@dataclass(frozen=True, slots=True)
class _Planned:
    scope: Scope
    include_deleted: bool
    ids: frozenset[str]
    expires_at: datetime
    held_back: int


@dataclass(slots=True)
class _Survey:
    """What the comparison of both sides has found so far."""

    ids: set[str] = field(default_factory=set)
    counts: dict[RecoveryClass, int] = field(default_factory=lambda: dict.fromkeys(get_args(RecoveryClass), 0))
    examples: dict[RecoveryClass, list[str]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    held_back: int = 0

    def note(self, plan_class: RecoveryClass, memory_id: str) -> None:
        self.counts[plan_class] += 1
        named = self.examples.setdefault(plan_class, [])
        if len(named) < EXAMPLES:
            named.append(memory_id)


@dataclass(slots=True)
class _Tally:
    """What a run has done so far."""

    held_back: int = 0
    sessions: int = 0
    context_faults: list[str] = field(default_factory=list)
    restored: int = 0
    verified: int = 0
    already_there: int = 0
    faults: list[Example] = field(default_factory=list)
    fault_count: int = 0
    invalid: list[Example] = field(default_factory=list)
    invalid_count: int = 0

    def add(self, memories: Sequence[RemoteMemory], page: PageResult) -> None:
        by_id = {memory.id: memory for memory in memories}
        self.restored += page.restored
        self.verified += page.verified
        self.already_there += page.already_there
        reasons = [*page.refused, *((i, "its hash is not the remote's") for i in page.mismatched)]
        self.fault_count += len(reasons)
        self.faults += [_example(by_id[i], reason) for i, reason in reasons[: NAMED_FAULTS - len(self.faults)]]

    def add_invalid(self, memory: RemoteMemory, rules: Sequence[str]) -> None:
        self.invalid_count += 1
        if len(self.invalid) < NAMED_FAULTS:
            self.invalid.append(_example(memory, "; ".join(rules)))


class Recoverer:
    """The use-case recover. Plans live in this process; they are cheap to make again."""

    def __init__(self, reader: RemoteReader, restorer: Restorer, installation: Installation, pusher: Pusher) -> None:
        self._reader = reader
        self._restorer = restorer
        self._installation = installation
        self._pusher = pusher
        self._plans: dict[str, _Planned] = {}

    async def plan(
        self, scope: Scope, now: datetime, *, include_deleted: bool = False, on_progress: OnProgress | None = None
    ) -> RecoveryPlan:
        """Compare both sides by version and hash; changes nothing here.

        What is still queued is pushed first: it is newer than what the remote holds, and a queued delete was meant.
        """
        await self._push_what_waits()
        table_missing = not await self._installation.table_present()
        local = {} if table_missing else await self._local_digests(scope)
        survey = await self._survey(scope, local, include_deleted=include_deleted, on_progress=on_progress)
        waiting = survey.ids & await self._waiting()
        survey.ids -= waiting
        survey.held_back = len(waiting)
        plan_id = str(uuid4())
        expires_at = now + LIFETIME
        standing = [(key, plan) for key, plan in self._plans.items() if plan.expires_at > now]
        self._plans = dict(standing[-(KEPT_PLANS - 1) :])
        self._plans[plan_id] = _Planned(scope, include_deleted, frozenset(survey.ids), expires_at, len(waiting))
        return RecoveryPlan(
            plan_id=plan_id,
            expires_at=expires_at,
            next_step=_plan_advice(survey, plan_id, include_deleted=include_deleted),
            warnings=[*_plan_warnings(survey, include_deleted=include_deleted), *_unreadable(local.values())],
            will_restore=len(survey.ids),
            counts=survey.counts,
            examples=await self._examples(survey),
            table_missing=table_missing,
        )

    async def run(self, plan_id: str, now: datetime, *, on_progress: OnProgress | None = None) -> RecoveryReport:
        """Carry out a plan. Running the same scope again restores only what is still missing (P6).

        Raises:
            InputError: The plan is unknown, was used, or has expired; nothing was changed.
        """
        planned = self._take(plan_id, now)
        started = time.monotonic()
        tally = _Tally()
        try:
            async with self._restorer.recovering():
                await self._carry_out(planned, tally, on_progress)
        except BaseException as error:
            await self._record_stop(_report(planned, tally, started), error)
            raise
        report = _report(planned, tally, started)
        await self._restorer.record_recovery(report.model_dump(mode="json"), _event(report))
        return report

    async def _carry_out(self, planned: _Planned, tally: _Tally, on_progress: OnProgress | None) -> None:
        await self._push_what_waits()
        await self._restorer.ensure_schema(await self._definition())
        waiting = planned.ids & await self._waiting()
        tally.held_back = planned.held_back + len(waiting)
        await self._restore_pages(replace(planned, ids=planned.ids - waiting), tally, on_progress)
        await self._restore_context(tally)

    async def _record_stop(self, report: RecoveryReport, error: BaseException) -> None:
        """A recovery that was cut off is on record too, where the local store still takes it."""
        reason = str(error) if isinstance(error, DionysusError) else "it was cancelled"
        event = replace(_event(report), error_message=f"cut off: {reason}")
        with anyio.move_on_after(RECORD_SECONDS, shield=True), suppress(DionysusError):
            await self._restorer.record_recovery(report.model_dump(mode="json"), event)

    async def _definition(self) -> str | None:
        """The local table as this store noted it; a store without a memory there goes by the newest."""
        noted = await self._reader.definitions()
        newest = next(iter(noted.values()), None)
        if not await self._installation.initialised():
            return newest
        store = (await self._installation.identity()).id
        own = noted.get(store)
        if own is None or newest is None:
            return newest
        held = await self._reader.holdings(store)
        return own if held.live or held.tombstones else widened(own, newest)

    async def _waiting(self) -> frozenset[str]:
        """Memories whose newest state is in the queue: what the remote holds of them is old."""
        if not await self._installation.initialised():
            return frozenset()
        return frozenset(await self._restorer.waiting_ids())

    async def _push_what_waits(self) -> None:
        """Where it cannot be pushed (a fresh database has no queue), the remote's state is what there is."""
        with anyio.move_on_after(PUSH_SECONDS), suppress(DionysusError):
            while (step := await self._pusher.push_once()).pushed or step.parked or step.busy:
                if step.busy:
                    await anyio.sleep(BUSY_SECONDS)

    def _take(self, plan_id: str, now: datetime) -> _Planned:
        planned = self._plans.pop(plan_id, None)
        if planned is None or planned.expires_at <= now:
            raise InputError(
                "there is no such plan here, or it was used or has expired",
                where="plan_id",
                hint="Make a new plan by calling without plan_id.",
            )
        return planned

    async def _local_digests(self, scope: Scope) -> dict[str, Digest]:
        return {digest.id: digest async for page in self._restorer.digests(scope) for digest in page}

    async def _survey(
        self, scope: Scope, local: dict[str, Digest], *, include_deleted: bool, on_progress: OnProgress | None
    ) -> _Survey:
        survey = _Survey()
        left_here = set(local)
        seen = 0
        async for page in self._remote_digests(scope):
            for remote in page:
                left_here.discard(remote.id)
                _note(survey, remote, local, include_deleted=include_deleted)
            seen += len(page)
            if on_progress:
                await on_progress(seen, None, f"{seen} memories compared")
        for memory_id in left_here:
            survey.note("only_here", memory_id)
        return survey

    async def _remote_digests(self, scope: Scope) -> AsyncIterator[Sequence[Digest]]:
        last = ""
        while page := await self._reader.digests(scope, last, PAGE * 2):
            yield page
            last = page[-1].id

    async def _examples(self, survey: _Survey) -> dict[RecoveryClass, list[Example]]:
        wanted = {i for name, ids in survey.examples.items() if name != "identical" for i in ids}
        found = {m.id: m for m in await self._reader.by_id(sorted(wanted))} if wanted else {}
        return {
            name: [_example(found[i], survey.reasons.get(i)) for i in ids if i in found]
            for name, ids in survey.examples.items()
            if name != "identical"
        }

    async def _restore_context(self, tally: _Tally) -> None:
        sessions = await self._reader.sessions()
        refused = await self._restorer.restore_context(sessions, await self._reader.projects())
        tally.context_faults = refused
        tally.sessions = len(sessions) - sum(fault.startswith("session ") for fault in refused)

    async def _restore_pages(self, planned: _Planned, tally: _Tally, on_progress: OnProgress | None) -> None:
        """Reading runs a few pages ahead of writing; each page is one transaction, so a stop loses no finished one."""
        send, receive = anyio.create_memory_object_stream[list[RemoteMemory]](PAGES_AHEAD)
        with first_error():
            async with anyio.create_task_group() as tasks, receive:
                tasks.start_soon(self._read_pages, planned, send)
                for _ in range(WRITERS):
                    tasks.start_soon(self._write_pages, planned, receive.clone(), tally, on_progress)

    async def _read_pages(self, planned: _Planned, send: MemoryObjectSendStream[list[RemoteMemory]]) -> None:
        async with send:
            last = ""
            while page := await self._reader.memories(planned.scope, last, PAGE):
                last = page[-1].id
                wanted = [memory for memory in page if memory.id in planned.ids]
                if wanted:
                    await send.send(wanted)

    async def _write_pages(
        self,
        planned: _Planned,
        receive: MemoryObjectReceiveStream[list[RemoteMemory]],
        tally: _Tally,
        on_progress: OnProgress | None,
    ) -> None:
        async with receive:
            async for memories in receive:
                for memory in memories:
                    if rules := broken_rules(memory):
                        tally.add_invalid(memory, rules)
                tally.add(memories, await self._restorer.restore(memories))
                if on_progress:
                    done = tally.verified + tally.already_there
                    await on_progress(done, len(planned.ids), f"{done} of {len(planned.ids)} memories verified")


def _note(survey: _Survey, remote: Digest, local: dict[str, Digest], *, include_deleted: bool) -> None:
    plan_class = classify(remote, local)
    survey.note(plan_class, remote.id)
    if not is_restored(plan_class, include_deleted=include_deleted):
        return
    survey.ids.add(remote.id)
    if rules := broken_rules(remote):
        survey.note("invalid", remote.id)
        survey.reasons[remote.id] = "; ".join(rules)


def _example(memory: RemoteMemory, reason: str | None) -> Example:
    # What somebody wrote into the remote by hand may be no text.
    project = line(str(memory.source_project), EXCERPT) if memory.source_project else None
    excerpt = line(str(memory.content or ""), EXCERPT)
    return Example(memory_id=memory.id, project=project, excerpt=excerpt, reason=reason)


def _plan_advice(survey: _Survey, plan_id: str, *, include_deleted: bool) -> str:
    if survey.held_back and not survey.ids:
        return "Call sync_now, so that what waits is in the remote store, and plan again."
    if survey.ids:
        return f"Run this plan by calling again with plan_id={plan_id}. Nothing that is here will be touched."
    if survey.counts["deleted"] and not include_deleted:
        return "Nothing is missing but what was deleted here; to bring that back too, plan with include_deleted=true."
    return "Nothing is missing here; there is nothing to do."


def _unreadable(local: Iterable[Digest]) -> list[str]:
    ids = [digest.id for digest in local if not digest.content_hash]
    named = ", ".join(ids[:EXAMPLES])
    return [f"{len(ids)} rows here cannot be made JSON, so they are not in the remote store: {named}."] if ids else []


def _held_back(number: int) -> list[str]:
    if not number:
        return []
    return [f"{number} memories are left out: their newest state waits to be pushed. Call sync_now, then plan again."]


def _plan_warnings(survey: _Survey, *, include_deleted: bool) -> list[str]:
    counts, warnings = survey.counts, _held_back(survey.held_back)
    if counts["deleted"] and not include_deleted:
        warnings.append(f"{counts['deleted']} memories were deleted here and stay deleted in this plan.")
    if counts["conflicting"] or counts["older_here"]:
        number = counts["conflicting"] + counts["older_here"]
        warnings.append(f"{number} rows here differ from the remote store; this plan leaves them as they are.")
    if counts["invalid"]:
        warnings.append(f"{counts['invalid']} memories break a rule of the data model; each is reported.")
    return warnings


def _report(planned: _Planned, tally: _Tally, started: float) -> RecoveryReport:
    missing = shortfall(len(planned.ids), tally.verified, tally.already_there)
    warnings = _held_back(tally.held_back)
    if missing:
        warnings.append(f"{missing} of {len(planned.ids)} planned memories are not here or not as they were.")
    if tally.invalid_count:
        warnings.append(f"{tally.invalid_count} restored memories break a rule of the data model; see invalid.")
    warnings += tally.context_faults[:NAMED_FAULTS]
    mend = "Look at refused, mend what stands in the way, and plan again."
    advice = "Call sync_now, then plan again." if tally.held_back else mend if missing else "Check get_sync_status."
    return RecoveryReport(
        complete=not missing,
        next_step=advice,
        warnings=warnings,
        planned=len(planned.ids),
        restored=tally.restored,
        verified=tally.verified,
        already_there=tally.already_there,
        refused=tally.faults,
        refused_count=tally.fault_count,
        invalid=tally.invalid,
        invalid_count=tally.invalid_count,
        sessions_restored=tally.sessions,
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
