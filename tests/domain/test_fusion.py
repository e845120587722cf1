"""One list of two."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dionysus_sync_mcp.domain.fusion import DEPTH, SESSION_BOUND, SESSION_SHARE, Fused, Ranked, fuse

hits = st.lists(
    st.builds(
        Ranked,
        st.sampled_from([f"m{n}" for n in range(30)]),
        st.floats(min_value=0, max_value=50),
        st.sampled_from([None, "s1", "s2"]),
    ),
    max_size=40,
    unique_by=lambda hit: hit.memory_id,
)
weights = st.floats(min_value=0, max_value=1)


def ids(fused: list[Fused]) -> list[str]:
    """The ids, in order."""
    return [hit.memory_id for hit in fused]


@given(hits, hits, weights)
def test_every_hit_is_there_once_and_scores_are_bounded(
    words: list[Ranked], meaning: list[Ranked], weight: float
) -> None:
    """Fusion loses and doubles nothing, and no score leaves its bounds."""
    fused = fuse(words, meaning, weight)
    assert sorted(ids(fused)) == sorted({hit.memory_id for hit in (*words, *meaning)})
    assert all(0 <= hit.score <= 1.0001 + SESSION_SHARE * SESSION_BOUND for hit in fused)
    assert [hit.score for hit in fused] == sorted((hit.score for hit in fused), reverse=True)


@given(hits, hits, weights)
def test_the_order_of_the_lists_does_not_matter(words: list[Ranked], meaning: list[Ranked], weight: float) -> None:
    """Ties are broken by id, so that pages are stable."""
    assert ids(fuse(words, meaning, weight)) == ids(fuse(words[::-1], meaning[::-1], weight))


def test_the_best_of_one_list_beats_the_middle_of_both() -> None:
    """What reciprocal rank gets wrong: rank 1 in one list stands above rank 3 in both."""
    words = [Ranked("top", 9.0, None), *(Ranked(f"m{n}", 2.0 - n / 10, None) for n in range(3))]
    meaning = [Ranked("other", 0.9, None), *(Ranked(f"m{n}", 0.7 - n / 100, None) for n in range(3))]
    assert ids(fuse(words, meaning, 0.6))[0] == "top"


def test_a_hit_of_both_lists_names_both() -> None:
    """Each hit says what found it."""
    fused = fuse([Ranked("a", 2, None), Ranked("b", 1, None)], [Ranked("a", 0.9, None), Ranked("c", 0.8, None)], 0.5)
    assert {hit.memory_id: hit.matched for hit in fused} == {
        "a": ("words", "meaning"),
        "b": ("words",),
        "c": ("meaning",),
    }


def test_hits_of_one_session_lift_each_other() -> None:
    """Of two equal hits, the one whose session was found as well comes first."""
    words = [Ranked("z", 5, "busy"), Ranked("a", 5, "lonely"), Ranked("y", 4, "busy")]
    assert ids(fuse(words, [], 1.0)) == ["z", "a", "y"]


def test_a_crowd_of_middling_hits_does_not_bury_a_good_one() -> None:
    """The lift of a session is bounded."""
    words = [Ranked("best", 10, "small"), *(Ranked(f"m{n:02}", 4, "large") for n in range(90))]
    fused = fuse(words, [], 1.0)
    assert fused[0].memory_id == "best"
    assert fused[1].score == pytest.approx(0.4 + SESSION_SHARE * SESSION_BOUND)


def test_memories_without_a_session_do_not_lift_each_other() -> None:
    """Having no session in common is not having one."""
    words = [Ranked("a", 5, None), Ranked("b", 5, None), Ranked("c", 5, "s")]
    assert len({hit.score for hit in fuse(words, [], 1.0)}) == 1


def test_the_lower_of_two_word_hits_still_counts() -> None:
    """In a list that was not cut the zero is a text without any of the words, not the list's last hit."""
    scores = {hit.memory_id: hit.score for hit in fuse([Ranked("a", 5.0, None), Ranked("b", 4.9, None)], [], 1.0)}
    assert scores["b"] > 0.9 * scores["a"]


def test_the_last_of_a_cut_list_is_the_zero() -> None:
    """In a full list, what was not found scored less than its last hit."""
    words = [Ranked(f"m{n:03}", 200.0 - n, None) for n in range(DEPTH)]
    assert fuse(words, [], 1.0)[-1].score == 0


def test_nothing_found_is_nothing() -> None:
    """Two empty lists make an empty one."""
    assert fuse([], [], 0.5) == []
