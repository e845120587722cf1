"""Other roles of the database, and whoever can write to the remote store, get none of the engine's rights."""

import json

import asyncpg
import pytest

from dionysus_sync_mcp.adapters.postgres.database import Database, users_path
from dionysus_sync_mcp.domain.errors import Unavailable
from dionysus_sync_mcp.engine.ports.query import Filters
from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.runtime import Runtime
from tests.integration.roles import role_of
from tests.integration.stores import INSERT, Client, graph, operations, plain_client, uid
from tests.services.local_store import opened, running

WRITER = "GRANT CREATE, USAGE ON SCHEMA public TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON memories TO {role}"
# Each is a closer match than PostgreSQL's own for what the engine calls.
TRAPS = {
    "to_jsonb(public.memories) RETURNS jsonb": "pg_catalog.to_jsonb($1)",
    "to_jsonb(timestamptz) RETURNS jsonb": "pg_catalog.to_jsonb($1)",
    "cardinality(text[]) RETURNS integer": "pg_catalog.cardinality($1)",
    "to_tsvector(text, text) RETURNS tsvector": "pg_catalog.to_tsvector($1::regconfig, $2)",
    "left(varchar, integer) RETURNS text": "pg_catalog.left($1::text, $2)",
    "jsonb_text(jsonb, jsonb) RETURNS text": "NULL::text",
    "overlaps(text[], text[]) RETURNS boolean": "$1 OPERATOR(pg_catalog.&&) $2",
    "same(varchar, varchar) RETURNS boolean": "$1::text OPERATOR(pg_catalog.=) $2::text",
}
OPERATORS = """
CREATE OPERATOR public.->> (leftarg = jsonb, rightarg = jsonb, function = public.jsonb_text);
CREATE OPERATOR public.&& (leftarg = text[], rightarg = text[], function = public.overlaps);
CREATE OPERATOR public.= (leftarg = varchar, rightarg = varchar, function = public.same)
"""
TRAP = """
CREATE FUNCTION public.{signature} LANGUAGE plpgsql AS $$
BEGIN
    IF current_user <> '{role}' THEN
        RAISE EXCEPTION 'trapped';
    END IF;
    RETURN {instead};
END $$
"""


async def ended_within(database: Database, client: Client) -> None:
    """A transaction whose connection the server ends, and that goes on after the error."""
    async with database.transaction() as connection:
        await client.execute("SELECT pg_terminate_backend($1)", connection.pid)
        with pytest.raises(asyncpg.PostgresError):
            await connection.fetchval("SELECT 1")


@pytest.mark.promise("P10")
async def test_no_function_of_another_role_runs_as_the_engine(
    program: Runtime, client: Client, migrated_database_url: str
) -> None:
    """Functions that a role puts in the engine's way, in the user's schema, are called by nobody."""
    async with (
        role_of(client, migrated_database_url, WRITER) as url,
        plain_client(url) as agent,
    ):
        role = await agent.fetchval("SELECT current_user")
        for signature, instead in TRAPS.items():
            await agent.execute(TRAP.format(signature=signature, instead=instead, role=role))
        await agent.execute(OPERATORS)
        await agent.execute(INSERT, uid(1), "old words")
        await agent.execute("UPDATE memories SET tags = '{t}'")
        with pytest.raises(Exception, match="trapped"):
            await client.fetch("SELECT to_jsonb(memories.*) FROM memories")
        assert (await program.sync(embed=False)).result == "success"
        found = await program.reading.search_words("words", Filters(tags=("t",), projects=("p",)), 5)
        assert [f.memory_id for f in found] == [str(uid(1))]
        await client.execute("TRUNCATE memories")
        plan = await program.plan_recovery(Scope(projects=("p",)))
        assert (await program.run_recovery(plan.plan_id)).verified == 1


async def test_the_users_triggers_find_their_tables_when_the_engine_writes(program: Runtime, client: Client) -> None:
    """A trigger that names a table of its schema without the schema works for the engine's stamps and restores."""
    await client.execute(
        "CREATE TABLE log (what text);"
        "CREATE FUNCTION log_it() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN INSERT INTO log VALUES (TG_OP); RETURN NEW; END$$;"
        "CREATE TRIGGER log_it BEFORE INSERT OR UPDATE ON memories FOR EACH ROW EXECUTE FUNCTION log_it()"
    )
    await client.execute(INSERT, uid(1), "c")
    assert (await program.sync(embed=False)).result == "success"
    assert await client.fetchval("SELECT sync_status FROM memories") == "synced"
    await client.execute("TRUNCATE memories")
    plan = await program.plan_recovery(Scope())
    assert (await program.run_recovery(plan.plan_id)).verified == 1
    assert {r[0] for r in await client.fetch("SELECT what FROM log")} == {"INSERT", "UPDATE"}


async def test_the_users_path_ends_with_the_statements_it_is_for(migrated_database_url: str) -> None:
    """After a write to the user's rows, the rest of the transaction has the engine's own path again."""
    async with opened(migrated_database_url) as database, database.transaction() as connection:
        before = await connection.fetchval("SHOW search_path")
        async with users_path(connection, database.sql):
            assert await connection.fetchval("SHOW search_path") == '"public"'
        assert await connection.fetchval("SHOW search_path") == before == "pg_catalog, pg_temp"


@pytest.mark.promise("P1")
@pytest.mark.parametrize("origin", ["engine", "restore"])
async def test_another_role_cannot_hide_its_changes(migrated_database_url: str, client: Client, origin: str) -> None:
    """A session that only says that it is the engine is captured like any other."""
    async with (
        role_of(client, migrated_database_url, WRITER) as url,
        plain_client(url) as agent,
    ):
        await agent.execute(f"SET dionysus.origin = '{origin}'")
        await agent.execute(INSERT, uid(1), "c")
        await agent.execute("UPDATE memories SET content = 'd', sync_version = 70, sync_status = 'synced'")
        assert await agent.fetchval("SELECT sync_version FROM memories") == 2
        await agent.execute("DELETE FROM memories")
    assert await operations(client) == [("create", 1), ("update", 2), ("delete", 3)]


@pytest.mark.promise("P1")
async def test_a_statement_cannot_name_its_column_a_generated_one(client: Client) -> None:
    """The note of generated columns, which any statement can set while it runs, hides no change."""
    await client.execute(INSERT, uid(1), "c")
    await client.execute(
        "UPDATE memories SET content = 'hidden' || (SELECT set_config('dionysus.generated', '{content}', true))"
    )
    assert await operations(client) == [("create", 1), ("update", 2)]


@pytest.mark.parametrize(
    "change",
    [
        {"indexes": ["DROP TABLE public.victim"]},
        {"indexes": ["CREATE INDEX x ON public.memories USING btree (content); DROP TABLE public.victim"]},
        {"indexes": ["CREATE INDEX x ON public.victim USING btree (i)"]},
        {"constraints": [{"name": "x", "definition": "CHECK (true); DROP TABLE public.victim"}]},
        {"columns": [{"name": "id", "type": "uuid", "default": "gen_random_uuid(); DROP TABLE public.victim"}]},
    ],
)
async def test_a_definition_of_the_remote_store_is_no_statement(
    program: Runtime, client: Client, empty_neo4j: str, change: dict[str, list[object]]
) -> None:
    """A definition that somebody wrote into the remote store makes this table again, and does nothing else."""
    await client.execute(INSERT, uid(1), "c")
    assert (await program.sync(embed=False)).result == "success"
    await program.guard.note_definition_once()
    noted = json.loads((await graph(empty_neo4j, "MATCH (s:Store) RETURN s.definition"))[0])
    for part, added in change.items():
        kept = [p for p in noted[part] if part != "columns" or p["name"] != "id"]
        noted[part] = [*kept, *added]
    await graph(empty_neo4j, "MATCH (s:Store) SET s.definition = $definition", definition=json.dumps(noted))
    await client.execute("CREATE TABLE victim (i integer); DROP TABLE memories")
    plan = await program.plan_recovery(Scope())
    assert (await program.run_recovery(plan.plan_id)).verified == 1
    assert await client.fetchval("SELECT to_regclass('public.victim')") == "victim"
    assert await client.fetchval("SELECT count(*) FROM pg_index WHERE indrelid = 'victim'::regclass") == 0


@pytest.mark.promise("P9")
async def test_timeouts_of_the_database_do_not_stop_the_push(
    migrated_database_url: str, empty_neo4j: str, client: Client
) -> None:
    """Time-outs that were set on the database for its users are not the engine's."""
    await client.executemany(INSERT, [(uid(i), "c") for i in range(1, 51)])
    name = await client.fetchval("SELECT current_database()")
    for setting in ("statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout"):
        await client.execute(f"ALTER DATABASE {name} SET {setting} = '1ms'")
    async with plain_client(migrated_database_url) as another:
        with pytest.raises(asyncpg.QueryCanceledError):
            await another.execute("SELECT pg_sleep(1)")
    async with running(migrated_database_url, empty_neo4j) as program:
        assert (await program.pusher.push_once()).pushed == 50


async def test_a_connection_that_ends_in_a_transaction_is_an_outage(migrated_database_url: str, client: Client) -> None:
    """What the driver says of a transaction on a connection that was ended is not handed on."""
    async with opened(migrated_database_url) as database:
        with pytest.raises(Unavailable, match="connection was closed"):
            await ended_within(database, client)
