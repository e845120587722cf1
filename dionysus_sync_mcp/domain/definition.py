"""Noted definitions of the local table: which one was valid when, what a table has lost of one, and merging them.

Each is JSON text as `dionysus_sync.definition_of` makes it. Of what somebody wrote into the remote store by hand and is
no definition, there are no columns.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from dionysus_sync_mcp.domain.memory import SYNC_COLUMNS

# Of whole numbers, each holds those before it, and looks the same as JSON.
_WHOLE = ("smallint", "integer", "bigint", "numeric")
_INDEX = re.compile(r'(CREATE (?:UNIQUE )?INDEX )("(?:[^"]|"")+"|[^\s"]+)( ON .*)', re.DOTALL)
_TEXT = re.compile(r"(?:text|character varying(?:\(([0-9]{1,9})\))?)")


def widened(current: str, noted: str | None) -> str:
    """`current` with the columns that only `noted` has, marked as gone, which rows of now need not fill.

    A table that somebody made again with fewer columns does not say that the other ones were not needed: the remote
    store has memories that fill them.
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


def is_definition(text: str) -> bool:
    """Whether a table can be made by it: what somebody wrote into the remote store by hand may be anything."""
    try:
        found = json.loads(text)
    except ValueError:
        return False
    if not isinstance(found, dict) or not isinstance(found.get("columns"), list):
        return False
    lists = [
        found.get(name, []) for name in ("constraints", "indexes", "triggers", "policies", "referenced_by", "grants")
    ]
    return (
        all(isinstance(part, list) for part in lists)
        and all(_is_column(column) for column in found["columns"])
        and all(isinstance(words, str) for words in found.get("indexes", []))
        and all(isinstance(found.get(name, False), bool) for name in ("row_security", "forced"))
        and isinstance(found.get("schema", {}), dict)
    )


def _is_column(column: object) -> bool:
    if not isinstance(column, dict) or not isinstance(column.get("name"), str) or not column["name"]:
        return False
    words = [column.get(name) or "" for name in ("type", "default", "generated", "identity", "collation")]
    return all(isinstance(word, str) for word in words) and isinstance(column.get("not_null", False), bool)


def lacks(current: str, noted: str) -> list[str]:
    """What a table lacks of a noted definition, in words; nothing of what was gone then already.

    A constraint or an index is there by its name, or by what it says: PostgreSQL writes a condition that it has read in
    other words than those it was made with.
    """
    here = {str(column.get("name")) for column in _columns(current)} | set(SYNC_COLUMNS)
    columns = [f"column {name}" for name in user_columns(noted, computed=True) if name not in here]
    types = [f"the type of column {name}" for name in retyped(current, noted)]
    constraints = [f"constraint {name}" for name in _missing(_constraints(current), _constraints(noted))]
    indexes = [f"index {name}" for name in _missing(_indexes(current), _indexes(noted))]
    return [*columns, *types, *constraints, *indexes]


def _missing(here: Mapping[str, str], noted: Mapping[str, str]) -> list[str]:
    names = set(here.values())
    return [name for words, name in noted.items() if words not in here and name not in names]


def user_columns(definition: str, *, computed: bool = False) -> dict[str, bool]:
    """The columns of a table without ours, and whether a row that says nothing of it has something in it.

    Args:
        computed: Also those that are computed from others.
    """
    return {
        str(column.get("name")): column.get("default") is not None or bool(column.get("identity"))
        for column in _columns(definition)
        if column.get("name") not in SYNC_COLUMNS
        and not column.get("gone")
        and (computed or not column.get("generated"))
    }


def _constraints(definition: str) -> dict[str, str]:
    """Names, by what they say: where its name is taken, one has another."""
    found = _list(definition, "constraints")
    return {str(one.get("definition")): str(one.get("name")) for one in found if isinstance(one, dict)}


def _indexes(definition: str) -> dict[str, str]:
    """The same of indexes; those of ours are made by the installation."""
    found = [_INDEX.fullmatch(str(words)) for words in _list(definition, "indexes")]
    return {one[1] + one[3]: one[2] for one in found if one and not one[2].startswith("idx_memories_sync_")}


def same(one: str, other: str | None) -> bool:
    """Whether both say the same of the table, whenever it was looked at."""
    return one == other or (other is not None and _without_time(one) == _without_time(other))


def valid_at(noted: Sequence[tuple[datetime, str]], moment: datetime) -> str | None:
    """The definition that held at that time: the last one that was seen by then, else the first there is.

    Args:
        noted: When each was noted, in order. What a definition itself says of when it was seen counts more: that is
            by the clock of the local store, as `moment` is.
    """
    seen = [(_seen_at(text) or at, text) for at, text in noted]
    before = [one for one in seen if one[0] <= moment]
    if before:
        return max(before, key=lambda one: one[0])[1]
    return min(seen, key=lambda one: one[0])[1] if seen else None


def retyped(current: str, noted: str) -> list[str]:
    """The columns whose type cannot hold all that they could hold by `noted`, by name."""
    types = {str(column.get("name")): str(column.get("type")) for column in _columns(current)}
    before = {str(column.get("name")): str(column.get("type")) for column in _columns(noted)}
    return [
        name
        for name, was in before.items()
        if name in types and name not in SYNC_COLUMNS and not _holds(types[name], was)
    ]


def _holds(present: str, noted: str) -> bool:
    """Whether every value of one type is a value of the other that looks the same as JSON."""
    if present == noted:
        return True
    if present in _WHOLE and noted in _WHOLE:
        return _WHOLE.index(present) >= _WHOLE.index(noted)
    if present == "numeric":
        return noted.startswith("numeric(")
    longest, was = _TEXT.fullmatch(present), _TEXT.fullmatch(noted)
    return longest is not None and was is not None and _length(longest) >= _length(was)


def _length(text_type: re.Match[str]) -> float:
    return int(text_type[1]) if text_type[1] else math.inf


def _without_time(definition: str) -> object:
    try:
        found = json.loads(definition)
    except ValueError:
        return definition
    return {name: part for name, part in found.items() if name != "seen_at"} if isinstance(found, dict) else found


def _seen_at(definition: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(json.loads(definition)["seen_at"])
    except (ValueError, TypeError, KeyError):
        return None
    return found if found.tzinfo else None


def _shapes(columns: list[dict[str, Any]]) -> list[str]:
    """Without the sync columns, which are in no image. A default counts only where it says how a column is computed."""
    return sorted(
        json.dumps([c.get("name"), c.get("type"), c.get("generated"), c.get("default") if c.get("generated") else None])
        for c in columns
        if c.get("name") not in SYNC_COLUMNS
    )


def _columns(definition: str | None) -> list[dict[str, Any]]:
    """None of what is no definition."""
    return [column for column in _list(definition, "columns") if isinstance(column, dict)]


def _list(definition: str | None, name: str) -> list[Any]:
    try:
        found = json.loads(definition or "{}")
    except ValueError:
        return []
    part = found.get(name) if isinstance(found, dict) else None
    return part if isinstance(part, list) else []
