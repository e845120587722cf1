"""Merges noted definitions of the local table: one that was noted never loses a column that memories may have."""

import json
from typing import Any


def widened(current: str, noted: str | None) -> str:
    """`current` with the columns that only `noted` has, which rows of now need not fill.

    A table that somebody made again with fewer columns does not say that the other ones were not needed: the remote
    store has memories that fill them. Both are JSON text as `dionysus_sync.definition_of` makes it.
    """
    names = {column.get("name") for column in _columns(current)}
    lacking = [{**column, "not_null": False} for column in _columns(noted) if column.get("name") not in names]
    if not lacking:
        return current
    return json.dumps({**json.loads(current), "columns": [*_columns(current), *lacking]})


def _columns(definition: str | None) -> list[dict[str, Any]]:
    """None of what somebody wrote into the remote store by hand and is no definition."""
    try:
        found = json.loads(definition or "{}")
    except ValueError:
        return []
    columns = found.get("columns") if isinstance(found, dict) else None
    return [column for column in columns if isinstance(column, dict)] if isinstance(columns, list) else []
