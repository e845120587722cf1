"""What a person, or with `--json` a program, sees: results on stdout, progress and errors on stderr.

Contents of memories are shown as plain text without anything that acts on a terminal.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dionysus_sync_mcp.domain.errors import DionysusError
from dionysus_sync_mcp.domain.text import line, visible
from dionysus_sync_mcp.engine.reports import (
    DrillReport,
    IncidentReport,
    InitReport,
    QueryAnswer,
    ServiceReport,
    SessionReport,
    StatusReport,
    SyncReport,
    VerifyReport,
)

if TYPE_CHECKING:
    from dionysus_sync_mcp.embedded.services import EmbeddedStatus
    from dionysus_sync_mcp.embedded.services import Progress as EmbeddedProgress

WIDEST = 200
# The engine's advice names the tools that an agent has; a person has these commands.
COMMANDS = {
    "Call recover_from_remote without plan_id": "Run 'dionysus-sync-mcp recover'",
    "call sync_now with retry_parked=true": "run 'dionysus-sync-mcp sync --retry-parked'",
    "call sync_now with verify=true": "run 'dionysus-sync-mcp sync --verify'",
    "call sync_now again with a longer timeout": "run it again with a longer --timeout",
    "call sync_now": "run 'dionysus-sync-mcp sync'",
    "call get_sync_status": "run 'dionysus-sync-mcp status'",
    "Give next_cursor as cursor to get more.": "",
    "give next_cursor of an answer": "give --cursor from an answer",
    "recover_from_remote without plan_id": "'dionysus-sync-mcp recover'",
    "recover_from_remote": "'dionysus-sync-mcp recover'",
    "get_sync_status": "'dionysus-sync-mcp status'",
    "sync_now": "'dionysus-sync-mcp sync'",
    "query_cross_project": "'dionysus-sync-mcp query'",
    "Run the same without the dry run": "Run the same with --yes",
    "Call 'dionysus-sync-mcp": "Run 'dionysus-sync-mcp",
    "call 'dionysus-sync-mcp": "run 'dionysus-sync-mcp",
}
_RECOVER_WITH = re.compile(r"recover_from_remote with (?P<name>[a-z_]+)=(?P<value>[\w-]+)(, without plan_id,)?")
_ARGUMENT = re.compile(r"\b(?P<name>include_deleted|overwrite_newer|only_missing)=true\b")


class OnProgress(Protocol):
    """Takes how much is done, of how much, and what is being done."""

    async def __call__(self, done: int, total: int | None, text: str, /) -> None: ...


def show_json(report: BaseModel | Sequence[BaseModel]) -> None:
    """The report's JSON, alone on stdout."""
    if isinstance(report, BaseModel):
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")
    else:
        sys.stdout.write(json.dumps([one.model_dump(mode="json") for one in report], indent=2) + "\n")


def show_error(error: DionysusError, *, as_json: bool) -> None:
    """What, where and hint: one line on stderr, or an object on stdout."""
    if as_json:
        fields = {"kind": type(error).__name__, "what": error.what, "where": error.where, "hint": error.hint}
        sys.stdout.write(json.dumps({"error": {**fields, "retryable": error.retryable}}, indent=2) + "\n")
    else:
        say(for_people(f"error: {error}"))


def say(text: str) -> None:
    """A line on stderr, for people."""
    sys.stderr.write(for_people(text) + "\n")


def for_people(advice: str) -> str:
    """The engine's advice with commands in the place of tools, and options in that of arguments."""
    advice = _RECOVER_WITH.sub(lambda found: f"'dionysus-sync-mcp recover {_option(**found.groupdict())}'", advice)
    advice = _ARGUMENT.sub(lambda found: _option(found["name"], "true"), advice)
    for tool, command in COMMANDS.items():
        advice = advice.replace(tool, command)
    return visible(advice).rstrip()


def _option(name: str, value: str) -> str:
    option = f"--{name.replace('_', '-')}"
    return option if value == "true" else f"{option} {value}"


def stdout_console() -> Console:
    """Where results for people go."""
    return Console(soft_wrap=True, highlight=False)


@contextmanager
def progress() -> Iterator[OnProgress]:
    """A bar on stderr while it is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bars:
        task = bars.add_task("", total=None)

        async def on_progress(done: int, total: int | None, text: str, /) -> None:
            bars.update(task, completed=done, total=total, description=Text(line(text, 60)).plain)

        yield on_progress


@contextmanager
def embedded_progress() -> "Iterator[Callable[[EmbeddedProgress], None]]":
    """A bar on stderr for each embedded service while it is fetched or started; without a terminal, lines."""
    if not sys.stderr.isatty():
        yield _phase_lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:

        def on_progress(told: "EmbeddedProgress") -> None:
            if told.service not in tasks:
                tasks[told.service] = bars.add_task(told.service)
            busy = told.phase != "ready"
            task = tasks[told.service]
            bars.update(task, completed=told.done, total=told.total or None, description=told.message, visible=busy)

        yield on_progress


def _phase_lines() -> "Callable[[EmbeddedProgress], None]":
    phases: dict[str, str] = {}

    def on_progress(told: "EmbeddedProgress") -> None:
        if phases.get(told.service) != told.phase and told.phase not in {"waiting", "ready"}:
            say(f"{told.service}: {told.message}")
        phases[told.service] = told.phase

    return on_progress


def show_init(report: InitReport) -> None:
    """The steps; with a dry run the SQL itself, fit to be reviewed or piped."""
    if report.dry_run:
        for step in report.steps:
            sys.stdout.write(f"-- {step.name}\n{step.sql.rstrip()}\n\n")
    else:
        for step in report.steps:
            sys.stdout.write(f"done: {step.name}\n")
        if report.backfilled:
            sys.stdout.write(f"{report.backfilled} rows that were there before are queued.\n")
    say(for_people(report.next_step))


def show_status(report: StatusReport) -> None:
    """Incidents first, then warnings, each service, the stores and the next step."""
    console = stdout_console()
    for one in report.incidents:
        print_incident(console, one)
    if (more := report.open_incidents - len(report.incidents)) > 0:
        console.print(f"{more} more: 'dionysus-sync-mcp incidents' lists them.")
    told = [one.summary for one in report.incidents]
    show_warnings(console, [text for text in report.warnings if not any(summary in text for summary in told)])
    console.print(_services(report.services))
    facts = Table(show_header=False, box=None)
    for name, value in _facts(report):
        facts.add_row(name, Text(value))
    console.print(facts)
    show_next(console, report.next_step)


def _facts(report: StatusReport) -> Iterator[tuple[str, str]]:
    yield "unsynced changes", _or_unknown(report.exposure.unsynced)
    if report.exposure.oldest_seconds is not None:
        yield "oldest of them", f"{report.exposure.oldest_seconds:.0f} s"
    if report.local is not None and not report.local.initialised:
        yield "local memories", "not counted: this database is not protected yet"
    elif report.local is not None:
        yield "local memories", f"{report.local.memories}, capture {'on' if report.local.capture_installed else 'OFF'}"
        queue = report.local.queue
        yield "queue", f"{queue.queued} queued, {queue.parked} parked, {queue.failed} of these failed for good"
    if report.remote is not None:
        yield "remote memories", f"{report.remote.live}, {report.remote.tombstones} tombstones"
        yield "history", f"{report.remote.versions} versions"
        yield "without vector", str(report.remote.without_vector)
    if report.worker is not None:
        yield "worker", report.worker.state
    if report.last_check is not None:
        check = report.last_check
        yield "last check", f"{check.finished_at:%Y-%m-%d %H:%M:%S}, {check.kind}: {check.result}"
    if report.last_drill is not None:
        yield "last drill", drill_line(report.last_drill)
    if report.statistics is not None:
        done = report.statistics
        yield "last 24 hours", f"{done.pushed} changes in {done.pushes} pushes, {done.conflicts} conflicts"
    yield "version", report.version


def print_incident(console: Console, one: IncidentReport) -> None:
    """What happened, and below it the id with when and who."""
    state = f"closed {one.closed_at:%Y-%m-%d %H:%M}" if one.closed_at else "OPEN"
    console.print(Text(f"{state}  {line(one.summary, WIDEST)}", "bold" if one.closed_at else "bold red"))
    by = f"  by {line(who(one), WIDEST)}" if who(one) else ""
    console.print(Text(f"    {one.id}  {one.detected_at:%Y-%m-%d %H:%M:%S}  {one.rows} memories{by}"))


def who(one: IncidentReport) -> str:
    """Who did it, as far as PostgreSQL tells."""
    pid = f"pid {one.pid}" if one.pid else None
    return ", ".join(part for part in (one.role, one.application_name, one.client_address, pid) if part)


def drill_line(report: DrillReport) -> str:
    """A drill in one line."""
    return (
        f"{report.result}, {report.finished_at:%Y-%m-%d %H:%M:%S}: {report.recovered} recovered, "
        f"{report.verified} verified, {report.missing} missing, {report.different} different, "
        f"{report.left_out} left out ({report.duration_ms / 1000:.1f} s)"
    )


def show_doctor(report: StatusReport) -> None:
    """Each service: reached, version, what works less well, and what to do about it."""
    console = stdout_console()
    console.print(_services(report.services))
    for service in report.services:
        for fault in service.degraded:
            console.print(Text(f"{service.service}: {fault}"))
        if service.hint:
            console.print(Text(f"{service.service}: {for_people(service.hint)}"))
    show_warnings(console, report.warnings)
    show_next(console, report.next_step)


def _services(services: Sequence[ServiceReport]) -> Table:
    table = Table("service", "reached", "version", "latency", "what is wrong")
    for one in services:
        latency = f"{one.latency_ms:.0f} ms" if one.latency_ms is not None else ""
        reached = Text("yes", "green") if one.up else Text("no", "bold red")
        table.add_row(one.service, reached, one.version or "", latency, Text(line(one.error or "", WIDEST)))
    return table


def show_sync(report: SyncReport) -> None:
    """What was pushed and what is left."""
    console = stdout_console()
    show_warnings(console, report.warnings)
    outcomes = ", ".join(f"{count} {name}" for name, count in report.outcomes.items() if count)
    console.print(
        Text(f"{report.result}: {report.pushed} pushed ({outcomes or 'nothing new'}), {report.parked} parked")
    )
    if report.retried or report.rebuilt:
        console.print(Text(f"tried again: {report.retried}; queued to be sent again: {report.rebuilt}"))
    if report.failed_for_good:
        console.print(Text(f"failed for good: {report.failed_for_good}"))
    if report.check is not None:
        console.print(Text(f"compared: {report.check.result}, {report.check.differences} differences"))
    console.print(Text(f"still waiting: {_or_unknown(report.remaining)}; vectors made: {report.embedded}"))
    show_next(console, report.next_step)


def show_query(answer: QueryAnswer) -> None:
    """The hits, best first."""
    console = stdout_console()
    show_warnings(console, answer.warnings)
    for i, hit in enumerate(answer.items, 1):
        origin = " · ".join(
            part for part in (hit.project, hit.memory_type, hit.created_at, ", ".join(hit.tags)) if part
        )
        console.print(Text(f"{i}. {line(origin, WIDEST)}  [{hit.score:.2f}, {' and '.join(hit.matched)}]", "bold"))
        console.print(Text(visible(hit.content)))
        console.print(Text(f"   {hit.memory_id}", "dim"))
    show_next(console, answer.next_step)
    if answer.next_cursor:
        console.print(Text(f"next page: --cursor {answer.next_cursor}"))


def show_verify(report: VerifyReport) -> None:
    """Differences by class, with examples, and what is or would be done about each."""
    console = stdout_console()
    show_warnings(console, report.warnings)
    if report.counts:
        table = Table("difference", "memories", "mended", "what a repair does", "for example")
        for name, count in report.counts.items():
            shown = "; ".join(line(example.excerpt, 40) for example in report.examples.get(name, [])[:2])
            mended = "" if report.dry_run else str(report.repaired.get(name, 0))
            table.add_row(name.replace("_", " "), str(count), mended, report.actions.get(name, ""), Text(shown))
        console.print(table)
    console.print(
        f"{report.result}: {report.local_memories} memories here, {report.remote_memories} there, "
        f"{report.left_out} left out ({report.kind}, {report.duration_ms / 1000:.1f} s)"
    )
    show_next(console, report.next_step)


def show_sessions(sessions: Sequence[SessionReport]) -> None:
    """A line for each session, and its summary below: a table would cut the ids."""
    console = stdout_console()
    for one in sessions:
        ended = f"{one.ended_at:%Y-%m-%d %H:%M}" if one.ended_at else "open"
        times = f"{one.started_at:%Y-%m-%d %H:%M} to {ended}"
        console.print(Text(f"{one.session_id}  {times}  {line(one.project, 60)}"))
        if one.summary:
            console.print(Text(f"    {line(one.summary, WIDEST)}"))
    if not sessions:
        console.print("No session is on record yet.")


def show_embedded(status: "EmbeddedStatus") -> None:
    """One row for each embedded service, and where they can be reached."""
    table = Table("service", "version", "state", "pid", "data")
    for one in status.services:
        table.add_row(one.service, one.version or "", one.phase, str(one.pid or ""), f"{one.disk_bytes / 1e6:.0f} MB")
    console = stdout_console()
    console.print(table)
    for one in status.services:
        if one.url is not None:
            console.print(Text(f"{one.service}: {one.url}"))
    console.print(Text(f"home: {status.home}"))


def _or_unknown(count: int | None) -> str:
    return "unknown" if count is None else str(count)


def show_warnings(console: Console, warnings: Sequence[str]) -> None:
    """A line each, before everything else."""
    for warning in warnings:
        console.print(Text(f"! {for_people(warning)}", "bold yellow"))


def show_next(console: Console, next_step: str) -> None:
    """The one thing to do next, after everything else."""
    console.print(Text(f"→ {for_people(next_step)}"))
