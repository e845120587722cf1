"""A webhook's receiver on this machine, which keeps what it gets and answers as a test says."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

LONGEST_HEAD = 10_000
OK = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"

Answer = Callable[[SocketStream], Awaitable[None]]


class Received(NamedTuple):
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """The body as JSON."""
        return dict(json.loads(self.body))


class Receiver:
    """Answers each request by `answer`, which takes it until a test sets another one."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.answer: Answer = saying(OK)
        self.url = ""

    async def serve(self, stream: SocketStream) -> None:
        """One connection, one request; a client that goes away is none of its worries."""
        async with stream:
            try:
                self.requests.append(await _request(stream))
                await self.answer(stream)
            except (anyio.BrokenResourceError, anyio.EndOfStream, anyio.IncompleteRead):
                return


def saying(answer: bytes) -> Answer:
    """Sends this and closes the connection."""

    async def answering(stream: SocketStream) -> None:
        await stream.send(answer)

    return answering


def with_status(line: str, *headers: str) -> Answer:
    """Sends this status, without a body."""
    head = "\r\n".join([f"HTTP/1.1 {line}", *headers, "Content-Length: 0", "Connection: close"])
    return saying(f"{head}\r\n\r\n".encode())


async def hanging(_stream: SocketStream) -> None:
    """Keeps the connection and says nothing."""
    await anyio.sleep_forever()


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    """Listening, at `url`."""
    made = Receiver()
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        made.url = f"http://127.0.0.1:{listener.extra_attributes[SocketAttribute.local_port]()}/hook"
        tasks.start_soon(listener.serve, made.serve)
        try:
            yield made
        finally:
            tasks.cancel_scope.cancel()


async def _request(stream: SocketStream) -> Received:
    buffered = BufferedByteReceiveStream(stream)
    head = (await buffered.receive_until(b"\r\n\r\n", LONGEST_HEAD)).decode("ascii")
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    body = await buffered.receive_exactly(int(headers["content-length"]))
    return Received(first.split(" ")[1], headers, body)
