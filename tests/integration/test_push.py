"""Push, end to end: what a plain client committed is in the remote store, with its history, whatever happens."""

import json
from collections.abc import Sequence
from contextlib import suppress

import anyio
import pytest

from dionysus_sync_mcp.adapters.postgres.outbox import PostgresClaim
from dionysus_sync_mcp.domain.errors import Refused, TooLarge, Unavailable
from dionysus_sync_mcp.engine.ports.push import RemoteBatch, RemoteWriter, RowOutcome, Settlement
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity
from dionysus_sync_mcp.engine.push import UNLINKED, Pusher, PushResult
from dionysus_sync_mcp.runtime import Runtime
from tests.integration.stores import (
    INSERT,
    Client,
    graph,
    history,
    images,
    node,
    operations,
    plain_client,
    queue,
    remote_digest,
    uid,
)
from tests.services.local_store import running

AUDIT = (
    "SELECT direction, result, record_count, cardinality(memory_ids) AS named, error_message"
    " FROM dionysus_sync.sync_events ORDER BY timestamp"
)
CONFLICTS = "SELECT winner, local_content, remote_content FROM dionysus_sync.conflicts"


async def push(program: Runtime) -> PushResult:
    """Push until nothing is left."""
    result = PushResult()
    while (step := await program.pusher.push_once()).pushed or step.parked:
        result = result.plus(step)
    return result


async def stamps(client: Client) -> list[tuple[str, int, int | None]]:
    """Status, version and confirmed version of each row."""
    rows = await client.fetch("SELECT sync_status, sync_version, synced_version FROM memories ORDER BY id")
    return [(r[0], r[1], r[2]) for r in rows]


@pytest.mark.promise("P1")
@pytest.mark.promise("P4")
async def test_each_operation_arrives_with_its_history(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """Insert, update and delete pushed one by one: a live memory, a newer one, a tombstone; every version stays."""
    await client.execute(INSERT, uid(1), "first")
    assert (await push(program)).outcomes == {"created": 1}
    assert await stamps(client) == [("synced", 1, 1)]
    await client.execute("UPDATE memories SET content = 'second'")
    assert await stamps(client) == [("pending", 2, 1)]
    assert (await push(program)).outcomes == {"updated": 1}
    assert await stamps(client) == [("synced", 2, 2)]
    await client.execute("DELETE FROM memories")
    assert (await push(program)).outcomes == {"updated": 1}
    held = await node(empty_neo4j, uid(1))
    assert (held["content"], held["sync_version"], held["deleted_at"] is not None) == ("second", 3, True)
    assert await history(empty_neo4j, uid(1)) == [
        (1, "create", "first"),
        (2, "update", "second"),
        (3, "delete", "second"),
    ]
    assert await queue(client) == []


@pytest.mark.promise("P1")
async def test_changes_of_one_memory_in_one_batch_are_all_in_the_history(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Folding sends one state, and loses none."""
    await client.execute(INSERT, uid(1), "v1")
    for number in (2, 3, 4):
        await client.execute("UPDATE memories SET content = $1", f"v{number}")
    assert (await push(program)).outcomes == {"created": 1}
    assert [content for _, _, content in await history(empty_neo4j, uid(1))] == ["v1", "v2", "v3", "v4"]
    assert await stamps(client) == [("synced", 4, 4)]


async def test_the_image_pushed_last_is_the_one_written_last(
    program: Runtime, client: Client, migrated_database_url: str, empty_neo4j: str
) -> None:
    """An older transaction that writes last has the newest content in the remote store too."""
    await client.execute(INSERT, uid(1), "c")
    async with plain_client(migrated_database_url) as older:
        transaction = older.transaction()
        await transaction.start()
        await older.execute("SELECT txid_current()")
        await client.execute("UPDATE memories SET content = 'younger'")
        await push(program)
        await older.execute("UPDATE memories SET content = 'older, but last'")
        await transaction.commit()
    await push(program)
    assert (await node(empty_neo4j, uid(1)))["content"] == "older, but last"


@pytest.mark.promise("P2")
async def test_killed_between_remote_commit_and_acknowledgement(
    program: Runtime, client: Client, empty_neo4j: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch is sent again, and changes nothing."""
    await client.execute(INSERT, uid(1), "c")
    await client.execute("UPDATE memories SET content = 'd'")

    async def killed(_self: PostgresClaim, _settlement: Settlement) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as fault:
        fault.setattr(PostgresClaim, "settle", killed)
        with pytest.raises(RuntimeError, match="killed"):
            await program.pusher.push_once()
    before = await remote_digest(empty_neo4j)
    assert len(before) == 3
    assert len(await queue(client)) == 2
    assert (await push(program)).outcomes == {"unchanged": 1}
    assert await remote_digest(empty_neo4j) == before
    assert await stamps(client) == [("synced", 2, 2)]


async def test_of_two_pushers_one_is_busy(program: Runtime, client: Client) -> None:
    """Only one process pushes at a time; the other one is told so at once."""
    await client.execute(INSERT, uid(1), "c")
    async with program.outbox.claim(10, 10_000) as held:
        assert held is not None
        assert await program.pusher.push_once() == PushResult(busy=True)
    assert (await push(program)).pushed == 1


async def test_many_pushers_lose_and_double_nothing(
    program: Runtime, client: Client, migrated_database_url: str, empty_neo4j: str
) -> None:
    """Two programs draining at once while rows are written: every row arrives, no version is there twice."""
    await client.execute("INSERT INTO memories (content) SELECT 'c' || i FROM generate_series(1, 200) AS i")
    async with running(migrated_database_url, empty_neo4j) as other, anyio.create_task_group() as tasks:
        for drainer in (program, other):
            tasks.start_soon(_drain, drainer)
        await client.execute("UPDATE memories SET content = content || '!'")
    await push(program)
    assert await graph(empty_neo4j, "MATCH (m:Memory) WHERE m.content ENDS WITH '!' RETURN count(m)") == [200]
    assert await graph(empty_neo4j, "MATCH (v:MemoryVersion) RETURN count(v)") == [400]
    assert await queue(client) == []


async def _drain(program: Runtime) -> None:
    await program.sync(embed=False)


class Choosy:
    """A remote writer that refuses batches with a certain content in them, and hands on all others."""

    def __init__(self, program: Runtime, bad: str, error: type[Refused] = Refused) -> None:
        self._program = program
        self._bad = bad
        self._error = error
        self.sizes: list[int] = []

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Hand on, or refuse."""
        self.sizes.append(len(batch.changes))
        contents = [v.properties.content or "" for c in batch.changes for v in (*c.older, c.newest)]
        if any(self._bad in content for content in contents):
            raise self._error("it is poison", where="neo4j")
        return await self._program.remote.write(batch)

    async def prepare(self) -> None:
        """Nothing."""

    async def note_definition(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.promise("P1")
async def test_a_poison_row_is_parked_and_the_others_go_through(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """The refused row is found by halving, kept with its error, and its row says failed."""
    for number in range(1, 21):
        await client.execute(INSERT, uid(number), "poison" if number == 13 else "good")
    pusher = Pusher(program.outbox, Choosy(program, "poison"), program.remote)
    result = await pusher.push_once()
    assert (result.pushed, result.parked) == (19, 1)
    assert [(e.memory_id, e.parked, e.error) for e in await queue(client)] == [(uid(13), True, "it is poison")]
    assert await graph(empty_neo4j, "MATCH (m:Memory) RETURN count(m)") == [19]
    assert (await stamps(client))[12] == ("failed", 1, None)
    assert [r["result"] for r in await client.fetch(AUDIT)] == ["partial"]
    assert await pusher.push_once() == PushResult()


@pytest.mark.promise("P1")
async def test_a_good_state_is_not_held_back_by_a_poison_one_before_it(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """The later state supersedes: it goes through, and only what came before it is parked."""
    await client.execute(INSERT, uid(1), "poison")
    await client.execute("UPDATE memories SET content = 'good'")
    result = await Pusher(program.outbox, Choosy(program, "poison"), program.remote).push_once()
    assert (result.pushed, result.parked) == (1, 1)
    assert (await node(empty_neo4j, uid(1)))["content"] == "good"
    assert [(e.version, e.parked) for e in await queue(client)] == [(1, True)]
    assert await stamps(client) == [("synced", 2, 2)]


async def test_a_batch_too_large_is_halved(program: Runtime, client: Client) -> None:
    """A remote that can only take small batches gets small batches."""

    class Small(Choosy):
        async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
            self.sizes.append(len(batch.changes))
            if len(batch.changes) > 5:
                raise TooLarge("too much for my memory", where="neo4j")
            return await self._program.remote.write(batch)

    await client.execute("INSERT INTO memories (content) SELECT 'c' FROM generate_series(1, 16) AS i")
    small = Small(program, "")
    result = await Pusher(program.outbox, small, program.remote).push_once()
    assert (result.pushed, result.parked, max(small.sizes)) == (16, 0, 16)
    assert await queue(client) == []


@pytest.mark.promise("P1")
async def test_what_neo4j_itself_refuses_is_parked(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """A constraint of somebody's own makes Neo4j refuse a row for real; the rest goes through."""
    name = "somebodys_own_constraint"
    await graph(empty_neo4j, f"CREATE CONSTRAINT {name} FOR (m:Memory) REQUIRE m.content IS UNIQUE")
    try:
        for number, content in ((1, "same"), (2, "same"), (3, "other")):
            await client.execute(INSERT, uid(number), content)
        result = await push(program)
    finally:
        await graph(empty_neo4j, f"DROP CONSTRAINT {name}")
    assert (result.pushed, result.parked) == (2, 1)
    parked = [e for e in await queue(client) if e.parked]
    assert [e.memory_id for e in parked] == [uid(2)]
    assert "already exists" in (parked[0].error or "")


@pytest.mark.promise("P1")
async def test_changes_are_pushed_although_the_table_is_gone(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """What was captured before the table was dropped still reaches the remote store."""
    await client.execute(INSERT, uid(1), "captured")
    await client.execute("DROP TABLE memories")
    assert (await push(program)).outcomes == {"created": 1}
    assert (await node(empty_neo4j, uid(1)))["content"] == "captured"
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.sync_queue") == 0


@pytest.mark.promise("P1")
async def test_a_table_of_another_shape_does_not_stop_the_queue(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Somebody replaced the table by another one of that name."""
    await client.execute(INSERT, uid(1), "captured")
    await client.execute("DROP TABLE memories; CREATE TABLE memories (whatever text)")
    assert (await push(program)).pushed == 1
    assert (await node(empty_neo4j, uid(1)))["content"] == "captured"


@pytest.mark.promise("P3")
@pytest.mark.promise("P4")
async def test_a_table_made_again_with_the_same_ids_is_counted_on(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Its versions start at 1 again: its rows are rebased, the new content is live, the old one in the history."""
    await client.execute(INSERT, uid(1), "v1")
    for number in (2, 3):
        await client.execute("UPDATE memories SET content = $1", f"v{number}")
    await push(program)
    await client.execute("DROP TABLE memories")
    await program.init(dry_run=False)
    await client.execute(INSERT, uid(1), "of the new table")
    outcomes = (await push(program)).outcomes
    assert outcomes == {"stale": 1, "updated": 1}
    held = await node(empty_neo4j, uid(1))
    assert (held["content"], held["sync_version"]) == ("of the new table", 4)
    assert "v3" in [content for _, _, content in await history(empty_neo4j, uid(1))]
    assert await stamps(client) == [("synced", 4, 4)]


@pytest.mark.promise("P3")
@pytest.mark.parametrize("one_by_one", [True, False])
async def test_a_row_inserted_again_after_a_delete_is_live_again(
    program: Runtime, client: Client, empty_neo4j: str, *, one_by_one: bool
) -> None:
    """Whether the delete was pushed by itself or together with the insert: the row is live, its number goes on."""
    await client.execute(INSERT, uid(1), "old")
    await push(program)
    await client.execute("DELETE FROM memories")
    if one_by_one:
        await push(program)
    await client.execute(INSERT, uid(1), "new")
    await push(program)
    held = await node(empty_neo4j, uid(1))
    assert (held["content"], held.get("deleted_at"), held["sync_version"]) == ("new", None, 3)
    assert await stamps(client) == [("synced", 3, 3)]
    await client.execute("UPDATE memories SET content = 'newer'")
    assert (await push(program)).outcomes == {"updated": 1}


@pytest.mark.promise("P8")
async def test_a_conflict_that_is_won_is_on_record(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """Another store changed the memory in the remote: the higher version wins, both contents are on record."""
    await client.execute(INSERT, uid(1), "base")
    await push(program)
    await graph(
        empty_neo4j,
        "MATCH (m:Memory {id: $id}) SET m.origin = 'another store', m.sync_version = 2, m.content = 'theirs',"
        " m.content_hash = 'theirs' RETURN 1",
        id=str(uid(1)),
    )
    await client.execute("UPDATE memories SET content = 'ours, once'")
    await client.execute("UPDATE memories SET content = 'ours, twice'")
    assert (await push(program)).outcomes == {"conflict_won": 1}
    assert [tuple(r) for r in await client.fetch(CONFLICTS)] == [("local", "ours, twice", "theirs")]
    assert (await node(empty_neo4j, uid(1)))["content"] == "ours, twice"


@pytest.mark.promise("P8")
async def test_a_conflict_that_is_lost_is_pulled_and_on_record(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """The same version with a later time at the other store: its content comes here, ours stays as a version."""
    await client.execute(INSERT, uid(1), "base")
    await push(program)
    await client.execute("UPDATE memories SET content = 'ours'")
    await graph(
        empty_neo4j,
        "MATCH (m:Memory {id: $id}) SET m.origin = 'another store', m.sync_version = 2, m.content = 'theirs',"
        " m.content_hash = 'theirs', m.updated_at = datetime('2100-01-01T00:00:00Z') RETURN 1",
        id=str(uid(1)),
    )
    assert (await push(program)).outcomes == {"conflict_lost": 1}
    assert await client.fetchval("SELECT content FROM memories") == "theirs"
    assert await stamps(client) == [("synced", 2, 2)]
    assert [tuple(r) for r in await client.fetch(CONFLICTS)] == [("remote", "ours", "theirs")]
    assert "ours" in [content for _, _, content in await history(empty_neo4j, uid(1))]
    assert await queue(client) == []


@pytest.mark.promise("P1")
async def test_a_table_that_refuses_the_remotes_win_parks_the_entry(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """A row that cannot be pulled is on record with the reason, and the queue goes on."""
    await client.execute(INSERT, uid(1), "base")
    await push(program)
    await client.execute("ALTER TABLE memories ADD CONSTRAINT theirs CHECK (content <> 'theirs')")
    await client.execute("UPDATE memories SET content = 'ours'")
    await graph(
        empty_neo4j,
        "MATCH (m:Memory {id: $id}) SET m.origin = 'another store', m.sync_version = 2, m.content = 'theirs',"
        " m.content_hash = 'theirs', m.updated_at = datetime('2100-01-01T00:00:00Z') RETURN 1",
        id=str(uid(1)),
    )
    await client.execute(INSERT, uid(2), "good")
    await push(program)
    assert [(e.memory_id, e.parked, "theirs" in (e.error or "")) for e in await queue(client)] == [(uid(1), True, True)]
    assert (await node(empty_neo4j, uid(2)))["content"] == "good"


@pytest.mark.promise("P8")
async def test_each_push_has_one_audit_row(program: Runtime, client: Client) -> None:
    """With what it did; a push that found nothing has none."""
    await client.execute(INSERT, uid(1), "c")
    await push(program)
    await client.execute("UPDATE memories SET content = 'd'")
    await push(program)
    assert [tuple(r) for r in await client.fetch(AUDIT)] == [("local_to_remote", "success", 1, 1, None)] * 2


async def test_a_trigger_of_the_users_does_not_make_a_stamp_a_change(program: Runtime, client: Client) -> None:
    """The widespread trigger that sets updated_at does not make the local row differ from what was pushed."""
    await client.execute(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.updated_at := now() + interval '1 hour'; RETURN NEW; END $$;"
        "CREATE TRIGGER touch BEFORE UPDATE ON memories FOR EACH ROW EXECUTE FUNCTION touch()"
    )
    await client.execute(INSERT, uid(1), "c")
    before = await images(client)
    await push(program)
    assert await images(client) == before
    assert await stamps(client) == [("synced", 1, 1)]


@pytest.mark.promise("P5")
async def test_a_table_that_refuses_updates_is_pushed_all_the_same(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Rows that can only be added are never stamped; they reach the remote store, and the queue is empty."""
    await client.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'memories are for ever'; END $$;"
        "CREATE TRIGGER refuse BEFORE UPDATE ON memories FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    await client.execute(INSERT, uid(1), "c")
    assert (await push(program)).pushed == 1
    assert (await node(empty_neo4j, uid(1)))["content"] == "c"
    assert await queue(client) == []


async def test_a_row_that_somebody_holds_does_not_delay_the_push(
    program: Runtime, client: Client, migrated_database_url: str
) -> None:
    """A stamp skips a row that is locked; the push is over at once."""
    await client.execute(INSERT, uid(1), "c")
    async with plain_client(migrated_database_url) as holder, holder.transaction():
        await holder.execute("SELECT FROM memories FOR UPDATE")
        with anyio.fail_after(5):
            assert (await push(program)).pushed == 1
    assert await stamps(client) == [("pending", 1, None)]
    assert await queue(client) == []


async def test_a_row_that_is_referred_to_is_stamped_all_the_same(
    program: Runtime, client: Client, migrated_database_url: str
) -> None:
    """An insert of a row with a foreign key holds the memory in a way that a stamp does not mind."""
    await client.execute(INSERT, uid(1), "c")
    async with plain_client(migrated_database_url) as holder, holder.transaction():
        await holder.execute("SELECT FROM memories FOR KEY SHARE")
        await push(program)
        assert await stamps(client) == [("synced", 1, 1)]


@pytest.mark.promise("P1")
async def test_a_held_row_that_has_to_be_rebased_does_not_stop_the_queue(
    program: Runtime, client: Client, migrated_database_url: str, empty_neo4j: str
) -> None:
    """Its entry waits for its row; everybody else's changes go through at once."""
    await client.execute(INSERT, uid(1), "old")
    await push(program)
    await client.execute("DELETE FROM memories")
    await push(program)
    await client.execute(INSERT, uid(1), "new")
    await client.execute(INSERT, uid(2), "another")
    async with plain_client(migrated_database_url) as holder, holder.transaction():
        await holder.execute("UPDATE memories SET content = 'newer' WHERE id = $1", uid(1))
        with anyio.fail_after(10):
            assert (await push(program)).outcomes == {"created": 1, "stale": 1}
        assert await operations(client) == [("create", 1)]
        assert (await node(empty_neo4j, uid(2)))["content"] == "another"
    await push(program)
    held = await node(empty_neo4j, uid(1))
    assert (held["content"], held.get("deleted_at"), held["sync_version"]) == ("newer", None, 3)
    assert await stamps(client) == [("synced", 3, 3), ("synced", 1, 1)]
    assert await queue(client) == []


@pytest.mark.promise("P1")
async def test_a_delete_committed_after_the_row_was_pushed_again_is_a_tombstone(
    program: Runtime, client: Client, migrated_database_url: str, empty_neo4j: str
) -> None:
    """The row counts from 1 again and cannot be stamped, since who deletes it holds it: the delete is not too old."""
    await client.execute(INSERT, uid(1), "v1")
    await client.execute("UPDATE memories SET content = 'v2'")
    await push(program)
    await client.execute("DELETE FROM memories")
    await client.execute(INSERT, uid(1), "again")
    async with plain_client(migrated_database_url) as holder, holder.transaction():
        await holder.execute("DELETE FROM memories")
        assert (await push(program)).outcomes == {"updated": 1}
        assert (await node(empty_neo4j, uid(1)))["content"] == "again"
    await push(program)
    held = await node(empty_neo4j, uid(1))
    assert (held["deleted_at"] is not None, held["sync_version"]) == (True, 5)
    assert await queue(client) == []


@pytest.mark.promise("P1")
async def test_a_delete_of_a_row_that_could_never_be_stamped_is_a_tombstone(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Its count is far below the remote's, and says nothing: it was captured later by the same store."""
    await client.execute(INSERT, uid(1), "v1")
    for number in (2, 3, 4):
        await client.execute("UPDATE memories SET content = $1", f"v{number}")
    await push(program)
    await client.execute("ALTER TABLE memories DISABLE TRIGGER USER")
    await client.execute("UPDATE memories SET sync_version = 1, synced_version = NULL")
    await program.init(dry_run=False)
    await client.execute("DELETE FROM memories")
    assert (await push(program)).outcomes == {"updated": 1}
    held = await node(empty_neo4j, uid(1))
    assert (held["deleted_at"] is not None, held["sync_version"]) == (True, 5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \t\r\n ",
        "\U0001f600 \U0001f469\u200d\U0001f467 \U0001d54f é e\u0301",
        "\u202eright to left\u202c \u2066isolated\u2069 \u200b\ufeff",
        '{"$ref": "MATCH (n) DETACH"} \\u0000 \\ \' " ` ;',
        "\x01\x02\x1f\x7f\x80\ufffe\uffff",
    ],
    ids=["empty", "blank", "emoji", "bidi", "syntax", "control"],
)
async def test_texts_arrive_byte_for_byte(program: Runtime, client: Client, empty_neo4j: str, text: str) -> None:
    """As content, as project, as tag and as the value of a column that we do not know."""
    await client.execute("ALTER TABLE memories ADD COLUMN other text")
    await client.execute(
        "INSERT INTO memories (id, content, source_project, tags, other) VALUES ($1, $2, $2, ARRAY[$2], $2)",
        uid(1),
        text,
    )
    assert (await push(program)).outcomes == {"created": 1}
    held = await node(empty_neo4j, uid(1))
    assert (held["content"], held["source_project"], held["tags"]) == (text, text, [text])
    assert json.loads(held["extra"])["other"] == text
    assert await graph(empty_neo4j, "MATCH (:Memory)-[:TAGGED_WITH]->(p:Project) RETURN p.id") == [text]


async def test_ten_megabytes_arrive(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """A very long memory is only slow: on a busy machine a deadline passes, and the next try has more time."""
    content = "".join(f"{number:x} " for number in range(1_700_000))[: 10 * 1024 * 1024]
    await client.execute(INSERT, uid(1), content)
    await client.execute(INSERT, uid(2), "small")
    pushed = 0
    with anyio.fail_after(120):
        while pushed < 2:
            with suppress(Unavailable):
                pushed += (await push(program)).pushed
    assert (await node(empty_neo4j, uid(1)))["content"] == content


@pytest.mark.promise("P8")
async def test_an_outage_is_on_record_and_marks_what_waits(
    migrated_database_url: str, client: Client, unused_port: int
) -> None:
    """Nothing is parked; the rows say queued, and one audit row says why."""
    await client.execute(INSERT, uid(1), "c")
    async with running(migrated_database_url, f"bolt://127.0.0.1:{unused_port}") as program:
        report = await program.sync(embed=False)
        assert report.result == "queued"
        with suppress(TimeoutError):
            with anyio.fail_after(10):
                await program._worker._push_loop.run_once()
    assert await stamps(client) == [("queued", 1, None)]
    assert await operations(client) == [("create", 1)]
    rows: Sequence[tuple[object, ...]] = [tuple(r) for r in await client.fetch(AUDIT)]
    assert [row[:4] for row in rows] == [("local_to_remote", "queued", 1, 1)]


@pytest.mark.promise("P7")
async def test_a_wiped_remote_store_does_not_empty_the_local_one(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Losing the remote store changes no local row, and what is written from then on is pushed."""
    await client.execute("INSERT INTO memories (content) SELECT 'c' FROM generate_series(1, 20)")
    await push(program)
    await graph(empty_neo4j, "MATCH (n) DETACH DELETE n")
    await client.execute(INSERT, uid(1), "later")
    await push(program)
    assert await client.fetchval("SELECT count(*) FROM memories") == 21
    assert await graph(empty_neo4j, "MATCH (m:Memory) RETURN m.content") == ["later"]


@pytest.mark.promise("P7")
async def test_an_emptied_table_is_not_mirrored(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """Neither TRUNCATE nor a table made again makes anything in the remote store a tombstone."""
    await client.execute("INSERT INTO memories (content) SELECT 'c' FROM generate_series(1, 20)")
    await push(program)
    before = await remote_digest(empty_neo4j)
    await client.execute("TRUNCATE memories")
    await push(program)
    await client.execute("DROP TABLE memories")
    await program.init(dry_run=False)
    await push(program)
    assert await remote_digest(empty_neo4j) == before


LINK = "INSERT INTO dionysus_sync.memory_references (source_id, target_id, context) VALUES ($1, $2, 'because')"


@pytest.mark.promise("P1")
async def test_a_reference_is_linked_or_parked_and_never_dropped(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Memories go before what refers to them; a reference to a memory that the remote lacks is kept with the reason."""
    await client.execute(LINK, uid(1), uid(2))
    await client.execute(LINK, uid(1), uid(9))
    await client.execute(INSERT, uid(1), "cause")
    await client.execute(INSERT, uid(2), "effect")
    result = await push(program)
    assert (result.pushed, result.parked) == (3, 1)
    linked = await graph(empty_neo4j, "MATCH (a)-[r:REFERENCES]->(b) RETURN [a.id, b.id, r.context]")
    assert linked == [[str(uid(1)), str(uid(2)), "because"]]
    parked = await client.fetch("SELECT entity, last_error FROM dionysus_sync.sync_queue WHERE parked_at IS NOT NULL")
    assert [tuple(row) for row in parked] == [("reference", UNLINKED)]


@pytest.mark.promise("P1")
async def test_a_poison_session_does_not_park_the_others(program: Runtime, client: Client) -> None:
    """Of the rows around memories too, only the one that is refused is parked."""
    for number, project in enumerate(["good", "poison", "better"], start=1):
        await client.execute(
            "INSERT INTO dionysus_sync.sessions VALUES ($1, $2, now(), now(), NULL, NULL)", uid(number), project
        )
    await client.execute(INSERT, uid(7), "a memory")
    pusher = Pusher(program.outbox, RefusesSessions(program.remote, "poison"), program.remote)
    result = await pusher.push_once()
    assert (result.pushed, result.parked) == (3, 1)
    kept = await client.fetch("SELECT payload ->> 'project_id' FROM dionysus_sync.sync_queue")
    assert [row[0] for row in kept] == ["poison"]


class RefusesSessions:
    """A remote store that refuses the sessions of one project."""

    def __init__(self, remote: RemoteWriter, project: str) -> None:
        self._remote = remote
        self._project = project

    async def prepare(self) -> None:
        """As the remote store does."""
        await self._remote.prepare()

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Refuse the batch as a whole."""
        if any(row["project_id"] == self._project for row in batch.sessions):
            raise Refused("no such project")
        return await self._remote.write(batch)

    async def note_definition(self, identity: StoreIdentity, definition: str) -> None:
        """As the remote store does."""
        await self._remote.note_definition(identity, definition)
