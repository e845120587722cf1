"""Recovery on in-memory stores: what is planned, what is done, what is reported."""

from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta

import anyio
import anyio.lowlevel
import pytest

from dionysus_sync_mcp.domain.errors import InputError, Unavailable
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.engine.ports.recover import PageResult
from dionysus_sync_mcp.engine.ports.shared import Scope, StoreIdentity
from dionysus_sync_mcp.engine.push import Pusher
from dionysus_sync_mcp.engine.recover import KEPT_PLANS, LIFETIME, NAMED_FAULTS, PAGE, Recoverer
from dionysus_sync_mcp.engine.reports import RecoveryPlan, RecoveryReport
from tests.engine.memory_local import START, MemoryLocal
from tests.engine.memory_remote import MemoryRemote
from tests.engine.test_push import drain

EVERYTHING = Scope()


class World:
    """Both stores, a number of memories on both sides, and a recoverer."""

    def __init__(self, local: MemoryLocal, remote: MemoryRemote) -> None:
        self.local = local
        self.remote = remote
        self.recoverer = Recoverer(remote, local, local, Pusher(local, remote, remote))

    async def plan(self, *, include_deleted: bool = False) -> RecoveryPlan:
        """Of everything."""
        return await self.recoverer.plan(EVERYTHING, START, include_deleted=include_deleted)

    async def recover(self) -> RecoveryReport:
        """Plan and run."""
        return await self.recoverer.run((await self.plan()).plan_id, START)


async def world(memories: int) -> World:
    """A local store and a remote one that agree."""
    local, remote = MemoryLocal(), MemoryRemote()
    for number in range(memories):
        local.write(f"{number:06}", f"content {number}")
    await drain(local, remote)
    return World(local, remote)


@pytest.mark.promise("P6")
async def test_a_lost_table_comes_back_over_several_pages() -> None:
    """With the noted definition; a second run finds nothing to do."""
    stores = await world(PAGE + 10)
    before = dict(stores.local.table)
    await stores.remote.note_definition(stores.local.identity_, "the noted shape")
    stores.local.rows = None
    plan = await stores.plan()
    assert (plan.table_missing, plan.will_restore, stores.local.rows) == (True, PAGE + 10, None)
    report = await stores.recoverer.run(plan.plan_id, START)
    assert (report.complete, report.verified, stores.local.shape) == (True, PAGE + 10, "the noted shape")
    assert stores.local.table == before
    assert (await stores.recover()).planned == 0


@pytest.mark.parametrize("failure", [None, Unavailable("away")])
async def test_a_recovery_is_marked_while_it_is_under_way(
    monkeypatch: pytest.MonkeyPatch, failure: Unavailable | None
) -> None:
    """From the first row to the last one, and not after it, however it ends."""
    stores = await world(3)
    restore, marked = stores.local.restore, []
    stores.local.rows = None

    async def watched(memories: Sequence[RemoteMemory]) -> PageResult:
        marked.append(stores.local.recoveries)
        if failure:
            raise failure
        return await restore(memories)

    monkeypatch.setattr(stores.local, "restore", watched)
    plan = await stores.plan()
    assert stores.local.recoveries == 0
    with pytest.raises(Unavailable) if failure else nullcontext():
        await stores.recoverer.run(plan.plan_id, START)
    assert (marked, stores.local.recoveries) == ([1], 0)


async def test_every_class_is_counted_and_exemplified() -> None:
    """What is here and not there, too; no examples of what is the same."""
    stores = await world(6)
    local, remote = stores.local, stores.remote
    local.delete("000000")
    await drain(local, remote)
    local.captured = False
    del local.table["000001"]
    local.write("000002", "newer here")
    local.table["000003"] = local.table["000004"]
    local.write("only here", "c")
    held = remote.nodes["000005"]
    held.memory = held.memory._replace(version=9)
    plan = await stores.plan()
    assert plan.counts == {
        "deleted": 1, "missing_here": 1, "newer_here": 1, "conflicting": 1, "identical": 1, "older_here": 1,
        "only_here": 1, "invalid": 0,
    }  # fmt: skip
    assert "identical" not in plan.examples
    assert [e.memory_id for e in plan.examples["missing_here"]] == ["000001"]
    assert len(plan.warnings) == 2


async def test_a_plan_can_be_run_once_within_its_time() -> None:
    """By its id only."""
    stores = await world(1)
    plan = await stores.plan()
    assert plan.expires_at == START + LIFETIME
    with pytest.raises(InputError, match="no such plan"):
        await stores.recoverer.run(plan.plan_id, START + LIFETIME)
    plan = await stores.plan()
    await stores.recoverer.run(plan.plan_id, START + LIFETIME - timedelta(seconds=1))
    for plan_id in (plan.plan_id, ""):
        with pytest.raises(InputError):
            await stores.recoverer.run(plan_id, START)


@pytest.mark.promise("P6")
async def test_a_shortfall_is_never_called_complete() -> None:
    """Rows that the table refuses, or that do not come back as they were, are named and counted."""
    stores = await world(NAMED_FAULTS + 10)
    stores.local.rows = {}
    stores.local.refusing = {f"{n:06}" for n in range(NAMED_FAULTS + 5)}
    held = stores.remote.nodes["000029"]
    held.memory = held.memory._replace(content_hash="of something else")
    report = await stores.recover()
    assert (report.complete, report.planned, report.verified) == (False, NAMED_FAULTS + 10, 4)
    assert (report.refused_count, len(report.refused)) == (NAMED_FAULTS + 6, NAMED_FAULTS)
    assert stores.local.events[-1].result == "partial"
    assert stores.local.reports[-1]["complete"] is False


@pytest.mark.promise("P1")
async def test_what_waits_is_pushed_before_anything_is_compared() -> None:
    """A queued delete was meant, a queued change is the newest there is."""
    stores = await world(2)
    stores.local.delete("000000")
    stores.local.write("000001", "newest")
    stores.local.rows = None
    assert (await stores.recover()).complete
    assert {i: r.properties.content for i, r in stores.local.table.items()} == {"000001": "newest"}


async def test_a_queue_that_cannot_be_pushed_holds_its_memories_back() -> None:
    """The remote takes no writes now: what it has of them is old, all others can be brought back."""
    stores = await world(3)
    stores.local.write("000000", "cannot be pushed")
    stores.remote.failure = Unavailable("takes no writes")
    stores.local.rows = {}
    plan = await stores.plan()
    assert (plan.will_restore, "1 memories are left out" in plan.warnings[0]) == (2, True)
    assert (await stores.recoverer.run(plan.plan_id, START)).complete
    assert sorted(stores.local.table) == ["000001", "000002"]
    stores.remote.failure = None
    assert (await stores.recover()).complete
    assert stores.local.table["000000"].properties.content == "cannot be pushed"


async def test_a_change_that_comes_after_the_plan_is_not_undone() -> None:
    """Its memory is left out of the run, which is not complete then."""
    stores = await world(3)
    kept = stores.local.table["000000"]
    stores.local.rows = {}
    plan = await stores.plan()
    stores.local.table["000000"] = kept
    stores.local.write("000000", "newest")
    stores.local.rows = {}
    stores.remote.failure = Unavailable("takes no writes")
    report = await stores.recoverer.run(plan.plan_id, START)
    assert (report.complete, report.verified, sorted(stores.local.table)) == (False, 2, ["000001", "000002"])
    assert "waits to be pushed" in report.warnings[0]


@pytest.mark.promise("P8")
async def test_a_recovery_that_is_cut_off_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it had done until then, and why it ended."""
    stores = await world(PAGE + 10)
    stores.local.rows = {}
    plan = await stores.plan()
    whole = stores.remote.memories

    async def fading(scope: Scope, after: str, limit: int) -> list[RemoteMemory]:
        while after and not stores.local.table:
            await anyio.lowlevel.checkpoint()
        if after:
            raise Unavailable("gone")
        return await whole(scope, after, limit)

    monkeypatch.setattr(stores.remote, "memories", fading)
    with anyio.fail_after(10), pytest.raises(Unavailable, match="gone"):
        await stores.recoverer.run(plan.plan_id, START)
    assert (stores.local.events[-1].result, stores.local.events[-1].error_message) == ("partial", "cut off: gone.")
    assert (stores.local.reports[-1]["complete"], stores.local.reports[-1]["verified"]) == (False, PAGE)


async def test_only_the_newest_plans_are_kept() -> None:
    """A client that only plans does not fill the memory."""
    stores = await world(1)
    plans = [await stores.plan() for _ in range(KEPT_PLANS + 1)]
    with pytest.raises(InputError):
        await stores.recoverer.run(plans[0].plan_id, START)
    await stores.recoverer.run(plans[1].plan_id, START)


async def test_a_store_goes_by_the_definition_that_it_noted() -> None:
    """Not by that of another store, though it is newer; a store that never wrote here goes by the newest."""
    stores = await world(1)
    other = StoreIdentity("other", "epoch")
    for identity, text in ((stores.local.identity_, "own"), (other, "the other's")):
        await stores.remote.note_definition(identity, text)
    stores.local.rows = None
    await stores.recover()
    assert stores.local.shape == "own"
    stores.local.rows, stores.local.identity_ = None, StoreIdentity("fresh", "epoch")
    await stores.recover()
    assert stores.local.shape == "the other's"


async def test_a_remote_that_goes_away_is_said_in_our_words() -> None:
    """Not as a group of errors."""
    stores = await world(3)
    plan = await stores.plan()
    stores.local.failure = Unavailable("away")
    with pytest.raises(Unavailable):
        await stores.recoverer.run(plan.plan_id, START)


async def test_progress_is_told() -> None:
    """While comparing and while restoring."""
    stores = await world(3)
    stores.local.rows = {}
    told: list[tuple[int, int | None]] = []

    async def note(done: int, total: int | None, _message: str) -> None:
        told.append((done, total))

    plan = await stores.recoverer.plan(EVERYTHING, START, on_progress=note)
    await stores.recoverer.run(plan.plan_id, START, on_progress=note)
    assert told == [(3, None), (3, 3)]
