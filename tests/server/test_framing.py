"""The guard on stdin decides line by line, and never keeps a long line."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dionysus_sync_mcp.server.framing import (
    HALF_CHARACTER,
    MAX_LINE,
    NOT_A_MESSAGE,
    NOT_JSON,
    NOT_UTF8,
    TOO_LONG,
    GuardedLines,
    Rejection,
    examine,
    examine_long,
)

CALL = b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'


@pytest.mark.parametrize(
    "line",
    [
        CALL,
        b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n',
        b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\\ud83d\\ude00"}}\n',
        '{"jsonrpc":"2.0","id":"é","method":"ping","params":{"a":"😀"}}\n'.encode(),
        b'{"jsonrpc":"2.0","id":4,"result":{}}\n',
    ],
)
def test_messages_that_the_sdk_takes_pass(line: bytes) -> None:
    """A request, a notification, an answer and whole surrogate pairs are passed on."""
    assert examine(line) == "pass"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" \r\n",
        b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"reason":"\\ud800"}}\n',
        b'{"jsonrpc":"2.0","id":4,"result":"\\ud800"}\n',
    ],
)
def test_what_nobody_waits_for_is_dropped(line: bytes) -> None:
    """Blank lines, broken notifications and broken answers get no answer."""
    assert examine(line) == "drop"


@pytest.mark.parametrize(
    ("line", "id_", "message"),
    [
        (b'{"jsonrpc":"2.0","id":0,"method":"ping","params":{"a":"\\ud800"}}', 0, HALF_CHARACTER),
        (b'{"method":"ping","params":{"id":5,"a":"\\udfff x"},"jsonrpc":"2.0","id":"x-1"}', "x-1", HALF_CHARACTER),
        (b'{"jsonrpc":"2.0","id":"\\ud800","method":"ping"}', None, HALF_CHARACTER),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"a":"\xff"}}', 1, NOT_UTF8),
        (b'{"jsonrpc":"2.0","id":7,"method":"pi', 7, NOT_JSON),
        (b'{"jsonrpc":"2.0","id":7', None, NOT_JSON),
        (b"hello", None, NOT_JSON),
        (b'{"id":3,"params":' + b"[" * 100_000, 3, NOT_JSON),
        (b"[]", None, NOT_A_MESSAGE),
        (b"5", None, NOT_A_MESSAGE),
        (b'{"jsonrpc":"2.0","id":7}', 7, NOT_A_MESSAGE),
        (b'{"jsonrpc":"1.0","id":7,"method":"ping"}', 7, NOT_A_MESSAGE),
        (b'{"jsonrpc":"2.0","id":7,"method":"ping","params":[1]}', 7, NOT_A_MESSAGE),
    ],
)
def test_what_the_sdk_would_not_answer_is_refused(line: bytes, id_: str | int | None, message: str) -> None:
    """Each gets a short answer under the request's id, when it can be had."""
    verdict = examine(line)
    assert isinstance(verdict, Rejection)
    assert (verdict.id, verdict.message) == (id_, message)


@given(st.binary(max_size=300))
def test_no_line_breaks_the_guard(line: bytes) -> None:
    """Whatever comes, the guard decides."""
    assert examine(line) in ("pass", "drop") or isinstance(examine(line), Rejection)


@pytest.mark.parametrize(
    ("head", "tail", "id_"),
    [
        (b'{"jsonrpc":"2.0","id":12,"method":"tools/call","params":{"a":"xxx', b'x"}}\n', 12),
        (b'{"method":"tools/call","params":{"id":5,"a":"{\\"id\\":6,', b'x"},"jsonrpc":"2.0","id":0}\n', 0),
        (b'{"method":"tools/call","params":{"a":"xxx', b'x"},"id":"q","jsonrpc":"2.0"}\n', "q"),
        (b'{"params":{"a":"xxx', b'","id":5}}\n', None),
        (b'{"params":{"a":"\\"id\\":1,', b'\\"id\\":5}\n', None),
        (b'{"id', b"", None),
    ],
)
def test_id_of_a_long_message_comes_from_its_edges(head: bytes, tail: bytes, id_: str | int | None) -> None:
    """Only the outermost `id` counts, not one in the arguments or within a string."""
    assert examine_long(head, tail) == Rejection(id_, -32600, TOO_LONG)


def test_long_line_is_skipped_in_pieces_and_the_next_one_passes() -> None:
    """20 MB are consumed in reads of bounded size, answered once, and what follows is passed on."""
    wire = _Recording(_message(20_000_000) + b"\n" + CALL)
    answers: list[Rejection] = []
    assert GuardedLines(wire, answers.append).read1() == CALL
    assert answers == [Rejection(9, -32600, TOO_LONG)]
    assert wire.longest <= MAX_LINE + 1


@pytest.mark.parametrize("size", [MAX_LINE - 1, MAX_LINE])
def test_line_of_the_greatest_length_passes(size: int) -> None:
    """The bound itself is allowed, with its newline."""
    line = _message(size - 1) + b"\n"
    assert len(line) == size
    lines = io.TextIOWrapper(GuardedLines(io.BytesIO(line), _never), encoding="utf-8", newline="\n")
    assert lines.readline().encode() == line


def test_long_line_at_the_end_of_the_stream_is_answered() -> None:
    """A client that closes in the midst of a long line is answered, and the stream ends."""
    answers: list[Rejection] = []
    assert GuardedLines(io.BytesIO(_message(MAX_LINE + 5)[:-3]), answers.append).read1() == b""
    assert [answer.message for answer in answers] == [TOO_LONG]


def _message(size: int) -> bytes:
    frame = '{{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{{"a":{}}}}}'
    empty = frame.format('""')
    return frame.format(json.dumps("x" * (size - len(empty)))).encode()


def _never(_: Rejection) -> None:
    raise AssertionError("nothing was to be refused")


class _Recording(io.BytesIO):
    longest = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        line = super().readline(size)
        self.longest = max(self.longest, len(line))
        return line
