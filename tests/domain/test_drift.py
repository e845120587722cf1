"""In which way a memory differs between the stores, and what a repair does about it."""

from typing import get_args

import pytest

from dionysus_sync_mcp.domain.drift import (
    ACTIONS,
    DriftClass,
    Facts,
    Here,
    Reason,
    Side,
    There,
    classify,
    confirmed,
    left,
    repair_of,
    winner,
    words_of,
)

STORE = "this store"


def there(version: int = 2, content_hash: str = "a", *, deleted: bool = False, origin: str | None = STORE) -> There:
    """A memory of the remote store."""
    return There(version, content_hash, deleted, origin)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(Here(2, "a"), there()), None),
        (Facts(Here(2, "a"), there(origin="another")), None),
        (Facts(Here(2, "a"), None), "missing_there"),
        (Facts(Here(3, "b"), there()), "older_there"),
        (Facts(Here(1, "b"), there()), "older_here"),
        (Facts(Here(2, "b"), there()), "different"),
        (Facts(Here(3, "a"), there(deleted=True)), "deleted_there"),
        (Facts(Here(1, "a"), there(deleted=True)), "deleted_there"),
        (Facts(None, there()), "missing_here"),
        (Facts(None, there(), deletion=1), "missing_here"),
        (Facts(None, there(), deletion=2), "deleted_here"),
        (Facts(None, there(), deletion=3), "deleted_here"),
        (Facts(None, there(origin="another")), None),
        (Facts(None, there(origin=None)), None),
        (Facts(None, there(deleted=True)), None),
        (Facts(None, None), None),
        (Facts(None, None, deletion=4), None),
        (Facts(Here(2, ""), there()), None),
        (Facts(Here(2, ""), None), None),
    ],
)
def test_a_memory_is_classified_by_both_sides(facts: Facts, expected: DriftClass | None) -> None:
    """The table of classes; what another store wrote, and what cannot be read, is no drift."""
    assert classify(facts, STORE) == expected


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        (Here(9, "b", base=1), "older_here"),
        (Here(9, "b"), "older_here"),
        (Here(9, "b", base=2), "older_there"),
        (Here(2, "b", base=1), "different"),
        (Here(1, "b", base=1), "older_here"),
    ],
)
def test_of_a_database_that_went_back_the_number_of_changes_decides_nothing(here: Here, expected: DriftClass) -> None:
    """What the remote has gone on with since is newer there; what only this side has changed is not."""
    assert classify(Facts(here, there()), STORE, rolled_back=True) == expected


def test_a_difference_counts_only_if_two_looks_saw_the_same() -> None:
    """A change on its way moves one side between the looks."""
    seen = Facts(Here(2, "a"), there(1))
    assert confirmed(seen, Facts(Here(2, "a"), there(1)))
    assert not confirmed(seen, Facts(Here(3, "b"), there(1)))
    assert not confirmed(seen, Facts(Here(2, "a"), there(2)))


def test_each_class_has_an_action_and_its_words() -> None:
    """A repair knows what to do about everything that a comparison finds."""
    assert set(ACTIONS) == set(get_args(DriftClass))
    assert all(repair_of(drift, None) for drift in get_args(DriftClass))


@pytest.mark.parametrize(
    ("drift", "prefer", "action"),
    [
        ("different", None, "decide"),
        ("different", "remote", "pull"),
        ("different", "local", "send_above"),
        ("older_here", "remote", "pull"),
        ("older_here", "local", "send_above"),
        ("missing_here", "remote", "restore"),
        ("missing_here", "local", "delete_again"),
        ("deleted_there", "remote", "send"),
        ("deleted_there", "local", "send_above"),
        ("missing_there", "local", "send"),
    ],
)
def test_the_preferred_side_has_its_way(drift: DriftClass, prefer: Side | None, action: str | None) -> None:
    """What loses becomes a version or a tombstone; what is done in its place is said in words of its own."""
    assert repair_of(drift, prefer) == action
    assert (words_of(drift, prefer) != ACTIONS[drift]) == (action != repair_of(drift, None))


@pytest.mark.parametrize(
    ("here", "remote", "expected"),
    [
        ("2026-01-01T00:00:01+00:00", "2026-01-01T00:00:00Z", "local"),
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:01Z", "remote"),
        ("2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00Z", "local"),
        ("2026-01-01T00:00:00", "2026-01-01T00:00:00Z", "local"),
        (None, None, "local"),
        (None, "2026-01-01T00:00:00Z", "remote"),
        ("infinity", "2026-01-01T00:00:00Z", "remote"),
    ],
)
def test_the_later_content_wins_and_of_two_as_old_the_local_one(
    here: str | None, remote: str | None, expected: Side
) -> None:
    """A change that went by our triggers is a committed change of the user's."""
    assert winner(here, remote, Facts(Here(2, "a"), there(2, "b")), STORE) == expected


@pytest.mark.parametrize(
    ("here", "remote", "expected"),
    [
        (Here(2, "a"), there(2, "b", origin="another store"), "remote"),
        (Here(2, "b"), there(2, "a", origin="another store"), "local"),
        (Here(2, "a"), there(2, "b", origin=None), "local"),
        (Here(2, "a"), None, "local"),
    ],
)
def test_of_two_as_old_of_two_stores_the_greater_hash_wins(here: Here, remote: There | None, expected: Side) -> None:
    """As a push decides it, so that the winner does not depend on who looks."""
    assert winner(None, None, Facts(here, remote), STORE) == expected
    assert winner(None, None, Facts(here, remote), None) == "local", "changes are known to have gone by the triggers"


@pytest.mark.promise("P7")
@pytest.mark.parametrize("reason", ["sweep", "wiped", "gap"])
def test_nothing_is_ever_changed_here_unasked(reason: Reason) -> None:
    """What the background loop mends by itself only brings this store's changes to the remote."""
    actions = {drift: repair_of(drift, None, reason) for drift in get_args(DriftClass)}
    assert set(actions.values()) <= {None, "send", "delete_again", "keep_here"}
    assert actions["older_there"] == actions["missing_there"] == "send"
    assert (actions["deleted_here"] == "delete_again") == (reason != "sweep")
    assert (actions["different"] == "keep_here") == (reason == "gap")


def test_what_is_left_is_counted_by_class() -> None:
    """More mended than found in one class makes nothing of another good."""
    assert left({"older_there": 3, "missing_there": 2}, {"older_there": 5}) == 2
