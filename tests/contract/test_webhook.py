"""The webhook against every answer that a receiver can give: it is taken, or it is not, and nothing else happens."""

import hashlib
import hmac
import json
import socket
from collections.abc import AsyncIterator

import anyio
import pytest
from anyio.abc import SocketStream
from pydantic import SecretStr

from dionysus_sync_mcp.adapters import webhook
from dionysus_sync_mcp.adapters.webhook import Webhook, signature
from dionysus_sync_mcp.domain.errors import Unavailable
from tests.services.receiver import Answer, Receiver, hanging, receiver, saying, with_status

TOKEN = "correct-horse-battery"  # noqa: S105 - the test's own key
BODY = json.dumps({"summary": "größer"}, ensure_ascii=False).encode()


@pytest.fixture
async def sink() -> AsyncIterator[Receiver]:
    """A receiver on this machine."""
    async with receiver() as opened:
        yield opened


def to(url: str) -> Webhook:
    """A webhook that posts there."""
    return Webhook(SecretStr(url), SecretStr(TOKEN))


async def test_what_is_posted_is_signed_and_can_be_told_from_a_repetition(sink: Receiver) -> None:
    """The receiver computes the same HMAC over the raw body, and sees the alert's id."""
    await to(sink.url + "?key=1").post("an-id", BODY)
    (got,) = sink.requests
    assert (got.path, got.body, got.headers["x-delivery-id"]) == ("/hook?key=1", BODY, "an-id")
    expected = hmac.new(TOKEN.encode(), got.body, hashlib.sha256).hexdigest()
    assert got.headers["x-signature"] == f"sha256={expected}"
    assert got.headers["content-type"] == "application/json"


def test_the_signature_is_that_of_the_standard() -> None:
    """A known pair of key and text (RFC 4231, test case 2)."""
    known = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert signature(b"what do ya want for nothing?", "Jefe") == f"sha256={known}"


@pytest.mark.parametrize("line", ["200 OK", "201 Created", "202 Accepted", "204 No Content"])
async def test_any_2xx_is_taken(sink: Receiver, line: str) -> None:
    """Receivers differ in which they choose."""
    sink.answer = with_status(line)
    await to(sink.url).post("an-id", BODY)
    assert len(sink.requests) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (with_status("500 Internal Server Error"), "answer 500"),
        (with_status("404 Not Found"), "answer 404"),
        (with_status("302 Found", "Location: http://127.0.0.1:1/elsewhere"), "answer 302"),
        (with_status("307 Temporary Redirect", "Location: /again"), "answer 307"),
        (saying(b""), "RemoteProtocolError"),
        (saying(b"SSH-2.0-OpenSSH_9.6\r\n"), "RemoteProtocolError"),
        (saying(b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 10_000_000), "RemoteProtocolError|ReadError"),
        (hanging, "no answer within"),
    ],
    ids=["500", "404", "302", "307", "nothing", "not-http", "endless-head", "hanging"],
)
async def test_whatever_else_is_answered_is_not_taken(
    sink: Receiver, answer: Answer, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redirects are not followed: what is signed for one receiver is not handed to another."""
    monkeypatch.setattr(webhook, "DEADLINE_SECONDS", 1.0)
    sink.answer = answer
    with anyio.fail_after(15), pytest.raises(Unavailable, match=said):
        await to(sink.url).post("an-id", BODY)
    assert [got.path for got in sink.requests] == ["/hook"]


async def test_ten_megabytes_of_answer_are_not_read(sink: Receiver) -> None:
    """The status is all that counts: the receiver finds the connection closed long before its body is through."""
    sent = 0
    cut = anyio.Event()

    async def verbose(stream: SocketStream) -> None:
        nonlocal sent
        await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        try:
            while sent < 100_000_000:
                await stream.send(b"x" * 100_000)
                sent += 100_000
        except anyio.BrokenResourceError:
            cut.set()

    sink.answer = verbose
    await to(sink.url).post("an-id", BODY)
    with anyio.fail_after(15):
        await cut.wait()
    assert sent < 100_000_000


@pytest.mark.parametrize(
    "url",
    [
        "http://{port}/hidden-path?token=hidden-query",
        "http://user:hidden-password@{port}/x",
        "https://{port}/hidden-path",
        "http://nowhere.invalid/hidden-path",
    ],
)
async def test_no_message_quotes_the_url(url: str) -> None:
    """Any part of it may be a secret, and the signature's key is one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        unused = f"127.0.0.1:{probe.getsockname()[1]}"
    with anyio.fail_after(15), pytest.raises(Unavailable) as caught:
        await to(url.format(port=unused)).post("an-id", BODY)
    said = f"{caught.value} {caught.value!r}"
    assert "hidden" not in said
    assert TOKEN not in said
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("url", "environment"),
    [
        ("https://hooks.invalid/hidden", {"ALL_PROXY": "socks5://127.0.0.1:9"}),
        ("https://hooks.invalid/hidden", {"HTTPS_PROXY": "foo://127.0.0.1:9"}),
        ("https://hooks.invalid/hidden", {"SSL_CERT_FILE": "/nowhere/hidden.pem"}),
        ("https://xn--a.example/hidden", {}),
    ],
)
async def test_an_environment_that_does_not_work_is_no_crash(
    monkeypatch: pytest.MonkeyPatch, url: str, environment: dict[str, str]
) -> None:
    """A proxy of an unknown kind, certificates that are not there, a host that is no name: the alert is sent later."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with anyio.fail_after(15), pytest.raises(Unavailable) as caught:
        await to(url).post("an-id", BODY)
    assert "hidden" not in f"{caught.value} {caught.value!r}"
