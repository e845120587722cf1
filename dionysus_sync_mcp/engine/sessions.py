"""Sessions: begun or taken up again at start, kept alive by activity, saved to the local store when it is up."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from dionysus_sync_mcp.domain.errors import AccessRefused, InputError
from dionysus_sync_mcp.domain.session import EndedSession, Origin, decide_session, is_fresh, session_id_of
from dionysus_sync_mcp.engine.ports.sessions import SessionFile, SessionRow, SessionStore
from dionysus_sync_mcp.engine.reports import SessionReport

MOST_LISTED = 200


@dataclass(frozen=True, slots=True)
class CurrentSession:
    """The session of this process.

    Attributes:
        ended: The session before it, if that has ended by idling.
        warnings: Why other programs cannot read the session's id, if they cannot.
    """

    session_id: str
    project: str
    started_at: datetime
    origin: Origin
    ended: EndedSession | None = None
    warnings: tuple[str, ...] = field(default=())

    def report(self) -> SessionReport:
        """For the status."""
        return SessionReport(session_id=self.session_id, project=self.project, started_at=self.started_at)


def start_session(
    file: SessionFile, *, environment_id: str | None, project: str, now: datetime, idle: timedelta, new_id: UUID
) -> CurrentSession:
    """Begin a session or take up the one that goes on; a file that cannot be written is a warning, never an error.

    Servers that start at the same time come to the same session: one after the other reads, decides and writes.

    Args:
        environment_id: `CLAUDE_CODE_SESSION_ID`, whatever it holds.
        idle: After so long without activity a session has ended.
        new_id: The id of a new session, should one begin.
    """
    with file.locked():
        decision = decide_session(environment_id, file.read(), now, idle, new_id)
        warnings = _written(file, decision.session_id, decision.started_at, now)
    return CurrentSession(
        decision.session_id, project, decision.started_at, decision.origin, decision.ended, tuple(warnings)
    )


async def save_session_once(store: SessionStore, session: CurrentSession, now: datetime) -> None:
    """Save the session with `now` as its last activity, and the end of the one before it; idempotent.

    Raises:
        Unavailable: The local store is away: call again later.
    """
    if session.ended:
        await store.end_session(session.ended.session_id, session.ended.ended_at)
    await store.save_session(SessionRow(session.session_id, session.project, session.started_at, now))


def touch_session(file: SessionFile, session: CurrentSession, now: datetime, idle: timedelta) -> list[str]:
    """Note an activity in the file; returns warnings.

    A file that is gone or stale is written again. Another session that is going on in the same folder keeps the file.
    """
    with file.locked():
        last = file.read()
        if last and last.session_id != session.session_id and is_fresh(last, now, idle):
            return []
        if last is None or last.session_id != session.session_id:
            return _written(file, session.session_id, session.started_at, now)
        return _touched(file, now)


async def end_session(
    store: SessionStore, file: SessionFile, session_id: str, now: datetime, summary: str | None = None
) -> bool:
    """End a session, so that the next start begins a new one; `False` if there is no such session going on.

    Raises:
        InputError: The id is not a UUID.
        Unavailable: The local store is away; nothing was changed.
        AccessRefused: The session has ended, but its file cannot be removed.
    """
    valid_id = session_id_of(session_id)
    if not valid_id:
        raise InputError("a session's id is a UUID", where="session_id", hint="List the sessions to see their ids.")
    ended = await store.end_session(valid_id, now, summary)
    with file.locked():
        last = file.read()
        if last and last.session_id == valid_id:
            file.remove()
    return ended


async def list_sessions(store: SessionStore, project: str | None, limit: int) -> list[SessionReport]:
    """The newest sessions of a project, or of all.

    Raises:
        InputError: `limit` is not 1 to 200.
        Unavailable: The local store is away.
    """
    if not 1 <= limit <= MOST_LISTED:
        raise InputError(f"limit must be 1 to {MOST_LISTED}", where="limit")
    return [
        SessionReport(
            session_id=row.id,
            project=row.project_id,
            started_at=row.started_at,
            ended_at=row.ended_at,
            summary=row.summary,
        )
        for row in await store.sessions(project, limit)
    ]


def _written(file: SessionFile, session_id: str, started_at: datetime, now: datetime) -> list[str]:
    try:
        file.write(session_id, started_at, now)
    except AccessRefused as error:
        return [f"{error} Other programs cannot read the id of this session."]
    return []


def _touched(file: SessionFile, now: datetime) -> list[str]:
    try:
        file.touch(now)
    except AccessRefused as error:
        return [str(error)]
    return []
