"""What a recovery needs, and the refilling of a remote store that lost something."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from dionysus_sync_mcp.domain.lineage import RemoteLineage
from dionysus_sync_mcp.domain.memory import Digest, RemoteMemory
from dionysus_sync_mcp.engine.ports.shared import Scope, SyncEvent

EVERYTHING = Scope()


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

    async def sessions(self, scope: Scope = EVERYTHING) -> list[dict[str, Any]]:
        """Sessions as rows of the local table `sessions`: those in scope, and those of memories in scope."""
        ...

    async def projects(self, scope: Scope = EVERYTHING) -> list[dict[str, Any]]: ...

    async def references(self, scope: Scope, after: str, limit: int) -> list[dict[str, Any]]:
        """References as rows of the local table `memory_references`, those that were removed are not among them.

        A page holds all references of `limit` memories at most, sources in scope with ids above `after`, in order;
        empty when there are no more.
        """
        ...

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

    async def definition_history(self, store: str) -> list[tuple[datetime, str]]:
        """Everything that was noted of the table of that local store, and when, by the remote's clock; in order."""
        ...


class PageResult(NamedTuple):
    """What became of one page of restored rows.

    Attributes:
        restored: Rows written, those that were overwritten among them.
        verified: Those of them that have the hash they are to have.
        already_there: Rows that were as they are to be, or that were to be inserted and are there.
        refused: Ids of those that are as they were before, and why.
        mismatched: Ids of rows that were inserted, and have another hash than they are to have.
    """

    restored: int
    verified: int
    already_there: int
    refused: list[tuple[str, str]]
    mismatched: list[str]
    overwritten: int = 0


class Restoration(NamedTuple):
    """What one local row is to become.

    Attributes:
        memory: The state that it gets; its `content_hash` is what the row is compared by afterwards.
        number: The row's `sync_version`.
        confirmed: The version that the remote store holds now, the row's `synced_version`.
        is_new: Whether the remote store does not hold this state as its newest: the row is pending then, and queued.
        overwrites: Hash of the local row that it replaces, which is kept for an undo; a row with another hash stays.
            `None`: only where there is no row.
        refilled: Whether the state was put together of two, and has no hash yet: it gets the one that a row has that
            holds just this.
    """

    memory: RemoteMemory
    number: int
    confirmed: int
    is_new: bool = False
    overwrites: str | None = None
    refilled: bool = False


def as_it_stands(memory: RemoteMemory) -> Restoration:
    """The row becomes what the remote store holds; of a tombstone, it lives again, and goes one further."""
    deleted = memory.deleted_at is not None
    return Restoration(memory, memory.version + deleted, memory.version, is_new=deleted)


class ContextResult(NamedTuple):
    """What came back beside the memories: what was refused, a sentence each, and how many references were added."""

    refused: list[str]
    references: int = 0


class Restorer(Protocol):
    """The local store's side of a recovery."""

    def recovering(self) -> AbstractAsyncContextManager[None]:
        """Marks that a recovery is under way, so that what it has not brought yet is not told of as lost.

        The mark ends with the process at the latest.
        """
        ...

    async def ensure_schema(self, definition: str | None) -> list[str]:
        """Create what is missing of the local store, and make `memories` what the definition says, but for what fires
        or looks at other rows, which `complete_schema` adds when the rows are back. Nothing is taken away.

        Returns what could not be made, a sentence each.
        """
        ...

    async def complete_schema(self, definition: str | None) -> list[str]:
        """Add the user's triggers, row security, and the foreign keys of other tables; what could not be, and why."""
        ...

    async def restore(self, recovery_id: str, restorations: Sequence[Restoration]) -> PageResult:
        """Write a page of rows in one transaction, and compare the hash of each.

        What is overwritten is kept under `recovery_id` in the same transaction. A row that the table refuses, that
        somebody has changed since it was seen, or that would not become what it is to become, stays as it was.
        """
        ...

    async def waiting_ids(self) -> list[str]:
        """Memories that have queue entries which are not parked."""
        ...

    async def restore_context(
        self,
        sessions: Sequence[dict[str, Any]],
        projects: Sequence[dict[str, Any]],
        references: Sequence[dict[str, Any]] = (),
    ) -> ContextResult:
        """Insert those that are not there; of the references, those of which both memories are."""
        ...

    async def record_recovery(self, report: dict[str, Any], event: SyncEvent) -> None:
        """Keep the report, under its `recovery_id` where it has one, and audit it."""
        ...


class Refilling(Protocol):
    """The local store's side of filling a remote store again that has lost memories."""

    async def confirmed_ids(self, after: str, limit: int) -> list[str]:
        """Ids above `after`, in order, of rows that the remote has confirmed as they are now."""
        ...

    async def forget_confirmation(self, memory_ids: Sequence[str], event: SyncEvent) -> int:
        """Mark these rows as pending, so that they are queued again, and audit it; how many were."""
        ...
