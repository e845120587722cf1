"""The wait between two tries."""

from hypothesis import given
from hypothesis import strategies as st

from dionysus_sync_mcp.domain.backoff import MOST_REFUSALS, next_delay, retry_delay

attempts = st.integers(min_value=0, max_value=10_000_000)
fractions = st.floats(min_value=0, max_value=1, exclude_max=True)


@given(attempts, fractions)
def test_stays_between_zero_and_the_cap(attempt: int, fraction: float) -> None:
    """However long an outage lasts, the next try comes within a minute."""
    assert 0 <= next_delay(attempt, fraction) < 60


@given(attempts, fractions)
def test_never_shrinks_with_another_failure(attempt: int, fraction: float) -> None:
    """With the same luck, a later failure waits at least as long."""
    assert next_delay(attempt, fraction) <= next_delay(attempt + 1, fraction)


@given(attempts, fractions, fractions)
def test_the_jitter_is_full(attempt: int, one: float, other: float) -> None:
    """The wait is proportional to the random fraction, from nothing to the longest wait."""
    assert (next_delay(attempt, one) < next_delay(attempt, other)) <= (one < other)
    assert next_delay(attempt, 0.0) == 0


def test_a_refused_entry_waits_a_minute_then_twice_as_long_each_time() -> None:
    """Up to six hours; the last automatic try comes within a day."""
    minutes = [retry_delay(refusals) / 60 for refusals in range(1, MOST_REFUSALS + 1)]
    assert minutes == [1, 2, 4, 8, 16, 32, 64, 128, 256, 360]


def test_doubles_from_the_base_up_to_the_cap() -> None:
    """The longest waits are 0.25, 0.5, 1, 2 ... 32, 60, 60 seconds."""
    longest = [next_delay(attempt, 0.5) * 2 for attempt in range(10)]
    assert longest == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
