"""The demo: the main job on real text, with real servers, seen from outside through the MCP server that users start.

It has data of its own in a folder that it removes at the end; only the programs are those of the user's home.
"""

import ast
import json
import shutil
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any
from uuid import NAMESPACE_URL, UUID, uuid5

import anyio
import asyncpg
from mcp import Client, StdioServerParameters
from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table

from dionysus_sync_mcp.adapters.statements import load_sql
from dionysus_sync_mcp.domain.errors import RecoveryShortfall
from dionysus_sync_mcp.domain.text import clause
from dionysus_sync_mcp.embedded.home import Home
from dionysus_sync_mcp.embedded.processes import Process, this_process
from dionysus_sync_mcp.embedded.services import Lease, Progress, acquire, default_home, down
from dionysus_sync_mcp.engine.tasks import first_error
from dionysus_sync_mcp.settings import Settings

MEMORIES = 3000
MADE_UP = 5
MOST_OF_ONE_PACKAGE = 200
SHORTEST, LONGEST = 60, 2000
QUESTIONS = 5
PATIENCE_SECONDS = 60

Bars = Callable[[], AbstractContextManager[Callable[[Progress], None]]]


class DemoStep(BaseModel):
    """One row of the table."""

    what: Annotated[str, Field(description="What was done.")]
    result: Annotated[str, Field(description="What came of it.")]
    seconds: Annotated[float, Field(description="How long it took.")]


class DemoReport(BaseModel):
    """What the demo showed."""

    complete: Annotated[bool, Field(description="Whether nothing was lost and everything asked for was found.")]
    memories: Annotated[int, Field(description="Memories written.")]
    lost: Annotated[int, Field(description="Memories that did not come back as they were.")]
    steps: Annotated[list[DemoStep], Field(description="What happened, in order.")]


class _Story:
    """Runs the steps one after the other and keeps what came of them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.steps: list[DemoStep] = []

    async def step(self, what: str, work: Callable[[], Awaitable[str]]) -> None:
        """Do one step, say it, and note its time."""
        with self.console.status(what):
            started = time.monotonic()
            result = await work()
        step = DemoStep(what=what, result=result, seconds=round(time.monotonic() - started, 2))
        self.steps.append(step)
        self.console.print(f"[bold]{what}[/bold]: {result} ({step.seconds:.2f} s)", highlight=False)

    def table(self) -> Table:
        """All steps."""
        table = Table("Step", "Result", "Seconds", title="What happened")
        table.columns[2].justify = "right"
        for step in self.steps:
            table.add_row(step.what, step.result, f"{step.seconds:.2f}")
        return table


class _Demo:
    """The demo's steps, on a plain database client and an MCP client."""

    def __init__(self, database: "asyncpg.Connection[asyncpg.Record]", client: Client) -> None:
        self._database = database
        self._client = client
        self.images: dict[UUID, str] = {}
        self._made_up: frozenset[UUID] = frozenset()
        self._destroyed_at = 0.0
        self._incident_id = ""
        self._plan_id = ""
        self.lost = 0
        self.found = 0

    async def remember(self) -> str:
        """Write docstrings as memories, as any client would: project = package, session = module."""
        await self._wait_until_protected()
        rows = [
            (text, "semantic", package, uuid5(NAMESPACE_URL, module), ["docstring", package])
            for package, module, text in docstrings(Path(sysconfig.get_paths()["purelib"]))
        ]
        await self._database.copy_records_to_table(
            "memories", records=rows, columns=["content", "memory_type", "source_project", "session_id", "tags"]
        )
        self.images = await self._read_images()
        return f"{len(rows)} docstrings of {len({row[2] for row in rows})} packages"

    async def sync(self) -> str:
        """Wait until every change is in the remote store."""
        report = await self._patiently("sync_now", lambda reply: reply["result"] != "queued", timeout_seconds=120)
        _expect(report["result"] == "success" and report["remaining"] == 0, f"sync_now: {report['next_step']}")
        return f"{report['result']}, nothing left in the queue"

    async def status(self) -> str:
        """Ask how well the memories are protected."""
        report = await self._call("get_sync_status")
        _expect(report["remote"]["live"] == len(self.images), "the remote store does not hold every memory")
        return f"{report['remote']['live']} memories in the remote store, {report['exposure']['unsynced']} unsynced"

    async def destroy(self) -> str:
        """What an agent is known to have done, by a plain client. The SQL is named nowhere that an agent reads."""
        statements = load_sql()
        await self._database.execute(statements["demo_destruction"])
        self._destroyed_at = time.monotonic()
        made_up = await self._database.fetch(statements["demo_made_up"], MADE_UP)
        self._made_up = frozenset(row["id"] for row in made_up)
        return f"the table is gone with every row, and a new one has {len(made_up)} made-up rows"

    async def notice(self) -> str:
        """The status says what happened, first."""
        incidents = (await self._patiently("get_sync_status", lambda reply: bool(reply["incidents"])))["incidents"]
        _expect(bool(incidents), f"the incident was not seen within {PATIENCE_SECONDS} seconds")
        seconds = time.monotonic() - self._destroyed_at
        self._incident_id = incidents[0]["id"]
        return f"seen and told within {seconds:.1f} s: {clause(incidents[0]['summary'])}"

    async def plan(self) -> str:
        """Plan the recovery of what the incident destroyed; changes nothing."""
        plan = (await self._call("recover_from_remote", before_incident=self._incident_id))["plan"]
        _expect(plan["will_restore"] == len(self.images), f"the plan names {plan['will_restore']} memories")
        _expect(not plan["will_overwrite"], f"the plan overwrites {plan['will_overwrite']} rows")
        self._plan_id = plan["plan_id"]
        return f"would restore {plan['will_restore']} memories and overwrite nothing"

    async def recover(self) -> str:
        """Run the plan."""
        report = (await self._call("recover_from_remote", plan_id=self._plan_id))["report"]
        _expect(report["verified"] == len(self.images), f"{report['verified']} hashes were verified")
        return f"{report['restored']} restored, {report['verified']} hashes verified"

    async def compare(self) -> str:
        """Compare every column of every row with what was there before, without the product's help."""
        now = await self._read_images()
        self.lost = sum(now.get(memory_id) != image for memory_id, image in self.images.items())
        _expect(not self.lost, f"{self.lost} of {len(self.images)} memories are not as they were")
        _expect(
            now.keys() == self.images.keys() | self._made_up, "rows are here that nobody wrote, or made-up ones went"
        )
        kept = f"the {len(self._made_up)} made-up ones are still here, since a recovery removes nothing"
        return f"{len(self.images)} rows are as they were, column by column; {kept}"

    async def ask(self) -> str:
        """Ask for memories of several packages by some of their words; each has to be among the hits."""
        wanted = _spread([(i, json.loads(image)) for i, image in self.images.items()], QUESTIONS)
        for memory_id, row in wanted:
            reply = await self._patiently(
                "query_cross_project",
                lambda reply: reply["searched"] in {"words", "words and meaning"},
                query=row["content"][:SHORTEST],
                limit=20,
            )
            self.found += str(memory_id) in {item["memory_id"] for item in reply["items"]}
        _expect(self.found == len(wanted), f"{self.found} of {len(wanted)} questions found their memory")
        projects = {row["source_project"] for _, row in wanted}
        return f"{self.found} of {len(wanted)} questions found their memory, across {len(projects)} projects"

    async def _wait_until_protected(self) -> None:
        report = await self._patiently("get_sync_status", _is_protected)
        _expect(_is_protected(report), f"the local store is not protected after {PATIENCE_SECONDS} seconds")

    async def _patiently(
        self, tool: str, enough: Callable[[dict[str, Any]], bool], **arguments: object
    ) -> dict[str, Any]:
        """The reply that is enough, or the last one: a store that was just started may answer late."""
        reply = await self._call(tool, **arguments)
        with anyio.move_on_after(PATIENCE_SECONDS):
            while not enough(reply):
                reply = await self._call(tool, **arguments)
        return reply

    async def _call(self, tool: str, **arguments: object) -> dict[str, Any]:
        result = await self._client.call_tool(tool, arguments)
        _expect(not result.is_error, str(getattr(result.content[0], "text", "")) if result.content else tool)
        structured: dict[str, Any] = result.structured_content or {}
        return structured

    async def _read_images(self) -> dict[UUID, str]:
        return {r["id"]: r["image"] for r in await self._database.fetch(load_sql()["demo_images"])}


async def run(settings: Settings, console: Console, progress: Bars) -> DemoReport:
    """The whole demo; prints each step as it happens, and the table.

    Args:
        progress: Shows how far the embedded services are.

    Raises:
        RecoveryShortfall: A memory was lost, or a step did not do what it promises.
        EmbeddedError: The embedded services could not be fetched or started.
    """
    story = _Story(console)
    folder = settings.dionysus_home or default_home()
    async with _servers(folder, settings, progress) as (home, lease):
        database = await asyncpg.connect(lease.database_url)
        try:
            with first_error():  # the client's own tasks would put a failed step into a group
                async with Client(_server(home, settings)) as client:
                    demo = _Demo(database, client)
                    await _tell(story, demo)
        finally:
            await database.close()
    console.print(story.table())
    console.print(_epilogue(folder), highlight=False, soft_wrap=True)
    return DemoReport(complete=not demo.lost, memories=len(demo.images), lost=demo.lost, steps=story.steps)


def _epilogue(home: Path) -> str:
    """What stays, and what to do next."""
    program = Path(sys.executable).with_name("dionysus-sync-mcp")
    return (
        f"The demo's data is gone again; the programs stay in {home / 'programs'} for the next time.\n"
        f"For Claude Code: claude mcp add --scope user dionysus-sync -- {program}"
    )


async def _tell(story: _Story, demo: _Demo) -> None:
    await story.step("Docstrings become memories", demo.remember)
    await story.step("sync_now", demo.sync)
    await story.step("get_sync_status", demo.status)
    await story.step("An agent destroys the table", demo.destroy)
    await story.step("get_sync_status shows the incident", demo.notice)
    await story.step("recover_from_remote plans before_incident", demo.plan)
    await story.step("recover_from_remote runs", demo.recover)
    await story.step("Every row is compared", demo.compare)
    await story.step("query_cross_project", demo.ask)


@asynccontextmanager
async def _servers(folder: Path, settings: Settings, progress: Bars) -> AsyncIterator[tuple[Path, Lease]]:
    """A home of the demo's own inside the user's, and its servers; stopped and removed at the end."""
    for left in _left_over(folder):
        await _remove(left)
    home = _demo_home(folder)
    try:
        with progress() as show:
            lease = await acquire(home, frozenset({"postgres", "neo4j"}), settings.dionysus_neo4j_version, show)
        yield home, lease
    finally:
        with anyio.CancelScope(shield=True):
            await _remove(home)


def _demo_home(folder: Path) -> Path:
    """A new home inside the user's, with the same programs. Its name says which process it belongs to."""
    users = Home.at(folder)
    users.make()
    own = this_process()
    home = Path(tempfile.mkdtemp(prefix=f"demo-{own.start}-{own.pid}-", dir=folder))
    # For root, PostgreSQL runs as another user, who has to get through.
    home.chmod(0o755)
    (home / "programs").symlink_to(users.programs, target_is_directory=True)
    return home


def _left_over(folder: Path) -> list[Path]:
    """What demos that were killed left in the user's home."""
    return [home for home in folder.glob("demo-*-*-*") if not _owner(home).alive]


def _owner(home: Path) -> Process:
    start, pid, _ = home.name.removeprefix("demo-").rsplit("-", 2)
    return Process(pid=int(pid), start=start)


async def _remove(home: Path) -> None:
    await down(home)
    shutil.rmtree(home, ignore_errors=True)


def _server(home: Path, settings: Settings) -> StdioServerParameters:
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "dionysus_sync_mcp"],
        env={
            "DATABASE_URL": "embedded:",
            "NEO4J_URI": "embedded:",
            "OLLAMA_URL": settings.ollama_url,
            "DIONYSUS_HOME": str(home),
            "DIONYSUS_NEO4J_VERSION": settings.dionysus_neo4j_version,
            "DIONYSUS_PROJECT": "demo",
            "DIONYSUS_SESSION_FILE": str(home / ".claude-session-id"),
            "DIONYSUS_LOG_LEVEL": "ERROR",
        },
    )


def docstrings(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Package, module and text of docstrings of the packages installed in `folder`, at most `MEMORIES`."""
    packages = sorted(p for p in folder.iterdir() if (p / "__init__.py").exists())
    yield from islice(chain.from_iterable(_docstrings_in(folder, package) for package in packages), MEMORIES)


def _docstrings_in(folder: Path, package: Path) -> Iterator[tuple[str, str, str]]:
    files = ((file, ".".join(file.relative_to(folder).with_suffix("").parts)) for file in sorted(package.rglob("*.py")))
    found = ((package.name, module, text) for file, module in files for text in _docstrings_of(file))
    return islice(found, MOST_OF_ONE_PACKAGE)


def _docstrings_of(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = (ast.get_docstring(node) or "").replace("\x00", "")
            if SHORTEST <= len(text) <= LONGEST:
                yield text


def _is_protected(status: dict[str, Any]) -> bool:
    return status["local"] is not None and bool(status["local"]["capture_installed"])


def _spread(rows: list[tuple[UUID, dict[str, Any]]], count: int) -> list[tuple[UUID, dict[str, Any]]]:
    step = max(1, len(rows) // count)
    return rows[::step][:count]


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise RecoveryShortfall(what.rstrip("."), where="demo", hint="Run 'dionysus-sync-mcp doctor'.")
