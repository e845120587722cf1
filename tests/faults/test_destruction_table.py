"""The table is emptied, dropped, replaced or changed by an agent; what it held comes back, and it is as it was."""

import signal
from collections.abc import Awaitable, Callable

import pytest

from tests.faults.destruction import AGENT, Blow, Field, blows, held, watching
from tests.faults.plugin import Scenario
from tests.faults.program import SOON, Failpoint, worker
from tests.integration.stores import graph, plain_client
from tests.services.waiting import until

STOP = signal.SIGSTOP
# Of a process that stands still in the middle of another statement, beside its push: the server would wait for its end.
END_LOOKS = """
SELECT pg_terminate_backend(look.pid) FROM pg_locks AS look
WHERE look.relation = 'memories'::regclass AND look.granted AND look.pid <> pg_backend_pid() AND NOT EXISTS (
    SELECT FROM pg_locks AS push WHERE push.pid = look.pid AND push.locktype = 'advisory')
"""
REFERRING = (
    "CREATE TABLE notes (id serial PRIMARY KEY, memory uuid REFERENCES memories);"
    " INSERT INTO notes (memory) SELECT id FROM memories LIMIT 3"
)
NARROW = """
CREATE TABLE memories (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(), content text NOT NULL, memory_type varchar(20), importance real,
    source_project varchar(100), session_id uuid, tags text[], created_at timestamptz DEFAULT now(),
    updated_at timestamptz DEFAULT now()
)
"""
MADE_UP = """
INSERT INTO memories (id, content, source_project)
SELECT ('c' || lpad(to_hex(i), 31, '0'))::uuid, 'made up ' || i, 'shop' FROM generate_series(1, {new}) AS i
"""
MADE_UP_UNDER_OLD_IDS = """
INSERT INTO memories (id, content, source_project)
SELECT lpad(to_hex(i), 32, '0')::uuid, 'made up under an old id ' || i, 'shop' FROM generate_series(1, {old}) AS i
"""
TRUNCATIONS = {
    "TRUNCATE": Blow("TRUNCATE memories", "truncate"),
    "TRUNCATE CASCADE, with a table that refers to it": Blow(
        f"{REFERRING}; TRUNCATE memories CASCADE", "truncate", newer=True
    ),
    "TRUNCATE with sequences restarted, and rows written after it": Blow(
        "TRUNCATE memories RESTART IDENTITY", "truncate", newer=True
    ),
    "TRUNCATE under session_replication_role = replica": Blow(
        "SET LOCAL session_replication_role = replica; TRUNCATE memories", "truncate"
    ),
}
CHANGES = {
    "ALTER COLUMN content TYPE varchar(10), which cuts it": Blow(
        "ALTER TABLE memories ALTER COLUMN content TYPE varchar(10) USING left(content, 10)", "alter"
    ),
    "DROP COLUMN of the user's own": Blow("ALTER TABLE memories DROP COLUMN mood", "alter"),
    "DROP COLUMN tags": Blow("ALTER TABLE memories DROP COLUMN tags", "alter"),
    "ALTER COLUMN mood TYPE integer, which makes other values": Blow(
        "ALTER TABLE memories DROP CONSTRAINT some_mood, ALTER COLUMN mood DROP DEFAULT,"
        " ALTER COLUMN mood TYPE integer USING length(mood)",
        "alter",
    ),
    "RENAME of the table": Blow("ALTER TABLE memories RENAME TO memories_old", "alter"),
    "another table in its place": Blow(
        "CREATE TABLE memories_new (LIKE memories INCLUDING ALL);"
        " INSERT INTO memories_new SELECT * FROM memories LIMIT 7;"
        " ALTER TABLE memories RENAME TO memories_old; ALTER TABLE memories_new RENAME TO memories",
        "alter",
    ),
    "the table moved to another schema": Blow("CREATE SCHEMA attic; ALTER TABLE memories SET SCHEMA attic", "alter"),
}
DROPS = {
    "DROP TABLE": Blow("DROP TABLE memories", "drop"),
    "DROP TABLE CASCADE, with a table and a view that refer to it": Blow(
        "; ".join([REFERRING, "CREATE VIEW moods AS SELECT id, mood FROM memories", "DROP TABLE memories CASCADE"]),
        "drop",
    ),
    "DROP TABLE in a DO block": Blow("DO $$ BEGIN EXECUTE 'DROP TABLE ' || 'memories'; END $$", "drop"),
    "DROP OWNED": Blow(
        "CREATE ROLE {role}; ALTER TABLE memories OWNER TO {role}; DROP OWNED BY {role}; DROP ROLE {role}", "drop"
    ),
}


@pytest.mark.promise("P4")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
@pytest.mark.promise("P8")
@pytest.mark.parametrize("blow", blows(24, TRUNCATIONS, fast=["TRUNCATE"]))
async def test_24_the_table_is_emptied(field: Field, scenario: Scenario, blow: Blow) -> None:
    """Not a memory is marked as deleted for it; all come back, those too that were written just before it."""
    async with watching(field.stores):
        incident, engaged = await field.strike(blow)
        recovery = await field.recovered(incident)
    scenario.note(engaged=engaged, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


@pytest.mark.slow
@pytest.mark.scenario(24, "TRUNCATE, rolled back")
@pytest.mark.promise("P5")
async def test_24_rolled_back(field: Field, scenario: Scenario) -> None:
    """As if nothing had been; the next one, which is not rolled back, is the only incident."""
    async with watching(field.stores), plain_client(field.stores.database_url, timezone="UTC") as client:
        transaction = client.transaction()
        await transaction.start()
        await client.execute("TRUNCATE memories; DROP TABLE memories")
        emptied = not (await held(client)).images
        await transaction.rollback()
        assert (await held(client)).images == field.expected
        incident, _ = await field.strike(Blow("TRUNCATE memories", "truncate"))
        recovery = await field.recovered(incident)
    scenario.note(engaged=emptied, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


@pytest.mark.promise("P4")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
@pytest.mark.promise("P8")
@pytest.mark.parametrize("blow", blows(25, DROPS, fast=[]))
async def test_25_the_table_is_dropped(field: Field, scenario: Scenario, blow: Blow) -> None:
    """Whatever words it is done with, it is one incident, and the table is made again as it was."""
    role = f"owner_{field.stores.home.name}".replace("-", "_").lower()
    async with watching(field.stores):
        incident, engaged = await field.strike(blow._replace(sql=blow.sql.replace("{role}", f'"{role}"')))
        recovery = await field.recovered(incident)
    scenario.note(engaged=engaged, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


@pytest.mark.scenario(25, "DROP TABLE during a push")
@pytest.mark.promise("P1")
@pytest.mark.promise("P6")
@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    "step",
    ["before:write_memories", pytest.param("after:COMMIT(write_memories)", marks=pytest.mark.slow)],
)
async def test_25_dropped_during_a_push(field: Field, scenario: Scenario, step: str) -> None:
    """The push goes on without the table, what it brought counts, and the worker goes on."""
    url = field.stores.database_url
    async with plain_client(url, application_name=AGENT, timezone="UTC") as client:
        await client.execute("UPDATE memories SET mood = 'pushed' WHERE id = ANY ($1)", field.ids[:100])
        field.keep((await held(client)).images)
        # A comparison would hold the table, too: see scenario 15.
        stores = field.stores.with_settings(DIONYSUS_VERIFY_SECONDS="0")
        async with worker(stores, failpoint=Failpoint(step, sends=STOP)) as program:
            await program.at_failpoint()
            standing = await program.stopped()
            await client.execute(END_LOOKS)
            await client.execute("DROP TABLE memories")
            gone = not (await held(client)).images
            program.resume()
            incident = await field.incident("drop", len(field.expected))
            assert (incident.application_name, program.running) == (AGENT, True)
            recovery = await field.recovered(incident)
            await field.write(client, 3)
            assert (await field.compared()).whole
            assert program.running
    scenario.note(
        engaged=standing and gone, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored
    )


def arrived(field: Field, count: int) -> Callable[[], Awaitable[bool]]:
    """Whether the remote store has as many of the made-up rows that have ids of their own."""

    async def ask() -> bool:
        found = await graph(field.stores.neo4j_uri, "MATCH (m:Memory) WHERE m.id STARTS WITH 'c' RETURN count(m)")
        return bool(found == [count])

    return ask


@pytest.mark.promise("P4")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
@pytest.mark.promise("P8")
@pytest.mark.parametrize(
    "at_once",
    [
        pytest.param(True, marks=pytest.mark.scenario(26, "dropped, made again empty, filled with made-up rows")),
        pytest.param(
            False,
            marks=[
                pytest.mark.scenario(26, "dropped; made again and filled when it was seen that it is gone"),
                pytest.mark.slow,
            ],
        ),
    ],
)
async def test_26_another_table_with_made_up_rows(field: Field, scenario: Scenario, *, at_once: bool) -> None:
    """One incident. Every memory comes back over what was made up under its id; what has an id of its own stays."""
    new, old = field.rows * 4 // 10, field.rows // 20
    live, before, field.of_an_agent = await field.live(), dict(field.expected), True
    async with (
        watching(field.stores) as program,
        plain_client(field.stores.database_url, application_name=AGENT, timezone="UTC") as client,
    ):
        await client.execute("DROP TABLE memories")
        if not at_once:
            await field.incident("drop", len(before))
        await client.execute(NARROW)
        await client.execute(MADE_UP_UNDER_OLD_IDS.format(old=old))
        await client.execute(MADE_UP.format(new=new))
        made_up = (await held(client)).images
        engaged = len(made_up) == new + old
        incident = await field.incident("drop", len(before))
        await until(arrived(field, new), what="what was made up is captured and pushed", seconds=SOON)
        assert await field.live() == live + new
        field.keep({id_: image for id_, image in made_up.items() if id_ not in before})
        recovery = await field.recovered(incident)
        assert (recovery.report["overwritten"], recovery.restored) == (old, len(before))
        assert program.running
    scenario.note(engaged=engaged, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


@pytest.mark.promise("P4")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
@pytest.mark.promise("P8")
@pytest.mark.parametrize(
    "blow", blows(30, CHANGES, fast=["ALTER COLUMN content TYPE varchar(10), which cuts it", "RENAME of the table"])
)
async def test_30_the_table_is_changed(field: Field, scenario: Scenario, blow: Blow) -> None:
    """What was cut off, dropped or put elsewhere comes back, and the table has its columns, rules and indexes again."""
    async with watching(field.stores):
        incident, engaged = await field.strike(blow)
        recovery = await field.recovered(incident)
    scenario.note(engaged=engaged, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)
