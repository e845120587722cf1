"""The embedder against every answer that an Ollama, or something else at its address, can give."""

import json
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dionysus_sync_mcp.adapters.ollama import (
    CLIENT_ERRORS,
    LOOK_SECONDS,
    REQUEST_CHARACTERS,
    REQUEST_TEXTS,
    OllamaEmbedder,
    client_error,
    has_model,
    requests,
)
from dionysus_sync_mcp.domain.errors import AccessRefused, DionysusError, Refused, TooLarge, Unavailable

URL = "http://127.0.0.1:11434"
Answer = Callable[[httpx.Request], httpx.Response]


@asynccontextmanager
async def embedder(answer: Answer, model: str = "nomic-embed-text") -> AsyncIterator[OllamaEmbedder]:
    """An embedder of two dimensions, whose Ollama answers so."""
    made = OllamaEmbedder(URL, model, 2, httpx.AsyncClient(transport=httpx.MockTransport(answer)))
    try:
        yield made
    finally:
        await made.close()


class Recorder:
    """An Ollama that gives the length of a text and 1 as its vector, and keeps what it was asked."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.timeouts: list[dict[str, float]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        self.bodies.append(json.loads(request.content))
        self.timeouts.append(request.extensions["timeout"])
        return httpx.Response(200, json={"embeddings": [[float(len(text)), 1.0] for text in self.bodies[-1]["input"]]})


async def test_a_batch_goes_out_with_prefix_folded_and_truncated_at_need() -> None:
    """One request holds all texts, as the model's family expects them."""
    recorder = Recorder()
    async with embedder(recorder) as ollama:
        vectors = await ollama.embed_documents(["Café\x00", "lone \ud800"])
        await ollama.embed_query("WO?")
    assert recorder.bodies == [
        {"model": "nomic-embed-text", "input": ["search_document: cafe ", "search_document: lone  "], "truncate": True},
        {"model": "nomic-embed-text", "input": ["search_query: wo?"], "truncate": True},
    ]
    assert vectors == [[22.0, 1.0], [23.0, 1.0]]


async def test_no_texts_need_no_request() -> None:
    """An empty batch is answered without asking."""
    recorder = Recorder()
    async with embedder(recorder) as ollama:
        assert await ollama.embed_documents([]) == []
    assert recorder.bodies == []


async def test_a_long_text_is_split_and_pooled_to_one_vector() -> None:
    """The vectors of the pieces become one of length 1, and its neighbours keep their own."""
    recorder = Recorder()
    async with embedder(recorder) as ollama:
        before, pooled, after = await ollama.embed_documents(["a", "word " * 5000, "bc"])
    assert (before, after) == ([18.0, 1.0], [19.0, 1.0])
    assert math.hypot(*pooled) == pytest.approx(1)
    assert sum(len(body["input"]) for body in recorder.bodies) > 10
    assert all(sum(map(len, body["input"])) <= REQUEST_CHARACTERS for body in recorder.bodies)


async def test_a_question_goes_before_documents_that_are_still_to_be_sent() -> None:
    """A backlog of long texts does not make a question wait for all of them."""
    recorder = Recorder()
    first_arrived, may_answer = anyio.Event(), anyio.Event()

    async def slowly(request: httpx.Request) -> httpx.Response:
        first_arrived.set()
        await may_answer.wait()
        return recorder(request)

    ollama = OllamaEmbedder(URL, "m", 2, httpx.AsyncClient(transport=httpx.MockTransport(slowly)))
    async with anyio.create_task_group() as group:
        group.start_soon(ollama.embed_documents, ["a" * 2500, "b" * 2500, "c" * 2500])
        await first_arrived.wait()
        group.start_soon(ollama.embed_query, "question")
        await anyio.wait_all_tasks_blocked()
        may_answer.set()
    await ollama.close()
    assert [body["input"][0][0] for body in recorder.bodies] == ["a", "q", "b", "c"]


@given(st.lists(st.text(max_size=30).map(lambda text: text * 300), max_size=60))
def test_requests_keep_order_and_bounds(texts: list[str]) -> None:
    """Every text is sent once, in order; a request is only over the size if it holds a single text."""
    made = list(requests(texts))
    assert [text for request in made for text in request] == texts
    assert all(1 <= len(request) <= REQUEST_TEXTS for request in made)
    assert all(len(request) == 1 or sum(map(len, request)) <= REQUEST_CHARACTERS for request in made)


async def test_only_the_first_success_may_take_long() -> None:
    """The model is loaded on the first call; afterwards 30 s without an answer mean that something is wrong."""
    recorder = Recorder()
    async with embedder(recorder) as ollama:
        await ollama.embed_query("one")
        await ollama.embed_query("two")
    assert [timeout["read"] for timeout in recorder.timeouts] == [120.0, 30.0]
    assert [timeout["connect"] for timeout in recorder.timeouts] == [2.0, 2.0]


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, "the input length exceeds the context length", Refused),
        (400, "embedding contains NaN or Inf values", Refused),
        (401, "unauthorized", AccessRefused),
        (404, 'model "nomic-embed-text" not found, try pulling it first', AccessRefused),
        (405, "", AccessRefused),
        (413, "", TooLarge),
        (301, "", AccessRefused),
        (429, "", Unavailable),
        (499, "request cancelled", Unavailable),
        (500, "failed to encode response: json: unsupported value: NaN", Refused),
        (502, "", Unavailable),
        (503, "server busy, please try again.  maximum pending requests exceeded", Unavailable),
        (504, "", Unavailable),
    ],
)
async def test_each_status_has_its_error(status: int, error: str, kind: type[DionysusError]) -> None:
    """Refusals of the text, an overloaded server and a wrong set-up are told apart, in Ollama's own words."""
    async with embedder(lambda _: httpx.Response(status, json={"error": error})) as ollama:
        with pytest.raises(DionysusError) as caught:
            await ollama.embed_documents(["x"])
    assert type(caught.value) is kind
    assert str(status) in caught.value.what
    assert error in caught.value.what


async def test_a_missing_model_says_how_to_get_it() -> None:
    """The hint is the command to run."""
    async with embedder(lambda _: httpx.Response(404, json={"error": "model not found"})) as ollama:
        with pytest.raises(AccessRefused) as caught:
            await ollama.embed_query("x")
    assert caught.value.hint == "Run: ollama pull nomic-embed-text"


async def test_a_runner_that_died_is_asked_once_more() -> None:
    """Ollama answers 500 while its runner is gone, and starts another for the next request."""
    answers = iter([httpx.Response(500, json={"error": "EOF"}), httpx.Response(200, json={"embeddings": [[1.0, 1.0]]})])
    async with embedder(lambda _: next(answers)) as ollama:
        assert await ollama.embed_query("x") == [1.0, 1.0]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>hello</html>",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"embeddings": null}',
        b'{"embeddings": []}',
        b'{"embeddings": [[1, 2], [3, 4]]}',
        b'{"embeddings": [1, 2]}',
        b'{"embeddings": [[1, null]]}',
        b'{"embeddings": [["1", "2"]]}',
        b'{"embeddings": [[true, false]]}',
    ],
)
async def test_a_malformed_reply_is_refused(body: bytes) -> None:
    """Whatever stands at the address, nothing but the right number of vectors is taken."""
    async with embedder(lambda _: httpx.Response(200, content=body)) as ollama:
        with pytest.raises(Refused):
            await ollama.embed_documents(["x"])


@pytest.mark.parametrize(
    ("vector", "reason"),
    [
        (b"[0, 0]", "Embedding is all zeros"),
        (b"[NaN, 1]", "Embedding has a value that is not finite"),
        (b"[1e999, 1]", "Embedding has a value that is not finite"),
        (b"[1, 2, 3]", "Embedding dimension mismatch: expected 2, got 3"),
        (b"[]", "Embedding dimension mismatch: expected 2, got 0"),
    ],
)
async def test_a_broken_vector_is_refused_in_the_data_models_words(vector: bytes, reason: str) -> None:
    """The vector index would leave it out in silence."""
    async with embedder(lambda _: httpx.Response(200, content=b'{"embeddings": [' + vector + b"]}")) as ollama:
        with pytest.raises(Refused) as caught:
            await ollama.embed_documents(["x"])
    assert caught.value.what == reason


async def test_pieces_that_cancel_out_are_refused() -> None:
    """The mean of opposite vectors is no vector."""

    vectors = iter([[1.0, 0.0], [-1.0, 0.0]])
    async with embedder(lambda _: httpx.Response(200, json={"embeddings": [next(vectors)]})) as ollama:
        with pytest.raises(Refused, match="all zeros"):
            await ollama.embed_documents(["x" * 5000])


def subclasses(kind: type[BaseException]) -> set[type[BaseException]]:
    """The class and all below it."""
    return {kind}.union(*(subclasses(below) for below in kind.__subclasses__()))


def test_every_error_of_httpx_is_mapped() -> None:
    """No exception class of httpx gets past the edge, and none that a retry can heal becomes a refusal."""
    exported = {kind for kind in vars(httpx).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    found = {kind for kind in exported if kind.__module__.startswith("httpx")}
    assert len(found) > 25
    assert [kind for kind in found if not issubclass(kind, CLIENT_ERRORS)] == []
    below = {kind for base in CLIENT_ERRORS for kind in subclasses(base) if kind.__module__.startswith("httpx")}
    assert below == found
    mapped = {kind: type(client_error(kind.__new__(kind), "")) for kind in found}
    transport = {kind: mapped[kind] for kind in found if issubclass(kind, httpx.TransportError)}
    assert set(transport.values()) == {Unavailable, AccessRefused}
    assert {kind for kind in transport if transport[kind] is AccessRefused} == {
        httpx.ProxyError,
        httpx.UnsupportedProtocol,
    }


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (httpx.ConnectError("refused"), Unavailable),
        (httpx.ReadTimeout(""), Unavailable),
        (httpx.RemoteProtocolError("closed"), Unavailable),
        (httpx.InvalidURL("no port"), AccessRefused),
        (httpx.DecodingError("gzip"), Refused),
    ],
)
async def test_an_error_of_the_client_crosses_in_our_words(error: Exception, kind: type[DionysusError]) -> None:
    """Calls raise errors of our tree only, and health raises none."""

    def fail(_: httpx.Request) -> httpx.Response:
        raise error

    async with embedder(fail) as ollama:
        with pytest.raises(kind):
            await ollama.embed_documents(["x"])
        health = await ollama.health(1.0)
    assert not health.up


async def test_no_secret_of_the_url_is_in_a_message() -> None:
    """A password in OLLAMA_URL is not told to anybody."""

    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("All connection attempts failed")

    client = httpx.AsyncClient(transport=httpx.MockTransport(refuse))
    ollama = OllamaEmbedder("http://me:hunter2@example.org:11434", "m", 2, client)
    with pytest.raises(Unavailable) as caught:
        await ollama.embed_query("x")
    await ollama.close()
    assert "example.org" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "listed", "there"),
    [
        ("nomic-embed-text", "nomic-embed-text:latest", True),
        ("nomic-embed-text", "nomic-embed-text", True),
        ("nomic-embed-text:v1.5", "nomic-embed-text:v1.5", True),
        ("nomic-embed-text", "nomic-embed-text:v1.5", False),
        ("host:5000/me/model", "host:5000/me/model:latest", True),
    ],
)
def test_a_model_is_found_by_its_name_and_tag(name: str, listed: str, there: bool) -> None:
    """A name without a tag means the latest, as in Ollama."""
    assert has_model([{"name": "other:latest"}, {"name": listed}, None], name) is there
    assert not has_model(None, name)


@pytest.mark.promise("P9")
async def test_a_server_that_hangs_is_given_up_at_the_deadline() -> None:
    """Health and a question end when their time is over, although the server keeps the connection."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ollama = OllamaEmbedder(f"http://127.0.0.1:{silent.getsockname()[1]}", "m", 2)
        with anyio.fail_after(1.0):
            health = await ollama.health(0.1)
            with anyio.move_on_after(0.1) as scope:
                await ollama.embed_query("x")
        await ollama.close()
        received = [first_line(silent), first_line(silent)]
    assert received == ["GET /api/version HTTP/1.1", "POST /api/embed HTTP/1.1"]
    assert scope.cancelled_caught
    assert health.error == "no answer within 0.1 s"
    assert "port" in health.hint


def first_line(server: socket.socket) -> str:
    """What the next connection to a server that never answered has sent, its first line."""
    connection, _ = server.accept()
    with connection:
        return connection.recv(4096).split(b"\r\n")[0].decode("ascii")


async def test_health_of_something_else_at_the_address() -> None:
    """A web server that is no Ollama is not taken for one."""
    async with embedder(lambda _: httpx.Response(200, text="<html>")) as ollama:
        health = await ollama.health(1.0)
    assert health.error == "the reply is not JSON"
    assert "OLLAMA_URL" in health.hint


@pytest.mark.promise("P9")
async def test_after_a_failure_a_lost_ollama_gets_no_request_that_it_could_keep_for_minutes() -> None:
    """A short look comes first, until it is answered; then no more of them."""
    asked: list[tuple[str, float]] = []
    lost = True

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, request.extensions["timeout"]["read"]))
        if lost:
            raise httpx.ReadTimeout("", request=request)
        if request.url.path == "/api/version":
            return httpx.Response(200, json={"version": "0"})
        return httpx.Response(200, json={"embeddings": [[1.0, 1.0]]})

    async with embedder(answer) as ollama:
        for _ in range(2):
            with pytest.raises(Unavailable):
                await ollama.embed_documents(["a"])
        lost = False
        for _ in range(2):
            await ollama.embed_documents(["a"])
    embed, look = "/api/embed", "/api/version"
    assert [path for path, _ in asked] == [embed, look, look, embed, embed]
    assert all(seconds == LOOK_SECONDS for path, seconds in asked if path == look)
