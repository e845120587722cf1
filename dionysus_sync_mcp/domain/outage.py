"""What a look at a service means: whether an outage began, goes on or is over, and when to look again."""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

LOOK_EVERY_SECONDS = 1.0
# Servers lock out whoever comes with a wrong password again and again; and one that answers need not be asked often.
SELDOM_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Outage:
    """A service that is away.

    Attributes:
        refused: It is there, and a person has to act: wrong password, missing right.
    """

    since: datetime
    error: str
    refused: bool = False


class Finding(NamedTuple):
    """What a look has found.

    Attributes:
        outage: `None` when the service answered.
        returned: It was away before this look: whoever waits for it need not wait any longer.
        began: It was not, or only now it is a person who has to act: worth saying once.
    """

    outage: Outage | None
    returned: bool = False
    began: bool = False


def after_look(before: Outage | None, error: str | None, *, refused: bool, now: datetime) -> Finding:
    """What follows from a look at a service.

    Args:
        before: The outage that was known.
        error: Why the service did not answer, `None` if it did.
    """
    if error is None:
        return Finding(None, returned=before is not None)
    if before is None:
        return Finding(Outage(now, error, refused), began=True)
    return Finding(replace(before, error=error, refused=refused), began=refused and not before.refused)


def pause_after(outage: Outage | None, *, urgent: bool, fraction: float) -> float:
    """Seconds until the next look, with jitter, so that many clients do not look at the same time.

    Args:
        urgent: Whether work waits for a service to come back, not only for a person.
        fraction: Random, in [0, 1).
    """
    if not urgent or outage is None or outage.refused:
        return SELDOM_SECONDS * (1 + fraction / 10)
    return LOOK_EVERY_SECONDS * (1 + fraction) / 2
