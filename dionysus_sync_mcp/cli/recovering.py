"""The commands for what was destroyed, and for being ready for it: recover, undo, drill, incidents, roles, purge."""

import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer
from pydantic import BaseModel
from rich.console import Console

from dionysus_sync_mcp.cli import output, recovery_output
from dionysus_sync_mcp.cli.options import Json, Memories, Projects, Sessions, exit_unless, moment, span, texts
from dionysus_sync_mcp.cli.running import run
from dionysus_sync_mcp.domain.errors import DionysusError, InputError
from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.engine.reports import RecoveryPlan, RecoveryReport, UndoReport

if TYPE_CHECKING:
    from dionysus_sync_mcp.engine.reports import DrillReport, IncidentReport, IncidentsReport, PurgeReport
    from dionysus_sync_mcp.runtime import Runtime

MOST_INCIDENTS = 50

Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]


def recover(
    *,
    projects: Projects = None,
    sessions: Sessions = None,
    memory_ids: Memories = None,
    as_of: Annotated[
        datetime | None,
        typer.Option(parser=moment, metavar="TIME", help="Bring back the state of this time: 2026-08-01T12:00:00Z."),
    ] = None,
    before_incident: Annotated[
        UUID | None, typer.Option(metavar="ID", help="Bring back what this incident destroyed; see 'incidents'.")
    ] = None,
    include_deleted: Annotated[
        bool, typer.Option("--include-deleted", help="Also bring back what was deleted on purpose.")
    ] = False,
    overwrite_newer: Annotated[
        bool, typer.Option("--overwrite-newer", help="Also take back rows that were changed here since.")
    ] = False,
    only_missing: Annotated[
        bool, typer.Option("--only-missing", help="Overwrite nothing that is here, whatever happened to it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and change nothing.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Run the plan without asking, also where it overwrites rows.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring memories back that are missing or damaged here: first a plan, then, if you agree, the run.

    What an open incident deleted or overwrote comes back at its last good version; what was deleted on purpose stays
    deleted, and rows that were changed here since stay as they are, unless you say otherwise. No row is ever removed.
    Each row that comes back is verified. Rows that are overwritten are kept: 'undo' brings them back. Safe to repeat.

    Exits with 1 if something that was planned is not here or not verified.

    Example: dionysus-sync-mcp recover --dry-run

    Example: dionysus-sync-mcp recover --before-incident 5f0c9a1e-5d0e-5c7a-9b57-0d6a8f3b2c11

    Example: dionysus-sync-mcp recover --project shop --as-of 2026-08-01T12:00:00Z --only-missing --yes
    """
    scope = Scope(tuple(projects or ()), texts(sessions), texts(memory_ids))

    incident = str(before_incident) if before_incident else None

    async def work(runtime: "Runtime") -> RecoveryPlan | RecoveryReport:
        with output.progress() as on_progress:
            plan = await runtime.plan_recovery(
                scope,
                as_of=as_of,
                before_incident=incident,
                include_deleted=include_deleted,
                overwrite_newer=overwrite_newer,
                only_missing=only_missing,
                on_progress=on_progress,
            )
        recovery_output.show_plan(plan, _beside(as_json=as_json))
        if dry_run or not plan.is_work:
            return plan
        _ask("recover", recovery_output.question(plan), yes=yes)
        with output.progress() as on_progress:
            return await runtime.run_recovery(plan.plan_id, on_progress=on_progress)

    report = run(work, as_json=as_json, remote=True)
    if as_json:
        output.show_json(report)
    elif isinstance(report, RecoveryReport):
        recovery_output.show_recovery(report, incident)
    exit_unless(isinstance(report, RecoveryPlan) or report.complete)


def undo(
    recovery_id: Annotated[
        UUID | None, typer.Argument(help="The recovery; the last one that overwrote rows, if left out.")
    ] = None,
    *,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Bring back the rows that a recovery overwrote, as they were before it.

    Shows what it would do, and does it if you agree; where nobody can be asked it only shows, unless there is --yes.
    A row that was changed after the recovery is left alone, and rows that the recovery brought stay. Each row is
    verified. Exits with 1 if one of them could not be brought back.

    Example: dionysus-sync-mcp undo

    Example: dionysus-sync-mcp undo 6a1f4f0e-9d0c-4a53-8f0b-2d0f5f0f7c22 --yes
    """

    async def step(runtime: "Runtime", recovery: str | None, *, dry_run: bool) -> UndoReport:
        with output.progress() as on_progress:
            return await runtime.undo(recovery, dry_run=dry_run, on_progress=on_progress)

    async def work(runtime: "Runtime") -> UndoReport:
        look = await step(runtime, str(recovery_id) if recovery_id else None, dry_run=not yes)
        if yes or not look.restored or not _somebody_is_there():
            return look
        recovery_output.show_undo(look, _beside(as_json=as_json))
        _ask("undo", f"Bring {look.restored} rows back as they were before the recovery?", yes=False)
        return await step(runtime, look.recovery_id, dry_run=False)

    report = run(work, as_json=as_json, remote=True)
    _show(report, lambda: recovery_output.show_undo(report, output.stdout_console()), as_json=as_json)
    exit_unless(report.dry_run or report.complete)


def drill(*, as_json: Json = False) -> None:
    """Try a recovery out: everything is recovered into a scratch schema, compared with what is here, and thrown away.

    Changes nothing in your tables. The background does it once a day (DIONYSUS_DRILL_HOURS), and the status shows how
    the last one went. Exits with 1 if it did not pass.

    Example: dionysus-sync-mcp drill
    """

    async def work(runtime: "Runtime") -> "DrillReport":
        with output.progress() as on_progress:
            return await runtime.drill(on_progress=on_progress)

    report = run(work, as_json=as_json, remote=True)
    _show(report, lambda: recovery_output.show_drill(report), as_json=as_json)
    exit_unless(report.result == "passed")


def incidents(
    incident_id: Annotated[UUID | None, typer.Argument(help="Show this one in full.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Also those that were closed.")] = False,
    close: Annotated[UUID | None, typer.Option(metavar="ID", help="Close this one; give a --reason.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why it is closed, for whoever reads it later.")] = None,
    as_json: Json = False,
) -> None:
    """List the incidents: destruction that was seen, with what it hit, when, and who did it.

    An open incident shapes a recovery: what it deleted or overwrote comes back. Close it once the memories are back, or
    if it was meant; then what it deleted counts as deleted on purpose.

    Example: dionysus-sync-mcp incidents

    Example: dionysus-sync-mcp incidents 5f0c9a1e-5d0e-5c7a-9b57-0d6a8f3b2c11

    Example: dionysus-sync-mcp incidents --close 5f0c9a1e-5d0e-5c7a-9b57-0d6a8f3b2c11 --reason "recovered"
    """
    if (close is None) != (reason is None or not reason.strip()):
        raise typer.BadParameter("--close and --reason belong together: why is it closed?")
    if close is not None and (incident_id is not None or every):
        raise typer.BadParameter("--close names the incident by itself.")
    if incident_id is not None or close is not None:
        _one_incident(incident_id, close, (reason or "").strip(), as_json=as_json)
        return

    async def work(runtime: "Runtime") -> "IncidentsReport":
        return await runtime.incidents(open_only=not every, limit=MOST_INCIDENTS)

    report = run(work, as_json=as_json, remote=True)
    _show(report, lambda: recovery_output.show_incidents(report), as_json=as_json)


def _one_incident(incident_id: UUID | None, close: UUID | None, reason: str, *, as_json: bool) -> None:
    async def work(runtime: "Runtime") -> "IncidentReport":
        if close is not None:
            return await runtime.close_incident(str(close), reason)
        return await runtime.incident(str(incident_id))

    report = run(work, as_json=as_json, remote=True)
    _show(report, lambda: recovery_output.show_incident(report), as_json=as_json)


def purge(
    *,
    older_than: Annotated[
        timedelta | None,
        typer.Option(parser=span, metavar="SPAN", help="History older than this, a day at least: 90d, 2w, 36h."),
    ] = None,
    memory_ids: Annotated[
        list[UUID] | None, typer.Option("--memory", help="All that is kept of this memory; can be repeated.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only counted.")] = False,
    as_json: Json = False,
) -> None:
    """Remove history from the remote store for good: by age, or all that is kept of single memories.

    The only thing that ever removes anything there, for what must not be kept or has become too much. Without --yes it
    only says what it would remove. It is refused while an incident is open. What it removes cannot be recovered.

    Example: dionysus-sync-mcp purge --older-than 90d

    Example: dionysus-sync-mcp purge --memory 5f0c9a1e-5d0e-4c7a-9b57-0d6a8f3b2c11 --yes
    """
    if (older_than is None) == (not memory_ids):
        raise typer.BadParameter("give either --older-than or --memory.")

    async def work(runtime: "Runtime") -> "PurgeReport":
        with output.progress() as on_progress:
            return await runtime.purge(older_than, texts(memory_ids), dry_run=not yes, on_progress=on_progress)

    report = run(work, as_json=as_json, remote=True)
    _show(report, lambda: recovery_output.show_purge(report), as_json=as_json)


def _ask(command: str, question: str, *, yes: bool) -> None:
    if yes:
        return
    if not _somebody_is_there():
        raise InputError("nobody can be asked here", where=command, hint="Give --yes to do it without asking.")
    if not typer.confirm(question, err=True):
        raise DionysusError("it was not done", where=command, hint="Nothing was changed.")


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()


def _beside(*, as_json: bool) -> Console:
    """Where a plan goes: with JSON, stdout is for the report alone."""
    return Console(stderr=as_json, soft_wrap=True, highlight=False)


def _show(report: BaseModel, show: Callable[[], None], *, as_json: bool) -> None:
    if as_json:
        output.show_json(report)
    else:
        show()
