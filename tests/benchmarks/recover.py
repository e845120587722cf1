"""What was destroyed brought back and verified, beside a bare paged read and a bare COPY of the same rows."""

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
from tests.services.waiting import until

if TYPE_CHECKING:
    import asyncpg

FEW = 1000
MANY = 100_000
EACH = 10_000
FEW_ROUNDS = 5
MANY_ROUNDS = 3
EACH_ROUNDS = 3
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
{FEW_ROUNDS} ({FEW:,} rows) and {MANY_ROUNDS} ({MANY:,} rows) alternating runs after a warm-up.

Then {EACH:,} memories are destroyed in each of several ways by a plain client beside the program's background loops,
and are recovered from before the incident as soon as it is on record: the plan and the run, by its id, are timed as
one, with the same baseline. Where rows are overwritten, what they held is kept for an undo, too. Medians of
{EACH_ROUNDS} runs."""


DESTRUCTIONS = {
    "DELETE of all": "DELETE FROM memories",
    "UPDATE of all contents": "UPDATE memories SET content = 'overwritten'",
    "TRUNCATE": "TRUNCATE memories",
    "DROP TABLE": "DROP TABLE memories",
    "DROP SCHEMA public": "DROP SCHEMA public CASCADE; CREATE SCHEMA public",
    "content cut to 10 letters": "ALTER TABLE memories ALTER COLUMN content TYPE varchar(10) USING left(content, 10)",
    "a column dropped": "ALTER TABLE memories DROP COLUMN tags",
}
WITHIN = 60.0
RECOVERED = "recovered by the benchmark"


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
        *await _after_each_destruction(stores),
    ]
    return Section("recover", ABOUT, figures)


async def _after_each_destruction(stores: Stores) -> list[Figure]:
    stores.say(f"recover: filling the remote store with {EACH:,} memories")
    figures = []
    async with _filled(stores, EACH, worker=True) as (runtime, url), stores.bare_neo4j() as driver:
        bare = statistics.median([await _bare(driver, url, EACH) for _ in range(EACH_ROUNDS)])
        for name, sql in DESTRUCTIONS.items():
            stores.say(f"recover: {EACH:,} rows after {name}")
            taken = [await _recovered_from_before(runtime, url, sql) for _ in range(EACH_ROUNDS)]
            figures.append(
                Figure(f"{EACH:,} rows after {name}", statistics.median(taken), "s", bare, Goal("value", "<", 5))
            )
    return figures


async def _recovered_from_before(runtime: Runtime, url: str, sql: str) -> float:
    async with bare_postgres(url) as connection:
        await connection.execute(sql)
    incident = await _incident(runtime)
    started = time.perf_counter()
    plan = await runtime.plan_recovery(Scope(), before_incident=incident)
    report = await runtime.run_recovery(plan.plan_id)
    taken = time.perf_counter() - started
    if not report.complete or report.verified != EACH:
        raise AssertionError(f"not everything came back: {report}")
    await runtime.sync(embed=False)
    await runtime.close_incident(incident, RECOVERED)
    return taken


async def _incident(runtime: Runtime) -> str:
    """Id of the one that is open, once it is on record with all that it hit."""
    seen: list[str] = []

    async def on_record() -> bool:
        found = (await runtime.incidents(open_only=True, limit=5)).incidents
        seen[:] = [incident.id for incident in found]
        return [incident.rows for incident in found] == [EACH]

    await until(on_record, what="the incident is on record", seconds=WITHIN)
    return seen[0]


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
async def _filled(stores: Stores, count: int, *, worker: bool = False) -> AsyncIterator[tuple[Runtime, str]]:
    """A program whose stores both hold the rows."""
    await neo4j.empty(stores.neo4j_uri)
    async with stores.local() as url, running(url, stores.neo4j_uri, worker=worker) as runtime:
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
