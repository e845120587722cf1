"""What the program finds at its start: no bookkeeping, that of an older or a newer program, or half of its own."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.adapters.statements import load_migrations
from tests.faults.crashes import at_steps, killed_at, recorded
from tests.faults.oracle import Oracle, open_oracle
from tests.faults.plugin import Scenario
from tests.faults.program import SOON, Stores, run, worker
from tests.integration.stores import INSERT, graph, plain_client, uid
from tests.services import postgres
from tests.services.local_store import opened, opened_by_older
from tests.services.waiting import until

INIT = ("init", "--json")
PUSH = ("sync", "--no-embed", "--json")
RELEASED = 3  # migrations that a released program before this one had
OLD_ROWS = 12
NEWER = "0099_of_the_future"
NOTE_NEWER = "INSERT INTO dionysus_sync.schema_migrations (name, checksum) VALUES ($1, 'x')"
OWN_TABLE = (
    "CREATE TABLE memories (id uuid PRIMARY KEY, content text, memory_type text, importance real, source_project text,"
    " session_id uuid, tags text[], created_at timestamptz, updated_at timestamptz)"
)
BOOKKEEPING = (
    "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'dionysus_sync'"
    " UNION ALL SELECT table_name || '.' || column_name FROM information_schema.columns"
    " WHERE table_schema = 'dionysus_sync'"
    " UNION ALL SELECT 'memories.' || column_name FROM information_schema.columns WHERE table_name = 'memories'"
    " UNION ALL SELECT tgname FROM pg_trigger WHERE NOT tgisinternal"
    " UNION ALL SELECT proname FROM pg_proc WHERE pronamespace = to_regnamespace('dionysus_sync')"
    " UNION ALL SELECT indexname FROM pg_indexes WHERE schemaname IN ('dionysus_sync', 'public')"
    " ORDER BY 1"
)
PARK = (
    "UPDATE dionysus_sync.sync_queue SET parked_at = clock_timestamp(), last_error = 'the remote refused it',"
    " retry_count = 1 WHERE memory_id = $1"
)
TABLES = (
    "sync_queue", "sync_events", "conflicts", "recoveries", "projects", "sessions", "memory_references", "deletions",
    "verifications", "alerts", "store_identity", "comparison_due", "observations", "incidents", "watched",
    "recovery_undo", "drills",
)  # fmt: skip
COLUMNS = (
    "store_identity.generation", "store_identity.repeated", "comparison_due.gap_since", "sync_queue.superseded_at",
    "sync_queue.last_error", "sync_queue.base_version", "sync_queue.retry_count", "sync_queue.next_retry_at",
    "sync_queue.parked_at", "sync_events.memory_ids", "conflicts.closed_at", "alerts.attempts",
    "observations.judged_at", "observations.memory_ids", "incidents.revision", "incidents.closed_at",
    "recovery_undo.undone_at",
)  # fmt: skip
SOME_OF_INIT = ["before:0004_reliability", "before:COMMIT(note_migration)", "after:COMMIT(note_migration)"]
SOME_GONE = ["sync_queue.base_version", "conflicts"]
QUEUED = "SELECT count(*) FROM dionysus_sync.sync_queue"


async def shape(url: str) -> list[str]:
    """Everything that an installation makes."""
    async with plain_client(url) as client:
        return [row["name"] for row in await client.fetch(BOOKKEEPING)]


async def install(url: str, migrations: int | None = None) -> None:
    """Make a database a local store, as a program does that has only the first of the migrations."""
    async with opened_by_older(url) if migrations else opened(url) as database:
        installer = Installer(database, load_migrations()[:migrations])
        await installer.install()
        if not migrations:
            await installer.backfill_once(OLD_ROWS)


@pytest.fixture
async def bare(database_url: str, empty_neo4j: str, tmp_path: Path) -> Stores:
    """A database that is no local store, with a table of the user's own."""
    await postgres.execute(database_url, OWN_TABLE)
    return Stores(database_url, empty_neo4j, tmp_path)


@pytest.fixture
async def released(bare: Stores) -> Stores:
    """A local store of the program before this one."""
    await install(bare.database_url, RELEASED)
    return bare


@asynccontextmanager
async def oracle_of(stores: Stores) -> AsyncIterator[Oracle]:
    """An oracle."""
    async with open_oracle(stores.database_url, stores.neo4j_uri) as oracle:
        yield oracle


async def write(oracle: Oracle) -> None:
    """Some rows of each kind of change."""
    first = oracle.rows_written
    for number in range(first, first + OLD_ROWS):
        await oracle.insert(uid(number + 1), f"row {number}: inserted")
    await oracle.update(uid(first + 1), f"row {first}: updated")
    await oracle.delete(uid(first + 2))


async def pushed(stores: Stores, oracle: Oracle, scenario: Scenario, *, engaged: bool) -> None:
    """The program pushes everything, and both stores are whole."""
    ended = await run(stores, *PUSH)
    assert ended.status == 0, ended.output
    compared, seconds = await oracle.until_whole()
    scenario.note(engaged=engaged, compared=compared, seconds=seconds)


@pytest.mark.scenario(42, "no bookkeeping at the start")
@pytest.mark.promise("P9")
async def test_42_without_bookkeeping(bare: Stores, scenario: Scenario) -> None:
    """A worker leaves the database as it is and says what to do; after `init` it goes on unaided."""
    before = await shape(bare.database_url)
    async with worker(bare) as program, oracle_of(bare) as oracle:

        async def said() -> bool:
            return "dionysus-sync-mcp init" in program.log

        for number in range(1, OLD_ROWS + 1):
            await oracle.insert(uid(number), f"row {number}, from before us")
        await until(said, what=f"the worker says what to do: {program.log}", seconds=SOON)
        assert await shape(bare.database_url) == before
        status = await run(bare, "status", "--json")
        assert "init" in json.loads(status.output)["next_step"]
        assert (await run(bare, *INIT)).status == 0
        compared, seconds = await oracle.until_whole()
        scenario.note(engaged=program.running, compared=compared, seconds=seconds)


@pytest.mark.scenario(42, "the bookkeeping of a newer program at the start")
@pytest.mark.promise("P1")
async def test_42_newer_bookkeeping_is_refused(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """`init` and `sync` say which migration they do not know, a worker says so too, and nothing is touched."""
    await write(oracle)
    async with plain_client(stores.database_url) as client:
        await client.execute(NOTE_NEWER, NEWER)
    before = await shape(stores.database_url)
    for command in (INIT, PUSH):
        ended = await run(stores, *command)
        assert ended.status == 1, ended.output
        assert NEWER in ended.output, (command, ended.output)
    async with worker(stores) as program:

        async def said() -> bool:
            return NEWER in program.log

        await until(said, what="the worker says which migration it does not know", seconds=SOON)
        assert program.running
    assert await shape(stores.database_url) == before
    assert await graph(stores.neo4j_uri, "MATCH (n) RETURN count(n)") == [0]
    async with plain_client(stores.database_url) as client:
        await client.execute("DELETE FROM dionysus_sync.schema_migrations WHERE name = $1", NEWER)
    await pushed(stores, oracle, scenario, engaged=True)


async def steps_of_init(url: str, stores: Stores) -> list[str]:
    """Every step of `init` there, before which it can be killed, and the last."""
    async with postgres.copy_of(url) as copy:
        steps = await recorded(replace(stores, database_url=copy), *INIT)
    first = next(i for i, step in enumerate(steps) if step.name == "lock_migrations")
    assert any("0004" in step.name for step in steps)
    return list(map(str, [*(step for step in steps[first:] if step.when == "before"), steps[-1]]))


async def shape_after_init(url: str) -> list[str]:
    """What an installation there comes to that nobody disturbs."""
    async with postgres.copy_of(url) as copy:
        await install(copy)
        return await shape(copy)


@at_steps(42, "an installation")
@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    "old", [pytest.param(None, marks=pytest.mark.slow), RELEASED], ids=["from nothing", "from the release before"]
)
async def test_42_killed_while_migrating(
    plain_template: str, empty_neo4j: str, tmp_path: Path, scenario: Scenario, old: int | None, *, every: bool
) -> None:
    """The database is as it was or as it is to be, never between; the next run completes it, and nothing is lost."""
    async with postgres.copy_of(plain_template) as url:
        await postgres.execute(url, OWN_TABLE)
        if old is not None:
            await install(url, old)
        async with plain_client(url) as client:
            await client.execute(INSERT, uid(1), "c")
        stores = Stores(url, empty_neo4j, tmp_path)
        states = await shape(url), await shape_after_init(url)
        for step in await steps_of_init(url, stores) if every else SOME_OF_INIT:
            async with postgres.copy_of(url) as copy:
                engaged = await killed_at(step, replace(stores, database_url=copy), *INIT)
                assert await shape(copy) in states, step
                await install(copy)
                assert await shape(copy) == states[1], step
                async with plain_client(copy) as client:
                    assert await client.fetchval(QUEUED) == 1, step
                    await client.execute(INSERT, uid(2), "d")
                    assert await client.fetchval(QUEUED) == 2, step
            scenario.note(engaged=engaged)


@pytest.mark.scenario(42, "a table or a column of the bookkeeping removed by hand")
@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    "gone",
    [SOME_GONE, *(pytest.param([*COLUMNS, *TABLES][n::4], marks=pytest.mark.slow) for n in range(4))],
    ids=["some", *map(str, range(4))],
)
async def test_42_half_migrated(gone: Sequence[str], stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """A worker that runs puts back what is gone, and what was written meanwhile arrives."""
    await oracle.insert(uid(1000), "before")
    whole = await shape(stores.database_url)
    async with worker(stores):
        for what in gone:
            table, _, column = what.partition(".")
            statement = f'ALTER TABLE dionysus_sync.{table} DROP COLUMN "{column}" CASCADE'
            if not column:
                statement = f"DROP TABLE dionysus_sync.{table} CASCADE"
            await postgres.execute(stores.database_url, statement)
            assert await shape(stores.database_url) != whole
            await oracle.insert(uid(oracle.rows_written + 1), f"while {what} was gone")

            async def again() -> bool:
                return await shape(stores.database_url) == whole

            await until(again, what=f"{what} is back", seconds=SOON)
            compared, seconds = await oracle.until_whole()
            scenario.note(engaged=True, compared=compared, seconds=seconds)


@pytest.mark.scenario(48, "the release before leaves a queue behind")
@pytest.mark.promise("P1")
@pytest.mark.parametrize("by", ["init", "worker"])
async def test_48_upgrade_with_a_pending_queue(released: Stores, scenario: Scenario, by: str) -> None:
    """Entries that wait and entries that are parked are read and pushed by this program, and none is lost."""
    async with oracle_of(released) as oracle:
        await write(oracle)
        async with plain_client(released.database_url) as client:
            assert await client.execute(PARK, uid(3)) == "UPDATE 1"
            waited = await client.fetchval("SELECT count(*) FROM dionysus_sync.sync_queue WHERE parked_at IS NULL")
            assert await client.fetchval("SELECT to_regclass('dionysus_sync.deletions') IS NULL")
        assert waited == OLD_ROWS + 1
        if by == "init":
            assert (await run(released, *INIT)).status == 0
        else:
            async with worker(released):
                await oracle.until_whole()
        ended = await run(released, *PUSH, "--retry-parked")
        assert ended.status == 0, ended.output
        async with plain_client(released.database_url) as client:
            assert await client.fetchval("SELECT count(*) FROM dionysus_sync.sync_queue") == 0
        compared, seconds = await oracle.until_whole()
        scenario.note(engaged=True, compared=compared, seconds=seconds)
