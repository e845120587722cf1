"""Merges noted definitions of the local table: one that was noted never loses a column that memories may have."""

import json
from typing import Any

from dionysus_sync_mcp.domain.memory import SYNC_COLUMNS


def widened(current: str, noted: str | None) -> str:
    """`current` with the columns that only `noted` has, marked as gone, which rows of now need not fill.

    A table that somebody made again with fewer columns does not say that the other ones were not needed: the remote
    store has memories that fill them. Both are JSON text as `dionysus_sync.definition_of` makes it.
    """
    names = {column.get("name") for column in _columns(current)}
    lacking = [
        {**column, "not_null": False, "gone": True} for column in _columns(noted) if column.get("name") not in names
    ]
    if not lacking:
        return current
    return json.dumps({**json.loads(current), "columns": [*_columns(current), *lacking]})


def reshaped(current: str, noted: str) -> bool:
    """Whether rows have other columns, or of other types, than when `noted` was noted: their images differ then.

    A definition that `widened` has made says which columns were gone already.
    """
    before = [column for column in _columns(noted) if not column.get("gone")]
    return _shapes(_columns(current)) != _shapes(before)


def _shapes(columns: list[dict[str, Any]]) -> list[str]:
    """Without the sync columns, which are in no image. A default counts only where it says how a column is computed."""
    return sorted(
        json.dumps([c.get("name"), c.get("type"), c.get("generated"), c.get("default") if c.get("generated") else None])
        for c in columns
        if c.get("name") not in SYNC_COLUMNS
    )


def _columns(definition: str | None) -> list[dict[str, Any]]:
    """None of what somebody wrote into the remote store by hand and is no definition."""
    try:
        found = json.loads(definition or "{}")
    except ValueError:
        return []
    columns = found.get("columns") if isinstance(found, dict) else None
    return [column for column in columns if isinstance(column, dict)] if isinstance(columns, list) else []
