"""What the tools return beyond the engine's reports: shaped for a model, which reads the structured result only."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from dionysus_sync_mcp.domain.errors import RecoveryShortfall
from dionysus_sync_mcp.engine.reports import IncidentReport, RecoveryPlan, RecoveryReport, Report

NAMED_REASONS = 3


class Recovery(Report):
    """A plan, or what a run did."""

    phase: Annotated[
        Literal["planned", "done", "declined"],
        Field(description="planned, declined: nothing was changed; done: the plan was run."),
    ]
    next_step: Annotated[str, Field(description="The one thing to do next.")]
    plan: Annotated[RecoveryPlan | None, Field(description="What a run would do; null after a run.")] = None
    report: Annotated[RecoveryReport | None, Field(description="What the run did; null after planning.")] = None


def planned(plan: RecoveryPlan, *, can_ask: bool) -> Recovery:
    """The reply to a call without a plan's id.

    Args:
        can_ask: Whether the client can put a question before the user.
    """
    next_step = _how_to_run(plan, can_ask=can_ask) if plan.is_work else plan.next_step
    return Recovery(phase="planned", next_step=next_step, plan=plan)


def done(report: RecoveryReport, incidents: Sequence[IncidentReport]) -> Recovery:
    """The reply to a call with a plan's id.

    Args:
        incidents: Those that are open, newest first.

    Raises:
        RecoveryShortfall: Not all of what was planned is here and verified.
    """
    if not report.complete:
        raise shortfall(report)
    # Only a person closes an incident; until then every status names it.
    close = "'dionysus-sync-mcp incidents --close {} --reason recovered' closes the incident, if the user is content."
    next_step = f"{report.next_step} {close.format(incidents[0].id)}" if incidents else report.next_step
    return Recovery(phase="done", next_step=next_step, report=report)


def declined(plan_id: str, action: Literal["accept", "decline", "cancel"]) -> Recovery:
    """The reply where the user was asked and did not agree; `accept` is a form that was sent with a no in it."""
    happened = "The question was closed without an answer" if action == "cancel" else "The user said no"
    next_step = (
        f"{happened}: nothing was changed. Ask the user how to go on. The plan can still be run until it expires "
        f"(plan_id={plan_id!r}, the user is asked again); a plan with only_missing=true overwrites nothing."
    )
    return Recovery(phase="declined", next_step=next_step)


def shortfall(report: RecoveryReport) -> RecoveryShortfall:
    """What a run that did not bring all of it back is told as."""
    missing = report.planned - report.verified - report.already_there
    reasons = "; ".join(f"{one.memory_id}: {one.reason or ''}" for one in report.refused[:NAMED_REASONS])
    named = f" ({reasons})" if reasons else ""
    return RecoveryShortfall(
        f"{missing} of {report.planned} planned memories are not here or not as they were: {report.restored} restored, "
        f"{report.verified} verified, {report.already_there} already there, {report.refused_count} refused{named}",
        where=f"recovery {report.recovery_id}".rstrip(),
        hint=report.next_step,
    )


def _how_to_run(plan: RecoveryPlan, *, can_ask: bool) -> str:
    brings = f"to bring back {plan.will_restore} memories; the plan can be run until {plan.expires_at:%H:%M} UTC."
    run = f"Nothing was changed. Show the user the counts, then call recover_from_remote with plan_id={plan.plan_id!r} "
    if not plan.will_overwrite:
        return f"{run}{brings}"
    if can_ask:
        return f"{run}{brings} It overwrites {plan.will_overwrite} rows that are here: the user is asked before."
    return (
        f"Nothing was changed. This plan overwrites {plan.will_overwrite} rows that are here, and this client cannot "
        "ask the user whether it may: plan again with only_missing=true, or let the user run 'dionysus-sync-mcp "
        "recover' in a terminal with the same choice."
    )
