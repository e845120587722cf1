"""The embedder on a real Ollama."""

import math
import socket
from collections.abc import AsyncIterator

import anyio
import httpx
import pytest

from dionysus_sync_mcp.adapters.ollama import OllamaEmbedder
from dionysus_sync_mcp.domain.errors import AccessRefused, Refused, Unavailable
from dionysus_sync_mcp.engine.query import QuestionVectors
from tests.services.waiting import until

MODEL = "nomic-embed-text"


@pytest.fixture
async def ollama(ollama_url: str) -> AsyncIterator[OllamaEmbedder]:
    """An embedder on the real server."""
    made = OllamaEmbedder(ollama_url, MODEL, 768)
    yield made
    await made.close()


def cosine(one: list[float], other: list[float]) -> float:
    """How alike two vectors are."""
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


async def test_vectors_have_the_length_and_order_of_their_texts(ollama: OllamaEmbedder) -> None:
    """A batch over several requests gives each text the vector that it gets alone."""
    texts = [f"memory number {n} about database {n * 7}" for n in range(20)]
    vectors = await ollama.embed_documents(texts)
    assert {len(vector) for vector in vectors} == {768}
    alone = (await ollama.embed_documents([texts[17]]))[0]
    assert cosine(alone, vectors[17]) == pytest.approx(1, abs=1e-4)


async def test_case_and_accents_do_not_matter(ollama: OllamaEmbedder) -> None:
    """An uncased model gives one vector for one word, however it is written."""
    one, other = await ollama.embed_documents(["Crème BRÛLÉE in the Database", "creme brulee in the database"])
    assert cosine(one, other) == pytest.approx(1, abs=1e-4)


async def test_related_texts_are_closer(ollama: OllamaEmbedder) -> None:
    """A question is nearer to the memory that shares its words than to another."""
    near, far = await ollama.embed_documents(["the postgres database lost a table", "bug in the login of a user"])
    question = await ollama.embed_query("which table did the postgres database lose")
    assert cosine(question, near) > cosine(question, far)


@pytest.mark.parametrize(
    "text",
    ["", "x", "\x00", "\ud800", "🎉" * 50, "\u202e\u200b", "word " * 520, "x" * 2600, "世界" * 1000, "\n" * 100],
)
async def test_any_text_has_a_vector(ollama: OllamaEmbedder, text: str) -> None:
    """Long, empty, invisible, half a character: the server takes what we make of it."""
    vector = (await ollama.embed_documents([text]))[0]
    assert math.hypot(*vector) == pytest.approx(1, abs=1e-3)


async def test_a_question_over_the_context_is_cut(ollama: OllamaEmbedder) -> None:
    """A question of more than the model's context has a vector."""
    assert len(await ollama.embed_query("why " * 700)) == 768


async def test_a_wrong_dimension_is_refused(ollama_url: str) -> None:
    """A model of other dimensions than the index has is named, in the data model's words."""
    ollama = OllamaEmbedder(ollama_url, MODEL, 384)
    with pytest.raises(Refused, match="expected 384, got 768"):
        await ollama.embed_documents(["x"])
    await ollama.close()


async def test_a_missing_model_is_an_error_and_a_degraded_health(ollama_url: str) -> None:
    """The server is up, the model is not there: both say which command gets it."""
    ollama = OllamaEmbedder(ollama_url, "not-there", 768)
    with pytest.raises(AccessRefused) as caught:
        await ollama.embed_query("x")
    health = await ollama.health(2.0)
    await ollama.close()
    assert caught.value.hint == health.hint == "Run: ollama pull not-there"
    assert health.up
    assert "not-there is not there" in health.degraded[0]


async def test_health_of_a_good_server(ollama: OllamaEmbedder) -> None:
    """Version and latency are told; nothing is degraded."""
    health = await ollama.health(2.0)
    assert (health.up, health.degraded, health.hint) == (True, (), "")
    assert health.version
    assert health.latency_ms is not None


@pytest.mark.promise("P9")
async def test_an_absent_server_is_unavailable() -> None:
    """A refused connection is told at once, by the call and by the health."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ollama = OllamaEmbedder(f"http://127.0.0.1:{port}", MODEL, 768)
    with anyio.fail_after(1.5):
        with pytest.raises(Unavailable):
            await ollama.embed_query("x")
        assert not (await ollama.health(1.0)).up
    await ollama.close()


async def test_a_call_that_was_cancelled_does_not_spoil_the_next(ollama: OllamaEmbedder) -> None:
    """A question whose deadline has passed leaves the connection pool usable."""
    with anyio.move_on_after(0.01) as scope:
        await ollama.embed_documents(["word " * 20_000])
    assert scope.cancelled_caught
    assert len(await ollama.embed_query("x")) == 768


@pytest.mark.promise("P9")
async def test_a_question_that_met_a_sleeping_model_wakes_it(ollama: OllamaEmbedder, ollama_url: str) -> None:
    """Ollama stops loading when the question is given up; catching up loads the model and makes the vector."""
    async with httpx.AsyncClient(base_url=ollama_url, trust_env=False) as client:

        async def loaded() -> bool:
            return bool((await client.get("/api/ps")).json()["models"])

        async def asleep() -> bool:
            return not await loaded()

        await client.post("/api/embed", json={"model": MODEL, "keep_alive": 0}, timeout=10)
        await until(asleep, what="the model is unloaded", seconds=10)
        questions = QuestionVectors(ollama)
        with anyio.move_on_after(0.02) as scope:
            await questions.embed_query("a question in a hurry")
        assert scope.cancelled_caught
        questions.give_up("a question in a hurry")
        async with anyio.create_task_group() as group:
            group.start_soon(questions.catch_up)
            await until(loaded, what="the model is loaded", seconds=20)
            assert len(await questions.embed_query("a question in a hurry")) == 768
            group.cancel_scope.cancel()


async def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    ollama_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A company's proxy does not know this machine's Ollama."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with httpx.AsyncClient() as plain:
        with pytest.raises(httpx.ConnectError):
            await plain.get(ollama_url)
    ollama = OllamaEmbedder(ollama_url, MODEL, 768)
    assert (await ollama.health(2.0)).up
    await ollama.close()
