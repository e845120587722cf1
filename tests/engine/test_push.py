"""Push on in-memory stores: what is refused, what is lost, what is rebased."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dionysus_sync_mcp.domain.errors import AccessRefused, DionysusError, OutcomeUnknown, Refused, TimedOut, Unavailable
from dionysus_sync_mcp.engine.ports.push import QueueEntry, RemoteBatch, RowOutcome
from dionysus_sync_mcp.engine.push import Pusher, PushResult
from tests.engine.memory_local import START, MemoryLocal
from tests.engine.memory_remote import MemoryRemote

CHANGES = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["write", "delete"]), st.booleans()), max_size=25)


class ChoosyRemote(MemoryRemote):
    """Refuses batches with poison in them."""

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Hand on, or refuse."""
        if any(v.properties.content == "poison" for c in batch.changes for v in (*c.older, c.newest)):
            raise Refused("it is poison")
        return await super().write(batch)


def pusher(local: MemoryLocal, remote: MemoryRemote, rows: int = 100) -> Pusher:
    """On these stores."""
    return Pusher(local, remote, remote, rows=rows)


async def drain(local: MemoryLocal, remote: MemoryRemote, rows: int = 100) -> PushResult:
    """Push until nothing is left."""
    result, engine = PushResult(), pusher(local, remote, rows)
    while (step := await engine.push_once()).pushed or step.parked:
        result = result.plus(step)
    return result


def is_whole(local: MemoryLocal, remote: MemoryRemote) -> bool:
    """Whether the remote holds what the table has, and nothing else alive."""
    live = {i: n.memory for i, n in remote.nodes.items() if n.memory.deleted_at is None}
    return {i: (r.content_hash, r.version, "synced") for i, r in local.table.items()} == {
        i: (m.content_hash, m.version, local.table[i].status) for i, m in live.items() if i in local.table
    } and live.keys() == local.table.keys()


@pytest.mark.promise("P1")
@pytest.mark.promise("P3")
@given(changes=CHANGES, rows=st.integers(1, 5))
async def test_whatever_the_user_does_the_remote_ends_up_with_it(
    changes: list[tuple[str, str, bool]], rows: int
) -> None:
    """Any order of inserts, updates and deletes, pushed now and then in batches of any size; no version ever falls."""
    local, remote = MemoryLocal(), MemoryRemote()
    highest: dict[str, int] = {}
    for number, (name, what, push_now) in enumerate(changes):
        if what == "write":
            local.write(name, f"content {number}")
        elif name in local.table:
            local.delete(name)
        if push_now:
            await drain(local, remote, rows)
        assert all(node.memory.version >= highest.get(i, 0) for i, node in remote.nodes.items())
        highest = {i: node.memory.version for i, node in remote.nodes.items()}
    await drain(local, remote, rows)
    assert is_whole(local, remote)
    assert (local.entries, local.conflicts) == ({}, [])


class Meanwhile(MemoryRemote):
    """While it writes, the user does the next of these."""

    def during(self, *actions: Callable[[], None]) -> "Meanwhile":
        """What happens during the next writes."""
        self.actions = list(actions)
        return self

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Write, then let the user act: the batch was claimed without it."""
        outcomes = await super().write(batch)
        if self.actions:
            self.actions.pop(0)()
        return outcomes


def act(local: MemoryLocal, name: str, what: str, number: int) -> None:
    """One thing that a user does; who holds a row, or locks the table, has a transaction open that changed it."""
    if what == "hold" and name in local.table:
        local.held.add(name)
    local.locked = what == "lock"
    if what in ("hold", "lock"):
        return
    local.held.discard(name)
    if what == "write":
        local.write(name, f"content {number}")
    if what == "delete" and name in local.table:
        local.delete(name)
    if what == "again" and name in local.table:
        local.delete(name)
        local.write(name, f"content {number}")


def expect(written: dict[str, str], name: str, what: str, number: int) -> None:
    """The same on a dict: what the table has to hold in the end."""
    if what == "write" or (what == "again" and name in written):
        written[name] = f"content {number}"
    if what == "delete":
        written.pop(name, None)


@pytest.mark.promise("P1")
@pytest.mark.promise("P3")
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from("ab"),
            st.sampled_from(["write", "delete", "again", "hold", "lock", "release"]),
            st.sampled_from(["before", "push", "during", "wait", "lost"]),
        ),
        max_size=40,
    ),
    rows=st.integers(1, 4),
)
async def test_whatever_happens_during_a_push_the_remote_ends_up_with_it(
    steps: list[tuple[str, str, str]], rows: int
) -> None:
    """Changes between claim and settlement, rows held by open transactions, acknowledgements lost: nothing is."""
    local, remote = MemoryLocal(), Meanwhile().during()
    highest: dict[str, int] = {}
    written: dict[str, str] = {}
    for number, (name, what, when) in enumerate(steps):
        if when == "during" and local.entries:
            remote.during(partial(act, local, name, what, number))
            await pusher(local, remote, rows).push_once()
            remote.during()
        act(local, name, what, number)
        expect(written, name, what, number)
        if when == "lost":
            await push_and_lose_the_acknowledgement(local, remote, rows)
        if when == "wait":
            local.wait()
        if when in ("push", "wait"):
            await pusher(local, remote, rows).push_once()
        assert all(node.memory.version >= highest.get(i, 0) for i, node in remote.nodes.items())
        highest = {i: node.memory.version for i, node in remote.nodes.items()}
    local.locked = False
    local.held.clear()
    for _ in range(2):
        local.wait()
        await drain(local, remote, rows)
        await local.backfill_once(100)
    assert is_whole(local, remote)
    assert not local.entries
    assert {i: row.properties.content for i, row in local.table.items()} == written
    assert local.conflicts == []


async def push_and_lose_the_acknowledgement(local: MemoryLocal, remote: Meanwhile, rows: int) -> None:
    """The remote has the batch, the local store does not know."""
    with suppress(OutcomeUnknown):
        await pusher(local, remote.during(lose), rows).push_once()
    remote.during()


def lose() -> None:
    """The connection is lost while a commit was under way."""
    raise OutcomeUnknown("lost")


@pytest.mark.promise("P1")
async def test_a_delete_committed_after_the_insert_was_pushed_reaches_the_remote() -> None:
    """The row was inserted again, and counts from 1; whoever deletes it holds it while it is pushed."""
    local, remote = MemoryLocal(), MemoryRemote()
    for number in range(3):
        local.write("a", str(number))
    await drain(local, remote)
    local.delete("a")
    local.write("a", "again")
    local.held.add("a")
    await drain(local, remote)
    assert remote.nodes["a"].memory.version == 5
    local.held.clear()
    local.delete("a")
    await drain(local, remote)
    assert remote.nodes["a"].memory.deleted_at
    assert not local.entries


@pytest.mark.promise("P1")
async def test_a_delete_with_too_low_a_number_is_a_tombstone_all_the_same() -> None:
    """A row that was never stamped counts from 1, whatever the remote holds of it."""
    local, remote = MemoryLocal(), MemoryRemote()
    for number in range(5):
        local.write("a", str(number))
    await drain(local, remote)
    local.table["a"] = replace(local.table["a"], version=1, confirmed=None)
    local.delete("a")
    assert (await drain(local, remote)).outcomes == {"updated": 1}
    assert (remote.nodes["a"].memory.version, bool(remote.nodes["a"].memory.deleted_at)) == (6, True)


@pytest.mark.promise("P7")
@pytest.mark.parametrize("origin", ["another store", "store"])
async def test_a_delete_older_than_what_the_remote_holds_stays_harmless(origin: str) -> None:
    """A replay, an older backup of this store, or another store's newer edit: the remote forgets nothing."""
    local, remote = MemoryLocal(), MemoryRemote()
    local.write("a", "old")
    local.delete("a")
    old = dict(local.entries)
    for number in range(3):
        local.write("a", f"newer {number}")
    await drain(local, remote)
    remote.nodes["a"].origin = origin
    local.entries, local.rows = old, {}
    await drain(local, remote)
    assert (remote.nodes["a"].memory.content, remote.nodes["a"].memory.deleted_at) == ("newer 2", None)


@pytest.mark.promise("P2")
async def test_a_batch_that_was_not_acknowledged_is_sent_again_without_change() -> None:
    """The remote has committed, the acknowledgement is lost."""
    local, remote = MemoryLocal(), MemoryRemote()
    local.write("a", "1")
    local.write("a", "2")
    local.delete("a")
    entries, rows = dict(local.entries), dict(local.table)
    await drain(local, remote)
    nodes, history = dict(remote.nodes), dict(remote.history)
    local.entries, local.rows = entries, rows
    assert (await drain(local, remote)).outcomes == {"unchanged": 1}
    assert (remote.nodes, remote.history) == (nodes, history)


@pytest.mark.parametrize("error", [Unavailable("away"), AccessRefused("wrong password")])
@pytest.mark.promise("P1")
async def test_an_outage_parks_nothing(error: DionysusError) -> None:
    """The entries stay as they were."""
    local, remote = MemoryLocal(), MemoryRemote(failure=error)
    local.write("a", "1")
    with pytest.raises(type(error)):
        await pusher(local, remote).push_once()
    assert (len(local.entries), local.parked, local.events, local.pushing) == (1, {}, [], False)
    remote.failure = None
    assert (await drain(local, remote)).pushed == 1


@pytest.mark.promise("P1")
async def test_a_remote_store_that_refuses_every_write_has_nothing_parked() -> None:
    """It is ill, and the rows are not to blame: they are tried again, and that is tried with two writes only."""
    local, remote = MemoryLocal(), Ill()
    for number in range(20):
        local.write(str(number), "good")
    with pytest.raises(Unavailable, match="refuses every write: something unknown"):
        await pusher(local, remote).push_once()
    assert (len(local.entries), local.parked, remote.writes) == (20, {}, [20, 0])


class Ill(MemoryRemote):
    """Refuses whatever it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[int] = []

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Note how many, and refuse."""
        self.writes.append(len(batch.changes))
        raise Refused("something unknown")


class Narrow(MemoryRemote):
    """Carries at most so many changes in a batch within its deadline."""

    most = 3

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Hand on, or run out of time."""
        if len(batch.changes) > self.most:
            raise TimedOut("not done in time")
        return await super().write(batch)


@pytest.mark.promise("P9")
async def test_over_a_narrow_link_smaller_batches_get_through() -> None:
    """Each that ran out of time is followed by one of half the entries; nothing is parked."""
    local, remote = MemoryLocal(), Narrow()
    for number in range(40):
        local.write(f"memory {number}", "c")
    engine = pusher(local, remote)
    time_outs = 0
    while local.entries:
        try:
            await engine.push_once()
        except TimedOut:
            time_outs += 1
    assert 0 < time_outs < 40
    assert (local.parked, is_whole(local, remote)) == ({}, True)


async def test_an_outage_is_noted_with_what_waits() -> None:
    """The rows say queued; the audit says why."""
    local, remote = MemoryLocal(), MemoryRemote()
    local.write("a", "1")
    await pusher(local, remote).note_outage(Unavailable("the remote store is away"))
    assert local.table["a"].status == "queued"
    assert [(e.result, e.memory_ids, e.error_message) for e in local.events] == [
        ("queued", ["a"], "the remote store is away.")
    ]


@pytest.mark.promise("P1")
@given(poison=st.sets(st.integers(0, 14)))
async def test_exactly_the_refused_rows_are_parked(poison: set[int]) -> None:
    """Wherever they stand in the batch; all others go through."""
    local, remote = MemoryLocal(), ChoosyRemote()
    for number in range(15):
        local.write(f"{number:02}", "poison" if number in poison else "good")
    await drain(local, remote)
    assert {int(local.entries[seq].memory_id or "") for seq in local.parked} == poison
    assert len(remote.nodes) == 15 - len(poison)
    assert {i for i, row in local.table.items() if row.status == "failed"} == {f"{n:02}" for n in poison}


@pytest.mark.promise("P1")
async def test_of_one_memory_only_what_came_before_the_newest_is_parked() -> None:
    """A good state supersedes a poison one; a poison one takes its elders with it, so that nothing is out of order."""
    local, remote = MemoryLocal(), ChoosyRemote()
    for content in ("good", "poison", "good again"):
        local.write("superseded", content)
    for content in ("good", "poison"):
        local.write("spoiled", content)
    await drain(local, remote)
    assert remote.nodes["superseded"].memory.content == "good again"
    assert "spoiled" not in remote.nodes
    assert sorted(local.entries) == sorted(local.parked) == [1, 2, 4, 5]


async def test_an_entry_that_cannot_be_read_is_parked() -> None:
    """Its reason is kept, and the others go through."""
    local, remote = MemoryLocal(), MemoryRemote()
    local.enqueue(QueueEntry(0, "memory", "update", START, "broken", broken="cannot be read"))
    local.write("a", "1")
    result = await pusher(local, remote).push_once()
    assert (result.pushed, result.parked, local.parked) == (1, 1, {1: "cannot be read"})
    assert [e.result for e in local.events] == ["partial"]


async def test_sessions_projects_and_references_travel_in_their_last_state() -> None:
    """A deleted reference says so; a deleted session or project stays in the remote."""
    local, remote = MemoryLocal(), MemoryRemote()
    for name in ("a", "b"):
        local.write(name, "1")
    time = START.isoformat()
    project = {"id": "p", "name": "p", "description": None, "created_at": time}
    link = {"source_id": "a", "target_id": "b", "context": "c", "created_at": time}
    local.enqueue(QueueEntry(0, "project", "create", START, payload=project))
    local.enqueue(QueueEntry(0, "project", "update", START, payload={**project, "name": "renamed"}))
    local.enqueue(QueueEntry(0, "project", "delete", START, payload={**project, "name": "deleted"}))
    local.enqueue(QueueEntry(0, "reference", "create", START, payload=link))
    local.enqueue(QueueEntry(0, "reference", "delete", START, payload=link))
    assert (await drain(local, remote)).pushed == 7
    assert remote.project_rows["p"]["name"] == "renamed"
    assert [r["deleted"] for r in remote.links.values()] == [True]
    assert not local.entries


async def test_while_someone_else_pushes_nothing_is_done() -> None:
    """And nothing is waited for."""
    local, remote = MemoryLocal(), MemoryRemote()
    local.write("a", "1")
    local.pushing = True
    assert await pusher(local, remote).push_once() == PushResult(busy=True)
    assert not remote.nodes


@pytest.mark.promise("P8")
async def test_a_conflict_is_on_record_on_both_sides() -> None:
    """Two stores change one memory: the loser stands in the history, both contents in the audit, and both agree."""
    remote, one, other = MemoryRemote(), MemoryLocal(), MemoryLocal()
    other.identity_ = other.identity_.__class__("another store", "epoch")
    one.write("a", "base")
    await drain(one, remote)
    other.rows = dict(one.table)
    other.write("a", "the other's")
    await drain(other, remote)
    one.write("a", "ours, once")
    one.write("a", "ours, twice")
    assert (await drain(one, remote)).outcomes == {"conflict_won": 1}
    assert [(c.winner, c.local_content, c.remote_content) for c in one.conflicts] == [
        ("local", "ours, twice", "the other's")
    ]
    assert {v.properties.content for v in remote.history.values()} == {
        "base",
        "the other's",
        "ours, once",
        "ours, twice",
    }


def test_results_add_up() -> None:
    """For a drain that takes several steps."""
    first = PushResult(2, 1, {"created": 2}, busy=True)
    assert first.plus(PushResult(3, 0, {"created": 1, "updated": 2})) == PushResult(5, 1, {"created": 3, "updated": 2})
