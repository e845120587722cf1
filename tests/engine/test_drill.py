"""Drills on in-memory stores: what counts as a failure, when one is carried out, and what is put on record."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import pytest

from dionysus_sync_mcp.domain.errors import Unavailable
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.engine import drill
from dionysus_sync_mcp.engine.drill import INCIDENT, LOOK_SECONDS, NO_RIGHT, Driller
from dionysus_sync_mcp.engine.ports.alerts import NewAlert
from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.engine.reports import DrillReport
from tests.engine.memory_drill import MemoryDrilling
from tests.engine.memory_local import START, MemoryLocal
from tests.engine.memory_remote import MemoryRemote
from tests.engine.memory_verify import MemoryVerifying
from tests.engine.test_push import drain

DAY = 24 * 3600.0


@dataclass
class Bench:
    """Both stores, some memories on both sides, and the use-case."""

    local: MemoryLocal = field(default_factory=MemoryLocal)
    remote: MemoryRemote = field(default_factory=MemoryRemote)
    alerts: list[NewAlert] = field(default_factory=list)
    incident: bool = False
    hours: float = 24

    def __post_init__(self) -> None:
        self.local.shape = "{}"
        self.comparison = MemoryVerifying(self.local)
        self.drilling = MemoryDrilling(self.local)
        self.driller = Driller(
            self.comparison,
            self.drilling,
            self.remote,
            self.local,
            incident_open=self._incident_open,
            alert=self._alert,
            hours=self.hours,
            pause=0,
        )

    async def _incident_open(self) -> bool:
        return self.incident

    async def _alert(self, alerts: list[NewAlert]) -> int:
        self.alerts += alerts
        return len(alerts)

    async def drill(self) -> DrillReport:
        """Once."""
        return await self.driller.drill_once(START)

    @property
    def results(self) -> list[str]:
        """Of the drills on record."""
        return [result for _, result, _, _ in self.drilling.recorded]


async def bench(memories: int = 5, **settings: float) -> Bench:
    """Stores that agree."""
    made = Bench(**settings)  # type: ignore[arg-type] # the hours are a number
    for number in range(memories):
        made.local.write(f"{number:06}", f"content {number}")
    await drain(made.local, made.remote)
    return made


@pytest.mark.promise("P6")
async def test_everything_comes_back_over_several_pages_and_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a deleted memory, which does not come back, is no difference."""
    monkeypatch.setattr(drill, "PAGE", 2)
    stores = await bench(7)
    stores.local.delete("000003")
    await drain(stores.local, stores.remote)
    report = await stores.drill()
    assert (report.result, report.recovered, report.verified) == ("passed", 6, 6)
    assert (stores.drilling.standing, stores.drilling.largest_page) == (0, 2)
    ((_, result, kept, event),) = stores.drilling.recorded
    assert (result, kept["verified"]) == ("passed", 6)
    assert event is not None
    assert (event.direction, event.result, event.record_count) == ("remote_to_local", "success", 6)
    assert stores.alerts == []


@pytest.mark.promise("P6")
async def test_what_does_not_come_back_as_it_is_here_fails_the_drill() -> None:
    """Each is counted once, named with its reason, on record, audited, and alerted under the drill's id."""
    stores = await bench()
    nodes = stores.remote.nodes
    del nodes["000001"]
    nodes["000002"].memory = nodes["000002"].memory._replace(content="edited")
    stores.drilling.refusing = {"000003"}
    report = await stores.drill()
    assert (report.result, report.verified, report.missing, report.different) == ("failed", 2, 2, 1)
    assert {e.memory_id: e.reason for e in report.examples} == {
        "000001": "nothing came back",
        "000002": "another content came back",
        "000003": "the table refuses it",
    }
    ((drill_id, result, _, event),) = stores.drilling.recorded
    assert (result, event.result if event else None) == ("failed", "failed")
    assert [(a.key, a.kind) for a in stores.alerts] == [(f"drill_failed:{drill_id}", "drill_failed")]


async def test_a_report_says_nothing_that_could_be_run() -> None:
    """The database's own words, which hold what somebody has put into a default or a constraint."""
    stores = await bench()
    stores.drilling.refusing = {"000001"}
    stores.drilling.refusal = 'violates "x; DROP TABLE memories; --"'
    stores.drilling.faults = ["column note: DELETE FROM memories"]
    report = await stores.drill()
    said = " ".join([*report.warnings, *(example.reason or "" for example in report.examples)])
    assert "D·ELETE F·ROM memories" in said
    assert "D·ROP T·ABLE memories" in said
    assert not {"DROP", "DELETE"} & set(said.split())


async def test_a_change_that_waits_or_is_pushed_meanwhile_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one in the queue, nor one that was pushed between the look at the remote store and the look here."""
    stores = await bench()
    stores.local.write("000000", "waits")
    memories = stores.remote.memories

    async def then_changed(scope: Scope, after: str, limit: int) -> list[RemoteMemory]:
        page = await memories(scope, after, limit)
        if not after:
            waiting = dict(stores.local.entries)
            stores.local.entries.clear()
            stores.local.write("000001", "newer")
            await drain(stores.local, stores.remote)
            stores.local.entries |= waiting
        return page

    monkeypatch.setattr(stores.remote, "memories", then_changed)
    report = await stores.drill()
    assert (report.result, report.verified, report.left_out) == ("passed", 4, 1), report


async def test_what_changes_between_both_looks_does_not_count() -> None:
    """Only the same difference twice does."""
    stores = await bench()
    del stores.remote.nodes["000001"]
    looks = 0

    async def meanwhile() -> None:
        nonlocal looks
        looks += 1
        stores.local.captured = False
        stores.local.write("000001", f"changed {looks}")

    stores.comparison.meanwhile = meanwhile
    report = await stores.drill()
    assert (looks, report.result, report.missing, report.left_out) == (2, "passed", 0, 1)


async def test_beyond_what_is_held_differences_count_as_they_were_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, whatever the remote store has lost."""
    monkeypatch.setattr(drill, "MOST_DIFFERENCES", 2)
    stores = await bench()
    stores.remote.nodes.clear()
    report = await stores.drill()
    assert (report.result, report.missing, len(report.examples)) == ("failed", 5, 2)


@pytest.mark.parametrize("failure", [Unavailable("away"), None])
async def test_a_drill_that_is_cut_off_leaves_no_scratch_and_no_result(
    monkeypatch: pytest.MonkeyPatch, failure: Unavailable | None
) -> None:
    """A store that goes away, or a cancellation."""
    stores = await bench()
    with anyio.CancelScope() as scope:

        async def by_id(_ids: Sequence[str]) -> list[RemoteMemory]:
            assert stores.drilling.standing == 1
            if failure:
                raise failure
            scope.cancel()
            await anyio.lowlevel.checkpoint()
            return []

        monkeypatch.setattr(stores.remote, "by_id", by_id)
        del stores.remote.nodes["000001"]
        if failure:
            with pytest.raises(Unavailable):
                await stores.drill()
        else:
            await stores.drill()
    assert (scope.cancelled_caught, stores.drilling.standing, stores.results) == (failure is None, 0, [])
    assert not stores.drilling.drilling


async def test_why_a_drill_could_not_be_carried_out_is_on_record() -> None:
    """With what to do; nothing is made and nobody is alerted."""
    stores = await bench()
    stores.incident = True
    assert INCIDENT in (await stores.drill()).warnings[0]
    stores.incident, stores.drilling.right = False, False
    assert NO_RIGHT in (await stores.drill()).warnings[0]
    stores.drilling.right, stores.local.rows = True, {}
    assert "no memory here" in (await stores.drill()).warnings[0]
    stores.local.rows = None
    assert "missing" in (await stores.drill()).warnings[0]
    assert stores.results == ["skipped"] * 4
    assert [event for *_, event in stores.drilling.recorded] == [None] * 4
    assert stores.alerts == []


async def test_a_drill_beside_another_one_is_not_carried_out() -> None:
    """Nor does it count as one."""
    stores = await bench()
    async with stores.drilling.alone():
        assert (await stores.drill()).result == "skipped"
    assert (stores.results, stores.drilling.definitions) == ([], [])


async def test_what_killed_drills_left_is_removed_first() -> None:
    """By whichever drill comes next."""
    stores = await bench()
    stores.drilling.left_behind = 2
    await stores.drill()
    assert stores.drilling.left_behind == 0


async def test_the_background_drills_when_it_is_time_and_nothing_is_in_the_way() -> None:
    """Not at once, not before its time, not while an incident is open, and then once."""
    stores = await bench()
    assert (await stores.driller.drill_if_due(START), stores.results) == (LOOK_SECONDS, [])
    stores.drilling.ages_ = DAY - 1, DAY - 1
    await stores.driller.drill_if_due(START)
    stores.drilling.ages_, stores.incident = (DAY, DAY), True
    await stores.driller.drill_if_due(START)
    assert stores.results == []
    stores.incident = False
    await stores.driller.drill_if_due(START)
    assert stores.results == ["passed"]


async def test_a_long_queue_makes_the_background_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing could be said of what it is about."""
    monkeypatch.setattr(drill, "MOST_WAITING", 1)
    stores = await bench()
    for number in range(2):
        stores.local.write(f"{number:06}", "waits")
    for _ in range(2):
        await stores.driller.drill_if_due(START)
    assert stores.results == []
    await drain(stores.local, stores.remote)
    await stores.driller.drill_if_due(START)
    assert stores.results == ["passed"]


async def test_no_hours_are_no_drills_by_itself() -> None:
    """A person can still call for one; and what that leaves if it is killed is removed all the same."""
    stores = await bench(hours=0)
    stores.drilling.left_behind = 1
    for _ in range(2):
        await stores.driller.drill_if_due(START)
    assert (stores.results, stores.drilling.left_behind) == ([], 0)
    assert (await stores.drill()).result == "passed"


async def test_a_definition_that_nobody_has_noted_is_said_to_be_missing() -> None:
    """The drill goes by the table's own; a recovery of a lost table could not."""
    stores = await bench()
    assert any("definition" in warning for warning in (await stores.drill()).warnings)
    await stores.remote.note_definition(stores.local.identity_, '{"columns": []}')
    stores.local.shape = '{"columns": []}'
    assert (await stores.drill()).warnings == []
