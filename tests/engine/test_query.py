"""Query, on in-memory searches that can fail or hang."""

import base64
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta, timezone

import anyio
import anyio.lowlevel
import pytest

from dionysus_sync_mcp.domain.errors import AccessRefused, InputError, Unavailable
from dionysus_sync_mcp.domain.text import estimated_tokens, visible
from dionysus_sync_mcp.engine.ports.query import Filters, FoundMemory
from dionysus_sync_mcp.engine.query import QueryRequest, QuestionVectors, query
from dionysus_sync_mcp.engine.reports import QueryAnswer

Fault = Callable[[], Awaitable[None]]
SESSION = "11111111-1111-4111-8111-111111111111"


def memory(key: str, score: float, content: str = "text", session: str | None = None) -> FoundMemory:
    """A hit."""
    return FoundMemory(
        memory_id=key,
        score=score,
        content=content,
        memory_type="semantic",
        importance=0.5,
        source_project="project",
        session_id=session,
        tags=["tag"],
        created_at="2026-05-01T12:00:00Z",
        session_started_at=None,
        session_summary=None,
    )


async def nothing_wrong() -> None:
    """A service that answers."""


async def away() -> None:
    """A service that cannot be reached."""
    raise Unavailable("connection refused", where="the service", hint="Start it.")


async def no_model() -> None:
    """An Ollama that answers, without the model."""
    raise AccessRefused("answer 404", where="Ollama", hint="Run: ollama pull nomic-embed-text")


async def hang() -> None:
    """A service that took the connection and says nothing."""
    await anyio.sleep_forever()


class World:
    """The four services behind a query."""

    def __init__(self, words: Sequence[FoundMemory] = (), meaning: Sequence[FoundMemory] = ()) -> None:
        self.found_words = list(words)
        self.found_meaning = list(meaning)
        self.found_local = [memory("local", 1.0, "a local memory")]
        self.neo4j: Fault = nothing_wrong
        self.postgresql: Fault = nothing_wrong
        self.ollama: Fault = nothing_wrong
        self.embedded: list[str] = []
        self.asked: list[tuple[str, Filters, int]] = []
        self.questions = QuestionVectors(self, size=2)

    model = "test-model"

    async def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Not used by a query."""
        raise NotImplementedError

    async def embed_query(self, text: str) -> list[float]:
        """One vector for all."""
        await self.ollama()
        self.embedded.append(text)
        return [1.0]

    async def search_words(self, text: str, filters: Filters, limit: int) -> list[FoundMemory]:
        """The remote store's full text."""
        await self.neo4j()
        self.asked.append((text, filters, limit))
        return self.found_words[:limit]

    async def search_vector(self, vector: Sequence[float], filters: Filters, limit: int) -> list[FoundMemory]:
        """The remote store's vectors."""
        await self.neo4j()
        assert vector == [1.0]
        self.asked.append(("", filters, limit))
        return self.found_meaning[:limit]

    async def ask(self, request: QueryRequest, words_weight: float = 0.5) -> QueryAnswer:
        """Query, within the time that a tool has."""
        with anyio.fail_after(2.0):
            return await query(request, self, self, Local(self), self.questions, words_weight)


class Local:
    """The local store's full text."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def search_words(self, text: str, filters: Filters, limit: int) -> list[FoundMemory]:
        """The local hits."""
        await self._world.postgresql()
        assert text
        assert filters is not None
        return self._world.found_local[:limit]


def ids(answer: QueryAnswer) -> list[str]:
    """The ids of the hits, in order."""
    return [hit.memory_id for hit in answer.items]


async def test_words_and_meaning_are_fused() -> None:
    """A memory found by both comes before those found by one; each hit says what found it."""
    world = World([memory("a", 9.0), memory("both", 8.0)], [memory("both", 0.95), memory("b", 0.9), memory("c", 0.5)])
    filters = Filters(projects=("p",))
    answer = await world.ask(QueryRequest("  what is it? ", filters))
    assert ids(answer) == ["both", "a", "b", "c"]
    assert answer.items[0].matched == ["words", "meaning"]
    assert (answer.searched, answer.warnings, answer.next_cursor) == ("words and meaning", [], None)
    assert sorted(world.asked) == sorted([("what is it?", filters, 100), ("", filters, 100)])


async def test_the_weight_decides_between_words_and_meaning() -> None:
    """A weight of 1 ranks by words alone, 0 by meaning alone."""
    world = World([memory("w", 9.0)], [memory("m", 0.9)])
    assert ids(await world.ask(QueryRequest("x"), 1.0))[0] == "w"
    assert ids(await world.ask(QueryRequest("x"), 0.0))[0] == "m"


@pytest.mark.promise("P9")
@pytest.mark.parametrize("fault", [away, no_model, hang])
async def test_ollama_away_leaves_the_words(fault: Fault) -> None:
    """Within the tool's time the words' hits come back, with a warning that says why."""
    world = World([memory("a", 9.0)], [memory("b", 0.9)])
    world.ollama = fault
    answer = await world.ask(QueryRequest("x"))
    assert (answer.searched, ids(answer)) == ("words", ["a"])
    assert "Only words" in answer.warnings[0]
    assert world.embedded == []


@pytest.mark.promise("P9")
@pytest.mark.parametrize("fault", [away, hang])
async def test_neo4j_away_searches_the_local_words(fault: Fault) -> None:
    """The local store answers, and the reply says that the others' memories were not searched."""
    world = World([memory("a", 9.0)])
    world.neo4j = fault
    answer = await world.ask(QueryRequest("x"))
    assert (answer.searched, ids(answer)) == ("local words", ["local"])
    assert "Only the words of the memories in the local store" in answer.warnings[0]


@pytest.mark.promise("P9")
@pytest.mark.parametrize("fault", [away, hang])
async def test_everything_away_is_an_answer(fault: Fault) -> None:
    """No exception: an empty list that says it means nothing, which stores are away, and what to do."""
    world = World([memory("a", 9.0)])
    world.neo4j = world.postgresql = world.ollama = fault
    answer = await world.ask(QueryRequest("x"))
    assert (answer.searched, answer.items, answer.next_cursor) == ("nothing", [], None)
    assert "The remote store could not be searched" in answer.warnings[0]
    assert "Nor the local store" in answer.warnings[1]
    assert "does not mean that there is no such memory" in answer.next_step
    assert "get_sync_status" in answer.next_step


async def test_neo4j_away_does_not_wait_for_ollama() -> None:
    """Without a store to search, the question's vector is not waited for."""
    world = World()
    world.neo4j, world.ollama = away, hang
    with anyio.fail_after(0.5):
        assert (await world.ask(QueryRequest("x"))).searched == "local words"


async def test_a_repeated_question_is_embedded_once() -> None:
    """The latest questions' vectors are kept; the oldest goes first."""
    world = World([memory("a", 9.0)])
    for text in ("one", "two", "one", "three", "one", "two"):
        await world.ask(QueryRequest(text))
    assert world.embedded == ["one", "two", "three", "two"]


@pytest.mark.promise("P9")
async def test_a_question_that_could_not_wait_is_embedded_afterwards() -> None:
    """A model that takes longer to load than a question may wait is loaded all the same, for the next one."""
    world = World([memory("w", 9.0)], [memory("m", 0.9)])
    loaded = anyio.Event()
    world.ollama = loaded.wait
    async with anyio.create_task_group() as group:
        group.start_soon(world.questions.catch_up)
        first = await world.ask(QueryRequest("x"))
        assert first.searched == "words"
        assert "ask the same again" in first.warnings[0]
        loaded.set()
        with anyio.fail_after(1.0):
            while not world.embedded:
                await anyio.lowlevel.checkpoint()
        assert (await world.ask(QueryRequest("x"))).searched == "words and meaning"
        group.cancel_scope.cancel()
    assert world.embedded == ["x"]


@pytest.mark.promise("P9")
async def test_catching_up_outlives_an_absent_ollama() -> None:
    """What cannot be embedded is let go, and of the next questions the latest is taken."""
    world = World()
    world.ollama = away
    async with anyio.create_task_group() as group:
        group.start_soon(world.questions.catch_up)
        world.questions.give_up("one")
        await anyio.wait_all_tasks_blocked()
        world.ollama = nothing_wrong
        world.questions.give_up("two")
        world.questions.give_up("three")
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert world.embedded == ["three"]


async def test_nothing_found_says_what_was_searched_and_how_to_widen() -> None:
    """An empty answer of a whole search is a finding; with filters the advice is to leave them out."""
    world = World()
    plain = await world.ask(QueryRequest("x"))
    assert plain.next_step.startswith("Nothing was found by words and meaning.")
    filtered = await world.ask(QueryRequest("x", Filters(tags=("t",))))
    assert "within the filters" in filtered.next_step
    assert "Leave out filters" in filtered.next_step


async def test_nothing_found_by_half_a_search_does_not_mean_nothing() -> None:
    """Where only words were searched, an empty list is not a finding."""
    world = World()
    world.ollama = away
    assert "does not mean" in (await world.ask(QueryRequest("x"))).next_step


async def test_pages_follow_each_other_without_gap_or_repeat() -> None:
    """The cursors lead through all hits, in order, to the end."""
    world = World([memory(f"m{n:02}", 100.0 - n) for n in range(23)])
    seen: list[str] = []
    cursor = None
    for expected in (10, 10, 3):
        answer = await world.ask(QueryRequest("x", cursor=cursor))
        assert len(answer.items) == expected
        seen += ids(answer)
        cursor = answer.next_cursor
    assert cursor is None
    assert seen == [f"m{n:02}" for n in range(23)]


async def test_no_more_than_100_hits_can_be_paged_through() -> None:
    """Beyond the depth of the search the order means nothing."""
    world = World([memory(f"w{n:03}", 900.0 - n) for n in range(100)], [memory(f"m{n:03}", 0.9) for n in range(100)])
    cursor, count = None, 0
    while True:
        answer = await world.ask(QueryRequest("x", limit=50, cursor=cursor))
        count += len(answer.items)
        cursor = answer.next_cursor
        if cursor is None:
            break
    assert count == 100


async def test_a_cursor_of_another_question_is_refused() -> None:
    """A cursor belongs to its question and filters."""
    world = World([memory(f"m{n:02}", 100.0 - n) for n in range(23)])
    cursor = (await world.ask(QueryRequest("x"))).next_cursor
    for other in (QueryRequest("y", cursor=cursor), QueryRequest("x", Filters(tags=("t",)), cursor=cursor)):
        with pytest.raises(InputError, match="does not belong"):
            await world.ask(other)


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "é", "AAAA", "!!!!", "\ud800", base64.b64encode(b"10:0123456789abcdef").decode(), "A" * 100_000, "٣" * 8],
)
async def test_a_forged_cursor_is_refused(cursor: str) -> None:
    """Whatever is given as a cursor, the answer is one clear error."""
    with pytest.raises(InputError, match="does not belong"):
        await World().ask(QueryRequest("x", cursor=cursor))


NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "request_",
    [
        QueryRequest(""),
        QueryRequest(" \n\t"),
        QueryRequest("\x00\ud800"),
        QueryRequest("x" * 10_001),
        QueryRequest("x" * 100_000),
        QueryRequest("x", limit=0),
        QueryRequest("x", limit=-1),
        QueryRequest("x", limit=51),
        QueryRequest("x", limit=10_000),
        QueryRequest("x", Filters(created_after=NOON, created_before=NOON)),
        QueryRequest("x", Filters(created_after=NOON, created_before=NOON - timedelta(days=1))),
        QueryRequest("x", Filters(created_after=NOON.replace(tzinfo=None))),
        QueryRequest("x", Filters(sessions=("not a uuid",))),
        QueryRequest("x", Filters(memory_types=("procedural", "nonsense"))),
        QueryRequest("x", Filters(projects=("a\x00b",))),
        QueryRequest("x", Filters(tags=("\ud800",))),
        QueryRequest("x", Filters(tags=tuple(map(str, range(101))))),
    ],
)
async def test_bad_input_is_named_and_nothing_is_asked(request_: QueryRequest) -> None:
    """Each rule of the input has its own clear error, before any service is asked."""
    world = World()
    with pytest.raises(InputError):
        await world.ask(request_)
    assert (world.asked, world.embedded) == ([], [])


@pytest.mark.parametrize(
    "text",
    ["?", "the of and", "x" * 10_000, 'AND OR NOT ( [ "', "a\x00b\ud800c", "\u202eevil", "🎉", "'; MATCH (n) --", "\\"],
)
async def test_any_other_question_is_asked_as_it_is(text: str) -> None:
    """Punctuation, stop words, another language's syntax: data, of which only NUL and half characters are taken out."""
    world = World()
    await world.ask(QueryRequest(text))
    assert world.asked[0][0] == text.replace("\x00", " ").replace("\ud800", " ")
    world.asked[0][0].encode("utf-8")


async def test_filters_reach_both_searches_as_they_are() -> None:
    """A project name may hold quotes, newlines and Cypher."""
    filters = Filters(
        projects=("a'\"\n) RETURN 1 //",),
        sessions=(SESSION,),
        memory_types=("episodic",),
        created_after=NOON.astimezone(timezone(timedelta(hours=2))),
        created_before=NOON + timedelta(seconds=1),
    )
    world = World()
    await world.ask(QueryRequest("x", filters))
    assert [asked[1] for asked in world.asked] == [filters, filters]


async def test_contents_are_cut_and_say_so() -> None:
    """Concise shows 400 characters, detailed 2,000; a short content is whole."""
    world = World([memory("long", 9.0, "word " * 2000), memory("short", 8.0, "short")])
    concise = (await world.ask(QueryRequest("x"))).items
    assert 380 < len(concise[0].content) <= 400
    assert concise[0].content_cut
    assert (concise[1].content, concise[1].content_cut) == ("short", False)
    assert 1900 < len((await world.ask(QueryRequest("x", detailed=True))).items[0].content) <= 2000


async def test_nothing_hidden_is_shown() -> None:
    """Escape sequences, bidi and zero-width characters are gone from every field that comes from a memory."""
    evil = "\x1b[31mred\x1b]0;t\x07 \u202eabc\u200b\x00\ud800\U000e0041\n\tend"
    hit = memory("a", 9.0, evil)._replace(
        source_project=evil, tags=[evil] * 50, session_summary=evil, session_id=evil, memory_type=evil
    )
    answer = await World([hit]).ask(QueryRequest("x"))
    shown = answer.items[0]
    assert shown.content == "red abc\n\tend"
    one_line = [shown.project, shown.session_summary, shown.session_id, shown.memory_type, *shown.tags]
    assert set(one_line) == {"red abc end"}
    assert len(shown.tags) == 12
    assert visible(answer.model_dump_json()) == answer.model_dump_json()


@pytest.mark.parametrize("content", ["word " * 2000, "世界" * 5000, '"\\\n' * 5000, "x" * 10_000_000])
async def test_an_answer_stays_small(content: str) -> None:
    """Fifty long memories do not fill the reader's context: fewer come back, and the cursor leads to the others."""
    world = World([memory(f"m{n:02}", 100.0 - n, content) for n in range(50)])
    answer = await world.ask(QueryRequest("x", limit=50, detailed=True))
    assert 1 <= len(answer.items) < 50
    assert estimated_tokens(answer.model_dump_json()) < 8_000
    assert f"{len(answer.items)} of 50" in answer.warnings[0]
    following = await world.ask(QueryRequest("x", limit=1, cursor=answer.next_cursor))
    assert ids(following) == [f"m{len(answer.items):02}"]


async def test_memories_of_one_session_lift_each_other() -> None:
    """Of two equal hits the one whose session was found as well comes first."""
    world = World([memory("a", 5.0), memory("z", 5.0, session=SESSION), memory("y", 4.0, session=SESSION)])
    assert ids(await world.ask(QueryRequest("x")))[0] == "z"
