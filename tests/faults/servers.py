"""Servers of a test's own, which can be stopped, killed, frozen and started again on the same port and data."""

import os
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock
from urllib.parse import quote, urlsplit

import anyio
import anyio.to_thread
import psutil
from neo4j import AsyncGraphDatabase
from neo4j.exceptions import DriverError, Neo4jError

from dionysus_sync_mcp.embedded import neo4j_server, postgres_server
from dionysus_sync_mcp.embedded.home import Home, Phase, fresh_log
from dionysus_sync_mcp.embedded.neo4j_server import Neo4jServer, any_free_port
from dionysus_sync_mcp.embedded.postgres_server import PostgresServer
from dionysus_sync_mcp.embedded.processes import Process, gone
from dionysus_sync_mcp.embedded.servers import Report, Running, Server, collect, spawn
from tests.services import postgres
from tests.services.embedded import _fetching_alone

GONE_SECONDS = 20.0
FIRST_PASSWORD = "neo4j"  # noqa: S105 - the one that every new Neo4j has
LOG_LENGTH = 2000
Own = TypeVar("Own", bound="OwnServer")


class HarnessError(Exception):
    """A server of the tests' own was not brought back as it was: this says nothing about the program."""


class OwnServer:
    """A server that the test has to itself.

    Attributes:
        url: Where the program reaches it; the same after each start.
    """

    def __init__(self, server: Server, url: str = "") -> None:
        self.url = url
        self._server = server
        self._process: Process | None = None
        self._found_at = ""

    @property
    def log(self) -> str:
        """The end of what the server has written."""
        file = self._server.folder / "server.log"
        return file.read_text(encoding="utf-8", errors="replace")[-LOG_LENGTH:] if file.exists() else ""

    @property
    def pid(self) -> int:
        """Of the server's process."""
        return self._running.pid

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.alive

    async def start(self) -> None:
        """Start it and wait until it answers; harmless while it runs.

        Raises:
            EmbeddedError: It does not start.
        """
        if self.running:
            return
        started = await self._server.start(_quiet)
        self._process, self._found_at = started.process, started.url
        self.url = self.url or started.url

    async def stop(self) -> None:
        """Stop it in order."""
        if self._process is not None and self._process.alive:
            self.thaw()
            await self._server.stop(self._process)
        self._process = None

    async def kill_9(self) -> None:
        """End it as a power cut does, and wait until it is gone."""
        process = self._running
        self._send(signal.SIGKILL)
        with anyio.fail_after(GONE_SECONDS):
            await gone(process)
        collect()
        self._process = None

    async def restart(self) -> None:
        """Stop it in order and start it again."""
        await self.stop()
        await self.start()

    def freeze(self) -> None:
        """It stays connected and does nothing: SIGSTOP; `thaw` undoes it."""
        self._send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        """To the server and to the processes that it has started, as PostgreSQL does for each connection."""
        server = psutil.Process(self._running.pid)
        for one in (server, *server.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.send_signal(number)

    @property
    def _running(self) -> Process:
        assert self._process is not None
        assert self._process.alive
        return self._process


class OwnPostgres(OwnServer):
    """A PostgreSQL on a loopback port.

    Attributes:
        url: Of the database `postgres`, through TCP, with the password if it asks for one.
        admin_url: The same database through the unix socket, where nobody is asked for a password.
    """

    def __init__(self, server: "TcpPostgres") -> None:
        super().__init__(server, f"postgresql://postgres:@127.0.0.1:{server.port}/postgres")
        self.admin_url = server.url
        self.data = server.folder
        self._tcp = server

    async def set_password(self, password: str) -> None:
        """From now on TCP connections need this password; those that are open stay."""
        await postgres.execute(self.admin_url, f"ALTER ROLE postgres PASSWORD '{password}'")
        self._tcp.ask_for_passwords()
        await postgres.execute(self.admin_url, "SELECT pg_reload_conf()")
        self.url = f"postgresql://postgres:{quote(password)}@127.0.0.1:{self._tcp.port}/postgres"


class OwnNeo4j(OwnServer):
    """A Neo4j of the long-term-support version; `auth` is `None` unless it asks for a password."""

    def __init__(self, server: Neo4jServer, auth: tuple[str, str] | None) -> None:
        super().__init__(server)
        self.auth = auth

    async def start(self) -> None:
        """As every server.

        Raises:
            HarnessError: It is somewhere else now, where nobody looks for it.
        """
        await super().start()
        if self._found_at == self.url:
            return
        await self.stop()
        (self._server.folder / "port").write_text(f"{urlsplit(self.url).port}\n", encoding="ascii")
        raise HarnessError(f"Neo4j came back as {self._found_at}, since somebody else had the port of {self.url}")

    async def set_password(self, password: str) -> None:
        """Replace the password, of a server that asks for one."""
        assert self.auth is not None
        async with AsyncGraphDatabase.driver(self.url, auth=self.auth) as driver:
            await driver.execute_query(
                "ALTER CURRENT USER SET PASSWORD FROM $old TO $new",
                {"old": self.auth[1], "new": password},
                database_="system",
            )
        self.auth = (self.auth[0], password)


class TcpPostgres(PostgresServer):
    """The program's own PostgreSQL, made to listen on a loopback port too.

    Args:
        settings: Further server settings.
        log_aside: Whether its write-ahead log lies outside its data folder.
    """

    def __init__(self, home: Home, port: int, settings: Mapping[str, str], *, log_aside: bool) -> None:
        super().__init__(home)
        self.port = port
        self._settings = settings
        self._changes = home.root / "changes" if log_aside else None

    def ask_for_passwords(self) -> None:
        """Of TCP connections, from the next reading of the configuration on."""
        rules = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
        (self._pgdata / "pg_hba.conf").write_text(rules, encoding="utf-8")

    @property
    def url(self) -> str:
        """Through the socket, whose name has the port."""
        return f"postgresql://postgres:@/postgres?host={quote(str(self._sockets))}&port={self.port}"

    def _launch(self) -> Process:
        account = postgres_server._account()
        self._make_folders(account)
        programs = self._usable_programs(account)
        fresh_log(self._log)
        if not self._pgdata.exists():
            self._create_cluster(programs, account)
        options = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self._sockets),
            **self._settings,
        }
        words = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        return spawn([str(programs / "postgres"), "-D", str(self._pgdata), *words], self._log, self.folder, account)

    def _create_cluster(self, programs: Path, account: dict[str, Any]) -> None:
        if self._changes is None:
            super()._create_cluster(programs, account)
            return
        _fresh(self._changes)
        self._changes.mkdir(mode=0o700)
        if account:
            os.chown(self._changes, account["user"], account["group"])
        aside = (*postgres_server.INITDB, f"--waldir={self._changes}")
        with mock.patch.object(postgres_server, "INITDB", aside):
            super()._create_cluster(programs, account)


class AskingNeo4j(Neo4jServer):
    """The program's own Neo4j, made to ask for a password.

    Args:
        password: What it is set to at the first start.
    """

    def __init__(self, home: Home, version: str, password: str) -> None:
        super().__init__(home, version)
        self._password = password

    async def start(self, report: Report) -> Running:
        """As the program does it, but with other words in the configuration and in the greeting."""
        asking = neo4j_server.CONFIGURATION.replace("auth_enabled=false", "auth_enabled=true")
        assert asking != neo4j_server.CONFIGURATION
        with (
            mock.patch.object(neo4j_server, "CONFIGURATION", asking),
            mock.patch.object(neo4j_server, "answers", self._answers),
        ):
            return await super().start(report)

    async def _answers(self, url: str) -> bool:
        async with AsyncGraphDatabase.driver(url, auth=("neo4j", FIRST_PASSWORD)) as driver:
            try:
                await driver.execute_query(
                    "ALTER CURRENT USER SET PASSWORD FROM $old TO $new",
                    {"old": FIRST_PASSWORD, "new": self._password},
                    database_="system",
                )
            except Neo4jError as error:
                # At a later start it asks for the other password, which the test may have replaced.
                return error.code == "Neo.ClientError.Security.Unauthorized"
            except DriverError:
                return False
        return True


@asynccontextmanager
async def own_postgres(
    home: Path, settings: Mapping[str, str] | None = None, *, log_aside: bool = False
) -> AsyncIterator[OwnPostgres]:
    """A fresh PostgreSQL, running.

    Args:
        home: A folder that was claimed (`tests.services.embedded.claimed_home`); what is in `data` is removed.
        settings: Further server settings, such as `{"max_connections": "10"}`.
        log_aside: Whether its write-ahead log lies outside its data folder. On a full disk, PostgreSQL refuses a write
            for which a table would have to grow; it ends itself if its log cannot.
    """
    server = TcpPostgres(Home.at(home), any_free_port(), settings or {}, log_aside=log_aside)
    async with _running(OwnPostgres(server), server, home) as running:
        yield running


@asynccontextmanager
async def own_neo4j(home: Path, version: str = "5.26.31", password: str = "") -> AsyncIterator[OwnNeo4j]:
    """A fresh Neo4j, running; with a password, it asks for it (and its `auth` has it).

    Args:
        home: As of `own_postgres`.
    """
    place = Home.at(home)
    server = AskingNeo4j(place, version, password) if password else Neo4jServer(place, version)
    async with _running(OwnNeo4j(server, ("neo4j", password) if password else None), server, home) as running:
        yield running


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A disk of that size mounted at the folder; `PermissionError` where this may not be done (only root may)."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(folder)]
    tried = subprocess.run(command, check=False, capture_output=True, text=True)
    if tried.returncode:
        raise PermissionError(f"no small disk can be mounted: {tried.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """The disk of that folder has no room left, until the end of the context."""
    filler = folder / "filler"
    block = bytes(1 << 20)
    try:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(block) == len(block):
                pass
        assert shutil.disk_usage(folder).free < len(block)
        yield
    finally:
        filler.unlink()


@asynccontextmanager
async def _running(own: Own, server: Server, home: Path) -> AsyncIterator[Own]:
    left = await anyio.to_thread.run_sync(server.find)
    if left is not None:  # by a run of the tests that was killed
        await server.stop(left)
    await anyio.to_thread.run_sync(_fresh, server.folder)
    async with _fetching_alone(home.parent):
        await own.start()
    try:
        yield own
    finally:
        with anyio.CancelScope(shield=True):
            await own.stop()
            await anyio.to_thread.run_sync(_fresh, server.folder)


def _fresh(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _quiet(_phase: Phase, _done: int, _total: int, _message: str) -> None:
    """Nobody watches."""
