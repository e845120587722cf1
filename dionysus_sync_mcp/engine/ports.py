"""What the use-cases need of the outside, as small Protocols; `adapters/` implement them.

In-memory twins pass the same behavioural suite. Every method may raise `Unavailable`, `AccessRefused` or `Refused` of
`domain.errors`; nothing of a driver crosses this line.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

from dionysus_sync_mcp.domain.drift import Facts, Here, There
from dionysus_sync_mcp.domain.lineage import RemoteLineage
from dionysus_sync_mcp.domain.memory import Digest, MemoryChange, Operation, RemoteMemory, Version

Outcome = Literal["created", "updated", "unchanged", "stale", "conflict_won", "conflict_lost", "resurrected"]
Entity = Literal["memory", "session", "project", "reference"]
# Told how much is done, of how much where that is known, and in words.
OnProgress = Callable[[int, int | None, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Health:
    """One look at a service. `error` is one line for people, `None` when it answered."""

    service: Literal["postgresql", "neo4j", "ollama"]
    error: str | None = None
    hint: str = ""
    version: str | None = None
    latency_ms: float | None = None
    degraded: tuple[str, ...] = ()
    refused: bool = False  # a person has to act: wrong password, missing right

    @property
    def up(self) -> bool:
        """Whether it answered."""
        return self.error is None


class Service(Protocol):
    """Anything with a health."""

    async def health(self, timeout: float) -> Health:
        """One look, never raising, within `timeout` seconds."""
        ...


# --- install ---------------------------------------------------------------------------------------------------


class InstallStep(NamedTuple):
    """One step of making a database a local store."""

    name: str
    sql: str


class Installation(Protocol):
    """Making a database a local store, and keeping it one."""

    async def missing_steps(self) -> tuple[list[InstallStep], bool]:
        """The steps that are left, and whether there is a table `memories`; changes nothing."""
        ...

    async def install(self) -> tuple[list[InstallStep], bool]: ...

    async def identity(self) -> "StoreIdentity": ...

    async def initialised(self) -> bool: ...

    async def table_present(self) -> bool: ...

    async def capture_installed(self) -> bool: ...

    async def backfill_once(self, limit: int) -> int:
        """Queue at most `limit` rows that are pending and have no queue entry; how many were."""
        ...

    async def definition(self) -> str | None:
        """The table's own words for its shape, JSON text; `None` while there is no table."""
        ...

    async def note_gap(self) -> None:
        """Rows have changed without being captured: a full comparison is due, in which what is here counts."""
        ...


# --- push --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """Which local store this is, and which push it remembers: see `domain.lineage.Lineage`.

    `repeated` is the lineage that an earlier attempt of that push had left remotely, `""` for none that is known.
    """

    id: str
    epoch: str
    generation: int = 0
    lineage: str = ""
    repeated: str = ""


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
class SyncEvent:
    """An audit row (data model, SyncEvent)."""

    direction: Literal["local_to_remote", "remote_to_local"]
    result: Literal["success", "failed", "partial", "queued"]
    record_count: int
    memory_ids: Sequence[str] = ()
    error_message: str | None = None
    duration_ms: int | None = None
    retry_count: int = 0


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

    async def live_versions(self, memory_ids: Sequence[str]) -> dict[str, "LiveVersion | None"]:
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


# --- embed -------------------------------------------------------------------------------------------------------


class Text(NamedTuple):
    """A memory that has no current vector."""

    memory_id: str
    content: str


class Vector(NamedTuple):
    """A vector and what it was made from. `text_hash` is the hex SHA-256 of the UTF-8 content."""

    memory_id: str
    text_hash: str
    values: list[float]


class VectorStore(Protocol):
    """The remote's side of embedding."""

    async def texts_without_vector(self, limit: int) -> list[Text]: ...

    async def store_vectors(self, vectors: Sequence[Vector], model: str) -> int:
        """Store those whose memory still has that very content; returns how many."""
        ...

    async def refuse_text(self, memory_id: str, text_hash: str, reason: str) -> None:
        """Record that this text cannot be embedded, so that it is not tried again until it changes."""
        ...

    async def count_without_vector(self) -> int: ...


class Embedder(Protocol):
    """Text in, vectors out."""

    @property
    def model(self) -> str: ...

    async def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector for each text. Raises `Refused` when the server refuses the batch, be it for one bad text."""
        ...

    async def embed_query(self, text: str) -> list[float]: ...


# --- recover -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scope:
    """Which memories are meant; empty tuples mean all."""

    projects: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    memory_ids: tuple[str, ...] = ()


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

    async def counts(self) -> "RemoteCounts": ...

    async def holdings(self, store: str) -> "Holdings":
        """What the local store with this id wrote last; what other stores wrote does not count."""
        ...

    async def lineage(self, store: str) -> RemoteLineage | None:
        """What is remembered of the pushes of the local store with this id; `None` where it has made none."""
        ...

    async def definitions(self) -> dict[str, str]:
        """What was noted of the local tables, JSON text, by the id of the local store, newest first."""
        ...


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


class PageResult(NamedTuple):
    """What became of one page of restored rows; ids of those that did not make it, with the reason."""

    restored: int
    verified: int
    already_there: int
    refused: list[tuple[str, str]]
    mismatched: list[str]


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


# --- verify ------------------------------------------------------------------------------------------------------


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


# --- query -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Filters:
    """What a hit must match; empty tuples and `None` mean anything. Times are aware."""

    projects: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    memory_types: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()  # any of them
    created_after: datetime | None = None
    created_before: datetime | None = None


class FoundMemory(NamedTuple):
    """A memory that one of the searches found, with that search's own score (higher is better)."""

    memory_id: str
    score: float
    content: str
    memory_type: str | None
    importance: float | None
    source_project: str | None
    session_id: str | None
    tags: list[str]
    created_at: str | None
    session_started_at: str | None
    session_summary: str | None


class WordSearch(Protocol):
    """Full-text search; `text` is data, never syntax."""

    async def search_words(self, text: str, filters: Filters, limit: int) -> list[FoundMemory]: ...


class VectorSearch(Protocol):
    """Nearest vectors first."""

    async def search_vector(self, vector: Sequence[float], filters: Filters, limit: int) -> list[FoundMemory]: ...


# --- status ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LocalState:
    """What the local store says of itself."""

    table_present: bool
    capture_installed: bool
    initialised: bool
    memories: int
    queued: int
    parked: int
    oldest_queued_at: datetime | None
    last_success_at: datetime | None
    open_conflicts: int
    last_parked_error: str | None
    identity: StoreIdentity | None
    failed: int = 0  # of the parked: refused so often that nothing but a person's word sends them again
    last_failed_at: datetime | None = None
    unsent: int = 0  # of the parked: PostgreSQL cannot make JSON of these rows, so only a change of theirs helps


class LastCheck(NamedTuple):
    """A comparison of both stores on record."""

    finished_at: datetime
    kind: Literal["quick", "full", "deep"]
    result: Literal["clean", "drift", "skipped"]
    differences: int


class PastAlert(NamedTuple):
    """An alert on record."""

    kind: str
    summary: str
    raised_at: datetime
    delivered_at: datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Activity:
    """What the sync has done since a time, from the audit, and the newest entries of the other records.

    Attributes:
        drift: The newest comparison that found differences, unless one that looked as closely was clean since.
        undelivered: Alerts that were sent in vain so far; `undelivered_error` says why.
    """

    pushes: int = 0
    pushed: int = 0
    failed_pushes: int = 0
    outages: int = 0
    average_ms: float | None = None
    slowest_ms: int | None = None
    conflicts: int = 0
    repaired: int = 0
    last_check: LastCheck | None = None
    drift: LastCheck | None = None
    alerts: tuple[PastAlert, ...] = ()
    undelivered: int = 0
    undelivered_error: str | None = None


class LocalStatus(Protocol):
    """Reads for the status; fast, changes nothing."""

    async def state(self) -> LocalState:
        """A queue of more than 100,000 entries is not counted: its length is then an upper bound."""
        ...

    async def identity(self) -> StoreIdentity | None:
        """`None` where the bookkeeping is not installed; cheap, whatever the queue holds."""
        ...

    async def has_entry(self, entry_id: str) -> bool:
        """Whether the queue entry with this id is still there, also to be acknowledged by a push that is under way."""
        ...

    async def activity(self, since: datetime) -> Activity: ...


# --- alerts ------------------------------------------------------------------------------------------------------


AlertKind = Literal["drift", "rolled_back", "failed_for_good"]


@dataclass(frozen=True, slots=True)
class NewAlert:
    """What people should be told of. `key` names the event: there is one alert for it, however often it is seen."""

    key: str
    kind: AlertKind
    summary: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DueAlert:
    """An alert that is to be posted now.

    Attributes:
        attempts: How often it was tried before.
    """

    id: str
    kind: str
    summary: str
    details: dict[str, Any]
    raised_at: datetime
    store_id: str
    attempts: int


class AlertBook(Protocol):
    """The alerts on record."""

    async def raise_alert(self, alert: NewAlert) -> bool:
        """Put it on record; whether it is new."""
        ...

    async def take_due(self, lease: float) -> DueAlert | None:
        """One that is due, by the database's clock; nobody else takes it for `lease` seconds."""
        ...

    async def note_delivered(self, alert_id: str) -> None: ...

    async def postpone(self, alert_id: str, delay: float, error: str) -> None:
        """Try it again in `delay` seconds."""
        ...


class AuditPruning(Protocol):
    """Keeping the audit bounded."""

    async def prune_events(self) -> int:
        """Remove a page of what is older than it is kept for; how many rows were, 0 when there are no more."""
        ...


class AlertSink(Protocol):
    """Where alerts are sent to."""

    async def post(self, alert_id: str, body: bytes) -> None:
        """Send it; returns when it was taken.

        Raises:
            Unavailable: It was not, or not in time.
        """
        ...


# --- sessions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A row of the local table `sessions`."""

    id: str
    project_id: str
    started_at: datetime
    last_activity_at: datetime
    ended_at: datetime | None = None
    summary: str | None = None


class SessionStore(Protocol):
    """Rows of the local table `sessions`."""

    async def save_session(self, session: SessionRow) -> None:
        """Insert it, or bring its times up to date; never moves `started_at` or un-ends a session."""
        ...

    async def end_session(self, session_id: str, ended_at: datetime, summary: str | None = None) -> bool:
        """Whether there was such a session to end; an end, once noted, stays."""
        ...

    async def sessions(self, project: str | None, limit: int) -> list[SessionRow]: ...


@dataclass(frozen=True, slots=True)
class SessionFileContent:
    """What the session file says: the id, and when the session was last active (the file's modification time)."""

    session_id: str
    started_at: datetime
    last_activity_at: datetime


class SessionFile(Protocol):
    """The file that other programs read the session id from; synchronous, since it is a few bytes.

    Where it cannot be written, touched or removed, that raises `AccessRefused`.
    """

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other servers from deciding at the same time; held for a read and a write, waits a moment at most."""
        ...

    def read(self) -> SessionFileContent | None:
        """`None` where there is no usable file."""
        ...

    def write(self, session_id: str, started_at: datetime, now: datetime) -> None:
        """Atomically, mode 0600, the bare id on the first line."""
        ...

    def touch(self, now: datetime) -> None: ...

    def remove(self) -> None: ...
