"""What only the real remote store has: its connection, its schema, its searches, its health."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import uuid4

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from neo4j import AsyncGraphDatabase
from pydantic import SecretStr

from dionysus_sync_mcp.adapters.neo4j import RemoteStore, search
from dionysus_sync_mcp.domain.errors import AccessRefused, Refused, Starting, Unavailable
from dionysus_sync_mcp.domain.memory import MemoryChange
from dionysus_sync_mcp.engine.ports.embed import Vector
from dionysus_sync_mcp.engine.ports.push import RemoteBatch
from dionysus_sync_mcp.engine.ports.query import Filters, FoundMemory
from tests.contract.remote_bench import DESKTOP, EVERYTHING, LAPTOP, SESSION, change, minute, sha256, version

DIMENSIONS = 768
PASSWORD = "correct-horse"  # noqa: S105 - the tests look for it in messages


def store_at(uri: str, **settings: float) -> RemoteStore:
    """A store for a server without authentication."""

    async def address() -> str:
        return uri

    return RemoteStore(address, "neo4j", SecretStr(""), "neo4j", DIMENSIONS, "english", **settings)


@pytest.fixture
async def store(neo4j_both: str) -> AsyncIterator[RemoteStore]:
    """An empty one, prepared."""
    opened = store_at(neo4j_both)
    await opened.prepare()
    yield opened
    await opened.close()


@asynccontextmanager
async def listener_that_never_answers() -> AsyncIterator[tuple[str, list[SocketStream]]]:
    """A server that accepts connections and says nothing; its URI, and who has connected."""
    connected: list[SocketStream] = []

    async def keep(stream: SocketStream) -> None:
        connected.append(stream)
        async with stream:
            await anyio.sleep_forever()

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as group,
    ):
        group.start_soon(listener.serve, keep)
        port = listener.extra(SocketAttribute.local_port)  # noqa: S610 - anyio's extra, not Django's
        yield f"bolt://127.0.0.1:{port}", connected
        group.cancel_scope.cancel()


@pytest.mark.promise("P9")
async def test_nothing_is_asked_for_before_the_first_use() -> None:
    """A store can be made and closed while its server does not exist yet; then its address is asked for again."""
    asked = []

    async def address() -> str:
        asked.append("once")
        raise Starting("downloading, 12 %")

    store = RemoteStore(address, "neo4j", SecretStr(""), "neo4j", DIMENSIONS, "english")
    assert not asked
    for _ in range(2):
        with pytest.raises(Starting, match="12 %"):
            await store.counts()
    assert len(asked) == 2
    assert (await store.health(1)).error == "downloading, 12 %"
    await store.close()


@pytest.mark.promise("P9")
async def test_an_absent_server_is_unavailable_and_names_no_secret() -> None:
    """Every way in says so, and the health too."""

    async def address() -> str:
        return "bolt://127.0.0.1:1"

    store = RemoteStore(address, "neo4j", SecretStr(PASSWORD), "neo4j", DIMENSIONS, "english")
    with pytest.raises(Unavailable) as read:
        await store.counts()
    with pytest.raises(Unavailable) as written:
        await store.write(RemoteBatch(LAPTOP, [change(version(1))]))
    health = await store.health(1)
    await store.close()
    assert not health.up
    assert PASSWORD not in f"{read.value} {written.value} {health}"


async def test_an_address_that_is_none_needs_a_person() -> None:
    """It is not an outage."""
    store = store_at("nonsense://127.0.0.1")
    with pytest.raises(AccessRefused):
        await store.counts()


async def test_an_unknown_database_needs_a_person(neo4j_uri: str) -> None:
    """The server is there and would refuse for ever."""

    async def address() -> str:
        return neo4j_uri

    store = RemoteStore(address, "neo4j", SecretStr(""), "nowhere", DIMENSIONS, "english")
    with pytest.raises(AccessRefused):
        await store.counts()
    await store.close()


@pytest.mark.promise("P9")
async def test_a_server_that_says_nothing_is_given_up_in_time() -> None:
    """A half-open connection costs no more than the deadline."""
    async with listener_that_never_answers() as (uri, connected):
        store = store_at(uri, look_seconds=0.3)
        with anyio.fail_after(3):
            with pytest.raises(Unavailable):
                await store.write(RemoteBatch(LAPTOP, [change(version(1))], seconds=0.3))
            with pytest.raises(Unavailable):
                await store.counts()
            health = await store.health(0.3)
            await store.close()
        assert connected, "the fault took hold"
        assert not health.up


async def test_health_tells_version_and_latency(store: RemoteStore) -> None:
    """Of a server that works and has its schema, nothing is degraded."""
    health = await store.health(5)
    assert health.up
    assert health.version is not None
    assert health.version.startswith(("5.26", "2026."))
    assert health.latency_ms is not None
    assert health.degraded == ()


async def test_health_tells_an_index_for_other_vectors(store: RemoteStore) -> None:
    """Vectors of another length would be left out of the index in silence."""
    other = RemoteStore(store._connection._access.address, "neo4j", SecretStr(""), "neo4j", 384, "english")
    health = await other.health(5)
    await other.close()
    assert health.degraded == ("the vector index holds vectors of 768 numbers, not 384: search goes by words only",)


async def test_preparing_again_changes_nothing(store: RemoteStore) -> None:
    """It is done at every start."""
    before = await store._connection.read("schema_present", 5)
    await store.prepare()
    assert await store._connection.read("schema_present", 5) == before


TWO_NODES = (
    "DROP CONSTRAINT store_id_unique",
    "CREATE (:Store {id: 'laptop', generation: 3, lineage: 'l'}), (:Store {id: 'laptop', definition: '{}'})",
)


async def test_two_nodes_of_one_local_store_become_one(store: RemoteStore, neo4j_both: str) -> None:
    """The one that remembers the pushes stays, with the definition that only the other one had; no node is lost."""
    async with AsyncGraphDatabase.driver(neo4j_both) as driver:
        for statement in TWO_NODES:
            await driver.execute_query(statement)
        await store.prepare()
        found = await driver.execute_query(
            "MATCH (s) WHERE s.id = 'laptop' RETURN labels(s) AS labels, s.lineage AS lineage ORDER BY labels"
        )
    assert [tuple(r.values()) for r in found.records] == [(["FormerStore"], None), (["Store"], "l")]
    assert await store.definitions() == {"laptop": "{}"}
    assert "store_id_unique" in {name for name, *_ in await store._connection.read("schema_present", 5)}


async def test_text_that_is_not_unicode_is_refused_by_the_id_of_its_memory(store: RemoteStore) -> None:
    """The message names the memory and does not repeat the text."""
    with pytest.raises(Refused, match="memory m1 ") as refused:
        await store.write(RemoteBatch(LAPTOP, [change(version(1, "secret \ud800"))]))
    assert "secret" not in str(refused.value)
    assert await store.memories(EVERYTHING, "", 10) == []


async def test_a_name_too_long_for_an_index_is_refused_and_leaves_nothing(store: RemoteStore) -> None:
    """The batch is one transaction."""
    with pytest.raises(Refused):
        await store.write(RemoteBatch(LAPTOP, [change(version(1)), change(version(1, project="x" * 40_000), id_="m2")]))
    assert await store.memories(EVERYTHING, "", 10) == []


@pytest.mark.promise("P3")
async def test_two_stores_that_write_at_once_lose_nothing(store: RemoteStore) -> None:
    """New and changed memories, the same ones, in two transactions at a time."""
    ids = [str(uuid4()) for _ in range(20)]

    async def writes(identity_changes: RemoteBatch) -> None:
        await store.write(identity_changes)

    for number in (1, 2, 3):
        async with anyio.create_task_group() as group:
            for identity in (LAPTOP, DESKTOP):
                text = f"{identity.id} {number}"
                changes = [change(version(number, text), id_=id_, base=number - 1) for id_ in ids]
                group.start_soon(writes, RemoteBatch(identity, changes))

    memories = await store.memories(EVERYTHING, "", 100)
    assert {memory.version for memory in memories} == {3}
    assert (await store.counts()).versions == 3 * 2 * len(ids)


async def test_a_text_changed_by_hand_gets_its_vector(store: RemoteStore, neo4j_both: str) -> None:
    """Somebody's edit in the remote store does not keep its memory, or those behind it, waiting for ever."""
    await store.write(RemoteBatch(DESKTOP, [change(version(1, content="as pushed"))]))
    async with AsyncGraphDatabase.driver(neo4j_both) as driver:
        edited = await driver.execute_query("MATCH (m:Memory) SET m.content = 'by hand' RETURN count(m) AS edited")
    assert edited.records[0]["edited"] == 1
    (text,) = await store.texts_without_vector(5)
    assert text.content == "by hand"
    stored = await store.store_vectors([Vector(text.memory_id, sha256("by hand"), [1.0] * DIMENSIONS)], "a model")
    assert (stored, await store.count_without_vector()) == (1, 0)


async def test_a_vector_that_the_index_would_leave_out_is_refused(store: RemoteStore) -> None:
    """Wrong length, not finite or all zeros."""
    for values in ([1.0], [float("nan")] * DIMENSIONS, [0.0] * DIMENSIONS):
        with pytest.raises(Refused, match="m1"):
            await store.store_vectors([Vector("m1", "hash", values)], "model")


class Planted(NamedTuple):
    """A memory to be searched for."""

    id: str
    content: str
    project: str = "atlas"
    nearness: float = 0.0


async def plant(store: RemoteStore, *memories: Planted) -> None:
    """Write memories and their vectors; a nearness of 1 is that of `near(1)` to itself."""
    session = {
        "id": SESSION, "project_id": "atlas", "started_at": minute(1), "last_activity_at": minute(1),
        "ended_at": None, "summary": "the build",
    }  # fmt: skip
    changes: list[MemoryChange] = [change(version(1, m.content, project=m.project), id_=m.id) for m in memories]
    await store.write(RemoteBatch(LAPTOP, changes, sessions=[session]))
    vectors = [Vector(m.id, sha256(m.content), near(m.nearness)) for m in memories]
    assert await store.store_vectors(vectors, "model") == len(memories)


def near(nearness: float) -> list[float]:
    """A vector whose cosine with `near(1)` is `nearness`."""
    return [nearness, (1 - nearness**2) ** 0.5, *[0.0] * (DIMENSIONS - 2)]


def ids(found: Sequence[FoundMemory]) -> list[str]:
    """In the order found."""
    return [memory.memory_id for memory in found]


async def test_words_find_what_they_stem_to_best_first(store: RemoteStore) -> None:
    """A question finds memories by its telling words, with the session that they belong to."""
    await plant(store, Planted("a", "Caches are cached caching"), Planted("b", "A cache, among other things here"))
    await plant(store, Planted("c", "Nothing of that kind"))
    found = await store.search_words("what did we do about cache?", Filters(), 10)
    assert ids(found) == ["a", "b"]
    best = found[0]
    assert best.score > found[1].score
    assert (best.session_id, best.session_started_at, best.session_summary) == (SESSION, minute(1), "the build")
    assert (best.source_project, best.tags, best.created_at) == ("atlas", ["build", "java"], minute(0))


async def test_a_tag_is_a_word_to_be_found_by(store: RemoteStore) -> None:
    """Tags stand in the full-text index too."""
    await plant(store, Planted("a", "no such word"))
    assert ids(await store.search_words("java", Filters(), 10)) == ["a"]


@pytest.mark.parametrize(
    "text", ["AND", "cache AND", "(", '"', "a/b", "\\", "content:*", "cache~ ^ cache\x00", "🗂", ""]
)
async def test_no_text_is_a_syntax_error(store: RemoteStore, text: str) -> None:
    """Whatever is asked is answered."""
    await store.search_words(text, Filters(), 10)


async def test_vectors_find_the_nearest_first(store: RemoteStore) -> None:
    """The score is (1 + cosine) / 2."""
    await plant(
        store, Planted("far", "x", nearness=-0.5), Planted("mid", "y", nearness=0.5), Planted("top", "z", nearness=1)
    )
    found = await store.search_vector(near(1), Filters(), 2)
    assert ids(found) == ["top", "mid"]
    assert found[1].score == pytest.approx(0.75, abs=1e-3)


FILTERS = [
    (Filters(projects=("borealis",)), ["b"]),
    (Filters(projects=("atlas", "borealis")), ["a", "b"]),
    (Filters(projects=("atlas",), sessions=(SESSION,)), ["a"]),
    (Filters(sessions=("another",)), []),
    (Filters(memory_types=("semantic",)), ["a", "b"]),
    (Filters(memory_types=("episodic",)), []),
    (Filters(tags=("java", "unknown")), ["a", "b"]),
    (Filters(tags=("unknown",)), []),
    (Filters(created_after=datetime(2026, 1, 2, 0, 0, tzinfo=UTC)), ["a", "b"]),
    (Filters(created_after=datetime(2026, 1, 3, tzinfo=UTC)), []),
    (Filters(created_before=datetime(2026, 1, 2, 0, 0, tzinfo=UTC)), []),
]


@pytest.fixture(params=["scanned", "from the index"])
def vectors_are(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Makes even a small filtered set go through the index, every second time."""
    way: str = request.param
    if way == "from the index":
        monkeypatch.setattr(search, "SCAN_AT_MOST", 0)
    return way


async def test_filters_narrow_both_searches(store: RemoteStore, vectors_are: str) -> None:
    """Every filter leaves out what does not match it."""
    await plant(store, Planted("a", "cache", nearness=0.9), Planted("b", "cache", "borealis", nearness=0.8))
    for filters, expected in FILTERS:
        assert ids(await store.search_vector(near(1), filters, 10)) == expected, vectors_are
        assert ids(await store.search_words("cache", filters, 10)) == expected


async def test_a_filter_finds_its_hits_behind_many_better_ones(store: RemoteStore, vectors_are: str) -> None:
    """The index is asked for more until enough hits pass or it has no more."""
    crowd = [Planted(f"m{i:03}", "cache cache", nearness=0.99) for i in range(60)]
    await plant(store, *crowd, Planted("wanted", "some longer text about a cache", "borealis", nearness=0.1))
    wanted = Filters(projects=("borealis",))
    assert ids(await store.search_vector(near(1), wanted, 3)) == ["wanted"], vectors_are
    assert ids(await store.search_words("cache", wanted, 3)) == ["wanted"]


async def test_tombstones_and_replaced_texts_are_not_found(store: RemoteStore) -> None:
    """A deleted memory is in neither search, and the vector of an old text is gone with the text."""
    await plant(store, Planted("gone", "cache", nearness=1), Planted("changed", "cache", nearness=0.9))
    gone = change(version(2, "cache", operation="delete"), id_="gone", base=1)
    await store.write(RemoteBatch(LAPTOP, [gone, change(version(2, "other"), id_="changed", base=1)]))
    assert await store.search_words("cache", Filters(), 10) == []
    assert await store.search_vector(near(1), Filters(), 10) == []
    assert await store.search_vector(near(1), Filters(projects=("atlas",)), 10) == []


async def test_a_hit_of_ten_megabytes_is_cut(store: RemoteStore) -> None:
    """A page of hits stays bounded."""
    await plant(store, Planted("a", "cache " * 1_700_000, nearness=1))
    (by_words,) = await store.search_words("cache", Filters(), 10)
    (by_vector,) = await store.search_vector(near(1), Filters(), 10)
    assert len(by_words.content) == len(by_vector.content) == search.CONTENT_CHARACTERS
