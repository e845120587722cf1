"""The session file on a real disk, whatever stands at its place, and two servers at once."""

import fcntl
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dionysus_sync_mcp.adapters import session_file
from dionysus_sync_mcp.adapters.session_file import FILE_NAME, SessionFileOnDisk, session_file_path
from dionysus_sync_mcp.domain.errors import AccessRefused
from dionysus_sync_mcp.engine.ports.sessions import SessionFileContent
from dionysus_sync_mcp.engine.sessions import CurrentSession, start_session

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
MINE = "11111111-1111-4111-8111-111111111111"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is, or will be."""
    return tmp_path / FILE_NAME


def start(path: Path) -> CurrentSession:
    """Start a server's session without an id in the environment."""
    return start_session(
        SessionFileOnDisk(path),
        environment_id=None,
        project="p",
        now=datetime.now(UTC),
        idle=timedelta(minutes=30),
        new_id=uuid4(),
    )


def test_what_is_written_is_read(path: Path) -> None:
    """Id, start and last activity survive; other programs find the bare id on the first line."""
    file = SessionFileOnDisk(path)
    file.write(MINE, NOW - timedelta(hours=1), NOW)
    assert file.read() == SessionFileContent(MINE, NOW - timedelta(hours=1), NOW)
    assert path.read_text(encoding="utf-8").split("\n")[0] == MINE


def test_only_the_user_may_read_it_and_nothing_is_left_beside_it(path: Path) -> None:
    """Mode 0600 whatever the umask, written over whatever was there, without remains."""
    path.write_text("old", encoding="utf-8")
    path.chmod(0o666)
    before = os.umask(0)
    try:
        SessionFileOnDisk(path).write(MINE, NOW, NOW)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [FILE_NAME]


def test_touching_moves_the_last_activity_only(path: Path) -> None:
    """Activity shows in the file's time."""
    file = SessionFileOnDisk(path)
    file.write(MINE, NOW, NOW)
    file.touch(NOW + timedelta(minutes=5))
    assert file.read() == SessionFileContent(MINE, NOW, NOW + timedelta(minutes=5))


def test_a_file_that_is_gone_can_be_touched_and_removed(path: Path) -> None:
    """Somebody cleaned up: nothing to do, nothing to complain about."""
    file = SessionFileOnDisk(path)
    file.touch(NOW)
    file.remove()
    assert file.read() is None


def test_a_bare_id_of_another_program_counts(path: Path) -> None:
    """The start of a session that says no more than its id is the file's time."""
    path.write_text(f"{MINE.upper()}\r\n", encoding="utf-8-sig")
    os.utime(path, (NOW.timestamp(), NOW.timestamp()))
    assert SessionFileOnDisk(path).read() == SessionFileContent(MINE, NOW, NOW)


@pytest.mark.parametrize(
    "second_line", ["started_at=", "started_at=yesterday", "started_at=2026-05-01", "# hi", "\x00"]
)
def test_a_start_that_cannot_be_read_is_the_files_time(path: Path, second_line: str) -> None:
    """Nonsense below the id does not make the id unusable."""
    path.write_text(f"{MINE}\n{second_line}\n", encoding="utf-8")
    os.utime(path, (NOW.timestamp(), NOW.timestamp()))
    assert SessionFileOnDisk(path).read() == SessionFileContent(MINE, NOW, NOW)


def nothing(path: Path) -> None:
    """No file."""
    assert not path.exists()


def empty(path: Path) -> None:
    """An empty file."""
    path.touch()


def words(path: Path) -> None:
    """No UUID."""
    path.write_text("hello\n", encoding="utf-8")


def binary(path: Path) -> None:
    """No text."""
    path.write_bytes(os.urandom(10_000))


def link_to_a_good_file(path: Path) -> None:
    """A link; what it leads to is a valid session of somebody."""
    target = path.with_name("target")
    SessionFileOnDisk(target).write(MINE, NOW, datetime.now(UTC))
    path.symlink_to(target)


def dangling_link(path: Path) -> None:
    """A link to nothing."""
    path.symlink_to(path.with_name("nowhere"))


def pipe(path: Path) -> None:
    """A named pipe, which nobody writes to."""
    os.mkfifo(path)


def absurd_time(path: Path) -> None:
    """A valid id, last active in the year 2286."""
    path.write_text(MINE, encoding="utf-8")
    os.utime(path, (9_999_999_999, 9_999_999_999))


UNUSABLE = [nothing, empty, words, binary, link_to_a_good_file, dangling_link, pipe, absurd_time]


@pytest.mark.parametrize("make", UNUSABLE)
def test_whatever_stands_there_a_session_starts_and_is_written(path: Path, make: object) -> None:
    """An unusable file is replaced by a good one; what a link leads to is neither read nor changed."""
    assert callable(make)
    make(path)
    target = path.with_name("target")
    before = target.read_bytes() if target.exists() else None
    session = start(path)
    assert (session.origin, session.warnings) == ("new", ())
    assert session.session_id != MINE
    assert path.read_text(encoding="utf-8").split("\n")[0] == session.session_id
    assert not path.is_symlink()
    assert (target.read_bytes() if target.exists() else None) == before
    assert not path.with_name("nowhere").exists()


def test_a_folder_in_its_place_is_a_warning(path: Path) -> None:
    """A folder is not replaced: the session goes on without a file."""
    path.mkdir()
    free = lowest_free_descriptor()
    session = start(path)
    assert lowest_free_descriptor() == free
    assert session.origin == "new"
    assert "cannot be written" in session.warnings[0]
    assert path.is_dir()
    assert [entry.name for entry in path.parent.iterdir()] == [FILE_NAME]


def lowest_free_descriptor() -> int:
    """Rises when one was left open."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


def test_a_project_folder_that_is_gone_is_a_warning(tmp_path: Path) -> None:
    """No folder is made for the file."""
    session = start(tmp_path / "gone" / FILE_NAME)
    assert "DIONYSUS_SESSION_FILE" in session.warnings[0]
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_user_is_not_believed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shared folder somebody else could choose our session."""
    SessionFileOnDisk(path).write(MINE, NOW, datetime.now(UTC))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert SessionFileOnDisk(path).read() is None


def test_a_disk_that_refuses_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk changes nothing and leaves no remains."""
    file = SessionFileOnDisk(path)
    file.write(MINE, NOW, NOW)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AccessRefused, match="No space left"):
        file.write(str(uuid4()), NOW, NOW)
    assert file.read() == SessionFileContent(MINE, NOW, NOW)
    assert [entry.name for entry in path.parent.iterdir()] == [FILE_NAME]


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_content_is_an_id_or_nothing(path: Path, content: bytes) -> None:
    """Reading never fails, and what it gives is a UUID."""
    path.write_bytes(content)
    found = SessionFileOnDisk(path).read()
    assert found is None or str(UUID(found.session_id)) == found.session_id


STARTER = """
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4
from dionysus_sync_mcp.adapters.session_file import SessionFileOnDisk
from dionysus_sync_mcp.engine.sessions import start_session

file = SessionFileOnDisk(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
session = start_session(
    file, environment_id=None, project="p", now=datetime.now(UTC), idle=timedelta(minutes=30), new_id=uuid4()
)
print(session.session_id, session.origin, flush=True)
"""


@pytest.mark.parametrize("make", [nothing, words])
def test_servers_that_start_at_once_are_one_session(path: Path, make: object) -> None:
    """Four processes that are let go together find the same id, and exactly one of them made it."""
    assert callable(make)
    make(path)
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", STARTER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for _ in range(4)
    ]
    ready = [server.stdout.readline() for server in servers if server.stdout]
    for server in servers:
        assert server.stdin
        server.stdin.write("\n")
        server.stdin.flush()
    outcomes = [server.communicate(timeout=10)[0].split() for server in servers]
    assert ready == ["ready\n"] * 4
    assert len({session_id for session_id, _ in outcomes}) == 1
    assert sorted(origin for _, origin in outcomes) == ["file", "file", "file", "new"]


def test_a_lock_that_somebody_keeps_delays_by_a_moment_only(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program's lock on the folder does not keep the server from starting."""
    monkeypatch.setattr(session_file, "_LOCK_SECONDS", 0.02)
    other = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    try:
        assert start(path).origin == "new"
    finally:
        os.close(other)


def test_the_path_is_set_or_in_the_project_or_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two projects open at once are two sessions; without a project the home folder has the file."""
    home, project = Path("/home/me"), Path("/srv/project")
    monkeypatch.setenv("HOME", str(home))
    assert session_file_path(Path("~/my-id"), project, home) == Path("/home/me/my-id")
    assert session_file_path(None, project, home) == Path("/srv/project/.claude-session-id")
    assert session_file_path(None, None, home) == Path("/home/me/.claude-session-id")
