"""A server process spoken to line by line, as no well-behaved client would."""

import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

FAKE = (sys.executable, "-m", "tests.server.fake")
REAL = (sys.executable, "-m", "dionysus_sync_mcp")
INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "wire", "version": "0"},
}
LONGEST_ANSWER = 1_000_000


class Wire:
    """Both ends of the pipes of a server process."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self.stdin = process.stdin
        self._answers = BufferedByteReceiveStream(process.stdout)

    async def send(self, line: bytes) -> None:
        """Write a line, whatever it holds."""
        await self.stdin.send(line + b"\n")

    async def request(self, id_: int, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Write a request."""
        await self.send(json.dumps({"jsonrpc": "2.0", "id": id_, "method": method, "params": params or {}}).encode())

    async def call(self, id_: int, tool: str, arguments: Mapping[str, Any] | None = None) -> None:
        """Write a call of a tool."""
        await self.request(id_, "tools/call", {"name": tool, "arguments": arguments or {}})

    async def receive(self) -> dict[str, Any]:
        """Read the next answer; anything but JSON on stdout is an error here."""
        with anyio.fail_after(30):
            line = await self._answers.receive_until(b"\n", LONGEST_ANSWER)
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    async def greet(self) -> dict[str, Any]:
        """Shake hands in the manner of 2025-11-25; gives the server's answer."""
        await self.request(0, "initialize", INITIALIZE)
        answer = await self.receive()
        await self.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        return answer

    async def rest_of_stdout(self) -> bytes:
        """Everything until the process closes its stdout."""
        with anyio.fail_after(30):
            return b"".join([chunk async for chunk in self._answers])


@asynccontextmanager
async def server_process(*command: str, env: Mapping[str, str] | None = None) -> AsyncIterator[Wire]:
    """Start a server; it is killed at the end if it still runs."""
    async with await anyio.open_process(list(command), stderr=None, env={**os.environ, **(env or {})}) as process:
        try:
            yield Wire(process)
        finally:
            if process.returncode is None:
                process.kill()
