"""The commands, one short function each."""

import logging
import sys
from datetime import datetime
from enum import StrEnum
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import BaseModel, Field
from rich.console import Console

from dionysus_sync_mcp.cli import output, recovering, roles
from dionysus_sync_mcp.cli.options import Json, Projects, Sessions, exit_unless, texts
from dionysus_sync_mcp.cli.running import PATIENCE_SECONDS, embedded_home, run, run_plain, until_signal
from dionysus_sync_mcp.domain.errors import DionysusError
from dionysus_sync_mcp.engine.ports.query import Filters
from dionysus_sync_mcp.engine.query import MOST_ITEMS, QueryRequest
from dionysus_sync_mcp.engine.sessions import MOST_LISTED
from dionysus_sync_mcp.engine.verify import LIMIT
from dionysus_sync_mcp.settings import Settings

if TYPE_CHECKING:
    from dionysus_sync_mcp.demo import DemoReport
    from dionysus_sync_mcp.embedded.services import EmbeddedStatus
    from dionysus_sync_mcp.engine.reports import SessionReport, SyncReport, VerifyReport
    from dionysus_sync_mcp.runtime import Runtime

DISTRIBUTION = "dionysus-sync-mcp"

ABOUT = (
    "Keeps a coding agent's memories safe: every change of the PostgreSQL table `memories` is captured and pushed to "
    "Neo4j with its history, from where it can be searched and brought back.\n\n"
    "Without a command it serves MCP over stdio, for Claude Code. Where the stores are comes from the environment: "
    "DATABASE_URL, NEO4J_URI, NEO4J_USER, NEO4J_PASSWORD, OLLAMA_URL. Both stores default to `embedded:`, which runs "
    "them on this machine.\n\n"
    "Exit codes: 0 done, 1 not all of it could be done, 2 wrong use or settings."
)

app = typer.Typer(
    help=ABOUT,
    epilog="First steps: dionysus-sync-mcp doctor, then init --dry-run, init, and status.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
session_app = typer.Typer(help="The session that memories belong to.", no_args_is_help=True)
embedded_app = typer.Typer(help="The PostgreSQL and the Neo4j that the program runs by itself.", no_args_is_help=True)
app.add_typer(session_app, name="session")
app.add_typer(embedded_app, name="embedded")


class MemoryType(StrEnum):
    """The types of memories; typer takes no list of a `Literal`."""

    EPISODIC = "episodic"
    SEMANTIC = "semantic"
    PROCEDURAL = "procedural"
    STRATEGIC = "strategic"


class Preferred(StrEnum):
    """The sides; typer takes no list of a `Literal`."""

    REMOTE = "remote"
    LOCAL = "local"


Prefer = Annotated[
    Preferred | None, typer.Option(help="For a database that was restored from an old backup: the side that counts.")
]


class WorkerEnd(BaseModel):
    """How the worker ended."""

    ended_by: str | None = Field(description="The signal.")


@app.callback()
def _options(
    _version: Annotated[
        bool | None,
        typer.Option("--version", help="Print the version.", is_eager=True, callback=lambda v: _version_of(v)),
    ] = None,
) -> None: ...


def _version_of(wanted: bool | None) -> None:
    if wanted:
        sys.stdout.write(f"{DISTRIBUTION} {version(DISTRIBUTION)}\n")
        raise typer.Exit


@app.command()
def init(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the SQL and change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Adopt the database: install the capture on `memories`, creating the table if there is none.

    An existing table keeps its rows and its columns. Safe to repeat.

    Example: dionysus-sync-mcp init --dry-run > review.sql
    """
    report = run(lambda runtime: runtime.init(dry_run=dry_run), as_json=as_json)
    if as_json:
        output.show_json(report)
    else:
        output.show_init(report)


@app.command()
def worker(*, as_json: Json = False) -> None:
    """Push changes in the background without an MCP client, until it gets SIGTERM or Ctrl-C.

    For a service manager: ExecStart=dionysus-sync-mcp worker
    """

    async def work(runtime: "Runtime") -> str | None:
        logging.getLogger("dionysus_sync_mcp").setLevel(runtime.settings.dionysus_log_level)

        async def announced() -> None:
            output.say("The worker runs; Ctrl-C ends it.")
            await runtime.run_worker()

        return await until_signal(announced)

    ended_by = run(work, as_json=as_json)
    if as_json:
        output.show_json(WorkerEnd(ended_by=ended_by))


@app.command()
def status(*, as_json: Json = False) -> None:
    """Show how well the memories are protected now: what would be lost, what is away, what to do next."""
    report = run(lambda runtime: runtime.status(PATIENCE_SECONDS), as_json=as_json)
    if as_json:
        output.show_json(report)
    else:
        output.show_status(report)


@app.command()
def doctor(*, as_json: Json = False) -> None:
    """Check each service: reached, version, what works less well, what to do. Exits with 1 if one is away."""
    report = run(lambda runtime: runtime.doctor(PATIENCE_SECONDS), as_json=as_json)
    if as_json:
        output.show_json(report)
    else:
        output.show_doctor(report)
    readable = report.local is not None and report.remote is not None
    exit_unless(readable and all(service.up for service in report.services))


@app.command()
def sync(
    *,
    timeout: Annotated[float, typer.Option(min=1, help="Stop after this many seconds.")] = 600,
    embed: Annotated[bool, typer.Option(help="Also give vectors to the memories that lack one.")] = True,
    retry_parked: Annotated[
        bool, typer.Option("--retry-parked", help="Also try again what the remote store has refused.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Also compare both stores in full afterwards.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Also send every local memory again.")] = False,
    as_json: Json = False,
) -> None:
    """Push every captured change now. Exits with 1 if something is left, or if the stores differ.

    Example: dionysus-sync-mcp sync --no-embed

    Example: dionysus-sync-mcp sync --rebuild --verify
    """

    async def work(runtime: "Runtime") -> "SyncReport":
        with output.progress() as on_progress:
            return await runtime.sync(
                timeout=timeout,
                embed=embed,
                retry_parked=retry_parked,
                verify=verify,
                rebuild=rebuild,
                on_progress=on_progress,
            )

    report = run(work, as_json=as_json, remote=True)
    if as_json:
        output.show_json(report)
    else:
        output.show_sync(report)
    exit_unless(report.result == "success")


@app.command()
def query(
    text: Annotated[str, typer.Argument(help="A question, or words to look for.")],
    *,
    projects: Projects = None,
    sessions: Sessions = None,
    memory_types: Annotated[list[MemoryType] | None, typer.Option("--type", help="Only this type.")] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="Only memories with this tag, or another one.")
    ] = None,
    after: Annotated[datetime | None, typer.Option(help="Only memories made after this local time.")] = None,
    before: Annotated[datetime | None, typer.Option(help="Only memories made before this local time.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_ITEMS, help="How many hits at most.")] = 10,
    cursor: Annotated[str | None, typer.Option(help="The next page's cursor, from the page before.")] = None,
    detailed: Annotated[bool, typer.Option("--detailed", help="Show more of each content.")] = False,
    as_json: Json = False,
) -> None:
    """Search the memories of all projects by words and by meaning. Exits with 1 if no store could be searched.

    Example: dionysus-sync-mcp query "why did we drop Redis?" --project shop --after 2026-08-01
    """
    filters = Filters(
        tuple(projects or ()),
        texts(sessions),
        tuple(one.value for one in memory_types or ()),
        tuple(tags or ()),
        _aware(after),
        _aware(before),
    )
    request = QueryRequest(text, filters, limit=limit, cursor=cursor, detailed=detailed)
    answer = run(lambda runtime: runtime.query(request), as_json=as_json, remote=True)
    if as_json:
        output.show_json(answer)
    else:
        output.show_query(answer)
    exit_unless(answer.searched != "nothing")


@app.command()
def verify(
    *,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also make every hash anew from its content, and look at the history.")
    ] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Say what a repair would do; with --yes, do it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Carry the repair out.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Repair at most so many memories of each class.")] = LIMIT,
    prefer: Prefer = None,
    as_json: Json = False,
) -> None:
    """Compare both stores, memory by memory, and mend what differs. Exits with 1 if a difference is left.

    Without --repair it only looks, and with --repair alone it says what it would do. A repair removes nothing: what it
    overwrites on either side stays in the remote store's history. Changes that wait to be pushed are no difference.

    After a restore from an old backup pushes stop until somebody says which side counts. --prefer remote takes over
    what the remote store has; memories that were deleted after the backup come back live, since the backup holds them.
    --prefer local keeps what is here; memories that only the remote store has become tombstones there.

    Example: dionysus-sync-mcp verify

    Example: dionysus-sync-mcp verify --deep --repair --yes

    Example: dionysus-sync-mcp verify --repair --prefer remote --yes
    """
    if (yes or prefer) and not repair:
        raise typer.BadParameter("--yes and --prefer say how to repair: give --repair too.")
    _verify(deep=deep, repair=repair, yes=yes, limit=limit, prefer=prefer, as_json=as_json)


def _verify(*, deep: bool, repair: bool, yes: bool, limit: int, prefer: Preferred | None, as_json: bool) -> None:
    async def work(runtime: "Runtime") -> "VerifyReport":
        with output.progress() as on_progress:
            return await runtime.verify(
                "deep" if deep else "full",
                repair=repair,
                limit=limit,
                prefer=prefer.value if prefer else None,
                dry_run=not yes,
                on_progress=on_progress,
            )

    report = run(work, as_json=as_json, remote=True)
    if as_json:
        output.show_json(report)
    else:
        output.show_verify(report)
    exit_unless(report.result == "clean")


for command in (
    recovering.recover,
    recovering.undo,
    recovering.incidents,
    recovering.drill,
    recovering.purge,
    roles.roles,
):
    app.command()(command)


@session_app.command("show")
def session_show(*, as_json: Json = False) -> None:
    """Show the session of this folder; one begins if none is going on."""
    _show_session(run(_current, as_json=as_json, session=True), as_json=as_json)


@session_app.command("list")
def session_list(
    *,
    limit: Annotated[int, typer.Option(min=1, max=MOST_LISTED, help="How many at most, the newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """List sessions, the newest first."""
    sessions = run(lambda runtime: runtime.list_sessions(limit), as_json=as_json)
    if as_json:
        output.show_json(sessions)
    else:
        output.show_sessions(sessions)


@session_app.command("end")
def session_end(
    *,
    summary: Annotated[str | None, typer.Option(help="What the session was about.")] = None,
    as_json: Json = False,
) -> None:
    """End the session of this folder; the next activity starts another one.

    Example: dionysus-sync-mcp session end --summary "Moved the shop to PostgreSQL 18"
    """

    async def work(runtime: "Runtime") -> "SessionReport":
        session = await runtime.end_session(summary)
        if session is None:
            raise DionysusError("none is going on in this folder", where="session")
        return session

    _show_session(run(work, as_json=as_json), as_json=as_json)


async def _current(runtime: "Runtime") -> "SessionReport":
    session = runtime.session()
    if session is None:
        raise DionysusError("there is none", where="session")
    return session


def _show_session(session: "SessionReport", *, as_json: bool) -> None:
    if as_json:
        output.show_json(session)
    else:
        output.show_sessions([session])


@embedded_app.command("up")
def embedded_up(*, as_json: Json = False) -> None:
    """Start PostgreSQL and Neo4j, fetching what is missing, and keep them running until `embedded down`."""

    async def work(settings: Settings) -> "EmbeddedStatus":
        from dionysus_sync_mcp.embedded import services

        home = embedded_home(settings)
        with output.embedded_progress() as on_progress:
            await services.up(home, frozenset({"postgres", "neo4j"}), settings.dionysus_neo4j_version, on_progress)
        return await services.status(home)

    _show_embedded(run_plain(work, as_json=as_json), as_json=as_json)


@embedded_app.command("down")
def embedded_down(*, as_json: Json = False) -> None:
    """Stop PostgreSQL and Neo4j; their data stays."""

    async def work(settings: Settings) -> "EmbeddedStatus":
        from dionysus_sync_mcp.embedded import services

        return await services.down(embedded_home(settings))

    _show_embedded(run_plain(work, as_json=as_json), as_json=as_json)


@embedded_app.command("status")
def embedded_status(*, as_json: Json = False) -> None:
    """Show what there is and what runs; starts nothing."""

    async def work(settings: Settings) -> "EmbeddedStatus":
        from dionysus_sync_mcp.embedded import services

        return await services.status(embedded_home(settings))

    _show_embedded(run_plain(work, as_json=as_json), as_json=as_json)


def _show_embedded(found: "EmbeddedStatus", *, as_json: bool) -> None:
    if as_json:
        output.show_json(found)
    else:
        output.show_embedded(found)


@app.command()
def demo(*, as_json: Json = False) -> None:
    """Show the whole way on real text and real servers of its own: captured, pushed, destroyed, recovered, found."""

    async def work(settings: Settings) -> "DemoReport":
        from dionysus_sync_mcp.demo import run as run_demo

        return await run_demo(settings, Console(stderr=as_json), output.embedded_progress)

    report = run_plain(work, as_json=as_json)
    if as_json:
        output.show_json(report)
    exit_unless(report.complete)


def _aware(time: datetime | None) -> datetime | None:
    return time.astimezone() if time is not None else None
