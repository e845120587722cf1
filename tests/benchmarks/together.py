"""Several processes on one database: what they drain together beside one alone, and how soon another takes over."""

import signal
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import TYPE_CHECKING

import anyio
from anyio.abc import Process

from dionysus_sync_mcp.adapters.postgres.database import APPLICATION_NAME
from tests.benchmarks.program import (
    drained,
    fill,
    now,
    push_lock,
    pushes_since,
    queue_held,
    server,
    status,
    warm_up,
    worker,
)
from tests.benchmarks.results import Figure, Goal, Section
from tests.benchmarks.stores import Stores, bare_postgres, percentile
from tests.services import neo4j
from tests.services.waiting import until

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

ROWS = 20_000
ROUNDS = 3
WARM_UPS = 1
TAKEOVER_ROWS = 150_000
TAKEOVERS = 8
UNDISTURBED = 20
# A kill of the one that did not push, on a machine where pushes take long, is seen to be that and does not count.
GUESSES = 3 * TAKEOVERS
# Longer than a push takes: whoever is stopped for so long, and nothing is pushed, was pushing.
STOPPED_SECONDS = 0.8
WITHIN = 60.0
LOOK_EVERY = 0.002
PUSHER = """
SELECT pid FROM pg_locks
WHERE locktype = 'advisory' AND granted AND (classid::bigint << 32) + objid::bigint = $1
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
ALIVE = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"
CONNECTIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE $1 || ' %'"
)
PUSHES = "SELECT count(*) FROM dionysus_sync.sync_events WHERE result = 'success' AND timestamp > $1"
ABOUT = f"""{ROWS:,} rows are drained by two MCP servers and a worker, each a process of its own, connected before
the rows could be pushed. Baseline: the worker alone. Medians of {ROUNDS} alternating runs after a warm-up; rates as
in "backlog". Takeover: two workers; the one that pushes is stopped in the middle of a push and killed with SIGKILL.
Milliseconds from the kill until the other one's first push is committed, {TAKEOVERS} times, each with a new second
worker. Baseline: the time from one push to the next at the beginning of the same drain, median of {UNDISTURBED}."""


async def benchmark(stores: Stores) -> Section:
    """Rows a second, and milliseconds."""
    rates: dict[int, list[float]] = {0: [], 2: []}
    for number in range(WARM_UPS + ROUNDS):
        stores.say(f"together: run {number + 1} of {WARM_UPS + ROUNDS}")
        for servers, measured in rates.items():
            measured.append(await _rate(stores, servers))
    alone, three = (statistics.median(measured[WARM_UPS:]) for measured in rates.values())
    taken, gap = await _takeovers(stores)
    figures = [
        Figure("three processes", three, "rows/s", alone, Goal("ratio", ">=", 0.9)),
        Figure("takeover, median", percentile(taken, 50), "ms", gap, Goal("value", "<", 1000)),
        Figure("takeover, longest", max(taken), "ms", gap, Goal("value", "<", 1000)),
    ]
    return Section("together", ABOUT, figures)


async def _rate(stores: Stores, servers: int) -> float:
    await neo4j.empty(stores.neo4j_uri)
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="dionysus-bench-"))
        url = await stack.enter_async_context(stores.local())
        connection = await stack.enter_async_context(bare_postgres(url))
        await stack.enter_async_context(worker(url, stores.neo4j_uri))
        for _ in range(servers):
            wire = await stack.enter_async_context(server(url, stores.neo4j_uri, folder))
            await status(wire, 1)
        await warm_up(url)
        async with queue_held(url):
            await fill(url, ROWS)
            began = await now(connection)
        await until(lambda: drained(connection), what="all is drained", seconds=WITHIN)
        return (await pushes_since(connection, began)).rate


async def _takeovers(stores: Stores) -> tuple[list[float], float]:
    """Milliseconds of each, and the median time between two pushes."""
    await neo4j.empty(stores.neo4j_uri)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(stores.local())
        connection = await stack.enter_async_context(bare_postgres(url))
        workers = [await stack.enter_async_context(worker(url, stores.neo4j_uri)) for _ in range(2)]
        await warm_up(url)
        async with queue_held(url):
            await fill(url, TAKEOVER_ROWS)
            began = await now(connection)
        await until(lambda: _pushed(connection, began), what="the first pushes", seconds=WITHIN)
        gaps = (await pushes_since(connection, began)).gaps
        taken: list[float] = []
        for _ in range(GUESSES):
            if len(taken) == TAKEOVERS:
                break
            killed = await _kill_the_pusher(connection, workers, taken)
            workers.remove(killed)
            connections = await connection.fetchval(CONNECTIONS, APPLICATION_NAME)
            workers.append(await stack.enter_async_context(worker(url, stores.neo4j_uri)))
            await _until_connected(connection, connections)
            stores.say(f"together: takeover {len(taken)} of {TAKEOVERS}")
        if len(taken) < TAKEOVERS:
            raise AssertionError(f"only {len(taken)} of {GUESSES} kills hit the one that pushed")
    return taken, 1000 * statistics.median(gaps)


async def _pushed(connection: "Connection", began: datetime) -> bool:
    return bool(await connection.fetchval(PUSHES, began) > UNDISTURBED)


async def _until_connected(connection: "Connection", before: int) -> None:
    async def connected() -> bool:
        return bool(await connection.fetchval(CONNECTIONS, APPLICATION_NAME) > before)

    await until(connected, what="the new worker connects", seconds=WITHIN)


async def _kill_the_pusher(connection: "Connection", workers: Sequence[Process], taken: list[float]) -> Process:
    """Kills a worker; if it was the one that pushed, notes the milliseconds until the other one has."""
    stopped, backend = await _stopped_pusher(connection, workers)
    began, started = await now(connection), time.perf_counter()
    stopped.kill()

    async def pushed() -> bool:
        return bool(await connection.fetchval(PUSHES, began))

    await until(pushed, what="another worker takes over", seconds=WITHIN, pause=LOOK_EVERY)
    seen = time.perf_counter()
    if not await connection.fetchval(ALIVE, backend):
        taken.append(1000 * (seen - started))
    return stopped


async def _stopped_pusher(connection: "Connection", workers: Sequence[Process]) -> tuple[Process, int]:
    """The worker that pushes, stopped in the middle of it, and the server process of its connection."""
    with anyio.fail_after(WITHIN):
        while True:
            for one in workers:
                one.send_signal(signal.SIGSTOP)
                if backend := await _stuck_pusher(connection):
                    return one, backend
                one.send_signal(signal.SIGCONT)


async def _stuck_pusher(connection: "Connection") -> int | None:
    """The server process that holds the pushers' lock, if no push ends."""
    began = await now(connection)
    await anyio.sleep(STOPPED_SECONDS)
    if await connection.fetchval(PUSHES, began):
        return None
    backend = await connection.fetchval(PUSHER, push_lock())
    return int(backend) if backend else None
