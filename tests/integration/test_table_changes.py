"""The user's table is changed under the running program: whatever is written before, meanwhile and after arrives."""

from collections.abc import AsyncIterator

import pytest

from dionysus_sync_mcp.runtime import Runtime
from tests.integration.stores import INSERT, Client, graph, uid
from tests.services.local_store import running
from tests.services.waiting import until

SOON = 30.0
CHANGES = {
    "a column added": ["ALTER TABLE memories ADD COLUMN mood text DEFAULT 'good'"],
    "a column dropped": ["ALTER TABLE memories DROP COLUMN tags", "ALTER TABLE memories DROP COLUMN importance"],
    "a type changed": ["ALTER TABLE memories ALTER COLUMN importance TYPE double precision"],
    "the text's type changed": ["ALTER TABLE memories ALTER COLUMN content TYPE varchar(5000)"],
    "types changed that the program reads": [
        "ALTER TABLE memories ALTER COLUMN session_id TYPE text",
        "ALTER TABLE memories ALTER COLUMN updated_at TYPE timestamptz(3)",
    ],
    "a column renamed": ["ALTER TABLE memories RENAME COLUMN importance TO weight"],
    "all of it": [
        "ALTER TABLE memories ADD COLUMN mood text",
        "ALTER TABLE memories ALTER COLUMN mood TYPE jsonb USING NULL",
        "ALTER TABLE memories DROP COLUMN mood",
        "ALTER TABLE memories ADD COLUMN mood integer NOT NULL DEFAULT 7",
    ],
}


@pytest.fixture
async def worker(migrated_database_url: str, empty_neo4j: str) -> AsyncIterator[Runtime]:
    """The program with its background loops."""
    async with running(migrated_database_url, empty_neo4j, worker=True) as runtime:
        yield runtime


async def standing(uri: str) -> dict[str, str]:
    """Content by id of what lives in the remote store."""
    found = await graph(uri, "MATCH (m:Memory) WHERE m.deleted_at IS NULL RETURN [m.id, m.content]")
    return dict(found)


async def meant(program: Runtime) -> None:
    """Somebody looks at what is known of the change, and says that it was on purpose."""
    await program.detector.judge_all()
    for incident in (await program.incidents(open_only=True, limit=10)).incidents:
        await program.close_incident(incident.id, "on purpose")


@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    "statement",
    [
        "ADD COLUMN mood text NOT NULL DEFAULT 'good'",
        "DROP COLUMN old",
        "ALTER COLUMN old DROP DEFAULT, ALTER COLUMN old TYPE text[] USING ARRAY[old]",
    ],
)
async def test_rows_that_nobody_has_written_since_are_sent_as_they_are_now(
    program: Runtime, client: Client, statement: str
) -> None:
    """When somebody has said that the change was meant: it fires no trigger, and the difference is no alert."""
    await client.execute("ALTER TABLE memories ADD COLUMN old text DEFAULT 'x'")
    for number in range(1, 4):
        await client.execute(INSERT, uid(number), f"text {number}")
    await program.sync(embed=False)
    await program.guard.note_definition_once()
    await program.verifier.check_once()
    await client.execute(f"ALTER TABLE memories {statement}")
    assert (await program.verify()).counts == {"different": 3}
    await meant(program)
    await program.guard.note_definition_once()
    await program.verifier.check_once()
    await program.sync(embed=False)
    assert (await program.verify("deep")).result == "clean"
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.alerts WHERE kind <> 'incident'") == 0


@pytest.mark.promise("P1")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.usefixtures("worker")
async def test_nothing_is_lost_when_the_table_is_changed(client: Client, empty_neo4j: str, change: str) -> None:
    """Between inserts, updates and deletes; and every row that stands says that it is synced."""
    expected: dict[str, str] = {}

    async def write(number: int) -> None:
        await client.execute(INSERT, uid(number), f"first {number}")
        expected[str(uid(number))] = f"first {number}"
        if number % 3 == 1:
            await client.execute("UPDATE memories SET content = $2 WHERE id = $1", uid(number), f"second {number}")
            expected[str(uid(number))] = f"second {number}"
        if number % 3 == 2:
            await client.execute("DELETE FROM memories WHERE id = $1", uid(number))
            del expected[str(uid(number))]

    async def whole() -> bool:
        return await standing(empty_neo4j) == expected

    number = 0
    for statement in ["SELECT 1", *CHANGES[change]]:
        for _ in range(6):
            number += 1
            await write(number)
        await client.execute(statement)
        for _ in range(6):
            number += 1
            await write(number)
        await until(whole, what="the remote store has it all", seconds=SOON)
    await client.execute("UPDATE memories SET content = content || '!'")
    expected.update({i: f"{content}!" for i, content in expected.items()})
    await until(whole, what="the remote store has the last change", seconds=SOON)

    async def stamped() -> bool:
        statement = (
            "SELECT (SELECT count(*) FROM dionysus_sync.sync_queue)"
            " + (SELECT count(*) FROM memories WHERE sync_status <> 'synced')"
        )
        return bool(await client.fetchval(statement) == 0)

    await until(stamped, what="every row is synced and nothing is parked", seconds=SOON)
