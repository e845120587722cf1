"""What the tests on real stores share: a plain client, rows of memories, and looks at both sides."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
from neo4j import AsyncGraphDatabase

INSERT = "INSERT INTO memories (id, content, source_project) VALUES ($1, $2, 'p')"
QUEUE = (
    "SELECT memory_id, operation, payload::text AS payload, sync_version, parked_at IS NOT NULL AS parked, last_error"
    " FROM dionysus_sync.sync_queue WHERE entity = 'memory' ORDER BY seq"
)
IMAGES = (
    "SELECT dionysus_row.id::text AS id,"
    " (to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns())::text AS image"
    " FROM memories AS dionysus_row"
)

Client = asyncpg.Connection


class Entry(NamedTuple):
    """A queue entry as a test looks at it."""

    memory_id: UUID
    operation: str
    image: dict[str, Any]
    version: int
    parked: bool
    error: str | None


def uid(number: int) -> UUID:
    """The id of a test's memory."""
    return UUID(int=number)


@asynccontextmanager
async def plain_client(url: str, **settings: str) -> AsyncIterator[Client]:
    """A user's own connection, which knows nothing of us."""
    connection = await asyncpg.connect(url, server_settings=settings or None, timeout=10)
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


async def queue(client: Client) -> list[Entry]:
    """The queue entries of memories, in order."""
    return [Entry(r[0], r[1], json.loads(r[2]), r[3], r[4], r[5]) for r in await client.fetch(QUEUE)]


async def operations(client: Client) -> list[tuple[str, int]]:
    """Operation and version of each queue entry, in order."""
    return [(entry.operation, entry.version) for entry in await queue(client)]


async def images(client: Client) -> dict[str, str]:
    """Every row's columns but the sync columns, as PostgreSQL's JSON text, by id."""
    return {r["id"]: r["image"] for r in await client.fetch(IMAGES)}


async def graph(uri: str, statement: str, **parameters: object) -> list[Any]:
    """Run one Cypher statement; the first value of each record."""
    async with AsyncGraphDatabase.driver(uri) as driver, driver.session(database="neo4j") as session:
        return [record[0] async for record in await session.run(statement, parameters)]


async def node(uri: str, memory_id: UUID) -> dict[str, Any]:
    """A memory as the remote holds it."""
    found = await graph(uri, "MATCH (m:Memory {id: $id}) RETURN properties(m)", id=str(memory_id))
    assert len(found) == 1
    return dict(found[0])


async def history(uri: str, memory_id: UUID) -> list[tuple[int, str, str]]:
    """Number, operation and content of each version that the remote holds of a memory."""
    return [
        tuple(version)
        for version in await graph(
            uri,
            "MATCH (:Memory {id: $id})-[:HAS_VERSION]->(v) RETURN [v.sync_version, v.operation, v.content] AS version"
            " ORDER BY v.sync_version, v.operation",
            id=str(memory_id),
        )
    ]


async def remote_digest(uri: str) -> list[Any]:
    """All that the remote holds of memories, comparable."""
    return await graph(
        uri,
        "MATCH (m) WHERE m:Memory OR m:MemoryVersion"
        " RETURN [coalesce(m.id, m.key), m.sync_version, m.content_hash, toString(m.deleted_at)] AS digest"
        " ORDER BY digest",
    )
