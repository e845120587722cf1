"""The embed step, on an in-memory store and an embedder that refuses what it is told to."""

import math
from collections.abc import Sequence
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dionysus_sync_mcp.domain.embedding import text_hash
from dionysus_sync_mcp.domain.errors import AccessRefused, Refused, Unavailable
from dionysus_sync_mcp.domain.memory import broken_vector_rule
from dionysus_sync_mcp.engine.embed import NO_TEXT, EmbedResult, embed_once
from dionysus_sync_mcp.engine.ports.embed import Text, Vector


class Store:
    """Contents by id; what became of them."""

    def __init__(self, contents: dict[str, str]) -> None:
        self.contents = contents
        self.vectors: dict[str, Vector] = {}
        self.refused: dict[str, str] = {}
        self.models: set[str] = set()
        self.changed_meanwhile: dict[str, str] = {}

    async def texts_without_vector(self, limit: int) -> list[Text]:
        """Those that have neither vector nor refusal."""
        open_ids = [key for key in sorted(self.contents) if key not in self.vectors and key not in self.refused]
        return [Text(key, self.contents[key]) for key in open_ids[:limit]]

    async def store_vectors(self, vectors: Sequence[Vector], model: str) -> int:
        """Store those whose memory still has that content."""
        self.contents |= self.changed_meanwhile
        current = [vector for vector in vectors if vector.text_hash == text_hash(self.contents[vector.memory_id])]
        self.vectors |= {vector.memory_id: vector for vector in current}
        self.models.add(model)
        return len(current)

    async def refuse_text(self, memory_id: str, text_hash: str, reason: str) -> None:
        """Keep the reason."""
        assert text_hash == sha256(self.contents[memory_id].encode("utf-8", "surrogatepass")).hexdigest()
        self.refused[memory_id] = reason

    async def count_without_vector(self) -> int:
        """How many are left."""
        return len(await self.texts_without_vector(10_000))


class Model:
    """Three dimensions; refuses texts with "bad" in them, and breaks the vectors of some others."""

    model = "test-model"

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.away: Exception | None = None
        self.dimensions = 3

    async def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector each."""
        self.calls.append(len(texts))
        if self.away:
            raise self.away
        if any("bad" in text for text in texts):
            raise Refused("answer 400: bad text", where="Ollama")
        vectors = [self._vector(text) for text in texts]
        broken = next(filter(None, (broken_vector_rule(vector, self.dimensions) for vector in vectors)), None)
        if broken:
            raise Refused(broken, where="Ollama")
        return vectors

    async def embed_query(self, text: str) -> list[float]:
        """As a document."""
        return (await self.embed_documents([text]))[0]

    @staticmethod
    def _vector(text: str) -> list[float]:
        by_word = {"zero": [0.0] * 3, "nan": [math.nan, 1.0, 1.0], "short": [1.0, 1.0]}
        return by_word.get(text, [float(len(text)), 1.0, 0.5])


async def test_a_batch_is_embedded_and_stored_with_its_hashes() -> None:
    """Every text gets its vector, under the model's name, in one call."""
    store, model = Store({"a": "one", "b": "three"}), Model()
    assert await embed_once(store, model) == EmbedResult(embedded=2, refused=0, stale=0)
    assert store.vectors["b"] == Vector("b", sha256(b"three").hexdigest(), [5.0, 1.0, 0.5])
    assert store.models == {"test-model"}
    assert model.calls == [2]


async def test_nothing_to_do_asks_nobody() -> None:
    """Without texts Ollama is left alone."""
    model = Model()
    assert await embed_once(Store({}), model) == EmbedResult(0, 0, 0)
    assert model.calls == []


@pytest.mark.parametrize("position", range(8))
async def test_one_bad_text_is_found_by_halving(position: int) -> None:
    """Wherever it stands, the bad text is put on record with the reason and the seven others are embedded."""
    contents = {f"m{n}": f"text {n}" for n in range(8)}
    store, model = Store(contents | {f"m{position}": "bad"}), Model()
    assert await embed_once(store, model) == EmbedResult(embedded=7, refused=1, stale=0)
    assert store.refused == {f"m{position}": "answer 400: bad text"}
    # The batch, the probe, and two halves on each of three levels.
    assert len(model.calls) == 8


@given(st.lists(st.booleans(), max_size=20))
async def test_every_text_is_embedded_or_refused(bad: list[bool]) -> None:
    """Whichever texts are bad, each text ends as a vector or as a refusal, and the next step finds nothing to do."""
    contents = {f"m{n:02}": "bad" if is_bad else "good" for n, is_bad in enumerate(bad)}
    store, model = Store(contents), Model()
    result = await embed_once(store, model)
    assert (result.embedded, result.refused) == (bad.count(False), bad.count(True))
    assert await embed_once(store, model) == EmbedResult(0, 0, 0)


@pytest.mark.parametrize("content", ["", "  \n\t", "\u3000"])
async def test_a_blank_text_is_not_sent(content: str) -> None:
    """Nothing can be said about nothing: it is recorded without asking the model."""
    store, model = Store({"a": content}), Model()
    assert await embed_once(store, model) == EmbedResult(embedded=0, refused=1, stale=0)
    assert store.refused == {"a": NO_TEXT}
    assert model.calls == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("zero", "Embedding is all zeros"),
        ("nan", "Embedding has a value that is not finite"),
        ("short", "Embedding dimension mismatch: expected 3, got 2"),
    ],
)
async def test_a_broken_vector_is_refused_in_the_data_models_words(content: str, reason: str) -> None:
    """A vector that the index would silently leave out never reaches it."""
    store = Store({"a": content, "b": "fine"})
    assert await embed_once(store, Model()) == EmbedResult(embedded=1, refused=1, stale=0)
    assert store.refused == {"a": reason}


async def test_a_model_of_other_dimensions_puts_no_text_on_record() -> None:
    """If the model refuses everything, it is the settings that are wrong and not the memories."""
    store, model = Store({"a": "one", "b": "two"}), Model()
    model.dimensions = 768
    with pytest.raises(AccessRefused, match="expected 768, got 3") as caught:
        await embed_once(store, model)
    assert "DIONYSUS_EMBEDDING_DIMENSIONS" in caught.value.hint
    assert store.refused == {}
    assert model.calls == [2, 1]


@pytest.mark.promise("P9")
@pytest.mark.parametrize("away", [Unavailable("away"), AccessRefused("no model")])
async def test_ollama_away_changes_nothing(away: Exception) -> None:
    """The caller hears of it, and the texts wait for the next step."""
    store, model = Store({"a": "one", "b": ""}), Model()
    model.away = away
    with pytest.raises(type(away)):
        await embed_once(store, model)
    assert (store.vectors, store.refused) == ({}, {})
    model.away = None
    assert await embed_once(store, model) == EmbedResult(embedded=1, refused=1, stale=0)


async def test_a_text_that_changed_meanwhile_is_stale_and_comes_again() -> None:
    """A vector of yesterday's text is not stored under today's."""
    store, model = Store({"a": "old", "b": "same"}), Model()
    store.changed_meanwhile = {"a": "newer"}
    assert await embed_once(store, model) == EmbedResult(embedded=1, refused=0, stale=1)
    assert await embed_once(store, model) == EmbedResult(embedded=1, refused=0, stale=0)
    assert store.vectors["a"].values == [5.0, 1.0, 0.5]


async def test_the_limit_bounds_a_step() -> None:
    """One step does one bounded piece of work."""
    store, model = Store({f"m{n}": "text" for n in range(10)}), Model()
    assert (await embed_once(store, model, limit=4)).embedded == 4
    assert model.calls == [4]


async def test_a_lone_surrogate_does_not_stop_the_step() -> None:
    """Neo4j may hold half a character; it is hashed and embedded like any other."""
    store = Store({"a": "x\ud800"})
    assert (await embed_once(store, Model())).embedded == 1
