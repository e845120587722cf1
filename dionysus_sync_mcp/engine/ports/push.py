"""What a push needs: the local queue, and writing to the remote store."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

from dionysus_sync_mcp.domain.memory import MemoryChange, Operation, RemoteMemory, Version
from dionysus_sync_mcp.engine.ports.shared import Entity, StoreIdentity, SyncEvent

Outcome = Literal["created", "updated", "unchanged", "stale", "conflict_won", "conflict_lost", "resurrected"]


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """One captured change. `version` is set for a memory, `payload` (a row as JSON object) for the other entities."""

    seq: int
    entity: Entity
    operation: Operation
    created_at: datetime
    memory_id: str | None = None
    base_version: int | None = None
    version: Version | None = None
    payload: dict[str, Any] = field(default_factory=dict)
    waited: bool = False  # it was sent before, and kept since its row was held; `base_version` is the number it went by
    broken: str | None = None  # why it cannot be read, for an entry that something else than the capture wrote
    id: str = ""
    refusals: int = 0  # how often it was parked and tried again


@dataclass(frozen=True, slots=True)
class Stamp:
    """A version of a memory that the remote holds.

    Attributes:
        captured: The version under which the row was captured; lower than `version` for a row that was deleted and
            inserted again, whose count the push has carried on.
    """

    memory_id: str
    version: int
    captured: int


@dataclass(frozen=True, slots=True)
class Parking:
    """A queue entry that cannot be applied, and why."""

    seq: int
    error: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """Both sides changed a memory. Contents are cut to 100 characters, as the data model has it."""

    memory_id: str
    winner: Literal["local", "remote"]
    local_version: int
    remote_version: int
    local_content: str
    remote_content: str


@dataclass(frozen=True, slots=True)
class Settlement:
    """What a push writes back to the local store, all of it or nothing.

    A memory that has to change here (a stamp above `captured`, `rebased`, `pulled`) but whose row, or the whole table,
    somebody holds, keeps its newest entry, which waits a little, or until the memory's next change.

    Attributes:
        acknowledged: `seq` of entries that are done with, but for those.
        rebased: Memories whose live local row the remote holds at a version that this store never saw, with that
            version: the row gets that version + 1 and is queued again.
        pulled: Memories that the remote has won: the local row becomes this.
        deleted: Memories of which the remote has confirmed the tombstone. What was parked of a memory before this or
            before a stamp is superseded by it.
        lineage: The lineage that the remote remembers now, `""` where nothing was written there.
        repeated: The one before, where that was an earlier attempt of this push, of which the answer was lost.
        compare: Whether the remote has turned out not to remember the last push: a full comparison is due.
    """

    acknowledged: Sequence[int]
    stamps: Sequence[Stamp] = ()
    parked: Sequence[Parking] = ()
    rebased: Sequence[Stamp] = ()
    pulled: Sequence[RemoteMemory] = ()
    conflicts: Sequence[Conflict] = ()
    deleted: Sequence[Stamp] = ()
    event: SyncEvent | None = None
    lineage: str = ""
    repeated: str = ""
    compare: bool = False


class LiveVersion(NamedTuple):
    """Where a local row stands."""

    version: int
    content: str  # the first 100 characters
    confirmed: int | None = None  # the version that the remote has confirmed


class Claim(Protocol):
    """Queue entries that nobody else pushes now. Leaving the claim without settling leaves them as they were."""

    @property
    def identity(self) -> StoreIdentity: ...

    @property
    def entries(self) -> Sequence[QueueEntry]: ...

    async def live_versions(self, memory_ids: Sequence[str]) -> dict[str, LiveVersion | None]:
        """Where the local rows stand now, by id; those that are gone are left out.

        `None` while somebody keeps the table locked: whatever the settlement says, their newest entries wait then.
        """
        ...

    async def has_entry(self, entry_id: str) -> bool:
        """Whether the queue entry with this id is still there."""
        ...

    async def settle(self, settlement: Settlement) -> None:
        """Write the settlement, in the transaction of the claim.

        Raises:
            Unavailable: The store has moved on to a lineage that this claim does not know; nothing is changed.
        """
        ...


class Outbox(Protocol):
    """The local queue."""

    def claim(self, rows: int, size: int, seconds: float = 5.0) -> AbstractAsyncContextManager[Claim | None]:
        """The next entries in `seq` order, at most `rows` and about `size` bytes; `None` if someone else is pushing.

        Args:
            seconds: Deadline of each statement.

        Raises:
            TimedOut: Not done by then; fewer entries may be.
        """
        ...

    async def identity(self) -> StoreIdentity:
        """Which store this is, and where it stands now, whatever a claim has seen."""
        ...

    async def anything_queued(self) -> bool: ...

    async def queue_length(self) -> int: ...

    async def retry_parked_once(self, limit: int, *, due_only: bool) -> int:
        """Put parked entries back into the queue and audit it; how many were.

        What is superseded, and what the capture parked for want of the row's image, stays where it is.

        Args:
            due_only: Only those whose time has come, and none that was refused `MOST_REFUSALS` times.
        """
        ...

    async def note_outage(self, memory_ids: Sequence[str], event: SyncEvent) -> None:
        """Mark memories as `queued` and audit it; bounded, skips rows that somebody holds."""
        ...


class Replaced(NamedTuple):
    """What lost a conflict to a version that was delivered."""

    content: str  # the first 100 characters
    version: int
    by: int  # the version that won


class RowOutcome(NamedTuple):
    """What became of one memory in a write, and where the remote stands now."""

    memory_id: str
    outcome: Outcome
    version: int  # the remote's after the write
    replaced: tuple[Replaced, ...] = ()  # by each `conflict_won`, now or in an earlier delivery of the same versions
    outlived: bool = False  # a delete was not taken, though what lives there was captured before it by the same store


class Move(NamedTuple):
    """The step of a push from one lineage to the next.

    Attributes:
        accepted: Lineages that the remote may remember, `""` for none.
        to: The one that it remembers then.
        last_entry: Id of the last queue entry of the push.
    """

    accepted: tuple[str, ...] = ("",)
    to: str = ""
    last_entry: str = ""


@dataclass(frozen=True, slots=True)
class RemoteBatch:
    """One write. `sessions`, `projects` and `references` are rows of these tables as JSON objects, last state each."""

    identity: StoreIdentity
    changes: Sequence[MemoryChange]
    move: Move = field(default_factory=Move)
    sessions: Sequence[dict[str, Any]] = ()
    projects: Sequence[dict[str, Any]] = ()
    references: Sequence[dict[str, Any]] = ()
    seconds: float = 60.0  # deadline of the transaction


class RemoteWriter(Protocol):
    """Writing to the remote store."""

    async def prepare(self) -> None:
        """Create constraints and indexes that are missing; idempotent."""
        ...

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Apply a batch in one transaction; idempotent; a memory's version never decreases (P2, P3, P4).

        Raises:
            LineageMoved: The remote remembers a push that the batch's move does not accept; nothing was written.
        """
        ...

    async def note_definition(self, identity: StoreIdentity, definition: str) -> None:
        """Keep the local table's definition (JSON text) with the store's node."""
        ...
