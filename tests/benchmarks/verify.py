"""Both sides compared, cheaply, fully and deeply, beside a bare ordered read of ids, versions and hashes of both."""

import statistics
from collections.abc import Awaitable, Callable

import anyio

from dionysus_sync_mcp.engine.compare import Kind
from dionysus_sync_mcp.engine.reports import VerifyReport
from dionysus_sync_mcp.runtime import Runtime
from tests.benchmarks.results import Figure, Goal, Section
from tests.benchmarks.rows import rows
from tests.benchmarks.stores import Stores, bare_postgres, copy_rows, one_value, seconds
from tests.services import neo4j
from tests.services.local_store import running

ROWS = 100_000
ROUNDS = 5
WARM_UPS = 1
PAGE = 10_000
HERE = "SELECT id, sync_version, md5(content) FROM memories ORDER BY id"
THERE = """
MATCH (m:Memory) WHERE m.id > $last WITH m ORDER BY m.id LIMIT $page
RETURN collect([m.id, m.sync_version, m.content_hash]) AS page
"""
ABOUT = f"""{ROWS:,} memories that are in both stores are compared, with nothing queued and nothing to find: the cheap
check that the worker makes on its own, the full one, and the deep one, which makes every hash anew from what the rows
hold. Baseline: bare drivers that read id, version and a hash of every memory in order, both sides at once, the remote
in keyset pages of {PAGE:,}, and compare nothing. Medians of {ROUNDS} alternating runs after a warm-up."""

Way = Callable[[], Awaitable[float]]


async def benchmark(stores: Stores) -> Section:
    """Seconds."""
    await neo4j.empty(stores.neo4j_uri)
    async with stores.local() as url, running(url, stores.neo4j_uri) as runtime:
        stores.say(f"verify: filling both stores with {ROWS:,} memories")
        await copy_rows(url, "memories", rows(ROWS))
        await runtime.sync(embed=False)
        taken = await _measured(stores, url, runtime)
    bare = taken["bare"]
    figures = [
        Figure("quick", taken["quick"], "s", bare, Goal("value", "<", 2)),
        Figure("full", taken["full"], "s", bare, Goal("value", "<", 2)),
        Figure("deep", taken["deep"], "s", bare),
    ]
    return Section("verify", ABOUT, figures)


async def _measured(stores: Stores, url: str, runtime: Runtime) -> dict[str, float]:
    ways: dict[str, Way] = {
        "quick": lambda: _verified(runtime, "quick"),
        "full": lambda: _verified(runtime, "full"),
        "deep": lambda: _verified(runtime, "deep"),
        "bare": lambda: _bare(stores, url),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(WARM_UPS + ROUNDS):
        stores.say(f"verify: run {number + 1} of {WARM_UPS + ROUNDS}")
        for name, way in ways.items():
            taken[name].append(await way())
    return {name: statistics.median(measured[WARM_UPS:]) for name, measured in taken.items()}


async def _verified(runtime: Runtime, kind: Kind) -> float:
    """Seconds of a comparison that compared everything and found nothing."""
    reports: list[VerifyReport] = []

    async def verify() -> None:
        reports.append(await runtime.verify(kind))

    taken = await seconds(verify)
    report = reports[0]
    if report.result != "clean" or report.local_memories != ROWS or report.remote_memories != ROWS:
        raise AssertionError(f"both sides are the same, and all was to be compared: {report}")
    return taken


async def _bare(stores: Stores, url: str) -> float:
    read: dict[str, int] = {}

    async def both() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_read_here, url, read)
            tasks.start_soon(_read_there, stores, read)

    taken = await seconds(both)
    if read != {"here": ROWS, "there": ROWS}:
        raise AssertionError(f"the baseline read {read}")
    return taken


async def _read_here(url: str, read: dict[str, int]) -> None:
    async with bare_postgres(url) as connection:
        read["here"] = len(await connection.fetch(HERE))


async def _read_there(stores: Stores, read: dict[str, int]) -> None:
    last, count = "", 0
    async with stores.bare_neo4j() as driver:
        while page := (await one_value(driver, THERE, last=last, page=PAGE))[0]:
            last, count = page[-1][0], count + len(page)
    read["there"] = count
