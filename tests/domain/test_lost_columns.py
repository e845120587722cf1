"""What comes back of columns that an incident took."""

from datetime import UTC, datetime

import pytest

from dionysus_sync_mcp.domain.lost_columns import LostColumns, lost_values, parts, with_values
from dionysus_sync_mcp.domain.memory import RemoteMemory

NOON = datetime(2026, 8, 1, 12, tzinfo=UTC)


def memory(extra: str | None, tags: list[str] | None = None) -> RemoteMemory:
    """A state with these further columns."""
    return RemoteMemory("m", 1, "hash", None, "c", "semantic", 0.5, None, None, tags, None, None, extra)


def test_values_of_lost_columns_come_back() -> None:
    """As they were written; a column that the state says something of, or that nobody missed, does not."""
    before = memory('{"note": "n", "price": 1.10, "kept": 1, "older": 2, "none": null}')
    target = memory('{"kept": null}')
    lost = LostColumns(NOON, frozenset({"note", "price", "kept", "none"}))
    assert lost_values(target, before, lost) == {"note": '"n"', "price": "1.10"}
    assert lost_values(target, before, LostColumns(NOON)).keys() == {"note", "price", "older"}


def test_a_null_comes_back_over_a_default() -> None:
    """Where the column is made again with one, the row would have that."""
    lost = LostColumns(NOON, frozenset({"note"}), filled_anyway=frozenset({"note"}))
    assert lost_values(memory(None), memory('{"note": null}'), lost) == {"note": "null"}


def test_a_common_column_comes_back_where_the_table_lacks_it() -> None:
    """A state has no tags, be they none or lost."""
    before, target = memory(None, ["a"]), memory(None)
    assert lost_values(target, before, LostColumns(NOON, absent=frozenset({"tags"}))) == {"tags": '["a"]'}
    assert lost_values(target, before, LostColumns(NOON)) == {}


@pytest.mark.parametrize("text", [None, "", "nope", "[1]", "5", '{"a": 1'])
def test_what_is_no_object_has_no_parts(text: str | None) -> None:
    """Junk that somebody wrote by hand included."""
    assert parts(text) == {}


def test_parts_keep_every_digit() -> None:
    """Nested ones too, whatever space is between them."""
    text = '{ "a" : 1.10 ,"b":{"c": [1, 2.00]}, "q\\"": null }'
    assert parts(text) == {"a": "1.10", "b": '{"c": [1, 2.00]}', 'q"': "null"}
    assert with_values(text, {"a": "2", "z": '"new"'}) == '{"a": 2, "b": {"c": [1, 2.00]}, "q\\"": null, "z": "new"}'
    assert parts("{}") == {}
