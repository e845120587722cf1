"""In which class a memory is, and what a recovery does with it."""

import pytest

from dionysus_sync_mcp.domain.memory import Digest
from dionysus_sync_mcp.domain.recovery_plan import PlanClass, classify, is_restored, shortfall


@pytest.mark.parametrize(
    ("remote", "here", "plan_class"),
    [
        (Digest("a", 2, "x", False), None, "missing_here"),
        (Digest("a", 2, "x", True), None, "deleted"),
        (Digest("a", 2, "x", False), Digest("a", 2, "x", False), "identical"),
        (Digest("a", 2, "x", False), Digest("a", 2, "y", False), "conflicting"),
        (Digest("a", 2, "x", True), Digest("a", 2, "x", False), "conflicting"),
        (Digest("a", 2, "x", False), Digest("a", 1, "x", False), "older_here"),
        (Digest("a", 2, "x", False), Digest("a", 3, "x", False), "newer_here"),
    ],
)
def test_classes(remote: Digest, here: Digest | None, plan_class: PlanClass) -> None:
    """By presence, then version, then hash."""
    assert classify(remote, {"a": here} if here else {}) == plan_class


@pytest.mark.promise("P6")
@pytest.mark.parametrize("plan_class", ["older_here", "identical", "newer_here", "conflicting"])
def test_nothing_that_is_here_is_restored(plan_class: PlanClass) -> None:
    """Whatever is asked for."""
    assert not is_restored(plan_class, include_deleted=True)


def test_what_was_deleted_is_restored_only_when_asked_for() -> None:
    """What is missing always is."""
    assert [is_restored("deleted", include_deleted=flag) for flag in (False, True)] == [False, True]
    assert is_restored("missing_here", include_deleted=False)


def test_a_shortfall_is_what_is_neither_verified_nor_there() -> None:
    """It is never less than nothing."""
    assert [shortfall(10, 7, 1), shortfall(10, 10, 0), shortfall(10, 10, 2)] == [2, 0, 0]
