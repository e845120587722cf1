"""The servers that the other tests rely on are there, are what they are said to be, and start each test clean."""

from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from neo4j import AsyncGraphDatabase

from tests.services import neo4j, postgres

ADD_MEMORY = """
INSERT INTO memories (id, content, memory_type, importance, source_project)
VALUES (gen_random_uuid(), 'kept', 'semantic', 0.5, 'demo')
"""
NODES = "MATCH (n) RETURN count(n) AS nodes"


async def _query(uri: str, text: str) -> list[dict[str, object]]:
    async with AsyncGraphDatabase.driver(uri) as driver:
        records, _, _ = await driver.execute_query(text, database_="neo4j")
    return [record.data() for record in records]


async def test_a_database_of_ones_own_is_empty_and_goes_afterwards(plain_template: str, postgres_url: str) -> None:
    """A copy of the template is a database of its own, dropped even while somebody is still connected."""
    async with postgres.copy_of(plain_template) as url:
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE mine ()")
    names = await _databases(postgres_url)
    connection.terminate()
    assert urlsplit(url).path[1:] not in names
    assert urlsplit(plain_template).path[1:] in names


async def _databases(url: str) -> list[str]:
    connection = await asyncpg.connect(url)
    try:
        return [row["datname"] for row in await connection.fetch("SELECT datname FROM pg_database")]
    finally:
        await connection.close()


@pytest.mark.parametrize("attempt", [1, 2])
async def test_what_one_test_writes_no_other_sees(database_url: str, attempt: int) -> None:
    """The same table can be made in each test."""
    await postgres.execute(database_url, f"CREATE TABLE written AS SELECT {attempt} AS attempt")
    assert await postgres.answers(database_url)


async def test_a_template_carries_its_preparation_into_each_copy(postgres_url: str) -> None:
    """What `prepare` made is in the copy."""

    async def prepare(url: str) -> None:
        await postgres.execute(url, "CREATE TABLE prepared ()")

    async with postgres.template_database(postgres_url, prepare) as template, postgres.copy_of(template) as copy:
        await postgres.execute(copy, "SELECT FROM prepared")


async def test_a_migrated_database_is_a_local_store_of_its_own(
    migrated_template: str, migrated_database_url: str
) -> None:
    """It captures a memory that is written to it, and is not taken for the template."""
    await postgres.execute(migrated_database_url, ADD_MEMORY)
    queued, identity = await _queued_and_identity(migrated_database_url)
    nothing, other_identity = await _queued_and_identity(migrated_template)
    assert (queued, nothing) == (1, 0)
    assert identity != other_identity


async def _queued_and_identity(url: str) -> tuple[int, str]:
    connection = await asyncpg.connect(url)
    try:
        queued = await connection.fetchval("SELECT count(*) FROM dionysus_sync.sync_queue")
        return queued, str(await connection.fetchval("SELECT id FROM dionysus_sync.store_identity"))
    finally:
        await connection.close()


async def test_a_server_that_is_away_does_not_answer() -> None:
    """The probes say no, rather than raise."""
    assert not await postgres.answers("postgresql://postgres@127.0.0.1:1/postgres")
    assert not await neo4j.answers("bolt://127.0.0.1:1")


async def test_emptying_neo4j_keeps_its_schema(neo4j_both: str) -> None:
    """Nodes go, also linked ones; a constraint stays."""
    await _query(neo4j_both, "CREATE CONSTRAINT kept IF NOT EXISTS FOR (n:Kept) REQUIRE n.id IS UNIQUE")
    await _query(neo4j_both, "UNWIND range(1, 100) AS id CREATE (:Kept {id: id})-[:NEXT]->(:Other)")
    await neo4j.empty(neo4j_both)
    assert await _query(neo4j_both, NODES) == [{"nodes": 0}]
    assert await _query(neo4j_both, "SHOW CONSTRAINTS YIELD name WHERE name = 'kept' RETURN name") == [{"name": "kept"}]
    await _query(neo4j_both, "DROP CONSTRAINT kept")


async def test_an_empty_neo4j_has_no_nodes(empty_neo4j: str) -> None:
    """The fixture empties before the test, whatever ran before."""
    assert await _query(empty_neo4j, NODES) == [{"nodes": 0}]


async def test_the_model_gives_vectors_of_768_dimensions(ollama_url: str) -> None:
    """Texts that share words are closer than others, and a text always gets the same vector."""
    texts = ["fix the database bug", "fix the database error", "user login token", "fix the database bug"]
    async with httpx.AsyncClient(base_url=ollama_url, trust_env=False, timeout=30) as client:
        reply = await client.post("/api/embed", json={"model": "nomic-embed-text", "input": texts})
    first, like_it, unlike_it, again = reply.raise_for_status().json()["embeddings"]
    assert len(first) == 768
    assert first == again
    assert _cosine(first, like_it) > _cosine(first, unlike_it) + 0.1


def _cosine(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
