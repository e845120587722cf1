"""The real program over stdio with every service away: it starts, answers every tool, and ends when told to."""

import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from mcp import Client, StdioServerParameters

from tests.server.wire import REAL, server_process

CLOSED = {
    "DATABASE_URL": "postgresql://someone:hunter2@127.0.0.1:1/x",
    "NEO4J_URI": "bolt://127.0.0.1:1",
    "OLLAMA_URL": "http://127.0.0.1:1",
}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("get_sync_status", {}),
    ("sync_now", {}),
    ("query_cross_project", {"query": "anything"}),
    ("recover_from_remote", {}),
]
ANSWER_SECONDS = 3.0  # the promise is 2 s on a machine with nothing else to do


class BlackHoles:
    """Listeners that accept and never answer."""

    def __init__(self) -> None:
        self.accepted = anyio.Event()
        self.settings: dict[str, str] = {}


@asynccontextmanager
async def black_holes() -> AsyncIterator[BlackHoles]:
    """One for each service."""
    holes = BlackHoles()

    async def swallow(stream: SocketStream) -> None:
        holes.accepted.set()
        async with stream:
            async for _ in stream:
                pass

    async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
        ports = []
        for _ in range(3):
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1", family=socket.AF_INET)
            await stack.enter_async_context(listener)
            ports.append(listener.extra_attributes[SocketAttribute.local_port]())
            tasks.start_soon(listener.serve, swallow)
        holes.settings = {
            "DATABASE_URL": f"postgresql://someone@127.0.0.1:{ports[0]}/x?sslmode=disable",
            "NEO4J_URI": f"bolt://127.0.0.1:{ports[1]}",
            "OLLAMA_URL": f"http://127.0.0.1:{ports[2]}",
        }
        yield holes
        tasks.cancel_scope.cancel()


def parameters(settings: Mapping[str, str], home: Path) -> StdioServerParameters:
    """The real program with these settings and a home of its own."""
    return StdioServerParameters(command=REAL[0], args=list(REAL[1:]), env={**settings, "HOME": str(home)})


async def _expect_answers(parameters: StdioServerParameters, mode: str) -> None:
    async with Client(parameters, mode=mode) as client:
        for tool, arguments in CALLS:
            started = time.monotonic()
            with anyio.fail_after(20):
                result = await client.call_tool(tool, arguments)
            seconds = time.monotonic() - started
            text = str(result.structured_content or result.content)
            assert seconds < ANSWER_SECONDS, f"{tool} took {seconds:.1f} s"
            assert result.is_error == (tool == "recover_from_remote"), text
            assert "Neo4j" in text or "PostgreSQL" in text
            assert "hunter2" not in text


@pytest.mark.promise("P9")
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_every_tool_answers_with_every_service_away(mode: str, tmp_path: Path) -> None:
    """Within two seconds each, and says what is away."""
    await _expect_answers(parameters(CLOSED, tmp_path), mode)


@pytest.mark.promise("P9")
async def test_every_tool_answers_with_every_service_hanging(tmp_path: Path) -> None:
    """Connections that are accepted and never answered are no better than none."""
    async with black_holes() as holes:
        await _expect_answers(parameters(holes.settings, tmp_path), "auto")
        assert holes.accepted.is_set()


@pytest.mark.promise("P10")
async def test_initialize_is_answered_before_anything_is_connected(tmp_path: Path) -> None:
    """The handshake waits for no service; afterwards the background does connect."""
    async with (
        black_holes() as holes,
        server_process(*REAL, env={**holes.settings, "HOME": str(tmp_path)}) as wire,
    ):
        answer = await wire.greet()
        assert answer["result"]["serverInfo"]["name"] == "dionysus-sync-mcp"
        assert not holes.accepted.is_set()
        with anyio.fail_after(20):
            await holes.accepted.wait()


@pytest.mark.promise("P10")
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, None], ids=str)
async def test_real_program_ends_at_once_with_services_hanging(
    end: signal.Signals | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither a signal nor the end of stdin waits for connections that hang, and twenty calls are in flight."""
    async with (
        black_holes() as holes,
        server_process(*REAL, env={**holes.settings, "HOME": str(tmp_path)}) as wire,
    ):
        await wire.greet()
        with anyio.fail_after(20):
            await holes.accepted.wait()
        for i in range(1, 21):
            await wire.call(i, *CALLS[i % 4])
        started = time.monotonic()
        if end is None:
            await wire.stdin.aclose()
        else:
            wire.process.send_signal(end)
        with anyio.fail_after(10):
            status = await wire.process.wait()
        seconds = time.monotonic() - started
    assert status == (0 if end is None else 128 + end)
    assert seconds < 1.0
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.promise("P9")
async def test_twenty_calls_are_answered_with_every_service_away(tmp_path: Path) -> None:
    """In flight at once, and none is lost."""
    env = {**CLOSED, "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    async with server_process(*REAL, env=env) as wire:
        await wire.greet()
        for i in range(1, 21):
            await wire.call(i, *CALLS[i % 4])
        with anyio.fail_after(20):
            answered = sorted([(await wire.receive())["id"] for _ in range(20)])
    assert answered == list(range(1, 21))
