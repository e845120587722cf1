"""What the database itself sees of statements that destroy, and that it is in nobody's way."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from typing import Any

import anyio
import asyncpg
import pytest

from dionysus_sync_mcp.adapters.postgres import observing
from dionysus_sync_mcp.adapters.postgres.database import (
    CAPTURE_ABOVE_OWNER,
    WATCHING_ONLY,
    WATCHING_ONLY_BESIDE,
    Database,
)
from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.adapters.postgres.observing import PostgresObserving
from dionysus_sync_mcp.adapters.statements import load_migrations
from dionysus_sync_mcp.domain.adoption import CAPTURE_TRIGGERS
from dionysus_sync_mcp.domain.destruction import Sight, Thresholds
from dionysus_sync_mcp.domain.errors import DatabaseMissing
from dionysus_sync_mcp.domain.watching import compare
from tests.integration.roles import role_of
from tests.integration.stores import INSERT, Client, operations, plain_client, queue, uid
from tests.services import postgres
from tests.services.local_store import opened, opened_by_older
from tests.services.waiting import until

RELEASED = 4  # migrations that a released program before this one had
OBSERVED = "SELECT kind, row_count, detail FROM dionysus_sync.observations ORDER BY seq"
HIT = "SELECT kind, memory_ids FROM dionysus_sync.observations ORDER BY seq"
WRITER = "GRANT USAGE ON SCHEMA public TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON memories TO {role}"
UNCAPTURED = (
    "ALTER TABLE memories ADD COLUMN j json, DISABLE TRIGGER ALL;"
    "INSERT INTO memories (id, content, j) VALUES ({}, 'unseen', '{{}}'), ({}, 'unseen', {}::json);"
    "ALTER TABLE memories ENABLE ALWAYS TRIGGER dionysus_truncate; DELETE FROM dionysus_sync.observations;"
    "DELETE FROM dionysus_sync.sync_queue"
)
WAITING = (
    "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
    " WHERE NOT granted AND datname = current_database()"
)
LOCKS = "SELECT mode FROM pg_locks WHERE relation = 'memories'::regclass AND pid = pg_backend_pid()"


@pytest.fixture
async def database(migrated_database_url: str) -> AsyncIterator[Database]:
    """The program's access to the client's database."""
    async with opened(migrated_database_url) as access:
        yield access


@pytest.fixture(scope="module")
async def shared_url(migrated_template: str) -> AsyncIterator[str]:
    """A local store of the tests that leave nothing in it."""
    async with postgres.copy_of(migrated_template) as url:
        yield url


@pytest.fixture
async def undone(shared_url: str) -> AsyncIterator[Client]:
    """A client within a transaction that is undone at the end of the test."""
    async with plain_client(shared_url) as client:
        transaction = client.transaction()
        await transaction.start()
        yield client
        await transaction.rollback()


@pytest.fixture
def seeing(database: Database) -> PostgresObserving:
    """The adapter under test."""
    return PostgresObserving(database)


@asynccontextmanager
async def warnings_of(client: Client) -> AsyncIterator[list[str]]:
    """What the server warns this client of meanwhile."""
    said: list[str] = []

    def listen(_: object, message: Any) -> None:  # noqa: ANN401 - the driver's own type is not public
        said.append(str(message))

    client.add_log_listener(listen)
    yield said
    client.remove_log_listener(listen)


async def observed(client: Client) -> list[tuple[str, int, str]]:
    """Kind, rows and detail of each observation, in order."""
    return [tuple(r) for r in await client.fetch(OBSERVED)]


async def hit(client: Client) -> list[tuple[str, set[int]]]:
    """Kind of each observation, and the numbers of the memories that it names, in order."""
    return [(r[0], {memory_id.int for memory_id in r[1]}) for r in await client.fetch(HIT)]


async def fill(client: Client, rows: int) -> None:
    """Memories 1 to `rows`."""
    await client.executemany(INSERT, [(uid(i), f"text {i}") for i in range(1, rows + 1)])


async def test_deletes_are_observed_by_statement(undone: Client) -> None:
    """One observation for each statement, with the ids that it deleted; none where it deleted nothing."""
    await fill(undone, 5)
    await undone.execute("DELETE FROM memories WHERE id <= $1", uid(3))
    await undone.execute("DELETE FROM memories WHERE id = $1", uid(4))
    await undone.execute("DELETE FROM memories WHERE id = $1", uid(99))
    assert await hit(undone) == [("delete", {1, 2, 3}), ("delete", {4})]
    assert await observed(undone) == [("delete", 3, ""), ("delete", 1, "")]


async def test_changed_contents_are_observed(undone: Client) -> None:
    """Of the rows that a statement touched, those of which the content is another one."""
    await fill(undone, 4)
    await undone.execute("UPDATE memories SET content = 'text 2', tags = '{t}' WHERE id <= $1", uid(3))
    await undone.execute(f"{INSERT} ON CONFLICT (id) DO UPDATE SET content = EXCLUDED.content", uid(4), "upserted")
    assert await hit(undone) == [("update", {1, 3}), ("update", {4})]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO memories (content) VALUES ('new')",
        "UPDATE memories SET tags = '{t}', importance = 1",
        "UPDATE memories SET content = content",
        "UPDATE memories SET content = '' WHERE false",
        "UPDATE memories SET sync_status = 'synced'",
        "SET dionysus.origin = 'engine'; UPDATE memories SET sync_status = 'synced'",
        "SET dionysus.origin = 'restore'; UPDATE memories SET content = ''; DELETE FROM memories",
    ],
)
async def test_what_destroys_nothing_is_not_observed(undone: Client, statement: str) -> None:
    """Inserts, changes of other columns, no-ops, and what the program itself writes."""
    await fill(undone, 2)
    await undone.execute(statement)
    assert await observed(undone) == []


@pytest.mark.parametrize("kind", ["varchar(30)", "char(30)", "name", "citext"])
async def test_contents_of_any_text_type_are_compared_by_their_letters(undone: Client, kind: str) -> None:
    """Also where the type takes different letters for equal."""
    if kind == "citext":
        await undone.execute("CREATE EXTENSION citext")
    await undone.execute(f"ALTER TABLE memories ALTER COLUMN content TYPE {kind}")
    await fill(undone, 1)
    await undone.execute("DELETE FROM dionysus_sync.observations")
    await undone.execute("UPDATE memories SET content = 'TEXT 1'")
    await undone.execute("UPDATE memories SET content = 'TEXT 1', tags = '{t}'")
    assert await hit(undone) == [("update", {1})]


async def test_a_change_of_ids_is_a_delete_of_the_old_ones(undone: Client) -> None:
    """Of several rows in one statement; ids that stay but stand for another text are changed contents."""
    await fill(undone, 4)
    await undone.execute(
        "UPDATE memories SET id = CASE WHEN id = $1 THEN $2 WHEN id = $3 THEN $4 ELSE id END",
        uid(1), uid(11), uid(2), uid(12),
    )  # fmt: skip
    assert await hit(undone) == [("delete", {1, 2})]
    await undone.execute("ALTER TABLE memories DROP CONSTRAINT memories_pkey, ADD PRIMARY KEY (id) DEFERRABLE")
    await undone.execute(
        "UPDATE memories SET id = CASE id WHEN $1 THEN $2 WHEN $2 THEN $1 ELSE $3 END WHERE id IN ($1, $2, $4)",
        uid(3), uid(4), uid(13), uid(11),
    )  # fmt: skip
    assert (await hit(undone))[1:] == [("update", {3, 4}), ("delete", {11})]


@pytest.mark.promise("P8")
async def test_an_observation_says_who_did_it_and_when(client: Client, migrated_database_url: str) -> None:
    """The role of the session, its name, address, process and statement; the changes lie between its times."""
    await fill(client, 2)
    async with (
        role_of(client, migrated_database_url, WRITER) as url,
        plain_client(url, application_name="careless agent") as agent,
    ):
        statement = "DELETE FROM memories /* " + "x" * 3000 + " */"
        await agent.execute(statement)
        address = await agent.fetchval("SELECT host(inet_client_addr())")
        role, pid = await agent.fetchval("SELECT session_user"), agent.get_server_pid()
    seen = await client.fetchrow("SELECT * FROM dionysus_sync.observations")
    assert seen is not None
    assert (seen["role"], seen["application_name"], seen["client_address"]) == (role, "careless agent", address)
    assert (seen["pid"], seen["statement"]) == (pid, statement[:2000])
    assert seen["table_oid"] == await client.fetchval("SELECT 'memories'::regclass::oid")
    captured = "SELECT created_at FROM dionysus_sync.sync_queue WHERE operation = 'delete' ORDER BY seq"
    times = [r[0] for r in await client.fetch(captured)]
    assert [seen["at"], *times, seen["until"]] == sorted([seen["at"], *times, seen["until"]])
    assert len(times) == 2


@pytest.mark.promise("P5")
async def test_another_role_cannot_hide_a_delete(client: Client, migrated_database_url: str) -> None:
    """A session that only says that it is the engine is observed like any other."""
    await fill(client, 1)
    async with role_of(client, migrated_database_url, WRITER) as url, plain_client(url) as agent:
        await agent.execute("SET dionysus.origin = 'engine'")
        await agent.execute("DELETE FROM memories")
    assert await hit(client) == [("delete", {1})]


@pytest.mark.promise("P1")
@pytest.mark.promise("P5")
async def test_without_observations_the_write_goes_through_and_is_captured(undone: Client) -> None:
    """The table of observations is gone: a warning, and every change is in the queue."""
    await fill(undone, 3)
    await undone.execute("DROP TABLE dionysus_sync.observations")
    async with warnings_of(undone) as said:
        await undone.execute("UPDATE memories SET content = 'changed'")
        await undone.execute("DELETE FROM memories WHERE id < $1", uid(3))
        await undone.execute("TRUNCATE memories")
    captured = sorted(operation for operation, _ in await operations(undone))
    assert captured == ["create"] * 3 + ["delete"] * 2 + ["update"] * 3
    assert len(said) == 3
    assert all("could not observe" in warning for warning in said)


@pytest.mark.promise("P5")
async def test_without_a_queue_the_write_goes_through_and_is_observed(undone: Client) -> None:
    """What cannot be captured is told of all the same."""
    await fill(undone, 2)
    await undone.execute("DROP TABLE dionysus_sync.sync_queue; DELETE FROM dionysus_sync.observations")
    async with warnings_of(undone) as said:
        await undone.execute("UPDATE memories SET content = 'changed'")
        await undone.execute("UPDATE memories SET id = $1 WHERE id = $2", uid(3), uid(2))
        await undone.execute("DELETE FROM memories")
    assert await hit(undone) == [("update", {1, 2}), ("delete", {2}), ("delete", {1, 3})]
    assert all("could not capture" in warning for warning in said)


async def test_rows_that_cannot_be_made_json_are_observed(undone: Client) -> None:
    """They are parked one by one, and their statement leaves one observation like any other."""
    await undone.execute("ALTER TABLE memories ADD COLUMN j json")
    await fill(undone, 2)
    await undone.execute("UPDATE memories SET j = $2::text::json WHERE id = $1", uid(1), r'{"a": "\u0000"}')
    await undone.execute("UPDATE memories SET content = 'changed'")
    await undone.execute("DELETE FROM memories")
    assert await hit(undone) == [("update", {1, 2}), ("delete", {1, 2})]


@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE memories",
        "TRUNCATE projects_of_mine CASCADE",
        "SET session_replication_role = replica; TRUNCATE memories",
    ],
)
@pytest.mark.promise("P7")
async def test_truncate_is_observed_and_deletes_nothing_remotely(undone: Client, statement: str) -> None:
    """With the number of rows; by way of another table too, and in a session that switches triggers off."""
    await undone.execute(
        "CREATE TABLE projects_of_mine (id text PRIMARY KEY); INSERT INTO projects_of_mine VALUES ('p');"
        "ALTER TABLE memories ADD FOREIGN KEY (source_project) REFERENCES projects_of_mine"
    )
    await fill(undone, 7)
    await undone.execute(statement)
    assert await observed(undone) == [("truncate", 7, "")]
    assert {operation for operation, _ in await operations(undone)} == {"create"}


@pytest.mark.promise("P5")
async def test_a_bookkeeping_that_lacks_functions_stops_no_truncate(undone: Client) -> None:
    """Nor what else would ask them; what cannot be told apart from the program's own work is observed."""
    await fill(undone, 2)
    await undone.execute("DROP FUNCTION dionysus_sync.by_engine, dionysus_sync.queue_missed; TRUNCATE memories")
    assert ("truncate", 2, "") in await observed(undone)


async def test_a_truncate_that_is_rolled_back_leaves_nothing(undone: Client) -> None:
    """The rows are all there, and nobody is told."""
    await fill(undone, 2)
    await undone.execute("SAVEPOINT s; TRUNCATE memories; ROLLBACK TO s")
    assert await observed(undone) == []
    assert await undone.fetchval("SELECT count(*) FROM memories") == 2


@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    "statement",
    [
        "TRUNCATE memories",
        "DROP TABLE memories",
        "DO 'BEGIN DROP SCHEMA public CASCADE; END'",
        "DO $$ BEGIN EXECUTE 'DROP TABLE ' || 'mem' || 'ories'; END $$",
        "CREATE FUNCTION gone() RETURNS void LANGUAGE sql AS $$DROP TABLE memories$$; SELECT gone()",
        "ALTER TABLE memories DROP tags",
    ],
)
async def test_rows_that_were_not_captured_are_saved_before_they_go(undone: Client, statement: str) -> None:
    """Their images are queued before the time at which all was well; one that cannot be made JSON is parked."""
    numbers = [f"'{uid(1)}'", f"'{uid(2)}'"]
    await undone.execute(UNCAPTURED.format(*numbers, r"""'{"a": "\u0000"}'"""))
    await undone.execute(statement)
    found = await queue(undone)
    assert [(e.memory_id.int, e.operation, e.parked) for e in found] == [(1, "create", False), (2, "create", True)]
    assert found[0].image["content"] == "unseen"
    at = await undone.fetchval("SELECT at FROM dionysus_sync.observations")
    assert await undone.fetchval("SELECT max(created_at) FROM dionysus_sync.sync_queue") < at


DROPS = {
    "DROP TABLE memories": [("drop", 3, "table memories dropped")],
    "DROP TABLE memories CASCADE": [("drop", 3, "table memories dropped")],
    "DROP SCHEMA public CASCADE": [("drop", 3, "schema public dropped with table memories")],
    "DO 'BEGIN DROP SCHEMA public CASCADE; END'": [("drop", 3, "schema public dropped with table memories")],
    "SET session_replication_role = replica; DROP TABLE memories": [("drop", 3, "table memories dropped")],
    "CREATE ROLE careless; ALTER TABLE memories OWNER TO careless; DROP OWNED BY careless": [
        ("drop", 3, "table memories dropped")
    ],
    "SET dionysus.before_ddl = 'nonsense'; DROP TRIGGER dionysus_capture_update ON memories": [
        ("drop", 0, "trigger dionysus_capture_update of the bookkeeping dropped")
    ],
    "DROP TABLE dionysus_sync.sync_queue": [("drop", 0, "sync_queue of the bookkeeping dropped")],
    "ALTER TABLE dionysus_sync.sync_queue DROP COLUMN payload": [
        ("drop", 0, "sync_queue.payload of the bookkeeping dropped")
    ],
    "DROP FUNCTION dionysus_sync.before_truncate CASCADE": [
        ("drop", 0, "before_truncate, trigger dionysus_truncate of the bookkeeping dropped")
    ],
    "DROP TRIGGER dionysus_truncate ON memories": [("drop", 0, "trigger dionysus_truncate of the bookkeeping dropped")],
    "CREATE TYPE mood AS ENUM ('calm'); ALTER TABLE memories ADD COLUMN moods mood[]; DROP TYPE mood CASCADE": [
        ("alter", 3, "column moods dropped")
    ],
    "ALTER TABLE memories RENAME TO old; CREATE TABLE memories (); DROP TABLE old": [
        ("alter", 3, "table memories renamed to public.old"),
        ("drop", 3, "table old dropped"),
    ],
    "CREATE TABLE memories_of_mine (); DROP TABLE memories_of_mine": [],
    "CREATE TEMPORARY TABLE memories (id uuid); DROP TABLE pg_temp.memories": [],
    "CREATE SCHEMA mine; CREATE TABLE mine.memories (id uuid); DROP SCHEMA mine CASCADE": [],
    "CREATE INDEX i ON memories (content); DROP INDEX i": [],
    "SAVEPOINT s; DROP TABLE memories; ROLLBACK TO s": [],
    "SET dionysus.origin = 'engine'; DROP TABLE memories": [],
}


@pytest.mark.parametrize("statement", DROPS)
async def test_what_is_dropped_is_observed(undone: Client, statement: str) -> None:
    """The table with the number of its rows, and parts of the bookkeeping; nothing else, and nothing of our own."""
    await fill(undone, 3)
    table = await undone.fetchval("SELECT 'memories'::regclass::oid")
    async with warnings_of(undone) as said:
        await undone.execute(statement)
    assert await observed(undone) == DROPS[statement]
    of_memories = [
        r[0] for r in await undone.fetch("SELECT table_oid FROM dionysus_sync.observations WHERE row_count > 0")
    ]
    assert set(of_memories) <= {table}
    assert not [warning for warning in said if "dionysus-sync" in warning]


ALTERATIONS = {
    "ALTER TABLE memories DROP COLUMN tags": "column tags dropped",
    "ALTER TABLE memories DROP tags, DROP importance": "column importance, tags dropped",
    "ALTER TABLE memories ALTER content TYPE varchar(3) USING left(content, 3)": (
        "column content changed from text to character varying(3)"
    ),
    "ALTER TABLE memories ALTER content TYPE text USING ''": "values of a column computed anew",
    "ALTER TABLE memories RENAME content TO body": "column content is called body now",
    "ALTER TABLE memories RENAME TO old": "table memories renamed to public.old",
    "ALTER INDEX memories RENAME TO old": "table memories renamed to public.old",
    "CREATE SCHEMA s; ALTER TABLE memories SET SCHEMA s": "table memories renamed to s.memories",
    "ALTER SCHEMA public RENAME TO old": "table memories renamed to old.memories",
    "ALTER TABLE memories DISABLE TRIGGER dionysus_truncate": "trigger dionysus_truncate switched off",
    "ALTER TABLE memories ENABLE TRIGGER dionysus_truncate": "trigger dionysus_truncate switched off",
    "ALTER TRIGGER dionysus_truncate ON memories RENAME TO mine": "trigger dionysus_truncate switched off",
    "SET session_replication_role = replica; ALTER TABLE memories DROP tags": "column tags dropped",
    "ALTER TABLE memories ALTER content TYPE varchar": None,
    "ALTER TABLE memories ALTER memory_type TYPE varchar(50)": None,
    "ALTER TABLE memories ADD mood text DEFAULT 'calm'": None,
    "ALTER TABLE memories ADD mood uuid DEFAULT gen_random_uuid()": None,
    "ALTER TABLE memories ADD mood text; ALTER TABLE memories RENAME mood TO temper": None,
    "ALTER TABLE memories ALTER content SET DEFAULT ''": None,
    "ALTER TABLE memories ADD CONSTRAINT c CHECK (content <> '')": None,
    "ALTER TABLE memories SET UNLOGGED": None,
    "CREATE INDEX i ON memories (content); ALTER INDEX i RENAME TO j": None,
    "CREATE TABLE t (content text); ALTER TABLE t ALTER content TYPE varchar(3); ALTER TABLE t RENAME TO u": None,
    "SAVEPOINT s; ALTER TABLE memories DROP tags; ROLLBACK TO s": None,
    "SET dionysus.origin = 'engine'; ALTER TABLE memories DROP tags": None,
}


@pytest.mark.parametrize("statement", ALTERATIONS)
async def test_an_alteration_that_endangers_data_is_observed(undone: Client, statement: str) -> None:
    """And one that does not is not."""
    await fill(undone, 3)
    table = await undone.fetchval("SELECT 'memories'::regclass::oid")
    async with warnings_of(undone) as said:
        await undone.execute(statement)
    detail = ALTERATIONS[statement]
    rows = 0 if detail and detail.startswith("trigger") else 3
    assert await observed(undone) == ([("alter", rows, detail)] if detail else [])
    assert {r[0] for r in await undone.fetch("SELECT table_oid FROM dionysus_sync.observations")} <= {table}
    assert not [warning for warning in said if "dionysus-sync" in warning]


async def test_a_table_that_is_swapped_is_observed(undone: Client) -> None:
    """One observation for the table that went; what stands there now is not ours yet."""
    await fill(undone, 3)
    await undone.execute(
        "CREATE TABLE fresh (LIKE memories INCLUDING ALL);"
        "ALTER TABLE memories RENAME TO old; ALTER TABLE fresh RENAME TO memories"
    )
    assert await observed(undone) == [("alter", 3, "table memories renamed to public.old")]


@pytest.mark.promise("P5")
@pytest.mark.parametrize("also", ["", ", public"])
async def test_the_bookkeeping_can_be_dropped(client: Client, seeing: PostgresObserving, also: str) -> None:
    """Nobody is in the way of that, and only watching sees it."""
    await fill(client, 3)
    before = await seeing.sight(0)
    async with warnings_of(client) as said:
        await client.execute(f"DROP SCHEMA dionysus_sync{also} CASCADE")
    assert not [warning for warning in said if "dionysus-sync" in warning]
    now = await seeing.sight(before.last_seq)
    assert (before.store is not None, before.event_triggers, before.rows) == (True, True, 3)
    assert (now.store, now.event_triggers, now.whole) == (None, False, False)
    assert now.table == (None if also else before.table)


@pytest.mark.promise("P5")
@pytest.mark.parametrize("statement", ["DROP TABLE memories", "ALTER TABLE memories DROP tags", "TRUNCATE memories"])
async def test_an_observer_that_fails_stops_nobody(undone: Client, statement: str) -> None:
    """Without a place for its observation it warns, and the statement does what it was to do."""
    await fill(undone, 1)
    await undone.execute("ALTER TABLE dionysus_sync.observations RENAME TO elsewhere")
    async with warnings_of(undone) as said:
        await undone.execute(statement)
    assert len([warning for warning in said if "dionysus-sync could not observe" in warning]) == 1


@pytest.mark.promise("P5")
@pytest.mark.parametrize("statement", ["DROP TABLE mine", "ALTER TABLE mine DROP i", "DROP SCHEMA yours"])
async def test_ddl_of_another_table_neither_waits_for_ours_nor_keeps_it(
    client: Client, migrated_database_url: str, statement: str
) -> None:
    """A lock that was kept would end in a deadlock of two clients that both change the table."""
    await fill(client, 1)
    await client.execute("CREATE TABLE mine (i integer); CREATE SCHEMA yours")
    async with client.transaction():
        await client.execute(statement)
        assert await client.fetch(LOCKS) == []
    await client.execute("DROP TABLE IF EXISTS mine; DROP SCHEMA IF EXISTS yours")
    await client.execute("CREATE TABLE mine (i integer); CREATE SCHEMA yours")
    async with plain_client(migrated_database_url) as another, another.transaction():
        await another.execute("LOCK TABLE memories")
        await client.execute("SET lock_timeout = '15s'")
        await client.execute(statement, timeout=14)


@pytest.mark.promise("P5")
@pytest.mark.parametrize("statement", ["DROP TABLE {}", "DROP TABLE {} CASCADE", "DROP TABLE {} /* not memories */"])
async def test_rows_that_were_not_captured_make_no_ddl_wait_for_another(
    client: Client, migrated_database_url: str, statement: str
) -> None:
    """Two clients that drop tables of theirs can both change the table afterwards; what they could concern is saved."""
    await client.execute(UNCAPTURED.format(f"'{uid(1)}'", f"'{uid(2)}'", "'{}'"))
    await client.execute("CREATE TABLE mine (); CREATE TABLE yours ()")
    async with plain_client(migrated_database_url) as another, client.transaction(), another.transaction():
        await client.execute(statement.format("mine"))
        await another.execute(statement.format("yours"))
        assert await client.fetch(LOCKS) == await another.fetch(LOCKS) == []
        saved = await client.fetchval("SELECT count(DISTINCT memory_id) FROM dionysus_sync.sync_queue")
        assert saved == (0 if statement == "DROP TABLE {}" else 2)
        await client.execute("ALTER TABLE memories ADD mood text", timeout=15)


@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    "statement", ["DROP TABLE mine", "DO 'BEGIN DROP TABLE mine; END'", "ALTER TABLE mine ADD j text"]
)
async def test_ddl_of_another_table_reads_nothing_of_ours(
    client: Client, migrated_database_url: str, statement: str
) -> None:
    """What it read would end serializable transactions of clients that have nothing to do with each other."""
    await fill(client, 1)
    await client.execute("CREATE TABLE mine (); CREATE TABLE yours (i integer); INSERT INTO yours VALUES (1)")
    serializable = "BEGIN ISOLATION LEVEL SERIALIZABLE"
    async with plain_client(migrated_database_url) as another:
        await client.execute(serializable)
        await another.execute(serializable)
        await client.execute(statement)
        await another.fetch("SELECT * FROM yours")
        await another.execute("UPDATE memories SET importance = 1")
        await client.execute("UPDATE yours SET i = 2")
        await another.execute("COMMIT")
        await client.execute("COMMIT")


@pytest.mark.promise("P5")
async def test_a_table_that_is_locked_is_dropped_without_its_number_of_rows(
    client: Client, migrated_database_url: str
) -> None:
    """Who is about to wait for the table does not wait for the look at it as well."""
    await fill(client, 2)
    async with plain_client(migrated_database_url) as another:
        await another.execute("BEGIN; LOCK TABLE memories")
        await client.execute("SET lock_timeout = '100ms'")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await client.execute("DROP TABLE memories")
        await another.execute("DROP TABLE memories; COMMIT")
    assert await observed(client) == [("drop", 2, "table memories dropped")]


async def test_our_own_ddl_is_not_observed(client: Client, database: Database) -> None:
    """An installation that puts the triggers back, and one that makes the table again."""
    installer = Installer(database, load_migrations())
    await client.execute("DROP TRIGGER dionysus_truncate ON memories; DELETE FROM dionysus_sync.observations")
    await installer.install()
    definition = await installer.definition()
    await client.execute("DROP TABLE memories; DELETE FROM dionysus_sync.observations")
    await installer.rebuild(definition)
    assert await installer.capture_installed()
    assert await observed(client) == []


@pytest.mark.parametrize(
    "statement",
    [
        "DROP EVENT TRIGGER dionysus_dropped",
        "ALTER EVENT TRIGGER dionysus_altered DISABLE",
        "ALTER EVENT TRIGGER dionysus_before_ddl ENABLE",
        "DROP FUNCTION dionysus_sync.ddl_rewrites CASCADE",
    ],
)
async def test_event_triggers_are_put_back(client: Client, database: Database, statement: str) -> None:
    """They are missed like any trigger, and what was captured meanwhile needs no comparison."""
    installer, seeing = Installer(database, load_migrations()), PostgresObserving(database)
    await client.execute(statement)
    assert not (await seeing.sight(0)).event_triggers
    assert not await installer.capture_installed()
    steps, _ = await installer.install()
    assert [step.name for step in steps] == ["install_event_triggers"]
    assert await installer.capture_installed()
    assert (await seeing.sight(0)).event_triggers
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.comparison_due") == 0
    await client.execute("DELETE FROM dionysus_sync.observations; DROP TABLE memories")
    assert await observed(client) == [("drop", 0, "table memories dropped")]


async def test_event_triggers_of_another_release_are_brought_up_to_date(client: Client, database: Database) -> None:
    """An event trigger cannot be replaced, but its functions can."""
    installer = Installer(database, load_migrations())
    assert set(json.loads(database.ddl_functions())) >= {"ddl_begins", "ddl_altered", "dangers", "glance_at"}
    await client.execute(
        "CREATE OR REPLACE FUNCTION dionysus_sync.ddl_altered() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'"
    )
    assert not await installer.capture_installed()
    steps, _ = await installer.install()
    assert [step.name for step in steps] == ["install_event_triggers"]
    assert await installer.capture_installed()
    await client.execute("ALTER TABLE memories DROP tags")
    await client.execute("ALTER TABLE memories RENAME TO old")
    assert [kind for kind, _, _ in await observed(client)] == ["alter", "alter"]


@pytest.mark.promise("P1")
@pytest.mark.parametrize("function", ["capture_memories", "observe"])
async def test_a_function_of_the_capture_that_was_replaced_is_missed_and_put_back(
    client: Client, database: Database, seeing: PostgresObserving, function: str
) -> None:
    """Triggers that are all there and do nothing are as good as gone."""
    installer, before = Installer(database, load_migrations()), await seeing.sight(0)
    text = await client.fetchval(f"SELECT pg_get_functiondef('dionysus_sync.{function}'::regproc)")
    body = "BEGIN RETURN NULL; END" if function == "capture_memories" else "BEGIN END"
    await client.execute(text[: text.index("AS $")] + f"AS '{body}'")
    now = await seeing.sight(0)
    assert [one.kind for one in compare(before, now, Thresholds(), CAPTURE_TRIGGERS)] == ["capture_off"]
    assert not await installer.capture_installed()
    await installer.install()
    assert await installer.capture_installed()
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.comparison_due") == 1
    assert (await seeing.sight(0)).triggers == CAPTURE_TRIGGERS
    await fill(client, 1)
    await client.execute("DELETE FROM memories")
    assert [operation for operation, _ in await operations(client)] == ["create", "delete"]
    assert [kind for kind, _, _ in await observed(client)] == ["delete"]


@asynccontextmanager
async def owner_of(client: Client, url: str) -> AsyncIterator[str]:
    """The URL of a role that may make a local store, and no event triggers."""
    name = await client.fetchval("SELECT current_database()")
    rights = f"GRANT CREATE ON DATABASE {name} TO {{role}}; GRANT CREATE, USAGE ON SCHEMA public TO {{role}}"
    async with role_of(client, url, rights) as owner:
        yield owner


@pytest.mark.promise("P9")
async def test_a_role_that_is_no_superuser_goes_without_event_triggers(database_url: str) -> None:
    """Triggers and TRUNCATE are observed, what watching alone can see is said to be degraded, and nothing is amiss."""
    async with plain_client(database_url) as client, owner_of(client, database_url) as url, opened(url) as own:
        installer, seeing = Installer(own, load_migrations()), PostgresObserving(own)
        assert (await own.health(15)).degraded == ()
        await installer.install()
        assert await installer.capture_installed()
        assert await installer.install() == ([], True)
        own._look_again_at = 0.0
        assert (await own.health(15)).degraded == (WATCHING_ONLY,)
        assert not (await seeing.sight(0)).event_triggers
        await fill(client, 3)
        await client.execute("DELETE FROM memories WHERE id = $1", uid(1))
        await client.execute("TRUNCATE memories")
        assert await observed(client) == [("delete", 1, ""), ("truncate", 2, "")]
        await client.execute("DROP TABLE memories")
        now = await seeing.sight(0)
        assert (now.table, now.store is not None, now.gone) == (None, True, 3)


async def test_rows_that_policies_hide_are_not_missing(database_url: str) -> None:
    """Neither when the owner of the table subjects itself to them, nor afterwards."""
    limits = Thresholds()
    async with plain_client(database_url) as client, owner_of(client, database_url) as url, opened(url) as own:
        await Installer(own, load_migrations()).install()
        seeing = PostgresObserving(own)
        await fill(client, 20)
        looks = [await seeing.sight(0)]
        await client.execute("ALTER TABLE memories ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
        assert await seeing.population() == 0
        looks += [await seeing.sight(0), await seeing.sight(0)]
        await client.execute("ALTER TABLE memories DISABLE ROW LEVEL SECURITY")
        looks.append(await seeing.sight(0))
    found = [compare(before, now, limits, CAPTURE_TRIGGERS) for before, now in pairwise(looks)]
    assert (looks[0].rows, looks[-1].rows, found) == (20, 20, [[], [], []])


@pytest.mark.promise("P9")
async def test_a_superuser_adds_no_event_triggers_to_what_a_lesser_role_owns(database_url: str) -> None:
    """Code of that role would run in them with the superuser's rights; what is missing then is said."""
    async with plain_client(database_url) as client, owner_of(client, database_url) as url, opened(url) as own:
        await Installer(own, load_migrations()).install()
        async with opened(database_url) as full, plain_client(url) as lesser:
            installer = Installer(full, load_migrations())
            await installer.install()
            assert await installer.capture_installed()
            assert not (await PostgresObserving(full).sight(0)).event_triggers
            role = await lesser.fetchval("SELECT current_user::text")
            assert (await full.health(15)).degraded == (WATCHING_ONLY_BESIDE.format(role),)
            await lesser.execute("CREATE TABLE mine (); DROP TABLE mine")
        assert await client.fetch("SELECT FROM pg_event_trigger") == []


@pytest.mark.parametrize(
    "given",
    [
        "ALTER FUNCTION dionysus_sync.from_missed OWNER TO {role}",
        "ALTER TABLE dionysus_sync.observations OWNER TO {role}",
        "GRANT CREATE ON SCHEMA dionysus_sync TO {role}",
        "GRANT TRIGGER ON dionysus_sync.sync_queue TO PUBLIC",
    ],
)
async def test_event_triggers_are_put_back_only_where_all_that_they_reach_is_a_superusers(
    client: Client, database: Database, migrated_database_url: str, given: str
) -> None:
    """A part that a lesser role could change is enough."""
    async with role_of(client, migrated_database_url, given):
        await client.execute("DROP EVENT TRIGGER dionysus_dropped")
        installer = Installer(database, load_migrations())
        await installer.install()
        assert await client.fetchval("SELECT count(*) FROM pg_event_trigger") == 3
        assert "whose own code" in (await database.health(15)).degraded[0]


@pytest.mark.promise("P9")
async def test_a_capture_with_more_rights_than_the_owner_of_the_table_is_told(
    client: Client, database: Database, migrated_database_url: str
) -> None:
    """What that owner makes its columns of could use them."""
    assert (await database.health(15)).degraded == ()
    async with role_of(client, migrated_database_url, "GRANT CREATE ON SCHEMA public TO {role}"):
        role = await client.fetchval(
            "SELECT rolname FROM pg_roles WHERE rolname LIKE 'plain%' || right(current_database(), 12)"
        )
        await client.execute(f"ALTER TABLE memories OWNER TO {role}")
        capture = await client.fetchval("SELECT current_user::text")
        database._look_again_at = 0.0
        assert (await database.health(15)).degraded == (CAPTURE_ABOVE_OWNER.format(owner=role, capture=capture),)


async def test_a_store_of_the_release_before_is_observed_after_the_upgrade(database_url: str) -> None:
    """Tables, triggers and event triggers are all put in place."""
    async with opened(database_url) as database, plain_client(database_url) as client:
        async with opened_by_older(database_url) as older:
            await Installer(older, load_migrations()[:RELEASED]).install()
        await fill(client, 3)
        installer = Installer(database, load_migrations())
        assert not await installer.capture_installed()
        await installer.install()
        assert await installer.capture_installed()
        await client.execute("DELETE FROM memories WHERE id = $1", uid(1))
        await client.execute("TRUNCATE memories; DROP TABLE memories")
        assert [kind for kind, _, _ in await observed(client)] == ["delete", "truncate", "drop"]


async def test_observations_are_read_in_pages(
    client: Client, seeing: PostgresObserving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number, those that nobody has judged; a page ends early rather than be too large, and never is empty."""
    monkeypatch.setattr(observing, "MOST_IDS", 4)
    await fill(client, 8)
    for first, last in ((1, 5), (6, 7), (8, 8)):
        await client.execute("DELETE FROM memories WHERE id BETWEEN $1 AND $2", uid(first), uid(last))
    await client.execute("TRUNCATE memories")
    pages = []
    while page := await seeing.unjudged(3):
        pages.append([(o.kind, o.rows, len(o.memory_ids)) for o in page])
        done = "UPDATE dionysus_sync.observations SET judged_at = now() WHERE seq = ANY ($1)"
        await client.execute(done, [o.seq for o in page])
    assert pages == [[("delete", 5, 5)], [("delete", 2, 2), ("delete", 1, 1), ("truncate", 0, 0)]]


async def test_deletes_and_updates_of_a_span_are_found(client: Client, seeing: PostgresObserving) -> None:
    """Judged or not, both ends included; other kinds are not part of a burst."""
    await fill(client, 3)
    for number in (1, 2):
        await client.execute("DELETE FROM memories WHERE id = $1", uid(number))
    await client.execute("TRUNCATE memories")
    await client.execute("UPDATE dionysus_sync.observations SET judged_at = now() WHERE seq = 1")
    first, second, _ = await client.fetch("SELECT at FROM dionysus_sync.observations ORDER BY seq")
    found = await seeing.between(first["at"], second["at"])
    assert [(o.memory_ids, o.judged) for o in found] == [((str(uid(1)),), True), ((str(uid(2)),), False)]
    assert found[0].who.role == await client.fetchval("SELECT session_user")
    assert await seeing.between(first["at"] + timedelta(microseconds=1), second["at"]) == found[1:]


async def test_what_is_in_the_table_now(client: Client, seeing: PostgresObserving) -> None:
    """Nothing, where there is no table."""
    await fill(client, 3)
    ids = [str(uid(i)) for i in (1, 3, 9)]
    assert (await seeing.live(ids), await seeing.population()) == (frozenset({str(uid(1)), str(uid(3))}), 3)
    await client.execute("DROP TABLE memories")
    assert (await seeing.live(ids), await seeing.population()) == (frozenset(), 0)


async def test_a_look_at_the_store(client: Client, seeing: PostgresObserving) -> None:
    """The table, its columns and triggers, its rows, and how many of those that went are accounted for."""
    await fill(client, 5)
    before = await seeing.sight(0)
    assert before.table == await client.fetchval("SELECT 'memories'::regclass::oid")
    assert before.store == await client.fetchval("SELECT id::text FROM dionysus_sync.store_identity")
    assert {"content text", "tags text[]", "memory_type character varying(20)"} < set(before.columns)
    assert not [column for column in before.columns if column.startswith("sync")]
    assert (before.triggers, before.event_triggers, before.whole) == (CAPTURE_TRIGGERS, True, True)
    assert (before.rows, before.last_seq, before.gone) == (5, 0, 0)
    await client.execute("DELETE FROM memories WHERE id <= $1", uid(2))
    await client.execute("ALTER TABLE memories DISABLE TRIGGER dionysus_truncate, ADD COLUMN mood text")
    now = await seeing.sight(before.last_seq)
    assert (now.rows, now.last_seq, now.gone) == (3, 2, 2)
    assert set(now.columns) - set(before.columns) == {"mood text"}
    assert before.triggers - now.triggers == {"dionysus_truncate"}
    assert (await seeing.sight(now.last_seq)).gone == 0


async def test_rows_are_counted_up_to_a_bound(
    client: Client, seeing: PostgresObserving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at a large table does not count all of it."""
    monkeypatch.setattr(observing, "MOST_COUNTED", 3)
    await fill(client, 3)
    assert (await seeing.sight(0)).rows == 3
    await client.execute(INSERT, uid(4), "one more")
    assert (await seeing.sight(0)).rows is None


async def test_a_delete_that_commits_late_is_accounted_for(
    client: Client, seeing: PostgresObserving, migrated_database_url: str
) -> None:
    """Its number is lower than that of one that was seen before: the next look counts it all the same."""
    await fill(client, 3)
    async with plain_client(migrated_database_url) as slow:
        await slow.execute("BEGIN; DELETE FROM memories WHERE id = $$00000000-0000-0000-0000-000000000001$$")
        await client.execute("DELETE FROM memories WHERE id = $1", uid(2))
        between = await seeing.sight(0)
        await slow.execute("COMMIT")
    after = await seeing.sight(between.last_seq)
    assert (between.rows, after.rows, after.last_seq) == (2, 1, 2)
    assert after.gone >= 1


@pytest.mark.parametrize("statement", ["TRUNCATE memories", "ALTER TABLE memories RENAME TO old"])
async def test_a_look_is_taken_again_where_the_table_went_meanwhile(
    client: Client, seeing: PostgresObserving, migrated_database_url: str, statement: str
) -> None:
    """Rows that are gone for a look whose snapshot does not have their observation yet are not taken for lost."""
    await fill(client, 3)
    seen: list[Sight] = []

    async def look() -> None:
        seen.append(await seeing.sight(0))

    async def waits() -> bool:
        return bool(await another.fetchval(WAITING))

    async with plain_client(migrated_database_url) as another, anyio.create_task_group() as tasks:
        await client.execute(f"BEGIN; {statement}")
        tasks.start_soon(look)
        await until(waits, what="the look has begun and waits for the table", seconds=15)
        await client.execute("COMMIT")
    truncated = statement.startswith("TRUNCATE")
    assert [(s.table is None, s.rows, s.gone) for s in seen] == [(False, 0, 3) if truncated else (True, None, 0)]


async def test_numbers_that_begin_again_are_understood(client: Client, seeing: PostgresObserving) -> None:
    """The table of observations was made anew since the last look."""
    await fill(client, 2)
    await client.execute("TRUNCATE dionysus_sync.observations RESTART IDENTITY")
    await client.execute("DELETE FROM memories")
    now = await seeing.sight(500)
    assert (now.last_seq, now.gone) == (1, 2)


LEFT = {
    "nothing": "DROP SCHEMA dionysus_sync, public CASCADE",
    "no table": "DROP TABLE memories",
    "a view in its place": "DROP TABLE memories; CREATE VIEW memories AS SELECT 1 AS id",
    "a table by hand": "DROP TABLE memories; CREATE TABLE memories (id text, content xml)",
    "no observations": "DROP TABLE dionysus_sync.observations, dionysus_sync.watched",
    "no identity": "DROP TABLE dionysus_sync.store_identity",
    "bookkeeping by hand": (
        "DROP SCHEMA dionysus_sync CASCADE; CREATE SCHEMA dionysus_sync;"
        "CREATE TABLE dionysus_sync.observations (seq text, kind text, row_count text);"
        "CREATE TABLE dionysus_sync.store_identity (id text); CREATE VIEW dionysus_sync.watched AS SELECT 1"
    ),
}


@pytest.mark.promise("P9")
@pytest.mark.parametrize("left", LEFT)
async def test_a_look_at_whatever_is_left(client: Client, seeing: PostgresObserving, left: str) -> None:
    """It tells what is there, and fails for nothing."""
    await fill(client, 2)
    await client.execute(LEFT[left])
    now = await seeing.sight(0)
    assert (now.table is None) == (left in ("nothing", "no table", "a view in its place"))
    assert (now.store is None) == (left in ("nothing", "no identity", "bookkeeping by hand"))
    assert now.rows == (None if now.table is None else 0 if left == "a table by hand" else 2)
    assert await seeing.remembered() is None


async def test_a_look_is_remembered(client: Client, seeing: PostgresObserving, database: Database) -> None:
    """By another process too; one that another version has left is none."""
    assert await seeing.remembered() is None
    await fill(client, 2)
    for _ in range(2):
        sight = await seeing.sight(0)
        await seeing.remember(sight)
        assert await PostgresObserving(database).remembered() == sight
    await client.execute("UPDATE dionysus_sync.watched SET sight = $1::jsonb", json.dumps({"unknown": 1}))
    assert await seeing.remembered() is None


async def test_what_was_judged_long_ago_is_removed_in_pages(
    client: Client, seeing: PostgresObserving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nobody has judged, and what was judged within the week, stays."""
    monkeypatch.setattr(observing, "PRUNED", 2)
    await fill(client, 5)
    for number in range(1, 6):
        await client.execute("DELETE FROM memories WHERE id = $1", uid(number))
    await client.execute("UPDATE dionysus_sync.observations SET judged_at = now() - interval '8 days' WHERE seq <= 3")
    await client.execute("UPDATE dionysus_sync.observations SET judged_at = now() - interval '6 days' WHERE seq = 4")
    assert [await seeing.prune_observations() for _ in range(3)] == [2, 1, 0]
    assert await hit(client) == [("delete", {4}), ("delete", {5})]


@pytest.mark.promise("P9")
async def test_a_database_that_is_gone_is_told_from_a_server_that_is(plain_template: str) -> None:
    """The look says that the database is missing, whether a connection was open or not."""
    async with postgres.copy_of(plain_template) as url, opened(url) as database:
        await Installer(database, load_migrations()).install()
        assert (await PostgresObserving(database).sight(0)).table is not None
        name = url.split("?")[0].rsplit("/", 1)[-1]
        await postgres.execute(postgres.with_database(url, "postgres"), f"DROP DATABASE {name} WITH (FORCE)")
        await database.close()
        with pytest.raises(DatabaseMissing):
            await PostgresObserving(database).sight(0)
