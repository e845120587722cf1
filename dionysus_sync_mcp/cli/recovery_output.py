"""What is shown of incidents, recoveries, drills and purges."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dionysus_sync_mcp.cli.output import (
    WIDEST,
    drill_line,
    for_people,
    print_incident,
    show_next,
    show_warnings,
    stdout_console,
    who,
)
from dionysus_sync_mcp.domain.text import line
from dionysus_sync_mcp.engine.reports import (
    DrillReport,
    IncidentReport,
    IncidentsReport,
    PurgeReport,
    RecoveryPlan,
    RecoveryReport,
    UndoReport,
)


def show_plan(plan: RecoveryPlan, console: Console) -> None:
    """Memories by class, with examples."""
    show_warnings(console, plan.warnings)
    if plan.as_of is not None:
        console.print(f"The state of {plan.as_of:%Y-%m-%d %H:%M:%S %Z}:")
    if plan.before_incident is not None:
        console.print(f"Without what incident {plan.before_incident} did:")
    table = Table("memories", "count", "for example")
    for name, count in plan.counts.items():
        if count:
            shown = "; ".join(line(example.excerpt, 40) for example in plan.examples.get(name, [])[:2])
            table.add_row(name.replace("_", " "), str(count), Text(shown))
    if table.row_count:
        console.print(table)
    if plan.table_missing:
        console.print("The table `memories` is missing and would be created again.")
    console.print(f"{plan.will_restore} memories would be brought back; {_touched(plan)}")


def _touched(plan: RecoveryPlan) -> str:
    if not plan.will_overwrite:
        return "nothing that is here would be touched."
    return (
        f"{plan.will_overwrite} of them overwrite rows that are here. What these hold is kept, and "
        "'dionysus-sync-mcp undo' brings it back."
    )


def question(plan: RecoveryPlan) -> str:
    """What is asked before a plan is run."""
    if plan.will_overwrite:
        return f"Bring {plan.will_restore} memories back now, overwriting {plan.will_overwrite} rows that are here?"
    return f"Bring {plan.will_restore} memories back now?"


def show_recovery(report: RecoveryReport, before_incident: str | None) -> None:
    """What came back, and whether each row was verified.

    Args:
        before_incident: The one whose damage is repaired by it.
    """
    console = stdout_console()
    show_warnings(console, report.warnings)
    console.print(
        f"planned {report.planned}, restored {report.restored}, verified {report.verified}, "
        f"already there {report.already_there}, refused {report.refused_count}, invalid {report.invalid_count} "
        f"({report.duration_ms / 1000:.1f} s)"
    )
    if report.overwritten:
        undo = f"'dionysus-sync-mcp undo {report.recovery_id}'"
        console.print(f"overwritten {report.overwritten}; {undo} brings back what they held")
    for example in (*report.refused, *report.invalid):
        console.print(Text(f"{example.memory_id}: {line(example.reason or '', WIDEST)}"))
    show_next(console, report.next_step)
    if before_incident and report.complete:
        close = f"'dionysus-sync-mcp incidents --close {before_incident} --reason recovered'"
        console.print(f"  If all is well: {close}.")


def show_undo(report: UndoReport, console: Console) -> None:
    """What an undo did, or would do."""
    show_warnings(console, report.warnings)
    done = "would be brought back" if report.dry_run else "brought back, verified"
    console.print(
        f"recovery {report.recovery_id} overwrote {report.overwritten} rows: {report.restored} {done}; "
        f"{report.changed_since} changed since, {report.missing} not here any more, "
        f"{report.already_undone} brought back before"
    )
    show_next(console, report.next_step)


def show_drill(report: DrillReport) -> None:
    """How the drill went, and what did not come back as it is here."""
    console = stdout_console()
    show_warnings(console, report.warnings)
    console.print(Text(drill_line(report), "green" if report.result == "passed" else "bold red"))
    for example in report.examples:
        console.print(Text(f"{example.memory_id}: {line(example.reason or '', WIDEST)}"))
    show_next(console, report.next_step)


def show_incidents(report: IncidentsReport) -> None:
    """Two lines for each incident: a table would cut the ids, which are there to be copied."""
    console = stdout_console()
    show_warnings(console, report.warnings)
    for one in report.incidents:
        print_incident(console, one)
    if not report.incidents:
        console.print("No incident.")
    show_next(console, report.next_step)


def show_incident(one: IncidentReport) -> None:
    """All that is on record of it."""
    console = stdout_console()
    console.print(Text(line(one.summary, WIDEST), "bold"))
    facts = Table(show_header=False, box=None)
    for name, value in _facts(one):
        facts.add_row(name, Text(line(value, 2 * WIDEST)))
    console.print(facts)
    if one.closed_at is None:
        console.print(f"→ 'dionysus-sync-mcp recover --before-incident {one.id}' shows what can be brought back.")


def _facts(one: IncidentReport) -> Iterator[tuple[str, str]]:
    yield "id", one.id
    yield "kind", one.kind.replace("_", " ")
    yield "seen", f"{one.detected_at:%Y-%m-%d %H:%M:%S %Z}"
    yield "good before", one.restore_point.isoformat()
    yield "went on until", one.last_at.isoformat()
    yield "memories", str(one.rows)
    if who(one):
        yield "by", who(one)
    if one.statement:
        yield "statement", one.statement
    if one.closed_at:
        yield "closed", f"{one.closed_at:%Y-%m-%d %H:%M:%S %Z}: {one.closed_reason or ''}"


def show_purge(report: PurgeReport) -> None:
    """What was removed for good, or would be."""
    console = stdout_console()
    show_warnings(console, report.warnings)
    done = "would be removed" if report.dry_run else "removed for good"
    console.print(
        f"{done}: {report.versions} old versions, {report.tombstones} deleted memories with their history, "
        f"{report.undo_images} rows kept for an undo ({report.duration_ms / 1000:.1f} s)"
    )
    for example in report.memories:
        console.print(Text(f"{example.memory_id}: {line(for_people(example.reason or ''), WIDEST)}"))
    show_next(console, report.next_step)
