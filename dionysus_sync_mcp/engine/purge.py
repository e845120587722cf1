"""Purge: removes history from the remote store for good. Nothing else does, and nothing but a person calls it (P4)."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

import anyio

from dionysus_sync_mcp.domain.destruction import Incident
from dionysus_sync_mcp.domain.errors import DionysusError, InputError
from dionysus_sync_mcp.domain.lineage import Standing
from dionysus_sync_mcp.domain.text import line
from dionysus_sync_mcp.engine.ports.install import Installation
from dionysus_sync_mcp.engine.ports.purge import LocalPurging, Purgeable, RemotePurging
from dionysus_sync_mcp.engine.ports.shared import OnProgress, SyncEvent
from dionysus_sync_mcp.engine.reports import Example, PurgeReport

logger = logging.getLogger(__name__)

YOUNGEST = timedelta(days=1)
PAGE = 200
# Nodes that one transaction removes.
MOST = 1000
RECORD_SECONDS = 5.0
NAMED_IDS = 100
EXCERPT = 80
FOR_GOOD = "What is removed cannot be recovered any more, by anybody."


@dataclass(slots=True)
class _Purge:
    """What is to be purged, and what was so far.

    Attributes:
        before: Only what no moment since then needs; `None` where memories are named.
        others: Local stores besides this one that have written to the remote store.
        noted: Whether the remote store knows that its history will not be whole.
        named: Those of the named memories that are in the remote store.
    """

    store: str
    before: datetime | None
    memory_ids: Sequence[str]
    dry_run: bool
    started: float
    versions: int = 0
    tombstones: int = 0
    images: int = 0
    others: int = 0
    noted: bool = False
    tombstone_ids: list[str] = field(default_factory=list)
    named: dict[str, Purgeable] = field(default_factory=dict)

    @property
    def removed(self) -> int:
        """Of everything."""
        return self.versions + self.tombstones + self.images


class Purger:
    """The use-case purge.

    Args:
        all_judged: Judges what was observed; whether nothing is left. What nobody has judged yet may be destruction.
        open_incidents: Those that are open here or in the remote store's record: of this store and those that were in
            its place or, for `True`, of every store.
        standing: Where this store stands beside what the remote remembers of it.
    """

    def __init__(
        self,
        remote: RemotePurging,
        local: LocalPurging,
        installation: Installation,
        *,
        all_judged: Callable[[], Awaitable[bool]],
        open_incidents: Callable[[bool], Awaitable[Sequence[Incident]]],
        standing: Callable[[], Awaitable[Standing | None]],
    ) -> None:
        self._remote = remote
        self._local = local
        self._installation = installation
        self._all_judged = all_judged
        self._open_incidents = open_incidents
        self._standing = standing

    async def purge(
        self,
        older_than: timedelta | None,
        memory_ids: Sequence[str],
        *,
        dry_run: bool,
        now: datetime,
        on_progress: OnProgress | None = None,
    ) -> PurgeReport:
        """Count what would be removed or, where it is no dry run, remove it; safe to repeat and to cut off.

        By age: of memories that this store wrote last, the versions that no moment in the time that is kept needs, and
        memories that were deleted before it. So everything can still be recovered as it was at any moment of that time.
        By memory: whoever wrote it, all of it if it is deleted, and all but its current version if it lives.

        Raises:
            InputError: Neither or both are given, too little would be kept, an incident is open, what was observed is
                not all judged, a recovery is under way, or this database is older than what it has pushed. Nothing
                was removed.
        """
        started = time.monotonic()
        _refuse_unclear(older_than, memory_ids)
        await self._refuse_unsafe(any_store=bool(memory_ids))
        store = (await self._installation.identity()).id
        before = _cutoff(older_than, now)
        purge = _Purge(store, before, sorted({str(UUID(i)) for i in memory_ids}), dry_run, started)
        purge.others = await self._remote.other_stores(store) if before else 0
        try:
            await self._carry_out(purge, on_progress)
        except BaseException:
            with anyio.move_on_after(RECORD_SECONDS, shield=True), suppress(DionysusError):
                await self._record(purge, "partial")
            raise
        await self._record(purge, "success")
        return _report(purge)

    async def _refuse_unsafe(self, *, any_store: bool) -> None:
        if not await self._all_judged():
            raise InputError(
                "not all of what was deleted or changed here is judged yet, and it may have to come back",
                where="purge",
                hint="Try again in a moment; get_sync_status says what is in the way.",
            )
        if incidents := await self._open_incidents(any_store):
            raise InputError(
                f"{len(incidents)} incidents are open, and what they destroyed comes back out of the history",
                where="purge",
                hint="Recover what they destroyed and close them: 'dionysus-sync-mcp incidents' lists them, each where "
                f"it happened. The newest is {incidents[0].id}.",
            )
        if await self._local.recovery_under_way():
            raise InputError("a recovery is under way", where="purge", hint="Try again when it is done.")
        if await self._standing() == "behind_here":
            raise InputError(
                "this database is older than what it has pushed, or is a copy: it may not decide what is removed",
                where="purge",
                hint="Call get_sync_status to see what has to be decided first.",
            )

    async def _carry_out(self, purge: _Purge, on_progress: OnProgress | None) -> None:
        async for page in self._pages(purge):
            await (_count if purge.dry_run else self._remove)(page, purge)
            if on_progress:
                done = f"{purge.versions} versions and {purge.tombstones} deleted memories"
                await on_progress(purge.removed, None, f"{done} {'found' if purge.dry_run else 'removed'}")
        if purge.dry_run:
            purge.images = await self._local.count_images(purge.before, purge.memory_ids)
            return
        while images := await self._local.purge_images(purge.before, purge.memory_ids, MOST):
            purge.images += images

    async def _pages(self, purge: _Purge) -> AsyncIterator[list[Purgeable]]:
        if purge.before is None:
            for start in range(0, len(purge.memory_ids), PAGE):
                found = await self._remote.purgeable_of(purge.memory_ids[start : start + PAGE])
                purge.named |= {one.memory_id: one for one in found}
                yield found
            return
        last: str | None = ""
        while last is not None:
            last, found = await self._remote.purgeable(purge.store, purge.before, last, PAGE)
            yield found

    async def _remove(self, page: Sequence[Purgeable], purge: _Purge) -> None:
        """Versions first: what is cut off leaves a memory with less history, and none half removed."""
        if page and purge.before and not purge.noted:
            await self._remote.note_purge(purge.store, purge.before)
            purge.noted = True
        for batch in _batches([one for one in page if not one.whole]):
            purge.versions += await self._remote.purge_versions(batch)
        whole = [one for one in page if one.whole]
        for batch in _batches([one for one in whole if len(one.keys) >= MOST]):
            await self._remote.purge_versions(batch)
        for memory_ids in _together(whole):
            purge.tombstones += await self._remote.purge_tombstones(memory_ids)
            purge.tombstone_ids += memory_ids[: NAMED_IDS - len(purge.tombstone_ids)]

    async def _record(self, purge: _Purge, result: Literal["success", "partial"]) -> None:
        """Of a direction of its own, so that it counts neither as a push nor as the last success of one."""
        if purge.dry_run or not purge.removed:
            return
        said = f"purge: {purge.versions} old versions and {purge.tombstones} deleted memories were removed for good"
        logger.warning("%s", said)
        duration = round(1000 * (time.monotonic() - purge.started))
        ids = purge.memory_ids[:NAMED_IDS] or purge.tombstone_ids
        event = SyncEvent("remote_to_local", result, purge.removed, ids, said, duration)
        await self._local.record_purge(event)


async def _count(page: Sequence[Purgeable], purge: _Purge) -> None:
    purge.versions += sum(len(one.keys) for one in page if not one.whole)
    purge.tombstones += sum(one.whole for one in page)


def _batches(page: Sequence[Purgeable]) -> Iterator[list[Purgeable]]:
    """So many versions as one transaction removes."""
    batch: list[Purgeable] = []
    room = MOST
    for one in page:
        keys = one.keys
        while keys:
            batch.append(one._replace(keys=keys[:room]))
            keys, room = keys[room:], room - len(batch[-1].keys)
            if not room:
                yield batch
                batch, room = [], MOST
    if batch:
        yield batch


def _together(whole: Sequence[Purgeable]) -> Iterator[list[str]]:
    """Tombstones that go in one transaction; of those with many versions only the current one is left by then."""
    ids: list[str] = []
    nodes = 0
    for one in whole:
        size = 2 if len(one.keys) >= MOST else 1 + len(one.keys)
        if ids and nodes + size > MOST:
            yield ids
            ids, nodes = [], 0
        ids.append(one.memory_id)
        nodes += size
    if ids:
        yield ids


def _refuse_unclear(older_than: timedelta | None, memory_ids: Sequence[str]) -> None:
    if (older_than is None) == (not memory_ids):
        raise InputError("say either how old history has to be, or of which memories", where="purge")
    if older_than is not None and older_than < YOUNGEST:
        raise InputError(
            "history of the last day is never removed",
            where="older_than",
            hint="Give a span of a day or more; single memories can be named, however old they are.",
        )
    for memory_id in memory_ids:
        try:
            UUID(memory_id)
        except ValueError:
            raise InputError(f"{line(memory_id, EXCERPT)} is no id of a memory", where="memory_ids") from None


def _cutoff(older_than: timedelta | None, now: datetime) -> datetime | None:
    try:
        return now - older_than if older_than is not None else None
    except OverflowError:
        raise InputError("that is longer than there are dates", where="older_than") from None


def _report(purge: _Purge) -> PurgeReport:
    return PurgeReport(
        dry_run=purge.dry_run,
        next_step=_advice(purge),
        warnings=_warnings(purge),
        versions=purge.versions,
        tombstones=purge.tombstones,
        undo_images=purge.images,
        memories=[_fate(memory_id, purge.named.get(memory_id)) for memory_id in purge.memory_ids],
        duration_ms=round(1000 * (time.monotonic() - purge.started)),
    )


def _advice(purge: _Purge) -> str:
    if not purge.removed:
        return "Nothing to do: there is nothing of that kind."
    if purge.dry_run:
        return "Nothing was removed. Run the same with --yes to remove this for good."
    return "Nothing to do: it is removed, for good."


def _warnings(purge: _Purge) -> list[str]:
    warnings = [FOR_GOOD] if purge.dry_run and purge.removed else []
    if purge.others:
        warnings.append(f"{purge.others} other local stores write to this remote store; their history is left alone.")
    return warnings


def _fate(memory_id: str, one: Purgeable | None) -> Example:
    if one is None:
        reason = "it is not in the remote store"
    elif one.whole:
        reason = f"it was deleted here: all of it, {len(one.keys)} versions"
    elif one.keys:
        reason = f"it is not deleted, and stays: only its {len(one.keys)} old versions"
    else:
        reason = "it is not deleted, and stays; it has no old versions"
    return Example(memory_id=memory_id, reason=reason)
