"""Both records of incidents: one suite for each port, for the in-memory twin and for the real store."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from itertools import permutations

import pytest
from pydantic import SecretStr

from dionysus_sync_mcp.adapters.neo4j import RemoteStore
from dionysus_sync_mcp.adapters.postgres.alerts import PostgresAlerts
from dionysus_sync_mcp.adapters.postgres.incidents import PostgresIncidents
from dionysus_sync_mcp.domain.destruction import NOBODY_KNOWN, Incident, Interval, Sight, Who, incident_id
from dionysus_sync_mcp.domain.errors import SchemaMismatch
from dionysus_sync_mcp.engine.ports.incidents import IncidentBook, RemoteIncidents
from tests.engine.memory_incidents import NOW, OTHER_STORE, STORE, MemoryBook, MemoryRemoteIncidents
from tests.integration.stores import Client, graph, plain_client
from tests.services.local_store import opened

HOSTILE = Who("röle", "x'); DROP TABLE memories --", "::1", 4711, "DELETE FROM memories;\n\x1b[31m {id: $id} 名前")


def incident(number: int = 1, *, store: str = STORE, **fields: object) -> Incident:
    """One of a store, detected so many seconds after now."""
    key = f"gone:{number}"
    at = NOW + timedelta(seconds=number)
    made = Incident(
        incident_id(store, key),
        key,
        "drop",
        store,
        at,
        at,
        at,
        3,
        "The table memories is gone.",
        who=HOSTILE,
        spans=(Interval(at, at),),
    )
    return replace(made, **fields)  # type: ignore[arg-type]  # the fields of an incident, by name


async def observed(client: Client, count: int) -> list[int]:
    """So many observations; their numbers."""
    rows = await client.fetch(
        "INSERT INTO dionysus_sync.observations (kind, at) SELECT 'delete', now() FROM generate_series(1, $1::int)"
        " RETURNING seq",
        count,
    )
    return [row["seq"] for row in rows]


@pytest.fixture(params=["memory", "postgres"])
def database_of_book(request: pytest.FixtureRequest) -> str | None:
    """None for the twin, which needs no server."""
    return None if request.param == "memory" else str(request.getfixturevalue("migrated_database_url"))


@pytest.fixture(params=["memory", "neo4j"])
def neo4j_of_remote(request: pytest.FixtureRequest) -> str | None:
    """None for the twin, which needs no server."""
    return None if request.param == "memory" else str(request.getfixturevalue("empty_neo4j"))


@pytest.fixture
async def book(database_of_book: str | None) -> AsyncIterator[IncidentBook]:
    """An empty one."""
    url = database_of_book
    if url is None:
        yield MemoryBook()
        return
    async with opened(url) as database, plain_client(url) as client:
        await observed(client, 10)
        yield PostgresIncidents(database)


@pytest.fixture
async def remote(neo4j_of_remote: str | None) -> AsyncIterator[RemoteIncidents]:
    """An empty one, which knows two stores."""
    uri = neo4j_of_remote
    if uri is None:
        yield MemoryRemoteIncidents(stores={STORE, OTHER_STORE})
        return
    await graph(uri, "UNWIND $ids AS id CREATE (:Store {id: id})", ids=[STORE, OTHER_STORE])

    async def address() -> str:
        return uri

    store = RemoteStore(address, "neo4j", SecretStr(""), "neo4j", 768, "english")
    yield store
    await store.close()


async def everything(book: IncidentBook) -> list[Incident]:
    """All on record."""
    return await book.incidents(open_only=False, limit=100)


async def test_what_is_recorded_is_there_as_it_was(book: IncidentBook) -> None:
    """Every field, newest first; the same again is nothing new."""
    first, second = incident(1), incident(2, store=OTHER_STORE, who=NOBODY_KNOWN)
    assert await book.record([first, second], [1]) == [first, second]
    assert await everything(book) == [second, first]
    assert await book.incidents(open_only=False, limit=1) == [second]
    assert await book.incident(first.id) == first
    assert await book.record([first], []) == []
    assert await everything(book) == [second, first]
    assert await book.incident(incident(3).id) is None


async def test_what_is_on_record_is_widened(book: IncidentBook) -> None:
    """Also by two that come together."""
    await book.record([incident(rows=3, who=NOBODY_KNOWN)], [])
    earlier, later = NOW - timedelta(minutes=1), NOW + timedelta(minutes=1)
    wider = [incident(rows=20, summary="twenty"), incident(rows=5, restore_point=earlier, last_at=later)]
    assert await book.record(wider, []) == []
    (found,) = await everything(book)
    assert (found.rows, found.summary, found.who) == (20, "twenty", HOSTILE)
    assert (found.restore_point, found.last_at) == (earlier, later)
    assert found.revision > 1


@pytest.mark.promise("P8")
async def test_what_others_have_judged_is_not_judged_again(book: IncidentBook) -> None:
    """Nothing is recorded or marked then: what is left is judged again."""
    assert await book.record([], [2]) == []
    assert await book.record([incident()], [1, 2]) == []
    assert await everything(book) == []
    assert await book.record([incident()], [1]) == [incident()]


async def test_one_is_closed_once(book: IncidentBook) -> None:
    """And stays so, whatever is seen of it."""
    await book.record([incident(1), incident(2)], [])
    assert [await book.close(incident(1).id, "on purpose") for _ in range(2)] == [True, False]
    assert not await book.close(incident(3).id, "unknown")
    await book.record([incident(1, rows=50)], [])
    found = await book.incident(incident(1).id)
    assert found is not None
    assert found.closed_at is not None
    assert (found.closed_reason, found.rows) == ("on purpose", 50)
    assert [i.id for i in await book.incidents(open_only=True, limit=10)] == [incident(2).id]


async def test_what_has_changed_is_to_be_published(book: IncidentBook) -> None:
    """Until its present state was; a state that is older by then counts for nothing."""
    await book.record([incident()], [])
    (before,) = await book.unpublished(10)
    await book.record([incident(rows=9)], [])
    await book.note_published([before])
    (after,) = await book.unpublished(10)
    assert after.rows == 9
    await book.note_published([after])
    assert await book.unpublished(10) == []
    await book.note_published([before])
    assert await book.unpublished(10) == []
    await book.close(after.id, "done")
    assert [i.closed_reason for i in await book.unpublished(10)] == ["done"]


async def test_what_only_the_remote_knew_is_adopted(book: IncidentBook) -> None:
    """And what was closed there is closed here; what is wider here stays as it is."""
    await book.record([incident(1, rows=9)], [])
    closed = incident(1, closed_at=NOW, closed_reason="there")
    assert await book.adopt([incident(1), incident(2), closed]) == 1
    assert await book.adopt([incident(2), closed]) == 0
    assert await book.adopt([]) == 0
    first, second = await book.incident(incident(1).id), await book.incident(incident(2).id)
    assert first is not None
    assert (first.rows, first.closed_at, first.closed_reason) == (9, NOW, "there")
    assert second == incident(2)


async def test_an_incident_is_one_alert(migrated_database_url: str) -> None:
    """Under its own id, in the same transaction, in its newest words until it was tried; without what could be run."""
    async with opened(migrated_database_url) as database:
        book, alerts = PostgresIncidents(database), PostgresAlerts(database)
        await book.record([incident(1)], [])
        await book.record([incident(1, rows=20, summary="twenty")], [])
        await book.record([incident(2)], [], [incident(2).id])
        await book.adopt([incident(3), incident(4, closed_at=NOW, closed_reason="before")])
        due = [await alerts.take_due(30) for _ in range(3)]
        await book.record([incident(1, rows=30, summary="thirty")], [])
    assert [(a.id, a.kind, a.summary) for a in due if a] == [
        (incident(1).id, "incident", "twenty"),
        (incident(3).id, "incident", incident(3).summary),
    ]
    assert due[0] is not None
    assert due[0].details == {
        "kind": "drop",
        "rows": 20,
        "restore_point": "2026-08-01T12:00:01+00:00",
        "last_at": "2026-08-01T12:00:01+00:00",
        "store": STORE,
        "role": "röle",
        "application_name": "x'); D·ROP T·ABLE memories --",
        "client_address": "::1",
        "pid": 4711,
        "statement": "D·ELETE F·ROM memories; {id: $id} 名前",
    }


async def test_an_incident_whose_alert_fails_is_not_half_recorded(migrated_database_url: str) -> None:
    """All or nothing, with the marks of what was judged."""
    async with opened(migrated_database_url) as database, plain_client(migrated_database_url) as client:
        (seq,) = await observed(client, 1)
        await client.execute("ALTER TABLE dionysus_sync.alerts RENAME TO elsewhere")
        book = PostgresIncidents(database)
        with pytest.raises(SchemaMismatch):
            await book.record([incident()], [seq])
        assert await everything(book) == []
        assert await client.fetchval("SELECT count(*) FROM dionysus_sync.observations WHERE judged_at IS NULL") == 1


async def test_the_remote_keeps_what_it_is_given(remote: RemoteIncidents) -> None:
    """Every field, newest first, of all stores."""
    first, second = incident(1), incident(2, store=OTHER_STORE, closed_at=NOW, closed_reason="why", who=NOBODY_KNOWN)
    for _ in range(2):
        await remote.save_incidents([first, second])
        assert await remote.remote_incidents(open_only=False, limit=10) == [second, first]
    assert await remote.remote_incidents(open_only=True, limit=10) == [first]
    assert await remote.remote_incidents(open_only=False, limit=1) == [second]
    await remote.save_incidents([])


async def test_the_remote_is_asked_for_stores_in_pages(remote: RemoteIncidents) -> None:
    """However many incidents other stores have; of those that were detected at one time, each is in one page."""
    at = NOW + timedelta(seconds=0.123456)
    mine = [incident(n, detected_at=at if n < 3 else NOW + timedelta(hours=1)) for n in range(4)]
    await remote.save_incidents([*mine, *(incident(n, store=OTHER_STORE) for n in range(10, 20))])
    found = [await remote.remote_incidents(open_only=False, limit=2, stores={STORE})]
    while found[-1]:
        found.append(await remote.remote_incidents(open_only=False, limit=2, stores=[STORE], after=found[-1][-1]))
    assert [len(page) for page in found] == [2, 2, 0]
    assert {i.id for page in found for i in page} == {i.id for i in mine}
    assert await remote.remote_incidents(open_only=False, limit=9, stores=()) == []


@pytest.mark.promise("P8")
async def test_what_the_remote_has_lost_is_published_again(book: IncidentBook) -> None:
    """Of the stores that were asked for; also what it has an older state of."""
    lost, older, kept, elsewhere = incident(1), incident(2, revision=3), incident(3), incident(4, store=OTHER_STORE)
    await book.record([lost, older, kept, elsewhere], [])
    published = await book.unpublished(9)
    await book.note_published(published)
    assert await book.unpublished(9) == []
    await book.note_there({STORE}, [replace(older, revision=2), kept])
    assert {i.id for i in await book.unpublished(9)} == {lost.id, older.id}
    await book.note_published([lost, older])
    await book.note_there({STORE}, [lost, replace(older, revision=4), kept])
    assert await book.unpublished(9) == []


@pytest.mark.promise("P2")
async def test_the_remote_widens_in_any_order(remote: RemoteIncidents) -> None:
    """Replayed and shuffled, the states of one incident come to the same."""
    earlier, later = NOW - timedelta(minutes=1), NOW + timedelta(minutes=1)
    nine = incident(1, rows=9, restore_point=earlier, summary="nine", revision=2)
    states = [
        incident(1, who=NOBODY_KNOWN),
        nine,
        replace(nine, last_at=later, summary="closed", closed_at=NOW, closed_reason="why", revision=3),
    ]
    for number, order in enumerate(permutations(states), start=1):
        for state in (*order, order[0]):
            await remote.save_incidents([replace(state, id=incident(number, store=OTHER_STORE).id)])
    for found in await remote.remote_incidents(open_only=False, limit=10):
        assert replace(found, id="") == replace(states[2], id="", who=HOSTILE)


async def test_the_remote_knows_who_was_where(remote: RemoteIncidents) -> None:
    """Of stores that have pushed; the newest first."""
    hour = timedelta(hours=1)
    assert await remote.seen_at("here") == []
    assert not await remote.note_place("here", Sight(NOW, "0b7a5f0e-8f1d-4f0e-9a37-1a6f3f7f9a13", 3))
    assert await remote.note_place("here", Sight(NOW, OTHER_STORE, 1, rows=7))
    assert await remote.note_place("here", Sight(NOW + hour, STORE, 2))
    assert await remote.seen_at("here") == [
        Sight(NOW + hour, STORE, 2, rows=0),
        Sight(NOW, OTHER_STORE, 1, rows=0),
    ]
    assert await remote.seen_at("there") == []
