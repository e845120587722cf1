"""Batches reach the remote store more than once, in another order, or long after somebody else has gone on."""

from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import anyio
import pytest
from neo4j import AsyncDriver, AsyncGraphDatabase

from dionysus_sync_mcp.domain.errors import OutcomeUnknown, Unavailable
from dionysus_sync_mcp.engine.ports.push import Move, RemoteBatch, RemoteWriter, RowOutcome
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity
from dionysus_sync_mcp.engine.push import Pusher
from dionysus_sync_mcp.runtime import Runtime
from tests.faults.oracle import Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Stores, waiting
from tests.integration.stores import graph, uid
from tests.services import neo4j
from tests.services.local_store import running

TIMES = 5
SHUFFLES = 3
CHANGES = 24
MEMORIES = 6
PATIENCE = 120.0
STORES = "MATCH (s:Store) RETURN count(s)"
DIGEST = (
    "MATCH (m) WHERE m:Memory OR m:MemoryVersion"
    " RETURN coalesce(m.id, m.key) AS key, m.sync_version AS version, m.content_hash AS hash, m:Memory AS memory,"
    " toString(m.deleted_at) AS deleted_at ORDER BY key"
)

Digest = list[dict[str, Any]]
Delivered = tuple[str, int, str, str]  # id, version, operation and content of a change


@pytest.fixture
async def driver(stores: Stores) -> AsyncIterator[AsyncDriver]:
    """For a look at the remote store after each delivery."""
    async with AsyncGraphDatabase.driver(stores.neo4j_uri) as opened:
        yield opened


async def digest(driver: AsyncDriver) -> Digest:
    """All that the remote store holds of memories, comparable."""
    records, _, _ = await driver.execute_query(DIGEST, database_="neo4j")
    return [record.data() for record in records]


class Recording:
    """A remote writer that keeps the batches that it delivers."""

    def __init__(self, writer: RemoteWriter) -> None:
        self.batches: list[RemoteBatch] = []
        self._writer = writer

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Deliver, in as much time as it takes: a machine that is busy is not the fault here."""
        self.batches.append(batch)
        return await self._writer.write(replace(batch, seconds=PATIENCE))

    async def prepare(self) -> None:
        """As it is."""
        await self._writer.prepare()

    async def note_definition(self, identity: StoreIdentity, definition: str) -> None:
        """As it is."""
        await self._writer.note_definition(identity, definition)


class Repeating(Recording):
    """A remote writer that delivers each batch `TIMES` times, and notes which repetitions changed anything.

    Args:
        loses_answers: The answer is lost until as many deliveries have ended with the same queue entry, so that the
            program sends it again by itself, in parts too; else the program hears the first answer, and the deliveries
            after it are none of its own.

    Attributes:
        times: How often the batches were delivered, by the last queue entry of each.
    """

    def __init__(self, writer: RemoteWriter, driver: AsyncDriver, *, loses_answers: bool) -> None:
        super().__init__(writer)
        self.times: Counter[str] = Counter()
        self.changed_by_a_repetition: list[RemoteBatch] = []
        self._driver = driver
        self._loses_answers = loses_answers
        self._delivered: set[Delivered] = set()
        self._before: Digest = []

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Deliver; `OutcomeUnknown` if the answer is lost."""
        outcomes = await self._deliver(batch)
        if not self._loses_answers:
            for _ in range(TIMES - 1):
                await self._deliver(batch)
        elif self.times[batch.move.last_entry] < TIMES:
            raise OutcomeUnknown("the answer was lost", where="Neo4j")
        return outcomes

    async def _deliver(self, batch: RemoteBatch) -> list[RowOutcome]:
        repeated = self._delivered.issuperset(changes_of(batch))
        outcomes = await super().write(batch)
        now = await digest(self._driver)
        if repeated and now != self._before:
            self.changed_by_a_repetition.append(batch)
        self._before = now
        self._delivered.update(changes_of(batch))
        self.times[batch.move.last_entry] += 1
        return outcomes


def changes_of(batch: RemoteBatch) -> list[Delivered]:
    """Every version in a batch."""
    versions = [(c.memory_id, v) for c in batch.changes for v in (*c.older, c.newest)]
    return [(id_, v.number, v.operation, v.properties.content or "") for id_, v in versions]


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
    """Push until nothing waits, as a worker does: whatever answers are lost or late."""
    with anyio.fail_after(PATIENCE):
        while (await waiting(database_url))[0]:
            with suppress(Unavailable):
                await pusher.push_once()


@pytest.mark.scenario(12, "every batch reaches the remote store five times")
@pytest.mark.promise("P2")
@pytest.mark.parametrize("loses_answers", [True, False], ids=["answers lost", "packets doubled"])
async def test_12_each_batch_is_delivered_five_times(
    stores: Stores, oracle: Oracle, driver: AsyncDriver, scenario: Scenario, seed: int, *, loses_answers: bool
) -> None:
    """The deliveries after the first change nothing, and nothing is there twice."""
    random = Random(seed)  # noqa: S311 - a test's choices
    async with running(stores.database_url, stores.neo4j_uri) as program:
        writer = Repeating(program.remote, driver, loses_answers=loses_answers)
        pusher = pusher_of(program, writer)
        for number in range(1, CHANGES + 1):
            await random_change(oracle, random)
            if number % 8 == 0:
                await drain(pusher, stores.database_url)
        compared, seconds = await oracle.until_whole()
    assert writer.changed_by_a_repetition == []
    scenario.note(engaged=min(writer.times.values()) >= TIMES, compared=compared, seconds=seconds)
    assert await graph(stores.neo4j_uri, STORES) == [1]


@pytest.mark.scenario(13, "batches reach the remote store in another order")
@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
async def test_13_batches_are_delivered_in_any_order(
    stores: Stores, oracle: Oracle, driver: AsyncDriver, scenario: Scenario, seed: int
) -> None:
    """No memory ever goes back on the way, and at the end the remote store is what it is without that."""
    random = Random(seed)  # noqa: S311 - a test's choices
    async with running(stores.database_url, stores.neo4j_uri) as program:
        pusher = pusher_of(program, writer := Recording(program.remote))
        for number in range(1, CHANGES + 1):
            await random_change(oracle, random)
            if number % 2 == 0:
                await drain(pusher, stores.database_url)
        in_order = await digest(driver)
        for _ in range(SHUFFLES):
            await neo4j.empty(stores.neo4j_uri)
            await deliver(program, in_another_order(writer.batches, random), driver)
            assert await digest(driver) == in_order
            compared, seconds = await oracle.until_whole()
            scenario.note(engaged=len(writer.batches) > MEMORIES, compared=compared, seconds=seconds)
        await random_change(oracle, random)
        await program.sync(timeout=60, embed=False)
        compared, seconds = await oracle.until_whole()
        scenario.note(engaged=True, compared=compared, seconds=seconds)


def in_another_order(batches: Sequence[RemoteBatch], random: Random) -> list[RemoteBatch]:
    """Shuffled, some of them twice, and each so that the fence of the store's lineage lets it pass."""
    last = batches[-1].move.to
    passing = [replace(batch, move=Move(("", last), to=last), seconds=PATIENCE) for batch in batches]
    shuffled = [*passing, *random.choices(passing, k=len(passing) // 2)]
    random.shuffle(shuffled)
    assert shuffled[: len(passing)] != passing
    return shuffled


async def deliver(program: Runtime, batches: Sequence[RemoteBatch], driver: AsyncDriver) -> None:
    """One after the other; no memory's version may go back."""
    held: dict[str, int] = {}
    for batch in batches:
        await program.remote.write(batch)
        now = {row["key"]: row["version"] for row in await digest(driver) if row["memory"]}
        assert not [id_ for id_, version in held.items() if now[id_] < version]
        held = now
