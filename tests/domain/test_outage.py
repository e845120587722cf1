"""What a look at a service means."""

from datetime import UTC, datetime, timedelta

import pytest

from dionysus_sync_mcp.domain.outage import (
    LOOK_EVERY_SECONDS,
    SELDOM_SECONDS,
    Finding,
    Outage,
    after_look,
    pause_after,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
AWAY = Outage(NOON, "refused the connection")


@pytest.mark.parametrize(
    ("before", "error", "refused", "finding"),
    [
        (None, None, False, Finding(None)),
        (None, "refused the connection", False, Finding(AWAY, began=True)),
        (AWAY, "no answer", False, Finding(Outage(NOON, "no answer"))),
        (AWAY, "wrong password", True, Finding(Outage(NOON, "wrong password", refused=True), began=True)),
        (Outage(NOON, "a", refused=True), "b", True, Finding(Outage(NOON, "b", refused=True))),
        (Outage(NOON, "a", refused=True), "gone", False, Finding(Outage(NOON, "gone"))),
        (AWAY, None, False, Finding(None, returned=True)),
    ],
)
def test_a_look_begins_continues_or_ends_an_outage(
    before: Outage | None, error: str | None, *, refused: bool, finding: Finding
) -> None:
    """It keeps the time when it began, and is said once, and once more if a person has to act."""
    now = NOON if before is None else NOON + timedelta(hours=1)
    assert after_look(before, error, refused=refused, now=now) == finding


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.999])
def test_looks_are_a_second_apart_at_most(fraction: float) -> None:
    """So that the work goes on within seconds of a return, and not all clients look at once."""
    assert LOOK_EVERY_SECONDS / 2 <= pause_after(AWAY, urgent=True, fraction=fraction) < LOOK_EVERY_SECONDS


@pytest.mark.parametrize("fraction", [0.0, 0.999])
def test_a_wrong_password_is_tried_seldom(fraction: float) -> None:
    """A server that counts wrong passwords must not lock the user out; nor is there haste where only a person helps."""
    refused = Outage(NOON, "wrong password", refused=True)
    assert pause_after(refused, urgent=True, fraction=fraction) >= SELDOM_SECONDS
    assert pause_after(AWAY, urgent=False, fraction=fraction) >= SELDOM_SECONDS


@pytest.mark.parametrize("fraction", [0.0, 0.999])
def test_a_service_that_answers_is_looked_at_seldom(fraction: float) -> None:
    """However long another one is away."""
    assert pause_after(None, urgent=True, fraction=fraction) >= SELDOM_SECONDS
