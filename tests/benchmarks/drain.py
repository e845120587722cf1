"""A backlog drained with history, links and acknowledgement, beside what bare drivers do with the same rows."""

import itertools
import statistics
from collections.abc import Sequence

from neo4j import AsyncDriver

from tests.benchmarks.results import Figure, Goal, Section
from tests.benchmarks.rows import Row, plain, rows
from tests.benchmarks.stores import Stores, copy_rows, one_value, seconds
from tests.services import neo4j
from tests.services.local_store import running

ROWS = 10_000
ONE_BY_ONE_ROWS = 500
BATCH = 1000
WARM_UPS = 2
ROUNDS = 5
BARE = "UNWIND $rows AS r MERGE (m:Memory {id: r.id}) SET m += r"
ONE_BY_ONE = "MERGE (m:Memory {id: $id}) SET m += $props"
HELD = """
RETURN [
  COUNT { MATCH (:Memory) }, COUNT { MATCH (:MemoryVersion) }, COUNT { MATCH ()-[:HAS_VERSION]->() },
  COUNT { MATCH ()-[:BELONGS_TO]->() }, COUNT { MATCH ()-[:TAGGED_WITH]->() }
]
"""
ABOUT = f"""A backlog of {ROWS:,} rows of 60 words, with projects, sessions and tags, is drained: version history, links
to sessions and projects, full-text index, acknowledgement, stamps and audit included. Baseline "bare": the same rows by
`{BARE}`, {BATCH:,} in a transaction, nothing else;
times travel as text, which is the fastest, and the label is the same, and so are its indexes. Baseline "one by one": a
session and `{ONE_BY_ONE}` for each memory, as in the requirements, over {ONE_BY_ONE_ROWS}
rows. Neo4j is emptied between runs; medians of {ROUNDS} alternating runs after {WARM_UPS} warm-ups."""


async def benchmark(stores: Stores) -> Section:
    """Rows a second."""
    given = rows(ROWS)
    ours, bare, one_by_one = [], [], []
    for number in range(WARM_UPS + ROUNDS):
        stores.say(f"drain: run {number + 1} of {WARM_UPS + ROUNDS}")
        ours.append(ROWS / await _drained(stores, given))
        bare.append(ROWS / await _bare(stores, given))
        one_by_one.append(ONE_BY_ONE_ROWS / await _one_by_one(stores, given[:ONE_BY_ONE_ROWS]))
    here, plain_rate, single_rate = (statistics.median(rates[WARM_UPS:]) for rates in (ours, bare, one_by_one))
    figures = [
        Figure("beside bare", here, "rows/s", plain_rate, Goal("ratio", ">=", 0.5)),
        Figure("beside one by one", here, "rows/s", single_rate, Goal("ratio", ">=", 60)),
    ]
    return Section("drain", ABOUT, figures)


async def _drained(stores: Stores, given: Sequence[Row]) -> float:
    await neo4j.empty(stores.neo4j_uri)
    async with stores.local() as url, running(url, stores.neo4j_uri) as runtime, stores.bare_neo4j() as driver:
        # Connections are open and the schema is looked at, as in a program that runs.
        await runtime.sync(embed=False)
        await copy_rows(url, "memories", given)
        taken = await seconds(lambda: runtime.sync(embed=False))
        await _check(driver, len(given))
        if left := await runtime.outbox.queue_length():
            raise AssertionError(f"{left} entries were not drained")
    return taken


async def _check(driver: AsyncDriver, count: int) -> None:
    """A figure of a drain that left something out would be worth nothing."""
    (held,) = await one_value(driver, HELD)
    if held != [count] * len(held):
        raise AssertionError(f"not all of {count} is there: memories, versions and links are {held}")


async def _bare(stores: Stores, given: Sequence[Row]) -> float:
    await neo4j.empty(stores.neo4j_uri)
    async with stores.bare_neo4j() as driver:
        return await seconds(lambda: _write_bare(driver, given))


async def _write_bare(driver: AsyncDriver, given: Sequence[Row]) -> None:
    for start in range(0, len(given), BATCH):
        page = [plain(row) for row in itertools.islice(given, start, start + BATCH)]
        await one_value(driver, BARE, rows=page)


async def _one_by_one(stores: Stores, given: Sequence[Row]) -> float:
    await neo4j.empty(stores.neo4j_uri)
    async with stores.bare_neo4j() as driver:
        return await seconds(lambda: _write_one_by_one(driver, given))


async def _write_one_by_one(driver: AsyncDriver, given: Sequence[Row]) -> None:
    for row in given:
        await one_value(driver, ONE_BY_ONE, id=str(row.id), props=plain(row))
