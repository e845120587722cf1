"""A question becomes a full-text query that is data, never syntax."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dionysus_sync_mcp.domain.words import MOST_WORDS, QUESTION_WORDS, lucene_query

SYNTAX = '+-&|!(){}[]^"~*?:\\/'


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("What did we decide about caching?", "decide about caching\\?"),
        ("who are you", "who are you"),
        ("Java OR Kotlin AND NOT Scala", "Java or Kotlin and not Scala"),
        ("content:secret* path/to", "content\\:secret\\* path\\/to"),
        ("cache cache Cache", "cache Cache"),
        ("?!", ""),
        (" \n\t", ""),
        ("🗂 キャッシュ", "キャッシュ"),
    ],
)
def test_a_question_becomes_its_telling_words(text: str, query: str) -> None:
    """Question words go unless nothing else is there; operators and special characters lose their meaning."""
    assert lucene_query(text) == query


@given(st.text(st.one_of(st.sampled_from(SYNTAX + " \n"), st.characters()), max_size=80))
def test_no_character_keeps_a_meaning(text: str) -> None:
    """Every special character is escaped, and no operator stands alone."""
    query = lucene_query(text)
    unescaped = re.sub(r"\\.", "", query)
    assert not set(unescaped) & set(SYNTAX)
    assert not set(query.split()) & {"AND", "OR", "NOT"}


@given(st.lists(st.sampled_from(sorted(QUESTION_WORDS)), min_size=1))
def test_question_words_alone_are_still_asked_for(words: list[str]) -> None:
    """The query is never cut down to nothing."""
    assert set(lucene_query(" ".join(words)).split()) == set(words)


@given(st.text())
def test_a_text_with_a_word_never_becomes_an_empty_query(text: str) -> None:
    """And one without is not asked at all."""
    assert bool(lucene_query(text)) == any(map(str.isalnum, text))


def test_a_very_long_text_stays_within_what_lucene_takes() -> None:
    """Only the first words count."""
    assert len(lucene_query(" ".join(f"word{i}" for i in range(5000))).split()) == MOST_WORDS
