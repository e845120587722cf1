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


def usual() -> Pace:
    """The settings, once the statements are planned."""
    return replace(SETTINGS, seconds=USUAL_SECONDS)


def test_the_first_batch_has_time_to_be_planned() -> None:
    """And after two quick ones a deadline is short."""
    assert (SETTINGS.rows, SETTINGS.size, SETTINGS.seconds) == (1000, 4_000_000, FIRST_SECONDS)
    assert SETTINGS.after_success(1.0).after_success(1.0) == usual()
    assert usual().when_cold() == SETTINGS
    slow = replace(usual(), seconds=40.0)
    assert slow.when_cold() == slow


def test_a_time_out_halves_the_batch_and_doubles_the_deadline() -> None:
    """Down to one row, which gets longer than any batch does."""
    pace, paces = usual(), []
    for _ in range(20):
        pace = pace.after_time_out()
        paces.append(pace)
    assert (paces[0].rows, paces[0].size, paces[0].seconds) == (500, 2_000_000, 2 * USUAL_SECONDS)
    assert max(p.seconds for p in paces if p.rows > 1) == LONGEST_SECONDS
    assert (pace.rows, pace.size, pace.seconds) == (1, SMALLEST_SIZE, LONGEST_SECONDS_OF_ONE_ROW)


def test_a_success_that_took_long_changes_nothing() -> None:
    """Else the pace would swing to and fro."""
    pace = usual().after_time_out()
    assert pace.after_success(pace.seconds / 4) == pace


def test_quick_successes_lead_back_to_the_settings() -> None:
    """And never beyond them."""
    pace = usual()
    for _ in range(12):
        pace = pace.after_time_out()
    for _ in range(12):
        pace = pace.after_success(0.1)
    assert pace == usual()


def test_a_size_that_is_set_lower_than_the_smallest_stays() -> None:
    """The settings are the most."""
    assert Pace.first(10, 5000).after_time_out().size == 5000


@pytest.mark.parametrize("bytes_per_second", [2_000, 64_000, 1_000_000])
def test_every_link_makes_progress(bytes_per_second: int) -> None:
    """A queue of rows of 4 kB is pushed over it, with few time-outs, and the batch finds its size."""
    pace, left, time_outs = usual(), 2000, 0
    while left:
        rows = min(left, pace.rows, max(1, pace.size // 4000))
        took = rows * 4000 / bytes_per_second
        if took > pace.seconds:
            pace, time_outs = pace.after_time_out(), time_outs + 1
        else:
            pace, left = pace.after_success(took), left - rows
    assert time_outs <= 10
