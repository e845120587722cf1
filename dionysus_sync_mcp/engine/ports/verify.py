"""What comparing both stores, and mending what differs, needs."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from dionysus_sync_mcp.domain.drift import Facts, Here, There
from dionysus_sync_mcp.domain.memory import MemoryChange, RemoteMemory
from dionysus_sync_mcp.engine.ports.shared import SyncEvent


class Seen(NamedTuple):
    """What two looks saw of one memory.

    Attributes:
        actual: The hash that its content in the remote store has, where that was recomputed; empty for one that
            cannot be read as a row.
    """

    memory_id: str
    facts: Facts
    actual: str | None = None


class Tally(NamedTuple):
    """Live memories of one project: how many, and the sum of their versions. Tells that something differs, not what."""

    memories: int
    versions: int


class RemoteTallies(NamedTuple):
    """Live memories of the remote store by project: those that one local store wrote last, and all."""

    own: dict[str | None, Tally]
    all: dict[str | None, Tally]


@dataclass(frozen=True, slots=True)
class QueueLook:
    """The queue when a comparison began.

    Attributes:
        waiting: Memories of which a change waits, parked ones too, or `None` for too many to be left out one by one.
        parked: Those of them of which a change is parked and was not superseded.
        oldest_at: When the oldest of the changes that wait was captured, `None` if none waits.
    """

    waiting: frozenset[str] | None
    parked: frozenset[str] = frozenset()
    oldest_at: datetime | None = None


class Due(NamedTuple):
    """A comparison that is due.

    Attributes:
        since: Of when the reason is; a later one asks for another comparison.
        gap: Whether changes were not captured for a while; else the remote store lost some.
    """

    since: datetime
    gap: bool


class LocalSnapshot(Protocol):
    """The local store at one moment."""

    @property
    def queue(self) -> QueueLook: ...

    def rows(self) -> AsyncIterator[Sequence[tuple[str, Here]]]:
        """All rows, in pages, ordered by id."""
        ...

    async def tallies(self) -> dict[str | None, Tally]:
        """By project, without what waits."""
        ...


class LocalComparison(Protocol):
    """The local store's side of a comparison; changes nothing of the user's."""

    async def obstacle(self) -> str | None:
        """Why nothing can be compared now, one clause; `None` where it can be."""
        ...

    def snapshot(self, most_waiting: int) -> AbstractAsyncContextManager[LocalSnapshot]: ...

    async def look(self, memory_ids: Sequence[str]) -> tuple[dict[str, Here], dict[str, int], frozenset[str]]:
        """At one moment: rows, versions of confirmed deletes, and the ids of which a change waits."""
        ...

    async def marks(self, memory_ids: Sequence[str]) -> tuple[dict[str, int], frozenset[str]]:
        """Versions of those of these deletes that were confirmed, and the ids of which a change waits."""
        ...

    async def hashes(self, memories: Sequence[RemoteMemory]) -> dict[str, str]:
        """The hash that each would have as a row here; empty for one that cannot be a row."""
        ...

    async def due(self) -> Due | None: ...

    async def ages(self) -> tuple[float | None, float | None]:
        """Seconds since any comparison, and since one of all ids, of whatever process; `None` for never."""
        ...

    async def last_clean(self) -> datetime | None:
        """When a comparison of all ids last found no difference; `None` for never."""
        ...

    async def settle_due(self, due: Due) -> None:
        """That comparison is done; one that is due for a later reason stays due."""
        ...

    async def record(self, kind: str, result: str, report: dict[str, Any], event: SyncEvent | None) -> None:
        """Keep a comparison's report, and audit its repair; old reports are pruned."""
        ...


class LocalMending(Protocol):
    """The local store's side of a repair. A row that is not as it was seen any more is left alone each time."""

    async def send(self, seen: Sequence[Seen]) -> int:
        """Queue these rows; how many were."""
        ...

    async def send_above(self, seen: Sequence[Seen]) -> int:
        """Number these rows above the remote's versions, where they are not, and queue them; how many were."""
        ...

    async def delete_again(self, memories: Sequence[RemoteMemory]) -> int:
        """Queue deletes of memories that are not here, above the remote's versions; how many were."""
        ...

    async def states(self, seen: Sequence[Seen]) -> list[MemoryChange]:
        """The rows as they are now, and the states of them that wait in the queue."""
        ...

    async def pull(self, seen: Sequence[Seen], memories: Sequence[RemoteMemory], kept: Sequence[MemoryChange]) -> int:
        """Make these rows what the remote holds, and drop those of their waiting changes that were kept; how many were.

        Args:
            kept: The states of rows, and those that waited, that are in the remote's history by now. A row that has
                none of its own among them stays as it is.

        Raises:
            Refused: A row would be another one than the remote holds; all stay as they are.
        """
        ...

    async def begin_epoch(self) -> None:
        """A person has decided what counts: this store goes on as a new one of the same id."""
        ...

    async def send_all(self, after: str, limit: int) -> tuple[str | None, int]:
        """Queue a page of the rows above `after` that have nothing queued; the page's last id, and how many were.

        One that cannot be read as JSON is parked with the reason.
        """
        ...


class RemoteComparison(Protocol):
    """The remote store's side of a comparison."""

    async def standing(self, after: str, limit: int) -> list[tuple[str, There]]:
        """A keyset page of all memories, tombstones too."""
        ...

    async def standing_of(self, memory_ids: Sequence[str]) -> dict[str, There]: ...

    async def tallies(self, without: Sequence[str], store: str) -> RemoteTallies:
        """Of live memories by project, without those; `store` is the one whose own are counted."""
        ...

    async def lacking(self) -> list[str]:
        """Names of the constraints and indexes that are missing; none of a store that no push has prepared yet."""
        ...

    async def duplicated(self, limit: int) -> list[str]:
        """Ids that several nodes bear; none while the constraint that forbids it is there."""
        ...

    async def deep_page(self, after: str, limit: int) -> list[tuple[RemoteMemory, There, bool]]:
        """A keyset page of whole memories, and whether the current version of each is in the history."""
        ...

    async def deep_of(self, memory_ids: Sequence[str]) -> list[tuple[RemoteMemory, There, bool]]: ...


class RemoteMending(Protocol):
    """The remote store's side of a repair; removes no node, and changes none that is not as it was seen."""

    async def keep_states(self, changes: Sequence[MemoryChange], store: str) -> frozenset[str]:
        """Add these states to the histories of their memories, which stay as they are; the ids of those it has."""
        ...

    async def keep_found(self, seen: Sequence[Seen]) -> int:
        """Write what each memory holds now into its history, if it is not there; how many stood as they were seen."""
        ...

    async def merge_duplicates(self, memory_ids: Sequence[str]) -> int:
        """The highest version stays the memory, the other nodes become versions of it; how many memories were."""
        ...
