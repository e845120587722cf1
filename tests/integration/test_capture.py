"""Capture: every change of a plain client is in the queue by its own commit, and never in the client's way."""

import json
import re

import asyncpg
import pytest

from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.adapters.postgres.outbox import PostgresOutbox
from dionysus_sync_mcp.adapters.statements import load_migrations, load_sql
from dionysus_sync_mcp.runtime import Runtime
from tests.integration.stores import INSERT, Client, node, operations, plain_client, queue, uid
from tests.services.local_store import opened

MANY_TYPES = """
ALTER TABLE memories
    ADD COLUMN j json, ADD COLUMN jb jsonb, ADD COLUMN p point, ADD COLUMN b bytea, ADD COLUMN n numeric,
    ADD COLUMN a integer[], ADD COLUMN r tstzrange, ADD COLUMN i interval, ADD COLUMN f float8,
    ADD COLUMN mood mood, ADD COLUMN doubled integer GENERATED ALWAYS AS (cardinality(a) * 2) STORED
"""
MANY_VALUES = r"""
UPDATE memories SET j = '{"b": 1, "a": [null]}', jb = '{"deep": {"nothing": null}}', p = '(1.5,2)', b = '\xdeadbeef',
    n = 12.3400, a = '{{1,2},{3,4}}', r = '[2020-01-01 00:00+00,infinity)', i = '1 mon 2 days 03:00', f = 0.1,
    mood = 'calm'
"""


@pytest.mark.promise("P1")
async def test_each_kind_of_change_is_captured_with_the_row_and_its_version(client: Client) -> None:
    """Insert, update and delete give one entry each, with the row's image and a rising version."""
    await client.execute(INSERT, uid(1), "first")
    await client.execute("UPDATE memories SET content = 'second'")
    await client.execute("DELETE FROM memories")
    found = await queue(client)
    assert [(e.operation, e.version, e.image["content"]) for e in found] == [
        ("create", 1, "first"),
        ("update", 2, "second"),
        ("delete", 3, "second"),
    ]
    assert "sync_version" not in found[0].image


@pytest.mark.promise("P1")
async def test_bulk_changes_are_captured_row_by_row(client: Client) -> None:
    """One statement over many rows gives an entry for each, COPY included."""
    await client.copy_records_to_table(
        "memories", records=[(uid(i), "c") for i in range(1, 501)], columns=["id", "content"]
    )
    await client.execute("UPDATE memories SET content = content || '!' WHERE id <= $1", uid(300))
    await client.execute("DELETE FROM memories WHERE id <= $1", uid(200))
    found = await operations(client)
    assert (found.count(("create", 1)), found.count(("update", 2)), found.count(("delete", 3))) == (500, 300, 200)


async def test_both_branches_of_an_upsert_are_captured(client: Client) -> None:
    """INSERT ... ON CONFLICT DO UPDATE is an insert for the new row and an update for the old one."""
    await client.execute(INSERT, uid(1), "old")
    await client.executemany(
        f"{INSERT} ON CONFLICT (id) DO UPDATE SET content = 'upserted'", [(uid(1), "x"), (uid(2), "y")]
    )
    assert await operations(client) == [("create", 1), ("update", 2), ("create", 1)]


async def test_merge_is_captured(client: Client) -> None:
    """MERGE fires what its branches are."""
    if client.get_server_version() < (15,):
        pytest.skip("MERGE came with PostgreSQL 15")
    await client.execute(INSERT, uid(1), "old")
    await client.execute(
        "MERGE INTO memories m USING (VALUES ($1::uuid), ($2::uuid)) AS given (id) ON m.id = given.id"
        " WHEN MATCHED THEN UPDATE SET content = 'merged'"
        " WHEN NOT MATCHED THEN INSERT (id, content) VALUES (given.id, 'new')",
        uid(1),
        uid(2),
    )
    assert sorted(await operations(client)) == [("create", 1), ("create", 1), ("update", 2)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE memories SET content = content",
        "UPDATE memories SET content = content WHERE false",
        "UPDATE memories SET sync_status = 'synced', sync_version = 99, remote_id = 'x', synced_version = 98",
    ],
)
async def test_an_update_that_changes_nothing_of_the_users_is_not_captured(client: Client, statement: str) -> None:
    """Neither a no-op nor an UPDATE of the sync columns is a change, and the latter does not take hold."""
    await client.execute(INSERT, uid(1), "c")
    before = await client.fetchrow("SELECT * FROM memories")
    await client.execute(statement)
    assert await operations(client) == [("create", 1)]
    assert await client.fetchrow("SELECT * FROM memories") == before


@pytest.mark.parametrize("version", [None, -5, 0, 2_147_483_647])
@pytest.mark.promise("P5")
async def test_an_insert_cannot_break_the_count_of_versions(client: Client, version: int | None) -> None:
    """A row inserted with an impossible version starts at 1, and can be changed and deleted like any other."""
    await client.execute("INSERT INTO memories (id, content, sync_version) VALUES ($1, 'c', $2)", uid(1), version)
    await client.execute("UPDATE memories SET content = 'd'")
    await client.execute("DELETE FROM memories")
    assert await operations(client) == [("create", 1), ("update", 2), ("delete", 3)]


async def test_a_change_of_primary_key_is_a_delete_and_an_insert(client: Client) -> None:
    """The old id gets its tombstone, the new one its memory."""
    await client.execute(INSERT, uid(1), "c")
    await client.execute("UPDATE memories SET id = $1", uid(2))
    found = await queue(client)
    assert [(e.operation, e.memory_id) for e in found] == [("create", uid(1)), ("delete", uid(1)), ("create", uid(2))]


async def test_deleting_and_inserting_one_id_in_one_transaction(client: Client) -> None:
    """Both are captured, in order."""
    await client.execute(INSERT, uid(1), "old")
    async with client.transaction():
        await client.execute("DELETE FROM memories")
        await client.execute(INSERT, uid(1), "new")
    found = await queue(client)
    assert [(e.operation, e.image["content"]) for e in found] == [
        ("create", "old"),
        ("delete", "old"),
        ("create", "new"),
    ]


async def test_what_is_rolled_back_is_not_captured(client: Client) -> None:
    """Neither a rolled back transaction nor a rolled back savepoint leaves an entry."""
    whole = client.transaction()
    await whole.start()
    await client.execute(INSERT, uid(1), "never")
    await whole.rollback()
    async with client.transaction():
        await client.execute(INSERT, uid(2), "kept")
        part = client.transaction()
        await part.start()
        await client.execute("UPDATE memories SET content = 'never'")
        await part.rollback()
    assert [(e.operation, e.image["content"]) for e in await queue(client)] == [("create", "kept")]


@pytest.mark.promise("P1")
async def test_a_replica_session_is_captured_too(client: Client) -> None:
    """session_replication_role = replica switches ordinary triggers off, ours not."""
    await client.execute("SET session_replication_role = replica")
    await client.execute(INSERT, uid(1), "c")
    await client.execute("UPDATE memories SET content = 'd'")
    assert await operations(client) == [("create", 1), ("update", 2)]


async def test_columns_of_any_type_are_carried(client: Client) -> None:
    """The image holds columns that we do not know, nested nulls and generated values included."""
    await client.execute("CREATE TYPE mood AS ENUM ('calm', 'cross')")
    await client.execute(MANY_TYPES)
    await client.execute(INSERT, uid(1), "c")
    await client.execute(MANY_VALUES)
    image = (await queue(client))[-1].image
    assert image["jb"] == {"deep": {"nothing": None}}
    assert (image["p"], image["b"], image["a"], image["doubled"]) == ("(1.5,2)", "\\xdeadbeef", [[1, 2], [3, 4]], 8)
    assert (image["mood"], image["i"], image["f"]) == ("calm", "P1M2DT3H", 0.1)


@pytest.mark.parametrize(
    "column", ["j json", "p point", "doubled integer GENERATED ALWAYS AS (length(content)) STORED"]
)
async def test_a_no_op_is_known_as_one_whatever_types_the_table_has(client: Client, column: str) -> None:
    """Types without an equality operator, and generated columns, do not make every UPDATE a change."""
    await client.execute(f"ALTER TABLE memories ADD COLUMN {column}")
    await client.execute(INSERT, uid(1), "c")
    await client.execute("UPDATE memories SET content = content")
    assert await operations(client) == [("create", 1)]
    await client.execute("UPDATE memories SET content = 'd'")
    assert await operations(client) == [("create", 1), ("update", 2)]


@pytest.mark.promise("P1")
@pytest.mark.promise("P5")
async def test_rows_that_cannot_be_made_json_are_parked_alone(client: Client) -> None:
    """A json column may hold an escaped NUL, which jsonb may not: the write and the other rows go through."""
    await client.execute("ALTER TABLE memories ADD COLUMN j json")
    statement = "INSERT INTO memories (id, content, j) VALUES ($1, 'good', '{}'), ($2, 'bad', $3::text::json)"
    await client.execute(statement, uid(1), uid(2), r'{"a": "\u0000"}')
    await client.execute("UPDATE memories SET content = content || '!'")
    await client.execute("UPDATE memories SET id = $1 WHERE id = $2", uid(3), uid(2))
    await client.execute("DELETE FROM memories")
    found = [(e.memory_id.int, e.operation, e.parked) for e in await queue(client)]
    assert [entry for entry in found if entry[0] == 1] == [
        (1, "update", False),
        (1, "update", False),
        (1, "delete", False),
    ]
    assert [entry for entry in found if entry[0] != 1] == [
        (2, "update", True), (2, "update", True), (3, "update", True), (2, "delete", True), (3, "delete", True),
    ]  # fmt: skip
    assert all("Unicode escape" in (e.error or "") for e in await queue(client) if e.parked)


@pytest.mark.parametrize(
    "removal",
    [
        "ALTER TABLE dionysus_sync.sync_queue RENAME TO elsewhere",
        "DROP TABLE dionysus_sync.sync_queue",
        "DROP FUNCTION dionysus_sync.content_hash",
    ],
)
@pytest.mark.promise("P1")
@pytest.mark.promise("P5")
async def test_without_our_queue_the_write_goes_on_and_is_found_later(
    migrated_database_url: str, client: Client, removal: str
) -> None:
    """The user's write never fails for our queue's sake; reinstalling and backfilling finds the row."""
    warnings: list[str] = []
    client.add_log_listener(lambda _, message: warnings.append(str(message)))
    await client.execute(removal)
    await client.execute(INSERT, uid(1), "written meanwhile")
    await client.execute("UPDATE memories SET content = 'changed meanwhile'")
    async with opened(migrated_database_url) as database:
        installer = Installer(database, load_migrations())
        assert not await installer.capture_installed()
        await installer.install()
        assert await installer.capture_installed()
        await installer.backfill_once(10)
    entry = (await queue(client))[-1]
    assert (entry.version, entry.image["content"]) == (2, "changed meanwhile")
    assert any("could not capture" in w for w in warnings) or "content_hash" in removal


RETYPED = {
    "sync_status text": "sync_status TYPE text",
    "synced_at timestamp": "synced_at TYPE timestamp",
    "remote_id text": "remote_id TYPE text",
    "remote_id uuid": "remote_id TYPE uuid USING remote_id::uuid",
    "synced_version bigint": "synced_version TYPE bigint",
    "updated_at date": "updated_at TYPE date",
    "sync_status integer": "sync_status DROP DEFAULT, ALTER COLUMN sync_status TYPE integer USING 1",
}


@pytest.mark.promise("P5")
@pytest.mark.parametrize("change", RETYPED)
async def test_a_column_of_another_type_does_not_fail_the_writes_of_open_sessions(client: Client, change: str) -> None:
    """A session that has written before goes on, its changes are captured, and a stamp of the engine is none."""
    await client.execute(INSERT, uid(1), "a")
    for _ in range(8):
        await client.execute("UPDATE memories SET content = content || '!'")
    await client.execute(f"ALTER TABLE memories ALTER COLUMN {RETYPED[change]}")
    for _ in range(3):
        await client.execute("UPDATE memories SET content = content || '?', synced_version = 77")
    assert (await operations(client))[-3:] == [("update", 10), ("update", 11), ("update", 12)]
    assert await client.fetchval("SELECT synced_version FROM memories") is None
    async with client.transaction():
        await client.execute(load_sql()["mark_engine"])
        await client.execute("UPDATE memories SET synced_version = 12, content = 'a trigger of the users'")
    row = await client.fetchrow("SELECT synced_version, sync_version, content FROM memories")
    assert row is not None
    assert tuple(row) == (12, 12, "a!!!!!!!!???")
    assert len(await operations(client)) == 12


async def test_without_our_schema_a_write_goes_on(client: Client) -> None:
    """Dropping the whole bookkeeping takes our triggers with it, and the table works as before us."""
    await client.execute("DROP SCHEMA dionysus_sync CASCADE")
    await client.execute(INSERT, uid(1), "c")
    await client.execute("UPDATE memories SET content = 'd'")
    assert await client.fetchval("SELECT content FROM memories") == "d"


async def test_the_users_session_settings_do_not_change_the_hash(migrated_database_url: str, client: Client) -> None:
    """Two sessions with other time zones, number and date formats write the same row, and it has one hash."""
    await client.execute(
        "ALTER TABLE memories ADD COLUMN f float8, ADD COLUMN d date, ADD COLUMN i interval, ADD COLUMN b bytea"
    )
    odd = {"timezone": "Asia/Kathmandu", "extra_float_digits": "-15", "datestyle": "German", "bytea_output": "escape"}
    statement = (
        "INSERT INTO memories (id, content, created_at, updated_at, f, d, i, b) VALUES ($1, 'c', '2024-01-02 03:04+00',"
        " '2024-01-02 03:04+00', 0.1::float8 + 0.2, make_date(2024, 1, 2), interval '1 day 2 hours', 'x'::bytea)"
    )
    async with plain_client(migrated_database_url, **odd) as other:
        await other.execute(statement, uid(1))
    await client.execute("DELETE FROM memories")
    await client.execute(statement, uid(1))
    hashes = await client.fetch("SELECT dionysus_sync.content_hash(payload) AS hash FROM dionysus_sync.sync_queue")
    assert len(hashes) == 3
    assert len({r["hash"] for r in hashes}) == 1


@pytest.mark.parametrize(
    "name", ["memories", "dionysus_row", "before", "changed", "entry", 'odd "name', "dionysus_new"]
)
async def test_a_column_named_like_an_alias_is_only_a_column(client: Client, name: str) -> None:
    """No name of a column can stand for the row."""
    quoted = '"' + name.replace('"', '""') + '"'
    await client.execute(f"ALTER TABLE memories ADD COLUMN {quoted} text DEFAULT 'trap'")
    await client.execute(INSERT, uid(1), "c")
    await client.execute("UPDATE memories SET content = 'd'")
    found = await queue(client)
    assert [(e.operation, e.image["content"], e.image[name]) for e in found] == [
        ("create", "c", "trap"),
        ("update", "d", "trap"),
    ]


@pytest.mark.promise("P1")
async def test_a_role_with_only_the_rights_to_write_is_captured(migrated_database_url: str, client: Client) -> None:
    """The agent's own role needs no right on our schema, and cannot reach the queue."""
    role = "dml_" + re.sub(r"\W", "", migrated_database_url.split("?")[0].rsplit("/", 1)[-1])
    await client.execute(
        f"CREATE ROLE {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON memories TO {role}; SET ROLE {role}"
    )
    try:
        await client.execute(INSERT, uid(1), "c")
        await client.execute("UPDATE memories SET content = 'd'")
        await client.execute("DELETE FROM memories")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await client.execute("DELETE FROM dionysus_sync.sync_queue")
    finally:
        await client.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")
    assert await operations(client) == [("create", 1), ("update", 2), ("delete", 3)]


async def test_the_order_of_capture_is_that_of_the_row_lock(migrated_database_url: str, client: Client) -> None:
    """An older transaction that writes last has the higher version, the later entry and the later time."""
    await client.execute(INSERT, uid(1), "c")
    async with plain_client(migrated_database_url) as older:
        transaction = older.transaction()
        await transaction.start()
        await older.execute("SELECT 1, now()")
        await client.execute("UPDATE memories SET content = 'younger transaction'")
        await older.execute("UPDATE memories SET content = 'older transaction'")
        await transaction.commit()
    found = await queue(client)
    assert [(e.version, e.image["content"]) for e in found][1:] == [
        (2, "younger transaction"),
        (3, "older transaction"),
    ]
    assert found[2].image["updated_at"] > found[1].image["updated_at"]


async def test_a_write_of_one_statement_has_one_look_at_the_clock_at_least(client: Client) -> None:
    """updated_at is the time of the change, not that of its transaction's start."""
    async with client.transaction():
        await client.execute(INSERT, uid(1), "c")
        await client.execute("UPDATE memories SET content = 'd'")
        assert await client.fetchval("SELECT updated_at > now() FROM memories")


@pytest.mark.promise("P2")
async def test_backfill_queues_each_row_once(migrated_database_url: str, client: Client) -> None:
    """Rows written while the triggers were off are found, and found no second time."""
    await client.execute("ALTER TABLE memories DISABLE TRIGGER dionysus_capture_insert")
    await client.execute("INSERT INTO memories (content) SELECT 'c' || i FROM generate_series(1, 25) AS i")
    async with opened(migrated_database_url) as database:
        installer = Installer(database, load_migrations())
        assert not await installer.capture_installed()
        assert [await installer.backfill_once(10) for _ in range(4)] == [10, 10, 5, 0]
    assert await operations(client) == [("create", 1)] * 25


async def test_something_else_in_the_queue_does_not_stop_it(migrated_database_url: str, client: Client) -> None:
    """An entry that the capture did not write is either refused by the queue or read as broken."""
    with pytest.raises(asyncpg.CheckViolationError):
        await client.execute(
            "INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload) VALUES ($1, 'update', '5')", uid(1)
        )
    payload = json.dumps({"id": str(uid(2)), "importance": "very"})
    await client.execute(
        "INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version)"
        " VALUES ($1, 'update', $2, 1)",
        uid(2),
        payload,
    )
    await client.execute(INSERT, uid(3), "good")
    async with opened(migrated_database_url) as database, PostgresOutbox(database).claim(10, 10_000) as claim:
        assert claim is not None
        assert [bool(entry.broken) for entry in claim.entries] == [True, False]


@pytest.mark.promise("P1")
@pytest.mark.parametrize("updates", [0, 1, 4])
async def test_ids_that_shift_in_one_statement_lose_no_content(
    program: Runtime, client: Client, empty_neo4j: str, updates: int
) -> None:
    """A row that takes the id of a row that moves on is captured whatever their versions are, and pushed."""
    await client.execute("ALTER TABLE memories DROP CONSTRAINT memories_pkey, ADD PRIMARY KEY (id) DEFERRABLE")
    await client.execute(INSERT, uid(2), "B")
    for number in range(updates):
        await client.execute("UPDATE memories SET content = $1", f"B{number}")
    await client.execute(INSERT, uid(1), "A")
    before = await client.fetchval("SELECT content FROM memories WHERE id = $1", uid(2))
    await program.sync(embed=False)
    await client.execute(
        "UPDATE memories SET id = CASE id WHEN $1::uuid THEN $2::uuid ELSE $3 END", uid(1), uid(2), uid(3)
    )
    assert {(e.memory_id, e.image["content"]) for e in await queue(client) if e.operation != "delete"} == {
        (uid(2), "A"),
        (uid(3), before),
    }
    await program.sync(embed=False)
    assert [(await node(empty_neo4j, uid(i)))["content"] for i in (2, 3)] == ["A", before]
    assert "deleted_at" in await node(empty_neo4j, uid(1))
    assert {r["sync_status"] for r in await client.fetch("SELECT sync_status FROM memories")} == {"synced"}
