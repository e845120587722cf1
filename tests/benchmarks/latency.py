"""From a plain client's commit to being seen in Neo4j, with the program's worker in a process of its own."""

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from neo4j import AsyncDriver

from tests.benchmarks.program import worker
from tests.benchmarks.results import Figure, Goal, Section
from tests.benchmarks.rows import Row, native, rows
from tests.benchmarks.stores import INSERT, TWIN, Stores, bare_postgres, one_value, percentile
from tests.services import neo4j, postgres
from tests.services.waiting import until

if TYPE_CHECKING:
    import asyncpg

ROWS = 400
WARM_UPS = 50
EVERY = 0.1
LOOK_EVERY = 0.002
GIVE_UP = 30.0
SEEN = "MATCH (m:Memory) WHERE m.id IN $ids RETURN collect(m.id) AS seen"
MERGE = "MERGE (m:Memory {id: $id}) SET m += $props"
ABOUT = f"""A plain client commits one row every {EVERY * 1000:.0f} ms while `dionysus-sync-mcp worker` runs in its own
process with its default settings; another connection asks Neo4j every {LOOK_EVERY * 1000:.0f} ms which rows it has.
Milliseconds from the commit's return until the row is seen, over {ROWS} rows after {WARM_UPS} warm-ups. Baseline: a
bare client that writes each row to Neo4j itself after its commit, so that it waits for Neo4j and loses the row when
that is away."""

Write = Callable[[Row], Awaitable[None]]


@dataclass(slots=True)
class _Watch:
    """Which rows were committed when, and seen when."""

    committed: dict[str, float] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)

    def waiting(self) -> list[str]:
        return [id_ for id_ in self.committed if id_ not in self.seen]

    def milliseconds(self, given: Sequence[Row]) -> list[float]:
        return [1000 * (self.seen[str(row.id)] - self.committed[str(row.id)]) for row in given]


async def benchmark(stores: Stores) -> Section:
    """Milliseconds."""
    stores.say("latency: with the worker")
    ours = await _with_worker(stores)
    stores.say("latency: a bare client")
    bare = await _bare(stores)
    figures = [
        Figure("median", percentile(ours, 50), "ms", percentile(bare, 50), Goal("value", "<", 250)),
        Figure("p99", percentile(ours, 99), "ms", percentile(bare, 99), Goal("value", "<", 1000)),
    ]
    note = "The worker looks at its queue every 150 ms (`DIONYSUS_POLL_MS`), so half of that is waiting by design."
    return Section("latency", ABOUT, figures, [note])


async def _with_worker(stores: Stores) -> list[float]:
    await neo4j.empty(stores.neo4j_uri)
    async with stores.local() as url, worker(url, stores.neo4j_uri), bare_postgres(url) as local:
        return await _measured(stores, local, _nothing)


async def _bare(stores: Stores) -> list[float]:
    await neo4j.empty(stores.neo4j_uri)
    async with stores.local() as url, stores.bare_neo4j() as driver:
        await postgres.execute(url, TWIN)
        async with bare_postgres(url, "twin") as local:
            return await _measured(stores, local, lambda row: _merge(driver, row))


async def _nothing(_row: Row) -> None:
    """The worker does it."""


async def _merge(driver: AsyncDriver, row: Row) -> None:
    await one_value(driver, MERGE, id=str(row.id), props=native(row))


async def _measured(stores: Stores, local: "asyncpg.Connection[asyncpg.Record]", then: Write) -> list[float]:
    watch = _Watch()
    given = rows(WARM_UPS + ROWS)
    async with stores.bare_neo4j() as driver, anyio.create_task_group() as tasks:
        tasks.start_soon(_look, driver, watch)
        # The first row waits for the worker's start.
        await _commit(local, given[0], then, watch)
        await _until_all_seen(watch)
        for row in given[1:]:
            pause = anyio.current_time() + EVERY
            await _commit(local, row, then, watch)
            await anyio.sleep_until(pause)
        await _until_all_seen(watch)
        tasks.cancel_scope.cancel()
    return watch.milliseconds(given[WARM_UPS:])


async def _commit(local: "asyncpg.Connection[asyncpg.Record]", row: Row, then: Write, watch: _Watch) -> None:
    await local.execute(INSERT, *row)
    watch.committed[str(row.id)] = time.perf_counter()
    await then(row)


async def _look(driver: AsyncDriver, watch: _Watch) -> None:
    """Asks for what was not seen yet, until cancelled."""
    while True:
        if waiting := watch.waiting():
            (seen,) = await one_value(driver, SEEN, ids=waiting)
            now = time.perf_counter()
            watch.seen.update(dict.fromkeys(seen, now))
        await anyio.sleep(LOOK_EVERY)


async def _until_all_seen(watch: _Watch) -> None:
    async def all_seen() -> bool:
        return not watch.waiting()

    await until(all_seen, what="every row is seen", seconds=GIVE_UP)
