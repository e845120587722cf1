"""Where a database is, as the remote store remembers it."""

import pytest

from dionysus_sync_mcp.adapters.postgres.place import place_of

URL = "postgresql://app:secret@127.0.0.1:5432/memories"


@pytest.mark.parametrize(
    "other", ["postgresql://other:word@127.0.0.1:5432/memories", "postgresql://127.0.0.1:5432/memories"]
)
def test_a_role_does_not_make_a_place(other: str) -> None:
    """Nor does a password, which is not in it."""
    assert place_of(URL, "laptop") == place_of(other, "laptop")


@pytest.mark.parametrize(
    ("other", "machine"),
    [
        (URL, "desktop"),
        ("postgresql://app:secret@127.0.0.1:5433/memories", "laptop"),
        ("postgresql://app:secret@127.0.0.1:5432/other", "laptop"),
        ("postgresql://app@/memories?host=/tmp", "laptop"),
    ],
)
def test_another_database_is_another_place(other: str, machine: str) -> None:
    """On another machine, at another port, of another name, behind a socket."""
    assert place_of(URL, "laptop") != place_of(other, machine)


def test_a_place_tells_nothing() -> None:
    """Not even the name of the database."""
    assert set(place_of(URL, "laptop")) <= set("0123456789abcdef")
