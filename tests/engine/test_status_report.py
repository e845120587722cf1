"""The status report on in-memory ports: it answers whatever is away, and says the one thing to do next."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import anyio
import pytest

from dionysus_sync_mcp.domain.destruction import Incident, Who
from dionysus_sync_mcp.domain.errors import DionysusError, Unavailable
from dionysus_sync_mcp.domain.lineage import Lineage, RemoteLineage
from dionysus_sync_mcp.engine.ports.recover import RemoteCounts
from dionysus_sync_mcp.engine.ports.shared import Health, StoreIdentity
from dionysus_sync_mcp.engine.ports.status import Activity, LastCheck, LocalState, PastAlert
from dionysus_sync_mcp.engine.reports import RemoteReport, WorkerReport
from dionysus_sync_mcp.engine.status import (
    DECIDE,
    PARKED,
    RECOVER,
    RECOVER_DELETED,
    REFILL,
    ROLLED_BACK,
    RUN_INIT,
    StatusReader,
    advise,
)
from tests.engine.memory_remote import MemoryRemote
from tests.engine.test_sync import Looked

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LOCAL = LocalState(
    table_present=True,
    capture_installed=True,
    initialised=True,
    memories=10,
    queued=0,
    parked=0,
    oldest_queued_at=None,
    last_success_at=NOW,
    open_conflicts=0,
    last_parked_error=None,
    identity=StoreIdentity("store", "epoch"),
)
REMOTE = RemoteReport(live=10, tombstones=1, versions=20, without_vector=0)
OWN = REMOTE.model_copy(update={"own_live": 10})
DELETED = RemoteReport(live=0, tombstones=10, versions=20, own_live=0, own_tombstones=10, without_vector=0)
UP = [Health("postgresql"), Health("neo4j"), Health("ollama")]
NOTHING = "Nothing to do: every change is in the remote store."


class Local:
    """A local store in the state that a test gives it."""

    def __init__(self, state: LocalState | Exception | None) -> None:
        self._state = state
        self.done = Activity()

    async def state(self) -> LocalState:
        """As given; never, where none is."""
        if self._state is None:
            await anyio.sleep_forever()
        if isinstance(self._state, Exception):
            raise self._state
        assert self._state is not None
        return self._state

    async def identity(self) -> StoreIdentity | None:
        """The state's."""
        return (await self.state()).identity

    async def has_entry(self, entry_id: str) -> bool:
        """One is."""
        return entry_id == "still queued"

    async def activity(self, since: datetime) -> Activity:
        """As a test gives it."""
        await self.state()
        assert since <= NOW - timedelta(hours=24)
        return self.done


class Remembering(MemoryRemote):
    """A remote store that remembers this of the local one's pushes."""

    def __init__(self, there: RemoteLineage) -> None:
        super().__init__()
        self._there = there
        self.looked = 0

    async def lineage(self, store: str) -> RemoteLineage | None:
        """As given."""
        assert store == "store"
        return self._there


def reader(local: Local, remote: MemoryRemote, *health: Health) -> StatusReader:
    """Of these."""
    return StatusReader([Looked(h) for h in health or UP], local, remote, remote, "1.2.3")


async def test_when_all_is_well_there_is_nothing_to_do() -> None:
    """Every part of the report is filled."""
    report = await reader(Local(replace(LOCAL, memories=0)), MemoryRemote()).read(NOW, 1, None, None)
    assert (report.warnings, report.next_step, report.exposure.unsynced, report.version) == ([], NOTHING, 0, "1.2.3")
    assert [s.service for s in report.services] == ["postgresql", "ollama", "neo4j"]
    assert report.local is not None
    assert report.remote is not None


async def test_exposure_counts_what_waits_and_what_is_parked() -> None:
    """With the age of the oldest; a clock that went back makes no negative age."""
    state = replace(LOCAL, queued=3, parked=2, oldest_queued_at=NOW - timedelta(seconds=90))
    report = await reader(Local(state), MemoryRemote()).read(NOW, 1, None, None)
    assert (report.exposure.unsynced, report.exposure.oldest_seconds) == (5, 90)
    report = await reader(Local(state), MemoryRemote()).read(NOW - timedelta(hours=1), 1, None, None)
    assert report.exposure.oldest_seconds == 0


@pytest.mark.promise("P9")
@pytest.mark.parametrize("failure", [Unavailable("away"), DionysusError("odd"), None])
async def test_it_answers_with_everything_away_or_hanging(failure: Exception | None) -> None:
    """In time, with what is known: nothing, and why."""

    class Away(MemoryRemote):
        async def counts(self) -> RemoteCounts:
            raise Unavailable("away")

    away = [Health("postgresql", error="no answer", hint="Start it."), Health("neo4j", error="no answer")]
    with anyio.fail_after(2):
        report = await reader(Local(failure), Away(), *away).read(NOW, 0.05, None, None)
    assert (report.local, report.remote, report.exposure.unsynced) == (None, None, None)
    assert report.next_step == "Start it."
    assert report.warnings


@pytest.mark.parametrize(
    ("local", "remote", "warning", "step"),
    [
        (replace(LOCAL, initialised=False), REMOTE, "not protected", RUN_INIT),
        (replace(LOCAL, table_present=False, memories=0), REMOTE, "is gone; the remote store holds 10", RECOVER),
        (replace(LOCAL, table_present=False, memories=0), None, "is gone", RECOVER),
        (replace(LOCAL, memories=0), REMOTE, "empty; the remote store holds 10", RECOVER),
        (replace(LOCAL, memories=1), OWN, "9 memories .* holds 1 memories, the remote store 10 that", RECOVER),
        (replace(LOCAL, memories=12), REMOTE, "2 memories .* in the remote store: .* holds 12 .* store 10", REFILL),
        (replace(LOCAL, memories=0), DELETED, "all 10 memories", RECOVER_DELETED),
        (replace(LOCAL, capture_installed=False), REMOTE, "not being captured", RUN_INIT),
        (replace(LOCAL, parked=2, last_parked_error="poison"), REMOTE, "2 changes are parked.*poison", PARKED),
        (replace(LOCAL, open_conflicts=1), REMOTE, "conflicts were decided", None),
    ],
)
def test_what_is_wrong_comes_with_what_to_do(
    local: LocalState, remote: RemoteReport | None, warning: str, step: str | None
) -> None:
    """One warning each, in words."""
    warnings, next_step = advise(UP, local, remote, None, {})
    assert len(warnings) == 1
    assert re.search(warning, warnings[0])
    assert step in (None, next_step)


def test_the_worst_comes_first() -> None:
    """A loss before an outage, an outage before trouble; what the push says of the outage is not said again."""
    local = replace(LOCAL, table_present=False, parked=1)
    health = [
        Health("neo4j", error="no answer", hint="Start it."),
        Health("ollama", error="no answer", hint="Or this."),
    ]
    worker = WorkerReport(state="waiting", error="it failed")
    warnings, step = advise(health, local, None, worker, {})
    assert [w.split()[0] for w in warnings] == ["The", "Neo4j", "Ollama", "1"]
    assert step == RECOVER
    assert advise(health[1:], LOCAL, REMOTE, worker, {})[0][-1] == "The last push failed: it failed"


def test_ollama_alone_asks_nobody_to_act_first() -> None:
    """Nothing is at risk while it is away."""
    warnings, step = advise([Health("ollama", error="no answer", hint="Start it.")], LOCAL, REMOTE, None, {})
    assert (len(warnings), step) == (1, NOTHING)


async def test_a_copy_that_has_pushed_is_recognised() -> None:
    """The remote store remembers pushes that this database knows nothing of; no other look is kept from its work."""
    here, there = StoreIdentity("store", "epoch", 5, "mine"), RemoteLineage(Lineage("epoch", 7, "other"))
    report = await reader(Local(replace(LOCAL, memories=0, identity=here)), Remembering(there)).read(NOW, 1, None, None)
    assert (report.warnings, report.next_step) == ([ROLLED_BACK], DECIDE)
    assert report.remote is not None


async def test_a_database_that_is_one_push_behind_is_recognised_by_its_queue() -> None:
    """A push that is not acknowledged yet leaves its entries in the queue; one that this database lacks does not."""
    here = StoreIdentity("store", "epoch", 5, "mine")
    local = Local(replace(LOCAL, memories=0, identity=here))
    for entry, standing in (("still queued", "resent"), ("of another database", "behind_here")):
        there = RemoteLineage(Lineage("epoch", 6, "other"), last_entry=entry)
        assert await reader(local, Remembering(there)).standing() == standing


async def test_a_push_that_is_repeated_between_the_looks_is_no_step_back() -> None:
    """The remote was seen after the attempt of which the answer was lost, this database after the repetition."""
    here = StoreIdentity("store", "epoch", 6, "repetition", repeated="first attempt")
    there = RemoteLineage(Lineage("epoch", 6, "first attempt"), last_entry="of another database")
    local = Local(replace(LOCAL, memories=0, identity=here))
    assert await reader(local, Remembering(there)).standing() == "behind_there"


async def test_pushes_under_way_are_no_step_back() -> None:
    """However many go through between the looks at the two sides: what is here is read after what is there."""

    class Pushing(Local):
        async def identity(self) -> StoreIdentity | None:
            remote.looked += 1
            generation = 5 if remote.looked == 1 else 50
            return StoreIdentity("store", "epoch", generation, f"push {generation}")

    for ahead in (0, 1):
        last = Lineage("epoch", 50 + ahead, f"push {50 + ahead}")
        remote = Remembering(RemoteLineage(last, last_entry="still queued" if ahead else ""))
        local = Pushing(replace(LOCAL, memories=0))
        assert await reader(local, remote).standing() in {"same", "resent"}
        assert remote.looked == 2


async def test_the_last_check_the_statistics_and_the_alerts_are_shown() -> None:
    """As they are on record; nothing is said of them while the local store is away."""
    local = Local(replace(LOCAL, memories=0))
    check = LastCheck(NOW, "full", "clean", 0)
    alert = PastAlert("drift", "They differed.", NOW, NOW, None)
    local.done = Activity(pushes=3, pushed=30, average_ms=12.345, slowest_ms=20, last_check=check, alerts=(alert,))
    report = await reader(local, MemoryRemote()).read(NOW, 1, None, None)
    assert report.last_check is not None
    assert (report.last_check.kind, report.last_check.result) == ("full", "clean")
    assert report.statistics is not None
    assert (report.statistics.pushed, report.statistics.average_ms) == (30, 12.3)
    assert report.statistics.since == NOW - timedelta(hours=24)
    assert [a.summary for a in report.alerts] == ["They differed."]
    away = await reader(Local(Unavailable("away")), MemoryRemote()).read(NOW, 1, None, None)
    assert (away.last_check, away.statistics, away.alerts) == (None, None, [])


def incidents(count: int) -> list[Incident]:
    """So many, newest first."""
    one = Incident("id 0", "gone:1", "drop", "store", NOW, NOW, NOW, 3, "The table memories is gone.")
    return [replace(one, id=f"id {number}", who=Who(statement="DROP TABLE memories")) for number in range(count)]


async def test_open_incidents_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before what else is wrong; the newest five, and how many there are."""
    asked = []

    async def open_ones(patience: float) -> list[Incident]:
        asked.append(patience)
        return incidents(7)

    local = Local(replace(LOCAL, table_present=False))
    looks = reader(local, MemoryRemote())
    monkeypatch.setattr(looks, "_incidents", open_ones)
    report = await looks.read(NOW, 1, None, None)
    assert asked == [0.5]
    assert (report.open_incidents, [i.id for i in report.incidents]) == (7, [f"id {n}" for n in range(5)])
    assert report.incidents[0].statement == "D·ROP T·ABLE memories"
    advice = "Call recover_from_remote with before_incident=id 0 to see what can be brought back."
    assert report.next_step == advice
    assert report.warnings[0] == f"An incident is open: The table memories is gone. {advice}"
    assert "The table memories is gone; the remote store holds 0 memories." in report.warnings


@pytest.mark.promise("P9")
async def test_incidents_that_cannot_be_read_hold_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither record answers, or both refuse."""
    for fault in (Unavailable("away"), None):

        async def none(patience: float, fault: Unavailable | None = fault) -> list[Incident]:
            assert patience > 0
            if fault:
                raise fault
            await anyio.sleep_forever()
            return []

        looks = reader(Local(replace(LOCAL, memories=0)), MemoryRemote())
        monkeypatch.setattr(looks, "_incidents", none)
        with anyio.fail_after(15):
            report = await looks.read(NOW, 0.05, None, None)
        assert (report.open_incidents, report.incidents, report.next_step) == (0, [], NOTHING)
