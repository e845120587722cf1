"""What a recovery needs, and the refilling of a remote store that lost something."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from dionysus_sync_mcp.domain.lineage import RemoteLineage
from dionysus_sync_mcp.domain.memory import Digest, RemoteMemory
from dionysus_sync_mcp.engine.ports.shared import Scope, SyncEvent


class RemoteCounts(NamedTuple):
    """What the remote store holds."""

    live: int
    tombstones: int
    versions: int


class Holdings(NamedTuple):
    """What the remote store holds of one local store."""

    known: bool  # whether that store has ever written here
    live: int
    tombstones: int


class RemoteReader(Protocol):
    """Reading in keyset pages: ids above `after`, in order, at most `limit`; empty when there are no more."""

    async def digests(self, scope: Scope, after: str, limit: int) -> list[Digest]: ...

    async def memories(self, scope: Scope, after: str, limit: int) -> list[RemoteMemory]: ...

    async def by_id(self, memory_ids: Sequence[str]) -> list[RemoteMemory]: ...

    async def unlinked(self, references: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of these rows of `memory_references` of which a memory is not in the remote store."""
        ...

    async def sessions(self) -> list[dict[str, Any]]:
        """All sessions as rows of the local table `sessions`."""
        ...

    async def projects(self) -> list[dict[str, Any]]: ...

    async def counts(self) -> RemoteCounts: ...

    async def holdings(self, store: str) -> Holdings:
        """What the local store with this id wrote last; what other stores wrote does not count."""
        ...

    async def lineage(self, store: str) -> RemoteLineage | None:
        """What is remembered of the pushes of the local store with this id; `None` where it has made none."""
        ...

    async def definitions(self) -> dict[str, str]:
        """What was noted of the local tables, JSON text, by the id of the local store, newest first."""
        ...


class PageResult(NamedTuple):
    """What became of one page of restored rows; ids of those that did not make it, with the reason."""

    restored: int
    verified: int
    already_there: int
    refused: list[tuple[str, str]]
    mismatched: list[str]


class Restoration(NamedTuple):
    """What one local row is to become.

    Attributes:
        memory: The state that it gets; its `content_hash` is what the row is compared by afterwards.
        number: The row's `sync_version`.
        confirmed: The version that the remote store holds now, the row's `synced_version`.
        is_new: Whether the remote store does not hold this state as its newest: the row is pending then, and queued.
        overwrites: Hash of the local row that it replaces, which is kept for an undo; a row with another hash stays.
            `None`: only where there is no row.
    """

    memory: RemoteMemory
    number: int
    confirmed: int
    is_new: bool = False
    overwrites: str | None = None


class Restorer(Protocol):
    """The local store's side of a recovery."""

    def recovering(self) -> AbstractAsyncContextManager[None]:
        """Marks that a recovery is under way, so that what it has not brought yet is not told of as lost.

        The mark ends with the process at the latest.
        """
        ...

    async def ensure_schema(self, definition: str | None) -> bool:
        """Create what is missing of the local store, `memories` after the noted definition; whether anything was."""
        ...

    def digests(self, scope: Scope) -> AsyncIterator[Sequence[Digest]]:
        """The local memories in scope, in pages, ordered by id. An absent table has none."""
        ...

    async def restore(self, memories: Sequence[RemoteMemory]) -> PageResult:
        """Insert those whose id is not there, in one transaction, and compare every inserted row's hash."""
        ...

    async def waiting_ids(self) -> list[str]:
        """Memories that have queue entries which are not parked."""
        ...

    async def restore_context(
        self, sessions: Sequence[dict[str, Any]], projects: Sequence[dict[str, Any]]
    ) -> list[str]:
        """Insert the sessions and projects that are not there; of those that are refused, which and why."""
        ...

    async def record_recovery(self, report: dict[str, Any], event: SyncEvent) -> None: ...


class Refilling(Protocol):
    """The local store's side of filling a remote store again that has lost memories."""

    async def confirmed_ids(self, after: str, limit: int) -> list[str]:
        """Ids above `after`, in order, of rows that the remote has confirmed as they are now."""
        ...

    async def forget_confirmation(self, memory_ids: Sequence[str], event: SyncEvent) -> int:
        """Mark these rows as pending, so that they are queued again, and audit it; how many were."""
        ...
