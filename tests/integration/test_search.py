"""From memories without vectors to an answer: embed and query on a real Neo4j and a real Ollama."""

from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from uuid import UUID

import anyio
import pytest
from pydantic import SecretStr

from dionysus_sync_mcp.adapters.neo4j import RemoteStore
from dionysus_sync_mcp.adapters.ollama import OllamaEmbedder
from dionysus_sync_mcp.domain.errors import Unavailable
from dionysus_sync_mcp.domain.memory import MemoryChange, Properties, Version
from dionysus_sync_mcp.engine.embed import EmbedResult, embed_once
from dionysus_sync_mcp.engine.ports.push import RemoteBatch
from dionysus_sync_mcp.engine.ports.query import Filters, FoundMemory
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity
from dionysus_sync_mcp.engine.query import QueryRequest, QuestionVectors, query
from dionysus_sync_mcp.engine.reports import QueryAnswer

WHEN = "2026-05-01T12:00:00+00:00"
SESSION = str(UUID(int=7, version=4))
MEMORIES = {
    "login": ("billing", "The login of a user fails when the token is older than an hour."),
    "vector": ("search", "The vector index is rebuilt after the dimensions of the model change."),
    "table": ("billing", "Somebody removed the invoices table; the database was recovered from the remote store."),
    "blank": ("billing", " \n"),
    "long": ("search", "cache entry " * 30),
}


class Absent:
    """A local store that is away: whatever a test finds, the remote store has given."""

    async def search_words(self, text: str, filters: Filters, limit: int) -> list[FoundMemory]:
        """Nothing."""
        raise Unavailable(f"away, asked for {limit} of {text!r} within {filters}", where="PostgreSQL")


class Search:
    """The real services behind a query."""

    def __init__(self, store: RemoteStore, embedder: OllamaEmbedder) -> None:
        self.store = store
        self.embedder = embedder
        self._questions = QuestionVectors(embedder)

    async def ask(self, text: str, filters: Filters | None = None) -> QueryAnswer:
        """Query, on services that are awake: how long they may take is no matter of these tests."""
        await self._questions.embed_query(text.strip())
        await self.store.search_words(text, Filters(), 1)
        request = QueryRequest(text, filters or Filters())
        return await query(request, self.store, self.store, Absent(), self._questions, 0.5)


def created(key: str, project: str, content: str) -> MemoryChange:
    """A memory's first version."""
    properties = Properties(content, "semantic", 0.5, project, SESSION, [project], WHEN, WHEN, None)
    content_hash = sha256(content.encode("utf-8")).hexdigest()
    return MemoryChange(key, None, Version(1, "create", content_hash, WHEN, properties))


@pytest.fixture
async def search(empty_neo4j: str, ollama_url: str) -> AsyncIterator[Search]:
    """The memories in the remote store, without vectors."""

    async def address() -> str:
        return empty_neo4j

    store = RemoteStore(address, "neo4j", SecretStr(""), "neo4j", 768, "english")
    embedder = OllamaEmbedder(ollama_url, "nomic-embed-text", 768)
    await store.prepare()
    changes = [created(key, project, content) for key, (project, content) in MEMORIES.items()]
    await store.write(RemoteBatch(StoreIdentity("store", "1"), changes))
    yield Search(store, embedder)
    await embedder.close()
    await store.close()


def ids(answer: QueryAnswer) -> Sequence[str]:
    """The ids of the hits, in order."""
    return [hit.memory_id for hit in answer.items]


async def test_every_memory_gets_its_vector_or_a_reason(search: Search) -> None:
    """Two steps are enough: the second finds nothing to do."""
    assert await search.store.count_without_vector() == 5
    assert await embed_once(search.store, search.embedder) == EmbedResult(embedded=4, refused=1, stale=0)
    assert await embed_once(search.store, search.embedder) == EmbedResult(0, 0, 0)
    assert await search.store.count_without_vector() == 0


async def test_a_question_finds_its_memory_by_words_and_meaning(search: Search) -> None:
    """The right memory comes first, with its project and session, and both searches found it."""
    await embed_once(search.store, search.embedder)
    answer = await search.ask("why does the LOGIN of a user fail?")
    assert answer.searched == "words and meaning"
    assert answer.items[0].memory_id == "login"
    assert answer.items[0].matched == ["words", "meaning"]
    assert (answer.items[0].project, answer.items[0].session_id) == ("billing", SESSION)
    assert "blank" not in ids(answer)


async def test_filters_hold_for_both_searches(search: Search) -> None:
    """A hit of another project is no hit, however well it fits."""
    await embed_once(search.store, search.embedder)
    answer = await search.ask("login of a user fails", Filters(projects=("search",)))
    assert set(ids(answer)) == {"vector", "long"}
    nothing = await search.ask("login", Filters(projects=('it\'s "nowhere"\n}) RETURN 1 //',)))
    assert (nothing.items, nothing.searched) == ([], "words and meaning")


@pytest.mark.promise("P9")
async def test_without_vectors_the_words_still_find(search: Search) -> None:
    """What is not embedded yet is found by its words."""
    answer = await search.ask("invoices table")
    assert ids(answer) == ["table"]
    assert answer.items[0].matched == ["words"]


@pytest.mark.parametrize("text", ["AND OR NOT", '"(unclosed [', "a:b^2~ /x/ \\", "?*", "the", "🎉", "why " * 100])
async def test_no_question_is_an_error(search: Search, text: str) -> None:
    """A question is data: whatever syntax it holds, both searches are made."""
    assert (await search.ask(text)).warnings == []


@pytest.mark.promise("P9")
async def test_with_neo4j_away_the_answer_says_so(search: Search) -> None:
    """A store that nobody listens at is told in time."""

    async def nowhere() -> str:
        return "bolt://127.0.0.1:9"

    absent = RemoteStore(nowhere, "neo4j", SecretStr(""), "neo4j", 768, "english")
    with anyio.fail_after(2.0):
        answer = await query(QueryRequest("login"), absent, absent, Absent(), QuestionVectors(search.embedder), 0.5)
    await absent.close()
    assert answer.searched == "nothing"
    assert "does not mean" in answer.next_step
