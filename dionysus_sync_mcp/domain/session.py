"""Which session this is, and which project: decided from the environment and the session file."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePath
from typing import Literal, NamedTuple, Protocol
from uuid import UUID

from dionysus_sync_mcp.domain.text import line

Origin = Literal["environment", "file", "new"]
PROJECT_NAME_LENGTH = 200
NAMELESS_PROJECT = "default"
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class LastSession(Protocol):
    """What a session file says; times are aware."""

    @property
    def session_id(self) -> str: ...

    @property
    def started_at(self) -> datetime: ...

    @property
    def last_activity_at(self) -> datetime: ...


class EndedSession(NamedTuple):
    """A session that idled too long; it ended with its last activity."""

    session_id: str
    started_at: datetime
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class SessionDecision:
    """The session of this process, and the one before it if it has ended by idling."""

    session_id: str
    started_at: datetime
    origin: Origin
    ended: EndedSession | None = None


def session_id_of(text: str | None) -> str | None:
    """The id in lower case; `None` for anything but a UUID with its hyphens."""
    candidate = (text or "").strip().lower()
    return candidate if _UUID.fullmatch(candidate) else None


def is_fresh(last: LastSession, now: datetime, idle: timedelta) -> bool:
    """Whether a session still goes on; a time as far in the future as an idle one in the past is not believed."""
    return abs(now - last.last_activity_at) < idle


def decide_session(
    environment_id: str | None, last: LastSession | None, now: datetime, idle: timedelta, new_id: UUID
) -> SessionDecision:
    """The environment's session if it names one, else the file's if that is fresh, else a new one.

    Args:
        environment_id: `CLAUDE_CODE_SESSION_ID`, whatever it holds.
        last: The session file's content, `None` where there is no usable file.
        idle: After so long without activity a session has ended.
        new_id: The id of a new session, should one begin.
    """
    named = session_id_of(environment_id)
    if named:
        return _named(named, last, now, idle)
    if last and is_fresh(last, now, idle):
        return SessionDecision(last.session_id, min(last.started_at, now), "file")
    return SessionDecision(str(new_id), now, "new", _ended(last))


def _named(session_id: str, last: LastSession | None, now: datetime, idle: timedelta) -> SessionDecision:
    if last and last.session_id == session_id:
        # Claude Code can resume a session after days: it is the same one, however long it idled.
        return SessionDecision(session_id, min(last.started_at, now), "environment")
    stale = last if last and not is_fresh(last, now, idle) else None
    return SessionDecision(session_id, now, "environment", _ended(stale))


def _ended(last: LastSession | None) -> EndedSession | None:
    if last is None:
        return None
    return EndedSession(last.session_id, min(last.started_at, last.last_activity_at), last.last_activity_at)


def project_name(configured: str | None, project_folder: str | None, working_folder: str) -> str:
    """The project's name: the setting, else the name of the project's folder, else of the working folder.

    Args:
        configured: `DIONYSUS_PROJECT`.
        project_folder: Absolute path, from `CLAUDE_PROJECT_DIR`.
        working_folder: Absolute path.
    """
    folders = (PurePath(folder).name for folder in (project_folder, working_folder) if folder)
    names = (line(name, PROJECT_NAME_LENGTH) for name in (configured or "", *folders) if name != "..")
    return next(filter(None, names), NAMELESS_PROJECT)
