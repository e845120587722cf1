"""What a row of sessions, projects or references must be for the remote store to hold it."""

from collections.abc import Mapping
from typing import Literal
from uuid import UUID

from dionysus_sync_mcp.domain.memory import is_plain_time

CONTEXT_COLUMNS = {
    "session": ("id", "project_id", "started_at", "last_activity_at", "ended_at", "summary"),
    "project": ("id", "name", "description", "created_at"),
    "reference": ("source_id", "target_id", "context", "created_at"),
}
_OPTIONAL = {"ended_at", "summary", "description"}
_UUIDS = {"session": ("id",), "project": (), "reference": ("source_id", "target_id")}


def broken_row(entity: Literal["session", "project", "reference"], row: Mapping[str, object]) -> str | None:
    """Why a row, as a JSON object, is none of its table's; `None` for a good one. Unknown fields are no fault."""
    for name in CONTEXT_COLUMNS[entity]:
        value = row.get(name)
        if not isinstance(value, str) and not (value is None and name in _OPTIONAL):
            return f"{name} is no text"
        if name.endswith("_at") and isinstance(value, str) and not is_plain_time(value):
            return f"{name} is no time"
    return next((f"{name} is no UUID" for name in _UUIDS[entity] if not _is_uuid(str(row[name]))), None)


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
