"""Decides in which way a memory differs between the two stores, and what a repair does about it.

The classes are those of anti-entropy in systems that compare two stores: only one side has it, one side is older, both
claim the same version. What a memory's change that still waits explains is no drift; the caller leaves it out.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, NamedTuple

DriftClass = Literal[
    "missing_there",
    "older_there",
    "deleted_there",
    "deleted_here",
    "missing_here",
    "older_here",
    "different",
    "corrupt_there",
    "duplicate_there",
    "unversioned_there",
]
Action = Literal["send", "send_above", "delete_again", "restore", "pull", "decide", "keep_here", "merge", "version"]
Side = Literal["local", "remote"]
Reason = Literal["sweep", "wiped", "gap", "person"]

_EPOCH = datetime.fromisoformat("0001-01-01T00:00:00+00:00")

ACTIONS: dict[DriftClass, str] = {
    "missing_there": "the row is queued and pushed again",
    "older_there": "the row is queued and pushed again",
    "deleted_there": "the row, which is live here, is queued and brings the memory back to life in the remote store",
    "deleted_here": "the delete is queued again; the remote store keeps the content and its history",
    "missing_here": "the row is restored from the remote store and verified",
    "older_here": "the remote's version replaces the row, which is kept in the remote's history",
    "different": "the later one wins, this store's if both are as old; the other one is kept in the remote's history",
    "corrupt_there": "the row here is pushed above it; one that is not here can only be reported",
    "duplicate_there": "the highest version stays the memory, the others become versions of it",
    "unversioned_there": "the missing version is written from the memory itself",
}
_PREFERRED: dict[tuple[Side, DriftClass], str] = {
    ("local", "missing_here"): (
        "this side counts: the memory becomes a tombstone in the remote store; its content and history stay there, "
        "and 'dionysus-sync-mcp recover --include-deleted' brings it back"
    ),
    (
        "local",
        "older_here",
    ): "this side counts: the row is pushed above the remote's version, which stays in the history",
    (
        "local",
        "different",
    ): "this side counts: the row is pushed above the remote's version, which stays in the history",
    ("local", "deleted_there"): "this side counts: the row brings the memory back to life in the remote store",
    ("remote", "different"): "that side counts: its content replaces the row, which is kept in the remote's history",
}
_REPAIRS: dict[DriftClass, Action] = {
    "missing_there": "send",
    "older_there": "send",
    "deleted_there": "send",
    "deleted_here": "delete_again",
    "missing_here": "restore",
    "older_here": "pull",
    "different": "decide",
    "corrupt_there": "send_above",
    "duplicate_there": "merge",
    "unversioned_there": "version",
}
# What the program mends unasked: only what brings this store's own changes to the remote, and never touches a row here.
_UNASKED: dict[Reason, frozenset[DriftClass]] = {
    "person": frozenset(),
    "sweep": frozenset({"missing_there", "older_there"}),
    "wiped": frozenset({"missing_there", "older_there", "deleted_there", "deleted_here"}),
    "gap": frozenset({"missing_there", "older_there", "deleted_there", "deleted_here", "different"}),
}


class Here(NamedTuple):
    """A row of this store. Its hash is empty where it cannot be made JSON.

    Attributes:
        base: The version that the remote last confirmed to this store; 0 if it never did.
    """

    version: int
    content_hash: str
    base: int = 0


class There(NamedTuple):
    """A memory of the remote store, and the local store that wrote it last."""

    version: int
    content_hash: str
    deleted: bool
    origin: str | None


class Facts(NamedTuple):
    """What both stores say of one memory. `deletion`: the version of the delete that the remote confirmed here."""

    here: Here | None
    there: There | None
    deletion: int | None = None


def classify(facts: Facts, store: str, *, rolled_back: bool = False) -> DriftClass | None:
    """In which way the two sides differ; `None` where they agree, or nothing can be said.

    Args:
        store: This store: what another one wrote last, and is not here, is not its business.
        rolled_back: Whether this database went back in time. Then its numbers count from an older state: a memory that
            was changed on both sides since is older here, however often it was changed here.
    """
    here, there = facts.here, facts.there
    if here is None:
        return _not_here(there, facts.deletion, store)
    if not here.content_hash:
        return None
    if there is None:
        return "missing_there"
    if there.deleted:
        return "deleted_there"
    if here.version != there.version:
        newer_here = here.version > there.version and not (rolled_back and changed_on_both(here, there))
        return "older_there" if newer_here else "older_here"
    return None if here.content_hash == there.content_hash else "different"


def changed_on_both(here: Here, there: There) -> bool:
    """Whether the remote has gone on from the version that this store's row was changed from."""
    return here.version > here.base and there.version > here.base


def _not_here(there: There | None, deletion: int | None, store: str) -> DriftClass | None:
    if there is None or there.deleted or there.origin != store:
        return None
    return "deleted_here" if deletion is not None and deletion >= there.version else "missing_here"


def confirmed(first: Facts, second: Facts) -> bool:
    """Whether two looks, one after the other, saw the same: a change on its way moves at least one side meanwhile."""
    return first == second


def repair_of(drift: DriftClass, prefer: Side | None, reason: Reason = "person") -> Action | None:
    """What a repair does about a class; `None`: it leaves it, since nobody has asked for it.

    Args:
        prefer: Which side counts, where a person has decided on it, since this database went back in time.
        reason: `sweep`: the regular look. `wiped`: the remote store lost memories or was replaced by an older one.
            `gap`: changes were not captured for a while. `person`: somebody has asked for the repair.
    """
    if reason != "person":
        return _unasked_repair(drift, reason)
    if prefer == "remote" and drift == "different":
        return "pull"
    if prefer == "local" and drift in ("different", "older_here", "deleted_there"):
        return "send_above"
    if prefer == "local" and drift == "missing_here":
        return "delete_again"
    return _REPAIRS[drift]


def words_of(drift: DriftClass, prefer: Side | None) -> str:
    """What a repair does about a class, a clause for people."""
    return _PREFERRED.get((prefer, drift), ACTIONS[drift]) if prefer else ACTIONS[drift]


def _unasked_repair(drift: DriftClass, reason: Reason) -> Action | None:
    if drift not in _UNASKED[reason]:
        return None
    return "keep_here" if drift == "different" else _REPAIRS[drift]


def winner(here_updated_at: str | None, there_updated_at: str | None, facts: Facts, store: str | None) -> Side:
    """Which of two contents of one version counts: the later one.

    Of two as old, that of the greater hash where another store wrote the one there, as in a push; else the one here,
    which is a change that bypassed the triggers.

    Args:
        store: This store; `None` where changes are known to have gone by the triggers, under whichever identity.
    """
    here, there = _time(here_updated_at), _time(there_updated_at)
    if here != there:
        return "remote" if there > here else "local"
    if store is None or facts.here is None or facts.there is None or facts.there.origin in (None, store):
        return "local"
    return "remote" if facts.there.content_hash > facts.here.content_hash else "local"


def left(found: Mapping[DriftClass, int], repaired: Mapping[DriftClass, int]) -> int:
    """How many differences are left after a repair."""
    return sum(max(0, number - repaired.get(drift, 0)) for drift, number in found.items())


def _time(text: str | None) -> datetime:
    try:
        time = datetime.fromisoformat(text) if text else _EPOCH
    except ValueError:
        return _EPOCH
    return time if time.tzinfo else time.replace(tzinfo=_EPOCH.tzinfo)
