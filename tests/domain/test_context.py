"""Which rows of sessions, projects and references the remote store can hold."""

from typing import Any

import pytest

from dionysus_sync_mcp.domain.context import broken_row

TIME = "2026-01-01T00:00:00+00:00"
ID = "6f1f7d1c-2f6b-4f8e-9f60-3a4f6c0d1e2f"
PROJECT = {"id": "p", "name": "p", "description": None, "created_at": TIME}
SESSION = {"id": ID, "project_id": "p", "started_at": TIME, "last_activity_at": TIME, "ended_at": None, "summary": "s"}
LINK = {"source_id": ID, "target_id": ID, "context": "", "created_at": TIME}


@pytest.mark.parametrize(("entity", "row"), [("project", PROJECT), ("session", SESSION), ("reference", LINK)])
def test_a_row_of_its_table_is_whole(entity: Any, row: dict[str, Any]) -> None:  # noqa: ANN401 - a literal
    """Whatever else is in it."""
    assert broken_row(entity, {**row, "unknown": 10**30}) is None


@pytest.mark.parametrize(
    ("entity", "row", "fault"),
    [
        ("project", {**PROJECT, "id": 5}, "id is no text"),
        ("project", {**PROJECT, "id": ["p"]}, "id is no text"),
        ("project", {**PROJECT, "name": None}, "name is no text"),
        ("project", {**PROJECT, "created_at": "infinity"}, "created_at is no time"),
        ("project", {**PROJECT, "created_at": "2026-99-99T00:00:00+00:00"}, "created_at is no time"),
        ("project", {}, "id is no text"),
        ("session", {**SESSION, "id": "no uuid"}, "id is no UUID"),
        ("session", {**SESSION, "ended_at": 7}, "ended_at is no text"),
        ("reference", {**LINK, "target_id": None}, "target_id is no text"),
        ("reference", {**LINK, "source_id": ID.upper()}, "source_id is no UUID"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(entity: Any, row: dict[str, Any], fault: str) -> None:  # noqa: ANN401 - a literal
    """So that it can be parked with the reason."""
    assert broken_row(entity, row) == fault
