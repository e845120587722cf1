"""What sessions need."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A row of the local table `sessions`."""

    id: str
    project_id: str
    started_at: datetime
    last_activity_at: datetime
    ended_at: datetime | None = None
    summary: str | None = None


class SessionStore(Protocol):
    """Rows of the local table `sessions`."""

    async def save_session(self, session: SessionRow) -> None:
        """Insert it, or bring its times up to date; never moves `started_at` or un-ends a session."""
        ...

    async def end_session(self, session_id: str, ended_at: datetime, summary: str | None = None) -> bool:
        """Whether there was such a session to end; an end, once noted, stays."""
        ...

    async def sessions(self, project: str | None, limit: int) -> list[SessionRow]: ...


@dataclass(frozen=True, slots=True)
class SessionFileContent:
    """What the session file says: the id, and when the session was last active (the file's modification time)."""

    session_id: str
    started_at: datetime
    last_activity_at: datetime


class SessionFile(Protocol):
    """The file that other programs read the session id from; synchronous, since it is a few bytes.

    Where it cannot be written, touched or removed, that raises `AccessRefused`.
    """

    def locked(self) -> AbstractContextManager[None]:
        """Keeps other servers from deciding at the same time; held for a read and a write, waits a moment at most."""
        ...

    def read(self) -> SessionFileContent | None:
        """`None` where there is no usable file."""
        ...

    def write(self, session_id: str, started_at: datetime, now: datetime) -> None:
        """Atomically, mode 0600, the bare id on the first line."""
        ...

    def touch(self, now: datetime) -> None: ...

    def remove(self) -> None: ...
