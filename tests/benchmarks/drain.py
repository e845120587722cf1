"""A backlog drained with history, links and acknowledgement, beside what bare drivers do with the same rows."""

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from neo4j import AsyncDriver

from tests.benchmarks.results import Figure, Goal, Section
from tests.benchmarks.rows import Row, native, plain, rows
from tests.benchmarks.stores import Stores, copy_rows, one_value, seconds
from tests.services import neo4j
from tests.services.local_store import running

ROWS = 10_000
ONE_BY_ONE_ROWS = 500
BATCH = 1000
WARM_UPS = 2
ROUNDS = 5
BARE = "UNWIND $rows AS r MERGE (m:Memory {id: r.id}) SET m += r"
TUNED = BARE + ", m.created_at = datetime(r.created_at), m.updated_at = datetime(r.updated_at)"
ONE_BY_ONE = "MERGE (m:Memory {id: $id}) SET m += $props"
HELD = """
RETURN [
  COUNT { MATCH (:Memory) }, COUNT { MATCH (:MemoryVersion) }, COUNT { MATCH ()-[:HAS_VERSION]->() },
  COUNT { MATCH ()-[:BELONGS_TO]->() }, COUNT { MATCH ()-[:TAGGED_WITH]->() }
]
"""
ABOUT = f"""A backlog of {ROWS:,} rows of 60 words, with projects, sessions and tags, is drained: version history, links
to sessions and projects, full-text index, acknowledgement, stamps and audit included. The baselines write the rows as
nodes of the same label, and so with the same indexes, and nothing else. "Bare" is `{BARE}`,
{BATCH:,} rows in a transaction, each as its client has it, with times that are times. "Tuned" is the same at its
fastest: times travel as text, and the server makes them times. "One by one" is a session and a
`{ONE_BY_ONE}` for each memory, as in the requirements, over {ONE_BY_ONE_ROWS} rows.
Neo4j is emptied between runs; medians of {ROUNDS} alternating runs after {WARM_UPS} warm-ups."""

Way = Callable[[Stores, Sequence[Row]], Awaitable[float]]


async def benchmark(stores: Stores) -> Section:
    """Rows a second."""
    given = rows(ROWS)
    ways: dict[str, tuple[Way, Sequence[Row]]] = {
        "drain": (_drained, given),
        "bare": (partial(_bare, statement=BARE, sent=native), given),
        "tuned": (partial(_bare, statement=TUNED, sent=plain), given),
        "one by one": (_one_by_one, given[:ONE_BY_ONE_ROWS]),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(WARM_UPS + ROUNDS):
        stores.say(f"drain: run {number + 1} of {WARM_UPS + ROUNDS}")
        for name, (way, some) in ways.items():
            await neo4j.empty(stores.neo4j_uri)
            rates[name].append(len(some) / await way(stores, some))
    median = {name: statistics.median(values[WARM_UPS:]) for name, values in rates.items()}
    figures = [
        Figure("beside bare", median["drain"], "rows/s", median["bare"], Goal("ratio", ">=", 0.5)),
        Figure("beside tuned", median["drain"], "rows/s", median["tuned"]),
        Figure("beside one by one", median["drain"], "rows/s", median["one by one"], Goal("ratio", ">=", 60)),
    ]
    times = median["tuned"] / median["one by one"]
    note = (
        f"Even the tuned bare write, with no history, links or local store, is only {times:.0f} times one by one here."
    )
    return Section("drain", ABOUT, figures, [note] if times < 60 else [])


async def _drained(stores: Stores, given: Sequence[Row]) -> float:
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


async def _bare(
    stores: Stores, given: Sequence[Row], *, statement: str, sent: Callable[[Row], dict[str, Any]]
) -> float:
    async with stores.bare_neo4j() as driver:
        started = time.perf_counter()
        for start in range(0, len(given), BATCH):
            await one_value(driver, statement, rows=[sent(row) for row in given[start : start + BATCH]])
        return time.perf_counter() - started


async def _one_by_one(stores: Stores, given: Sequence[Row]) -> float:
    async with stores.bare_neo4j() as driver:
        started = time.perf_counter()
        for row in given:
            await one_value(driver, ONE_BY_ONE, id=str(row.id), props=native(row))
        return time.perf_counter() - started
