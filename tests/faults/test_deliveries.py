"""Batches reach the remote store more than once, in another order, or long after somebody else has gone on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from uuid import UUID

import pytest

from dionysus_sync_mcp.domain.errors import OutcomeUnknown
from dionysus_sync_mcp.engine.ports import Move, RemoteBatch, RemoteWriter, RowOutcome, StoreIdentity
from dionysus_sync_mcp.engine.push import Pusher
from dionysus_sync_mcp.runtime import Runtime
from tests.faults.oracle import Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Stores, waiting
from tests.integration.stores import graph, remote_digest, uid
from tests.services import neo4j
from tests.services.local_store import running

TIMES = 5
SHUFFLES = 6
CHANGES = 40
MEMORIES = 8
STORES = "MATCH (s:Store) RETURN count(s)"
VERSIONS = "MATCH (m:Memory) RETURN [m.id, m.sync_version]"

Delivered = tuple[str, int, str]  # id, version and operation of a change


class Repeating:
    """A remote writer that delivers each change `TIMES` times; the digests after each delivery are kept.

    Args:
        loses_answers: The answer to a delivery is lost until each of its changes has been delivered often enough, so
            that the program sends it again by itself; else the program hears the first answer, and the deliveries after
            it are none of its own.
    """

    def __init__(self, writer: RemoteWriter, uri: str, *, loses_answers: bool) -> None:
        self.delivered: Counter[Delivered] = Counter()
        self.changed_by_a_repetition: list[RemoteBatch] = []
        self._writer = writer
        self._uri = uri
        self._loses_answers = loses_answers

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Deliver; `OutcomeUnknown` if the answer is lost."""
        outcomes = await self._deliver(batch)
        if not self._loses_answers:
            for _ in range(TIMES - 1):
                await self._deliver(batch)
        elif any(self.delivered[change] < TIMES for change in changes_of(batch)):
            raise OutcomeUnknown("the answer was lost", where="Neo4j")
        return outcomes

    async def prepare(self) -> None:
        """As it is."""
        await self._writer.prepare()

    async def note_definition(self, identity: StoreIdentity, definition: str) -> None:
        """As it is."""
        await self._writer.note_definition(identity, definition)

    async def _deliver(self, batch: RemoteBatch) -> list[RowOutcome]:
        repeated = all(self.delivered[change] for change in changes_of(batch))
        before = await remote_digest(self._uri) if repeated else []
        outcomes = await self._writer.write(batch)
        if repeated and await remote_digest(self._uri) != before:
            self.changed_by_a_repetition.append(batch)
        self.delivered.update(changes_of(batch))
        return outcomes


class Recording(Repeating):
    """A remote writer that delivers each batch once, and keeps them."""

    def __init__(self, writer: RemoteWriter) -> None:
        super().__init__(writer, "", loses_answers=False)
        self.batches: list[RemoteBatch] = []

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Deliver, and keep."""
        self.batches.append(batch)
        return await self._writer.write(batch)


def changes_of(batch: RemoteBatch) -> list[Delivered]:
    """Every version in a batch."""
    return [(c.memory_id, v.number, v.operation) for c in batch.changes for v in (*c.older, c.newest)]


def pusher_of(program: Runtime, writer: RemoteWriter) -> Pusher:
    """Pushes small batches through this writer, so that there are many of them."""
    return Pusher(program.outbox, writer, program.remote, rows=3)


async def random_change(oracle: Oracle, random: Random) -> None:
    """An insert, an update, a delete, or an insert after a delete, of one of a few memories."""
    id_, content = uid(random.randint(1, MEMORIES)), f"content {oracle.rows_written}"
    if id_ not in oracle.live:
        await oracle.insert(id_, content)
    elif random.random() < 0.3:
        await oracle.delete(id_)
    else:
        await oracle.update(id_, content)


async def drain(pusher: Pusher, database_url: str) -> None:
    """Push until nothing waits, whatever answers are lost."""
    while (await waiting(database_url))[0]:
        try:
            await pusher.push_once()
        except OutcomeUnknown:
            continue


@pytest.mark.scenario(12, "every batch reaches the remote store five times")
@pytest.mark.promise("P2")
@pytest.mark.parametrize("loses_answers", [True, False], ids=["answers lost", "packets doubled"])
async def test_12_each_batch_is_delivered_five_times(
    stores: Stores, oracle: Oracle, scenario: Scenario, seed: int, *, loses_answers: bool
) -> None:
    """The deliveries after the first change nothing, and nothing is there twice."""
    random = Random(seed)  # noqa: S311 - a test's choices
    async with running(stores.database_url, stores.neo4j_uri) as program:
        writer = Repeating(program.remote, stores.neo4j_uri, loses_answers=loses_answers)
        pusher = pusher_of(program, writer)
        for number in range(1, CHANGES + 1):
            await random_change(oracle, random)
            if number % 8 == 0:
                await drain(pusher, stores.database_url)
        compared, seconds = await oracle.until_whole()
    assert writer.changed_by_a_repetition == []
    scenario.note(engaged=min(writer.delivered.values()) >= TIMES, compared=compared, seconds=seconds)
    assert await graph(stores.neo4j_uri, STORES) == [1]


@pytest.mark.scenario(13, "batches reach the remote store in another order")
@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
async def test_13_batches_are_delivered_in_any_order(
    stores: Stores, oracle: Oracle, scenario: Scenario, seed: int
) -> None:
    """No memory ever goes back on the way, and at the end the remote store is what it is without that."""
    random = Random(seed)  # noqa: S311 - a test's choices
    async with running(stores.database_url, stores.neo4j_uri) as program:
        pusher = pusher_of(program, writer := Recording(program.remote))
        for number in range(1, CHANGES + 1):
            await random_change(oracle, random)
            if number % 2 == 0:
                await drain(pusher, stores.database_url)
        in_order = await remote_digest(stores.neo4j_uri)
        for _ in range(SHUFFLES):
            await neo4j.empty(stores.neo4j_uri)
            await deliver(program, in_another_order(writer.batches, random), stores.neo4j_uri)
            assert await remote_digest(stores.neo4j_uri) == in_order
            compared, seconds = await oracle.until_whole()
            scenario.note(engaged=len(writer.batches) > MEMORIES, compared=compared, seconds=seconds)
        await random_change(oracle, random)
        await program.sync(timeout=60, embed=False)
        compared, seconds = await oracle.until_whole()
        scenario.note(engaged=True, compared=compared, seconds=seconds)


def in_another_order(batches: Sequence[RemoteBatch], random: Random) -> list[RemoteBatch]:
    """Shuffled, some of them twice, and each so that the fence of the store's lineage lets it pass."""
    last = batches[-1].move.to
    passing = [replace(batch, move=Move(("", last), to=last)) for batch in batches]
    shuffled = [*passing, *random.choices(passing, k=len(passing) // 2)]
    random.shuffle(shuffled)
    assert shuffled[: len(passing)] != passing
    return shuffled


async def deliver(program: Runtime, batches: Sequence[RemoteBatch], uri: str) -> None:
    """One after the other; no memory's version may go back."""
    held: dict[UUID, int] = {}
    for batch in batches:
        await program.remote.write(batch)
        now = {UUID(id_): version for id_, version in await graph(uri, VERSIONS)}
        assert not [id_ for id_, version in held.items() if now[id_] < version]
        held = now
