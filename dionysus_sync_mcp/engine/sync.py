"""Sync on demand: drain the queue and embed, within the time that the caller gives, whoever else is pushing."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import anyio

from dionysus_sync_mcp.domain.errors import DionysusError, Unavailable
from dionysus_sync_mcp.engine.embed import embed_once
from dionysus_sync_mcp.engine.ports import Embedder, Outbox, Service, VectorStore
from dionysus_sync_mcp.engine.push import Pusher, PushResult
from dionysus_sync_mcp.engine.reports import SyncReport
from dionysus_sync_mcp.engine.tasks import first_error

Progress = Callable[[int, int | None, str], Awaitable[None]]

# Together under 2 s, within which a tool answers with every service hanging.
LOOK_SECONDS = 1.0
COUNT_SECONDS = 0.5
BUSY_SECONDS = 0.05


@dataclass(slots=True)
class _Tally:
    """What the sync has done so far; it counts even when time runs out in the middle of a step."""

    pushed: PushResult = field(default_factory=PushResult)
    embedded: int = 0
    warnings: list[str] = field(default_factory=list)
    away: bool = False
    in_time: bool = True
    advice: str = ""


class Syncer:
    """The use-case sync on demand.

    Args:
        stores: The two stores, looked at first, so that a call during an outage is answered at once.
        refill: Queues again what the remote store has lost.
        shortcomings: What is missing on one side or parked, read within so many seconds: warnings, and what to do.
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
        shortcomings: Callable[[float], Awaitable[tuple[list[str], str]]],
    ) -> None:
        self._stores = stores
        self._pusher = pusher
        self._outbox = outbox
        self._vectors = vectors
        self._embedder = embedder
        self._refill = refill
        self._shortcomings = shortcomings

    async def sync(
        self, *, timeout: float | None = None, embed: bool = True, on_progress: Progress | None = None
    ) -> SyncReport:
        """Push everything that is queued, then embed; safe to repeat.

        Args:
            timeout: Seconds; what is not done by then goes on in the background. `None`: until all is done.
        """
        started = time.monotonic()
        tally = _Tally()
        tally.warnings = await self._stores_away()
        tally.away = bool(tally.warnings)
        if not tally.away:
            with anyio.move_on_after(timeout) as scope:
                await self._push(tally, on_progress)
                if embed and not tally.away:
                    await self._embed(tally, on_progress)
            tally.in_time = not scope.cancelled_caught
        remaining = await self._count(self._outbox.queue_length)
        without_vector = await self._count(self._vectors.count_without_vector) if not tally.away else None
        if not tally.away and tally.in_time:
            missing, tally.advice = await self._shortcomings(LOOK_SECONDS)
            tally.warnings += missing
        return _report(tally, remaining, without_vector, started)

    async def _stores_away(self) -> list[str]:
        found: list[str] = []

        async def look(service: Service) -> None:
            health = await service.health(LOOK_SECONDS)
            if not health.up:
                found.append(f"{health.service} is away: {health.error}. {health.hint}".strip())

        with first_error():
            async with anyio.create_task_group() as tasks:
                for store in self._stores:
                    tasks.start_soon(look, store)
        return sorted(found)

    async def _push(self, tally: _Tally, on_progress: Progress | None) -> None:
        try:
            await self._refill()
            while True:
                step = await self._pusher.push_once()
                tally.pushed = tally.pushed.plus(step)
                if step.busy:
                    if not await self._outbox.anything_queued():
                        return
                    await anyio.sleep(BUSY_SECONDS)
                elif not (step.pushed or step.parked):
                    return
                if on_progress:
                    await on_progress(tally.pushed.pushed, None, f"{tally.pushed.pushed} changes pushed")
        except Unavailable as error:
            tally.away = True
            tally.warnings.append(str(error))

    async def _embed(self, tally: _Tally, on_progress: Progress | None) -> None:
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
        remaining=remaining,
        embedded=tally.embedded,
        without_vector=without_vector,
        duration_ms=round(1000 * (time.monotonic() - started)),
    )


def _verdict(tally: _Tally, remaining: int | None) -> tuple[Literal["success", "partial", "queued", "failed"], str]:
    if tally.away:
        return "queued", "Nothing is lost: changes wait and are pushed when the service is back. See get_sync_status."
    if tally.pushed.parked and not tally.pushed.pushed:
        return "failed", "The remote store refuses these changes; call get_sync_status to see why."
    if tally.pushed.parked:
        return "partial", "Some changes were refused and are parked; call get_sync_status to see why."
    if remaining != 0 and not tally.in_time:
        return "partial", "Time ran out; the rest is pushed in the background. Call get_sync_status to follow it."
    if remaining:
        return "success", "Every change that was there is in the remote store; newer ones are on their way."
    if tally.advice:
        return "partial", tally.advice
    return "success", "Nothing to do: every change is in the remote store."
