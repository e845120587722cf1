"""A memory in its shapes: what the remote's types cannot carry is carried exactly beside them."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dionysus_sync_mcp.domain.memory import (
    Digest,
    Properties,
    RemoteMemory,
    broken_rules,
    broken_vector_rule,
    properties_of,
)

PLAIN: dict[str, str | None] = {
    "content": "c", "memory_type": "semantic", "importance": "0.5", "source_project": "p", "session_id": None,
    "tags": '["a"]', "created_at": "2024-01-02T03:04:05.678901+00:00", "updated_at": "2024-01-02T03:04:05+00:00",
}  # fmt: skip
VALID = RemoteMemory("i", 1, "h", None, "c", "semantic", 0.5, "p", None, [], None, None, None)


def of(extra: str | None = None, **columns: str | None) -> Properties:
    """The properties of a plain row with some other columns."""
    return properties_of({**PLAIN, **columns}, extra)


def test_plain_values_need_nothing_beside_them() -> None:
    """No extra where the row has no other columns."""
    assert of() == Properties("c", "semantic", 0.5, "p", None, ["a"], PLAIN["created_at"], PLAIN["updated_at"], None)
    assert of("{}").extra is None


@pytest.mark.parametrize(
    "text", ["infinity", "-infinity", "0044-03-15T12:00:00+00:00 BC", "12345-01-01T00:00:00+00:00", "2024-01-02"]
)
def test_times_out_of_the_remotes_range_are_carried_as_text(text: str) -> None:
    """And are no time in the remote."""
    properties = of(created_at=text)
    assert properties.created_at is None
    assert json.loads(properties.extra or "") == {"created_at": text}


@pytest.mark.parametrize(
    ("text", "value", "exact"),
    [
        ("0.5", 0.5, None),
        ("1", 1.0, None),
        ("0", 0.0, None),
        ("0.50", 0.5, "0.50"),
        ("12345678901234567890.123", 12345678901234567890.123, "12345678901234567890.123"),
        ("NaN", None, '"NaN"'),
        ("Infinity", None, '"Infinity"'),
    ],
)
def test_numbers_keep_their_scale(text: str, value: float | None, exact: str | None) -> None:
    """A numeric's trailing zeros, and values that are no number in the remote."""
    properties = of(importance=text)
    assert properties.importance == value
    assert properties.extra == (None if exact is None else f'{{"importance": {exact}}}')


@pytest.mark.parametrize("tags", ['["a", null]', '[["a"], ["b"]]', "[1]", '"not a list"'])
def test_tags_that_the_remote_cannot_hold_are_carried_as_json(tags: str) -> None:
    """What is text among them can be searched."""
    properties = of(tags=tags)
    assert properties.tags == (["a"] if '"a", null' in tags else [])
    assert json.loads(properties.extra or "") == {"tags": json.loads(tags)}


def test_no_tags_are_no_list() -> None:
    """A null is not an empty list."""
    assert (of(tags=None).tags, of(tags="[]").tags) == (None, [])


@given(
    st.dictionaries(st.text(min_size=1), st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()))
)
def test_unknown_columns_are_carried_as_they_are(columns: dict[str, object]) -> None:
    """Whatever their names and values, beside exact values of known columns."""
    columns.pop("importance", None)
    properties = of(json.dumps(columns), importance="0.50")
    assert json.loads(properties.extra or "") == {**columns, "importance": 0.5}


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_no_number_is_changed(value: float) -> None:
    """A real comes back as the same number."""
    properties = of(importance=repr(value))
    assert properties.importance is not None
    assert math.isclose(properties.importance, value, rel_tol=0, abs_tol=0)


@pytest.mark.parametrize(
    ("memory", "rules"),
    [
        (VALID, []),
        (VALID._replace(importance=0), []),
        (VALID._replace(importance=1), []),
        (VALID._replace(session_id="0b9f0f6e-8b1a-4c57-8d5e-1d2c3b4a5f60"), []),
        (VALID._replace(version=0), ["sync_version must be >= 1"]),
        (VALID._replace(memory_type="odd"), ["Invalid memory_type: odd"]),
        (VALID._replace(memory_type=None), ["Invalid memory_type: None"]),
        (VALID._replace(importance=1.01), ["Importance must be between 0 and 1"]),
        (VALID._replace(importance=-0.01), ["Importance must be between 0 and 1"]),
        (VALID._replace(importance=math.nan), ["Importance must be between 0 and 1"]),
        (VALID._replace(importance=None), ["Importance must be between 0 and 1"]),
        (VALID._replace(session_id="no uuid"), ["Invalid session_id format"]),
        (Digest("i", 1, "h", False, "semantic", 0.5, ""), ["Invalid session_id format"]),
    ],
)
def test_the_rules_of_the_data_model(memory: RemoteMemory | Digest, rules: list[str]) -> None:
    """In its words."""
    assert broken_rules(memory) == rules


def test_every_broken_rule_is_named() -> None:
    """Not only the first."""
    assert len(broken_rules(RemoteMemory("i", 0, "h", None, None, "x", 2, None, "y", None, None, None, None))) == 4


@pytest.mark.parametrize(
    ("vector", "rule"),
    [
        ([0.5, 0.5], None),
        ([0.5], "Embedding dimension mismatch: expected 2, got 1"),
        ([0.5, math.inf], "Embedding has a value that is not finite"),
        ([math.nan, 0.5], "Embedding has a value that is not finite"),
        ([0.0, 0.0], "Embedding is all zeros"),
    ],
)
def test_the_rule_for_vectors(vector: list[float], rule: str | None) -> None:
    """A vector that would spoil the index is never stored."""
    assert broken_vector_rule(vector, 2) == rule
