"""A TCP proxy between the program and a server, which does at run time what networks do to connections.

It works on bare sockets: what a peer sees of a cut connection (RST, not FIN) depends on how its socket is closed.
"""

import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit, urlunsplit

import anyio
from anyio.abc import TaskGroup

from dionysus_sync_mcp.engine.tasks import first_error

HOST = "127.0.0.1"
CHUNK = 65536
UPSTREAM_SECONDS = 5.0
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: closing sends RST
# What a client sends to commit: Bolt's message COMMIT as a chunk with its end; PostgreSQL's simple query.
BOLT_COMMIT = b"\x00\x02\xb0\x12\x00\x00"
POSTGRES_COMMIT = b"COMMIT;\x00"

Upstream = tuple[str, int] | str  # host and port, or the path of a unix socket


@dataclass(frozen=True, slots=True)
class Slowness:
    """What is done to each piece of data on its way, in both directions.

    Attributes:
        latency: Seconds that each piece is held.
        bytes_per_second: Bandwidth of each direction of each connection; 0 for no limit.
        slice_bytes: The longest packet; 0 for no limit.
        slice_pause: Seconds before each packet.
    """

    latency: float = 0.0
    bytes_per_second: float = 0.0
    slice_bytes: int = 0
    slice_pause: float = 0.0


class Link:
    """One connection of a client, with the one to the server that belongs to it."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server: socket.socket | None = None
        self.dead = False
        self.reply_to_drop = False

    def reset(self) -> None:
        """End both connections as a machine does that knows nothing of them."""
        for end in (self.client, self.server):
            close(end, reset=True)


class Proxy:
    """See `open_proxy`. `engaged` counts what was done to whom, by the name of the method that asked for it.

    Attributes:
        engaged: `refuse` and `cut`: connections reset (`refuse`: and one for the refusal that the proxy itself met);
            `blackhole`: connections lost and pieces of data that vanished; `slow`: pieces of data that were slowed
            down; `drop_reply`: replies dropped.
        accepted: Connections of clients so far.
    """

    def __init__(self, upstream: Upstream, tasks: TaskGroup) -> None:
        self.engaged: Counter[str] = Counter()
        self.accepted = 0
        self._upstream = upstream
        self._tasks = tasks
        self._links: set[Link] = set()
        self._slowness: Slowness | None = None
        self._black = False
        self._drop_after: Callable[[bytes], bool] | None = None
        self._socket = reserved(0)
        self._listening = False
        self.port: int = self._socket.getsockname()[1]
        self._listen()

    @property
    def connections(self) -> int:
        """Connections of clients that are open now, dead ones included."""
        return len(self._links)

    def through(self, url: str) -> str:
        """The URL of the server with the proxy in the server's place; user, password and database stay."""
        parts = urlsplit(url)
        credentials, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{credentials}{at}{HOST}:{self.port}", query=""))

    async def heal(self) -> None:
        """Pass everything again. Connections that a black hole swallowed stay dead, as those to a lost peer do."""
        self._slowness, self._black, self._drop_after = None, False, None
        if not self._listening:
            self._listen()

    async def refuse(self) -> None:
        """The server is down: connections are reset, new ones are refused."""
        if self._listening:
            close(self._socket)
            # Bound without listening: nobody else gets the port, and whoever connects is refused.
            self._socket, self._listening = reserved(self.port), False
        self._reset_all("refuse")
        self.engaged["refuse"] += await refused(self.port)

    async def cut(self) -> int:
        """Reset every connection now, dead ones too; new ones are passed. Returns how many there were."""
        return self._reset_all("cut")

    async def blackhole(self) -> None:
        """The peer is lost: connections stay open and new ones are accepted, and all bytes vanish in both directions.

        The server keeps the connections that it had, and with them their locks, until `server_gives_up`.
        """
        self._black = True
        for link in self._links:
            link.dead = True
        self.engaged["blackhole"] += len(self._links)

    async def server_gives_up(self) -> int:
        """The server's keepalive finds dead connections dead: it loses them, the client does not learn of it."""
        lost = [link for link in self._links if link.dead and link.server is not None]
        for link in lost:
            close(link.server, reset=True)
            link.server = None
        return len(lost)

    async def slow(self, slowness: Slowness) -> None:
        """Delay, narrow or slice what passes, of connections old and new."""
        self._slowness = slowness

    async def drop_reply_once(self, after: bytes | Callable[[bytes], bool]) -> None:
        """Pass the client's next data that contains `after` (or satisfies it), wait for the reply, and cut instead.

        So the server has done what it was asked for, and the client cannot know.
        """
        self._drop_after = after if callable(after) else lambda data: after in data

    def close(self) -> None:
        """Reset everything."""
        self._reset_all("close")
        close(self._socket)

    def _listen(self) -> None:
        self._socket.listen(128)
        self._listening = True
        self._tasks.start_soon(self._accept, self._socket)

    def _reset_all(self, why: str) -> int:
        links = list(self._links)
        for link in links:
            link.reset()
        self._links.clear()
        self.engaged[why] += len(links)
        return len(links)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                await ready(listener, anyio.wait_readable)
                client, _ = listener.accept()
            except BlockingIOError:
                continue
            except (OSError, anyio.ClosedResourceError):
                return
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.accepted += 1
            self._tasks.start_soon(self._serve, client)

    async def _serve(self, client: socket.socket) -> None:
        link = Link(client)
        self._links.add(link)
        if self._black:
            link.dead = True
            self.engaged["blackhole"] += 1
            await self._pump(link, client, to_server=True)
            return
        try:
            with anyio.fail_after(UPSTREAM_SECONDS):
                link.server = await connected(self._upstream)
        except (OSError, TimeoutError):
            self._links.discard(link)
            link.reset()
            return
        if link not in self._links:  # reset meanwhile
            link.reset()
            return
        async with anyio.create_task_group() as pumps:
            pumps.start_soon(self._pump, link, client, True)
            pumps.start_soon(self._pump, link, link.server, False)

    async def _pump(self, link: Link, source: socket.socket, to_server: bool) -> None:
        """Carry data in one direction until an end of the link goes."""
        reset = False
        try:
            while data := await received(source, self._piece()):
                await self._pass(link, data, to_server=to_server)
        except (OSError, anyio.ClosedResourceError):
            reset = True
        self._end(link, source, reset=reset)

    def _end(self, link: Link, source: socket.socket, *, reset: bool) -> None:
        """One side has ended. The other side learns of it, unless its peer is lost."""
        if not link.dead:
            self._drop(link, reset=reset)
            return
        close(source)
        if source is link.server:
            link.server = None
        if link.server is None and link.client.fileno() == -1:
            self._links.discard(link)

    async def _pass(self, link: Link, data: bytes, *, to_server: bool) -> None:
        if to_server and self._drop_after is not None and self._drop_after(data):
            self._drop_after, link.reply_to_drop = None, True
        elif not to_server and link.reply_to_drop:
            self.engaged["drop_reply"] += 1
            self._drop(link, reset=True)
            return
        slowness = self._slowness
        if slowness is not None and not link.dead:
            self.engaged["slow"] += 1
            await anyio.sleep(slowness.latency)
        if link.dead or self._black:
            self.engaged["blackhole"] += 1
            return
        target = link.server if to_server else link.client
        if target is not None:
            await _send(target, data, slowness or Slowness())

    def _piece(self) -> int:
        """How much to take at once; little where the bandwidth is narrow, so that it flows evenly."""
        limit = self._slowness.bytes_per_second if self._slowness else 0.0
        return max(1, min(CHUNK, int(limit / 20))) if limit else CHUNK

    def _drop(self, link: Link, *, reset: bool = False) -> None:
        self._links.discard(link)
        close(link.client, reset=reset)
        close(link.server, reset=reset)


async def _send(target: socket.socket, data: bytes, slowness: Slowness) -> None:
    size = slowness.slice_bytes or len(data)
    for start in range(0, len(data), size):
        part = data[start : start + size]
        transmission = len(part) / slowness.bytes_per_second if slowness.bytes_per_second else 0.0
        await anyio.sleep(slowness.slice_pause + transmission)
        await sent(target, part)


@asynccontextmanager
async def open_proxy(url: str) -> AsyncIterator[Proxy]:
    """A proxy in front of the server of that URL (`postgresql:` or `bolt:`; a `host=` may be a socket's folder).

    Example:
        async with open_proxy(stores.neo4j_uri) as proxy, worker(stores.through(remote=proxy)) as program:
            await proxy.refuse()
            ...
            await proxy.heal()
            assert proxy.engaged["refuse"]
    """
    with first_error():
        async with anyio.create_task_group() as tasks:
            proxy = Proxy(upstream_of(url), tasks)
            try:
                yield proxy
            finally:
                proxy.close()
                tasks.cancel_scope.cancel()


def upstream_of(url: str) -> Upstream:
    """Where the server of a URL listens."""
    parts = urlsplit(url)
    port = 7687 if parts.scheme.startswith(("bolt", "neo4j")) else 5432
    given = {name: values[0] for name, values in parse_qs(parts.query).items()}
    port = int(given.get("port", parts.port or port))
    host = given.get("host", parts.hostname or HOST)
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else (host, port)


def reserved(port: int) -> socket.socket:
    """A socket that has the port and does not listen; 0 stands for any free one."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind((HOST, port))
    found.setblocking(False)
    return found


async def refused(port: int) -> bool:
    """Whether a connection to the port is refused now."""
    try:
        stream = await anyio.connect_tcp(HOST, port)
    except OSError:
        return True
    await stream.aclose()
    return False


async def connected(upstream: Upstream) -> socket.socket:
    """A socket that is connected to the server."""
    by_path = isinstance(upstream, str)
    found = socket.socket(socket.AF_UNIX if by_path else socket.AF_INET)
    found.setblocking(False)
    try:
        if not by_path:
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await _connect(found, upstream)
    except BaseException:
        found.close()
        raise
    return found


async def _connect(found: socket.socket, upstream: Upstream) -> None:
    try:
        found.connect(upstream)
    except BlockingIOError:
        await anyio.wait_writable(found)
        error = found.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, "connection failed") from None


async def ready(waited: socket.socket, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
    """Wait for a socket that another task may have closed before."""
    if waited.fileno() == -1:
        raise anyio.ClosedResourceError
    await wait(waited)


async def received(source: socket.socket, limit: int) -> bytes:
    """The next data; nothing at the end."""
    while True:
        await ready(source, anyio.wait_readable)
        try:
            return source.recv(limit)
        except BlockingIOError:
            continue


async def sent(target: socket.socket, data: bytes) -> None:
    """Write all of it."""
    left = memoryview(data)
    while left:
        try:
            left = left[target.send(left) :]
        except BlockingIOError:
            await ready(target, anyio.wait_writable)


def close(found: socket.socket | None, *, reset: bool = False) -> None:
    """Close a socket, waking who waits for it; harmless when repeated."""
    if found is None or found.fileno() == -1:
        return
    anyio.notify_closing(found)
    if reset and found.family == socket.AF_INET:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    found.close()
