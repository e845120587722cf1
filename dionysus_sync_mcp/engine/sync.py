"""Sync on demand: drain the queue and embed, within the time that the caller gives, whoever else is pushing.

If it is asked for: send every memory again, try parked entries again, compare both stores.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import anyio

from dionysus_sync_mcp.domain.errors import (
    AccessRefused,
    DionysusError,
    RemoteDamaged,
    StoreRolledBack,
    TimedOut,
    Unavailable,
)
from dionysus_sync_mcp.engine.embed import embed_once
from dionysus_sync_mcp.engine.ports.embed import Embedder, VectorStore
from dionysus_sync_mcp.engine.ports.push import Outbox
from dionysus_sync_mcp.engine.ports.shared import OnProgress, Service
from dionysus_sync_mcp.engine.push import SHRINKING_TRIES, Pusher, PushResult
from dionysus_sync_mcp.engine.reports import CheckReport, SyncReport, VerifyReport
from dionysus_sync_mcp.engine.status import REPAIR, Shortcomings
from dionysus_sync_mcp.engine.tasks import first_error

Result = Literal["success", "partial", "queued", "failed"]

# Together under 2 s, within which a tool answers with every service hanging.
LOOK_SECONDS = 1.0
COUNT_SECONDS = 0.5
BUSY_SECONDS = 0.05

PERSON = "Tell the user: a person has to act. get_sync_status shows the rest."


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a sync does besides pushing."""

    embed: bool = True
    retry_parked: bool = False
    rebuild: bool = False
    verify: bool = False


PUSH_AND_EMBED = Wanted()


@dataclass(slots=True)
class _Tally:
    """What the sync has done so far; it counts even when time runs out in the middle of a step."""

    pushed: PushResult = field(default_factory=PushResult)
    embedded: int = 0
    warnings: list[str] = field(default_factory=list)
    away: bool = False
    in_time: bool = True
    stopped: DionysusError | None = None
    retried: int = 0
    rebuilt: int = 0
    check: CheckReport | None = None
    found: Shortcomings = field(default_factory=Shortcomings)
    uncompared: bool = False


class Syncer:
    """The use-case sync on demand.

    Args:
        stores: The two stores, looked at first, so that a call during an outage is answered at once.
        refill: Queues again what the remote store has lost.
        shortcomings: What is missing on one side or parked, read within so many seconds.
        rebuild: Queues a page of the local memories again; how many were, `None` after the last page.
        check: Compares both stores in full; changes nothing.
    """

    def __init__(
        self,
        stores: Sequence[Service],
        pusher: Pusher,
        outbox: Outbox,
        vectors: VectorStore,
        embedder: Embedder,
        *,
        refill: Callable[[], Awaitable[int]],
        shortcomings: Callable[[float], Awaitable[Shortcomings]],
        rebuild: Callable[[], Awaitable[int | None]],
        check: Callable[[], Awaitable[VerifyReport]],
    ) -> None:
        self._stores = stores
        self._pusher = pusher
        self._outbox = outbox
        self._vectors = vectors
        self._embedder = embedder
        self._refill = refill
        self._shortcomings = shortcomings
        self._rebuild = rebuild
        self._check = check

    async def sync(
        self, wanted: Wanted = PUSH_AND_EMBED, *, timeout: float | None = None, on_progress: OnProgress | None = None
    ) -> SyncReport:
        """Push everything that is queued, and do what else is wanted; safe to repeat.

        What is done in the local store only, to queue memories or parked entries again, needs no remote store.

        Args:
            timeout: Seconds; what is not done by then goes on in the background. `None`: until all is done.
        """
        started = time.monotonic()
        tally = _Tally(uncompared=wanted.verify)
        away = await self._stores_away()
        tally.warnings, tally.away = sorted(away.values()), bool(away)
        if "postgresql" not in away:
            with anyio.move_on_after(timeout) as scope:
                await self._work(tally, wanted, on_progress)
            tally.in_time = not scope.cancelled_caught
        remaining = await self._count(self._outbox.queue_length)
        without_vector = await self._count(self._vectors.count_without_vector) if not tally.away else None
        if not (tally.away or tally.stopped) and tally.in_time:
            tally.found = await self._shortcomings(LOOK_SECONDS)
            tally.warnings += tally.found.warnings
        return _report(tally, remaining, without_vector, started)

    async def _work(self, tally: _Tally, wanted: Wanted, on_progress: OnProgress | None) -> None:
        try:
            if wanted.rebuild:
                await self._queue_all(tally, on_progress)
            if wanted.retry_parked:
                tally.retried = await self._pusher.retry_parked()
            if tally.away:
                return
            await self._push(tally, on_progress)
            if wanted.embed:
                await self._embed(tally, on_progress)
            if wanted.verify:
                await self._compare(tally, on_progress)
        except Unavailable as error:
            tally.away = True
            tally.warnings.append(str(error))
        except (StoreRolledBack, RemoteDamaged, AccessRefused) as error:
            tally.stopped = error
            tally.warnings.append(str(error))

    async def _queue_all(self, tally: _Tally, on_progress: OnProgress | None) -> None:
        while (queued := await self._rebuild()) is not None:
            tally.rebuilt += queued
            if on_progress:
                await on_progress(tally.rebuilt, None, f"{tally.rebuilt} memories queued")

    async def _stores_away(self) -> dict[str, str]:
        """By service, what is said of it."""
        found: dict[str, str] = {}

        async def look(service: Service) -> None:
            health = await service.health(LOOK_SECONDS)
            if not health.up:
                found[health.service] = f"{health.service} is away: {health.error}. {health.hint}".strip()

        with first_error():
            async with anyio.create_task_group() as tasks:
                for store in self._stores:
                    tasks.start_soon(look, store)
        return found

    async def _push(self, tally: _Tally, on_progress: OnProgress | None) -> None:
        await self._refill()
        while True:
            step = await self._push_patiently()
            tally.pushed = tally.pushed.plus(step)
            if step.busy:
                if not await self._outbox.anything_queued():
                    return
                await anyio.sleep(BUSY_SECONDS)
            elif not (step.pushed or step.parked):
                return
            if on_progress:
                await on_progress(tally.pushed.pushed, None, f"{tally.pushed.pushed} changes pushed")

    async def _push_patiently(self) -> PushResult:
        """A step; a server that has just started plans the first batch for longer than a batch may take."""
        for _ in range(1, SHRINKING_TRIES):
            with suppress(TimedOut):
                return await self._pusher.push_once()
        return await self._pusher.push_once()

    async def _compare(self, tally: _Tally, on_progress: OnProgress | None) -> None:
        if on_progress:
            await on_progress(tally.pushed.pushed + tally.embedded + 1, None, "comparing both stores")
        report = await self._check()
        tally.check = CheckReport(
            finished_at=datetime.now(UTC),
            kind=report.kind,
            result=report.result,
            differences=sum(report.counts.values()) + report.unlooked,
        )
        tally.uncompared = False
        tally.warnings += report.warnings

    async def _embed(self, tally: _Tally, on_progress: OnProgress | None) -> None:
        try:
            # A step whose texts all changed meanwhile has done nothing: the background loop waits and tries again.
            while (step := await embed_once(self._vectors, self._embedder)).embedded or step.refused:
                tally.embedded += step.embedded
                if on_progress:
                    await on_progress(tally.pushed.pushed + tally.embedded, None, f"{tally.embedded} memories embedded")
        except DionysusError as error:
            tally.warnings.append(f"Memories are safe, but not all have their vector yet. {error}")

    async def _count(self, count: Callable[[], Awaitable[int]]) -> int | None:
        try:
            with anyio.fail_after(COUNT_SECONDS):
                return await count()
        except (DionysusError, TimeoutError):
            return None


def _report(tally: _Tally, remaining: int | None, without_vector: int | None, started: float) -> SyncReport:
    result, next_step = _verdict(tally, remaining)
    return SyncReport(
        result=result,
        next_step=next_step,
        warnings=tally.warnings,
        pushed=tally.pushed.pushed,
        outcomes=tally.pushed.outcomes,
        parked=tally.pushed.parked,
        failed_for_good=tally.found.failed,
        retried=tally.retried,
        rebuilt=tally.rebuilt,
        check=tally.check,
        remaining=remaining,
        embedded=tally.embedded,
        without_vector=without_vector,
        duration_ms=round(1000 * (time.monotonic() - started)),
    )


def _verdict(tally: _Tally, remaining: int | None) -> tuple[Result, str]:
    if tally.stopped:
        return "failed", f"Nothing is lost: changes wait in the local store. {tally.stopped.hint or PERSON}"
    if tally.away:
        return "queued", "Nothing is lost: changes wait and are pushed when the service is back. See get_sync_status."
    if tally.pushed.parked:
        return _refused(tally)
    if remaining != 0 and not tally.in_time:
        return "partial", "Time ran out; the rest is pushed in the background. Call get_sync_status to follow it."
    if tally.uncompared:
        return "partial", "Time ran out before both stores were compared; call sync_now again with a longer timeout."
    if tally.check and tally.check.result != "clean":
        return "partial", _differing(tally.check)
    if remaining:
        return "success", "Every change that was there is in the remote store; newer ones are on their way."
    if tally.found.next_step:
        return "partial", tally.found.next_step
    return "success", "Nothing to do: every change is in the remote store."


def _refused(tally: _Tally) -> tuple[Result, str]:
    if not tally.pushed.pushed:
        return "failed", "The remote store refuses these changes; call get_sync_status to see why."
    return "partial", "Some changes were refused and are parked; call get_sync_status to see why."


def _differing(check: CheckReport) -> str:
    if check.result == "skipped":
        return "Too much was on its way to compare both stores; call sync_now with verify=true again later."
    return f"The stores differ in {check.differences} memories: tell the user. {REPAIR}"
