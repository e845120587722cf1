"""The agents' own role: the printed SQL is run, and everything that it must not do is tried as that role."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from dionysus_sync_mcp.adapters.statements import load_sql
from dionysus_sync_mcp.domain.roles import agent_role_sql
from dionysus_sync_mcp.runtime import Runtime
from tests.integration.stores import INSERT, Client, images, operations, plain_client, queue, uid

REFUSED = {
    "drop the table": "DROP TABLE memories",
    "drop it with all that depends on it": "DROP TABLE memories CASCADE",
    "empty the table": "TRUNCATE memories",
    "drop a column": "ALTER TABLE memories DROP COLUMN content",
    "cut a column": "ALTER TABLE memories ALTER COLUMN content TYPE varchar(1)",
    "rename the table": "ALTER TABLE memories RENAME TO old",
    "move the table": "ALTER TABLE memories SET SCHEMA pg_temp",
    "take the table": "ALTER TABLE memories OWNER TO CURRENT_USER",
    "disable a trigger": "ALTER TABLE memories DISABLE TRIGGER dionysus_capture_delete",
    "disable all triggers": "ALTER TABLE memories DISABLE TRIGGER ALL",
    "drop a trigger": "DROP TRIGGER dionysus_capture_delete ON memories",
    "put a trigger of its own there": "CREATE TRIGGER t BEFORE INSERT ON memories"
    " FOR EACH ROW EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
    "put a rule there": "CREATE RULE r AS ON INSERT TO memories DO INSTEAD NOTHING",
    "drop the schema": "DROP SCHEMA public CASCADE",
    "drop our schema": "DROP SCHEMA dionysus_sync CASCADE",
    "drop the queue": "DROP TABLE dionysus_sync.sync_queue",
    "drop a function of ours": "DROP FUNCTION dionysus_sync.capture_memories() CASCADE",
    "replace a function of ours": "CREATE OR REPLACE FUNCTION dionysus_sync.by_engine() RETURNS boolean"
    " LANGUAGE sql AS 'SELECT true'",
    "read the queue": "SELECT * FROM dionysus_sync.sync_queue",
    "write the queue": "INSERT INTO dionysus_sync.sync_queue (operation, payload) VALUES ('delete', '{}')",
    "empty the queue": "DELETE FROM dionysus_sync.sync_queue",
    "change the audit": "UPDATE dionysus_sync.sync_events SET result = 'success'",
    "forget incidents": "DELETE FROM dionysus_sync.incidents",
    "call a function of ours": "SELECT dionysus_sync.write_restored('memories', true)",
    "make an event trigger": "CREATE EVENT TRIGGER e ON ddl_command_start"
    " EXECUTE FUNCTION dionysus_sync.capture_memories()",
    "pass for a replica": "SET session_replication_role = replica",
    "become the engine": "SET ROLE ENGINE",
    "pass for the engine": "SET SESSION AUTHORIZATION ENGINE",
    "become a superuser": "ALTER ROLE CURRENT_USER SUPERUSER",
    "drop the database": "DROP DATABASE DATABASE_HERE",
    "drop what the engine owns": "DROP OWNED BY ENGINE CASCADE",
    "take it over": "REASSIGN OWNED BY ENGINE TO CURRENT_USER",
    "end the engine's connections": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE usename = 'ENGINE' AND datname = current_database() AND pid <> pg_backend_pid()",
    "run a program": "COPY (SELECT 1) TO PROGRAM 'true'",
}


def name_for(url: str) -> str:
    """A role of this test alone: roles are the server's, not the database's."""
    return "agent_" + re.sub(r"\W", "", urlsplit(url).path)


def printed(url: str, schema: str = "public") -> str:
    """The SQL that `roles` prints."""
    return agent_role_sql(load_sql()["agent_role"], name_for(url), schema)


@asynccontextmanager
async def agent_of(client: Client, url: str) -> AsyncIterator[Client]:
    """The printed SQL is run, and somebody connects as that role."""
    role = name_for(url)
    await client.execute(printed(url))
    parts = urlsplit(url)
    try:
        async with plain_client(
            urlunsplit(parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}"))
        ) as agent:
            assert await agent.fetchval("SELECT current_user") == role
            yield agent
    finally:
        await client.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_the_agents_role_reads_and_writes_memories_and_is_captured(
    client: Client, migrated_database_url: str
) -> None:
    """Every statement that an agent needs; a number of a sequence too."""
    await client.execute("ALTER TABLE memories ADD COLUMN number serial")
    async with agent_of(client, migrated_database_url) as agent:
        await agent.execute(INSERT, uid(1), "c")
        await agent.execute("UPDATE memories SET content = 'd'")
        assert await agent.fetchval("SELECT content FROM memories WHERE number = 1") == "d"
        await agent.execute("DELETE FROM memories")
    assert await operations(client) == [("create", 1), ("update", 2), ("delete", 3)]


@pytest.mark.promise("P1")
async def test_what_would_destroy_is_refused_to_the_agents_role(client: Client, migrated_database_url: str) -> None:
    """Each of many ways, tried; the memories, the capture and the queue are as they were."""
    await client.executemany(INSERT, [(uid(number), "c") for number in range(1, 12)])
    engine = await client.fetchval("SELECT quote_ident(current_user)")
    database = await client.fetchval("SELECT quote_ident(current_database())")
    before, entries = await images(client), await queue(client)
    triggers = "SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = 'memories'::regclass ORDER BY 1"
    captured = await client.fetch(triggers)
    done = []
    async with agent_of(client, migrated_database_url) as agent:
        for what, statement in REFUSED.items():
            try:
                await agent.execute(statement.replace("ENGINE", engine).replace("DATABASE_HERE", database))
            except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidParameterValueError):
                continue
            except asyncpg.PostgresError as error:
                done.append(f"{what}: {error!r}")
            else:
                done.append(what)
    assert done == []
    assert (await images(client), await queue(client), await client.fetch(triggers)) == (before, entries, captured)


@pytest.mark.promise("P1")
@pytest.mark.parametrize("origin", ["engine", "restore"])
async def test_the_agents_role_is_not_taken_for_the_engine(
    client: Client, migrated_database_url: str, origin: str
) -> None:
    """A session that says so is captured like any other."""
    async with agent_of(client, migrated_database_url) as agent:
        await agent.execute(f"SET dionysus.origin = '{origin}'")
        await agent.execute(INSERT, uid(1), "c")
        await agent.execute("UPDATE memories SET content = 'd', sync_status = 'synced', sync_version = 70")
        await agent.execute("DELETE FROM memories")
    assert await operations(client) == [("create", 1), ("update", 2), ("delete", 3)]


async def test_the_sql_can_be_run_again_and_takes_back_what_was_given(
    client: Client, migrated_database_url: str
) -> None:
    """A role that was given too much has only what it needs afterwards."""
    async with agent_of(client, migrated_database_url) as agent:
        role = name_for(migrated_database_url)
        await client.execute(f"GRANT ALL ON memories TO {role}; GRANT TRUNCATE ON memories TO PUBLIC")
        await client.execute(f"GRANT USAGE ON SCHEMA dionysus_sync TO {role}")
        await client.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA dionysus_sync TO {role}")
        await client.execute(printed(migrated_database_url))
        for statement in ("TRUNCATE memories", "SELECT * FROM dionysus_sync.sync_queue"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await agent.execute(statement)


@pytest.mark.parametrize(
    ("rights", "said"),
    [
        ("ALTER ROLE {role} SUPERUSER", "is a superuser"),
        ("ALTER ROLE {role} CREATEROLE", "may give itself other roles"),
        ("ALTER TABLE memories OWNER TO {role}", "owns memories"),
        ("GRANT {engine} TO {role}", "is a member of"),
        ("GRANT pg_write_all_data TO {role}", "is a member of a role that may use dionysus_sync"),
    ],
)
async def test_a_role_that_no_grant_can_restrain_is_refused(
    client: Client, migrated_database_url: str, rights: str, said: str
) -> None:
    """And nothing is changed."""
    role = name_for(migrated_database_url)
    engine = await client.fetchval("SELECT quote_ident(current_user)")
    await client.execute(f"CREATE ROLE {role} LOGIN; {rights.format(role=role, engine=engine)}")
    try:
        with pytest.raises(asyncpg.RaiseError, match=said):
            await client.execute(printed(migrated_database_url))
        await client.execute("ROLLBACK")
        granted = "SELECT count(*) FROM information_schema.role_table_grants WHERE grantee = $1 AND is_grantable = 'NO'"
        assert await client.fetchval(granted, role) == 0
    finally:
        await client.execute("ALTER TABLE memories OWNER TO CURRENT_USER")
        await client.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.parametrize(
    ("rights", "said"),
    [
        ("GRANT TRUNCATE ON memories TO {other}", "may empty memories"),
        ("GRANT SELECT ON dionysus_sync.incidents TO {other}", "may use dionysus_sync"),
        ("ALTER ROLE {other} SUPERUSER", "is a superuser"),
        ("ALTER ROLE {other} BYPASSRLS", "may bypass row security"),
        ("GRANT SET ON PARAMETER session_replication_role TO {other}", "may set session_replication_role"),
    ],
)
async def test_a_role_that_can_become_one_that_destroys_is_refused(
    program: Runtime, client: Client, migrated_database_url: str, rights: str, said: str
) -> None:
    """It inherits nothing of it, and has only to say SET ROLE; the doctor does not advise it either."""
    role = name_for(migrated_database_url)
    other = f"{role}_more"
    await client.execute(f"CREATE ROLE {other}; CREATE ROLE {role} LOGIN NOINHERIT; GRANT {other} TO {role}")
    await client.execute(f"{rights.format(other=other)}; GRANT INSERT ON memories TO {role}")
    try:
        with pytest.raises(asyncpg.RaiseError, match=f"it can become {other}, which .*{said}"):
            await client.execute(printed(migrated_database_url))
        await client.execute("ROLLBACK")
        if "PARAMETER" not in rights and "dionysus_sync" not in rights:
            assert role not in (await program.reading.role_in_use()).agents
    finally:
        await client.execute(f"DROP OWNED BY {role}, {other}; DROP ROLE {role}, {other}")


async def test_a_database_that_is_not_protected_yet_is_said_to_be_so(database_url: str) -> None:
    """Before any role is made."""
    async with plain_client(database_url) as client:
        with pytest.raises(asyncpg.RaiseError, match="is not protected yet"):
            await client.execute(printed(database_url))
        await client.execute("ROLLBACK")
        assert await client.fetchval("SELECT to_regrole($1)", name_for(database_url)) is None


async def test_the_doctor_warns_of_the_role_in_use_and_the_status_does_not(
    program: Runtime, client: Client, migrated_database_url: str
) -> None:
    """It names the command, or the role that is there already."""
    report = await program.doctor(5)
    (warning,) = [w for w in report.warnings if "is a superuser" in w]
    assert "'dionysus-sync-mcp roles' prints the SQL" in warning
    assert not any("is a superuser" in w for w in (await program.status(5)).warnings)
    async with agent_of(client, migrated_database_url):
        report = await program.doctor(5)
    assert any(name_for(migrated_database_url) in w for w in report.warnings)
