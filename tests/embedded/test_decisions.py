"""What the keeper decides, without servers."""

import pytest

from dionysus_sync_mcp.embedded.home import Phase
from dionysus_sync_mcp.embedded.keeper import GRACE_SECONDS, Action, decide, pause_after


@pytest.mark.parametrize(
    ("phase", "wanted", "unwanted_for", "wait", "action"),
    [
        ("stopped", True, 0.0, 0.0, "start"),
        ("stopped", True, 0.0, 1.0, "leave"),
        ("stopped", False, 99.0, 0.0, "leave"),
        ("failed", True, 0.0, -1.0, "start"),
        ("failed", True, 0.0, 9.0, "leave"),
        ("ready", True, 0.0, 0.0, "leave"),
        ("ready", False, GRACE_SECONDS - 0.1, 0.0, "leave"),
        ("ready", False, GRACE_SECONDS, 0.0, "stop"),
        ("fetching", True, 0.0, 0.0, "leave"),
        ("fetching", False, GRACE_SECONDS, 0.0, "abandon"),
        ("starting", False, GRACE_SECONDS - 0.1, 0.0, "leave"),
        ("starting", False, GRACE_SECONDS, 0.0, "abandon"),
        ("stopping", False, 99.0, 0.0, "leave"),
        ("stopping", True, 0.0, 0.0, "leave"),
    ],
)
def test_a_server_follows_its_holders(
    phase: Phase, wanted: bool, unwanted_for: float, wait: float, action: Action
) -> None:
    """Started for a holder unless it failed just now; stopped or abandoned when nobody has held it for a while."""
    assert decide(phase, wanted=wanted, unwanted_for=unwanted_for, wait=wait) == action


def test_pauses_between_tries_double_and_end_at_a_minute() -> None:
    """A server that never starts is not tried in a tight loop, and not given up."""
    assert [pause_after(tries) for tries in (0, 1, 2, 6, 500)] == [1.0, 2.0, 4.0, 60.0, 60.0]
