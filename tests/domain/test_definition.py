"""Merging noted definitions of the local table."""

import json

import pytest

from dionysus_sync_mcp.domain.definition import reshaped, widened


def definition(*names: str, **more: object) -> str:
    """Of columns that must not be null."""
    return json.dumps({"columns": [{"name": name, "not_null": True} for name in names], **more})


@pytest.mark.promise("P4")
def test_a_column_is_never_lost() -> None:
    """It is added at the end and may be null; the rest is the current table's, and merging again changes nothing."""
    merged = widened(definition("id", "new", indexes=["theirs"]), definition("id", "price", indexes=["ours"]))
    assert json.loads(merged) == {
        "columns": [
            {"name": "id", "not_null": True}, {"name": "new", "not_null": True},
            {"name": "price", "not_null": False, "gone": True},
        ],
        "indexes": ["theirs"],
    }  # fmt: skip
    assert widened(definition("id", "new", indexes=["theirs"]), merged) == merged


@pytest.mark.parametrize("noted", [None, "", "no json", "[1]", '{"columns": 1}', '{"columns": [1]}', definition("id")])
def test_what_adds_nothing_changes_nothing(noted: str | None) -> None:
    """Junk that somebody wrote by hand included."""
    current = definition("id", "price")
    assert widened(current, noted) is current


OLD = {"name": "price", "type": "integer", "generated": "", "default": "1", "not_null": True}


@pytest.mark.parametrize(
    ("column", "changed"),
    [
        (OLD, False),
        (OLD | {"default": "2", "not_null": False}, False),
        (OLD | {"type": "numeric"}, True),
        (OLD | {"name": "cost"}, True),
        (OLD | {"generated": "s"}, True),
    ],
)
def test_what_rows_have_is_what_counts(column: dict[str, object], changed: bool) -> None:
    """Other names, types and ways to compute a value change rows that nobody writes; rules for new ones do not."""
    stamp = {"name": "sync_status", "type": "text"}
    noted, current = json.dumps({"columns": [OLD]}), json.dumps({"columns": [column, stamp]})
    assert reshaped(current, noted) is changed
    assert not reshaped(current, widened(current, noted))


def test_a_column_that_comes_back_is_another_one() -> None:
    """It is noted as gone meanwhile."""
    gone = widened(definition("id"), definition("id", "price"))
    assert not reshaped(definition("id"), gone)
    assert reshaped(definition("id", "price"), gone)
