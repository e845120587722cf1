"""What removing history for good needs."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from dionysus_sync_mcp.engine.ports.shared import SyncEvent


class Purgeable(NamedTuple):
    """What of one memory of the remote store can be removed.

    Attributes:
        whole: Whether it is a tombstone that goes with all its versions; else only these versions of it do.
        keys: Of the versions.
    """

    memory_id: str
    whole: bool
    keys: Sequence[str]


class PurgePage(NamedTuple):
    """Part of what can be removed. `last`: id of the last memory that was looked at, `None` where there are no more."""

    last: str | None
    found: list[Purgeable]


class RemotePurging(Protocol):
    """The remote store's side: the only statements of the program that remove anything there."""

    async def purgeable(self, store: str, before: datetime, after: str, limit: int) -> PurgePage:
        """A keyset page of memories of this store, with what of them no moment since then needs.

        Their current version stays, and the one that was current then. A tombstone in which another store has a part
        stays.
        """
        ...

    async def purgeable_of(self, memory_ids: Sequence[str]) -> list[Purgeable]:
        """Of those that are there, whichever store they are of: all but the current version, and tombstones whole."""
        ...

    async def note_purge(self, store: str, before: datetime) -> None:
        """Keep that the history of this store from before that time is not whole any more."""
        ...

    async def purge_versions(self, purged: Sequence[Purgeable]) -> int:
        """Remove the versions with these keys in one transaction, never a current one; how many were."""
        ...

    async def purge_tombstones(self, memory_ids: Sequence[str]) -> int:
        """Remove these with all their versions in one transaction, those that are still deleted; how many were."""
        ...

    async def other_stores(self, store: str) -> int:
        """How many other local stores have written there."""
        ...


class LocalPurging(Protocol):
    """The local store's side."""

    async def recovery_under_way(self) -> bool: ...

    async def count_images(self, before: datetime | None, memory_ids: Sequence[str]) -> int:
        """Rows that were kept for the undo of recoveries before that time, or of these memories."""
        ...

    async def purge_images(self, before: datetime | None, memory_ids: Sequence[str], limit: int) -> int:
        """Remove a page of them; how many were, 0 when there are no more."""
        ...

    async def record_purge(self, event: SyncEvent) -> None:
        """Audit it."""
        ...
