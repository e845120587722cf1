"""What follows for the local store from what became of a memory in the remote."""

from itertools import product

import pytest

from dionysus_sync_mcp.domain.conflict import Consequence, Outcome, decide_consequence


@pytest.mark.parametrize("outcome", ["created", "updated", "unchanged", "conflict_won", "resurrected"])
@pytest.mark.parametrize("local", [None, 1, 9])
def test_what_the_remote_holds_is_confirmed(outcome: Outcome, local: int | None) -> None:
    """Whatever the local row has become since."""
    assert decide_consequence(outcome, 3, 3, local, sent_delete=False) == "confirm"


@pytest.mark.parametrize(
    ("outcome", "sent", "remote", "local", "sent_delete", "consequence"),
    [
        ("stale", 1, 5, 1, False, "rebase"),
        ("stale", 1, 5, 5, False, "rebase"),
        ("stale", 1, 5, 6, False, "nothing"),
        ("stale", 1, 5, None, False, "nothing"),
        ("stale", 2, 5, None, True, "nothing"),
        ("stale", 2, 5, 1, True, "rebase"),
        ("conflict_lost", 3, 3, 3, False, "pull"),
        ("conflict_lost", 3, 3, 4, False, "nothing"),
        ("conflict_lost", 3, 3, None, False, "nothing"),
        ("conflict_lost", 3, 3, None, True, "nothing"),
        ("conflict_lost", 3, 3, 1, True, "rebase"),
    ],
)
def test_what_the_remote_did_not_take(
    outcome: Outcome, sent: int, remote: int, local: int | None, sent_delete: bool, consequence: Consequence
) -> None:
    """A live row goes above the remote, the remote's win comes here, a newer change is already on its way."""
    assert decide_consequence(outcome, sent, remote, local, sent_delete=sent_delete) == consequence


@pytest.mark.parametrize("sent_delete", [False, True])
def test_what_is_older_than_what_was_confirmed_changes_nothing(sent_delete: bool) -> None:
    """A refused state that is tried again after its successor went through."""
    outcome: Outcome = "conflict_lost" if sent_delete else "stale"
    for confirmed, consequence in ((5, "nothing"), (4, "rebase"), (None, "rebase")):
        assert decide_consequence(outcome, 2, 5, 5, sent_delete=sent_delete, confirmed=confirmed) == consequence


@pytest.mark.promise("P7")
def test_no_live_row_that_lags_is_ever_left_alone() -> None:
    """Otherwise a row could stay behind the remote for ever, with nothing queued."""
    outcomes: tuple[Outcome, ...] = ("stale", "conflict_lost")
    for outcome, remote, local, sent_delete in product(outcomes, range(1, 5), range(1, 5), (False, True)):
        consequence = decide_consequence(outcome, 1, remote, local, sent_delete=sent_delete)
        assert consequence != "nothing" or local > remote
