"""What belongs to an incident: the statements that made it, and not what others did beside them."""

from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

from dionysus_sync_mcp.domain.destruction import (
    MOST_SPANS,
    Evidence,
    Incident,
    Interval,
    Observation,
    Thresholds,
    judge,
    merged_spans,
    spans_as_text,
    spans_of_text,
    widened,
)
from dionysus_sync_mcp.domain.recovery_plan import windows
from tests.domain.test_destruction import AGENT, STORE, at, judged, marked, seen

OTHER = AGENT._replace(pid=1)
THIRD = AGENT._replace(pid=2)
MILLISECOND = 0.001


def spans(*bounds: float) -> tuple[Interval, ...]:
    """Of seconds, first and last in turn; the last ones are of a statement that took a millisecond."""
    return tuple(Interval(at(a), at(b + MILLISECOND)) for a, b in zip(bounds[::2], bounds[1::2], strict=True))


def test_what_others_did_beside_one_client_that_hit_enough_is_none_of_it() -> None:
    """Two clients may each have hit enough; each is part of it then."""
    mine = [seen(1, "delete", 0, range(6)), seen(5, "delete", 20, range(6, 12))]
    beside = [seen(2, "delete", 5, [20], who=OTHER), seen(6, "delete", 30, [21], who=OTHER)]
    (found,) = judged([*mine, *beside])
    assert (found.rows, found.restore_point, found.last_at) == (12, at(0), at(20.001))
    assert found.spans == spans(0, 0, 20, 20)
    (found,) = judged([*mine, *beside, seen(7, "delete", 40, range(30, 41), who=THIRD)])
    assert (found.rows, found.spans) == (23, spans(0, 0, 20, 20, 40, 40))


def test_where_no_client_alone_hit_enough_it_is_all_of_them() -> None:
    """Somebody may use a new connection for each statement."""
    (found,) = judged([seen(n, "delete", n, [n], who=AGENT._replace(pid=n)) for n in range(11)])
    assert (found.rows, found.spans) == (11, spans(0, 10))


def test_good_updates_beside_a_bulk_update_are_none_of_it() -> None:
    """Neither those within it nor those after it, which make no incident and widen none."""
    bulk, edit = seen(1, "update", 0, range(10)), seen(2, "update", 1, [3], who=OTHER)
    (found,) = judged([bulk, edit], population=12)
    assert (found.rows, found.spans) == (10, spans(0, 0))
    later = seen(3, "update", 30, [4], who=OTHER)
    assert judged([*marked([bulk, edit]), later], population=12, known=[found]) == []


def test_a_burst_that_goes_on_gets_more_spans() -> None:
    """What was between stays out of it."""
    first, beside = seen(1, "delete", 0, range(11)), seen(2, "delete", 10, [50], who=OTHER)
    (known,) = judged([first])
    (found,) = judged([*marked([first]), beside, seen(3, "delete", 20, range(20, 22))], known=[known])
    assert widened(known, found).spans == spans(0, 0, 20, 20)
    assert {(w.first, w.last) for w in windows([found], None, at(100))} == {*spans(0, 0, 20, 20)}


def test_an_incident_without_spans_is_all_between_its_ends() -> None:
    """Of one that an older version of the program made, or that somebody else has damaged, no more is known."""
    (found,) = judged([seen(1, "delete", 0, range(6)), seen(2, "delete", 9, range(6, 12))])
    (window,) = windows([replace(found, spans=())], None, at(100))
    assert (window.first, window.last) == (at(0), at(9.001))


def after_recovery(*observations: Observation, known: Incident, recovered: float) -> list[Incident]:
    """What is judged when a recovery was finished at that second."""
    evidence = Evidence(
        [o for o in observations if not o.judged], observations, known=[known], recovered_at=at(recovered)
    )
    return judge(evidence, Thresholds(), STORE, at(100))


def test_nothing_after_a_recovery_belongs_to_what_was_before_it() -> None:
    """A few deletes widen no incident that was repaired, and enough of them are another one."""
    burst = seen(1, "delete", 0, range(11))
    (known,) = judged([burst])
    (old,) = marked([burst])
    few, many = seen(2, "delete", 20, [20]), seen(3, "delete", 21, range(30, 41))
    assert after_recovery(old, few, known=known, recovered=10) == []
    (other,) = after_recovery(old, few, many, known=known, recovered=10)
    assert (other.id != known.id, other.restore_point, other.rows) == (True, at(20), 12)
    (same,) = after_recovery(old, few, known=known, recovered=-1)
    assert same.id == known.id


def test_spans_are_few_and_keep_their_gaps_where_these_are_wide() -> None:
    """Of more than can be kept the nearest are merged; the text of them is as good."""
    many = [Interval(at(n * n), at(n * n + 0.5)) for n in range(MOST_SPANS + 20)]
    found = merged_spans(many)
    assert (len(found), found[0].first, found[-1]) == (MOST_SPANS, at(0), many[-1])
    assert all(later.first - one.last > timedelta(seconds=20) for one, later in pairwise(found))
    assert spans_of_text(spans_as_text(found)) == found
    assert [spans_of_text(junk) for junk in (None, 5, ["x"], ["2026-01-01/2026-01-02"], [5])] == [()] * 5
