"""What the benchmarks share: a fresh local store, a Neo4j to itself, and clients that are not the program's."""

import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
from neo4j import AsyncDriver, AsyncGraphDatabase

from tests.benchmarks.rows import Row
from tests.services import postgres

# The same table without capture, for the same statements under another search path.
TWIN = "CREATE SCHEMA twin; CREATE TABLE twin.memories (LIKE public.memories INCLUDING ALL)"
INSERT = """
INSERT INTO memories (id, content, memory_type, importance, source_project, session_id, tags, created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""


@dataclass(frozen=True, slots=True)
class Stores:
    """The servers of a run.

    Attributes:
        template: A database that is an empty local store, to be copied.
        throwaway_neo4j: A Neo4j for a mass of data, by its URI; empty, and gone afterwards.
    """

    template: str
    neo4j_uri: str
    say: Callable[[str], None]
    throwaway_neo4j: Callable[[], AbstractAsyncContextManager[str]]

    @asynccontextmanager
    async def local(self) -> AsyncIterator[str]:
        """A fresh local store with an identity of its own, by its URL."""
        async with postgres.copy_of(self.template) as url:
            await postgres.execute(url, postgres.NEW_IDENTITY)
            yield url

    @asynccontextmanager
    async def bare_neo4j(self) -> AsyncIterator[AsyncDriver]:
        """The driver as such."""
        async with AsyncGraphDatabase.driver(self.neo4j_uri) as driver:
            await driver.verify_connectivity()
            yield driver


@asynccontextmanager
async def bare_postgres(url: str, schema: str = "public") -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """The driver as such, one connection, which finds its tables in that schema."""
    connection = await asyncpg.connect(url, server_settings={"search_path": schema})
    try:
        yield connection
    finally:
        await connection.close()


async def copy_rows(url: str, table: str, given: Sequence[Row]) -> None:
    """Write rows by COPY, as any client may."""
    async with bare_postgres(url) as connection:
        await connection.copy_records_to_table(table, records=given, columns=Row._fields)


async def one_value(driver: AsyncDriver, query: str, **parameters: Any) -> Any:  # noqa: ANN401 - what the query returns
    """The one value that a query returns, in a transaction of its own."""
    async with driver.session(database="neo4j") as session:
        return await (await session.run(query, parameters)).value()


async def seconds(work: Callable[[], Awaitable[object]]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    await work()
    return time.perf_counter() - started


def percentile(values: Sequence[float], share: int) -> float:
    """The value that `share` percent of them do not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[share - 1]
