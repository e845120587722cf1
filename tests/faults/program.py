"""The program as a process on given stores: started, killed, stopped and looked at by its pid."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import anyio
import asyncpg
import psutil
from anyio.abc import Process

from tests.faults.failpoints import Step, reached, steps_of
from tests.faults.proxy import Proxy
from tests.integration.stores import plain_client
from tests.server.wire import Wire
from tests.services.local_store import NOBODY
from tests.services.waiting import until

CHECKOUT = Path(__file__).parents[2]
SOON = 60.0  # seconds; for what takes an instant on a machine with nothing else to do
WAITING = (
    "SELECT count(*) FILTER (WHERE parked_at IS NULL) AS waiting, count(*) FILTER (WHERE parked_at IS NOT NULL)"
    " AS parked FROM dionysus_sync.sync_queue"
)


@dataclass(frozen=True, slots=True)
class Stores:
    """What the program is started on.

    Attributes:
        home: A folder of the test's, for what the program writes, and for its output.
        settings: Further environment variables.
    """

    database_url: str
    neo4j_uri: str
    home: Path
    ollama_url: str = NOBODY
    settings: Mapping[str, str] = field(default_factory=dict)

    def through(self, *, local: Proxy | None = None, remote: Proxy | None = None) -> "Stores":
        """The same stores, with proxies before them."""
        return replace(
            self,
            database_url=local.through(self.database_url) if local else self.database_url,
            neo4j_uri=remote.through(self.neo4j_uri) if remote else self.neo4j_uri,
        )

    def with_settings(self, **settings: str) -> "Stores":
        """The same stores, and further environment variables."""
        return replace(self, settings={**self.settings, **settings})

    @property
    def environment(self) -> dict[str, str]:
        """Of the process: ours without its settings, and these."""
        ours = {n: v for n, v in os.environ.items() if not n.startswith(("DIONYSUS_", "NEO4J_", "PG", "OLLAMA_"))}
        return {
            **ours,
            "DATABASE_URL": self.database_url,
            "NEO4J_URI": self.neo4j_uri,
            "OLLAMA_URL": self.ollama_url,
            "HOME": str(self.home),
            "CLAUDE_PROJECT_DIR": str(self.home),
            "DIONYSUS_POLL_MS": "20",
            **self.settings,
        }


@dataclass(frozen=True, slots=True)
class Failpoint:
    """How the program is run with its steps on record; see tests/faults/failpoints.py.

    Attributes:
        at: The step at which it gets the signal, such as `before:acknowledge#2` or `after:COMMIT(write_memories)`;
            empty to record only.
        sends: The signal; SIGSTOP leaves it standing at the step until `Program.resume`.
        both_active: Whether the locks that let only one process push at a time are passed over.
    """

    at: str = ""
    sends: signal.Signals = signal.SIGKILL
    both_active: bool = False

    def command(self, trace: Path) -> list[str]:
        """What stands before the program's own arguments."""
        at = ["--at", self.at] if self.at else []
        active = ["--both-active"] if self.both_active else []
        name = self.sends.name.removeprefix("SIG")
        return ["-m", "tests.faults.failpoints", "--trace", str(trace), *at, "--signal", name, *active, "--"]


class Ended(NamedTuple):
    """How a run ended.

    Attributes:
        status: Exit status; of a process that a signal ended, the negative number of the signal.
        steps: What it did, if that was on record.
        reached: Whether its failpoint is the last thing that it came to.
    """

    status: int
    output: str
    steps: list[Step]
    reached: bool


class Program:
    """A running program. Everything is done to its own pid only."""

    def __init__(self, process: Process, home: Path, number: int, failpoint: Failpoint | None) -> None:
        self.process = process
        self.pid = process.pid
        self._log = log_path(home, number)
        self._trace = trace_path(home, number)
        self._failpoint = failpoint
        self._seen = psutil.Process(self.pid)
        self._wire: Wire | None = None

    @property
    def wire(self) -> Wire:
        """Its stdin and stdout, spoken to line by line; of an MCP server only."""
        if self._wire is None:
            self._wire = Wire(self.process)
        return self._wire

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def trace(self) -> str:
        """Its steps so far, a line each, if they are on record."""
        return self._trace.read_text(encoding="utf-8") if self._trace.exists() else ""

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.process.returncode is None

    @property
    def memory(self) -> int:
        """Resident memory, in bytes."""
        return int(self._seen.memory_info().rss)

    def children(self) -> list[int]:
        """The pids of the processes that it has started and that still run."""
        return [child.pid for child in self._seen.children(recursive=True)]

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def kill_9(self) -> None:
        """End it with SIGKILL, and see that this is what ended it."""
        self.send(signal.SIGKILL)
        assert await self.ended() == -signal.SIGKILL

    async def stop(self) -> None:
        """Stop it in its tracks; returns when it stands still."""
        self.send(signal.SIGSTOP)
        await until(self.stopped, what="the program stands still", seconds=SOON)

    async def stopped(self) -> bool:
        """Whether it stands still."""
        return bool(self._seen.status() == psutil.STATUS_STOPPED)

    def resume(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send(signal.SIGTERM)

    async def close_stdin(self) -> None:
        """As a client does that goes away."""
        assert self.process.stdin is not None
        await self.process.stdin.aclose()

    async def ended(self, seconds: float = SOON) -> int:
        """Wait for the end; the exit status, or the negative number of the signal.

        Raises:
            TimeoutError: It still runs.
        """
        with anyio.fail_after(seconds):
            return await self.process.wait()

    async def at_failpoint(self, seconds: float = SOON) -> None:
        """Wait until it has come to its failpoint.

        Raises:
            TimeoutError: It has not; the message has the end of its log.
        """
        point = self._failpoint
        assert point is not None

        async def there() -> bool:
            return reached(self.trace, point.at)

        try:
            await until(there, what=f"the program comes to {point.at}", seconds=seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; {self.log[-2000:]}") from None


def log_path(home: Path, number: int) -> Path:
    """Where the output of the n-th program in a home goes."""
    return home / f"program-{number}.log"


def trace_path(home: Path, number: int) -> Path:
    """Where the steps of the n-th program in a home go."""
    return home / f"program-{number}.trace"


@asynccontextmanager
async def started(stores: Stores, *arguments: str, failpoint: Failpoint | None = None) -> AsyncIterator[Program]:
    """The program with these arguments (none: the MCP server over stdio), killed at the end if it still runs."""
    number = len(list(stores.home.glob("program-*.log"))) + 1
    module = failpoint.command(trace_path(stores.home, number)) if failpoint else ["-m", "dionysus_sync_mcp"]
    pipe = subprocess.DEVNULL if arguments else subprocess.PIPE
    with log_path(stores.home, number).open("wb") as log:
        process = await anyio.open_process(
            [sys.executable, *module, *arguments],
            stdin=pipe,
            stdout=log if arguments else pipe,
            stderr=log,
            cwd=CHECKOUT,
            env=stores.environment,
        )
    async with process:
        try:
            yield Program(process, stores.home, number, failpoint)
        finally:
            if process.returncode is None:
                process.kill()  # ends one that is stopped, too


@asynccontextmanager
async def worker(stores: Stores, *, failpoint: Failpoint | None = None) -> AsyncIterator[Program]:
    """The command `worker`."""
    async with started(stores, "worker", failpoint=failpoint) as program:
        yield program


@asynccontextmanager
async def mcp_server(stores: Stores, *, failpoint: Failpoint | None = None) -> AsyncIterator[Program]:
    """The MCP server over stdio, hands shaken; `program.wire` calls its tools."""
    async with started(stores, failpoint=failpoint) as program:
        await program.wire.greet()
        yield program


async def run(stores: Stores, *arguments: str, failpoint: Failpoint | None = None, seconds: float = 2 * SOON) -> Ended:
    """Run a command to its end, however it ends."""
    async with started(stores, *arguments, failpoint=failpoint) as program:
        status = await program.ended(seconds)
        at = failpoint.at if failpoint else ""
        return Ended(status, program.log, steps_of(program.trace), bool(at) and reached(program.trace, at))


async def waiting(database_url: str) -> tuple[int, int]:
    """Queue entries that wait, and those that are parked, as a plain client counts them."""
    async with plain_client(database_url) as client:
        found = await client.fetchrow(WAITING)
    assert found is not None
    return found["waiting"], found["parked"]


async def drained(database_url: str, seconds: float = SOON) -> None:
    """Wait until no queue entry waits; parked ones may stay.

    Raises:
        TimeoutError: Some still do.
    """
    await until(_whether(database_url), what="the queue is empty", seconds=seconds)


def _whether(database_url: str) -> Callable[[], Awaitable[bool]]:
    async def empty() -> bool:
        try:
            return (await waiting(database_url))[0] == 0
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False  # the server is on its way back

    return empty
