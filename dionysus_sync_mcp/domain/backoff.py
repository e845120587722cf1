"""How long to wait before trying again: exponential, with full jitter, so that many clients do not return at once."""

# Refusals after which a queue entry is not tried again on its own.
MOST_REFUSALS = 10
_FIRST_RETRY = 60.0
_LONGEST_RETRY = 6 * 3600.0

# Beyond this power the cap has long been reached; it keeps a float from overflowing after weeks of outage.
_HIGHEST_POWER = 64


def next_delay(attempt: int, fraction: float, base: float = 0.25, cap: float = 60.0) -> float:
    """Seconds to wait after failure number `attempt` (0 is the first), at least 0 and less than `cap`.

    Args:
        fraction: Random, in [0, 1): which part of the longest wait of this attempt to take.
        base: The longest wait after the first failure, in seconds; it doubles with each failure.
        cap: No wait reaches this, in seconds.
    """
    longest = min(cap, base * 2.0 ** min(max(attempt, 0), _HIGHEST_POWER))
    return longest * fraction


def retry_delay(refusals: int) -> float:
    """Seconds until a parked queue entry is tried again after its refusal number `refusals` (1 is the first).

    A minute, doubling to six hours. No jitter: one process tries them again, a bounded number at a time.
    """
    return min(_LONGEST_RETRY, _FIRST_RETRY * 2.0 ** min(max(refusals - 1, 0), _HIGHEST_POWER))
