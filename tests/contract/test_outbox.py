"""The local queue's behaviour: one suite for the in-memory twin and for PostgreSQL."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol

import anyio
import pytest

from dionysus_sync_mcp.adapters.postgres.outbox import PostgresClaim, PostgresOutbox
from dionysus_sync_mcp.domain.errors import Unavailable
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.engine.ports.push import Conflict, Outbox, Parking, QueueEntry, Settlement, Stamp
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity, SyncEvent
from tests.engine.memory_local import MemoryClaim, MemoryLocal
from tests.integration.stores import Client, plain_client, uid
from tests.services.local_store import opened

MUCH = 1_000_000
LINEAGE = "3f0c9a52-7f0e-4e0a-9a4e-2f1f5b0d7c11"


class Row(NamedTuple):
    """A row as the suite looks at it."""

    content: str | None
    status: str
    version: int
    confirmed: int | None


class Bench(Protocol):
    """A local store, and what its user does."""

    @property
    def outbox(self) -> Outbox: ...

    async def write(self, number: int, content: str) -> None: ...

    async def delete(self, number: int) -> None: ...

    async def drop(self) -> None: ...

    def holding(self, number: int) -> AbstractAsyncContextManager[None]: ...

    def locking(self) -> AbstractAsyncContextManager[None]: ...

    async def wait(self) -> None: ...

    async def row(self, number: int) -> Row: ...

    async def parked(self) -> list[str]: ...

    async def events(self) -> list[tuple[str, int]]: ...

    async def conflicts(self) -> list[tuple[str, str, str]]: ...

    async def deletions(self) -> dict[str, int]: ...


class TwinBench:
    """On the in-memory twin."""

    def __init__(self) -> None:
        self.outbox = MemoryLocal()

    async def write(self, number: int, content: str) -> None:
        """Insert or update."""
        self.outbox.write(str(uid(number)), content)

    async def delete(self, number: int) -> None:
        """Delete."""
        self.outbox.delete(str(uid(number)))

    async def drop(self) -> None:
        """The table is gone."""
        self.outbox.rows = None

    @asynccontextmanager
    async def holding(self, number: int) -> AsyncIterator[None]:
        """Somebody's open transaction has the row."""
        self.outbox.held.add(str(uid(number)))
        yield
        self.outbox.held.clear()

    @asynccontextmanager
    async def locking(self) -> AsyncIterator[None]:
        """Somebody's open transaction has the whole table."""
        self.outbox.locked = True
        yield
        self.outbox.locked = False

    async def wait(self) -> None:
        """Until what waits is due."""
        self.outbox.wait()

    async def row(self, number: int) -> Row:
        """One row."""
        row = self.outbox.table[str(uid(number))]
        return Row(row.properties.content, row.status, row.version, row.confirmed)

    async def parked(self) -> list[str]:
        """Errors of parked entries."""
        return [error for _, error in sorted(self.outbox.parked.items())]

    async def events(self) -> list[tuple[str, int]]:
        """Result and count of each audit row."""
        return [(e.result, e.record_count) for e in self.outbox.events]

    async def conflicts(self) -> list[tuple[str, str, str]]:
        """Winner and both contents."""
        return [(c.winner, c.local_content, c.remote_content) for c in self.outbox.conflicts]

    async def deletions(self) -> dict[str, int]:
        """Versions by id."""
        return self.outbox.deletions


class PostgresBench:
    """On PostgreSQL."""

    def __init__(self, outbox: PostgresOutbox, client: Client) -> None:
        self.outbox = outbox
        self._client = client

    async def write(self, number: int, content: str) -> None:
        """Insert or update."""
        await self._client.execute(
            "INSERT INTO memories (id, content) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET content = $2",
            uid(number),
            content,
        )

    async def delete(self, number: int) -> None:
        """Delete."""
        await self._client.execute("DELETE FROM memories WHERE id = $1", uid(number))

    async def drop(self) -> None:
        """The table is gone."""
        await self._client.execute("DROP TABLE memories")

    @asynccontextmanager
    async def holding(self, number: int) -> AsyncIterator[None]:
        """Somebody's open transaction has deleted the row, and is rolled back."""
        transaction = self._client.transaction()
        await transaction.start()
        await self._client.execute("DELETE FROM memories WHERE id = $1", uid(number))
        yield
        await transaction.rollback()

    @asynccontextmanager
    async def locking(self) -> AsyncIterator[None]:
        """Somebody's open transaction has changed the table's shape, and is rolled back."""
        transaction = self._client.transaction()
        await transaction.start()
        await self._client.execute("ALTER TABLE memories ADD COLUMN mood text")
        yield
        await transaction.rollback()

    async def wait(self) -> None:
        """Until what waits is due: the clock is the server's, so the time is moved instead."""
        await self._client.execute("UPDATE dionysus_sync.sync_queue SET next_retry_at = clock_timestamp()")

    async def row(self, number: int) -> Row:
        """One row."""
        statement = "SELECT content, sync_status, sync_version, synced_version FROM memories WHERE id = $1"
        (record,) = await self._client.fetch(statement, uid(number))
        return Row(*record)

    async def parked(self) -> list[str]:
        """Errors of parked entries."""
        statement = "SELECT last_error FROM dionysus_sync.sync_queue WHERE parked_at IS NOT NULL ORDER BY seq"
        return [r[0] for r in await self._client.fetch(statement)]

    async def events(self) -> list[tuple[str, int]]:
        """Result and count of each audit row."""
        statement = "SELECT result, record_count FROM dionysus_sync.sync_events ORDER BY timestamp"
        return [(r[0], r[1]) for r in await self._client.fetch(statement)]

    async def conflicts(self) -> list[tuple[str, str, str]]:
        """Winner and both contents."""
        statement = "SELECT winner, local_content, remote_content FROM dionysus_sync.conflicts"
        return [(r[0], r[1], r[2]) for r in await self._client.fetch(statement)]

    async def deletions(self) -> dict[str, int]:
        """Versions by id."""
        statement = "SELECT memory_id::text, version FROM dionysus_sync.deletions"
        return {r[0]: r[1] for r in await self._client.fetch(statement)}


@pytest.fixture(params=["in memory", "PostgreSQL"])
async def bench(request: pytest.FixtureRequest, migrated_database_url: str) -> AsyncIterator[Bench]:
    """A local store with an empty table."""
    if request.param == "in memory":
        yield TwinBench()
        return
    url = migrated_database_url
    async with opened(url) as database, plain_client(url) as client:
        yield PostgresBench(PostgresOutbox(database), client)


async def claimed(bench: Bench, rows: int = 100, size: int = MUCH) -> Sequence[QueueEntry]:
    """The entries that a claim has; nothing is settled."""
    async with bench.outbox.claim(rows, size) as claim:
        assert claim is not None
        return claim.entries


async def settled(bench: Bench, settlement: Settlement) -> None:
    """Settle within a claim of everything."""
    async with bench.outbox.claim(100, MUCH) as claim:
        assert claim is not None
        await claim.settle(settlement)


def told(entries: Sequence[QueueEntry]) -> list[tuple[str, int, str | None]]:
    """Operation, version and content of each entry."""
    return [(e.operation, e.version.number, e.version.properties.content) for e in entries if e.version]


async def test_entries_come_in_the_order_of_the_changes(bench: Bench) -> None:
    """With the state, the version and the version that the remote confirmed."""
    await bench.write(1, "a")
    await bench.write(1, "b")
    await bench.write(2, "c")
    await bench.delete(1)
    entries = await claimed(bench)
    assert told(entries) == [("create", 1, "a"), ("update", 2, "b"), ("create", 1, "c"), ("delete", 3, "b")]
    assert [e.seq for e in entries] == sorted({e.seq for e in entries})
    assert [e.memory_id for e in entries] == [str(uid(n)) for n in (1, 1, 2, 1)]
    assert {e.base_version for e in entries} == {None}


async def test_a_claim_is_bounded_by_rows_and_by_size(bench: Bench) -> None:
    """But never so that nothing is left to claim."""
    for number in range(1, 6):
        await bench.write(number, "x" * 1000)
    assert len(await claimed(bench, rows=2)) == 2
    assert len(await claimed(bench, size=1)) == 1
    assert 1 < len(await claimed(bench, size=2000)) < 5


async def test_only_one_claim_at_a_time(bench: Bench) -> None:
    """The second is told so, and has the entries when the first is done."""
    await bench.write(1, "a")
    async with bench.outbox.claim(10, MUCH) as first, bench.outbox.claim(10, MUCH) as second:
        assert first is not None
        assert second is None
    assert len(await claimed(bench)) == 1


async def _settled_and_killed(bench: Bench, settlement: Settlement) -> None:
    async with bench.outbox.claim(10, MUCH) as claim:
        assert claim is not None
        await claim.settle(settlement)
        raise RuntimeError("killed")


@pytest.mark.promise("P1")
async def test_leaving_a_claim_unsettled_or_by_an_error_changes_nothing(bench: Bench) -> None:
    """Even when it was settled before the error."""
    await bench.write(1, "a")
    before = await claimed(bench)
    settlement = Settlement(
        [before[0].seq], [Stamp(str(uid(1)), 1, 1)], event=SyncEvent("local_to_remote", "success", 1)
    )
    with pytest.raises(RuntimeError, match="killed"):
        await _settled_and_killed(bench, settlement)
    assert await claimed(bench) == before
    assert (await bench.row(1)).status == "pending"
    assert await bench.events() == []


async def test_what_is_acknowledged_is_gone_and_its_row_stamped(bench: Bench) -> None:
    """The next change of the row says what the remote confirmed."""
    await bench.write(1, "a")
    (entry,) = await claimed(bench)
    event = SyncEvent("local_to_remote", "success", 1, [str(uid(1))])
    await settled(bench, Settlement([entry.seq], [Stamp(str(uid(1)), 1, 1)], event=event))
    assert (await bench.outbox.anything_queued(), await bench.outbox.queue_length()) == (False, 0)
    assert await bench.row(1) == Row("a", "synced", 1, 1)
    assert await bench.events() == [("success", 1)]
    await bench.write(1, "b")
    assert [e.base_version for e in await claimed(bench)] == [1]


async def test_a_row_that_has_moved_on_stays_pending(bench: Bench) -> None:
    """A stamp of the version before says only what the remote has."""
    await bench.write(1, "a")
    (entry,) = await claimed(bench)
    await bench.write(1, "b")
    await settled(bench, Settlement([entry.seq], [Stamp(str(uid(1)), 1, 1)]))
    assert await bench.row(1) == Row("b", "pending", 2, 1)


async def test_a_row_whose_count_the_push_has_carried_on_gets_that_number(bench: Bench) -> None:
    """Deleted and inserted again in one batch: captured as 1, sent as 3."""
    await bench.write(1, "a")
    await settled(bench, Settlement([e.seq for e in await claimed(bench)], [Stamp(str(uid(1)), 3, 1)]))
    assert await bench.row(1) == Row("a", "synced", 3, 3)


@pytest.mark.promise("P1")
async def test_changes_captured_meanwhile_are_counted_on_too(bench: Bench) -> None:
    """Otherwise a delete among them would be older than what the remote holds, and be lost."""
    for number in (1, 2):
        await bench.write(number, "a")
    async with bench.outbox.claim(10, MUCH) as claim:
        assert claim is not None
        await bench.write(1, "b")
        await bench.delete(2)
        stamps = [Stamp(str(uid(n)), 9, 1) for n in (1, 2)]
        await claim.settle(Settlement([e.seq for e in claim.entries], stamps))
    left = await claimed(bench)
    assert told(left) == [("create", 1, "a"), ("update", 10, "b"), ("delete", 2, "a")]
    assert [(e.base_version, e.waited) for e in left] == [(9, True), (9, False), (None, False)]
    assert await bench.row(1) == Row("b", "pending", 10, 9)


@pytest.mark.promise("P1")
async def test_a_row_that_was_inserted_once_more_is_not_taken_for_the_one_that_was_sent(bench: Bench) -> None:
    """Its entry stays, with the number that it was sent by, for the later ones to be counted on from."""
    await bench.write(1, "a")
    async with bench.outbox.claim(10, MUCH) as claim:
        assert claim is not None
        await bench.delete(1)
        await bench.write(1, "b")
        await claim.settle(Settlement([e.seq for e in claim.entries], [Stamp(str(uid(1)), 9, 1)]))
    assert told(await claimed(bench)) == [("create", 1, "a"), ("delete", 2, "a"), ("create", 1, "b")]
    assert [e.base_version for e in await claimed(bench)] == [9, None, None]
    assert await bench.row(1) == Row("b", "pending", 1, None)


HELD = {
    "stamp": Settlement([], stamps=[Stamp(str(uid(1)), 9, 1)]),
    "rebase": Settlement([], rebased=[Stamp(str(uid(1)), 9, 1)]),
    "pull": Settlement([], pulled=[RemoteMemory(str(uid(1)), 9, "h", None, "theirs", *[None] * 8)]),
}


@pytest.mark.promise("P1")
@pytest.mark.parametrize("change", HELD)
async def test_what_a_held_row_needs_waits_and_nothing_else_does(bench: Bench, change: str) -> None:
    """It is not claimed again at once, but with the next change of its memory; other memories go their way."""
    await bench.write(1, "a")
    await bench.write(2, "b")
    entries = await claimed(bench)
    async with bench.holding(1):
        with anyio.fail_after(5):
            await settled(bench, replace(HELD[change], acknowledged=[e.seq for e in entries]))
        assert await claimed(bench) == []
        assert await bench.outbox.queue_length() == 1
    assert await bench.row(1) == Row("a", "pending", 1, None)
    await bench.delete(1)
    assert told(await claimed(bench)) == [("create", 1, "a"), ("delete", 2, "a")]
    assert [e.base_version for e in await claimed(bench)] == [9 if change == "stamp" else None, None]
    assert told(await claimed(bench, rows=1)) == [("create", 1, "a"), ("delete", 2, "a")]


@pytest.mark.promise("P1")
async def test_a_table_that_somebody_has_locked_does_not_hold_back_the_queue(bench: Bench) -> None:
    """The stamp of a row is left out; what a memory needs more than that waits, and so does what could not be seen."""
    for number in range(1, 6):
        await bench.write(number, "a")
    pulled = RemoteMemory(str(uid(4)), 9, "h", None, "theirs", *[None] * 8)
    async with bench.locking(), bench.outbox.claim(100, MUCH) as claim:
        assert claim is not None
        assert await claim.live_versions([str(uid(5))]) == {str(uid(5)): None}
        stamps, rebased = [Stamp(str(uid(1)), 1, 1), Stamp(str(uid(2)), 9, 1)], [Stamp(str(uid(3)), 9, 1)]
        seqs = [e.seq for e in claim.entries]
        await claim.settle(Settlement(seqs, stamps, rebased=rebased, pulled=[pulled]))
    assert [await bench.row(n) for n in range(1, 6)] == [Row("a", "pending", 1, None)] * 5
    await bench.wait()
    left = await claimed(bench)
    assert [(e.memory_id, e.waited) for e in left] == [(str(uid(n)), True) for n in (2, 3, 4, 5)]
    assert [e.base_version for e in left] == [9, None, None, None]


async def test_an_outage_is_on_record_while_the_table_is_locked(bench: Bench) -> None:
    """The rows are not marked."""
    await bench.write(1, "a")
    async with bench.locking():
        await bench.outbox.note_outage([str(uid(1))], SyncEvent("local_to_remote", "queued", 1))
    assert await bench.events() == [("queued", 1)]
    assert (await bench.row(1)).status == "pending"


async def test_what_waits_is_due_again(bench: Bench) -> None:
    """Even when the memory does not change any more."""
    await bench.write(1, "a")
    entries = await claimed(bench)
    async with bench.holding(1):
        await settled(bench, replace(HELD["stamp"], acknowledged=[e.seq for e in entries]))
    assert await claimed(bench) == []
    await bench.wait()
    assert [e.waited for e in await claimed(bench)] == [True]
    await settled(bench, replace(HELD["stamp"], acknowledged=[e.seq for e in entries]))
    assert await bench.row(1) == Row("a", "synced", 9, 9)
    assert await bench.outbox.queue_length() == 0


async def test_a_row_older_than_what_was_sent_is_not_stamped(bench: Bench) -> None:
    """Its table was recovered meanwhile: a stamp would call the old content new."""
    await bench.write(1, "a")
    await settled(bench, Settlement([e.seq for e in await claimed(bench)], [Stamp(str(uid(1)), 7, 7)]))
    assert await bench.row(1) == Row("a", "pending", 1, None)


@pytest.mark.promise("P1")
async def test_parked_entries_stay_with_their_error(bench: Bench) -> None:
    """They are neither claimed nor counted again; their row says failed."""
    await bench.write(1, "a")
    await bench.write(2, "b")
    first, second = await claimed(bench)
    await settled(bench, Settlement([second.seq], parked=[Parking(first.seq, "it is poison")]))
    assert (await claimed(bench), await bench.outbox.queue_length(), await bench.parked()) == ([], 0, ["it is poison"])
    assert (await bench.row(1)).status == "failed"


@pytest.mark.promise("P3")
async def test_a_rebased_row_goes_above_the_remote_and_is_queued_again(bench: Bench) -> None:
    """One that has gone above by itself is left alone."""
    for number in (1, 2):
        await bench.write(number, "a")
    entries = await claimed(bench)
    rebased = [Stamp(str(uid(1)), 5, 1), Stamp(str(uid(2)), 0, 1)]
    await settled(bench, Settlement([e.seq for e in entries], rebased=rebased))
    assert told(await claimed(bench)) == [("update", 6, "a")]
    assert [e.base_version for e in await claimed(bench)] == [5]
    assert await bench.row(1) == Row("a", "pending", 6, 5)


@pytest.mark.promise("P2")
async def test_a_row_of_which_a_later_change_waits_is_not_rebased(bench: Bench) -> None:
    """The remote holds the later one already where it was sent before, along with this one, and nobody heard of it."""
    await bench.write(1, "a")
    await bench.write(1, "b")
    async with bench.outbox.claim(1, MUCH) as claim:
        assert claim
        await claim.settle(Settlement([e.seq for e in claim.entries], rebased=[Stamp(str(uid(1)), 2, 1)]))
    assert told(await claimed(bench)) == [("update", 2, "b")]
    assert (await bench.row(1)).version == 2


async def test_a_pulled_row_becomes_what_the_remote_holds(bench: Bench) -> None:
    """And is not captured as a change of the user's; the conflict is on record, contents cut."""
    await bench.write(1, "ours")
    (entry,) = await claimed(bench)
    time = "2024-01-01T00:00:00Z"
    held = RemoteMemory(str(uid(1)), 4, "h", None, "theirs", "semantic", 0.5, "p", None, [], time, time, None)
    conflict = Conflict(str(uid(1)), "remote", 1, 4, "o" * 100, "t" * 100)
    await settled(bench, Settlement([entry.seq], pulled=[held], conflicts=[conflict]))
    assert await bench.row(1) == Row("theirs", "synced", 4, 4)
    assert await claimed(bench) == []
    assert await bench.conflicts() == [("remote", "o" * 100, "t" * 100)]


@pytest.mark.promise("P1")
async def test_a_row_that_was_changed_meanwhile_is_not_pulled_over(bench: Bench) -> None:
    """However low it counts: the user has written it since the batch was claimed."""
    await bench.write(1, "ours")
    held = RemoteMemory(str(uid(1)), 9, "h", None, "theirs", *[None] * 8)
    async with bench.outbox.claim(10, MUCH) as claim:
        assert claim is not None
        await bench.write(1, "the newest")
        await claim.settle(Settlement([e.seq for e in claim.entries], pulled=[held]))
    assert await bench.row(1) == Row("the newest", "pending", 2, None)
    assert told(await claimed(bench)) == [("update", 2, "the newest")]


async def test_live_versions_are_of_rows_that_are_there(bench: Bench) -> None:
    """With the first 100 characters."""
    await bench.write(1, "x" * 200)
    async with bench.outbox.claim(10, MUCH) as claim:
        assert claim is not None
        live = await claim.live_versions([str(uid(1)), str(uid(2))])
    assert {i: (v.version, v.content) for i, v in live.items() if v} == {str(uid(1)): (1, "x" * 100)}


@pytest.mark.promise("P1")
async def test_without_the_table_the_queue_can_be_claimed_and_settled(bench: Bench) -> None:
    """What was captured before it was dropped goes its way."""
    await bench.write(1, "a")
    await bench.write(2, "b")
    await bench.drop()
    async with bench.outbox.claim(10, MUCH) as claim:
        assert claim is not None
        assert await claim.live_versions([str(uid(1))]) == {}
        first, second = claim.entries
        parked = [Parking(second.seq, "it is poison")]
        await claim.settle(Settlement([first.seq], [Stamp(str(uid(1)), 1, 1)], parked))
    assert (await bench.outbox.queue_length(), await bench.parked()) == (0, ["it is poison"])
    await bench.outbox.note_outage([str(uid(1))], SyncEvent("local_to_remote", "queued", 1))
    assert await bench.events() == [("queued", 1)]


@pytest.mark.promise("P2")
async def test_a_claim_that_was_overtaken_settles_nothing(bench: Bench) -> None:
    """The store has moved on to another lineage; a settlement that wrote nothing remotely moves it nowhere."""
    before = await bench.outbox.identity()
    await bench.write(1, "a")
    await settled(bench, Settlement([]))
    assert await bench.outbox.identity() == before
    await settled(bench, Settlement([], lineage=LINEAGE))
    assert await bench.outbox.identity() == replace(before, generation=before.generation + 1, lineage=LINEAGE)
    await settled(bench, Settlement([], lineage=str(uid(7)), repeated="an attempt before"))
    assert (await bench.outbox.identity()).repeated == "an attempt before"
    await settled(bench, Settlement([], lineage=LINEAGE))
    assert (await bench.outbox.identity()).repeated == ""
    (entry,) = await claimed(bench)
    with pytest.raises(Unavailable, match="another process has pushed meanwhile"):
        await _settled_late(bench, Settlement([entry.seq], lineage=str(uid(8))), before)
    assert [e.seq for e in await claimed(bench)] == [entry.seq]
    assert (await bench.outbox.identity()).lineage == LINEAGE


async def _settled_late(bench: Bench, settlement: Settlement, seen: StoreIdentity) -> None:
    async with bench.outbox.claim(10, MUCH) as claim:
        assert isinstance(claim, PostgresClaim | MemoryClaim)
        claim.identity = seen
        await claim.settle(settlement)


async def test_a_claim_knows_whether_an_entry_is_still_there(bench: Bench) -> None:
    """Be it of this claim or not; an id that is none is of no entry."""
    await bench.write(1, "a")
    await bench.write(2, "b")
    first, second = await claimed(bench)
    await settled(bench, Settlement([first.seq]))
    async with bench.outbox.claim(10, MUCH) as claim:
        assert claim is not None
        told_of = [await claim.has_entry(id_) for id_ in (first.id, second.id, "", "no id")]
    assert told_of == [False, True, False, False]


@pytest.mark.promise("P1")
async def test_what_is_parked_comes_back_when_it_is_due(bench: Bench) -> None:
    """Or at once by command, and it is on record; the row of an entry that goes through then is synced."""
    await bench.write(1, "a")
    for _ in range(2):
        (entry,) = await claimed(bench)
        await settled(bench, Settlement([], parked=[Parking(entry.seq, "it is poison")]))
        assert await bench.outbox.retry_parked_once(10, due_only=True) == 0
        await bench.wait()
        assert await bench.outbox.retry_parked_once(10, due_only=True) == 1
    (entry,) = await claimed(bench)
    assert (entry.refusals, entry.waited, await bench.parked()) == (2, False, [])
    await settled(bench, Settlement([], parked=[Parking(entry.seq, "it is poison")]))
    assert await bench.outbox.retry_parked_once(10, due_only=False) == 1
    assert await bench.events() == [("queued", 1)] * 3
    await settled(bench, Settlement([entry.seq], [Stamp(str(uid(1)), 1, 1)]))
    assert await bench.row(1) == Row("a", "synced", 1, 1)


@pytest.mark.promise("P1")
async def test_a_later_version_that_goes_through_supersedes_what_is_parked(bench: Bench) -> None:
    """Of its memory, from before it, be it a row or a delete; it is never tried again."""
    for number in (1, 2, 3):
        await bench.write(number, "poison")
    await settled(bench, Settlement([], parked=[Parking(e.seq, "it is poison") for e in await claimed(bench)]))
    await bench.write(1, "good")
    await bench.delete(2)
    entries = await claimed(bench)
    stamps, deleted = [Stamp(str(uid(1)), 2, 2)], [Stamp(str(uid(2)), 2, 2)]
    await settled(bench, Settlement([e.seq for e in entries], stamps, deleted=deleted))
    assert (await bench.row(1)).status == "synced"
    assert await bench.outbox.retry_parked_once(10, due_only=False) == 1
    assert [e.memory_id for e in await claimed(bench)] == [str(uid(3))]


@pytest.mark.promise("P7")
async def test_confirmed_deletes_are_noted_until_the_memory_lives(bench: Bench) -> None:
    """The version is the tombstone's."""
    for number, versions in ((1, (2, 4)), (2, (3,))):
        for version in versions:
            await settled(bench, Settlement([], deleted=[Stamp(str(uid(number)), version, version)]))
    assert await bench.deletions() == {str(uid(1)): 4, str(uid(2)): 3}
    await bench.write(1, "again")
    await settled(bench, Settlement([], [Stamp(str(uid(1)), 5, 5)]))
    assert await bench.deletions() == {str(uid(2)): 3}


@pytest.mark.promise("P8")
async def test_a_conflict_that_is_told_again_is_on_record_once(bench: Bench) -> None:
    """Another one of the same memory is another one."""
    for version, text in ((4, "ours"), (4, "ours"), (5, "ours"), (5, "others")):
        conflict = Conflict(str(uid(1)), "local", version, 3, text, "theirs")
        await settled(bench, Settlement([], conflicts=[conflict]))
    assert await bench.conflicts() == [("local", text, "theirs") for text in ("ours", "ours", "others")]


async def test_an_outage_marks_the_rows_that_wait(bench: Bench) -> None:
    """And is on record."""
    await bench.write(1, "a")
    await bench.write(2, "b")
    await bench.outbox.note_outage([str(uid(1))], SyncEvent("local_to_remote", "queued", 1, [str(uid(1))], "away"))
    assert [(await bench.row(n)).status for n in (1, 2)] == ["queued", "pending"]
    assert await bench.events() == [("queued", 1)]
    assert len(await claimed(bench)) == 2
