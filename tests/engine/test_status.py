"""What the status says and advises, by what its looks have found."""

import pytest

from dionysus_sync_mcp.engine.ports import Health, LocalState
from dionysus_sync_mcp.engine.reports import WorkerReport
from dionysus_sync_mcp.engine.status import advise

UP = [Health("postgresql", version="18"), Health("neo4j", version="5.26"), Health("ollama", version="0.10")]


def local(queued: int) -> LocalState:
    """A protected store with so many changes in its queue."""
    return LocalState(
        table_present=True,
        capture_installed=True,
        initialised=True,
        memories=1,
        queued=queued,
        parked=0,
        oldest_queued_at=None,
        last_success_at=None,
        open_conflicts=0,
        last_parked_error=None,
        identity=None,
    )


@pytest.mark.promise("P9")
def test_a_store_that_cannot_be_read_is_never_all_well() -> None:
    """A role without rights reaches PostgreSQL: the status says what it cannot see instead of 'nothing to do'."""
    warnings, next_step = advise(UP, None, None, None, {"postgresql": "permission denied"})
    assert warnings == ["The local store could not be read: permission denied."]
    assert "rights" in next_step


def test_an_outage_is_said_once() -> None:
    """Why a service that is away could not be read is no second warning."""
    away = [Health("neo4j", error="refused", hint="Start it."), UP[0], UP[2]]
    warnings, next_step = advise(away, local(0), None, None, {"neo4j": "refused"})
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
