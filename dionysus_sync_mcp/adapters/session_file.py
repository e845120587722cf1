"""The session file: a bare UUID on its first line for whoever reads it, what we want to remember below.

Whatever else stands at its place (a folder, a link, someone else's file, nonsense) is never followed or read as ours.
"""

import errno
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dionysus_sync_mcp.domain.errors import AccessRefused
from dionysus_sync_mcp.domain.session import session_id_of
from dionysus_sync_mcp.engine.ports.sessions import SessionFileContent

if sys.platform != "win32":
    import fcntl

FILE_NAME = ".claude-session-id"
_STARTED = "started_at="
_LONGEST = 4096
# Another server holds the lock for some milliseconds; who holds it longer does not do so for this file.
_LOCK_SECONDS = 0.25
_LOCK_PAUSE = 0.005
# Neither is there on Windows, which has no such links and pipes in the file system by default.
_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def session_file_path(configured: Path | None, project_folder: Path | None, home: Path) -> Path:
    """Where the session file is: as set, else in the project's folder, else in the home folder."""
    if configured:
        return configured.expanduser()
    return (project_folder or home) / FILE_NAME


class SessionFileOnDisk:
    """A `SessionFile`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other servers from deciding at the same time; where the folder cannot be locked, go on without.

        The lock is the folder's own, so that no lock file is left in the project, and ends with the process.
        """
        folder = _locked_folder(self._path.parent)
        try:
            yield
        finally:
            if folder is not None:
                os.close(folder)

    def read(self) -> SessionFileContent | None:
        """`None` where there is no usable file."""
        try:
            text, changed = self._text()
            last_activity = datetime.fromtimestamp(changed, UTC)
        except (OSError, ValueError, OverflowError):
            return None
        session_id, *rest = text.splitlines() or [""]
        valid_id = session_id_of(session_id)
        return SessionFileContent(valid_id, _started_at(rest) or last_activity, last_activity) if valid_id else None

    def write(self, session_id: str, started_at: datetime, now: datetime) -> None:
        """Atomically, mode 0600, the bare id on the first line, `now` as the time of the last activity.

        Raises:
            AccessRefused: The file cannot be written; what was there is unchanged.
        """
        try:
            self._replace(f"{session_id}\n{_STARTED}{started_at.isoformat()}\n", now)
        except OSError as error:
            raise self._refused("cannot be written", error) from error

    def touch(self, now: datetime) -> None:
        """Note an activity; a file that is gone stays gone.

        Raises:
            AccessRefused: The file's time cannot be set.
        """
        try:
            os.utime(self._path, (now.timestamp(), now.timestamp()))
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._refused("cannot be touched", error) from error

    def remove(self) -> None:
        """Take the file away, if it is there.

        Raises:
            AccessRefused: It cannot be removed.
        """
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise self._refused("cannot be removed", error) from error

    def _text(self) -> tuple[str, float]:
        descriptor = os.open(self._path, os.O_RDONLY | _SAFELY)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or not _is_ours(found):
                raise OSError(errno.EACCES, "not a plain file of this user")
            return os.read(descriptor, _LONGEST).decode("utf-8-sig", "replace"), found.st_mtime
        finally:
            os.close(descriptor)

    def _replace(self, text: str, now: datetime) -> None:
        descriptor, name = tempfile.mkstemp(prefix=f"{self._path.name}.", dir=self._path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            os.utime(temporary, (now.timestamp(), now.timestamp()))
            temporary.replace(self._path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _refused(self, what: str, error: OSError) -> AccessRefused:
        reason = error.strerror or type(error).__name__
        return AccessRefused(
            f"the session file {what} ({reason})", where=str(self._path), hint="Set DIONYSUS_SESSION_FILE elsewhere."
        )


def _started_at(lines: list[str]) -> datetime | None:
    values = [line.removeprefix(_STARTED) for line in lines if line.startswith(_STARTED)]
    try:
        started = datetime.fromisoformat(values[0]) if values else None
    except ValueError:
        return None
    return started if started and started.tzinfo else None


def _locked_folder(folder: Path) -> int | None:
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    deadline = time.monotonic() + _LOCK_SECONDS
    while not _try_lock(descriptor) and time.monotonic() < deadline:
        time.sleep(_LOCK_PAUSE)
    return descriptor


def _try_lock(descriptor: int) -> bool:
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: there is nothing to wait for.
        return True
    return True


def _is_ours(found: os.stat_result) -> bool:
    return sys.platform == "win32" or found.st_uid == os.geteuid()
