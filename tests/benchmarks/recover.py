"""A destroyed table brought back and verified, beside a bare paged read and a bare COPY of the same rows."""

import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

from neo4j import AsyncDriver

from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.runtime import Runtime
from tests.benchmarks.results import Figure, Goal, Section
from tests.benchmarks.rows import Row, rows
from tests.benchmarks.stores import Stores, bare_postgres, copy_rows, one_value
from tests.services import neo4j
from tests.services.local_store import running

if TYPE_CHECKING:
    import asyncpg

FEW = 1000
MANY = 100_000
FEW_ROUNDS = 5
MANY_ROUNDS = 3
WARM_UPS = 1
PAGE = 2000
READ = """
MATCH (m:Memory) WHERE m.id > $last WITH m ORDER BY m.id LIMIT $page
RETURN collect([m.id, m.content, m.memory_type, m.importance, m.source_project, m.session_id, m.tags,
  toString(m.created_at), toString(m.updated_at)]) AS page
"""
BARE_TABLE = """
CREATE TABLE bare (id uuid PRIMARY KEY, content text, memory_type varchar(20), importance real, source_project text,
                   session_id uuid, tags text[], created_at timestamptz, updated_at timestamptz)
"""
ABOUT = f"""The table `memories` is dropped by a plain client and brought back: recreated with its indexes and capture,
every row written, and every row's hash compared with the remote's. The plan, which compares both sides first, is timed
on its own. Baseline: the same rows read from Neo4j in keyset pages of {PAGE:,}, a page as one value, and each page
written by COPY, both by bare drivers, into a table with a primary key and nothing else; nothing is verified. Medians of
{FEW_ROUNDS} ({FEW:,} rows) and {MANY_ROUNDS} ({MANY:,} rows) alternating runs after a warm-up."""


class _Times(NamedTuple):
    plan: float
    run: float
    bare: float


async def benchmark(stores: Stores) -> Section:
    """Seconds."""
    few = await _measured(stores, FEW, FEW_ROUNDS)
    many = await _measured(stores, MANY, MANY_ROUNDS)
    figures = [
        Figure(f"{FEW:,} rows", few.run, "s", few.bare, Goal("value", "<", 1)),
        Figure(f"{MANY:,} rows", many.run, "s", many.bare, Goal("ratio", "<=", 2)),
        Figure(f"plan for {FEW:,} rows", few.plan, "s"),
        Figure(f"plan for {MANY:,} rows", many.plan, "s"),
    ]
    return Section("recover", ABOUT, figures)


async def _measured(stores: Stores, count: int, rounds: int) -> _Times:
    stores.say(f"recover: filling the remote store with {count:,} memories")
    taken = []
    async with _filled(stores, count) as (runtime, url), stores.bare_neo4j() as driver:
        for number in range(WARM_UPS + rounds):
            stores.say(f"recover: {count:,} rows, run {number + 1} of {WARM_UPS + rounds}")
            plan, run = await _recovered(runtime, url, count)
            taken.append(_Times(plan, run, await _bare(driver, url, count)))
    return _Times(*(statistics.median(column) for column in zip(*taken[WARM_UPS:], strict=True)))


@asynccontextmanager
async def _filled(stores: Stores, count: int) -> AsyncIterator[tuple[Runtime, str]]:
    """A program whose stores both hold the rows."""
    await neo4j.empty(stores.neo4j_uri)
    async with stores.local() as url, running(url, stores.neo4j_uri) as runtime:
        await copy_rows(url, "memories", rows(count))
        await runtime.sync(embed=False)
        await runtime.guard.note_definition_once()
        yield runtime, url


async def _recovered(runtime: Runtime, url: str, count: int) -> tuple[float, float]:
    async with bare_postgres(url) as connection:
        await connection.execute("DROP TABLE memories")
    started = time.perf_counter()
    plan = await runtime.plan_recovery(Scope())
    planned = time.perf_counter()
    report = await runtime.run_recovery(plan.plan_id)
    finished = time.perf_counter()
    if not report.complete or report.verified != count:
        raise AssertionError(f"not everything came back: {report}")
    return planned - started, finished - planned


async def _bare(driver: AsyncDriver, url: str, count: int) -> float:
    async with bare_postgres(url) as connection:
        await connection.execute("DROP TABLE IF EXISTS bare")
        await connection.execute(BARE_TABLE)
        started = time.perf_counter()
        written = await _copied(driver, connection)
        taken = time.perf_counter() - started
    if written != count:
        raise AssertionError(f"the baseline copied {written} rows")
    return taken


async def _copied(driver: AsyncDriver, connection: "asyncpg.Connection[asyncpg.Record]") -> int:
    last, written = "", 0
    while page := (await one_value(driver, READ, last=last, page=PAGE))[0]:
        records = [_typed(values) for values in page]
        await connection.copy_records_to_table("bare", records=records, columns=Row._fields)
        last, written = page[-1][0], written + len(page)
    return written


def _typed(values: list[Any]) -> tuple[Any, ...]:
    id_, *middle, session, tags, created_at, updated_at = values
    times = (datetime.fromisoformat(created_at), datetime.fromisoformat(updated_at))
    return (UUID(id_), *middle, UUID(session), tags, *times)
