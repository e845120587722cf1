"""The use-case verify on in-memory stores: what counts as drift, what is mended by whom, and what people are told."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from uuid import UUID

import pytest

from dionysus_sync_mcp.domain.drift import DriftClass, Side
from dionysus_sync_mcp.domain.errors import Refused, Unavailable
from dionysus_sync_mcp.domain.memory import MemoryChange
from dionysus_sync_mcp.engine import compare, verify
from dionysus_sync_mcp.engine.compare import Comparer
from dionysus_sync_mcp.engine.mend import NO_HASH, Mender
from dionysus_sync_mcp.engine.ports.alerts import NewAlert
from dionysus_sync_mcp.engine.ports.verify import Due, Seen
from dionysus_sync_mcp.engine.push import Pusher
from dionysus_sync_mcp.engine.status import StatusReader
from dionysus_sync_mcp.engine.verify import FULL_EVERY, HELD_SECONDS, LOOK_SECONDS, Verifier
from tests.engine.memory_local import START, MemoryLocal
from tests.engine.memory_remote import MemoryRemote
from tests.engine.memory_verify import MemoryComparing, MemoryVerifying

SECONDS = 300.0


@dataclass
class Bench:
    """Both stores and the use-cases on them."""

    local: MemoryLocal = field(default_factory=MemoryLocal)
    remote: MemoryRemote = field(default_factory=MemoryRemote)
    alerts: list[NewAlert] = field(default_factory=list)
    incident_open: bool = False
    incident: bool = False

    def __post_init__(self) -> None:
        self.here = MemoryVerifying(self.local)
        self.there = MemoryComparing(self.remote)
        self.pusher = Pusher(self.local, self.remote, self.remote)
        mender = Mender(self.here, self.there, self.remote, self.remote, self.local)
        comparer = Comparer(self.here, self.there, pause=0)
        self.verifier = Verifier(
            comparer,
            mender,
            self.here,
            self.here,
            self.remote,
            self.local,
            standing=StatusReader((), self.local, self.remote, self.remote, "0").standing,
            alert=self._alert,
            altered=self._altered,
            incident_open=self._incident_open,
            seconds=SECONDS,
        )

    async def _incident_open(self) -> bool:
        return self.incident or self.incident_open

    async def _alert(self, alerts: list[NewAlert]) -> int:
        self.alerts += alerts
        return len(alerts)

    async def _altered(self) -> bool:
        return self.incident_open

    async def push(self) -> None:
        """Until nothing is left."""
        while (step := await self.pusher.push_once()).pushed or step.parked:
            pass

    def renumber(self, version: int, *numbers: int) -> None:
        """Give memories of the remote store this version."""
        for number in numbers:
            node = self.remote.nodes[uid(number)]
            self.remote.nodes[uid(number)] = replace(node, memory=node.memory._replace(version=version))

    def only_there(self, *numbers: int, origin: str = "store", project: str = "p") -> None:
        """Memories like the first one, which are in the remote store only."""
        node = self.remote.nodes[uid(1)]
        for number in numbers:
            memory = node.memory._replace(id=uid(number), source_project=project)
            self.remote.nodes[uid(number)] = replace(node, memory=memory, origin=origin)

    def go_back(self) -> None:
        """The remote store remembers pushes that this database does not."""
        there = self.remote.stores["store"]
        last = there.last._replace(generation=there.last.generation + 5, lineage="ahead")
        self.remote.stores["store"] = there._replace(last=last)

    def bypass(self, number: int) -> None:
        """A change that no trigger sees."""
        row = self.local.table[uid(number)]
        self.local.table[uid(number)] = replace(row, properties=row.properties._replace(content="bypassed"))

    async def mended(self, counts: dict[DriftClass, int]) -> None:
        """Exactly this is found and mended, and nothing is left."""
        assert (await self.verifier.verify_once("deep")).counts == counts
        report = await self.verifier.verify_once("deep", repair=True, dry_run=False)
        assert (report.repaired, report.result) == (counts, "clean")
        await self.push()
        assert (await self.verifier.verify_once("deep")).counts == {}


def uid(number: int) -> str:
    """An id."""
    return str(UUID(int=number))


@pytest.fixture
async def bench() -> Bench:
    """Ten memories in both stores."""
    made = Bench()
    for number in range(1, 11):
        made.local.write(uid(number), f"text {number}")
    await made.push()
    made.local.compare_due = False
    return made


@pytest.mark.parametrize("kind", ["quick", "full", "deep"])
async def test_equal_stores_are_clean(bench: Bench, kind: compare.Kind) -> None:
    """Every memory was counted, on both sides; that is on record."""
    report = await bench.verifier.verify_once(kind)
    assert (report.result, report.local_memories, report.remote_memories, report.counts) == ("clean", 10, 10, {})
    assert [(k, result) for k, result, _, _ in bench.here.recorded] == [(kind, "clean")]


async def test_a_quick_look_passes_over_the_ids_only_where_the_sums_differ(bench: Bench) -> None:
    """Sums are asked for first."""
    await bench.verifier.verify_once("quick")
    assert bench.there.calls == ["tallies"]
    del bench.remote.nodes[uid(3)]
    assert (await bench.verifier.verify_once("quick")).counts == {"missing_there": 1}
    assert bench.there.calls.count("standing") >= 3


async def test_a_quick_look_stays_quick_beside_another_store(bench: Bench) -> None:
    """Projects that are not here are that one's business, whoever wrote last what is here."""
    bench.only_there(20, 21, origin="another store", project="theirs")
    bench.remote.nodes[uid(1)] = replace(bench.remote.nodes[uid(1)], origin="another store")
    assert (await bench.verifier.verify_once("quick")).result == "clean"
    assert bench.there.calls == ["tallies"]


@pytest.mark.promise("P1")
async def test_a_quick_look_passes_over_the_ids_where_a_project_is_shared(bench: Bench) -> None:
    """What this store has lost and what another one has taken over would make up for each other."""
    bench.remote.nodes[uid(1)] = replace(bench.remote.nodes[uid(1)], origin="another store")
    bench.only_there(22)
    assert (await bench.verifier.verify_once("quick")).counts == {"missing_here": 1}


@pytest.mark.promise("P1")
async def test_a_quick_look_sees_that_a_whole_project_is_gone_from_here(bench: Bench) -> None:
    """Unlike one that only another store has written in."""
    bench.only_there(23, project="gone from here")
    assert (await bench.verifier.verify_once("quick")).counts == {"missing_here": 1}


@pytest.mark.promise("P1")
async def test_what_the_remote_lacks_is_sent(bench: Bench) -> None:
    """Missing, older and dead memories come back to what is here."""
    del bench.remote.nodes[uid(1)]
    bench.local.write(uid(2), "newer")
    old = bench.remote.nodes[uid(2)]
    await bench.push()
    bench.remote.nodes[uid(2)] = old
    dead = bench.remote.nodes[uid(3)]
    bench.remote.nodes[uid(3)] = replace(dead, memory=dead.memory._replace(deleted_at=START.isoformat(), version=7))
    await bench.mended({"missing_there": 1, "older_there": 1, "deleted_there": 1})
    assert bench.remote.nodes[uid(2)].memory.content == "newer"
    assert bench.remote.nodes[uid(3)].memory.deleted_at is None


@pytest.mark.promise("P7")
async def test_a_deleted_memory_that_lives_there_is_deleted_again_and_a_lost_one_restored(bench: Bench) -> None:
    """What tells them apart is the delete on record."""
    live = bench.remote.nodes[uid(1)]
    bench.local.delete(uid(1))
    await bench.push()
    assert bench.local.deletions
    bench.remote.nodes[uid(1)] = live
    del bench.local.table[uid(2)]
    await bench.mended({"deleted_here": 1, "missing_here": 1})
    assert bench.remote.nodes[uid(1)].memory.deleted_at
    assert bench.local.table[uid(2)].properties.content == "text 2"


@pytest.mark.promise("P4")
async def test_what_is_overwritten_is_kept_in_the_history_first(bench: Bench) -> None:
    """On either side."""
    row = bench.local.table[uid(1)]
    bench.local.table[uid(1)] = replace(row, properties=row.properties._replace(content="bypassed"))
    node = bench.remote.nodes[uid(2)]
    newer = node.memory._replace(version=5, content_hash=bench.local.table[uid(2)].content_hash)
    bench.remote.nodes[uid(2)] = replace(node, memory=newer)
    await bench.mended({"different": 1, "older_here": 1})
    assert bench.there.kept == [f"{uid(1)} as found", f"{uid(2)} text 2 of store"]
    assert bench.remote.nodes[uid(1)].memory.content == "bypassed"


async def test_contents_duplicates_and_history_are_looked_at(bench: Bench) -> None:
    """A content that is not what its hash says, two nodes of one memory, a version that is not in the history."""
    node = bench.remote.nodes[uid(1)]
    bench.remote.nodes[uid(1)] = replace(node, memory=node.memory._replace(content="garbled"))
    bench.there.duplicates = [uid(2)]
    bench.there.unversioned = {uid(3)}
    await bench.mended({"corrupt_there": 1, "unversioned_there": 1, "duplicate_there": 1})
    assert bench.remote.nodes[uid(1)].memory.content == "text 1"


@pytest.mark.parametrize("side", ["here", "there"])
async def test_a_difference_that_moves_between_two_looks_is_none(bench: Bench, side: str) -> None:
    """Somebody writes and pushes all the time."""
    del bench.remote.nodes[uid(1)]
    looks = 0

    async def write() -> None:
        nonlocal looks
        looks += 1
        if side == "here":
            bench.local.write(uid(1), f"change {looks}")
            bench.local.entries.clear()
        else:
            bench.remote.nodes[uid(1)] = replace(bench.remote.nodes[uid(2)], origin=f"store {looks}")

    bench.here.meanwhile = write
    assert (await bench.verifier.verify_once("full")).counts == {}
    assert looks == 2


async def test_a_row_that_changed_before_it_was_mended_is_left_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The repair compares once more."""
    del bench.remote.nodes[uid(1)]
    send = bench.here.send

    async def change_first(seen: list[Seen]) -> int:
        bench.local.write(uid(1), "changed")
        return await send(seen)

    monkeypatch.setattr(bench.here, "send", change_first)
    report = await bench.verifier.verify_once("full", repair=True, dry_run=False)
    assert (report.counts, report.repaired, report.result) == ({"missing_there": 1}, {"missing_there": 0}, "drift")


async def test_one_memory_that_is_refused_does_not_keep_others_from_being_mended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is halved until it stands alone."""
    for number in range(1, 6):
        del bench.remote.nodes[uid(number)]
    send = bench.here.send

    async def refuse_one(seen: list[Seen]) -> int:
        if any(one.memory_id == uid(2) for one in seen):
            raise Refused("no")
        return await send(seen)

    monkeypatch.setattr(bench.here, "send", refuse_one)
    report = await bench.verifier.verify_once("full", repair=True, dry_run=False)
    assert report.repaired == {"missing_there": 4}


async def test_no_more_differences_than_fit_are_held(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is counted and said (P10)."""
    monkeypatch.setattr(compare, "MOST_DIFFERENCES", 4)
    bench.remote.nodes.clear()
    report = await bench.verifier.verify_once("full")
    assert report.counts == {"missing_there": 4}
    assert any(warning.startswith("6 more differ") for warning in report.warnings)


@pytest.mark.promise("P8")
async def test_a_repair_is_audited_once_and_a_dry_run_not(bench: Bench) -> None:
    """One row for a round, which says how many of which class."""
    del bench.remote.nodes[uid(1)]
    del bench.local.table[uid(2)]
    await bench.verifier.verify_once("full", repair=True)
    await bench.verifier.verify_once("full", repair=True, dry_run=False)
    events = [event for _, _, _, event in bench.here.recorded]
    assert events[0] is None
    assert events[1] is not None
    assert events[1].error_message in (
        "repair: 1 missing_there, 1 missing_here",
        "repair: 1 missing_here, 1 missing_there",
    )


@pytest.mark.promise("P7")
async def test_older_rows_of_a_database_that_went_back_wait_for_a_person(bench: Bench) -> None:
    """Nothing is pulled; with a side preferred, the store goes on under a new epoch."""
    bench.renumber(4, 1, 2, 3)
    bench.go_back()
    report = await bench.verifier.verify_once("full", repair=True, dry_run=False)
    assert (report.counts, report.repaired) == ({"older_here": 3}, {})
    assert "--prefer" in report.next_step
    assert any("gone back in time" in warning for warning in report.warnings)
    some = await bench.verifier.verify_once("full", repair=True, dry_run=False, prefer="local", limit=2)
    assert (some.repaired, bench.here.epochs) == ({"older_here": 2}, 0)
    rest = await bench.verifier.verify_once("full", repair=True, dry_run=False, prefer="local")
    assert (rest.result, bench.here.epochs) == ("clean", 1)
    await bench.push()
    assert [bench.remote.nodes[uid(n)].memory.version for n in (1, 2, 3)] == [5, 5, 5]


async def test_older_rows_alone_are_no_database_that_went_back(bench: Bench) -> None:
    """Another store has pushed newer versions of memories that both have: a plain repair takes them over."""
    bench.renumber(4, 1, 2, 3)
    for number in (1, 2, 3):
        bench.remote.nodes[uid(number)] = replace(bench.remote.nodes[uid(number)], origin="another store")
    assert (await bench.verifier.verify_once("full")).warnings == []
    report = await bench.verifier.verify_once("full", repair=True, dry_run=False, limit=2)
    assert (report.counts, report.repaired) == ({"older_here": 3}, {"older_here": 2})
    assert (await bench.verifier.verify_once("full", repair=True, dry_run=False)).result == "clean"


@pytest.mark.promise("P4")
async def test_with_this_side_preferred_what_only_the_remote_has_becomes_tombstones(bench: Bench) -> None:
    """A dry run says so in plain words; what another store wrote stays."""
    bench.only_there(20, 21)
    bench.only_there(22, origin="another store")
    bench.go_back()
    plan = await bench.verifier.verify_once("full", repair=True, prefer="local")
    assert any("2 memories that only the remote store has become tombstones" in said for said in plan.warnings)
    assert "--include-deleted" in plan.actions["missing_here"]
    done = await bench.verifier.verify_once("full", repair=True, prefer="local", dry_run=False)
    assert (done.counts, done.repaired, done.result) == ({"missing_here": 2}, {"missing_here": 2}, "clean")
    await bench.push()
    held = {number: bench.remote.nodes[uid(number)].memory for number in (20, 21, 22)}
    assert [bool(memory.deleted_at) for memory in held.values()] == [True, True, False]
    assert [memory.content for memory in held.values()] == ["text 1"] * 3
    assert (await bench.verifier.verify_once("full")).counts == {}
    event = bench.here.recorded[1][3]
    assert event is not None
    assert event.direction == "local_to_remote"


@pytest.mark.promise("P7")
@pytest.mark.parametrize("prefer", ["local", "remote"])
async def test_a_database_that_went_back_is_decided_however_much_differs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, prefer: Side
) -> None:
    """More than is held at once takes some rounds; the last one begins the epoch."""
    monkeypatch.setattr(compare, "MOST_DIFFERENCES", 4)
    bench.only_there(*range(20, 26))
    bench.renumber(4, 1)
    bench.go_back()
    epochs = []
    for _ in range(2):
        await bench.verifier.verify_once("full", repair=True, prefer=prefer, dry_run=False)
        epochs.append(bench.here.epochs)
    assert epochs == [0, 1]
    await bench.push()
    assert (await bench.verifier.verify_once("full")).counts == {}


@pytest.mark.promise("P7")
async def test_one_memory_that_is_refused_does_not_keep_the_store_from_going_on(bench: Bench) -> None:
    """Everything that can be is mended, the epoch begins, and the refused one is reported with its reason."""
    bench.only_there(20, 21)
    bench.local.refusing = {uid(20)}
    bench.go_back()
    report = await bench.verifier.verify_once("full", repair=True, prefer="remote", dry_run=False)
    assert (report.repaired, report.result, bench.here.epochs) == ({"missing_here": 1}, "drift", 1)
    assert [f"{uid(20)}: the table refuses it" in warning for warning in report.warnings].count(True) == 1
    assert "refused" in report.next_step
    bench.local.write(uid(1), "goes on")
    await bench.push()
    assert bench.remote.nodes[uid(1)].memory.content == "goes on"


async def test_a_limit_does_not_stop_at_what_is_refused(bench: Bench) -> None:
    """Further memories are taken until so many were mended."""
    bench.only_there(20, 21, 22)
    bench.local.refusing = {uid(20)}
    report = await bench.verifier.verify_once("full", repair=True, limit=2, dry_run=False)
    assert report.repaired == {"missing_here": 2}
    assert bench.local.table.keys() >= {uid(21), uid(22)}


async def test_a_memory_without_a_hash_is_left_and_reported(bench: Bench) -> None:
    """Nobody could tell what was pulled."""
    node = bench.remote.nodes[uid(1)]
    bench.remote.nodes[uid(1)] = replace(node, memory=node.memory._replace(version=4, content_hash=""))
    report = await bench.verifier.verify_once("full", repair=True, dry_run=False)
    assert (report.repaired, report.result) == ({"older_here": 0}, "drift")
    assert any(NO_HASH in warning for warning in report.warnings)
    assert bench.local.table[uid(1)].version == 1


@pytest.mark.promise("P1")
async def test_many_differences_of_one_class_do_not_hide_a_change_that_is_to_be_sent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gap in the capture: memories that vanished, for people to decide, and before them one that was changed."""
    monkeypatch.setattr(compare, "MOST_DIFFERENCES", 4)
    bench.only_there(*(number + 100 for number in range(6)))
    bench.local.write(uid(200), "last")
    await bench.push()
    bench.bypass(200)
    bench.here.due_ = Due(START, True)
    await bench.verifier.check_once()
    await bench.push()
    assert bench.remote.nodes[uid(200)].memory.content == "bypassed"
    assert bench.here.due_ is None
    assert [alert.details["class"] for alert in bench.alerts] == ["missing_here"]


@pytest.mark.promise("P1")
async def test_a_gap_stays_due_while_more_is_to_be_sent_than_is_held(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deletes that the remote store has confirmed and then lost, behind memories that vanished."""
    monkeypatch.setattr(compare, "MOST_DIFFERENCES", 4)
    bench.only_there(*range(20, 31))
    bench.local.deletions = {uid(number): 9 for number in range(25, 31)}
    bench.here.due_ = Due(START, True)
    await bench.verifier.check_once()
    assert bench.here.due_ is not None
    await bench.push()
    await bench.verifier.check_once()
    await bench.push()
    assert bench.here.due_ is None
    assert all(bench.remote.nodes[uid(number)].memory.deleted_at for number in range(25, 31))


@pytest.mark.promise("P1")
async def test_a_gap_stays_due_while_a_row_is_held_by_somebody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told of it: the next look sends it."""
    bench.bypass(1)
    bench.bypass(2)
    bench.here.due_ = Due(START, True)
    send = bench.here.send_above

    async def skip_locked(seen: list[Seen]) -> int:
        return await send([one for one in seen if one.memory_id != uid(2)])

    with monkeypatch.context() as held:
        held.setattr(bench.here, "send_above", skip_locked)
        await bench.verifier.check_once()
    due = bench.here.due_
    assert due is not None
    await bench.push()
    await bench.verifier.check_once()
    await bench.push()
    assert await bench.here.due() is None
    assert not bench.alerts
    assert bench.remote.nodes[uid(2)].memory.content == "bypassed"


async def test_people_are_told_of_the_remainder_only(bench: Bench) -> None:
    """Of two contents that differ after a gap the one here is sent; the later one there is for people."""
    bench.bypass(1)
    bench.bypass(2)
    later = bench.remote.nodes[uid(2)]
    memory = later.memory._replace(updated_at="9000-01-01T00:00:00+00:00")
    bench.remote.nodes[uid(2)] = replace(later, memory=memory)
    bench.here.due_ = Due(START, True)
    await bench.verifier.check_once()
    assert [alert.details["memory_ids"] for alert in bench.alerts] == [[uid(2)]]
    assert bench.here.due_ is None


async def test_many_wrong_contents_are_sorted_in_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one after the other through all that differs."""
    for number in range(1, 9):
        node = bench.remote.nodes[uid(number)]
        bench.remote.nodes[uid(number)] = replace(node, memory=node.memory._replace(content="garbled"))
    passes = 0
    take_out = compare.Comparison.take_out

    def counted(found: compare.Comparison, memory_ids: Iterable[str], classes: Iterable[DriftClass]) -> None:
        nonlocal passes
        passes += 1
        take_out(found, memory_ids, classes)

    monkeypatch.setattr(compare.Comparison, "take_out", counted)
    assert (await bench.verifier.verify_once("deep")).counts == {"corrupt_there": 8}
    assert passes == 1


async def test_what_was_left_out_is_said_where_the_rest_agrees(bench: Bench) -> None:
    """Everything waits: nothing was compared really."""
    for number in range(1, 11):
        bench.local.write(uid(number), "waits")
    report = await bench.verifier.verify_once("full")
    assert (report.result, report.left_out) == ("clean", 10)
    assert "10 memories wait" in report.next_step


@pytest.mark.promise("P1")
@pytest.mark.promise("P4")
async def test_a_row_that_is_not_in_the_history_is_not_taken_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory went away meanwhile: the row stays, and the change of it that waits."""
    node = bench.remote.nodes[uid(1)]
    bench.remote.nodes[uid(1)] = replace(node, memory=node.memory._replace(version=4))
    bench.local.write(uid(1), "typed")
    keep = bench.there.keep_states

    async def gone(changes: list[MemoryChange], store: str) -> frozenset[str]:
        found = bench.remote.nodes.pop(uid(1))
        kept = await keep(changes, store)
        bench.remote.nodes[uid(1)] = found
        return kept

    monkeypatch.setattr(bench.there, "keep_states", gone)
    report = await bench.verifier.verify_once("full", repair=True, prefer="remote", dry_run=False)
    assert report.repaired == {"older_here": 0}
    assert bench.local.table[uid(1)].properties.content == "typed"
    assert [entry.memory_id for entry in bench.local.entries.values()] == [uid(1)]


@pytest.mark.parametrize(
    ("ages", "kind"),
    [
        ((None, None), "full"),
        ((SECONDS - 1, None), None),
        ((SECONDS, SECONDS), "quick"),
        ((SECONDS, FULL_EVERY * SECONDS), "full"),
        ((SECONDS, None), "full"),
    ],
)
async def test_sweeps_are_made_when_it_is_time(
    bench: Bench, ages: tuple[float | None, float | None], kind: str | None
) -> None:
    """Mostly quick ones, whichever process made the last."""
    bench.here.ages_ = ages
    assert await bench.verifier.check_once() == LOOK_SECONDS
    assert [k for k, *_ in bench.here.recorded] == ([kind] if kind else [])


async def test_the_same_memories_that_differ_once_more_are_another_event(bench: Bench) -> None:
    """After a comparison that found nothing; a quick one that did not see it is none."""
    row = bench.local.table.pop(uid(2))
    await bench.verifier.check_once()
    await bench.verifier.check_once()
    bench.here.recorded.append(("quick", "clean", {}, None))
    await bench.verifier.check_once()
    assert len({alert.key for alert in bench.alerts}) == 1
    bench.local.table[uid(2)] = row
    await bench.verifier.check_once()
    del bench.local.table[uid(2)]
    await bench.verifier.check_once()
    assert len({alert.key for alert in bench.alerts}) == 2


async def test_a_sweep_tells_people_of_what_it_does_not_mend(bench: Bench) -> None:
    """The same drift has the same key, so it is told once."""
    del bench.remote.nodes[uid(1)]
    del bench.local.table[uid(2)]
    await bench.verifier.check_once()
    await bench.verifier.check_once()
    assert uid(2) not in bench.local.table
    await bench.push()
    assert uid(1) in bench.remote.nodes
    assert {alert.key.split(":")[1] for alert in bench.alerts} == {"missing_here"}
    assert len({alert.key for alert in bench.alerts}) == 1


async def test_what_differs_while_an_incident_is_open_is_told_of_once_it_is_closed(bench: Bench) -> None:
    """The incident has its own alert, and a recovery brings back what is missing."""
    del bench.local.table[uid(2)]
    bench.incident = True
    await bench.verifier.check_once()
    assert bench.alerts == []
    bench.incident = False
    await bench.verifier.check_once()
    assert [alert.key.split(":")[1] for alert in bench.alerts] == ["missing_here"]


@pytest.mark.promise("P7")
async def test_what_an_incident_changed_unseen_is_not_sent_before_somebody_decides(bench: Bench) -> None:
    """A column that was cut changes rows without a trigger: what is here counts once the incident is closed."""
    row = bench.local.table[uid(1)]
    bench.local.table[uid(1)] = replace(row, properties=row.properties._replace(content="cut"))
    bench.here.due_ = Due(START, True)
    bench.incident_open = True
    assert await bench.verifier.check_once() == HELD_SECONDS
    await bench.push()
    assert (bench.remote.nodes[uid(1)].memory.content == "cut", bench.here.due_ is None) == (False, False)
    bench.incident_open = False
    await bench.verifier.check_once()
    await bench.push()
    assert (bench.remote.nodes[uid(1)].memory.content == "cut", bench.here.due_ is None) == (True, True)


@pytest.mark.parametrize("gap", [True, False])
async def test_a_content_that_differs_is_sent_only_after_a_gap(bench: Bench, gap: bool) -> None:
    """Elsewhere it may be the remote that is right."""
    row = bench.local.table[uid(1)]
    bench.local.table[uid(1)] = replace(row, properties=row.properties._replace(content="bypassed"))
    bench.here.due_ = Due(START, gap)
    await bench.verifier.check_once()
    await bench.push()
    assert (bench.remote.nodes[uid(1)].memory.content == "bypassed") == gap
    assert bool(bench.alerts) != gap
    assert bench.here.due_ is None


async def test_a_later_content_of_the_remote_is_not_overwritten_unasked(bench: Bench) -> None:
    """People are told of it."""
    node = bench.remote.nodes[uid(1)]
    later = node.memory._replace(content="theirs", content_hash="f00d", updated_at="9000-01-01T00:00:00+00:00")
    bench.remote.nodes[uid(1)] = replace(node, memory=later)
    bench.here.due_ = Due(START, True)
    await bench.verifier.check_once()
    await bench.push()
    assert bench.remote.nodes[uid(1)].memory.content == "theirs"
    assert bench.local.table[uid(1)].properties.content == "text 1"
    assert [alert.details["class"] for alert in bench.alerts] == ["different"]


async def test_a_comparison_stays_due_while_earlier_changes_wait(bench: Bench) -> None:
    """A change that went by the capture may follow one that was captured."""
    bench.here.due_ = Due(START, True)
    bench.here.oldest_at = START - timedelta(seconds=1)
    await bench.verifier.check_once()
    assert bench.here.due_ is not None
    bench.here.oldest_at = START + timedelta(seconds=1)
    await bench.verifier.check_once()
    assert bench.here.due_ is None


async def test_a_table_that_is_gone_is_not_compared(bench: Bench) -> None:
    """Nor is anything recorded or sent by itself."""
    bench.local.rows = None
    assert await bench.verifier.check_once() == LOOK_SECONDS
    report = await bench.verifier.verify_once("full", repair=True, dry_run=False)
    assert (report.result, report.repaired) == ("skipped", {})
    assert "missing" in report.warnings[0]


async def test_a_rebuild_queues_every_row_once(bench: Bench) -> None:
    """A row that has something queued is on its way anyway."""
    bench.local.write(uid(1), "on its way")
    for queued in (9, None, 0, None):
        assert await bench.verifier.rebuild_step() == queued
    await bench.push()
    assert (await bench.verifier.verify_once("deep")).result == "clean"


async def test_a_rebuild_that_was_broken_off_goes_on_where_it_stopped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was queued before is pushed meanwhile, and not queued again."""
    monkeypatch.setattr(verify, "REBUILD_PAGE", 6)
    assert await bench.verifier.rebuild_step() == 6
    await bench.push()

    async def away(_after: str, _limit: int) -> None:
        raise Unavailable("away")

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(bench.here, "send_all", away)
        with pytest.raises(Unavailable):
            await bench.verifier.rebuild_step()
    assert [await bench.verifier.rebuild_step() for _ in range(2)] == [4, None]


@pytest.mark.promise("P4")
async def test_what_somebody_made_older_by_hand_is_kept_before_the_row_is_sent_over_it(bench: Bench) -> None:
    """No push has written it, so no history has it."""
    node = bench.remote.nodes[uid(1)]
    bench.remote.nodes[uid(1)] = replace(node, memory=node.memory._replace(version=0, content_hash="by hand"))
    report = await bench.verifier.verify_once("full", repair=True, dry_run=False)
    assert (report.repaired, bench.there.kept) == ({"older_there": 1}, [f"{uid(1)} as found"])


async def test_a_missing_constraint_is_named_and_made_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only when a repair is wanted, or by the background loop; where it cannot be made, it is named still."""
    made = []

    async def prepare() -> None:
        made.append("prepared")
        if len(made) == 1:
            raise Refused("two nodes have one id")

    monkeypatch.setattr(bench.remote, "prepare", prepare)
    bench.there.lacking_ = ["memory_id_unique"]
    looked = await bench.verifier.verify_once("quick")
    assert (looked.result, made, "verify --repair" in looked.next_step) == ("drift", [], True)
    assert any("memory_id_unique" in warning for warning in looked.warnings)
    refused = await bench.verifier.verify_once("quick", repair=True, dry_run=False)
    assert (refused.result, any("lacks memory_id_unique" in said for said in refused.warnings)) == ("drift", True)
    bench.here.ages_ = (None, None)
    await bench.verifier.check_once()
    assert len(made) == 2
    assert bench.here.recorded[-1][1] == "clean"
