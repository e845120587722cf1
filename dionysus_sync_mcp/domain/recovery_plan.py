"""Decides what a recovery does with each memory, and whether what it did is what was planned."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from dionysus_sync_mcp.domain.memory import Digest

PlanClass = Literal["missing_here", "older_here", "identical", "newer_here", "conflicting", "deleted"]


class Window(NamedTuple):
    """The span in which an incident changed memories of one local store; both ends belong to it.

    What it did by other means than this operation does not count: a memory that was inserted meanwhile is good.
    """

    store: str
    first: datetime
    last: datetime
    operation: Literal["delete", "update"]


@dataclass(frozen=True, slots=True)
class Moment:
    """Which state of each memory is meant: the newest, without what these windows changed, or the one of a time.

    Attributes:
        as_of: The newest state that was captured at or before it; `None` for now.
    """

    as_of: datetime | None = None
    without: tuple[Window, ...] = ()


def classify(remote: Digest, local: Mapping[str, Digest]) -> PlanClass:
    """In which class a memory of the remote store is, beside the local rows."""
    here = local.get(remote.id)
    if here is None:
        return "deleted" if remote.deleted else "missing_here"
    if here.version != remote.version:
        return "older_here" if here.version < remote.version else "newer_here"
    return "identical" if here.content_hash == remote.content_hash and not remote.deleted else "conflicting"


def is_restored(plan_class: PlanClass, *, include_deleted: bool) -> bool:
    """Whether a recovery brings a memory of this class back: nothing that is here is touched."""
    return plan_class == "missing_here" or (include_deleted and plan_class == "deleted")


def shortfall(planned: int, verified: int, already_there: int) -> int:
    """How many of the planned rows are neither verified nor found to be there already."""
    return max(0, planned - verified - already_there)
