"""Recovery on in-memory stores: what is planned, what is done, what is reported."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timedelta

import anyio
import anyio.lowlevel
import pytest

from dionysus_sync_mcp.domain.destruction import Incident, IncidentKind
from dionysus_sync_mcp.domain.errors import InputError, PlanOutdated, Unavailable
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.engine import survey
from dionysus_sync_mcp.engine.ports.history import StateOf
from dionysus_sync_mcp.engine.ports.recover import PageResult, Restoration
from dionysus_sync_mcp.engine.ports.shared import OnProgress, Scope, StoreIdentity
from dionysus_sync_mcp.engine.push import Pusher
from dionysus_sync_mcp.engine.recover import KEPT_PLANS, LIFETIME, NAMED_FAULTS, PAGE, Recoverer, RecoveryWish
from dionysus_sync_mcp.engine.reports import RecoveryPlan, RecoveryReport
from tests.engine.memory_history import MemoryHistory, MemoryIncidents, MemoryRows
from tests.engine.memory_local import START, MemoryLocal
from tests.engine.memory_remote import MemoryRemote
from tests.engine.test_push import drain

EVERYTHING = RecoveryWish(Scope())
NOW = START + timedelta(days=1)
NOTED_SHAPE = '{"columns": [], "indexes": ["noted"]}'


class World:
    """Both stores, a number of memories on both sides, and a recoverer."""

    def __init__(self, local: MemoryLocal, remote: MemoryRemote) -> None:
        self.local = local
        self.remote = remote
        self.history = MemoryHistory(remote)
        self.incidents = MemoryIncidents()
        rows = MemoryRows(local)
        pusher = Pusher(local, remote, remote)
        self.place = "here"
        self.recoverer = Recoverer(
            remote, self.history, rows, local, local, pusher, self.incidents, self.locate, local.install
        )

    async def locate(self) -> str:
        """Where the local store is."""
        return self.place

    async def plan(
        self, wish: RecoveryWish = EVERYTHING, now: datetime = NOW, on_progress: OnProgress | None = None
    ) -> RecoveryPlan:
        """Of everything, if not of less."""
        return await self.recoverer.plan(wish, now, on_progress=on_progress)

    async def run(self, plan: RecoveryPlan, now: datetime = NOW) -> RecoveryReport:
        """Carry it out."""
        return await self.recoverer.run(plan.plan_id, now)

    async def recover(self, wish: RecoveryWish = EVERYTHING) -> RecoveryReport:
        """Plan and run."""
        return await self.run(await self.plan(wish))

    async def push(self) -> None:
        """All that waits."""
        await drain(self.local, self.remote)

    def time(self) -> datetime:
        """After the last change, and before the next one."""
        return START + timedelta(seconds=self.local.last_seq - 0.5)

    def happened(self, kind: IncidentKind, first: datetime, last: datetime, store: str = "store") -> Incident:
        """An open incident on record."""
        made = Incident(
            id=f"{kind} of {store}",
            key=kind,
            kind=kind,
            store=store,
            detected_at=last,
            restore_point=first,
            last_at=last,
            rows=1,
            summary="",
        )
        self.incidents.known[made.id] = made
        return made

    def contents(self) -> dict[str, str | None]:
        """What is here."""
        return {i: row.properties.content for i, row in sorted(self.local.table.items())}


async def world(memories: int) -> World:
    """A local store and a remote one that agree."""
    local, remote = MemoryLocal(), MemoryRemote()
    for number in range(memories):
        local.write(f"{number:06}", f"content {number}")
    await drain(local, remote)
    return World(local, remote)


async def burst(stores: World, kind: IncidentKind, *memory_ids: str) -> Incident:
    """An incident that deletes memories, or empties them, and reaches the remote store."""
    first = stores.time()
    for memory_id in memory_ids:
        if kind == "rapid_deletes":
            stores.local.delete(memory_id)
        else:
            stores.local.write(memory_id, "")
    last = stores.time()
    await stores.push()
    return stores.happened(kind, first, last)


@pytest.mark.promise("P6")
async def test_a_lost_table_comes_back_over_several_pages() -> None:
    """With the noted definition; a second run finds nothing to do."""
    stores = await world(PAGE + 10)
    before = dict(stores.local.table)
    await stores.remote.note_definition(stores.local.identity_, NOTED_SHAPE)
    stores.local.rows = None
    plan = await stores.plan()
    assert (plan.table_missing, plan.will_restore, stores.local.rows) == (True, PAGE + 10, None)
    report = await stores.run(plan)
    assert (report.complete, report.verified, stores.local.shape) == (True, PAGE + 10, NOTED_SHAPE)
    assert stores.local.table == before
    assert (await stores.recover()).planned == 0


async def test_many_memories_are_gone_over_in_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, and each span's rows beside its memories."""
    monkeypatch.setattr(survey, "MANY", 64)
    stores = await world(0)
    ids = [f"{number:02x}000000" for number in range(256)]
    for memory_id in ids:
        stores.local.write(memory_id, memory_id)
    await stores.push()
    for memory_id in ids[::10]:
        del stores.local.table[memory_id]
    stores.local.captured = False
    stores.local.write("ffffffff", "only here")
    plan = await stores.plan()
    assert {name: number for name, number in plan.counts.items() if number} == {
        "missing_here": 26,
        "identical": 230,
        "only_here": 1,
    }
    assert [one.memory_id for one in plan.examples["missing_here"]] == ids[:50:10]
    assert (await stores.run(plan)).verified == 26


@pytest.mark.parametrize("failure", [None, Unavailable("away")])
async def test_a_recovery_is_marked_while_it_is_under_way(
    monkeypatch: pytest.MonkeyPatch, failure: Unavailable | None
) -> None:
    """From the first row to the last one, and not after it, however it ends."""
    stores = await world(3)
    restore, marked = stores.local.restore, []
    stores.local.rows = None

    async def watched(recovery_id: str, restorations: Sequence[Restoration]) -> PageResult:
        marked.append(stores.local.recoveries)
        if failure:
            raise failure
        return await restore(recovery_id, restorations)

    monkeypatch.setattr(stores.local, "restore", watched)
    plan = await stores.plan()
    assert stores.local.recoveries == 0
    with pytest.raises(Unavailable) if failure else nullcontext():
        await stores.run(plan)
    assert (marked, stores.local.recoveries) == ([1], 0)


async def test_every_class_is_counted_and_exemplified() -> None:
    """What is here and not there, too; no examples of what is the same."""
    stores = await world(8)
    local, remote = stores.local, stores.remote
    local.delete("000000")
    await stores.push()
    await burst(stores, "rapid_deletes", "000006")
    await burst(stores, "bulk_update", "000007")
    local.captured = False
    del local.table["000001"]
    local.write("000002", "newer here")
    local.table["000003"] = replace(local.table["000003"], properties=local.table["000004"].properties)
    local.write("only here", "c")
    held = remote.nodes["000005"]
    held.memory = held.memory._replace(version=9, content_hash="of version 9")
    plan = await stores.plan()
    assert plan.counts == {
        "deleted": 1, "missing_here": 1, "newer_here": 1, "conflicting": 1, "identical": 1, "older_here": 1,
        "only_here": 1, "invalid": 0, "deleted_by_incident": 1, "overwritten_by_incident": 1,
    }  # fmt: skip
    assert "identical" not in plan.examples
    assert [e.memory_id for e in plan.examples["missing_here"]] == ["000001"]
    shown = plan.examples["overwritten_by_incident"][0]
    assert (shown.excerpt, shown.reason) == ("content 7", "an incident changed it; version 1 comes back")
    assert (plan.will_restore, plan.will_overwrite, len(plan.warnings)) == (4, 2, 2)


@pytest.mark.promise("P6")
async def test_what_an_incident_deleted_comes_back_and_what_was_deleted_on_purpose_does_not() -> None:
    """It goes forward: the remote store has it live again, at a version of its own."""
    stores = await world(6)
    stores.local.delete("000005")
    await stores.push()
    before = stores.contents()
    await burst(stores, "rapid_deletes", "000000", "000001", "000002")
    plan = await stores.plan()
    assert (plan.will_restore, plan.will_overwrite) == (3, 0)
    assert (await stores.run(plan)).complete
    assert stores.contents() == before
    assert stores.local.table["000000"].version == 3
    await stores.push()
    assert stores.remote.nodes["000000"].memory[1:4:2] == (3, None)
    assert (await stores.recover()).planned == 0


@pytest.mark.promise("P6")
async def test_what_an_incident_overwrote_comes_back_unless_it_was_changed_since() -> None:
    """At its last good version, also in a second burst; what is overwritten is kept."""
    stores = await world(5)
    stores.local.write("000000", "the last good one")
    await stores.push()
    before = stores.contents()
    first = await burst(stores, "bulk_update", "000000", "000001", "000002")
    stores.local.write("000002", "mended by hand")
    await stores.push()
    plan = await stores.plan()
    assert (plan.will_restore, plan.will_overwrite, plan.counts["overwritten_by_incident"]) == (2, 2, 2)
    assert stores.recoverer.planned_overwrites(plan.plan_id, NOW) == 2
    report = await stores.run(plan)
    assert (report.complete, report.overwritten, report.recovery_id) == (True, 2, plan.plan_id)
    assert stores.contents() == before | {"000002": "mended by hand"}
    assert stores.local.kept[plan.plan_id, "000000"].properties.content == ""
    await stores.push()
    assert (await stores.recover(RecoveryWish(Scope(), before_incident=first.id))).planned == 0
    assert (await stores.plan(replace(EVERYTHING, only_missing=True))).will_restore == 0


async def test_only_what_is_missing_overwrites_nothing() -> None:
    """The rest is left, and said to be."""
    stores = await world(3)
    await burst(stores, "bulk_update", "000000", "000001")
    del stores.local.table["000002"]
    plan = await stores.plan(replace(EVERYTHING, only_missing=True))
    assert (plan.will_restore, plan.will_overwrite, plan.counts["overwritten_by_incident"]) == (1, 0, 2)
    assert "2 rows here differ" in plan.warnings[0]


async def test_a_closed_incident_concerns_only_a_recovery_that_names_it() -> None:
    """With a word about it; what it deleted counts as deleted on purpose otherwise."""
    stores = await world(3)
    one = await burst(stores, "rapid_deletes", "000000", "000001")
    stores.incidents.known[one.id] = replace(one, closed_at=NOW)
    assert (await stores.plan()).counts["deleted"] == 2
    plan = await stores.plan(RecoveryWish(Scope(), before_incident=one.id))
    assert (plan.counts["deleted_by_incident"], plan.before_incident) == (2, one.id)
    assert "is closed" in plan.warnings[0]


async def test_rows_made_up_after_a_loss_are_its_damage_when_it_is_named() -> None:
    """Under the ids of memories that are gone; without being asked for, they are newer and stay."""
    stores = await world(4)
    before = stores.contents()
    lost_at = stores.time()
    stores.local.rows = {}
    for number in range(2):
        stores.local.write(f"{number:06}", "made up")
    stores.local.write("quite new", "kept")
    await stores.push()
    lost = stores.happened("truncate", lost_at, lost_at)
    assert (await stores.plan()).will_overwrite == 0
    plan = await stores.plan(RecoveryWish(Scope(), before_incident=lost.id))
    assert (plan.will_restore, plan.will_overwrite) == (4, 2)
    assert (await stores.run(plan)).complete
    assert stores.contents() == before | {"quite new": "kept"}


async def test_rows_that_were_cut_without_a_trigger_are_an_incidents_damage() -> None:
    """At the remote's version, with another content: the row gets that version again."""
    stores = await world(3)
    row = stores.local.table["000001"]
    stores.local.table["000001"] = replace(row, properties=row.properties._replace(content="con"))
    assert (await stores.plan()).will_restore == 0
    altered = stores.happened("alter", stores.time(), stores.time())
    plan = await stores.plan()
    assert (plan.counts["overwritten_by_incident"], plan.will_overwrite) == (1, 1)
    named = await stores.plan(RecoveryWish(Scope(), before_incident=altered.id))
    assert "not on record" in named.warnings[0]
    assert (await stores.run(plan)).complete
    assert stores.local.table["000001"] == row


@pytest.mark.promise("P6")
async def test_a_recovery_goes_back_to_a_time() -> None:
    """What was deleted since is there again; what was changed since only where that is asked for; what is new stays."""
    stores = await world(4)
    then, before = stores.time(), stores.contents()
    stores.local.write("000000", "changed since")
    stores.local.delete("000001")
    stores.local.write("new", "made since")
    await stores.push()
    plan = await stores.plan(replace(EVERYTHING, as_of=then))
    assert (plan.as_of, plan.will_restore, plan.counts["newer_here"], plan.counts["only_here"]) == (then, 1, 1, 1)
    assert "1 of the memories that come back were deleted on purpose since that time." in plan.warnings
    wish = replace(EVERYTHING, as_of=then, overwrite_newer=True)
    assert (await stores.recover(wish)).overwritten == 1
    assert stores.contents() == before | {"new": "made since"}
    await stores.push()
    assert stores.remote.nodes["000000"].memory.content == "content 0"
    assert (await stores.recover(wish)).planned == 0


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (replace(EVERYTHING, as_of=NOW + timedelta(seconds=1)), "in the future"),
        (replace(EVERYTHING, as_of=START - timedelta(days=1)), "before all history"),
        (replace(EVERYTHING, as_of=NOW.replace(tzinfo=None)), "no time zone"),
        (replace(EVERYTHING, as_of=NOW, before_incident="x"), "two times"),
        (replace(EVERYTHING, before_incident="x"), "no incident x"),
        (RecoveryWish(Scope(projects=("P",))), "project 'P' is in neither store.*instance: p"),
        (RecoveryWish(Scope(sessions=("s",))), "session s is in neither store"),
        (RecoveryWish(Scope(memory_ids=("m",))), "memory m is in neither store"),
        (RecoveryWish(Scope(), overwrite_newer=True, only_missing=True), "say the opposite"),
    ],
)
async def test_what_cannot_be_planned_is_said(wish: RecoveryWish, words: str) -> None:
    """And nothing is changed, nor kept as a plan."""
    stores = await world(3)
    with pytest.raises(InputError, match=words):
        await stores.plan(wish)


async def test_the_beginning_of_history_is_named() -> None:
    """A time before it is refused; in a remote store without any, there is just nothing to bring back."""
    stores = await world(1)
    with pytest.raises(InputError, match=START.isoformat().replace("+", r"\+")):
        await stores.plan(replace(EVERYTHING, as_of=START - timedelta(days=1)))
    empty = await world(0)
    assert (await empty.plan(replace(EVERYTHING, as_of=START))).will_restore == 0


async def test_a_project_that_is_only_here_is_known() -> None:
    """There is nothing to bring back of it, which is no mistake."""
    stores = await world(1)
    stores.local.captured = False
    stores.local.write("000009", "x")
    row = stores.local.table["000009"]
    stores.local.table["000009"] = replace(row, properties=row.properties._replace(source_project="mine"))
    plan = await stores.plan(RecoveryWish(Scope(projects=("mine",))))
    assert (plan.will_restore, plan.counts["only_here"]) == (0, 1)


async def test_a_plan_can_be_run_once_within_its_time() -> None:
    """By its id only; what became of it is said."""
    stores = await world(1)
    plan = await stores.plan()
    assert plan.expires_at == NOW + LIFETIME
    with pytest.raises(InputError, match="has expired"):
        await stores.run(plan, NOW + LIFETIME)
    plan = await stores.plan()
    await stores.run(plan, NOW + LIFETIME - timedelta(seconds=1))
    with pytest.raises(InputError, match="was used"):
        await stores.run(plan)
    with pytest.raises(InputError, match="no such plan"):
        await stores.recoverer.run("", NOW)
    with pytest.raises(InputError, match="no such plan"):
        stores.recoverer.planned_overwrites("", NOW)


async def test_a_plan_is_of_one_local_store() -> None:
    """Of a database that was made again meanwhile, it says nothing."""
    stores = await world(2)
    plan = await stores.plan()
    stores.local.identity_ = StoreIdentity("another", "epoch")
    with pytest.raises(InputError, match="another local store"):
        await stores.run(plan)


@pytest.mark.promise("P6")
async def test_a_plan_that_the_stores_have_outrun_is_not_run() -> None:
    """A row came back, a row went, or it is another one now: nothing is changed, and a new plan is asked for."""
    stores = await world(4)
    kept = stores.local.table.pop("000000")
    plan = await stores.plan()
    stores.local.table["000000"] = kept
    del stores.local.table["000001"]
    with pytest.raises(PlanOutdated, match="it named 1 memories"):
        await stores.run(plan)
    assert sorted(stores.local.table) == ["000000", "000002", "000003"]
    assert stores.local.events[-1].direction == "local_to_remote"
    assert (await stores.recover()).complete


async def test_writes_beside_a_plan_do_not_outdate_it() -> None:
    """What they change is not what it names."""
    stores = await world(3)
    del stores.local.table["000000"]
    plan = await stores.plan(RecoveryWish(Scope(memory_ids=("000000",))))
    stores.local.write("000001", "changed meanwhile")
    stores.local.write("new", "new")
    stores.local.delete("000002")
    assert (await stores.run(plan)).complete
    assert stores.contents() == {"000000": "content 0", "000001": "changed meanwhile", "new": "new"}


async def test_a_row_that_changes_while_it_is_recovered_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the second survey: it is refused, named and counted."""
    stores = await world(3)
    await burst(stores, "bulk_update", "000000", "000001")
    plan = await stores.plan()
    schema = stores.local.ensure_schema

    async def late(definition: str | None) -> list[str]:
        stores.local.write("000000", "changed at the last moment")
        return await schema(definition)

    monkeypatch.setattr(stores.local, "ensure_schema", late)
    report = await stores.run(plan)
    assert (report.complete, report.verified, report.refused_count) == (False, 1, 1)
    assert report.refused[0].reason == "changed meanwhile"
    assert stores.contents()["000000"] == "changed at the last moment"


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


@pytest.mark.promise("P6")
async def test_a_state_that_is_not_there_any_more_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The remote store lost it after the survey: counted, and no success."""
    stores = await world(3)
    stores.local.rows = {}
    whole = stores.history.whole_states

    async def fading(wanted: Sequence[StateOf]) -> list[RemoteMemory]:
        return [memory for memory in await whole(wanted) if memory.id != "000001"]

    plan = await stores.plan()
    monkeypatch.setattr(stores.history, "whole_states", fading)
    report = await stores.run(plan)
    assert (report.complete, report.verified) == (False, 2)
    assert [(one.memory_id, one.reason) for one in report.refused] == [
        ("000001", "it is not in the remote store any more")
    ]


@pytest.mark.promise("P6")
async def test_what_an_incident_took_and_the_remote_lacks_is_missed() -> None:
    """Told by count in the plan; a run that brings the rest is no success."""
    stores = await world(5)
    lost = stores.happened("truncate", stores.time(), stores.time())
    stores.incidents.known[lost.id] = replace(lost, rows=5)
    stores.local.rows = {}
    stores.remote.nodes = {i: node for i, node in stores.remote.nodes.items() if i > "000001"}
    plan = await stores.plan()
    assert (plan.will_restore, "At least 2 memories that an incident took" in plan.warnings[-1]) == (3, True)
    report = await stores.run(plan)
    assert (report.complete, report.planned, report.verified) == (False, 5, 3)
    assert stores.local.events[-1].result == "partial"


async def test_a_remote_store_without_anything_says_so() -> None:
    """Where there is no table either, and nobody saw what happened."""
    stores = await world(0)
    stores.local.rows = None
    plan = await stores.plan()
    assert (plan.will_restore, "holds no memories" in plan.warnings[-1]) == (0, True)


@pytest.mark.promise("P1")
async def test_what_waits_is_pushed_before_anything_is_compared() -> None:
    """A queued delete was meant, a queued change is the newest there is."""
    stores = await world(2)
    stores.local.delete("000000")
    stores.local.write("000001", "newest")
    stores.local.rows = None
    assert (await stores.recover()).complete
    assert stores.contents() == {"000001": "newest"}


async def test_a_queue_that_cannot_be_pushed_holds_its_memories_back() -> None:
    """The remote takes no writes now: what it has of them is old, all others can be brought back."""
    stores = await world(3)
    stores.local.write("000000", "cannot be pushed")
    stores.remote.failure = Unavailable("takes no writes")
    stores.local.rows = {}
    plan = await stores.plan()
    assert (plan.will_restore, "1 memories are left out" in plan.warnings[0]) == (2, True)
    assert (await stores.run(plan)).complete
    assert sorted(stores.local.table) == ["000001", "000002"]
    stores.remote.failure = None
    assert (await stores.recover()).complete
    assert stores.contents()["000000"] == "cannot be pushed"


async def test_a_change_that_comes_after_the_plan_is_not_undone() -> None:
    """It waits, and cannot be pushed: the plan, which did not know of it, is not run."""
    stores = await world(3)
    kept = stores.local.table["000000"]
    stores.local.rows = {}
    plan = await stores.plan()
    stores.local.table["000000"] = kept
    stores.local.write("000000", "newest")
    stores.local.rows = {}
    stores.remote.failure = Unavailable("takes no writes")
    with pytest.raises(PlanOutdated):
        await stores.run(plan)
    assert stores.contents() == {}


@pytest.mark.promise("P8")
async def test_a_recovery_that_is_cut_off_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it had done until then, and why it ended; another one does the rest."""
    stores = await world(PAGE + 10)
    stores.local.rows = {}
    plan = await stores.plan()
    whole = stores.history.whole_states

    async def fading(wanted: Sequence[StateOf]) -> list[RemoteMemory]:
        while len(wanted) < PAGE and not stores.local.table:
            await anyio.lowlevel.checkpoint()
        if len(wanted) < PAGE:
            raise Unavailable("gone")
        return await whole(wanted)

    monkeypatch.setattr(stores.history, "whole_states", fading)
    with anyio.fail_after(10), pytest.raises(Unavailable, match="gone"):
        await stores.run(plan)
    assert (stores.local.events[-1].result, stores.local.events[-1].error_message) == ("partial", "cut off: gone.")
    assert (stores.local.reports[-1]["complete"], stores.local.reports[-1]["verified"]) == (False, PAGE)
    monkeypatch.undo()
    assert (await stores.recover()).restored == 10


async def test_only_the_newest_plans_are_kept() -> None:
    """A client that only plans does not fill the memory."""
    stores = await world(1)
    plans = [await stores.plan() for _ in range(KEPT_PLANS + 1)]
    with pytest.raises(InputError, match="newer ones"):
        await stores.run(plans[0])
    await stores.run(plans[1])


async def test_a_store_goes_by_the_definition_that_it_noted() -> None:
    """Not by that of another store, though it is newer; a store that never wrote here goes by the newest."""
    stores = await world(1)
    other = StoreIdentity("other", "epoch")
    own, theirs = '{"columns": [], "indexes": ["own"]}', '{"columns": [], "indexes": ["the other\'s"]}'
    for identity, text in ((stores.local.identity_, own), (other, theirs)):
        await stores.remote.note_definition(identity, text)
    stores.local.rows = None
    await stores.recover()
    assert stores.local.shape == own
    stores.local.rows, stores.local.identity_ = None, StoreIdentity("fresh", "epoch")
    await stores.recover()
    assert stores.local.shape == theirs


async def two_stores() -> tuple[World, MemoryLocal]:
    """A remote store to which two local ones have written two memories each; the world is the first one's."""
    stores = await world(2)
    second = MemoryLocal(StoreIdentity("second", "epoch", 0, "never pushed"))
    for number in (7, 8):
        second.write(f"{number:06}", "the second's")
    await drain(second, stores.remote)
    return stores, second


@pytest.mark.promise("P7")
async def test_a_plan_is_about_the_memories_of_its_own_store() -> None:
    """And about those that it has written a version of; what is left out is counted."""
    stores, second = await two_stores()
    second.rows = {"000000": stores.local.table["000000"], **second.table}
    second.write("000000", "changed by the second")
    await drain(second, stores.remote)
    stores.local.rows = {}
    plan = await stores.plan()
    assert (plan.will_restore, "1 other local stores wrote are left out" in plan.warnings[-1]) == (2, True)
    assert (await stores.run(plan)).complete
    assert stores.contents() == {"000000": "changed by the second", "000001": "content 1"}


async def test_a_store_that_the_remote_does_not_know_gets_all() -> None:
    """With a word about how many stores there are; their incidents concern it too."""
    stores, _ = await two_stores()
    lost = stores.happened("truncate", stores.time(), stores.time())
    stores.local.rows, stores.local.identity_ = None, StoreIdentity("fresh", "epoch")
    plan = await stores.plan(RecoveryWish(Scope(), before_incident=lost.id))
    assert plan.will_restore == 4
    assert "holds the memories of 2 others" in plan.warnings[-1]


async def test_a_store_in_the_place_of_one_that_is_gone_gets_what_that_had() -> None:
    """It was made again, and has written something already: the lost one was at its place, the other one is not."""
    stores, _ = await two_stores()
    fresh = StoreIdentity("fresh", "epoch", 0, "never pushed")
    stores.local.rows, stores.local.entries, stores.local.identity_ = {}, {}, fresh
    stores.local.write("000009", "the first thing after the loss")
    await stores.push()
    begun = START + timedelta(hours=1)
    stores.history.places = dict.fromkeys(("store", "fresh"), "here") | {"second": "there"}
    stores.history.pushes = {"store": (START, START), "fresh": (begun, begun), "second": (START, START)}
    plan = await stores.plan()
    assert plan.will_restore == 2
    assert any("in the place of this one" in warning for warning in plan.warnings)
    stores.history.pushes["store"] = (START, begun + LIFETIME)
    assert (await stores.plan()).will_restore == 0


async def test_a_store_that_is_gone_is_known_by_its_place() -> None:
    """Before the database is a local store again, and before it has pushed: it gets what was there, and no other's."""
    stores, _ = await two_stores()
    stores.history.places = {"store": "here", "second": "there"}
    stores.local.rows, stores.local.entries, stores.local.bookkeeping = None, {}, False
    stores.local.identity_ = StoreIdentity("fresh", "epoch", 0, "never pushed")
    plan = await stores.plan()
    assert plan.will_restore == 2
    await stores.local.install()
    plan = await stores.plan()
    assert (plan.will_restore, any("in the place of this" in warning for warning in plan.warnings)) == (2, True)
    stores.place = "nowhere known"
    assert (await stores.plan()).will_restore == 4


async def test_a_lost_bookkeeping_is_put_back_before_anything_is_compared() -> None:
    """Of a store that was here; a database that was none is not made one."""
    stores = await world(2)
    stores.local.bookkeeping = False
    stores.history.places = {"store": "elsewhere"}
    await stores.plan()
    assert not stores.local.bookkeeping
    stores.history.places = {"store": stores.place}
    assert (await stores.plan()).counts["identical"] == 2
    assert stores.local.bookkeeping


async def test_reasons_and_names_are_no_commands() -> None:
    """What the database or a memory says stands in reports that somebody pastes."""
    stores = await world(1)
    with pytest.raises(InputError, match="D·ROP T·ABLE memories"):
        await stores.plan(RecoveryWish(Scope(projects=("DROP TABLE memories",))))
    stores.local.rows = {}
    stores.local.refusing = {"000000"}
    stores.local.refusal = "DELETE FROM memories was refused"
    (refused,) = (await stores.recover()).refused
    assert refused.reason == "D·ELETE F·ROM memories was refused"


async def test_a_damaged_definition_blocks_nothing() -> None:
    """The newest one before it is the table's; where there is none, the installation makes one."""
    stores = await world(1)
    for text in (NOTED_SHAPE, "nope"):
        await stores.remote.note_definition(stores.local.identity_, text)
    stores.local.rows = None
    plan = await stores.plan()
    assert any("cannot be read" in warning for warning in plan.warnings)
    assert (await stores.run(plan)).complete
    assert stores.local.shape == NOTED_SHAPE


@pytest.mark.promise("P1")
async def test_what_memories_had_in_a_lost_column_comes_back() -> None:
    """The rest of them stays as it was written since; one that was made since had nothing in it."""
    stores = await world(2)
    row = stores.local.table["000000"]
    stores.local.table["000000"] = replace(row, properties=row.properties._replace(extra='{"note": "n"}'))
    stores.local.capture("000000", "update")
    stores.local.table["000000"] = replace(stores.local.table["000000"], version=2)
    stores.local.capture("000000", "update")
    await stores.push()
    lost = stores.time()
    stores.local.write("000000", "written since")
    stores.local.write("000009", "made since")
    await stores.push()
    stores.happened("alter", lost, lost)
    plan = await stores.plan()
    assert (plan.will_restore, plan.will_overwrite) == (1, 1)
    assert any("in columns that an incident took" in warning for warning in plan.warnings)
    assert (await stores.run(plan)).complete
    now = stores.local.table["000000"]
    assert (now.properties.content, now.properties.extra, now.status) == ("written since", '{"note": "n"}', "pending")
    assert (await stores.plan()).will_restore == 0


async def test_another_stores_incident_is_not_undone_here() -> None:
    """It is named as that."""
    stores, _ = await two_stores()
    other = stores.happened("truncate", stores.time(), stores.time(), store="second")
    with pytest.raises(InputError, match="another local store's"):
        await stores.plan(RecoveryWish(Scope(), before_incident=other.id))


async def test_a_remote_that_goes_away_is_said_in_our_words() -> None:
    """Not as a group of errors."""
    stores = await world(3)
    plan = await stores.plan()
    stores.local.failure = Unavailable("away")
    with pytest.raises(Unavailable):
        await stores.run(plan)


async def test_references_come_back() -> None:
    """Those in scope, between memories that are here."""
    stores = await world(3)
    for pair in (("000000", "000001"), ("000001", "000002")):
        key = (*pair, "because")
        stores.remote.links[key] = {
            "source_id": pair[0], "target_id": pair[1], "context": "because", "created_at": START.isoformat(),
            "deleted": False,
        }  # fmt: skip
    stores.local.rows = {}
    report = await stores.recover(RecoveryWish(Scope(memory_ids=("000000", "000001"))))
    assert (report.complete, report.references_restored) == (True, 1)
    assert (await stores.recover()).references_restored == 1


async def test_progress_is_told() -> None:
    """While comparing and while restoring."""
    stores = await world(3)
    stores.local.rows = {}
    told: list[tuple[int, int | None]] = []

    async def note(done: int, total: int | None, _message: str) -> None:
        told.append((done, total))

    plan = await stores.plan(on_progress=note)
    await stores.recoverer.run(plan.plan_id, NOW, on_progress=note)
    assert told == [(3, None), (3, 3)]
