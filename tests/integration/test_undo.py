"""Undoing a recovery on real stores: what it overwrote comes back byte for byte, as a newer version."""

from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from dionysus_sync_mcp.adapters.postgres.database import Database
from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.adapters.postgres.restorer import PostgresRestorer
from dionysus_sync_mcp.adapters.postgres.undoing import PostgresUndoing
from dionysus_sync_mcp.adapters.statements import load_migrations
from dionysus_sync_mcp.domain.errors import InputError
from dionysus_sync_mcp.engine.undo import Undoer
from dionysus_sync_mcp.runtime import Runtime
from tests.engine.memory_remote import MemoryRemote
from tests.integration.stores import INSERT, Client, history, images, node, operations, queue, uid
from tests.integration.test_recover import ODD_COLUMNS, ODD_ROWS
from tests.integration.test_restore import RECOVERY, forward, state
from tests.services.local_store import opened

STAMPS = "SELECT id, sync_version, synced_version, sync_status, remote_id FROM memories ORDER BY id"


@pytest.fixture
async def database(migrated_database_url: str) -> AsyncIterator[Database]:
    """The program's own access to it."""
    async with opened(migrated_database_url) as access:
        yield access


@pytest.fixture
def restorer(database: Database) -> PostgresRestorer:
    """Of that database."""
    return PostgresRestorer(database, Installer(database, load_migrations()))


@pytest.fixture
def undoer(database: Database) -> Undoer:
    """Of that database, beside an empty remote store."""
    return Undoer(PostgresUndoing(database), MemoryRemote())


async def overwritten(client: Client, restorer: PostgresRestorer) -> tuple[dict[str, str], dict[str, str]]:
    """Rows that a recovery has overwritten: as they were before it, and after."""
    ids = [r["id"] for r in await client.fetch("SELECT id FROM memories ORDER BY id")]
    good = [await state(client, i) for i in ids]
    await client.execute("UPDATE memories SET content = 'bad ' || content, importance = 0.25, tags = '{bad,NULL}'")
    before = await images(client)
    page = [forward(g, await state(client, UUID(g.id))) for g in good]
    result = await restorer.restore(RECOVERY, page)
    assert (result.overwritten, result.refused) == (len(ids), [])
    await client.execute("DELETE FROM dionysus_sync.sync_queue")
    after = await images(client)
    assert before.keys() == after.keys()
    assert before != after
    return before, after


@pytest.mark.promise("P6")
async def test_what_was_overwritten_comes_back_byte_for_byte(
    client: Client, restorer: PostgresRestorer, undoer: Undoer
) -> None:
    """Columns of any type, each row one version on, pending and queued; a dry run and a second undo change nothing."""
    await client.execute(ODD_COLUMNS)
    await client.execute(ODD_ROWS)
    before, after = await overwritten(client, restorer)
    tried = await undoer.undo(None, dry_run=True)
    assert (tried.overwritten, tried.restored, tried.complete, tried.dry_run) == (40, 40, True, True)
    assert await images(client) == after
    report = await undoer.undo(RECOVERY, dry_run=False)
    assert (report.restored, report.complete, report.warnings, report.recovery_id) == (40, True, [], RECOVERY)
    assert await images(client) == before
    assert {tuple(r)[1:4] for r in await client.fetch(STAMPS)} == {(4, 2, "pending")}
    assert await operations(client) == [("update", 4)] * 40
    stamps = await client.fetch(STAMPS)
    again = await undoer.undo(None, dry_run=False)
    assert (again.restored, again.already_undone, again.complete) == (0, 40, True)
    assert (await client.fetch(STAMPS), len(await queue(client))) == (stamps, 40)


@pytest.mark.promise("P6")
async def test_what_was_changed_since_is_left_alone(client: Client, restorer: PostgresRestorer, undoer: Undoer) -> None:
    """So is what is gone, and what the table refuses or has no column for; each is counted or named."""
    await client.execute("ALTER TABLE memories ADD COLUMN price numeric")
    await client.executemany("INSERT INTO memories (id, content, price) VALUES ($1, $2, $3)", [
        (uid(1), "a", None), (uid(2), "b", None), (uid(3), "c", None), (uid(4), "d", 4), (uid(5), "e", None),
    ])  # fmt: skip
    before, _ = await overwritten(client, restorer)
    await client.execute("UPDATE memories SET content = 'mine' WHERE id = $1", uid(1))
    await client.execute("DELETE FROM memories WHERE id = $1", uid(2))
    await client.execute("ALTER TABLE memories ADD CHECK (content <> 'bad c')")
    await client.execute("ALTER TABLE memories RENAME price TO cost")
    await client.execute("UPDATE dionysus_sync.recovery_undo SET written_hash = $2 WHERE memory_id = $1", uid(4), (
        await state(client, uid(4))).content_hash)  # fmt: skip
    report = await undoer.undo(RECOVERY, dry_run=False)
    found = (report.overwritten, report.restored, report.changed_since, report.missing, report.complete)
    assert found == (5, 1, 1, 1, False)
    named = "\n".join(report.warnings)
    assert all(str(uid(n)) in named for n in (3, 4))
    assert "price" in named
    contents = {r["id"].int: r["content"] for r in await client.fetch("SELECT id, content FROM memories")}
    assert contents == {1: "mine", 3: "c", 4: "d", 5: "bad e"}
    assert "bad e" in before[str(uid(5))]


async def test_a_column_that_came_since_keeps_what_it_has(
    client: Client, restorer: PostgresRestorer, undoer: Undoer
) -> None:
    """The row has changed by it only if somebody filled it."""
    await client.executemany(INSERT, [(uid(1), "a"), (uid(2), "b")])
    await overwritten(client, restorer)
    await client.execute(
        "ALTER TABLE memories ADD COLUMN mood text; UPDATE memories SET mood = 'm' WHERE content = 'a'"
    )
    report = await undoer.undo(RECOVERY, dry_run=False)
    assert (report.restored, report.changed_since) == (1, 1)
    rows = await client.fetch("SELECT content, mood FROM memories ORDER BY id")
    assert [tuple(r) for r in rows] == [("a", "m"), ("bad b", None)]


@pytest.mark.promise("P6")
async def test_every_recovery_can_be_undone_without_its_id(
    client: Client, restorer: PostgresRestorer, undoer: Undoer
) -> None:
    """One after the other, the last one first; also where a process that ended left it on no other record."""
    await client.executemany(INSERT, [(uid(n), f"good {n}") for n in (1, 2)])
    good = [await state(client, uid(n)) for n in (1, 2)]
    await client.execute("UPDATE memories SET content = 'bad'")
    for number, one in enumerate(good):
        await restorer.restore(str(uid(900 + number)), [forward(one, await state(client, UUID(one.id)))])
    first = await undoer.undo(None, dry_run=False)
    assert (first.recovery_id, first.restored) == (str(uid(901)), 1)
    assert f"{uid(900)} (1 rows" in first.warnings[0]
    second = await undoer.undo(None, dry_run=False)
    assert (second.recovery_id, second.restored, second.warnings) == (str(uid(900)), 1, [])
    assert [r[0] for r in await client.fetch("SELECT content FROM memories")] == ["bad", "bad"]


async def test_a_recovery_that_is_not_there_is_refused(client: Client, undoer: Undoer) -> None:
    """Unknown, no id at all, or none that has overwritten anything."""
    for recovery_id in (RECOVERY, "no id", None):
        with pytest.raises(InputError, match=r"no such recovery|no recovery has"):
            await undoer.undo(recovery_id, dry_run=False)
    await client.execute("INSERT INTO dionysus_sync.recoveries (id, report) VALUES ($1, '{}')", UUID(RECOVERY))
    report = await undoer.undo(RECOVERY, dry_run=False)
    assert (report.complete, report.overwritten, report.next_step) == (True, 0, "There is nothing to put back.")


@pytest.mark.promise("P3")
@pytest.mark.promise("P8")
async def test_an_undo_goes_forward_in_the_remote_store(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """Above what the remote store holds, even where that is more than is known here; on record in both tables."""
    await client.execute(INSERT, uid(1), "good")
    await program.sync(embed=False)
    good = await state(client, uid(1))
    await client.execute("UPDATE memories SET content = 'bad'")
    await program.sync(embed=False)
    restorer = PostgresRestorer(program.database, program.installer)
    await restorer.restore(RECOVERY, [forward(good, await state(client, uid(1)))])
    await program.sync(embed=False)
    report = await program.undo(None, dry_run=False)
    assert (report.restored, report.complete) == (1, True)
    assert (await program.sync(embed=False)).outcomes == {"updated": 1}
    held = await node(empty_neo4j, uid(1))
    assert (held["content"], held["sync_version"]) == ("bad", 4)
    assert [number for number, *_ in await history(empty_neo4j, uid(1))] == [1, 2, 3, 4]
    assert await client.fetchval("SELECT sync_status FROM memories") == "synced"
    kept = "SELECT report #>> '{undo,recovery_id}' FROM dionysus_sync.recoveries WHERE report ? 'undo'"
    assert [r[0] for r in await client.fetch(kept)] == [RECOVERY]
    events = "SELECT result, record_count FROM dionysus_sync.sync_events WHERE direction = 'remote_to_local'"
    assert [tuple(r) for r in await client.fetch(events)] == [("success", 1)]
