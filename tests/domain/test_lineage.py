"""Which store has gone back in time."""

import pytest

from dionysus_sync_mcp.domain.lineage import Lineage, RemoteLineage, Standing, standing

HERE = Lineage("e1", 7, "seventh")


def there(epoch: str = "e1", generation: int = 7, lineage: str = "seventh", *past: str) -> RemoteLineage:
    """What the remote remembers."""
    return RemoteLineage(Lineage(epoch, generation, lineage), frozenset(past))


@pytest.mark.promise("P7")
@pytest.mark.parametrize(
    ("remote", "waits", "expected"),
    [
        (None, False, "unknown_there"),
        (there(lineage=""), False, "unknown_there"),
        (there(), False, "same"),
        (there(generation=8, lineage="eighth"), True, "resent"),
        (there(generation=8, lineage="eighth"), False, "behind_here"),
        (there(generation=9, lineage="ninth"), True, "behind_here"),
        (there(generation=7, lineage="a copy's"), False, "behind_here"),
        (there(generation=7, lineage="a copy's"), True, "behind_here"),
        (there(generation=6, lineage="sixth"), False, "behind_there"),
        (there("e2", 9, "ninth", "e1"), False, "behind_here"),
        (there("e0", 9, "ninth"), False, "unknown_there"),
    ],
)
def test_which_store_has_gone_back(remote: RemoteLineage | None, waits: bool, expected: Standing) -> None:
    """Only a push whose entries still wait here may be ahead over there without anybody being asked."""
    assert standing(HERE, remote, last_push_waits=waits) == expected


@pytest.mark.promise("P7")
def test_a_backup_between_two_attempts_of_the_last_push_is_an_older_remote() -> None:
    """The first attempt's answer was lost, and both count as the same generation."""
    remote = there(lineage="the first attempt of the seventh")
    found = standing(HERE, remote, last_push_waits=False, repeated="the first attempt of the seventh")
    assert found == "behind_there"
    assert standing(HERE, there(lineage="a copy's"), last_push_waits=False, repeated="another's") == "behind_here"
