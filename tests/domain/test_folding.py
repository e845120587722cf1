"""Folding: one change for each memory, and no state lost."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from dionysus_sync_mcp.domain.folding import fold
from dionysus_sync_mcp.domain.memory import Operation, Properties, Version

NOTHING = Properties(None, None, None, None, None, None, None, None, None)
CAPTURES = st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(1, 5), st.integers(1, 5)), max_size=20)


def version(number: int, content: str = "", operation: Operation = "update") -> Version:
    """A state that can be told from others by its content."""
    return Version(number, operation, content, "2024-01-01T00:00:00Z", NOTHING._replace(content=content))


def test_the_last_state_is_the_newest_and_the_others_come_before_it() -> None:
    """Memories are sorted by id, whatever the order of capture."""
    changes = fold([("b", None, version(1)), ("a", 4, version(5)), ("a", 4, version(6))])
    assert [(c.memory_id, c.base_version, c.newest.number, len(c.older)) for c in changes] == [
        ("a", 4, 6, 1),
        ("b", None, 1, 0),
    ]


def test_a_row_inserted_again_counts_on() -> None:
    """A table that starts at 1 again does not make the newest state the oldest."""
    (change,) = fold([("a", 6, version(7, operation="delete")), ("a", None, version(1, operation="create"))])
    assert (change.base_version, [v.number for v in change.older], change.newest.number) == (6, [7], 8)


def test_nothing_folds_to_nothing() -> None:
    """An empty batch."""
    assert fold([]) == []


@given(CAPTURES)
def test_every_state_is_there_once_in_order_and_numbers_rise(captures: list[tuple[str, int | None, int]]) -> None:
    """For each memory: as many states as captured, in that order, strictly rising; the base is the first one's."""
    given_states = [(name, base, version(number, str(i))) for i, (name, base, number) in enumerate(captures)]
    changes = fold(given_states)
    assert [c.memory_id for c in changes] == sorted({name for name, _, _ in captures})
    for change in changes:
        states = [*change.older, change.newest]
        own = [(base, v) for name, base, v in given_states if name == change.memory_id]
        assert [s.properties.content for s in states] == [v.properties.content for _, v in own]
        assert all(a.number < b.number for a, b in pairwise(states))
        assert change.base_version == own[0][0]
