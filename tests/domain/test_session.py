"""Which session and which project this is."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import pytest

from dionysus_sync_mcp.domain.session import NAMELESS_PROJECT, decide_session, project_name, session_id_of

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
IDLE = timedelta(minutes=30)
NEW = UUID("00000000-0000-4000-8000-00000000000a")
MINE = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"


class Last(NamedTuple):
    """What a file says."""

    session_id: str
    started_at: datetime
    last_activity_at: datetime


def last(session_id: str, idle_minutes: float) -> Last:
    """A session that started three hours ago and was last active so many minutes ago."""
    return Last(session_id, NOW - timedelta(hours=3), NOW - timedelta(minutes=idle_minutes))


def test_without_anything_a_new_session_begins_now() -> None:
    """No environment, no file: the new id, started now."""
    decision = decide_session(None, None, NOW, IDLE, NEW)
    assert (decision.session_id, decision.started_at, decision.origin) == (str(NEW), NOW, "new")
    assert decision.ended is None


@pytest.mark.parametrize("idle_minutes", [0, 10, 29.99, -29])
def test_a_fresh_file_goes_on(idle_minutes: float) -> None:
    """Idle for less than 30 minutes is the same session, with its own start; a lagging clock does no harm."""
    decision = decide_session(None, last(MINE, idle_minutes), NOW, IDLE, NEW)
    assert (decision.session_id, decision.origin) == (MINE, "file")
    assert decision.started_at == NOW - timedelta(hours=3)
    assert decision.ended is None


@pytest.mark.parametrize("idle_minutes", [30, 31, 100_000, -31, -100_000])
def test_a_stale_file_is_ended_with_its_last_activity(idle_minutes: float) -> None:
    """Idle for 30 minutes has ended then; a file from the far future is not believed."""
    stale = last(OTHER, idle_minutes)
    decision = decide_session(None, stale, NOW, IDLE, NEW)
    assert (decision.session_id, decision.origin) == (str(NEW), "new")
    assert decision.ended is not None
    assert decision.ended.session_id == OTHER
    assert decision.ended.ended_at == stale.last_activity_at
    assert decision.ended.started_at <= decision.ended.ended_at


def test_the_environment_wins_over_the_file() -> None:
    """Claude Code's own id counts; the other session in the file, still active, goes on."""
    decision = decide_session(MINE.upper(), last(OTHER, 1), NOW, IDLE, NEW)
    assert (decision.session_id, decision.origin, decision.started_at) == (MINE, "environment", NOW)
    assert decision.ended is None


def test_the_environment_ends_the_stale_session_of_the_file() -> None:
    """A session that nobody continues is ended by the next one."""
    decision = decide_session(MINE, last(OTHER, 45), NOW, IDLE, NEW)
    assert decision.session_id == MINE
    assert decision.ended is not None
    assert decision.ended.session_id == OTHER


def test_a_resumed_session_keeps_its_start() -> None:
    """Claude Code resumes a session after days under its old id: it started when it started, and has not ended."""
    decision = decide_session(MINE, last(MINE, 5000), NOW, IDLE, NEW)
    assert (decision.session_id, decision.started_at) == (MINE, NOW - timedelta(hours=3))
    assert decision.ended is None


@pytest.mark.parametrize("value", ["", "  ", "${CLAUDE_CODE_SESSION_ID}", "abc", MINE[:-1], f"{{{MINE}}}", "\x00"])
def test_an_environment_without_a_uuid_is_ignored(value: str) -> None:
    """Only a UUID names a session; anything else is as if it were not set."""
    assert decide_session(value, last(OTHER, 1), NOW, IDLE, NEW).session_id == OTHER


def test_a_start_in_the_future_is_now() -> None:
    """A start after the present cannot be."""
    future = Last(MINE, NOW + timedelta(days=1), NOW)
    assert decide_session(None, future, NOW, IDLE, NEW).started_at == NOW


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MINE, MINE),
        (f" {MINE.upper()}\n", MINE),
        (MINE.replace("-", ""), None),
        (f"urn:uuid:{MINE}", None),
        (None, None),
    ],
)
def test_only_a_plain_uuid_is_an_id(text: str | None, expected: str | None) -> None:
    """Other spellings that a parser would take are not what the file holds."""
    assert session_id_of(text) == expected


@pytest.mark.parametrize(
    ("configured", "folder", "working", "expected"),
    [
        ("my project", "/home/me/code", "/srv/x", "my project"),
        (None, "/home/me/code", "/srv/x", "code"),
        ("  ", "/home/me/code/", "/srv/x", "code"),
        (None, None, "/srv/x", "x"),
        (None, "", "/srv/x", "x"),
        (None, "/", "/", NAMELESS_PROJECT),
        (None, "/home/me/..", "/srv/x", "x"),
        ("\x1b[31mred\u202e\n'); x", None, "/", "red '); x"),
        ("\u200b", "/home/caf\udce9", "/", "caf"),
        ("x" * 5000, None, "/", "x" * 199 + "…"),
    ],
)
def test_the_project_name(configured: str | None, folder: str | None, working: str, expected: str) -> None:
    """The setting, else the project's folder, else the working folder, on one visible line of bounded length."""
    assert project_name(configured, folder, working) == expected
