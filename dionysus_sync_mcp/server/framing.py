"""The guard on stdin: what the SDK would swallow without an answer gets a short JSON-RPC error, and the server goes on.

The SDK drops a line that it cannot parse, so its caller waits for a time-out; and it reads lines of any length.
"""

import io
import json
import logging
import os
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, Literal

import anyio
from anyio import from_thread
from mcp.server.stdio import stdio_server
from mcp.shared._context_streams import ContextReceiveStream, ContextSendStream
from mcp.shared.message import SessionMessage
from mcp.types import INVALID_REQUEST, PARSE_ERROR, ErrorData, JSONRPCError, jsonrpc_message_adapter
from pydantic import ValidationError

MAX_LINE = 4 * 1024 * 1024
EDGE = 16 * 1024
TOO_LONG = (
    f"The message is longer than {MAX_LINE // 1024 // 1024} MiB and was not read; nothing was changed. "
    "Send shorter arguments."
)
HALF_CHARACTER = (
    "The message holds half of a surrogate pair, which is not text; nothing was changed. "
    "Leave that character out and call again."
)
NOT_UTF8 = "The message is not UTF-8; nothing was changed. Send UTF-8."
NOT_JSON = "The message is not JSON; nothing was changed."
NOT_A_MESSAGE = "The message is not a single JSON-RPC 2.0 message; nothing was changed."

RequestId = str | int | None
Wire = tuple[ContextReceiveStream[SessionMessage | Exception], ContextSendStream[SessionMessage]]

_TOKEN = re.compile(rb'\s*("(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+)')
_LAST_KEYS = re.compile(
    rb'[,{]\s*"id"\s*:\s*("[^"\\]{0,200}"|-?\d{1,18})\s*(?:,\s*"(?:jsonrpc|method)"\s*:\s*"[^"\\]{0,200}"\s*)*\}\s*$'
)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rejection:
    """A line that the SDK would not answer. `id` is `None` when it cannot be had."""

    id: RequestId
    code: int
    message: str

    def as_message(self) -> SessionMessage:
        """The answer to the caller."""
        error = ErrorData(code=self.code, message=self.message)
        return SessionMessage(JSONRPCError(jsonrpc="2.0", id=self.id, error=error))


def examine(line: bytes) -> Literal["pass", "drop"] | Rejection:
    """Decide on one line of stdin.

    Returns:
        `"pass"` when the SDK will take it; a `Rejection` when somebody waits for an answer; `"drop"` when nobody does:
        a blank line, a broken notification, a broken answer to a request of ours.
    """
    if not line.strip():
        return "drop"
    try:
        jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValidationError:
        return _refuse(line)
    return "pass"


def examine_long(head: bytes, tail: bytes) -> Rejection:
    """Refuse a line that is too long, of which only the first and the last bytes are known."""
    return Rejection(_id_at_the_edges(head, tail), INVALID_REQUEST, TOO_LONG)


def _refuse(line: bytes) -> Literal["drop"] | Rejection:
    try:
        value = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return Rejection(_id_at_the_edges(line[:EDGE], line[-EDGE:]), PARSE_ERROR, NOT_JSON)
    if not _expects_answer(value):
        return "drop"
    return Rejection(_usable_id(value), *_reason(line, value))


def _expects_answer(value: object) -> bool:
    if not isinstance(value, dict):
        return True
    if "method" in value:
        return "id" in value
    return not ("result" in value or "error" in value)


def _usable_id(value: object) -> RequestId:
    found = value.get("id") if isinstance(value, dict) else None
    usable = isinstance(found, str | int) and not isinstance(found, bool) and not _has_half_character(found)
    return found if usable else None


def _reason(line: bytes, value: object) -> tuple[int, str]:
    if _has_half_character(value):
        return PARSE_ERROR, HALF_CHARACTER
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return PARSE_ERROR, NOT_UTF8
    return INVALID_REQUEST, NOT_A_MESSAGE


def _has_half_character(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _id_at_the_edges(head: bytes, tail: bytes) -> RequestId:
    """The request's id, which clients put first or last."""
    found = _id_in_head(head)
    return _id_in_tail(tail) if found is None else found


def _id_in_head(head: bytes) -> RequestId:
    """The `id` of the outermost object, when it and what follows it are whole in `head`."""
    tokens = _tokens(head)
    depth = 0
    for i, token in enumerate(tokens[:-3]):
        depth += (token in {b"{", b"["}) - (token in {b"}", b"]"})
        if depth == 1 and token == b'"id"' and tokens[i + 1] == b":":
            return _plain_id(tokens[i + 2])
    return None


def _id_in_tail(tail: bytes) -> RequestId:
    found = _LAST_KEYS.search(tail)
    return _plain_id(found[1]) if found else None


def _tokens(head: bytes) -> list[bytes]:
    tokens = []
    position = 0
    while token := _TOKEN.match(head, position):  # ends at a string that is cut off, never inside of it
        tokens.append(token[1])
        position = token.end()
    return tokens


def _plain_id(token: bytes) -> RequestId:
    try:
        return _usable_id({"id": json.loads(token)})
    except ValueError:
        return None


class GuardedLines(io.BufferedIOBase):
    """A binary stream with only those lines of another one that the SDK will take; the rest is answered or dropped."""

    name = "stdin"

    def __init__(self, raw: BinaryIO, answer: Callable[[Rejection], None]) -> None:
        self._raw = raw
        self._answer = answer
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1, /) -> bytes:
        """At most `size` bytes of the next line to pass on, `b""` at the end of the stream."""
        if not self._pending:
            self._pending = memoryview(self._next_line())
        end = len(self._pending) if size < 0 else size
        chunk, self._pending = self._pending[:end], self._pending[end:]
        return bytes(chunk)

    def _next_line(self) -> bytes:
        while line := self._raw.readline(MAX_LINE + 1):
            too_long = len(line) > MAX_LINE
            verdict = examine_long(line[:EDGE], self._skip_rest(line)) if too_long else examine(line)
            if verdict == "pass":
                return line
            if isinstance(verdict, Rejection):
                _logger.warning("refused a message of the client: %s", verdict.message)
                self._answer(verdict)
        return b""

    def _skip_rest(self, line: bytes) -> bytes:
        """Read on to the end of the line, keeping only its last bytes."""
        tail = line[-EDGE:]
        while not tail.endswith(b"\n") and (chunk := self._raw.readline(EDGE)):
            tail = (tail + chunk)[-EDGE:]
        return tail


@asynccontextmanager
async def guarded_stdio() -> AsyncIterator[Wire]:
    """The SDK's stdio transport behind the guard. File descriptor 0 points at the null device from here on."""

    async def send(rejection: Rejection) -> None:
        with suppress(anyio.ClosedResourceError, anyio.BrokenResourceError):  # the client has gone meanwhile
            await write.send(rejection.as_message())

    # The SDK reads lines in a worker thread, and starts to only after `write` is bound.
    lines = GuardedLines(_private_stdin(), lambda rejection: from_thread.run(send, rejection))
    text = io.TextIOWrapper(lines, encoding="utf-8", newline="\n")
    async with stdio_server(stdin=anyio.wrap_file(text)) as (read, write):
        yield read, write


def _private_stdin() -> BinaryIO:
    """The wire under a descriptor of its own, so that no child and no library reads from it.

    It is never closed: the reader thread may still be blocked on it.
    """
    wire = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return os.fdopen(wire, "rb", closefd=False)
