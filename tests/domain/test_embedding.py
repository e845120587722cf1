"""What a model is given, and one vector of many."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dionysus_sync_mcp.domain.embedding import (
    MOST_PIECES,
    ModelFamily,
    family_of,
    pooled,
    prepared_pieces,
    prepared_query,
    split,
)

NOMIC = family_of("nomic-embed-text")


@pytest.mark.parametrize("name", ["nomic-embed-text", "nomic-embed-text:v1.5", "registry.x/me/Nomic-Embed-Text:latest"])
def test_the_family_goes_by_the_name_without_registry_and_tag(name: str) -> None:
    """However a nomic model is named in full, its prefixes are used."""
    assert family_of(name).document_prefix == "search_document: "
    assert family_of(name).query_prefix == "search_query: "
    assert family_of(name).uncased


def test_other_families_get_no_prefix() -> None:
    """MiniLM and unknown models were not trained with prefixes; an unknown one keeps its case."""
    assert prepared_pieces("Crème", family_of("all-minilm:l6-v2")) == ["creme"]
    assert prepared_pieces("Crème", family_of("my-model")) == ["Crème"]
    assert not family_of("nomic-embed-text-v2-moe").uncased


def test_a_text_is_folded_and_prefixed() -> None:
    """Documents and questions get their own prefix, and lose case, accents and what cannot be encoded."""
    assert prepared_pieces("Café\x00 OK\ud800", NOMIC) == ["search_document: cafe  ok "]
    assert prepared_query("Wo ist DAS Café?", NOMIC) == "search_query: wo ist das cafe?"


def test_every_piece_has_the_prefix_and_fits() -> None:
    """A long text becomes several pieces that each fit the context."""
    pieces = prepared_pieces("word " * 2000, NOMIC)
    assert len(pieces) == 4
    assert all(piece.startswith("search_document: word") for piece in pieces)
    assert max(map(len, pieces)) <= 2500 + len("search_document: ")


def test_a_huge_text_has_a_bounded_number_of_pieces() -> None:
    """Ten megabytes do not hold up everything else."""
    assert len(prepared_pieces("x" * 10_000_000, NOMIC)) == MOST_PIECES


def test_a_blank_text_is_one_piece() -> None:
    """Nothing to say is still something to ask the model, so that counts agree."""
    assert prepared_pieces(" \n", ModelFamily()) == [""]


@given(st.text(), st.integers(min_value=4, max_value=50))
def test_splitting_loses_nothing(text: str, size: int) -> None:
    """The pieces make the text again, and none is empty or too long."""
    pieces = list(split(text, size))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces)


def test_splitting_parts_at_white_space() -> None:
    """A word near the end of a piece stays whole."""
    assert list(split("alpha beta gamma delta", 12)) == ["alpha beta ", "gamma delta"]


def test_pooling_weighs_by_length_and_normalises() -> None:
    """A piece three times as long counts three times as much; the result has length 1."""
    vector = pooled([[1.0, 0.0], [0.0, 1.0]], [3, 1])
    assert vector[0] == pytest.approx(3 * vector[1])
    assert math.hypot(*vector) == pytest.approx(1)


def test_pooling_what_cancels_out_gives_zeros() -> None:
    """No division by zero where two pieces are exact opposites."""
    assert pooled([[1.0, 0.0], [-1.0, 0.0]], [1, 1]) == [0, 0]
