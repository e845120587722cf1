"""Refill: a remote store that has lost memories gets them again from the local store (P7)."""

from dionysus_sync_mcp.domain.exposure import Counts, missing_there
from dionysus_sync_mcp.engine.guard import Guard
from dionysus_sync_mcp.engine.ports.recover import Holdings, Refilling, RemoteReader
from dionysus_sync_mcp.engine.ports.shared import Scope, SyncEvent
from dionysus_sync_mcp.engine.ports.status import LocalStatus

PAGE = 1000


class Refiller:
    """The use-case refill."""

    def __init__(self, local: LocalStatus, reader: RemoteReader, rows: Refilling, guard: Guard) -> None:
        self._local = local
        self._reader = reader
        self._rows = rows
        self._guard = guard
        self._in_vain: tuple[int, Holdings] | None = None

    async def refill_once(self) -> int:
        """Queue again every confirmed row that the remote does not have; how many were.

        The rows are compared only where the counts give reason to, and once for the same reason: a remote store may be
        seen while it is being wiped, with the memories still there and what it knows of this store gone.
        """
        state = await self._local.state()
        if not state.capture_installed or state.identity is None or not state.memories:
            return 0
        held, live = await self._reader.holdings(state.identity.id), (await self._reader.counts()).live
        missing = missing_there(Counts(state.memories, state.queued + state.parked, live, held.live))
        reason = (missing, held)
        if (not missing and held.known) or reason == self._in_vain:
            return 0
        queued = await self._queue_missing()
        self._in_vain = None if queued else reason
        return queued

    async def _queue_missing(self) -> int:
        total, last = 0, ""
        while ids := await self._rows.confirmed_ids(last, PAGE):
            last = ids[-1]
            there = {digest.id for digest in await self._reader.digests(Scope(memory_ids=tuple(ids)), "", PAGE)}
            if missing := [memory_id for memory_id in ids if memory_id not in there]:
                total += await self._rows.forget_confirmation(missing, _event(missing))
        if total:
            await self._guard.backfill()
        return total


def _event(memory_ids: list[str]) -> SyncEvent:
    return SyncEvent(
        direction="local_to_remote",
        result="queued",
        record_count=len(memory_ids),
        memory_ids=memory_ids,
        error_message="the remote store has lost memories that it had confirmed; they are queued again",
    )
