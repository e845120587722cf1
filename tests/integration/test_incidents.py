"""Incidents on real stores: a plain client destroys, and it is seen, recorded on both sides and told of."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from dionysus_sync_mcp.adapters.webhook import signature
from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.engine.status import INCIDENT
from dionysus_sync_mcp.runtime import Runtime, open_runtime
from dionysus_sync_mcp.settings import Settings
from tests.commands import COMMAND
from tests.integration.roles import role_of
from tests.integration.stores import Client, graph, plain_client
from tests.services.local_store import NOBODY, running
from tests.services.receiver import Receiver, receiver
from tests.services.waiting import until

SOON = 20.0
KEY = "a key"
FILL = (
    "INSERT INTO memories (id, content, source_project)"
    " SELECT gen_random_uuid(), 'memory ' || n, 'p' FROM generate_series(1, 100) AS n"
)


@pytest.fixture
async def hook() -> AsyncIterator[Receiver]:
    """Where alerts are posted to."""
    async with receiver() as made:
        yield made


@asynccontextmanager
async def at_work(database_url: str, neo4j_uri: str, hook: Receiver) -> AsyncIterator[Runtime]:
    """The program with its background loops."""
    settings = Settings(
        database_url=SecretStr(database_url),
        neo4j_uri=neo4j_uri,
        ollama_url=NOBODY,
        dionysus_poll_ms=20,
        dionysus_alert_webhook_url=SecretStr(hook.url),
        memory_webhook_token=SecretStr(KEY),
    )
    async with open_runtime(settings, worker=True, start_session=False) as runtime:
        yield runtime


async def kinds(program: Runtime) -> list[tuple[str, int]]:
    """Kind and rows of the incidents on record, oldest first."""
    report = await program.incidents(open_only=False, limit=10)
    return [(one.kind, one.rows) for one in reversed(report.incidents)]


Asking = Callable[[], Awaitable[bool]]


def recorded(program: Runtime, kind: str) -> Asking:
    """Asks whether there is such an incident."""

    async def ask() -> bool:
        return kind in [found for found, _ in await kinds(program)]

    return ask


def posted(hook: Receiver) -> Asking:
    """Asks whether anything was posted."""

    async def ask() -> bool:
        return bool(hook.requests)

    return ask


def published(uri: str, incident_id: str) -> Asking:
    """Asks whether the remote store has an incident."""

    async def ask() -> bool:
        return bool(await graph(uri, "MATCH (i:Incident {id: $id}) RETURN i.id", id=incident_id))

    return ask


def seen(uri: str) -> Asking:
    """Asks whether the remote store knows where the local one is."""

    async def ask() -> bool:
        return bool(await graph(uri, "MATCH (s:Store) WHERE s.place IS NOT NULL RETURN s.id"))

    return ask


def adopted(url: str) -> Asking:
    """Asks whether the database itself has an incident on record."""

    async def ask() -> bool:
        async with plain_client(url) as client:
            if await client.fetchval("SELECT to_regclass('dionysus_sync.incidents') IS NULL"):
                return False
            return bool(await client.fetchval("SELECT count(*) FROM dionysus_sync.incidents"))

    return ask


DESTROYED: dict[str, tuple[str, list[tuple[str, int]]]] = {
    "10 deleted": ("DELETE FROM memories WHERE id IN (SELECT id FROM memories LIMIT 10)", []),
    "11 deleted": ("DELETE FROM memories WHERE id IN (SELECT id FROM memories LIMIT 11)", [("rapid_deletes", 11)]),
    "49 % blanked": ("UPDATE memories SET content = '' WHERE id IN (SELECT id FROM memories LIMIT 49)", []),
    "51 % blanked": (
        "UPDATE memories SET content = '' WHERE id IN (SELECT id FROM memories LIMIT 51)",
        [("bulk_update", 51)],
    ),
    "emptied": ("TRUNCATE memories", [("truncate", 100)]),
    "emptied and rolled back": ("BEGIN; TRUNCATE memories; ROLLBACK", []),
    "dropped": ("DROP TABLE memories", [("drop", 100)]),
    "dropped with its schema": ("DROP SCHEMA public CASCADE", [("drop", 100)]),
    "a column dropped": ("ALTER TABLE memories DROP COLUMN tags", [("alter", 100)]),
    "a column added": ("ALTER TABLE memories ADD COLUMN mood text", []),
    "renamed": ("ALTER TABLE memories RENAME TO old", [("alter", 100)]),
    "content cut": ("ALTER TABLE memories ALTER content TYPE varchar(3) USING left(content, 3)", [("alter", 100)]),
    "triggers off": ("ALTER TABLE memories DISABLE TRIGGER USER", [("capture_off", 0)]),
    "the queue dropped": ("DROP TABLE dionysus_sync.sync_queue", [("drop", 0)]),
    "the bookkeeping dropped": ("DROP SCHEMA dionysus_sync CASCADE", [("bookkeeping_missing", 0)]),
    "all dropped": ("DROP SCHEMA public, dionysus_sync CASCADE", [("table_missing", 100)]),
}


@pytest.mark.promise("P8")
@pytest.mark.parametrize("name", DESTROYED)
async def test_what_a_plain_client_destroys_is_one_incident(name: str, program: Runtime, client: Client) -> None:
    """Seen by the database itself, or else by looking; never twice."""
    await client.execute(FILL)
    await program.detector.watch_once()
    command, expected = DESTROYED[name]
    await client.execute(command)
    for _ in range(2):
        await program.guard.guard_once()
        await program.detector.publish_once()
        assert await kinds(program) == expected


@pytest.mark.promise("P8")
async def test_it_is_on_record_on_both_sides_and_told_of(
    migrated_database_url: str, empty_neo4j: str, client: Client, hook: Receiver
) -> None:
    """By the background loops, while they go on capturing; the status names it first."""
    await client.execute(FILL)
    async with at_work(migrated_database_url, empty_neo4j, hook) as program:
        await client.execute("SET application_name = 'DROP TABLE memories'")
        await client.execute("DELETE FROM memories WHERE id IN (SELECT id FROM memories LIMIT 12)")
        await until(recorded(program, "rapid_deletes"), what="it is on record", seconds=SOON)
        (one,) = (await program.incidents(open_only=True, limit=10)).incidents
        await until(posted(hook), what="it is posted", seconds=SOON)
        await until(published(empty_neo4j, one.id), what="it is in the remote store", seconds=SOON)
        status = await program.status()
        closed = await program.close_incident(one.id, "on purpose")
        again = await program.status()
    (request,) = hook.requests
    assert request.headers["x-signature"] == signature(request.body, KEY)
    assert request.headers["x-delivery-id"] == request.fields["id"] == one.id
    assert (request.fields["kind"], request.fields["details"]["rows"]) == ("incident", 12)
    assert request.fields["details"]["pid"] == client.get_server_pid()
    assert not COMMAND.search(request.body.decode())
    assert (status.open_incidents, [i.id for i in status.incidents]) == (1, [one.id])
    assert status.warnings[0].startswith("An incident is open: 12 memories were deleted within 60 s.")
    assert status.next_step == INCIDENT.format(one.id)
    assert (closed.closed_reason, again.open_incidents) == ("on purpose", 0)


@pytest.mark.promise("P8", "P9")
async def test_a_database_that_is_dropped_is_told_of_though_nothing_is_left_of_it(
    postgres_url: str, migrated_database_url: str, empty_neo4j: str, hook: Receiver
) -> None:
    """By the remote store and the webhook; made anew, the database has it on record too."""
    name = urlsplit(migrated_database_url).path.strip("/")
    async with plain_client(migrated_database_url) as client:
        await client.execute(FILL)
    async with at_work(migrated_database_url, empty_neo4j, hook) as program, plain_client(postgres_url) as server:
        await until(seen(empty_neo4j), what="the remote store knows where it was", seconds=SOON)
        await server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await until(posted(hook), what="it is posted", seconds=SOON)
        (one,) = (await program.incidents(open_only=True, limit=10)).incidents
        status = await program.status()
        await server.execute(f'CREATE DATABASE "{name}"')
        await until(recorded(program, "database_missing"), what="it is on record", seconds=60)
        await until(adopted(migrated_database_url), what="it is in the new database", seconds=60)
    assert (one.kind, one.rows) == ("database_missing", 100)
    assert {request.fields["id"] for request in hook.requests} == {one.id}
    assert status.incidents[0].id == one.id
    assert status.next_step == INCIDENT.format(one.id)
    assert await graph(empty_neo4j, "MATCH (i:Incident) RETURN i.id") == [one.id]


@pytest.mark.promise("P6", "P8")
async def test_what_a_recovery_puts_back_is_no_incident(program: Runtime, client: Client) -> None:
    """The drop is; another process has not looked in between."""
    await client.execute(FILL)
    await program.guard.guard_once()
    await program.guard.note_definition_once()
    await program.sync()
    await client.execute("DROP TABLE memories")
    plan = await program.plan_recovery(Scope())
    assert (await program.run_recovery(plan.plan_id)).complete
    for _ in range(2):
        await program.guard.guard_once()
    assert await kinds(program) == [("drop", 100)]


@pytest.mark.promise("P8")
async def test_a_process_that_was_not_there_sees_what_has_changed(
    migrated_database_url: str, empty_neo4j: str, client: Client
) -> None:
    """Without event triggers, which only a superuser can make, a look finds it; the second one finds nothing new."""
    await client.execute(FILL)
    async with running(migrated_database_url, empty_neo4j) as program:
        await program.detector.watch_once()
    for name in await client.fetch("SELECT evtname FROM pg_event_trigger WHERE evtname LIKE 'dionysus%'"):
        await client.execute(f"DROP EVENT TRIGGER {name[0]}")
    await client.execute("TRUNCATE dionysus_sync.observations")
    await client.execute("DROP TABLE memories")
    for _ in range(2):
        async with running(migrated_database_url, empty_neo4j) as program:
            await program.detector.watch_once()
            assert await kinds(program) == [("table_missing", 100)]


WATCHED: dict[str, tuple[str, list[tuple[str, int]]]] = {
    "emptied": ("TRUNCATE memories", [("truncate", 100)]),
    "dropped": ("DROP TABLE memories", [("table_missing", 100)]),
    "another table": ("DROP TABLE memories; CREATE TABLE memories (id uuid PRIMARY KEY)", [("table_recreated", 100)]),
    "a column dropped": ("ALTER TABLE memories DROP COLUMN tags", [("alter", 100)]),
    "content cut": ("ALTER TABLE memories ALTER content TYPE varchar(3) USING left(content, 3)", [("alter", 100)]),
    "triggers off": ("ALTER TABLE memories DISABLE TRIGGER USER", [("capture_off", 0)]),
    "the queue dropped": ("DROP TABLE dionysus_sync.sync_queue", [("bookkeeping_missing", 0)]),
    "rows lost uncaptured": (
        "ALTER TABLE memories DISABLE TRIGGER USER; DELETE FROM memories; ALTER TABLE memories ENABLE TRIGGER USER",
        [("capture_off", 0), ("rows_missing", 100)],
    ),
}


@pytest.mark.promise("P8")
@pytest.mark.parametrize("name", WATCHED)
async def test_without_the_rights_of_a_superuser_looks_find_it(name: str, database_url: str, empty_neo4j: str) -> None:
    """All that can be seen: the database itself tells of nothing but rows and an emptied table."""
    rights = "GRANT CREATE ON DATABASE {name} TO {{role}}; GRANT CREATE, USAGE ON SCHEMA public TO {{role}}"
    command, expected = WATCHED[name]
    async with plain_client(database_url) as client:
        database = await client.fetchval("SELECT quote_ident(current_database())")
        async with (
            role_of(client, database_url, rights.format(name=database)) as url,
            plain_client(url) as owner,
            running(url, empty_neo4j) as program,
        ):
            await program.init(dry_run=False)
            await owner.execute(FILL)
            await program.detector.watch_once()
            await owner.execute(command)
            for _ in range(2):
                await program.guard.look()
                assert sorted(await kinds(program)) == expected
