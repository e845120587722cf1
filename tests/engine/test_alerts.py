"""Alerts on in-memory ports: told once, in the end, and nobody is held up."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from dionysus_sync_mcp.domain.errors import AccessRefused, SchemaMismatch, Unavailable
from dionysus_sync_mcp.domain.lineage import Standing
from dionysus_sync_mcp.engine.alerts import LOOK_SECONDS, WATCH_SECONDS, Alerter, AlertWatch, body_of, decide_alerts
from dionysus_sync_mcp.engine.ports.alerts import DueAlert, NewAlert
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity
from dionysus_sync_mcp.engine.ports.status import LocalState
from dionysus_sync_mcp.engine.pruning import PAGE_SECONDS, PRUNE_SECONDS, UNADOPTED_SECONDS, prune_once
from tests.engine.memory_local import MemoryLocal
from tests.engine.test_status_report import LOCAL

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
DRIFT = NewAlert("drift:1", "drift", "The stores differ.", {"missing_there": 2})


class Book:
    """Alerts in memory; those that were taken are due again when a test says so."""

    def __init__(self) -> None:
        self.alerts: dict[str, DueAlert] = {}
        self.waiting: list[str] = []
        self.delivered: list[str] = []
        self.postponed: list[tuple[str, float, str]] = []
        self.adopted = True

    async def raise_alert(self, alert: NewAlert) -> bool:
        """New if the key is."""
        if alert.key in self.alerts:
            return False
        self.alerts[alert.key] = DueAlert(alert.key, alert.kind, alert.summary, alert.details, NOW, "store", 0)
        self.waiting.append(alert.key)
        return True

    async def take_due(self, lease: float) -> DueAlert | None:
        """The oldest that waits."""
        assert lease > 0
        if not self.adopted:
            raise SchemaMismatch("not there")
        return self.alerts[self.waiting.pop(0)] if self.waiting else None

    async def note_delivered(self, alert_id: str) -> None:
        """Keep it."""
        self.delivered.append(alert_id)

    async def postpone(self, alert_id: str, delay: float, error: str) -> None:
        """Keep it."""
        self.alerts[alert_id] = replace(self.alerts[alert_id], attempts=self.alerts[alert_id].attempts + 1)
        self.postponed.append((alert_id, delay, error))


class Sink:
    """Takes everything, until a test says why it does not."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.posted: list[tuple[str, bytes]] = []

    async def post(self, alert_id: str, body: bytes) -> None:
        """Keep it."""
        self.posted.append((alert_id, body))
        if self.failure:
            raise self.failure


async def test_an_event_is_told_once_however_often_it_is_seen() -> None:
    """The second time it is no news."""
    book, sink = Book(), Sink()
    alerter = Alerter(book, sink, "atlas")
    assert [await alerter.raise_alerts([DRIFT]) for _ in range(2)] == [1, 0]
    assert [await alerter.deliver_once() for _ in range(2)] == [0.0, LOOK_SECONDS]
    assert [alert_id for alert_id, _ in sink.posted] == book.delivered == [DRIFT.key]
    assert json.loads(sink.posted[0][1]) == {
        "id": DRIFT.key,
        "kind": "drift",
        "summary": "The stores differ.",
        "details": {"missing_there": 2},
        "raised_at": "2026-08-01T12:00:00+00:00",
        "store_id": "store",
        "project": "atlas",
    }


async def test_what_was_not_taken_is_sent_again_under_the_same_id(caplog: pytest.LogCaptureFixture) -> None:
    """Later, with waits that grow up to five minutes; said once, not with every attempt; others are not held back."""
    book, sink = Book(), Sink()
    sink.failure = Unavailable("answer 500")
    alerter = Alerter(book, sink)
    await alerter.raise_alerts([DRIFT, replace(DRIFT, key="drift:2")])
    with caplog.at_level(logging.WARNING):
        for _ in range(30):
            assert await alerter.deliver_once() == LOOK_SECONDS
            book.waiting = book.waiting or list(book.alerts)
    assert {alert_id for alert_id, _, _ in book.postponed} == {"drift:1", "drift:2"}
    assert all(0 <= delay < 300 for _, delay, _ in book.postponed)
    assert max(delay for _, delay, _ in book.postponed) > 10
    assert caplog.text.count("could not be delivered") == 1
    sink.failure = None
    assert await alerter.deliver_once() == 0.0
    assert book.delivered[0] in {"drift:1", "drift:2"}
    assert len({body for alert_id, body in sink.posted if alert_id == "drift:1"}) == 1


async def test_without_a_receiver_alerts_stay_on_record() -> None:
    """They are not taken, and not lost."""
    book = Book()
    alerter = Alerter(book, None)
    assert await alerter.raise_alerts([DRIFT]) == 1
    assert await alerter.deliver_once() == LOOK_SECONDS
    assert (book.waiting, book.delivered) == ([DRIFT.key], [])


async def test_a_database_that_is_not_adopted_has_no_alerts() -> None:
    """It is looked at again later, without noise."""
    book = Book()
    book.adopted = False
    assert await Alerter(book, Sink()).deliver_once() == LOOK_SECONDS


def test_a_body_can_be_sent_whatever_is_in_it() -> None:
    """Half of a surrogate pair cannot be written in UTF-8; the alert goes out all the same."""
    alert = DueAlert("1", "drift", "half \ud800 of one", {}, NOW, "store", 0)
    assert json.loads(body_of(alert, None))["summary"] == "half ? of one"
    assert "project" not in json.loads(body_of(alert, None))


def test_a_store_that_is_well_raises_nothing() -> None:
    """Nor one whose standing is not known, or that the remote is one push ahead of."""
    for standing in ("same", "resent", "behind_there", "unknown_there", None):
        assert decide_alerts(LOCAL, standing) == []


def test_a_store_that_went_back_is_one_event() -> None:
    """Until it has pushed again, which gives it another lineage."""
    here = replace(LOCAL, identity=StoreIdentity("store", "epoch", 7, "one"))
    (alert,) = decide_alerts(here, "behind_here")
    assert (alert.key, alert.kind, alert.details) == ("rolled_back:one", "rolled_back", {"generation": 7})
    assert [a.key for a in decide_alerts(here, "behind_here")] == [alert.key]


def test_changes_that_failed_for_good_are_an_event_each_time_one_does() -> None:
    """Ten refusals; what is only parked is tried again and no event."""
    parked = replace(LOCAL, parked=3, last_parked_error="poison")
    assert decide_alerts(parked, "same") == []
    failed = replace(parked, failed=2, last_failed_at=NOW)
    (alert,) = decide_alerts(failed, "same")
    assert (alert.kind, alert.details) == ("failed_for_good", {"failed": 2, "last_error": "poison"})
    assert "2 changes failed for good" in alert.summary
    later = replace(failed, failed=3, last_failed_at=NOW.replace(hour=13))
    assert {a.key for a in decide_alerts(later, "same")} != {alert.key}


async def test_the_watch_raises_what_it_sees() -> None:
    """Once for one event."""
    book = Book()

    async def standing() -> Standing:
        return "behind_here"

    watch = AlertWatch(Alerter(book, None), MemoryLocal(), standing)
    assert [await watch.watch_once() for _ in range(2)] == [WATCH_SECONDS] * 2
    assert [alert.kind for alert in book.alerts.values()] == ["rolled_back"]


async def test_a_remote_that_is_away_keeps_no_other_alert_from_being_raised() -> None:
    """The failure is the loop's to wait out: a wrong password is not tried again every few seconds."""
    book = Book()

    class Failed(MemoryLocal):
        async def state(self) -> LocalState:
            return replace(await super().state(), parked=1, failed=1, last_failed_at=NOW)

    async def standing() -> Standing:
        raise AccessRefused("wrong password")

    with pytest.raises(AccessRefused):
        await AlertWatch(Alerter(book, None), Failed(), standing).watch_once()
    assert [alert.kind for alert in book.alerts.values()] == ["failed_for_good"]


async def test_the_watch_leaves_a_database_alone_that_is_not_adopted() -> None:
    """There is nowhere to write an alert to."""
    local, asked = MemoryLocal(bookkeeping=False), []

    async def standing() -> Standing:
        asked.append(1)
        return "behind_here"

    assert await AlertWatch(Alerter(Book(), None), local, standing).watch_once() == WATCH_SECONDS
    assert asked == []


class Audit:
    """Has pages to prune, or is not there."""

    def __init__(self, prune: Callable[[], int]) -> None:
        self._prune = prune

    async def prune_events(self) -> int:
        """As the test says."""
        return self._prune()


def _not_adopted() -> int:
    raise SchemaMismatch("not there")


@pytest.mark.parametrize(
    ("prune", "wait"),
    [(lambda: 1000, PAGE_SECONDS), (lambda: 0, PRUNE_SECONDS), (_not_adopted, UNADOPTED_SECONDS)],
    ids=["more", "done", "not-adopted"],
)
async def test_pruning_goes_on_page_by_page_and_then_rests(prune: Callable[[], int], wait: float) -> None:
    """Nobody waits for it."""
    assert await prune_once(Audit(prune)) == wait
