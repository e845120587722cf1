"""Decides what of the captured changes, and of the looks at the table, is an incident."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

# Looks count the rows of a table up to this: a full count of more would take too long for every other second.
MOST_COUNTED = 100_000

ObservationKind = Literal["delete", "update", "truncate", "drop", "alter"]
IncidentKind = Literal[
    "rapid_deletes",  # more deletes than the threshold within the span
    "bulk_update",  # the content of more than half of the memories changed within the span
    "truncate",
    "drop",  # the table, its schema, or the bookkeeping, seen by an event trigger
    "alter",  # a column dropped or made another type, the table renamed or swapped
    "capture_off",  # triggers of the capture disabled or gone
    "table_missing",  # seen by watching only
    "table_recreated",  # another table stands at the name
    "rows_missing",  # rows went without being captured
    "bookkeeping_missing",
    "database_missing",
]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From when on something is an incident.

    Attributes:
        deletes: More deletes than this, within the span.
        updates: At least so many memories must have changed content, however few there are.
        share: More of the memories than this share must have changed content, within the span.
        seconds: The span; both ends belong to it.
    """

    deletes: int = 10
    updates: int = 5
    share: float = 0.5
    seconds: float = 60.0


class Who(NamedTuple):
    """Who did it, as far as PostgreSQL tells. `statement` is cut; it never goes into a message as it is."""

    role: str | None = None
    application_name: str | None = None
    client_address: str | None = None
    pid: int | None = None
    statement: str | None = None


NOBODY_KNOWN = Who()


class Observation(NamedTuple):
    """A statement that destroyed something, or could be part of it, as the database itself has seen it.

    `at` is just before the first change of it that was captured, `until` just after the last one: the versions that it
    made lie between. `memory_ids` are those that were deleted, or of which the content was changed; of the other kinds
    there are none.
    """

    seq: int
    kind: ObservationKind
    at: datetime
    until: datetime
    rows: int
    memory_ids: tuple[str, ...] = ()
    table: int | None = None  # oid of the table that it hit
    detail: str = ""  # what was hit, in words without a command, such as "column tags dropped"
    who: Who = NOBODY_KNOWN
    judged: bool = False


@dataclass(frozen=True, slots=True)
class Incident:
    """A destructive pattern: one for one event, however often and by whatever it is seen.

    Attributes:
        id: UUID that follows from the store and the key, so that both stores and every process give it the same one.
        key: Names the event, such as `gone:16403`.
        store: Id of the local store.
        restore_point: What was changed before it is good; what the incident changed is at or after it.
        last_at: Of the last change that belongs to it.
        rows: Memories that it hit.
        summary: One sentence for people; never a command.
    """

    id: str
    key: str
    kind: IncidentKind
    store: str
    detected_at: datetime
    restore_point: datetime
    last_at: datetime
    rows: int
    summary: str
    who: Who = NOBODY_KNOWN
    closed_at: datetime | None = None
    closed_reason: str | None = None
    revision: int = 1


@dataclass(frozen=True, slots=True)
class Sight:
    """How the local store was at one look.

    Attributes:
        seen_at: By the database's clock.
        store: Id of the local store, `None` where the bookkeeping is not installed.
        table: Oid of `memories`, `None` where there is none.
        columns: `name type` of each of the user's columns, in order of name.
        triggers: Those of the capture that fire always.
        event_triggers: Whether the database tells of drops and alterations by itself.
        rows: Memories, counted up to `MOST_COUNTED`; `None` for more.
        last_seq: Of the newest observation.
        gone: Rows that observations after the `last_seq` of the look before account for.
        whole: Whether all of the bookkeeping is there, such as the queue.
        recovering: Whether a recovery was under way: what it makes anew was not put there by somebody else.
    """

    seen_at: datetime
    store: str | None
    table: int | None
    columns: tuple[str, ...] = ()
    triggers: frozenset[str] = frozenset()
    event_triggers: bool = False
    rows: int | None = None
    last_seq: int = 0
    gone: int = 0
    whole: bool = True
    recovering: bool = False
