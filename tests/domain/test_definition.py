"""Merging noted definitions of the local table."""

import json

import pytest

from dionysus_sync_mcp.domain.definition import widened


def definition(*names: str, **more: object) -> str:
    """Of columns that must not be null."""
    return json.dumps({"columns": [{"name": name, "not_null": True} for name in names], **more})


@pytest.mark.promise("P4")
def test_a_column_is_never_lost() -> None:
    """It is added at the end and may be null; the rest is the current table's, and merging again changes nothing."""
    merged = widened(definition("id", "new", indexes=["theirs"]), definition("id", "price", indexes=["ours"]))
    assert json.loads(merged) == {
        "columns": [
            {"name": "id", "not_null": True}, {"name": "new", "not_null": True}, {"name": "price", "not_null": False}
        ],
        "indexes": ["theirs"],
    }  # fmt: skip
    assert widened(definition("id", "new", indexes=["theirs"]), merged) == merged


@pytest.mark.parametrize("noted", [None, "", "no json", "[1]", '{"columns": 1}', '{"columns": [1]}', definition("id")])
def test_what_adds_nothing_changes_nothing(noted: str | None) -> None:
    """Junk that somebody wrote by hand included."""
    current = definition("id", "price")
    assert widened(current, noted) is current
