"""A plan for the state of a time, among memories with a history each, beside a bare ordered read of both sides."""

import statistics
from dataclasses import replace
from datetime import datetime

import anyio

from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.runtime import Runtime
from tests.benchmarks.results import Figure, Goal, Section
from tests.benchmarks.rows import rows
from tests.benchmarks.stores import Stores, bare_postgres, copy_rows, one_value, seconds
from tests.services.local_store import running

ROWS = 100_000
VERSIONS = 5
WANTED = 3
ROUNDS = 3
WARM_UPS = 1
PAGE = 10_000
LONG = 3600.0
CHANGE = "UPDATE memories SET content = content || ' more'"
HERE = "SELECT id, sync_version, md5(content) FROM memories ORDER BY id"
THERE = """
MATCH (m:Memory) WHERE m.id > $last WITH m ORDER BY m.id LIMIT $page
MATCH (m)-[:HAS_VERSION]->(v) WHERE v.changed_at <= datetime($moment)
WITH m, v ORDER BY m.id, v.sync_version DESC
WITH m.id AS id, collect([v.sync_version, v.content_hash])[0] AS newest ORDER BY id
RETURN collect([id, newest]) AS page
"""
ABOUT = f"""{ROWS:,} memories with {VERSIONS} versions each, all pushed; the plan of a recovery of all of them as they
were at version {WANTED}, which overwrites every row. Baseline: bare drivers that read id, version and a hash of every
memory, both sides at once: the local rows in order, of the remote store the newest version at that time, in keyset
pages of {PAGE:,}; they compare nothing. Medians of {ROUNDS} alternating runs after a warm-up."""


async def benchmark(stores: Stores) -> Section:
    """Seconds."""
    async with stores.throwaway_neo4j() as uri:
        there = replace(stores, neo4j_uri=uri)
        async with there.local() as url, running(url, uri) as runtime:
            moment = await _fill(there, url, runtime)
            ours, bare = [], []
            for number in range(WARM_UPS + ROUNDS):
                stores.say(f"in_time: run {number + 1} of {WARM_UPS + ROUNDS}")
                ours.append(await seconds(lambda: _plan(runtime, moment)))
                bare.append(await seconds(lambda: _read_both(there, url, moment)))
    planned, read = statistics.median(ours[WARM_UPS:]), statistics.median(bare[WARM_UPS:])
    name = f"plan as of a time, {ROWS:,} memories of {VERSIONS} versions"
    return Section("in_time", ABOUT, [Figure(name, planned, "s", read, Goal("value", "<", 3))])


async def _fill(stores: Stores, url: str, runtime: Runtime) -> datetime:
    """Writes each version of every memory in one statement and pushes it; the time when all were at `WANTED`."""
    moments: list[datetime] = []
    for version in range(1, VERSIONS + 1):
        stores.say(f"in_time: version {version} of {ROWS:,} memories")
        if version == 1:
            await copy_rows(url, "memories", rows(ROWS))
        async with bare_postgres(url) as connection:
            if version > 1:
                await connection.execute(CHANGE, timeout=LONG)
            moments.append(await connection.fetchval("SELECT clock_timestamp()"))
        await runtime.sync(timeout=LONG, embed=False)
    return moments[WANTED - 1]


async def _plan(runtime: Runtime, moment: datetime) -> None:
    plan = await runtime.plan_recovery(Scope(), as_of=moment, overwrite_newer=True)
    if (plan.will_restore, plan.will_overwrite) != (ROWS, ROWS):
        raise AssertionError(f"every memory was to be in the plan: {plan.counts}")


async def _read_both(stores: Stores, url: str, moment: datetime) -> None:
    read: dict[str, int] = {}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_read_here, url, read)
        tasks.start_soon(_read_there, stores, moment, read)
    if read != {"here": ROWS, "there": ROWS}:
        raise AssertionError(f"the baseline read {read}")


async def _read_here(url: str, read: dict[str, int]) -> None:
    async with bare_postgres(url) as connection:
        read["here"] = len(await connection.fetch(HERE))


async def _read_there(stores: Stores, moment: datetime, read: dict[str, int]) -> None:
    last, count = "", 0
    at = moment.isoformat()
    async with stores.bare_neo4j() as driver:
        while page := (await one_value(driver, THERE, last=last, page=PAGE, moment=at))[0]:
            last, count = page[-1][0], count + len(page)
    read["there"] = count
