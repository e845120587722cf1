"""What the tools return beyond the engine's reports: shaped for a model, which reads the structured result only."""

from typing import Annotated, Literal

from pydantic import Field

from dionysus_sync_mcp.engine.reports import RecoveryPlan, RecoveryReport, Report


class Recovery(Report):
    """A plan, or what a run did."""

    phase: Annotated[
        Literal["planned", "done"], Field(description="planned: nothing was changed; done: the plan was run.")
    ]
    next_step: Annotated[str, Field(description="The one thing to do next.")]
    plan: Annotated[RecoveryPlan | None, Field(description="What a run would do; null after a run.")] = None
    report: Annotated[RecoveryReport | None, Field(description="What the run did; null after planning.")] = None


def planned(plan: RecoveryPlan) -> Recovery:
    """The reply to a call without a plan's id."""
    next_step = _how_to_run(plan) if plan.will_restore or plan.table_missing else plan.next_step
    return Recovery(phase="planned", next_step=next_step, plan=plan)


def done(report: RecoveryReport) -> Recovery:
    """The reply to a call with a plan's id."""
    return Recovery(phase="done", next_step=report.next_step, report=report)


def _how_to_run(plan: RecoveryPlan) -> str:
    return (
        f"Nothing was changed. Show the user the counts, then call recover_from_remote with plan_id={plan.plan_id!r} "
        f"to bring back {plan.will_restore} memories; the plan can be run until {plan.expires_at:%H:%M} UTC."
    )
