"""What a claim reads of a long queue: no more than it takes, however well the rows are compressed."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from dionysus_sync_mcp.adapters.postgres.database import Database
from dionysus_sync_mcp.adapters.postgres.outbox import PostgresOutbox
from tests.integration.stores import Client, uid
from tests.services.local_store import opened

FILL = (
    "INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, next_retry_at, parked_at)"
    " SELECT id, 'create', jsonb_build_object('id', id, 'content', $2::text || n), 1,"
    "        CASE WHEN n % 50 = 0 THEN clock_timestamp() + interval '50 seconds' END,"
    "        CASE WHEN n % 70 = 0 THEN clock_timestamp() END"
    " FROM (SELECT n, gen_random_uuid() AS id FROM generate_series(1, $1) AS n) AS numbered"
)
LONG = 50_000


@pytest.fixture
async def database(migrated_database_url: str) -> AsyncIterator[Database]:
    """The program's own access to a local store."""
    async with opened(migrated_database_url) as database:
        yield database


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every node of a plan."""
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


def rows_of(node: dict[str, Any]) -> float:
    """How many rows went through it, those that it left out too."""
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float((node["Actual Rows"] + removed) * node["Actual Loops"])


@pytest.mark.parametrize("analysed", [True, False])
async def test_a_claim_reads_a_long_queue_by_its_index_and_no_further(
    database: Database, client: Client, analysed: bool
) -> None:
    """Whether the server knows how long it is or not."""
    await client.execute(FILL, LONG, "text")
    if analysed:
        await client.execute("ANALYZE dionysus_sync.sync_queue")
    async with database.connection() as connection:
        explain = "EXPLAIN (ANALYZE, FORMAT JSON) " + database.sql["claim_entries"]
        (plan,) = json.loads(await connection.fetchval(explain, 1000, 4_000_000))
    found = list(nodes(plan["Plan"]))
    scanned = [n for n in found if n.get("Relation Name") == "sync_queue"]
    assert len(scanned) >= 4
    assert "Seq Scan" not in {n["Node Type"] for n in scanned}
    assert max(map(rows_of, found)) <= 2000


async def test_an_entry_is_looked_for_by_its_place_in_a_long_queue(database: Database, client: Client) -> None:
    """Each status asks for one."""
    await client.execute(FILL, LONG, "text")
    async with PostgresOutbox(database).claim(1, 1) as claim:
        assert claim is not None
        (entry,) = claim.entries
        assert await claim.has_entry(entry.id)
    async with database.connection() as connection:
        explain = "EXPLAIN (ANALYZE, FORMAT JSON) " + database.sql["has_entry"]
        (plan,) = json.loads(await connection.fetchval(explain, entry.id))
    assert max(map(rows_of, nodes(plan["Plan"]))) <= 1


async def test_a_batch_is_bounded_by_the_size_of_its_rows_in_memory(database: Database, client: Client) -> None:
    """Not by what compression makes of them; one entry is always taken."""
    await client.execute(FILL, 40, "x" * 1_000_000)
    stored = await client.fetchval("SELECT max(pg_column_size(payload)) FROM dionysus_sync.sync_queue")
    assert stored < 100_000, "the rows are compressed"
    outbox = PostgresOutbox(database)
    taken = []
    for size in (1, 3_500_000):
        async with outbox.claim(1000, size) as claim:
            assert claim is not None
            taken.append(len(claim.entries))
    assert taken == [1, 4]


async def test_an_entry_does_not_wait_for_a_clock_that_jumped_back(database: Database, client: Client) -> None:
    """What is to wait for a few seconds waits; what seems to wait longer than anything does is due."""
    await client.execute(FILL, 50, "text")
    outbox = PostgresOutbox(database)
    for wait, taken in (("10 seconds", 49), ("1 hour", 50), ("infinity", 50)):
        await client.execute(
            "UPDATE dionysus_sync.sync_queue SET next_retry_at = CASE WHEN $1 = 'infinity' THEN 'infinity'"
            " ELSE clock_timestamp() + nullif($1, 'infinity')::interval END WHERE next_retry_at IS NOT NULL",
            wait,
        )
        async with outbox.claim(1000, 4_000_000) as claim:
            assert claim is not None
            assert len(claim.entries) == taken


@pytest.mark.promise("P1")
async def test_nonsense_in_the_queue_is_broken_one_by_one(database: Database, client: Client) -> None:
    """Each has its reason; what stands beside it is read as ever."""
    good = {"id": str(uid(1)), "content": "good"}
    time = "2026-01-01T00:00:00+00:00"
    project = {"id": "p", "name": "p", "description": None, "created_at": time}
    session = {"id": str(uid(2)), "project_id": "p", "started_at": time, "last_activity_at": time}
    link = {"source_id": str(uid(1)), "target_id": str(uid(2)), "context": "", "created_at": time}
    rows: list[tuple[str, dict[str, Any], int | None, int | None]] = [
        ("memory", good, 1, None),
        ("memory", good, None, None),
        ("memory", good, 0, None),
        ("memory", good, -1, None),
        ("memory", good, 2_147_483_647, None),
        ("memory", good, 2, -5),
        ("memory", good, 2, 2_147_483_647),
        ("memory", {**good, "id": str(uid(2))}, 2, None),
        ("memory", {**good, "id": None}, 2, None),
        ("memory", {"content": "no id"}, 2, None),
        ("memory", {**good, "importance": "much"}, 2, None),
        ("memory", {**good, "importance": True}, 2, None),
        ("memory", {**good, "importance": [1]}, 2, None),
        ("project", project, None, None),
        ("project", {**project, "unknown": 10**30, "deep": {"a": [1]}}, None, None),
        ("project", {**project, "id": 5}, None, None),
        ("project", {**project, "id": ["p"]}, None, None),
        ("project", {**project, "name": None}, None, None),
        ("session", session, None, None),
        ("session", {**session, "id": "no uuid"}, None, None),
        ("session", {**session, "summary": {"a": 1}}, None, None),
        ("reference", link, None, None),
        ("reference", {**link, "target_id": None}, None, None),
        ("reference", {}, None, None),
    ]
    for entity, payload, number, base in rows:
        await client.execute(
            "INSERT INTO dionysus_sync.sync_queue (entity, memory_id, operation, payload, sync_version, base_version)"
            " VALUES ($1, $2, 'update', $3, $4, $5)",
            entity, uid(1), json.dumps(payload), number, base,
        )  # fmt: skip
    await client.execute(
        "INSERT INTO dionysus_sync.sync_queue (entity, operation, payload, created_at)"
        " VALUES ('project', 'update', $1, '294000-01-01'), ('project', 'update', $2, 'infinity')",
        json.dumps(project),
        '{"id": ' + "[" * 3000 + "]" * 3000 + "}",
    )
    async with PostgresOutbox(database).claim(1000, 4_000_000) as claim:
        assert claim is not None
        read = [(e.entity, e.broken is None) for e in claim.entries]
    assert [entity for entity, whole in read if whole] == [
        "memory",
        "project",
        "project",
        "session",
        "reference",
        "project",
    ]
    assert len(read) == len(rows) + 2
