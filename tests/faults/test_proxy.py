"""The proxy does to a connection what it says, and counts it: the fault tests rest on that."""

import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

from tests.faults.proxy import Proxy, Slowness, open_proxy
from tests.services.waiting import until

SOON = 20.0
QUIET = 0.2  # seconds in which nothing is to arrive


class Echo:
    """A server that answers with what it was sent, and remembers it."""

    def __init__(self) -> None:
        self.heard = b""
        self.ended = 0


@asynccontextmanager
async def echoing() -> AsyncIterator[tuple[Echo, Proxy]]:
    """The server with a proxy before it."""
    echo = Echo()

    async def serve(stream: SocketStream) -> None:
        async with stream:
            try:
                async for data in stream:
                    echo.heard += data
                    await stream.send(data)
            except anyio.BrokenResourceError:
                pass
        echo.ended += 1

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1", family=socket.AF_INET) as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        port = listener.extra_attributes[SocketAttribute.local_port]()
        async with open_proxy(f"bolt://127.0.0.1:{port}") as proxy:
            yield echo, proxy
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def client_of(proxy: Proxy) -> AsyncIterator[SocketStream]:
    """A connection through the proxy that works."""
    async with await anyio.connect_tcp("127.0.0.1", proxy.port) as stream:
        await said(stream, b"hello")
        yield stream


async def said(stream: SocketStream, data: bytes) -> None:
    """Send something and see it come back."""
    await stream.send(data)
    back = b""
    with anyio.fail_after(SOON):
        while len(back) < len(data):
            back += await stream.receive()
    assert back == data


async def test_it_passes_everything_both_ways() -> None:
    """Also more than fits into the buffers."""
    async with echoing() as (echo, proxy), client_of(proxy) as stream:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send, b"x" * 3_000_000)
            left = 3_000_000
            with anyio.fail_after(SOON):
                while left:
                    left -= len(await stream.receive())
        assert len(echo.heard) == 3_000_005
        assert not proxy.engaged.total()


async def test_the_end_of_a_connection_is_passed_on() -> None:
    """The server learns that a client has gone."""
    async with echoing() as (echo, proxy):
        async with client_of(proxy):
            assert proxy.connections == 1

        async def ended() -> bool:
            return echo.ended == 1 and proxy.connections == 0

        await until(ended, what="the server's connection ends", seconds=SOON)


async def test_a_refusing_proxy_resets_and_refuses_until_it_is_healed() -> None:
    """Its port stays its own."""
    async with echoing() as (_, proxy), client_of(proxy) as stream:
        await proxy.refuse()
        with pytest.raises((anyio.BrokenResourceError, anyio.EndOfStream)):
            await stream.receive()
        with pytest.raises(OSError, match=r"refused|failed"):
            await anyio.connect_tcp("127.0.0.1", proxy.port)
        await proxy.heal()
        async with client_of(proxy):
            assert proxy.engaged["refuse"] == 2


async def test_a_cut_is_a_reset_and_new_connections_pass() -> None:
    """RST, not an orderly end."""
    async with echoing() as (_, proxy), client_of(proxy) as stream:
        assert await proxy.cut() == 1
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        async with client_of(proxy):
            assert proxy.engaged["cut"] == 1


async def test_what_a_black_hole_swallowed_stays_dead() -> None:
    """Old connections and those accepted meanwhile hear nothing, then or later; the server keeps what it had."""
    async with echoing() as (echo, proxy), client_of(proxy) as old:
        await proxy.blackhole()
        async with await anyio.connect_tcp("127.0.0.1", proxy.port) as new:
            await unheard(new)
            await proxy.heal()
            await unheard(new)
        await unheard(old)
        async with client_of(proxy):
            assert echo.heard == b"hellohello"
        assert proxy.engaged["blackhole"] >= 4
        assert await proxy.server_gives_up() == 1
        await unheard(old)


async def unheard(stream: SocketStream) -> None:
    """Send something; nothing comes back, and no error."""
    await stream.send(b"vanishes")
    with anyio.move_on_after(QUIET) as waiting:
        await stream.receive()
    assert waiting.cancelled_caught


async def test_the_reply_to_the_one_that_matters_is_dropped_once() -> None:
    """The server has heard it; the client sees a broken connection; the next one passes."""
    async with echoing() as (echo, proxy), client_of(proxy) as stream:
        await proxy.drop_reply_once(b"COMMIT")
        await said(stream, b"BEGIN")
        await stream.send(b"COMMIT")
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()
        assert echo.heard.endswith(b"COMMIT")
        async with client_of(proxy) as again:
            await said(again, b"COMMIT")
        assert proxy.engaged["drop_reply"] == 1


@pytest.mark.parametrize(
    ("slowness", "seconds"),
    [
        (Slowness(latency=0.1), 0.2),
        (Slowness(bytes_per_second=10_000), 0.2),
        (Slowness(slice_bytes=100, slice_pause=0.01), 0.1),
    ],
    ids=["latency", "bandwidth", "slices"],
)
async def test_what_is_slowed_down_takes_its_time_and_arrives(slowness: Slowness, seconds: float) -> None:
    """A thousand bytes there and back."""
    async with echoing() as (_, proxy), client_of(proxy) as stream:
        await proxy.slow(slowness)
        started = time.monotonic()
        await said(stream, bytes(1000))
        assert time.monotonic() - started >= seconds
        assert proxy.engaged["slow"] >= 2
