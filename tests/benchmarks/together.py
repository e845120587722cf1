"""Several processes on one database: what they drain together beside one alone, and how soon another takes over."""

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import anyio
import psutil
from anyio.abc import Process

from dionysus_sync_mcp.adapters.postgres.database import APPLICATION_NAME
from tests.benchmarks.program import (
    drained,
    fill,
    now,
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
TAKEOVER_ROWS = 100_000
TAKEOVERS = 10
# One in several guesses of who pushes may be wrong, and costs a part of the backlog.
GUESSES = 3 * TAKEOVERS
CPU_SECONDS = 0.4
WITHIN = 60.0
LOOK_EVERY = 0.002
PUSHER = """
SELECT pid FROM pg_locks
WHERE locktype = 'advisory' AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
ALIVE = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)"
CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1"
PUSHES = "SELECT count(*) FROM dionysus_sync.sync_events WHERE result = 'success' AND timestamp > $1"
ABOUT = f"""{ROWS:,} rows are drained by two MCP servers and a worker, each a process of its own, connected before
the rows could be pushed. Baseline: the worker alone. Medians of {ROUNDS} alternating runs after a warm-up; rates as
in "backlog". Takeover: two workers; the one that pushes is killed with SIGKILL in the middle of a drain. Milliseconds
from the kill until the other one's first push is committed, {TAKEOVERS} times, each with a new second worker. Baseline:
the time between two pushes in the same drain, medians of those that nobody disturbed."""


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
        gaps = (await pushes_since(connection, began)).gaps
    return taken, 1000 * statistics.median(gaps)


async def _until_connected(connection: "Connection", before: int) -> None:
    async def connected() -> bool:
        return bool(await connection.fetchval(CONNECTIONS, APPLICATION_NAME) > before)

    await until(connected, what="the new worker connects", seconds=WITHIN)


async def _kill_the_pusher(connection: "Connection", workers: Sequence[Process], taken: list[float]) -> Process:
    """Kills a worker; if it was the one that pushed, notes the milliseconds until the other one has."""
    busy = await _busiest(workers)
    backend = await _pusher(connection)
    began, started = await now(connection), time.perf_counter()
    busy.kill()

    async def pushed() -> bool:
        return bool(await connection.fetchval(PUSHES, began))

    await until(pushed, what="another worker takes over", seconds=WITHIN, pause=LOOK_EVERY)
    seen = time.perf_counter()
    if not await connection.fetchval(ALIVE, backend):
        taken.append(1000 * (seen - started))
    return busy


async def _busiest(workers: Sequence[Process]) -> Process:
    """The worker that pushes: the other one only polls."""
    processes = [psutil.Process(one.pid) for one in workers]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    await anyio.sleep(CPU_SECONDS)
    used = [sum(process.cpu_times()[:2]) - earlier for process, earlier in zip(processes, before, strict=True)]
    return workers[used.index(max(used))]


async def _pusher(connection: "Connection") -> int:
    """The server process of the connection that pushes now."""

    async def found() -> bool:
        return await connection.fetchval(PUSHER) is not None

    await until(found, what="somebody pushes", seconds=WITHIN)
    return int(await connection.fetchval(PUSHER) or 0)
