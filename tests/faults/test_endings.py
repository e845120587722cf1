"""The program is told to end while a push is under way: it does so at once, and the next one goes on from there."""

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import anyio
import psutil
import pytest

from tests.faults.oracle import Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import SOON, Failpoint, Program, Stores, mcp_server, trace_path, worker
from tests.integration.stores import Client, plain_client, uid
from tests.services.local_store import running
from tests.services.waiting import until

AT_ONCE = 0.5  # seconds; after these the client kills the server
# A machine with much else to do now and then lets even a process that ends at once wait for its turn.
ATTEMPTS = 5
STEPS = ("before:write_memories", "before:COMMIT(write_memories)", "before:acknowledge")
FURTHER_STEPS = ("before:claim_entries", "after:COMMIT(write_memories)", "after:acknowledge", "before:COMMIT(stamp)")
OTHERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend' AND pid <> ALL ($1)"
)
CONNECTED = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"

Runs = Callable[[Stores, Failpoint], AbstractAsyncContextManager[Program]]


class Ending(NamedTuple):
    """How the program is made to end.

    Attributes:
        of: The program, standing at its failpoint later.
        sends: The signal; none for the end of stdin.
        status: What it ends with.
    """

    of: Runs
    sends: signal.Signals | None
    status: int


async def ended_within(program: Program, ending: Ending) -> float:
    """Tell a program that stands still to end, let it go on, and give the seconds until it is gone."""
    if ending.sends is None:
        await program.close_stdin()
    else:
        program.send(ending.sends)
    started = time.monotonic()
    program.resume()
    assert await program.ended() == ending.status, program.log
    return time.monotonic() - started


@asynccontextmanager
async def a_server(stores: Stores, failpoint: Failpoint) -> AsyncIterator[Program]:
    """The MCP server."""
    async with mcp_server(stores, failpoint=failpoint) as program:
        yield program


@asynccontextmanager
async def a_worker(stores: Stores, failpoint: Failpoint) -> AsyncIterator[Program]:
    """The command `worker`."""
    async with worker(stores, failpoint=failpoint) as program:
        yield program


ENDINGS = {
    "server, SIGTERM": Ending(a_server, signal.SIGTERM, 128 + signal.SIGTERM),
    "server, SIGINT": Ending(a_server, signal.SIGINT, 128 + signal.SIGINT),
    "server, SIGHUP": Ending(a_server, signal.SIGHUP, 128 + signal.SIGHUP),
    "server, end of stdin": Ending(a_server, None, 0),
    "worker, SIGTERM": Ending(a_worker, signal.SIGTERM, 0),
    "worker, SIGINT": Ending(a_worker, signal.SIGINT, 0),
    "worker, SIGHUP": Ending(a_worker, signal.SIGHUP, 0),
}


# A few of all pairs are in `make test`; the results say which of both it was.
FEW = {
    ("server, SIGTERM", "before:write_memories"),
    ("server, end of stdin", "before:COMMIT(write_memories)"),
    ("worker, SIGINT", "before:COMMIT(write_memories)"),
}
HOW = "SIGTERM, SIGINT, SIGHUP or the end of stdin"
SOME = pytest.mark.scenario(43, f"{HOW} at some steps of a push")
OTHERS_TOO = [pytest.mark.slow, pytest.mark.scenario(43, f"{HOW}, each at each other step of a push")]
ENDS = [
    pytest.param(*pair, marks=SOME if pair in FEW else OTHERS_TOO)
    for pair in itertools.product(ENDINGS, (*STEPS, *FURTHER_STEPS))
]


@pytest.fixture
async def observer(stores: Stores) -> AsyncIterator[Client]:
    """Sees which connections the program has left."""
    async with plain_client(stores.database_url) as client:
        yield client


async def write(oracle: Oracle) -> None:
    """One row of each kind of change."""
    new, old = uid(oracle.rows_written + 1), uid(oracle.rows_written + 2)
    await oracle.insert(new, f"{new}: inserted")
    await oracle.update(new, f"{new}: updated")
    await oracle.insert(old, f"{old}: to be deleted")
    await oracle.delete(old)


async def nothing_left(observer: Client, ours: list[int]) -> None:
    """Wait until PostgreSQL has no connection of the program any more."""

    async def alone() -> bool:
        return not await observer.fetchval(OTHERS, ours)

    await until(alone, what="the program's connections are gone", seconds=SOON)


async def pids(observer: Client) -> list[int]:
    """Of the connections that are not the program's."""
    return [row["pid"] for row in await observer.fetch(CONNECTED)]


async def goes_on(stores: Stores, oracle: Oracle, scenario: Scenario, *, engaged: bool) -> None:
    """The next program pushes what was left."""
    async with running(stores.database_url, stores.neo4j_uri) as program:
        await program.sync(timeout=SOON, embed=False)
        compared, seconds = await oracle.until_whole()
    scenario.note(engaged=engaged, compared=compared, seconds=seconds)


async def end_at(
    step: str, ending: Ending, stores: Stores, oracle: Oracle, observer: Client, scenario: Scenario
) -> float:
    """End a program there, and see that nothing of it is left and that the next one goes on; the seconds it took."""
    await write(oracle)
    ours = await pids(observer)
    async with ending.of(stores, Failpoint(step, sends=signal.SIGSTOP)) as program:
        await program.at_failpoint()
        await until(program.stopped, what="the program stands still", seconds=SOON)
        children = program.children()
        seconds = await ended_within(program, ending)
    assert "Traceback" not in program.log, program.log
    assert not [pid for pid in children if psutil.pid_exists(pid)]
    await nothing_left(observer, ours)
    await goes_on(stores, oracle, scenario, engaged=True)
    return seconds


async def ends_at_once(times: Callable[[], AsyncIterator[float]]) -> None:
    """The first end is quick, or else most of a few are."""
    taken: list[float] = []
    async for seconds in times():
        taken.append(seconds)
        if taken[0] < AT_ONCE or sum(one < AT_ONCE for one in taken) > ATTEMPTS / 2:
            return
    raise AssertionError(f"most ends took too long, in seconds: {taken}")


@pytest.mark.promise("P10")
@pytest.mark.promise("P1")
@pytest.mark.parametrize(("kind", "step"), ENDS)
async def test_43_told_to_end_with_work_in_flight(
    kind: str, step: str, stores: Stores, oracle: Oracle, observer: Client, scenario: Scenario
) -> None:
    """It is gone within half a second, leaves neither process nor connection nor stuck entry, and no stack trace."""

    async def times() -> AsyncIterator[float]:
        for _ in range(ATTEMPTS):
            yield await end_at(step, ENDINGS[kind], stores, oracle, observer, scenario)

    await ends_at_once(times)


@asynccontextmanager
async def client_of_a_server(stores: Stores, trace: Path, step: str) -> AsyncIterator[tuple[int, int]]:
    """A client that has started the MCP server: the pids of both. Both are killed at the end if they still run."""
    server = [sys.executable, *Failpoint(step, sends=signal.SIGSTOP).command(trace)]
    with (stores.home / "client.log").open("wb") as log:
        process = await anyio.open_process(
            [sys.executable, "-m", "tests.faults.client", *server],
            stdin=subprocess.DEVNULL,
            stderr=log,
            env=stores.environment,
        )
    async with process:
        assert process.stdout is not None
        with anyio.fail_after(SOON):
            pid = int(await process.stdout.receive())
        try:
            yield process.pid, pid
        finally:
            for one in (process.pid, pid):
                if alive(one):
                    psutil.Process(one).kill()


def alive(pid: int) -> bool:
    """Whether it runs; one that has ended and that nobody has asked for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.scenario(43, "the client is killed with -9 while a push is under way")
@pytest.mark.promise("P10")
@pytest.mark.promise("P1")
async def test_43_the_client_vanishes(stores: Stores, oracle: Oracle, observer: Client, scenario: Scenario) -> None:
    """The server, which nobody told anything, ends by itself, and what it was doing is done by the next one."""

    async def times() -> AsyncIterator[float]:
        for attempt in range(ATTEMPTS):
            await write(oracle)
            ours = await pids(observer)
            seconds = await vanish(stores, trace_path(stores.home, 100 + attempt))
            await nothing_left(observer, ours)
            await goes_on(stores, oracle, scenario, engaged=True)
            yield seconds

    await ends_at_once(times)


async def vanish(stores: Stores, trace: Path) -> float:
    """Kill a client whose server is in the middle of a push; the seconds until the server is gone, too."""
    async with client_of_a_server(stores, trace, STEPS[1]) as (client, server):
        await until(partial(at_step, server), what=f"the server comes to {STEPS[1]}", seconds=SOON)
        psutil.Process(client).kill()
        await until(partial(gone, client), what="the client is gone", seconds=SOON)
        started = time.monotonic()
        psutil.Process(server).resume()
        await until(partial(gone, server), what="the server is gone", seconds=SOON, pause=0.01)
        return time.monotonic() - started


async def at_step(pid: int) -> bool:
    """Whether the server stands at its step."""
    return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)


async def gone(pid: int) -> bool:
    """Whether a process has ended."""
    return not alive(pid)
