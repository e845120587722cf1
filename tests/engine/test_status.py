"""What the status says and advises, by what its looks have found."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

import pytest

from dionysus_sync_mcp.domain.errors import AccessRefused, SchemaMismatch, Unavailable
from dionysus_sync_mcp.domain.lineage import Standing
from dionysus_sync_mcp.engine.ports.shared import Health
from dionysus_sync_mcp.engine.ports.status import Activity, LastCheck, LocalState, PastAlert
from dionysus_sync_mcp.engine.reports import OutageReport, WorkerReport
from dionysus_sync_mcp.engine.status import DECIDE, PARKED, PARKED_UNSENT, REPAIR, ROLLED_BACK, advise

NOON = datetime(2026, 8, 1, 12, tzinfo=UTC)
UP = [Health("postgresql", version="18"), Health("neo4j", version="5.26"), Health("ollama", version="0.10")]


def local(queued: int, parked: int = 0, failed: int = 0) -> LocalState:
    """A protected store with so many changes in its queue."""
    return LocalState(
        table_present=True,
        capture_installed=True,
        initialised=True,
        memories=1,
        queued=queued,
        parked=parked,
        oldest_queued_at=None,
        last_success_at=None,
        open_conflicts=0,
        last_parked_error=None,
        identity=None,
        failed=failed,
    )


@pytest.mark.promise("P9")
def test_a_store_that_cannot_be_read_is_never_all_well() -> None:
    """A role without rights reaches PostgreSQL: the status says what it cannot see instead of 'nothing to do'."""
    warnings, next_step = advise(UP, None, None, None, {"postgresql": AccessRefused("permission denied.")})
    assert warnings == ["The local store could not be read: permission denied."]
    assert "rights" in next_step


def test_an_outage_is_said_once() -> None:
    """Why a service that is away could not be read is no second warning."""
    away = [Health("neo4j", error="refused", hint="Start it."), UP[0], UP[2]]
    warnings, next_step = advise(away, local(0), None, None, {"neo4j": Unavailable("refused")})
    assert warnings == ["Neo4j is away: changes wait in the local queue and nothing is lost (refused)."]
    assert next_step == "Start it."


@pytest.mark.parametrize(
    ("worker", "said"), [(None, "wait for a worker"), (WorkerReport(state="pushing"), "on their way")]
)
def test_changes_are_on_their_way_only_where_somebody_pushes(worker: WorkerReport | None, said: str) -> None:
    """A command line has no worker of its own, and does not claim that one runs elsewhere."""
    warnings, next_step = advise(UP, local(3), None, worker, {})
    assert warnings == []
    assert said in next_step


def test_what_failed_for_good_is_said_with_what_to_do() -> None:
    """Ten refusals: nothing tries these again by itself."""
    warnings, next_step = advise(UP, local(0, parked=3, failed=2), None, None, {})
    assert len(warnings) == 1
    assert "3 changes are parked" in warnings[0]
    assert "2 of them failed for good: refused ten times" in warnings[0]
    assert next_step == PARKED
    assert "sync_now with retry_parked=true" in PARKED


def test_an_outage_says_since_when_and_when_the_next_try_is() -> None:
    """As the background loop of this process has it."""
    outage = OutageReport(service="neo4j", since=NOON, error="refused", next_try_at=NOON.replace(second=30))
    worker = WorkerReport(state="waiting", outages=[outage])
    away = [UP[0], Health("neo4j", error="refused", hint="Start it."), UP[2]]
    warnings, next_step = advise(away, local(0), None, worker, {})
    when = "Away since 2026-08-01 12:00:00 UTC; it is tried again by 2026-08-01 12:00:30 UTC."
    assert warnings == [f"Neo4j is away: changes wait in the local queue and nothing is lost (refused). {when}"]
    assert next_step == "Start it."


def test_a_service_that_is_back_and_not_yet_tried_again_is_said() -> None:
    """Between its return and the next try nothing is pushed, which would look like a fault."""
    outage = OutageReport(service="neo4j", since=NOON, error="refused")
    warnings, _ = advise(UP, local(0), None, WorkerReport(state="waiting", outages=[outage]), {})
    assert warnings == ["The background loop still takes neo4j for away (refused). Away since 2026-08-01 12:00:00 UTC."]


@pytest.mark.promise("P7")
def test_a_store_that_went_back_comes_first() -> None:
    """Before anything else, and what the push says of it is not said again."""
    worker = WorkerReport(state="waiting", error="this database is older than what it has pushed")
    away = [UP[0], UP[1], Health("ollama", error="refused")]
    warnings, next_step = advise(away, local(3, parked=1), None, worker, {}, standing="behind_here")
    assert warnings[0] == ROLLED_BACK
    assert not any("last push failed" in warning for warning in warnings)
    assert next_step == DECIDE
    assert "--prefer remote" in next_step
    assert "--prefer local" in next_step


@pytest.mark.parametrize("standing", ["same", "resent", "unknown_there", "behind_there", None])
def test_any_other_standing_is_no_alarm(standing: Standing | None) -> None:
    """A push that is under way, a new store, a remote that is filled again, a remote that is away."""
    assert advise(UP, local(0), None, None, {}, standing=standing)[0] == []


def test_a_database_of_another_version_says_so_and_what_to_do() -> None:
    """Nothing is pushed from it, so that it must not look as if all were well, nor as if a right were missing."""
    error = SchemaMismatch("the bookkeeping is newer", where="dionysus_sync", hint="Use a newer program.")
    warnings, next_step = advise(UP, None, None, None, {"postgresql": error})
    assert warnings == ["Nothing is pushed from here: the bookkeeping is newer."]
    assert next_step == "Use a newer program."


def test_rows_that_cannot_be_sent_are_not_to_be_tried_again() -> None:
    """Only changing them helps, which is said whether or not others are parked too."""
    parked = replace(local(0, parked=2), last_parked_error="invalid input syntax for type json.", unsent=2)
    warnings, next_step = advise(UP, parked, None, None, {})
    assert warnings == [
        "2 changes are parked, since PostgreSQL cannot make JSON of their rows: invalid input syntax for type json."
    ]
    assert next_step == PARKED_UNSENT
    assert "retry_parked" not in next_step
    warnings, next_step = advise(UP, replace(parked, parked=3), None, None, {})
    assert "2 of them were never sent" in warnings[0]
    assert next_step == PARKED


@pytest.mark.parametrize("newest", ["quick", "full", "deep"])
def test_drift_that_was_not_mended_is_said(newest: Literal["quick", "full", "deep"]) -> None:
    """With what shows a repair before anything is changed, whatever the newest check came to."""
    checks = Activity(last_check=LastCheck(NOON, newest, "clean", 0))
    assert advise(UP, local(0), None, None, {}, checks)[0] == []
    warnings, next_step = advise(
        UP, local(0), None, None, {}, replace(checks, drift=LastCheck(NOON, "full", "drift", 2))
    )
    assert warnings == ["The stores differ in 2 memories, as the full check of 2026-08-01 12:00:00 UTC found."]
    assert next_step == REPAIR


def test_alerts_that_nobody_takes_are_said() -> None:
    """All of them, not only those that are shown; none where there is nobody to send them to."""
    waiting = PastAlert("drift", "The stores differ.", NOON, None, None)
    assert advise(UP, local(0), None, None, {}, Activity(alerts=(waiting,)))[0] == []
    failing = Activity(alerts=(waiting,), undelivered=7, undelivered_error="answer 500")
    assert advise(UP, local(0), None, None, {}, failing)[0] == ["7 alerts could not be delivered yet: answer 500."]
