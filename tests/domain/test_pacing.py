"""The pace of pushes."""

from dataclasses import replace

import pytest

from dionysus_sync_mcp.domain.pacing import (
    FIRST_SECONDS,
    LONGEST_SECONDS,
    LONGEST_SECONDS_OF_ONE_ROW,
    SMALLEST_SIZE,
    USUAL_SECONDS,
    Pace,
)

SETTINGS = Pace.first(1000, 4_000_000)


def test_only_a_write_that_has_to_be_planned_gets_time_for_it() -> None:
    """A link that is lost before any other is found out within the usual deadline."""
    assert (SETTINGS.rows, SETTINGS.size, SETTINGS.deadline) == (1000, 4_000_000, USUAL_SECONDS)
    cold = SETTINGS.when_cold()
    assert (cold.deadline, cold.seconds) == (FIRST_SECONDS, USUAL_SECONDS)
    for took in (0.1, 19.0):
        assert cold.after_success(took) == SETTINGS
    assert cold.after_time_out().deadline == 2 * FIRST_SECONDS, "what was too short is not tried again"
    assert replace(SETTINGS, seconds=40.0).when_cold().deadline == 40.0


def test_a_time_out_halves_the_batch_and_doubles_the_deadline() -> None:
    """Down to one row, which gets longer than any batch does."""
    pace, paces = SETTINGS, []
    for _ in range(20):
        pace = pace.after_time_out()
        paces.append(pace)
    assert (paces[0].rows, paces[0].size, paces[0].seconds) == (500, 2_000_000, 2 * USUAL_SECONDS)
    assert max(p.seconds for p in paces if p.rows > 1) == LONGEST_SECONDS
    assert (pace.rows, pace.size, pace.seconds) == (1, SMALLEST_SIZE, LONGEST_SECONDS_OF_ONE_ROW)


def test_a_success_that_took_long_changes_nothing() -> None:
    """Else the pace would swing to and fro."""
    pace = SETTINGS.after_time_out()
    assert pace.after_success(pace.seconds / 2) == pace
    quick = pace.after_success(pace.seconds / 4)
    assert (quick.rows, quick.size, quick.seconds) == (1000, 4_000_000, pace.seconds)


@pytest.mark.parametrize("fixed", [0.5, 1.3, 2.0, 4.0])
@pytest.mark.parametrize("time_outs", [1, 3, 12])
def test_where_each_push_takes_seconds_whatever_its_size_the_pace_recovers(fixed: float, time_outs: int) -> None:
    """Over a good link that is far: round trips take that long, rows hardly any time."""
    pace = SETTINGS
    for _ in range(time_outs):
        pace = pace.after_time_out()
    for _ in range(40):
        took = fixed + pace.rows * 0.0005
        assert took < pace.seconds
        pace = pace.after_success(took)
    assert (pace.rows, pace.size) == (SETTINGS.rows, SETTINGS.size)


def test_quick_successes_lead_back_to_the_settings() -> None:
    """And never beyond them."""
    pace = SETTINGS
    for _ in range(12):
        pace = pace.after_time_out()
    for _ in range(12):
        pace = pace.after_success(0.1)
    assert pace == SETTINGS


def test_a_size_that_is_set_lower_than_the_smallest_stays() -> None:
    """The settings are the most."""
    assert Pace.first(10, 5000).after_time_out().size == 5000


@pytest.mark.parametrize("bytes_per_second", [2_000, 64_000, 1_000_000])
def test_every_link_makes_progress(bytes_per_second: int) -> None:
    """A queue of rows of 4 kB is pushed over it, with few time-outs, and the batch finds its size."""
    pace, left, time_outs = SETTINGS, 2000, 0
    while left:
        rows = min(left, pace.rows, max(1, pace.size // 4000))
        took = rows * 4000 / bytes_per_second
        if took > pace.seconds:
            pace, time_outs = pace.after_time_out(), time_outs + 1
        else:
            pace, left = pace.after_success(took), left - rows
    assert time_outs <= 10
