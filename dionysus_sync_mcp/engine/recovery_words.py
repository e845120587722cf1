"""Words of a plan and of a recovery's report: what there is to know of it, and what to do next."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dionysus_sync_mcp.domain.destruction import Incident
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.domain.recovery_plan import is_in_history
from dionysus_sync_mcp.domain.text import defused, line
from dionysus_sync_mcp.engine.reports import Example
from dionysus_sync_mcp.engine.survey import EXAMPLES, Survey

EXCERPT = 80


@dataclass(frozen=True, slots=True)
class Stores:
    """This local store among those that write to the same remote store.

    Attributes:
        own: Its id; `None` where the database is no local store yet.
        known: Whether the remote store knows it.
        before: Of the others, those in whose place it is.
        left_out: Memories of stores that a plan is not about.
        purged_before: Of the history from before this time, a purge has left only what memories were then.
    """

    own: str | None
    known: bool
    others: frozenset[str]
    before: frozenset[str] = frozenset()
    left_out: int = 0
    purged_before: datetime | None = None

    @property
    def meant(self) -> tuple[str, ...]:
        """Those that a plan is about; none mean all."""
        if self.others == self.before or not (self.known or self.before):
            return ()
        return (*([self.own] if self.own else []), *sorted(self.before))

    def concerns(self, store: str) -> bool:
        """Whether what happened to that store is this one's business."""
        return not self.meant or store in self.meant


def example(memory: RemoteMemory, reason: str | None) -> Example:
    """A memory as it is shown. What somebody wrote into the remote store by hand may be no text."""
    project = defused(str(memory.source_project), EXCERPT) if memory.source_project else None
    excerpt = line(str(memory.content or ""), EXCERPT)
    return Example(memory_id=memory.id, project=project, excerpt=excerpt, reason=defused(reason) if reason else None)


def held_back(number: int) -> list[str]:
    """Of memories whose newest state waits."""
    if not number:
        return []
    return [f"{number} memories are left out: their newest state waits to be pushed. Call sync_now, then plan again."]


def plan_advice(survey: Survey, plan_id: str, *, include_deleted: bool, more_lost: bool = False) -> str:
    """What to do with a plan.

    Args:
        more_lost: Whether something beside memories may be gone, which a warning or a field of the plan names.
    """
    if survey.held_back and not survey.chosen:
        return "Call sync_now, so that what waits is in the remote store, and plan again."
    if survey.overwrites:
        return (
            f"Run this plan by calling again with plan_id={plan_id}. It overwrites {survey.overwrites} rows that are "
            "here; what they hold now is kept for an undo."
        )
    if survey.chosen:
        return f"Run this plan by calling again with plan_id={plan_id}. Nothing that is here will be touched."
    if more_lost:
        return (
            "No memory is missing. What else was lost (sessions, projects and references, or parts of the table) comes "
            f"back where it is not here: run this plan by calling again with plan_id={plan_id}."
        )
    if survey.counts["deleted"] and not include_deleted:
        return "Nothing is missing but what was deleted here; to bring that back too, plan with include_deleted=true."
    return "Nothing is missing here; there is nothing to do."


def plan_warnings(survey: Survey, *, include_deleted: bool) -> list[str]:
    """What a plan leaves as it is, and what is odd about what it brings."""
    counts, warnings = survey.counts, held_back(survey.held_back)
    if counts["deleted"] and not include_deleted:
        warnings.append(f"{counts['deleted']} memories were deleted here and stay deleted in this plan.")
    differing = sum(counts[name] for name in ("older_here", "newer_here", "conflicting", "overwritten_by_incident"))
    if left := differing - survey.overwrites:
        warnings.append(f"{left} rows here differ from what would be brought back; this plan leaves them as they are.")
    if survey.deleted_since:
        warnings.append(
            f"{survey.deleted_since} of the memories that come back were deleted on purpose since that time."
        )
    if survey.refilled:
        warnings.append(
            f"{survey.refilled} memories have lost what they had in columns that an incident took: it comes back as it "
            "was before it, beside what they hold now."
        )
    if counts["invalid"]:
        warnings.append(f"{counts['invalid']} memories break a rule of the data model; each is reported.")
    if survey.unreadable:
        named = ", ".join(survey.unreadable[:EXAMPLES])
        number = len(survey.unreadable)
        warnings.append(f"{number} rows here cannot be made JSON, so they are not in the remote store: {named}.")
    return warnings


def shape_warnings(lacking: Sequence[str]) -> list[str]:
    """Of parts of the table that an incident took."""
    if not lacking:
        return []
    parts = defused("; ".join(lacking))
    return [f"The table lacks what it had before an incident, which a run adds again: {parts}."]


def definition_warnings(damaged: int) -> list[str]:
    """Of definitions of tables that somebody has changed by hand."""
    if not damaged:
        return []
    return [
        f"{damaged} of the tables' definitions in the remote store cannot be read: a table that has to be made again "
        "is made by an older one, or by none."
    ]


def store_warnings(stores: "Stores") -> list[str]:
    """Of other local stores that write to the same remote store."""
    warnings = []
    if not stores.meant and not stores.known and len(stores.others) > 1:
        warnings.append(
            f"The remote store does not know this local store, and holds the memories of {len(stores.others)} others: "
            "this plan is about those of all of them."
        )
    if stores.before:
        warnings.append(
            f"This plan is also about the memories of {len(stores.before)} local stores that were in the place of this "
            "one before it."
        )
    if stores.left_out > 0:
        number = len(stores.others) - len(stores.before)
        warnings.append(f"{stores.left_out} memories that {number} other local stores wrote are left out of this plan.")
    return warnings


def purge_warnings(stores: "Stores", moment: datetime | None) -> list[str]:
    """Of a time whose history is not whole any more."""
    if moment is None or stores.purged_before is None or moment >= stores.purged_before:
        return []
    return [
        f"History from before {iso(stores.purged_before)} was purged: what memories were at {iso(moment)} is not known "
        "of all of them."
    ]


def incident_warnings(before: Incident | None, survey: Survey) -> list[str]:
    """Of the incident whose damage is to be brought back."""
    if before is None:
        return []
    warnings = []
    if before.closed_at:
        warnings.append("This incident is closed: whatever was made of it since counts as newer.")
    if is_in_history(before) and not survey.chosen:
        warnings.append(
            "Nothing that this incident did is what a memory holds now. An undo of its recovery counts as newer: "
            f"then plan as_of {iso(before.restore_point)} with overwrite_newer."
        )
    if not is_in_history(before):
        warnings.append(
            "What this incident did to single memories is not on record: what was captured after it counts as good. "
            f"For the state before it in every memory, plan as_of {iso(before.restore_point)} with overwrite_newer."
        )
    return warnings


def lack_warnings(lost: int, *, empty: bool = False) -> list[str]:
    """Of what the remote store cannot bring back.

    Args:
        lost: Memories that an incident took, and that it does not know.
        empty: Whether it holds nothing, although there was a table here once.
    """
    if lost:
        return [f"At least {lost} memories that an incident took are not in the remote store: they cannot come back."]
    return ["The remote store holds no memories: nothing can come back from it."] if empty else []


def iso(time: datetime) -> str:
    """A time as the arguments take it."""
    return time.isoformat()
