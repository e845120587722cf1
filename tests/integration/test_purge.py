"""Removing history on real stores: exactly what was announced goes, and no store misses what is left."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import anyio
import pytest

from dionysus_sync_mcp.domain.errors import InputError
from dionysus_sync_mcp.engine import purge
from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.runtime import Runtime
from tests.integration.stores import INSERT, Client, graph, history, node, remote_digest, uid
from tests.integration.test_drill import settled

MONTH = timedelta(days=30)
UPDATE = "UPDATE memories SET content = $2 WHERE id = $1"
DELETE = "DELETE FROM memories WHERE id = $1"
OLDER = (
    "MATCH (m:Memory {id: $id}) SET m.deleted_at = m.deleted_at - duration({days: $days}),"
    " m.changed_at = m.changed_at - duration({days: $days})"
    " WITH m MATCH (m)-[:HAS_VERSION]->(v) SET v.changed_at = v.changed_at - duration({days: $days})"
)
REFERENCE = "INSERT INTO dionysus_sync.memory_references (source_id, target_id, context) VALUES ($1, $2, 'because')"
LINKS = "MATCH (:Memory {id: $id})-[r:REFERENCES|BELONGS_TO|TAGGED_WITH]-() RETURN count(r)"
PURGES = (
    "SELECT result::text, record_count, error_message FROM dionysus_sync.sync_events WHERE error_message LIKE 'purge:%'"
)
KEEP = (
    "INSERT INTO dionysus_sync.recovery_undo (recovery_id, memory_id, image, written_hash, overwritten_at)"
    " VALUES (gen_random_uuid(), $1, '{}', '', clock_timestamp() - $2::interval)"
)


async def written(program: Runtime, client: Client, memory_id: UUID, *contents: str) -> None:
    """A memory with a version for each content."""
    await client.execute(INSERT, memory_id, contents[0])
    await settled(program)
    for content in contents[1:]:
        await client.execute(UPDATE, memory_id, content)
        await settled(program)


async def aged(uri: str, memory_id: UUID, days: int) -> None:
    """Everything of a memory happened so much earlier."""
    await graph(uri, OLDER, id=str(memory_id), days=days)


async def past(program: Runtime, client: Client, uri: str) -> None:
    """Memories 1 to 5: 1 changed long ago and lately, 2 long ago only, 3 never, 4 deleted long ago, 5 lately."""
    for number in (1, 2, 4, 5):
        await written(program, client, uid(number), "first", "second", "third")
    await written(program, client, uid(3), "only")
    await client.execute(REFERENCE, uid(4), uid(1))
    await settled(program)
    await client.execute(DELETE, uid(4))
    await settled(program)
    for number in range(1, 6):
        await aged(uri, uid(number), 60)
    await client.execute(UPDATE, uid(1), "lately")
    await client.execute(DELETE, uid(5))
    await settled(program)


@pytest.mark.promise("P4")
async def test_by_age_exactly_what_the_dry_run_says_goes_and_every_later_moment_can_still_be_recovered(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """The state at the beginning of the time that is kept stays, and so does every current one."""
    await past(program, client, empty_neo4j)
    before = await remote_digest(empty_neo4j)
    said = await program.purge(MONTH, (), dry_run=True)
    assert (said.versions, said.tombstones) == (6, 1), said
    assert await remote_digest(empty_neo4j) == before
    assert await client.fetch(PURGES) == []
    done = await program.purge(MONTH, (), dry_run=False)
    assert (done.versions, done.tombstones) == (said.versions, said.tombstones)
    kept = {number: [content for _, _, content in await history(empty_neo4j, uid(number))] for number in range(1, 6)}
    assert kept == {1: ["third", "lately"], 2: ["third"], 3: ["only"], 4: [], 5: ["third", "third"]}
    assert (await node(empty_neo4j, uid(1)))["content"] == "lately"
    assert await graph(empty_neo4j, LINKS, id=str(uid(1))) == [1]
    assert [tuple(r)[:2] for r in await client.fetch(PURGES)] == [("success", 7)]
    again = await program.purge(MONTH, (), dry_run=False)
    assert (again.versions, again.tombstones) == (0, 0)
    assert len(await client.fetch(PURGES)) == 1


async def test_neither_a_verification_nor_a_push_nor_a_recovery_misses_what_was_removed(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """No drift, nothing resurrected; the tombstone that went does not come back."""
    await past(program, client, empty_neo4j)
    assert (await program.purge(MONTH, (), dry_run=False)).tombstones == 1
    assert (await program.verify("deep")).result == "clean"
    assert (await program.drill()).result == "passed"
    left = await remote_digest(empty_neo4j)
    await settled(program)
    assert await remote_digest(empty_neo4j) == left
    plan = await program.plan_recovery(Scope(), include_deleted=True)
    assert plan.will_restore == 1


async def test_a_plan_for_a_time_whose_history_was_removed_says_so(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """And one for a time that was kept does not."""
    await past(program, client, empty_neo4j)
    await program.purge(MONTH, (), dry_run=False)
    now = datetime.now(UTC)
    for days, said in ((29, False), (50, True)):
        plan = await program.plan_recovery(Scope(), as_of=now - timedelta(days=days))
        assert any("was purged" in warning for warning in plan.warnings) is said


async def test_an_id_that_was_removed_can_be_used_again(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """It is a new memory."""
    await past(program, client, empty_neo4j)
    await program.purge(MONTH, (), dry_run=False)
    await client.execute(INSERT, uid(4), "once more")
    await settled(program)
    assert [content for _, _, content in await history(empty_neo4j, uid(4))] == ["once more"]
    assert (await program.verify("deep")).result == "clean"


async def test_memories_of_other_stores_are_left_alone_unless_they_are_named(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """By age neither what another store wrote last, nor a tombstone in which it has a part."""
    await past(program, client, empty_neo4j)
    await graph(empty_neo4j, "CREATE (:Store {id: 'another'})")
    await graph(empty_neo4j, "MATCH (m:Memory {id: $id}) SET m.origin = 'another'", id=str(uid(2)))
    part = "MATCH (:Memory {id: $id})-[:HAS_VERSION]->(v {sync_version: 2}) SET v.origin = 'another'"
    await graph(empty_neo4j, part, id=str(uid(4)))
    report = await program.purge(MONTH, (), dry_run=False)
    assert report.tombstones == 0
    assert report.warnings == ["1 other local stores write to this remote store; their history is left alone."]
    assert len(await history(empty_neo4j, uid(2))) == 3
    assert await history(empty_neo4j, uid(4)) == [(2, "update", "second"), (4, "delete", "third")]
    named = await program.purge(None, [str(uid(2)), str(uid(4))], dry_run=False)
    assert (named.versions, named.tombstones) == (2, 1)
    assert [content for _, _, content in await history(empty_neo4j, uid(2))] == ["third"]


async def test_by_memory_a_deleted_one_goes_and_a_live_one_keeps_its_current_version(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """However new it is; the report says of each what becomes of it."""
    await written(program, client, uid(1), "secret", "clean")
    await written(program, client, uid(2), "gone soon")
    await written(program, client, uid(3), "only")
    await client.execute(DELETE, uid(2))
    await settled(program)
    ids = [str(uid(number)) for number in (1, 2, 3, 99)]
    said = await program.purge(None, ids, dry_run=True)
    done = await program.purge(None, ids, dry_run=False)
    assert (done.versions, done.tombstones) == (said.versions, said.tombstones) == (1, 1)
    assert done.memories == said.memories
    assert [example.reason for example in done.memories] == [
        "it is not deleted, and stays: only its 1 old versions",
        "it was deleted here: all of it, 2 versions",
        "it is not deleted, and stays; it has no old versions",
        "it is not in the remote store",
    ]
    assert await history(empty_neo4j, uid(1)) == [(2, "update", "clean")]
    assert await graph(empty_neo4j, "MATCH (n) WHERE n.content = 'gone soon' RETURN n") == []
    assert (await program.verify("deep")).result == "clean"


async def test_rows_kept_for_an_undo_go_too(program: Runtime, client: Client) -> None:
    """By the same age, or of the memories that are named."""
    await written(program, client, uid(1), "c")
    for age in ("60 days", "2 days"):
        await client.execute(KEEP, uid(1), timedelta(days=int(age.split()[0])))
    assert (await program.purge(MONTH, (), dry_run=True)).undo_images == 1
    assert (await program.purge(MONTH, (), dry_run=False)).undo_images == 1
    assert (await program.purge(None, [str(uid(1))], dry_run=False)).undo_images == 1
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.recovery_undo") == 0


async def test_nothing_is_removed_while_an_incident_is_open(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """What it destroyed comes back out of the history."""
    await past(program, client, empty_neo4j)
    now = datetime.now(UTC)
    await client.execute(
        "INSERT INTO dionysus_sync.incidents (id, store, key, kind, detected_at, restore_point, last_at, summary)"
        " SELECT gen_random_uuid(), id, 'k', 'truncate', $1, $1, $1, 'The table was emptied.'"
        " FROM dionysus_sync.store_identity",
        now,
    )
    before = await remote_digest(empty_neo4j)
    for dry_run in (True, False):
        with pytest.raises(InputError, match="1 incidents are open"):
            await program.purge(MONTH, (), dry_run=dry_run)
    assert await remote_digest(empty_neo4j) == before
    await client.execute("UPDATE dionysus_sync.incidents SET closed_at = $1, closed_reason = 'meant'", now)
    assert (await program.purge(MONTH, (), dry_run=False)).versions == 6


@pytest.mark.promise("P4")
async def test_what_nobody_has_judged_yet_is_judged_before_anything_is_removed(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """No worker was running when the memories were overwritten; what they were before is all that is left of them."""
    await past(program, client, empty_neo4j)
    await client.execute("UPDATE memories SET content = 'x' || id")
    await client.execute("INSERT INTO memories (id, content) SELECT gen_random_uuid(), 'd' FROM generate_series(1, 11)")
    await client.execute("DELETE FROM memories WHERE content = 'd'")
    await settled(program)
    before = await remote_digest(empty_neo4j)
    for dry_run in (True, False):
        with pytest.raises(InputError, match="1 incidents are open"):
            await program.purge(MONTH, (), dry_run=dry_run)
    assert await remote_digest(empty_neo4j) == before


@pytest.mark.promise("P4")
async def test_an_incident_that_only_the_remote_knows_is_in_the_way(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Of this store: by age and by name; of another one: by name."""
    await past(program, client, empty_neo4j)
    made = (
        "CREATE (:Incident {id: randomUUID(), key: 'k', store: $store, kind: 'database_missing', rows: 5, revision: 1,"
        " detected_at: datetime(), restore_point: datetime(), last_at: datetime(), summary: 'The database is gone.'})"
    )
    await graph(empty_neo4j, made, store=str(uid(99)))
    with pytest.raises(InputError, match="1 incidents are open"):
        await program.purge(None, [str(uid(4))], dry_run=True)
    assert (await program.purge(MONTH, (), dry_run=True)).versions == 6
    await graph(empty_neo4j, made, store=await client.fetchval("SELECT id::text FROM dionysus_sync.store_identity"))
    with pytest.raises(InputError, match="1 incidents are open"):
        await program.purge(MONTH, (), dry_run=True)
    report = await program.drill()
    assert (report.result, "an incident is open" in report.warnings[0]) == ("skipped", True)


async def test_a_purge_that_is_cut_off_leaves_whole_pages_and_can_be_repeated(
    program: Runtime, client: Client, empty_neo4j: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was removed by then is on record, and the rest goes the next time."""
    await past(program, client, empty_neo4j)
    monkeypatch.setattr(purge, "PAGE", 1)
    monkeypatch.setattr(purge, "MOST", 1)
    with anyio.CancelScope() as scope:

        async def stop(_done: int, _total: int | None, _text: str) -> None:
            scope.cancel()
            await anyio.lowlevel.checkpoint()

        await program.purge(MONTH, (), dry_run=False, on_progress=stop)
    assert scope.cancelled_caught
    assert [tuple(r)[:2] for r in await client.fetch(PURGES)] == [("partial", 2)]
    rest = await program.purge(MONTH, (), dry_run=False)
    assert (rest.versions, rest.tombstones) == (4, 1)
    assert (await program.verify("deep")).result == "clean"
