"""Decides what a recovery does with each memory, and whether what it did is what was planned."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from dionysus_sync_mcp.domain.destruction import Incident, IncidentKind, Interval
from dionysus_sync_mcp.domain.drift import Here
from dionysus_sync_mcp.domain.memory import Digest

PlanClass = Literal[
    "missing_here",
    "older_here",
    "identical",
    "newer_here",
    "conflicting",
    "deleted",
    "deleted_by_incident",
    "overwritten_by_incident",
    "only_here",
]
Action = Literal["insert", "overwrite"]
Means = Literal["delete", "update", "create"]

# What each of them did is in the history, as versions of this operation.
_OPERATIONS: dict[IncidentKind, Means] = {"rapid_deletes": "delete", "bulk_update": "update"}
# After these, rows may be made up and inserted under ids of memories that are gone.
_LOSES_ROWS: frozenset[IncidentKind] = frozenset(
    {"rapid_deletes", "truncate", "drop", "table_missing", "table_recreated", "rows_missing", "database_missing"}
)
# With the bookkeeping went what is known of sessions, projects and references.
LOSES_CONTEXT: frozenset[IncidentKind] = frozenset(
    {"bookkeeping_missing", "table_missing", "table_recreated", "database_missing"}
)
# In these, rows change without any trigger's firing: at one version they are another row than the remote store has.
_UNSEEN: frozenset[IncidentKind] = frozenset({"alter", "capture_off", "drop", "table_recreated", "bookkeeping_missing"})

_LOSES_SHAPE: frozenset[IncidentKind] = frozenset({"alter", "drop", "table_missing", "table_recreated"})


class Window(NamedTuple):
    """The span in which an incident changed memories of one local store; both ends belong to it.

    What it did by other means than this operation does not count: a memory that was inserted meanwhile is good. The
    operation `create` means rows that were inserted under ids of older memories, and what was made of them since.
    """

    store: str
    first: datetime
    last: datetime
    operation: Means


@dataclass(frozen=True, slots=True)
class Moment:
    """Which state of each memory is meant: the newest, without what these windows changed, or the one of a time.

    Attributes:
        as_of: The newest state that was captured at or before it, whoever made it; `None` for now.
        without: What was done by an incident. Given with `as_of`, it only says so of the current states.
    """

    as_of: datetime | None = None
    without: tuple[Window, ...] = ()


class State(NamedTuple):
    """A memory of the remote store as it is, and as it was at a `Moment`, its target.

    Attributes:
        by_incident: Whether the current state was made within one of the windows.
        target_version: `None` where the memory was not there at that moment; the rest of the target is as empty then.
        memory_type: Of the target, as all that follows.
    """

    memory_id: str
    version: int
    content_hash: str
    deleted: bool
    by_incident: bool
    target_version: int | None
    target_hash: str
    target_deleted: bool
    memory_type: str | None = None
    importance: float | None = None
    session_id: str | None = None

    @property
    def is_current(self) -> bool:
        """Whether the target is what the remote store holds now."""
        return (self.target_version, self.target_hash, self.target_deleted) == (
            self.version,
            self.content_hash,
            self.deleted,
        )

    @property
    def target(self) -> Digest:
        """What the rules of the data model are about."""
        version = self.target_version or 0
        return Digest(
            self.memory_id, version, self.target_hash, False, self.memory_type, self.importance, self.session_id
        )


@dataclass(frozen=True, slots=True)
class Wishes:
    """What somebody has asked for, and what is known of the rows here.

    Attributes:
        damage_unseen: Whether an incident is concerned that changed rows here without any trigger's firing.
    """

    include_deleted: bool = False
    overwrite_newer: bool = False
    only_missing: bool = False
    damage_unseen: bool = False


class Numbers(NamedTuple):
    """The version that a row gets; see `engine.ports.recover.Restoration`."""

    number: int
    confirmed: int
    is_new: bool


def class_of(here: Here | None, there: State, wishes: Wishes) -> PlanClass | None:
    """In which class a memory of the remote store is, beside the row here; `None`: it was on neither side then."""
    if here is None:
        return _not_here(there)
    if there.target_version is None:
        return "only_here"
    if not there.target_deleted and here.content_hash == there.target_hash != "":
        return "identical"
    if _made_by_incident(here, there, wishes):
        return "overwritten_by_incident"
    return _by_version(here, there.target_version)


def action_of(plan_class: PlanClass, here: Here | None, there: State, wishes: Wishes) -> Action | None:
    """What a recovery does with a memory of this class; `None`: it is left as it is. Nothing is ever deleted here."""
    if here is None:
        return "insert" if plan_class != "deleted" or wishes.include_deleted else None
    # A row that cannot be read cannot be kept for an undo either.
    if there.target_version is None or there.target_deleted or wishes.only_missing or not here.content_hash:
        return None
    if plan_class in ("overwritten_by_incident", "older_here"):
        return "overwrite"
    return "overwrite" if wishes.overwrite_newer and plan_class in ("newer_here", "conflicting") else None


def numbers(here: Here | None, there: State, *, refilled: bool = False) -> Numbers:
    """Which version the row gets: a state older than what the remote store holds goes forward, above both.

    Args:
        refilled: Whether it is a state that the remote store never held.
    """
    highest = max(there.version, here.version if here else 0)
    if not refilled and there.is_current and not there.deleted and highest == there.version:
        return Numbers(highest, there.version, is_new=False)
    return Numbers(highest + 1, there.version, is_new=True)


def _not_here(there: State) -> PlanClass | None:
    if there.target_version is None:
        return None
    if there.target_deleted:
        return "deleted"
    return "deleted_by_incident" if there.deleted and there.by_incident else "missing_here"


def _made_by_incident(here: Here, there: State, wishes: Wishes) -> bool:
    if there.target_deleted or not here.content_hash:
        return False
    if here.content_hash == there.content_hash:
        return there.by_incident and not there.deleted
    return wishes.damage_unseen and here.version == there.version


def _by_version(here: Here, target: int) -> PlanClass:
    """A lower number that was counted here, and not confirmed by the remote store, says nothing about age."""
    if here.version > target:
        return "newer_here"
    return "older_here" if here.version < target and here.version <= here.base else "conflicting"


def fingerprint(memory_id: str, action: Action, there: State, here: Here | None, lost: str = "") -> int:
    """What is to be done with one memory, as a number; the sum of them all, modulo 2^256, stands for a plan.

    Args:
        lost: Names of columns whose lost values come back with it.
    """
    seen = here.content_hash if here else ""
    text = f"{memory_id} {action} {there.target_version} {there.target_hash} {seen} {lost}"
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())


def windows(concerned: Iterable[Incident], before: Incident | None, now: datetime) -> tuple[Window, ...]:
    """What the incidents concerned did, as far as it is in the history.

    Args:
        before: The one whose damage is to be brought back. Only then rows that were made up after it count as damage
            too: without being asked for, nothing that is newer here is touched.
    """
    found = {
        Window(one.store, span.first, span.last, operation)
        for one in concerned
        if (operation := _OPERATIONS.get(one.kind))
        for span in one.spans or (Interval(one.restore_point, one.last_at),)
    }
    # Contents may have been changed by rows that were put in the place of deleted ones.
    found |= {Window(w.store, w.first, w.last, "create") for w in found if w.operation == "update"}
    if before and before.kind in _LOSES_ROWS:
        found.add(Window(before.store, before.restore_point, before.closed_at or now, "create"))
    return tuple(sorted(found))


def damage_unseen(concerned: Iterable[Incident]) -> bool:
    """Whether one of these incidents changed rows without any trigger's firing."""
    return any(one.kind in _UNSEEN for one in concerned)


def shape_lost(open_ones: Iterable[Incident], before: Incident | None) -> datetime | None:
    """When the table last had the shape that it should have, where an incident is concerned that took it."""
    if before is not None:
        return before.restore_point
    return min((one.restore_point for one in open_ones if one.kind in _LOSES_SHAPE), default=None)


def columns_lost(concerned: Iterable[Incident]) -> datetime | None:
    """When rows last had all their columns, where an incident is concerned that took some."""
    return min((one.restore_point for one in concerned if one.kind in _LOSES_SHAPE), default=None)


def is_in_history(incident: Incident) -> bool:
    """Whether what the incident did to memories is known memory by memory."""
    return incident.kind in _OPERATIONS


class KnownStore(NamedTuple):
    """A local store that has written to the remote store, and when it pushed first and last, where that is known.

    Attributes:
        purged_before: Of its memories' history from before this time, a purge has left only what they were then.
        place: The same for the same database, `None` where that is not known.
    """

    id: str
    begun_at: datetime | None = None
    last_push_at: datetime | None = None
    purged_before: datetime | None = None
    place: str | None = None


def stores_before(own: str | None, stores: Iterable[KnownStore], place: str | None = None) -> frozenset[str]:
    """Those that were in the place of this one, and have not pushed since it did for the first time.

    A database that was lost, or whose bookkeeping was, is another store when it is made again.

    Args:
        own: This one; `None` where the database is no local store yet.
        place: Where it is, which counts as long as the remote store has not noted it.
    """
    known = list(stores)
    here = next((store for store in known if store.id == own), None)
    if here and here.last_push_at and here.begun_at is None:
        return frozenset()
    where, begun = (here.place or place, here.begun_at) if here else (place, None)
    there = [store for store in known if where is not None and store.place == where and store.id != own]
    return frozenset(s.id for s in there if begun is None or s.last_push_at is None or s.last_push_at < begun)


def worst_loss(concerned: Iterable[Incident]) -> Incident | None:
    """Of the incidents that took memories, the one that took most."""
    return max((one for one in concerned if one.kind in _LOSES_ROWS), key=lambda one: one.rows, default=None)


def lacking(loss: Incident, known: int) -> int:
    """At least how many of the memories that an incident took the remote store does not know, though it should.

    Args:
        known: Memories that it knows, those that were deleted on purpose since it too.
    """
    return max(0, loss.rows - known)


def shortfall(planned: int, verified: int, already_there: int) -> int:
    """How many of the planned rows are neither verified nor found to be there already."""
    return max(0, planned - verified - already_there)
