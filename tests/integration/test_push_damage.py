"""Push over what people have done by hand to the queue, the remote store and the databases themselves."""

import json
from typing import NamedTuple

import pytest

from dionysus_sync_mcp.domain.errors import RemoteDamaged, StoreRolledBack, Unavailable
from dionysus_sync_mcp.engine.ports.push import RemoteBatch, RemoteWriter, RowOutcome
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity
from dionysus_sync_mcp.engine.push import Pusher, PushResult
from dionysus_sync_mcp.runtime import Runtime
from tests.integration.stores import INSERT, Client, graph, node, remote_digest, uid
from tests.services.local_store import running

ENQUEUE = (
    "INSERT INTO dionysus_sync.sync_queue (entity, memory_id, operation, payload, sync_version)"
    " VALUES ($1, $2, 'update', $3, $4)"
)
TERMINATE = (
    "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name LIKE 'dionysus%'"
)
IDENTITY = (
    "SELECT generation, lineage::text, EXISTS (SELECT FROM dionysus_sync.comparison_due)"
    " FROM dionysus_sync.store_identity"
)
HAND_EDITS = {
    "a version that is text": "m.sync_version = 'seven'",
    "a version that is no whole number": "m.sync_version = 7.5",
    "no version": "m.sync_version = null",
    "a version that is a list": "m.sync_version = [7]",
    "a content that is a number": "m.content = 7",
    "a content that is a list": "m.content = [7]",
    "a time of deletion that is text": "m.deleted_at = 'yesterday'",
    "a time that is text": "m.updated_at = 'yesterday', m.created_at = 5",
    "a hash that is a number": "m.content_hash = 5, m.text_hash = true",
    "nothing at all": "m = {id: m.id}",
}


async def parked(client: Client) -> list[str]:
    """Why each entry that is parked is."""
    statement = "SELECT last_error FROM dionysus_sync.sync_queue WHERE parked_at IS NOT NULL ORDER BY seq"
    return [row[0] for row in await client.fetch(statement)]


class Remembered(NamedTuple):
    """What the local store remembers of its pushes."""

    generation: int
    lineage: str
    comparison_due: bool


async def remembered(client: Client) -> Remembered:
    """As it stands."""
    (record,) = await client.fetch(IDENTITY)
    return Remembered(*record)


async def push(program: Runtime) -> int:
    """Push until nothing is left; how many entries went through."""
    pushed = 0
    while (step := await program.pusher.push_once()).pushed or step.parked:
        pushed += step.pushed
    return pushed


@pytest.mark.promise("P1")
async def test_nonsense_in_the_queue_is_parked_and_the_others_flow(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """What cannot be read has its reason; a time that is none goes through among the columns that we do not know."""
    await client.execute(INSERT, uid(1), "before")
    project = {"id": "p", "name": "p", "description": None, "created_at": "no time"}
    for number, (entity, memory_id, payload) in enumerate(
        [
            ("memory", uid(2), {"id": str(uid(3)), "content": "another's id"}),
            (
                "memory",
                uid(4),
                {"id": str(uid(4)), "content": "no such day", "created_at": "2026-99-99T00:00:00+00:00"},
            ),
            ("memory", uid(5), {"id": str(uid(5)), "content": "x", "importance": "much"}),
            ("project", None, project),
            ("project", None, {**project, "id": {"a": 1}}),
        ]
    ):
        await client.execute(ENQUEUE, entity, memory_id, json.dumps(payload), number + 1)
    await client.execute(INSERT, uid(6), "after")
    assert await push(program) == 3
    found = await parked(client)
    assert len(found) == 4
    assert all(found)
    contents = await graph(empty_neo4j, "MATCH (m:Memory) RETURN m.content AS content ORDER BY content")
    assert contents == ["after", "before", "no such day"]


@pytest.mark.promise("P1")
@pytest.mark.parametrize("origin", ["its own", "another store"])
@pytest.mark.parametrize("edit", HAND_EDITS)
async def test_a_node_edited_by_hand_stops_no_batch(
    program: Runtime, client: Client, empty_neo4j: str, edit: str, origin: str
) -> None:
    """Nor does it stop the memory that it is about: the next change of it goes through."""
    await client.execute(INSERT, uid(1), "first")
    await push(program)
    await graph(empty_neo4j, f"MATCH (m:Memory) SET {HAND_EDITS[edit]}")
    if origin == "another store":
        await graph(empty_neo4j, "MATCH (m:Memory) SET m.origin = 'another'")
    await client.execute("UPDATE memories SET content = 'second'")
    await client.execute(INSERT, uid(2), "beside it")
    assert (await push(program), await parked(client)) == (2, [])
    held = await node(empty_neo4j, uid(1))
    assert (held["content"], held["sync_version"], held.get("deleted_at")) == ("second", 2, None)
    assert (await node(empty_neo4j, uid(2)))["content"] == "beside it"


async def test_two_nodes_of_one_memory_are_damage_to_mend(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """Nothing is parked, and what is said names the command that helps."""
    await client.execute(INSERT, uid(1), "first")
    await push(program)
    await graph(empty_neo4j, "DROP CONSTRAINT memory_id_unique")
    try:
        await graph(empty_neo4j, "MATCH (m:Memory) CREATE (twin:Memory) SET twin = properties(m)")
        await client.execute("UPDATE memories SET content = 'second'")
        with pytest.raises(RemoteDamaged, match="verify --repair"):
            await Pusher(program.outbox, program.remote, program.remote).push_once()
        assert (await parked(client), await program.outbox.queue_length()) == ([], 1)
    finally:
        await graph(empty_neo4j, "MATCH (m:Memory) WITH m ORDER BY elementId(m) SKIP 1 DETACH DELETE m")
        await program.remote.prepare()
    assert await push(program) == 1


@pytest.mark.promise("P7")
async def test_a_database_from_an_old_dump_pushes_nothing(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """What it remembers of its pushes is older than what the remote store does."""
    await client.execute(INSERT, uid(1), "first")
    await push(program)
    generation, lineage, _ = await remembered(client)
    await client.execute("UPDATE memories SET content = 'second'")
    await push(program)
    before = await remote_digest(empty_neo4j)
    await client.execute("UPDATE dionysus_sync.store_identity SET generation = $1, lineage = $2", generation, lineage)
    await client.execute("UPDATE memories SET content = 'after the restore', sync_version = 1")
    with pytest.raises(StoreRolledBack, match="verify --repair --prefer remote"):
        await program.pusher.push_once()
    assert await remote_digest(empty_neo4j) == before
    assert (await parked(client), await program.outbox.queue_length()) == ([], 1)


@pytest.mark.promise("P7")
async def test_after_a_wiped_remote_a_comparison_is_due(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """The push goes on, and both stores remember it."""
    await client.execute(INSERT, uid(1), "first")
    await push(program)
    assert not (await remembered(client)).comparison_due
    await graph(empty_neo4j, "MATCH (n) DETACH DELETE n")
    await client.execute(INSERT, uid(2), "second")
    assert await push(program) == 1
    generation, lineage, due = await remembered(client)
    there = await program.remote.lineage((await program.outbox.identity()).id)
    assert there is not None
    assert (due, there.last[1:]) == (True, (generation, lineage))


@pytest.mark.promise("P9")
@pytest.mark.parametrize("edit", ["s.lineage = ['a', 'list']", "s.lineage = true, s.generation = 0"])
async def test_a_lineage_of_another_type_is_what_the_server_says_it_is(
    program: Runtime, client: Client, empty_neo4j: str, edit: str
) -> None:
    """Made so by hand: the push goes on, and a comparison is due."""
    await client.execute(INSERT, uid(1), "first")
    await push(program)
    await graph(empty_neo4j, f"MATCH (s:Store) SET {edit}")
    await client.execute(INSERT, uid(2), "second")
    assert await push(program) == 1
    assert (await remembered(client)).comparison_due


class Paused:
    """A writer whose process stands still before or after its first write arrives: its claim is ended meanwhile."""

    def __init__(self, remote: RemoteWriter, client: Client, other: Pusher, *, after: bool) -> None:
        self._remote = remote
        self._client = client
        self._other = other
        self._after = after
        self.overtaken_by: PushResult | None = None

    async def prepare(self) -> None:
        """As the remote store does."""
        await self._remote.prepare()

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Be overtaken, once."""
        if self._after:
            outcomes = await self._remote.write(batch)
            await self._stand_still()
            return outcomes
        await self._stand_still()
        return await self._remote.write(batch)

    async def note_definition(self, identity: StoreIdentity, definition: str) -> None:
        """As the remote store does."""
        await self._remote.note_definition(identity, definition)

    async def _stand_still(self) -> None:
        if self.overtaken_by is None:
            assert await self._client.fetchval(TERMINATE) >= 1, "there was a claim to end"
            self.overtaken_by = await self._other.push_once()


@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
@pytest.mark.parametrize("after", [False, True])
async def test_a_process_that_was_paused_is_fenced(
    program: Runtime, client: Client, migrated_database_url: str, empty_neo4j: str, after: bool
) -> None:
    """Another one has pushed when it goes on: it changes neither store, and says why."""
    await client.execute(INSERT, uid(1), "first")
    async with running(migrated_database_url, empty_neo4j) as other:
        writer = Paused(program.remote, client, other.pusher, after=after)
        with pytest.raises(Unavailable):
            await Pusher(program.outbox, writer, program.remote).push_once()
        assert writer.overtaken_by is not None
        assert writer.overtaken_by.pushed == 1
        before = await remote_digest(empty_neo4j)
        generation, lineage, _ = await remembered(client)
        there = await program.remote.lineage((await other.outbox.identity()).id)
        assert there is not None
        assert (there.last[1:], generation) == ((generation, lineage), 1)
        await client.execute("UPDATE memories SET content = 'second'")
        assert (await push(other), await parked(client)) == (1, [])
    assert len(before) == 2
    assert (await node(empty_neo4j, uid(1)))["content"] == "second"
