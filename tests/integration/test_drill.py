"""Drills on real stores: what is proven, what fails, and that nothing of it stays."""

import anyio
import asyncpg
import pytest

from dionysus_sync_mcp.adapters.postgres.drilling import MARK, PREFIX, PostgresDrilling
from dionysus_sync_mcp.adapters.statements import load_sql
from dionysus_sync_mcp.engine.drill import NO_RIGHT
from dionysus_sync_mcp.runtime import Runtime, utc_now
from tests.integration.roles import role_of
from tests.integration.stores import INSERT, Client, graph, images, plain_client, remote_digest, uid
from tests.integration.test_recover import ODD_COLUMNS, ODD_ROWS
from tests.services.local_store import opened, running
from tests.services.waiting import until

SCHEMAS = "SELECT nspname::text FROM pg_namespace WHERE starts_with(nspname, $1) ORDER BY 1"
DRILLS = (
    "SELECT result::text, report ->> 'missing', report ->> 'different' FROM dionysus_sync.drills ORDER BY finished_at"
)
ALERTS = "SELECT kind::text, key FROM dionysus_sync.alerts"
OBSERVED = "SELECT count(*) FROM dionysus_sync.observations"


async def settled(program: Runtime) -> None:
    """Everything pushed, and the table's definition noted."""

    async def pushed() -> bool:
        return (await program.sync(embed=False)).result == "success"

    await until(pushed, what="everything is pushed", seconds=60)
    await program.guard.note_definition_once()


async def schemas(client: Client) -> list[str]:
    """The scratch schemas that stand."""
    return [r[0] for r in await client.fetch(SCHEMAS, PREFIX)]


async def some(program: Runtime, client: Client, number: int = 30) -> None:
    """Memories on both sides."""
    await client.executemany(INSERT, [(uid(i), f"content {i}") for i in range(1, number + 1)])
    await settled(program)


@pytest.mark.promise("P6")
async def test_everything_comes_back_in_a_scratch_schema_that_is_gone_afterwards(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Columns of every kind, tombstones left out, nothing changed on either side, and nothing seen as destruction."""
    await client.execute("CREATE TABLE parents (id integer PRIMARY KEY)")
    await client.execute(ODD_COLUMNS)
    await client.execute("ALTER TABLE memories ADD COLUMN parent integer REFERENCES parents")
    await client.execute(ODD_ROWS)
    await settled(program)
    await client.execute("DELETE FROM memories WHERE id IN (SELECT id FROM memories LIMIT 5)")
    await settled(program)
    before, there = await images(client), await remote_digest(empty_neo4j)
    observed = await client.fetchval(OBSERVED)
    sequence = await client.fetchval("SELECT last_value FROM memories_serial_no_seq")
    report = await program.drill()
    assert (report.result, report.recovered, report.verified) == ("passed", 35, 35), report
    assert (report.missing, report.different, report.left_out) == (0, 0, 0)
    assert await schemas(client) == []
    assert (await images(client), await remote_digest(empty_neo4j)) == (before, there)
    assert await client.fetchval(OBSERVED) == observed
    assert await client.fetchval("SELECT last_value FROM memories_serial_no_seq") == sequence
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.sync_queue") == 0
    assert [tuple(r) for r in await client.fetch(DRILLS)] == [("passed", "0", "0")]
    status = await program.status()
    assert status.last_drill is not None
    assert (status.last_drill.result, status.last_drill.verified) == ("passed", 35)
    audited = "SELECT count(*) FROM dionysus_sync.sync_events WHERE error_message LIKE 'drill passed: 35 verified%'"
    assert await client.fetchval(audited) == 1
    await client.execute("TRUNCATE memories")
    assert await client.fetchval(OBSERVED) == observed + 1


@pytest.mark.promise("P6")
async def test_a_remote_store_that_was_edited_by_hand_fails_the_drill(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Another content and a missing memory are counted, named, on record, alerted, and said in the status."""
    await some(program, client)
    await graph(empty_neo4j, "MATCH (m:Memory {id: $id}) SET m.content = 'edited'", id=str(uid(3)))
    await graph(empty_neo4j, "MATCH (m:Memory {id: $id}) DETACH DELETE m", id=str(uid(4)))
    report = await program.drill()
    assert (report.result, report.verified, report.missing, report.different) == ("failed", 28, 1, 1)
    assert {e.memory_id: e.reason for e in report.examples} == {
        str(uid(3)): "another content came back",
        str(uid(4)): "nothing came back",
    }
    assert [tuple(r) for r in await client.fetch(DRILLS)] == [("failed", "1", "1")]
    drill = await client.fetchval("SELECT id FROM dionysus_sync.drills")
    assert [tuple(r) for r in await client.fetch(ALERTS)] == [("drill_failed", f"drill_failed:{drill}")]
    status = await program.status()
    assert any("drill" in warning and "1 memories did not come back" in warning for warning in status.warnings)
    assert await schemas(client) == []


async def test_the_background_drills_by_the_age_of_the_last_one_on_record(program: Runtime, client: Client) -> None:
    """Of whatever process: once, and again when a day is over."""
    await some(program, client, 3)
    job = program._driller.drill_if_due
    for _ in range(3):
        await job(utc_now())
    assert [r[0] for r in await client.fetch(DRILLS)] == ["passed"]
    await client.execute("UPDATE dionysus_sync.drills SET finished_at = finished_at - interval '24 hours'")
    for _ in range(2):
        await job(utc_now())
    assert [r[0] for r in await client.fetch(DRILLS)] == ["passed"] * 2


async def test_what_waits_in_the_queue_is_left_out(program: Runtime, client: Client) -> None:
    """A change that is not pushed yet is no failure."""
    await some(program, client)
    await client.execute("UPDATE memories SET content = 'newer' WHERE id = $1", uid(1))
    await client.execute(INSERT, uid(99), "new")
    report = await program.drill()
    assert (report.result, report.verified, report.left_out) == ("passed", 29, 2)


async def test_memories_of_another_store_are_none_of_the_drills_business(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """They are in the remote store, and not here."""
    await some(program, client)
    await graph(
        empty_neo4j,
        "MATCH (m:Memory {id: $id}) WITH properties(m) AS held CREATE (o:Memory {id: $other})"
        " SET o += held {.*, id: $other, origin: 'another'}",
        id=str(uid(1)),
        other=str(uid(500)),
    )
    assert (await program.drill()).recovered == 30


async def test_a_killed_drills_schema_is_removed_by_the_next_and_nothing_else_is(
    program: Runtime, client: Client
) -> None:
    """A schema without the mark, one with another name, and one that somebody has put something into, stay."""
    await some(program, client, 3)
    for name, mark in (("ab12cd34", MARK), ("00000000", "mine"), ("0badcafe", MARK), ("mine", MARK)):
        await client.execute(f"CREATE SCHEMA {PREFIX}{name}; CREATE TABLE {PREFIX}{name}.memories (id uuid)")
        await client.execute(f"COMMENT ON SCHEMA {PREFIX}{name} IS '{mark}'")
    await client.execute(f"CREATE TABLE {PREFIX}0badcafe.kept (i integer)")
    assert (await program.drill()).result == "passed"
    assert await schemas(client) == [f"{PREFIX}{name}" for name in ("00000000", "0badcafe", "mine")]
    for name in ("00000000", "0badcafe", "mine"):
        assert await client.fetchval("SELECT to_regclass($1)", f"{PREFIX}{name}.memories")


async def test_the_schema_of_a_running_drill_is_left_alone(
    program: Runtime, client: Client, migrated_database_url: str
) -> None:
    """A drill beside another one is not carried out, and removes nothing."""
    await some(program, client, 3)
    async with opened(migrated_database_url) as database:
        other = PostgresDrilling(database, load_sql())
        definition = await program.installer.definition()
        assert definition
        async with other.alone() as alone, other.scratch(definition):
            assert alone
            standing = await schemas(client)
            report = await program.drill()
            assert (report.result, len(standing)) == ("skipped", 1)
            assert "another drill is under way" in report.warnings[0]
            assert await schemas(client) == standing
    assert await schemas(client) == []
    assert (await program.drill()).result == "passed"


async def test_a_cancelled_drill_leaves_nothing(program: Runtime, client: Client) -> None:
    """The scratch schema goes, whatever was under way."""
    await some(program, client)
    stood: list[str] = []
    with anyio.CancelScope() as scope:

        async def stop(_done: int, _total: int | None, _text: str) -> None:
            stood.extend(await schemas(client))
            scope.cancel()
            await anyio.lowlevel.checkpoint()

        await program.drill(on_progress=stop)
    assert scope.cancelled_caught
    assert len(stood) == 1
    assert await schemas(client) == []
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.drills") == 0


async def test_without_the_right_to_make_a_schema_the_drill_says_so(
    program: Runtime, client: Client, migrated_database_url: str, empty_neo4j: str
) -> None:
    """Nothing fails; the reason is on record."""
    await some(program, client, 3)
    database = await client.fetchval("SELECT current_database()")
    rights = (
        "GRANT USAGE, CREATE ON SCHEMA public TO {role};"
        "GRANT USAGE, CREATE ON SCHEMA dionysus_sync TO {role};"
        "GRANT ALL ON ALL TABLES IN SCHEMA dionysus_sync TO {role};"
        "GRANT ALL ON ALL SEQUENCES IN SCHEMA dionysus_sync TO {role};"
        "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA dionysus_sync TO {role};"
        "ALTER TABLE memories OWNER TO {role}"
    )
    await client.execute(f'REVOKE CREATE ON DATABASE "{database}" FROM PUBLIC')
    async with role_of(client, migrated_database_url, rights) as url:
        async with plain_client(url) as plain:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await plain.execute("CREATE SCHEMA another")
        async with running(url, empty_neo4j) as limited:
            report = await limited.drill()
        await client.execute("ALTER TABLE memories OWNER TO CURRENT_USER")
    assert report.result == "skipped"
    assert NO_RIGHT in report.warnings[0]
    assert [r[0] for r in await client.fetch(DRILLS)] == ["skipped"]
