"""Detection on in-memory ports: once for each event, whatever is away and wherever it is cut off."""

import json
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Literal

import anyio
import pytest

from dionysus_sync_mcp.domain.destruction import Incident, Observation, Sight, Thresholds, Who
from dionysus_sync_mcp.domain.errors import (
    AccessRefused,
    DatabaseMissing,
    InputError,
    Refused,
    SchemaMismatch,
    Unavailable,
)
from dionysus_sync_mcp.engine import incidents
from dionysus_sync_mcp.engine.guard import Guard
from dionysus_sync_mcp.engine.incidents import (
    JUDGE_SECONDS,
    LONGEST_REASON,
    PAGE,
    PUBLISH_SECONDS,
    UNADOPTED_SECONDS,
    WATCH_SECONDS,
    Detector,
    IncidentRecords,
    Unrecorded,
    report_of,
)
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity
from tests.engine.memory_incidents import (
    CLOSED_AT,
    NOW,
    OTHER_STORE,
    STORE,
    TRIGGERS,
    MemoryBook,
    MemoryObserving,
    MemoryRemoteIncidents,
    no_database,
)
from tests.engine.memory_local import MemoryLocal
from tests.engine.memory_remote import MemoryRemote

AGENT = Who("app", "psql", None, 4711, "DELETE FROM memories")


class Sink:
    """Takes everything, until a test says why it does not."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.posted: list[tuple[str, bytes]] = []

    async def post(self, alert_id: str, body: bytes) -> None:
        """Keep it."""
        if self.failure:
            raise self.failure
        self.posted.append((alert_id, body))


class Scene:
    """A local store, the remote one, and processes that look at them."""

    def __init__(self) -> None:
        self.book = MemoryBook()
        self.local = MemoryObserving(self.book)
        self.remote = MemoryRemoteIncidents()
        self.sink = Sink()
        self.local.fill(100)

    def process(self) -> Detector:
        """One that has just started."""
        return self.started()[0]

    def started(self) -> tuple[Detector, IncidentRecords]:
        """One that has just started, and what it shows."""
        unrecorded = Unrecorded(self.remote, self.sink, "atlas")
        detector = Detector(
            self.local,
            self.book,
            self.remote,
            self._identify,
            self._locate,
            unrecorded,
            thresholds=Thresholds(),
            expected=TRIGGERS,
            clock=lambda: self.local.now,
        )
        return detector, IncidentRecords(self.book, self.remote, unrecorded, clock=lambda: CLOSED_AT)

    def here(self) -> list[tuple[str, int]]:
        """Kind and rows of the incidents on record in the local store."""
        return [(i.kind, i.rows) for i in self.book.held.values()]

    def there(self) -> list[tuple[str, int]]:
        """Of those in the remote one."""
        return [(i.kind, i.rows) for i in self.remote.held.values()]

    async def _identify(self) -> StoreIdentity:
        if self.local.store is None:
            raise SchemaMismatch("there is no bookkeeping")
        return StoreIdentity(self.local.store, "epoch")

    async def _locate(self) -> str:
        return "the place"


@pytest.fixture
def scene() -> Scene:
    """A store that is well."""
    return Scene()


async def watched(detector: Detector, scene: Scene, *, seconds: float = 2) -> None:
    """A look, some time after what happened last."""
    scene.local.wait(seconds)
    await detector.watch_once()


async def test_a_burst_is_recorded_with_an_alert_and_said_once(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """And widened by what goes on."""
    detector = scene.process()
    scene.local.observe("delete", range(11), who=AGENT)
    with caplog.at_level(logging.WARNING):
        assert await detector.judge_once() == JUDGE_SECONDS
        scene.local.wait(1)
        scene.local.observe("delete", range(11, 15), who=AGENT)
        await detector.judge_once()
    assert scene.here() == [("rapid_deletes", 15)]
    (incident,) = scene.book.held.values()
    assert [alert.key for alert in scene.book.alerts.values()] == [f"incident:{incident.id}"]
    assert [r.getMessage() for r in caplog.records] == [
        f"incident {incident.id}: 11 memories were deleted within 60 s."
    ]


async def test_a_text_that_cannot_be_kept_keeps_nothing_from_being_judged(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The incident is on record without whose it was."""
    record = scene.book.record

    async def choosy(found: Sequence[Incident], judged: Sequence[int], told: Collection[str] = ()) -> list[Incident]:
        if any(incident.who.statement for incident in found):
            raise Refused("a character has no equivalent")
        return await record(found, judged, told)

    monkeypatch.setattr(scene.book, "record", choosy)
    scene.local.observe("delete", range(11), who=AGENT)
    await scene.process().judge_once()
    assert [(i.kind, i.rows, i.who.statement) for i in scene.book.held.values()] == [("rapid_deletes", 11, None)]


async def test_a_look_is_taken_where_the_judging_fails(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is gone is seen all the same."""
    detector = scene.process()
    await watched(detector, scene)

    async def unreadable(_limit: int) -> list[Observation]:
        raise Refused("a character has no equivalent")

    monkeypatch.setattr(scene.local, "unjudged", unreadable)
    scene.local.table = None
    await watched(detector, scene)
    assert [kind for kind, _ in scene.here()] == ["table_missing"]


@pytest.mark.parametrize("kind", ["drop", "truncate", "alter"])
async def test_what_goes_while_it_is_judged_makes_no_burst_of_what_was_before(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, kind: Literal["drop", "truncate", "alter"]
) -> None:
    """A fifth of the memories was changed by a user, and the table is gone when it is asked how many there are."""
    detector, asked = scene.process(), scene.local.population

    async def goes() -> int:
        if scene.local.ids:
            scene.local.observe(kind, rows=len(scene.local.ids), who=AGENT)
            scene.local.ids.clear()
        return await asked()

    monkeypatch.setattr(scene.local, "population", goes)
    scene.local.observe("update", range(20))
    for _ in range(2):
        await detector.judge_once()
    assert scene.here() == [(kind, 100)]


async def test_the_table_is_not_asked_without_need(scene: Scene) -> None:
    """Ten deletes and a few updates, as there are every day; they are judged all the same."""
    detector = scene.process()
    await detector.watch_once()
    assert await detector.judge_once() == JUDGE_SECONDS
    scene.local.observe("delete", range(10))
    scene.local.observe("update", range(4))
    await detector.judge_once()
    assert (scene.local.asked, scene.here(), scene.book.judged) == (0, [], {1, 2})


async def test_a_big_table_is_not_counted_for_each_change(scene: Scene) -> None:
    """What the last look has counted tells that twenty changes are not half of it; where they could be, it is asked."""
    detector = scene.process()
    await detector.watch_once()
    scene.local.observe("update", range(20))
    await detector.judge_once()
    assert (scene.local.asked, scene.here()) == (0, [])
    scene.local.observe("update", range(20, 51))
    await detector.judge_once()
    assert (scene.local.asked, scene.here()) == (1, [("bulk_update", 51)])


async def test_what_another_version_has_not_installed_is_not_missing(scene: Scene) -> None:
    """It looks for less; what a process has seen itself, and does not see any more, is missing."""
    await scene.process().watch_once()
    scene.local.whole = False
    newer = scene.process()
    await watched(newer, scene)
    assert scene.here() == []
    scene.local.whole = True
    await watched(newer, scene)
    scene.local.whole = False
    await watched(newer, scene)
    assert scene.here() == [("bookkeeping_missing", 0)]


async def test_a_page_that_is_full_is_followed_by_the_next(scene: Scene) -> None:
    """A burst over several pages is one incident, and each memory is counted once."""
    detector = scene.process()
    for number in range(PAGE + 200):
        scene.local.observe("delete", [number % 1100])
    assert await detector.judge_once() == 0.0
    assert await detector.judge_once() == JUDGE_SECONDS
    assert scene.here() == [("rapid_deletes", 1100)]


@pytest.mark.promise("P8")
async def test_two_processes_make_one_incident(scene: Scene) -> None:
    """They see different beginnings of the same burst at the same time: the slower one judges again."""
    slow, quick = scene.process(), scene.process()
    scene.local.observe("delete", range(11))
    known = scene.book.incidents

    async def meanwhile(*, open_only: bool, limit: int) -> list[Incident]:
        found = await known(open_only=open_only, limit=limit)
        scene.book.incidents = known  # type: ignore[method-assign]  # once
        scene.local.observe("delete", range(11, 20))
        await quick.judge_once()
        return found

    scene.book.incidents = meanwhile  # type: ignore[method-assign]  # between reading and recording
    await slow.judge_once()
    await slow.judge_once()
    assert scene.here() == [("rapid_deletes", 20)]
    assert scene.book.judged == {1, 2}


@pytest.mark.promise("P8")
@pytest.mark.parametrize("fault", [Unavailable("away"), SchemaMismatch("gone")])
async def test_a_process_that_is_cut_off_while_it_judges_loses_nothing(scene: Scene, fault: Exception) -> None:
    """What was not recorded was not marked as judged: the next process judges it."""
    scene.local.observe("delete", range(11))
    record = scene.book.record

    async def fail(incidents: Sequence[Incident], judged: Sequence[int], told: Collection[str] = ()) -> list[Incident]:
        assert (len(incidents), judged, told) == (1, [1], ())
        raise fault

    scene.book.record = fail  # type: ignore[method-assign]  # the fault
    with suppress(Unavailable):
        await scene.process().judge_once()
    assert (scene.here(), scene.book.judged) == ([], set())
    scene.book.record = record  # type: ignore[method-assign]  # over
    await scene.process().judge_once()
    assert scene.here() == [("rapid_deletes", 11)]


async def test_a_database_that_is_not_adopted_is_left_alone(scene: Scene) -> None:
    """It has nothing to judge, and nowhere to write to."""
    scene.local.lose_bookkeeping()
    detector = scene.process()
    assert await detector.judge_once() == UNADOPTED_SECONDS
    assert await detector.watch_once() == WATCH_SECONDS
    assert await detector.publish_once() == UNADOPTED_SECONDS
    assert (scene.here(), scene.there(), scene.sink.posted) == ([], [], [])


async def test_what_happens_between_two_looks_is_seen(scene: Scene) -> None:
    """By another process too, which has started after it happened."""
    await scene.process().watch_once()
    scene.local.table = None
    await watched(scene.process(), scene)
    await watched(scene.process(), scene)
    assert scene.here() == [("table_missing", 100)]
    (incident,) = scene.book.held.values()
    assert (incident.restore_point, incident.last_at) == (NOW, NOW + timedelta(seconds=2))


@pytest.mark.promise("P8")
async def test_a_look_that_was_cut_off_is_no_second_incident(scene: Scene) -> None:
    """Killed after it was recorded, and before the look was remembered."""
    await scene.process().watch_once()
    before = scene.local.last
    scene.local.triggers = frozenset()
    await watched(scene.process(), scene)
    scene.local.last = before
    await watched(scene.process(), scene)
    assert scene.here() == [("capture_off", 0)]


async def test_what_was_observed_is_judged_before_the_look_is_compared(scene: Scene) -> None:
    """So that what the database tells is not found a second time; more is known of what it tells."""
    detector = scene.process()
    await detector.watch_once()
    scene.local.wait(1)
    scene.local.observe("drop", rows=100, who=AGENT, detail="table memories dropped")
    scene.local.table = None
    await watched(detector, scene)
    assert scene.here() == [("drop", 100)]
    assert next(iter(scene.book.held.values())).who == AGENT


async def test_rows_that_were_deleted_as_told_are_not_missing(scene: Scene) -> None:
    """Ten at a time, all day."""
    detector = scene.process()
    for number in range(9):
        await watched(detector, scene, seconds=61)
        scene.local.observe("delete", range(10 * number, 10 * number + 10))
    await watched(detector, scene)
    assert scene.here() == []
    scene.local.fill(100)
    await watched(detector, scene)
    scene.local.ids.clear()
    await watched(detector, scene)
    assert scene.here() == [("rows_missing", 100)]


async def test_our_own_recovery_is_no_incident(scene: Scene) -> None:
    """Neither while it is under way nor after it, when the last look is taken as it is."""
    detector, other = scene.process(), scene.process()
    await detector.watch_once()
    scene.local.recovering, scene.local.table = True, 2
    await watched(other, scene)
    scene.local.recovering, scene.local.table = False, 3
    await detector.take_as_it_is()
    for process in (detector, other, scene.process()):
        await watched(process, scene)
    assert scene.here() == []


@pytest.mark.promise("P8")
async def test_bookkeeping_that_is_gone_is_recorded_when_it_is_back(scene: Scene) -> None:
    """Until then it is in the remote store and told of; the store is another one by then."""
    detector, records = scene.started()
    await detector.watch_once()
    scene.local.lose_bookkeeping()
    await watched(detector, scene)
    assert scene.there() == [("bookkeeping_missing", 0)]
    assert [i.kind for i in await records.open()] == ["bookkeeping_missing"]
    assert await detector.publish_once() == UNADOPTED_SECONDS
    scene.local.reinstall()
    for _ in range(2):
        await watched(detector, scene)
        assert await detector.publish_once() == PUBLISH_SECONDS
    assert scene.here() == scene.there() == [("bookkeeping_missing", 0)]
    assert [i.kind for i in await records.open()] == ["bookkeeping_missing"]
    (incident,) = scene.book.held.values()
    assert incident.store == STORE
    assert [alert_id for alert_id, _ in scene.sink.posted] == [incident.id]
    assert scene.book.told == {incident.id}


@pytest.mark.promise("P8", "P9")
async def test_a_database_that_is_gone_is_told_at_once(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """With the remote store and the webhook, though there is no local store to write to; once."""
    detector, records = scene.started()
    await detector.watch_once()
    scene.local.failure = no_database()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            with pytest.raises(DatabaseMissing):
                await watched(detector, scene)
    (incident,) = scene.remote.held.values()
    assert (incident.kind, incident.rows, incident.restore_point) == ("database_missing", 100, NOW)
    ((alert_id, body),) = scene.sink.posted
    fields = json.loads(body)
    assert (alert_id, fields["id"], fields["kind"], fields["project"]) == (
        incident.id,
        incident.id,
        "incident",
        "atlas",
    )
    assert fields["details"]["kind"] == "database_missing"
    assert [r.getMessage() for r in caplog.records] == [
        f"incident {incident.id}: The database is gone. It held 100 memories."
    ]
    scene.book.present = False
    assert [i.id for i in await records.open()] == [incident.id]


async def test_what_fails_of_telling_is_tried_again(scene: Scene) -> None:
    """The remote store and the webhook are away too: neither holds up the other, and nothing is told twice."""
    detector = scene.process()
    await detector.watch_once()
    scene.local.failure, scene.remote.failure = no_database(), Unavailable("away")
    scene.sink.failure = Unavailable("answer 500")
    with pytest.raises(DatabaseMissing):
        await watched(detector, scene)
    scene.sink.failure = None
    scene.book.present = False
    await detector.publish_once()
    assert (len(scene.sink.posted), scene.there()) == (1, [])
    scene.remote.failure = None
    await detector.publish_once()
    assert (len(scene.sink.posted), scene.there()) == (1, [("database_missing", 100)])


@pytest.mark.promise("P8", "P9")
async def test_a_process_that_starts_later_knows_what_was_there(scene: Scene) -> None:
    """The one that saw it was killed before it could tell: the remote store remembers who was at this place."""
    detector = scene.process()
    await detector.watch_once()
    await detector.publish_once()
    scene.local.failure = no_database()
    with pytest.raises(DatabaseMissing):
        await watched(scene.process(), scene)
    assert [kind for kind, _ in scene.there()] == ["database_missing"]
    assert len(scene.sink.posted) == 1


async def test_a_database_that_was_never_there_is_no_incident(scene: Scene) -> None:
    """A name that was mistyped."""
    scene.local.failure = no_database()
    with pytest.raises(DatabaseMissing):
        await scene.process().watch_once()
    assert (scene.there(), scene.sink.posted) == ([], [])


@pytest.mark.promise("P8")
async def test_what_the_remote_knows_of_the_database_before_is_adopted(scene: Scene) -> None:
    """By a process that has seen nothing of it, once the database is made anew; it is not made a second time."""
    witness = scene.process()
    await witness.watch_once()
    await witness.publish_once()
    scene.local.failure = no_database()
    with pytest.raises(DatabaseMissing):
        await watched(witness, scene)
    scene.local.failure, scene.local.last, scene.local.table = None, None, 2
    scene.local.reinstall()
    newcomer = scene.process()
    await watched(newcomer, scene)
    await newcomer.publish_once()
    assert scene.here() == scene.there() == [("database_missing", 100)]


async def test_records_of_both_sides_come_to_the_same(scene: Scene) -> None:
    """What is here is published; what is there of this store is adopted; what is of others stays there."""
    detector = scene.process()
    scene.local.observe("delete", range(11))
    await detector.judge_once()
    (mine,) = scene.book.held.values()
    lost = replace(mine, id="lost", key="lost")
    theirs = replace(mine, id="theirs", key="theirs", store=OTHER_STORE)
    await scene.remote.save_incidents([lost, theirs])
    assert await detector.publish_once() == PUBLISH_SECONDS
    assert set(scene.book.held) == {mine.id, "lost"}
    assert set(scene.remote.held) == {mine.id, "lost", "theirs"}
    scene.remote.failure = Unavailable("away")
    with pytest.raises(Unavailable):
        await scene.process().publish_once()


@pytest.mark.promise("P8")
async def test_an_emptied_remote_has_the_incidents_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the process goes on; however many others write there."""
    monkeypatch.setattr(incidents, "ADOPT_SECONDS", 0.0)
    monkeypatch.setattr(incidents, "MOST_KNOWN", 2)
    detector = scene.process()
    scene.local.observe("delete", range(11))
    await detector.judge_once()
    await detector.publish_once()
    (mine,) = scene.book.held.values()
    scene.remote.held = {
        str(n): replace(mine, id=str(n), key=str(n), store=OTHER_STORE, detected_at=NOW + timedelta(days=n))
        for n in range(1, 5)
    }
    for _ in range(2):
        await detector.publish_once()
    assert mine.id in scene.remote.held
    assert list(scene.book.held) == [mine.id]


@pytest.mark.promise("P4")
async def test_open_is_what_either_side_has_on_record(scene: Scene) -> None:
    """Nobody may have adopted it yet; what was closed here is closed."""
    detector, records = scene.started()
    scene.local.observe("delete", range(11))
    await detector.judge_once()
    await detector.publish_once()
    (mine,) = scene.book.held.values()
    there = replace(mine, id="there", key="there")
    theirs = replace(mine, id="theirs", key="theirs", store=OTHER_STORE)
    await scene.remote.save_incidents([there, theirs])
    assert {i.id for i in await records.open_anywhere(await detector.stores_here())} == {mine.id, "there"}
    assert {i.id for i in await records.open_anywhere(None)} == {mine.id, "there", "theirs"}
    await scene.book.close(mine.id, "on purpose")
    assert [i.id for i in await records.open_anywhere({STORE})] == ["there"]
    scene.remote.places["the place"] = [Sight(NOW, OTHER_STORE, 1)]
    assert await detector.stores_here() == {STORE, OTHER_STORE}


async def test_all_is_judged_at_once_for_whoever_must_wait_for_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Page by page; what cannot be judged is said to be left."""
    monkeypatch.setattr(incidents, "PAGE", 1)
    detector = scene.process()
    for number in range(11):
        scene.local.observe("delete", [number])
    assert await detector.judge_all()
    assert scene.here() == [("rapid_deletes", 11)]
    monkeypatch.setattr(incidents, "MOST_PAGES", 2)
    for number in range(20, 24):
        scene.local.observe("delete", [number])
    assert not await detector.judge_all()
    assert await detector.judge_all()


@pytest.mark.promise("P8")
async def test_the_guard_looks_before_it_mends(scene: Scene) -> None:
    """A trigger that was disabled and put back would never have been gone otherwise."""
    detector, local = scene.process(), MemoryLocal()
    guard = Guard(local, MemoryRemote(), MemoryRemote(), may_initialise=False, look_first=detector.watch_once)
    await guard.guard_once()
    scene.local.wait(2)
    local.captured, scene.local.triggers = False, frozenset()
    assert (await guard.guard_once()).installed
    assert scene.here() == [("capture_off", 0)]


@pytest.mark.promise("P1")
@pytest.mark.parametrize("failure", [AccessRefused("no right"), Unavailable("away"), SchemaMismatch("no bookkeeping")])
async def test_a_look_that_fails_does_not_keep_the_guard_from_mending(
    failure: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Protection comes first; what the guard itself does not find out is said, once."""

    async def fail() -> None:
        raise failure

    local = MemoryLocal()
    guard = Guard(local, MemoryRemote(), MemoryRemote(), may_initialise=False, look_first=fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            local.captured = False
            assert (await guard.guard_once()).installed
    assert len(caplog.records) == (1 if isinstance(failure, AccessRefused) else 0)


async def test_what_was_judged_long_ago_is_pruned(scene: Scene) -> None:
    """Page by page, then seldom."""
    detector = scene.process()
    scene.local.observe("delete", [1])
    await detector.judge_once()
    assert [await detector.prune_once() for _ in range(2)] == [1.0, 3600.0]


async def made(scene: Scene) -> tuple[Incident, IncidentRecords]:
    """An incident on record."""
    detector, records = scene.started()
    scene.local.observe("delete", range(11), who=AGENT)
    await detector.judge_once()
    (incident,) = scene.book.held.values()
    return incident, records


async def test_an_incident_is_found_and_closed(scene: Scene) -> None:
    """On both sides; its id may be written in any case."""
    incident, records = await made(scene)
    assert await records.find(f" {incident.id.upper()} ") == incident
    closed = await records.close(incident.id, "  on purpose ")
    assert (closed.closed_at, closed.closed_reason) == (CLOSED_AT, "on purpose")
    assert scene.remote.held[incident.id].closed_reason == "on purpose"
    assert (await records.open(), await records.newest(open_only=False, limit=9)) == ([], [closed])
    assert await scene.book.unpublished(9) == []


async def test_an_incident_is_closed_though_the_remote_is_away(scene: Scene) -> None:
    """The background loop brings it there later."""
    incident, records = await made(scene)
    scene.remote.failure = Unavailable("away")
    await records.close(incident.id, "on purpose")
    assert [i.closed_reason for i in await scene.book.unpublished(9)] == ["on purpose"]


@pytest.mark.promise("P9")
async def test_an_incident_is_closed_though_the_local_store_is_away(scene: Scene) -> None:
    """In the remote one, from where it is closed here as soon as that is back."""
    incident, records = await made(scene)
    await scene.remote.save_incidents([incident])
    scene.book.present = False
    assert await records.find(incident.id) == incident
    await records.close(incident.id, "on purpose")
    scene.book.present = True
    await scene.process().publish_once()
    assert scene.book.held[incident.id].closed_reason == "on purpose"


async def test_what_only_the_remote_knows_can_be_closed(scene: Scene) -> None:
    """It is on record here then."""
    incident, records = await made(scene)
    await scene.remote.save_incidents([incident])
    scene.book.held.clear()
    await records.close(incident.id, "on purpose")
    assert scene.book.held[incident.id].closed_reason == "on purpose"


@pytest.mark.parametrize(
    ("incident_id", "reason", "said"),
    [
        ("nonsense", "why", "this is not the id of an incident"),
        ("5f0c9a1e-5d0e-5c7a-9b57-0d6a8f3b2c11", "why", "there is no incident 5f0c9a1e"),
        ("", "why", "this is not the id of an incident"),
        (None, "", "a reason is needed"),
        (None, " \x00 ", "a reason is needed"),
        (None, "x" * (LONGEST_REASON + 1), "the reason has 501 characters, more than 500"),
    ],
)
async def test_what_cannot_be_closed_is_said(scene: Scene, incident_id: str | None, reason: str, said: str) -> None:
    """Nothing is changed."""
    incident, records = await made(scene)
    with pytest.raises(InputError, match=said):
        await records.close(incident.id if incident_id is None else incident_id, reason)
    assert await records.open() == [incident]


@pytest.mark.promise("P9")
async def test_an_unknown_incident_is_unknown_though_the_remote_is_away(scene: Scene) -> None:
    """Where nobody can be asked, that is said instead."""
    _, records = await made(scene)
    scene.remote.failure = Unavailable("away")
    unknown = "5f0c9a1e-5d0e-5c7a-9b57-0d6a8f3b2c11"
    with pytest.raises(InputError, match="there is no incident"):
        await records.find(unknown)
    scene.book.present = False
    with pytest.raises(Unavailable):
        await records.find(unknown)


async def test_an_incident_that_is_closed_says_when_and_why(scene: Scene) -> None:
    """Also where somebody else was quicker by a moment."""
    incident, records = await made(scene)
    await records.close(incident.id, "on purpose")
    with pytest.raises(InputError, match=r"was closed 2026-08-01 13:00:00 UTC: on purpose"):
        await records.close(incident.id, "again")


@pytest.mark.promise("P9")
async def test_only_what_concerns_this_database_is_shown(scene: Scene) -> None:
    """Of the remote record, while the local one is away; all of it, where it is not known which store this was."""
    incident, _ = await made(scene)
    theirs = replace(incident, id="theirs", store=OTHER_STORE)
    await scene.remote.save_incidents([incident, theirs])
    scene.book.present = False
    mine: set[str] = set()
    records = IncidentRecords(scene.book, scene.remote, None, mine)
    assert len(await records.open()) == 2
    mine.add(STORE)
    assert await records.open() == [incident]


@pytest.mark.promise("P9")
async def test_a_local_store_that_hangs_counts_as_away(scene: Scene) -> None:
    """The remote store's record is shown then."""
    incident, records = await made(scene)
    await scene.remote.save_incidents([incident])

    async def hang(**_: object) -> list[Incident]:
        await anyio.sleep_forever()
        return []

    scene.book.incidents = hang  # type: ignore[method-assign]  # the fault
    with anyio.fail_after(15):
        assert await records.open(patience=0.01) == [incident]


async def test_a_report_holds_nothing_that_could_be_run(scene: Scene) -> None:
    """The statement is kept as it was, and shown so that it cannot be pasted."""
    incident, _ = await made(scene)
    report = report_of(incident)
    assert (report.statement, incident.who.statement) == ("D·ELETE F·ROM memories", "DELETE FROM memories")
    assert (report.role, report.pid, report.rows) == ("app", 4711, 11)
