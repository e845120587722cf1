"""The in-memory stores' sides of a purge, for tests of the engine."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from dionysus_sync_mcp.engine.ports.purge import Purgeable, PurgePage
from dionysus_sync_mcp.engine.ports.shared import SyncEvent


@dataclass
class MemoryPurging:
    """Implements `RemotePurging` and `LocalPurging` on what can be removed, which a test says.

    Attributes:
        versions: Keys of versions that can be removed, by memory.
        deleted: Memories that are tombstones.
        transactions: How many nodes each has removed.
        before_write: Runs before each transaction.
    """

    versions: dict[str, list[str]] = field(default_factory=dict)
    deleted: set[str] = field(default_factory=set)
    images: int = 0
    stores: int = 0
    recovering: bool = False
    transactions: list[int] = field(default_factory=list)
    asked: list[tuple[str, datetime]] = field(default_factory=list)
    events: list[SyncEvent] = field(default_factory=list)
    noted: list[datetime] = field(default_factory=list)
    before_write: Callable[[], Awaitable[None]] | None = None

    async def purgeable(self, store: str, before: datetime, after: str, limit: int) -> PurgePage:
        """A page."""
        self.asked.append((store, before))
        ids = [i for i in sorted(self.versions) if i > after][:limit]
        found = [one for one in await self.purgeable_of(ids) if one.whole or one.keys]
        return PurgePage(ids[-1] if ids else None, found)

    async def purgeable_of(self, memory_ids: Sequence[str]) -> list[Purgeable]:
        """Those that are there."""
        there = [i for i in memory_ids if i in self.versions]
        return [Purgeable(i, i in self.deleted, tuple(self.versions[i])) for i in there]

    async def note_purge(self, store: str, before: datetime) -> None:
        """Keep it."""
        assert store
        self.noted.append(before)

    async def purge_versions(self, purged: Sequence[Purgeable]) -> int:
        """Take these keys out."""
        await self._begin()
        for one in purged:
            assert set(one.keys) <= set(self.versions[one.memory_id])
            self.versions[one.memory_id] = [key for key in self.versions[one.memory_id] if key not in one.keys]
        self.transactions.append(sum(len(one.keys) for one in purged))
        return self.transactions[-1]

    async def purge_tombstones(self, memory_ids: Sequence[str]) -> int:
        """Take these memories out, those that are still deleted."""
        await self._begin()
        gone = [i for i in memory_ids if i in self.deleted]
        self.transactions.append(sum(1 + len(self.versions.pop(i)) for i in gone))
        return len(gone)

    async def other_stores(self, store: str) -> int:
        """As set."""
        assert store
        return self.stores

    async def recovery_under_way(self) -> bool:
        """As set."""
        return self.recovering

    async def count_images(self, before: datetime | None, memory_ids: Sequence[str]) -> int:
        """As set."""
        assert (before is None) == bool(memory_ids)
        return self.images

    async def purge_images(self, before: datetime | None, memory_ids: Sequence[str], limit: int) -> int:
        """A page."""
        assert (before is None) == bool(memory_ids)
        removed = min(limit, self.images)
        self.images -= removed
        return removed

    async def record_purge(self, event: SyncEvent) -> None:
        """Keep it."""
        self.events.append(event)

    async def _begin(self) -> None:
        if self.before_write:
            await self.before_write()
