"""Sessions, on a file in memory and a store in memory; the file on disk is tried in tests/integration."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from dionysus_sync_mcp.domain.errors import AccessRefused, InputError, Unavailable
from dionysus_sync_mcp.engine.ports.sessions import SessionFileContent, SessionRow
from dionysus_sync_mcp.engine.sessions import (
    CurrentSession,
    end_session,
    list_sessions,
    save_session_once,
    start_session,
    touch_session,
)

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
IDLE = timedelta(minutes=30)
NEW = UUID("00000000-0000-4000-8000-00000000000a")
MINE = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"


class File:
    """A session file in memory, which can be made read-only."""

    def __init__(self, content: SessionFileContent | None = None) -> None:
        self.content = content
        self.read_only = False
        self.is_locked = False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Note that it is."""
        self.is_locked = True
        yield
        self.is_locked = False

    def read(self) -> SessionFileContent | None:
        """What was written."""
        assert self.is_locked
        return self.content

    def write(self, session_id: str, started_at: datetime, now: datetime) -> None:
        """Replace it."""
        self._check()
        self.content = SessionFileContent(session_id, started_at, now)

    def touch(self, now: datetime) -> None:
        """Move the last activity."""
        self._check()
        assert self.content
        self.content = SessionFileContent(self.content.session_id, self.content.started_at, now)

    def remove(self) -> None:
        """Take it away."""
        self._check()
        self.content = None

    def _check(self) -> None:
        assert self.is_locked
        if self.read_only:
            raise AccessRefused("the session file cannot be written (Read-only file system)", where="/x")


class Store:
    """Rows in memory, which can be away."""

    def __init__(self) -> None:
        self.rows: dict[str, SessionRow] = {}
        self.ended: dict[str, tuple[datetime, str | None]] = {}
        self.is_away = False

    async def save_session(self, session: SessionRow) -> None:
        """Keep it."""
        self._check()
        self.rows[session.id] = session

    async def end_session(self, session_id: str, ended_at: datetime, summary: str | None = None) -> bool:
        """The first end counts."""
        self._check()
        return self.ended.setdefault(session_id, (ended_at, summary)) == (ended_at, summary)

    async def sessions(self, project: str | None, limit: int) -> list[SessionRow]:
        """All of the project."""
        self._check()
        return [row for row in self.rows.values() if project in {None, row.project_id}][:limit]

    def _check(self) -> None:
        if self.is_away:
            raise Unavailable("away", where="PostgreSQL")


def start(file: File, environment_id: str | None = None, now: datetime = NOW, new_id: UUID = NEW) -> CurrentSession:
    """Start in the project "p"."""
    return start_session(file, environment_id=environment_id, project="p", now=now, idle=IDLE, new_id=new_id)


def idle_for(minutes: int, session_id: str = OTHER) -> SessionFileContent:
    """A file's content, last active so long ago."""
    return SessionFileContent(session_id, NOW - timedelta(hours=2), NOW - timedelta(minutes=minutes))


def test_a_new_session_is_written() -> None:
    """Without a file a session begins, and the next server finds it there."""
    file = File()
    first = start(file)
    assert (first.session_id, first.origin, first.warnings) == (str(NEW), "new", ())
    second = start(file, now=NOW + timedelta(minutes=29), new_id=UUID(MINE))
    assert (second.session_id, second.started_at, second.origin) == (str(NEW), NOW, "file")


def test_the_environments_session_is_written_for_others_to_read() -> None:
    """The file always names the session of the latest server."""
    file = File(idle_for(1))
    assert start(file, MINE).origin == "environment"
    assert file.content == SessionFileContent(MINE, NOW, NOW)


def test_a_file_that_cannot_be_written_is_a_warning() -> None:
    """A session does not need its file."""
    file = File()
    file.read_only = True
    session = start(file)
    assert session.session_id == str(NEW)
    assert "Read-only file system" in session.warnings[0]
    assert "Other programs cannot read" in session.warnings[0]


async def test_saving_ends_the_stale_session_with_its_last_activity() -> None:
    """The session that idled out ended when it was last active, not when that was noticed."""
    store, session = Store(), start(File(idle_for(45)))
    await save_session_once(store, session, NOW)
    assert store.ended == {OTHER: (NOW - timedelta(minutes=45), None)}
    assert store.rows[str(NEW)] == SessionRow(str(NEW), "p", NOW, NOW)


@pytest.mark.promise("P9")
async def test_saving_waits_for_the_store() -> None:
    """With PostgreSQL away the session goes on, and saving it later, even twice, is the same."""
    store, session = Store(), start(File(idle_for(45)))
    store.is_away = True
    with pytest.raises(Unavailable):
        await save_session_once(store, session, NOW)
    store.is_away = False
    for _ in range(2):
        await save_session_once(store, session, NOW + timedelta(minutes=1))
    assert store.rows[str(NEW)].started_at == NOW
    assert len(store.rows) == 1


def test_activity_refreshes_the_file() -> None:
    """A touched session is fresh for another half hour."""
    file = File()
    session = start(file)
    assert touch_session(file, session, NOW + timedelta(minutes=20), IDLE) == []
    assert file.content == SessionFileContent(str(NEW), NOW, NOW + timedelta(minutes=20))


@pytest.mark.parametrize("content", [None, idle_for(45)])
def test_activity_restores_the_file(content: SessionFileContent | None) -> None:
    """A file that was removed, or holds a session that ended, names this session again."""
    file = File()
    session = start(file)
    file.content = content
    assert touch_session(file, session, NOW, IDLE) == []
    assert file.content == SessionFileContent(str(NEW), NOW, NOW)


def test_activity_leaves_another_live_session_alone() -> None:
    """Two sessions in one folder do not fight for the file."""
    file = File()
    session = start(file)
    file.content = idle_for(1)
    assert touch_session(file, session, NOW, IDLE) == []
    assert file.content == idle_for(1)


def test_activity_that_cannot_be_noted_is_a_warning() -> None:
    """A read-only file stops nothing."""
    file = File()
    session = start(file)
    file.read_only = True
    assert "Read-only" in touch_session(file, session, NOW, IDLE)[0]


async def test_ending_a_session_removes_its_file() -> None:
    """The next start begins a new session."""
    file, store = File(), Store()
    session = start(file)
    assert await end_session(store, file, session.session_id.upper(), NOW, "what it was about")
    assert file.content is None
    assert store.ended == {session.session_id: (NOW, "what it was about")}
    assert not await end_session(store, file, session.session_id, NOW + timedelta(minutes=1))


async def test_ending_another_session_leaves_the_file() -> None:
    """The file of the session that goes on stays."""
    file, store = File(), Store()
    start(file)
    await end_session(store, file, OTHER, NOW)
    assert file.content is not None


async def test_ending_with_the_store_away_changes_nothing() -> None:
    """The file is not removed for a session that has not ended."""
    file, store = File(), Store()
    start(file)
    store.is_away = True
    with pytest.raises(Unavailable):
        await end_session(store, file, str(NEW), NOW)
    assert file.content is not None


async def test_ending_what_is_no_session_is_an_input_error() -> None:
    """An id that is not a UUID is refused before the store is asked."""
    store = Store()
    store.is_away = True
    with pytest.raises(InputError):
        await end_session(store, File(), "x'; --", NOW)


async def test_sessions_are_listed() -> None:
    """Those of a project, as reports."""
    store, session = Store(), start(File())
    await save_session_once(store, session, NOW)
    assert await list_sessions(store, "p", 10) == [session.report()]
    assert await list_sessions(store, "q", 10) == []


@pytest.mark.parametrize("limit", [0, -1, 201, 10_000])
async def test_a_list_is_bounded(limit: int) -> None:
    """The limit of a list is 1 to 200."""
    with pytest.raises(InputError):
        await list_sessions(Store(), None, limit)
