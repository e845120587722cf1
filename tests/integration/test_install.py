"""Installation: a database becomes a local store, with whatever table is there, or is left exactly as it was."""

import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.adapters.postgres.outbox import PostgresOutbox
from dionysus_sync_mcp.adapters.postgres.verifying import PostgresVerifying
from dionysus_sync_mcp.adapters.statements import load_migrations
from dionysus_sync_mcp.domain.errors import AccessRefused, DionysusError, NotAdoptable, SchemaMismatch, Unavailable
from tests.integration.roles import role_of
from tests.integration.stores import Client, operations, plain_client, uid
from tests.services.local_store import opened

# Everything that an installation could leave behind.
CATALOGUE = """
SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname !~ '^pg_'
UNION ALL SELECT 'relation ' || oid::regclass || relkind::text FROM pg_class
    WHERE relnamespace::regnamespace::text !~ '^pg_'
UNION ALL SELECT 'column ' || attrelid::regclass || attname || format_type(atttypid, atttypmod) || attnotnull
    FROM pg_attribute WHERE attrelid >= 16384 AND attnum > 0
UNION ALL SELECT 'trigger ' || tgname || tgenabled::text FROM pg_trigger
UNION ALL SELECT 'function ' || oid::regprocedure FROM pg_proc WHERE oid >= 16384
ORDER BY 1
"""
NEEDED = (
    "id uuid PRIMARY KEY, content text, memory_type text, importance real, source_project text, session_id uuid,"
    " tags text[], created_at timestamptz, updated_at timestamptz"
)
OWN_TABLE = ";".join(
    (
        f"""CREATE TABLE memories ({NEEDED}, "My own column" jsonb DEFAULT '{{"a": 1}}', n serial, UNIQUE (content))""",
        "INSERT INTO memories (id, content) SELECT md5(i::text)::uuid, 'was here ' || i FROM generate_series(1, 30) i",
    )
)


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[Client]:
    """A user's own connection to a database that is not a local store."""
    async with plain_client(database_url) as connection:
        yield connection


@asynccontextmanager
async def installer_of(url: str, schema: str = "public") -> AsyncIterator[Installer]:
    """The installer of a database."""
    async with opened(url, schema) as database:
        yield Installer(database, load_migrations())


async def catalogue(client: Client) -> list[str]:
    """Everything that an installation could leave behind."""
    return [r[0] for r in await client.fetch(CATALOGUE)]


async def test_a_fresh_database_becomes_a_local_store_once(client: Client, database_url: str) -> None:
    """The first init does all, and its table is captured; the second finds nothing to do."""
    async with installer_of(database_url) as installer:
        assert not await installer.initialised()
        steps, adopted = await installer.install()
        assert [step.name for step in steps][-4:] == [
            "create_memories", "add_sync_columns", "add_sync_indexes", "install_capture",
        ]  # fmt: skip
        assert (adopted, await installer.capture_installed()) == (False, True)
        before = await catalogue(client)
        assert await installer.install() == ([], True)
    assert await catalogue(client) == before
    await client.execute("INSERT INTO memories (content) VALUES ('c')")
    assert await operations(client) == [("create", 1)]


async def test_a_dry_run_changes_nothing_and_its_sql_is_what_would_run(client: Client, database_url: str) -> None:
    """What it prints, run by hand, makes the same local store."""
    before = await catalogue(client)
    async with installer_of(database_url) as installer:
        steps, _ = await installer.missing_steps()
        assert await catalogue(client) == before
        for step in steps:
            await client.execute(step.sql)
        assert await installer.capture_installed()


@pytest.mark.promise("P1")
async def test_a_table_with_columns_defaults_and_rows_of_its_own_is_adopted(client: Client, database_url: str) -> None:
    """Its rows and columns stay as they are, and its rows are queued with all of their columns."""
    await client.execute(OWN_TABLE)
    before = await client.fetch("SELECT * FROM memories ORDER BY id")
    async with installer_of(database_url) as installer:
        steps, adopted = await installer.install()
        assert adopted
        assert "create_memories" not in [step.name for step in steps]
        assert await installer.backfill_once(1000) == 30
    after = await client.fetch("SELECT * FROM memories ORDER BY id")
    assert [tuple(r)[: len(before[0])] for r in after] == [tuple(r) for r in before]
    carried = "SELECT count(payload -> 'My own column' -> 'a') FROM dionysus_sync.sync_queue"
    assert await client.fetchval(carried) == 30


REFUSED = {
    "everything that is missing is named": (
        "CREATE TABLE memories (id uuid PRIMARY KEY, content text)",
        "lacks the column.*memory_type.*importance.*source_project.*session_id.*tags.*created_at.*updated_at",
    ),
    "a wrong type": (
        f"CREATE TABLE memories ({NEEDED.replace('importance real', 'importance text')})",
        "importance is text, not real",
    ),
    "two wrong types": (
        f"CREATE TABLE memories ({NEEDED.replace('[]', '').replace('content text', 'content bytea')})",
        "content is bytea, not text; column tags is text, not text",
    ),
    "no primary key": (f"CREATE TABLE memories ({NEEDED.replace(' PRIMARY KEY', '')})", "primary key"),
    "another primary key": (
        f"CREATE TABLE memories ({NEEDED.replace(' PRIMARY KEY', '')}, PRIMARY KEY (id, content))",
        "primary key",
    ),
    "an id that is no uuid": (
        f"CREATE TABLE memories ({NEEDED.replace('id uuid', 'id bigint', 1)})",
        "id is bigint, not uuid",
    ),
    "a sync column of its own": (
        f"CREATE TABLE memories ({NEEDED}, sync_version text, sync_status boolean)",
        "sync_version is text, not integer; column sync_status is boolean, not text",
    ),
    "a view": ("CREATE VIEW memories AS SELECT 1", "a view"),
    "a materialized view": ("CREATE MATERIALIZED VIEW memories AS SELECT 1", "a materialized view"),
    "a partitioned table": (f"CREATE TABLE memories ({NEEDED}) PARTITION BY HASH (id)", "a partitioned table"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_table_that_cannot_be_adopted_is_left_as_it_was(client: Client, database_url: str, case: str) -> None:
    """The error names what is in the way, and the catalogue is the same before and after."""
    statement, message = REFUSED[case]
    await client.execute(statement)
    before = await catalogue(client)
    async with installer_of(database_url) as installer:
        for attempt in (installer.missing_steps, installer.install):
            with pytest.raises(NotAdoptable, match=message):
                await attempt()
    assert await catalogue(client) == before


@pytest.mark.parametrize("kind", ["char(20)", "varchar(20)"])
async def test_types_that_do_are_adopted(client: Client, database_url: str, kind: str) -> None:
    """What holds the same values is as good: other string types, numeric, timestamps without zone, an enum."""
    await client.execute(
        "CREATE TYPE kind AS ENUM ('episodic', 'semantic'); CREATE TABLE memories (id uuid PRIMARY KEY,"
        f" content {kind}, memory_type kind, importance numeric, source_project citizen, session_id text,"
        " tags varchar(9)[], created_at timestamp, updated_at date)".replace("citizen", kind)
    )
    async with installer_of(database_url) as installer:
        await installer.install()
    await client.execute("INSERT INTO memories (id, content, importance) VALUES ($1, 'c', 0.50)", uid(1))
    await client.execute("UPDATE memories SET content = 'd'")
    assert await operations(client) == [("create", 1), ("update", 2)]


async def test_a_role_without_rights_is_told_so(client: Client, database_url: str) -> None:
    """Neither the table nor the bookkeeping may be made: a clear error, and nothing is left behind."""
    async with role_of(client, database_url) as url:
        before = await catalogue(client)
        async with installer_of(url) as installer:
            for attempt in (installer.missing_steps, installer.install):
                with pytest.raises(NotAdoptable, match="may not create"):
                    await attempt()
        assert await catalogue(client) == before


async def test_a_role_that_may_not_make_our_schema_is_told_so(client: Client, database_url: str) -> None:
    """A right on the user's schema alone is not enough."""
    async with role_of(client, database_url, "GRANT CREATE, USAGE ON SCHEMA public TO {role}") as url:
        before = await catalogue(client)
        async with installer_of(url) as installer:
            for attempt in (installer.missing_steps, installer.install):
                with pytest.raises(NotAdoptable, match="may not create the schema dionysus_sync"):
                    await attempt()
        assert await catalogue(client) == before


async def test_only_the_owner_can_have_a_table_adopted(client: Client, database_url: str) -> None:
    """Another role is told to run init as the owner."""
    await client.execute(f"CREATE TABLE memories ({NEEDED})")
    database = database_url.split("?")[0].rsplit("/", 1)[-1]
    rights = f"GRANT ALL ON memories TO {{role}}; GRANT CREATE ON DATABASE {database} TO {{role}}"
    async with role_of(client, database_url, rights) as url:
        before = await catalogue(client)
        async with installer_of(url) as installer:
            for attempt in (installer.missing_steps, installer.install):
                with pytest.raises(NotAdoptable, match="does not own"):
                    await attempt()
        assert await catalogue(client) == before


async def test_a_plain_owner_needs_no_superuser(client: Client, database_url: str) -> None:
    """A role that owns the table and may make a schema is enough, and what it writes is captured."""
    database = database_url.split("?")[0].rsplit("/", 1)[-1]
    rights = f"GRANT CREATE ON DATABASE {database} TO {{role}}; GRANT CREATE, USAGE ON SCHEMA public TO {{role}}"
    async with role_of(client, database_url, rights) as url:
        async with installer_of(url) as installer:
            await installer.install()
            assert await installer.capture_installed()
        async with plain_client(url) as owner:
            await owner.execute("INSERT INTO memories (content) VALUES ('c')")
            assert await operations(owner) == [("create", 1)]


async def test_a_failure_in_the_middle_leaves_the_database_as_it_was(client: Client, database_url: str) -> None:
    """The last step fails: the first ones are gone too."""
    await client.execute(OWN_TABLE)
    before = await catalogue(client)
    async with installer_of(database_url) as installer:
        sound = installer._database.sql
        installer._database.sql = {**sound, "install_capture": f"{sound['install_capture']}; SELECT 1 / 0"}
        with pytest.raises(DionysusError, match="division by zero"):
            await installer.install()
    assert await catalogue(client) == before
    assert await client.fetchval("SELECT count(*) FROM memories") == 30


async def test_a_table_that_somebody_holds_is_not_waited_for_long(
    client: Client, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is waited for a moment only; the error says that it can be tried again."""
    await client.execute(OWN_TABLE)
    async with installer_of(database_url) as installer:
        quick = {**installer._database.sql, "short_lock_wait": "SET LOCAL lock_timeout = '50ms'"}
        monkeypatch.setattr(installer._database, "sql", quick)
        async with client.transaction():
            await client.execute("SELECT FROM memories FOR UPDATE")
            with pytest.raises(Unavailable, match="lock timeout"):
                await installer.install()
        await installer.install()


async def test_two_inits_at_once_make_one_local_store(database_url: str) -> None:
    """Both succeed; one did the work."""
    did: list[int] = []

    async def init(installer: Installer) -> None:
        did.append(len((await installer.install())[0]))

    async with installer_of(database_url) as one, installer_of(database_url) as other:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(init, one)
            tasks.start_soon(init, other)
        assert await one.capture_installed()
    assert sorted(did) == [0, max(did)]
    assert max(did) > 0


async def test_a_newer_or_changed_bookkeeping_is_refused(client: Client, database_url: str) -> None:
    """A program must not work on what it does not know."""
    async with installer_of(database_url) as installer:
        await installer.install()
        await client.execute("INSERT INTO dionysus_sync.schema_migrations VALUES ('9999_from_the_future', 'x')")
        with pytest.raises(SchemaMismatch, match="9999_from_the_future"):
            await installer.install()
        await client.execute("DELETE FROM dionysus_sync.schema_migrations WHERE name ^@ '9999'")
        await client.execute("UPDATE dionysus_sync.schema_migrations SET checksum = 'x' WHERE name ^@ '0002'")
        with pytest.raises(SchemaMismatch, match="0002_capture was applied in another form"):
            await installer.missing_steps()


async def test_an_older_bookkeeping_is_brought_up_to_date(client: Client, database_url: str) -> None:
    """Only the migrations that are left are run, and what is queued stays."""
    async with opened(database_url) as database:
        await Installer(database, load_migrations()).install()
        await client.execute("INSERT INTO memories (content) VALUES ('c')")
        newer = [*load_migrations(), ("0999_later", "CREATE TABLE dionysus_sync.later ()")]
        steps, _ = await Installer(database, newer).install()
    assert [step.name for step in steps] == ["0999_later"]
    assert await operations(client) == [("create", 1)]
    checksum = "SELECT checksum FROM dionysus_sync.schema_migrations WHERE name = '0999_later'"
    assert await client.fetchval(checksum) == hashlib.sha256(newer[-1][1].encode()).hexdigest()


@pytest.mark.parametrize("schema", ["notes", 'My "quoted" schema'])
async def test_a_table_in_another_schema_is_adopted(client: Client, database_url: str, schema: str) -> None:
    """DIONYSUS_SCHEMA names it; a table of that name elsewhere is left alone."""
    quoted = '"' + schema.replace('"', '""') + '"'
    await client.execute(f"CREATE SCHEMA {quoted}; CREATE TABLE memories (not_ours text)")
    async with installer_of(database_url, schema) as installer:
        await installer.install()
        assert await installer.capture_installed()
        async with plain_client(database_url, search_path=quoted) as other:
            await other.execute("INSERT INTO memories (content) VALUES ('c')")
        assert "content" in str(await installer.definition())
    assert await operations(client) == [("create", 1)]
    columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'memories'::regclass AND attnum > 0"
    assert await client.fetchval(columns) == 1


async def test_a_schema_that_is_not_there_is_named(database_url: str) -> None:
    """A typing error in DIONYSUS_SCHEMA is called one."""
    async with installer_of(database_url, "nowhere") as installer:
        with pytest.raises(NotAdoptable, match="no schema 'nowhere'"):
            await installer.missing_steps()


@pytest.mark.promise("P9")
@pytest.mark.parametrize("url", ["postgresql://u:sec/ret@127.0.0.1/db", "postgresql://u:sec:ret@127.0.0.1:port/db"])
async def test_an_address_that_cannot_be_read_is_refused_without_the_password(url: str) -> None:
    """The driver quotes parts of it; we do not."""
    async with installer_of(url) as installer:
        with pytest.raises(AccessRefused) as caught:
            await installer.initialised()
        health = await installer._database.health(1)
    assert not health.up
    assert not re.search("sec|ret", f"{caught.value} {health}")


@pytest.mark.promise("P1")
@pytest.mark.promise("P5")
async def test_the_capture_is_put_back_while_a_push_is_under_way(migrated_database_url: str) -> None:
    """It waits for nothing that a push keeps while it writes remotely, and the users' writes do not wait with it."""
    url = migrated_database_url
    async with plain_client(url) as user, opened(url) as database, opened(url) as pushing:
        await user.execute("DROP TRIGGER dionysus_capture_insert ON memories")
        await user.execute("INSERT INTO memories (content) VALUES ('c')")
        async with PostgresOutbox(pushing).claim(10, 10_000) as claim:
            assert claim is not None
            installer = Installer(database, load_migrations())
            await installer.install()
            await user.execute("INSERT INTO memories (content) VALUES ('d')")
            verifying = PostgresVerifying(database, installer)
            due = await verifying.due()
            assert due is not None
            assert due.gap
            await verifying.settle_due(due)
            assert await verifying.due() is None
        assert len(await operations(user)) == 1


@pytest.mark.promise("P5")
async def test_nothing_is_backfilled_while_it_could_not_be_stamped(migrated_database_url: str) -> None:
    """It would be pushed again and again, for as long as somebody keeps the table locked."""
    async with plain_client(migrated_database_url) as user, installer_of(migrated_database_url) as installer:
        await user.execute("INSERT INTO memories (content) VALUES ('c')")
        await user.execute("DELETE FROM dionysus_sync.sync_queue")
        async with user.transaction():
            await user.execute("LOCK TABLE memories IN SHARE MODE")
            with pytest.raises(Unavailable):
                await installer.backfill_once(10)
        assert await installer.backfill_once(10) == 1


@pytest.mark.promise("P1")
@pytest.mark.parametrize("confirmed", [True, False])
async def test_new_bookkeeping_beside_rows_that_were_confirmed_calls_for_a_comparison(
    migrated_database_url: str, confirmed: bool
) -> None:
    """While it was gone nothing was captured; a table that was never pushed needs none."""
    async with plain_client(migrated_database_url) as user, opened(migrated_database_url) as database:
        await user.execute("INSERT INTO memories (content) VALUES ('c')")
        if confirmed:
            await user.execute("SET dionysus.origin = 'engine'; UPDATE memories SET synced_version = 1")
        await user.execute("DROP SCHEMA dionysus_sync CASCADE")
        await Installer(database, load_migrations()).install()
        due = "SELECT EXISTS (SELECT FROM dionysus_sync.comparison_due WHERE gap_since IS NOT NULL)"
        assert await user.fetchval(due) is confirmed


@pytest.mark.promise("P1")
@pytest.mark.parametrize("column", ["sync_queue.base_version", "conflicts.closed_at", "alerts.attempts"])
async def test_a_column_that_somebody_removed_is_put_back(migrated_database_url: str, column: str) -> None:
    """With the indexes that need it, whichever migration made its table; then there is nothing left to do."""
    table, _, name = column.partition(".")
    async with plain_client(migrated_database_url) as user, installer_of(migrated_database_url) as installer:
        indexes = "SELECT indexname FROM pg_indexes WHERE schemaname = 'dionysus_sync' ORDER BY 1"
        before = await user.fetch(indexes)
        await user.execute(f"ALTER TABLE dionysus_sync.{table} DROP COLUMN {name}")
        assert not await installer.capture_installed()
        steps, _ = await installer.install()
        assert steps[0].name == "put_back_columns"
        assert await installer.capture_installed()
        assert await installer.install() == ([], True)
        assert await user.fetch(indexes) == before
