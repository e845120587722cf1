"""Recoveries beside writers, of parts, twice over, and from a remote store that is stale, empty or damaged itself."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from uuid import UUID

import anyio
import pytest

from tests.faults.destruction import Answer, Blow, Field, command, held, images_here, recover, watching
from tests.faults.plugin import Scenario
from tests.faults.program import drained
from tests.integration.stores import Client, graph, plain_client, remote_digest
from tests.services import neo4j
from tests.services.local_store import running

TRUNCATE = Blow("TRUNCATE memories", "truncate", last_words=False)
DROP = Blow("DROP TABLE memories", "drop", last_words=False)
OVERWRITE = Blow("UPDATE memories SET content = 'overwritten ' || id", "bulk_update", last_words=False)
BETWEEN_WRITES, CHANGED_OF = 0.1, 5
TOUCH = "UPDATE memories SET content = content || ', touched' WHERE id = $1"
GARBLE = "UNWIND $ids AS id MATCH (m:Memory {id: id}) SET m.content = 'garbled'"
GARBLE_ALL = (
    "UNWIND $ids AS id MATCH (m:Memory {id: id})-[:HAS_VERSION]->(v) SET m.content = 'garbled', v.content = 'x'"
)
FORGET = "UNWIND $ids AS id MATCH (m:Memory {id: id})-[:HAS_VERSION]->(v) DETACH DELETE m, v"
STORE = "MATCH (s:Store) RETURN s {.epoch, .generation, .lineage, .last_entry}"
PUT_BACK = "MATCH (s:Store) SET s += $properties"
TWIN = "MATCH (m:Memory {id: $id}) CREATE (t:Memory) SET t = properties(m), t.content = 'twin', t.sync_version = 0"
DROP_CONSTRAINT = "DROP CONSTRAINT memory_id_unique"
MERGE_TWINS = "MATCH (m:Memory) WITH m.id AS id, collect(m) AS ms UNWIND ms[1..] AS m DETACH DELETE m"


def of_project(field: Field, project: str) -> set[str]:
    """Ids of its memories that have to be there."""
    return {id_ for id_, image in field.expected.items() if image["source_project"] == project}


@asynccontextmanager
async def writers(field: Field) -> AsyncIterator[None]:
    """Users who write new memories and change one of a few again, in the project that is recovered too, until the end.

    Changing most of what is in an emptied table would be an incident of its own.
    """
    stop = anyio.Event()

    async def write_on(client: Client) -> None:
        while not stop.is_set():
            await field.write(client, CHANGED_OF)
            newest = max(field.ids)
            await client.execute(TOUCH, newest)
            await field.keep_row(client, newest)
            await anyio.sleep(BETWEEN_WRITES)

    async with (
        plain_client(field.stores.database_url, timezone="UTC") as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(write_on, client)
        try:
            yield
        finally:
            stop.set()


@pytest.mark.scenario(34, "TRUNCATE, recovered project by project and memory by memory while users write")
@pytest.mark.promise("P6")
async def test_34_parts_are_recovered_beside_writers(field: Field, scenario: Scenario) -> None:
    """Only what was asked for comes back, at each step; what users write meanwhile stays as they wrote it."""
    shop, blog = of_project(field, "shop"), of_project(field, "blog")
    one = min(blog)
    async with watching(field.stores):
        incident, engaged = await field.strike(TRUNCATE)
        async with writers(field):
            first = await parts(field, "--project", "shop", "--before-incident", incident.id)
            assert (await images_here(field)).keys() & (shop | blog) == shop
            second = await parts(field, "--memory", one, "--before-incident", incident.id)
            assert (await images_here(field)).keys() & (shop | blog) == {*shop, one}
            assert (first, second) == (len(shop), 1)
            rest = await parts(field, "--before-incident", incident.id)
        compared = await field.compared()
    scenario.note(engaged=engaged, compared=compared, restored=first + second + rest)


async def parts(field: Field, *arguments: str) -> int:
    """Recover a part; rows that came back and were verified."""
    answer = await recover(field.stores, *arguments)
    assert (answer.status, answer.report.get("complete")) == (0, True), answer
    return int(answer.report["verified"])


@pytest.mark.slow
@pytest.mark.scenario(34, "one project taken back to a time while users write, in that one too")
@pytest.mark.promise("P6")
async def test_34_a_project_is_taken_back_to_a_time(field: Field, scenario: Scenario) -> None:
    """The other project keeps what was done to it since; of this one, what was made since then stays."""
    before, shop = dict(field.expected), of_project(field, "shop")
    async with watching(field.stores), plain_client(field.stores.database_url, timezone="UTC") as client:
        moment = await client.fetchval("SELECT clock_timestamp()")
        changed = field.ids[: len(field.ids) * 4 // 10]
        await client.execute(TOUCH.replace("= $1", "= ANY ($1)"), changed)
        field.keep((await held(client)).images)
        await drained(field.stores.database_url)
        async with writers(field):
            restored = await parts(field, "--project", "shop", "--as-of", moment.isoformat(), "--overwrite-newer")
        taken_back = {id_: before[id_] for id_ in shop & set(map(str, changed))}
        field.keep(taken_back)
        compared = await field.compared()
    assert restored == len(taken_back)
    scenario.note(engaged=bool(taken_back), compared=compared, restored=restored)


@pytest.mark.slow
@pytest.mark.scenario(34, "all contents overwritten; users mend some by themselves before the rest is recovered")
@pytest.mark.promise("P6")
async def test_34_what_users_mended_is_not_overwritten(field: Field, scenario: Scenario) -> None:
    """Memories that were changed after the incident, by another client, are as those users left them."""
    async with watching(field.stores), plain_client(field.stores.database_url, timezone="UTC") as client:
        incident, engaged = await field.strike(OVERWRITE)
        mended = field.ids[:5]
        for id_ in mended:
            await client.execute("UPDATE memories SET content = 'mended ' || id WHERE id = $1", id_)
            await field.keep_row(client, id_)
        recovery = await field.recovered(incident)
    assert recovery.restored == incident.rows - len(mended)
    scenario.note(engaged=engaged, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


@pytest.mark.promise("P2")
@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    "blow",
    [
        pytest.param(DROP, marks=pytest.mark.scenario(35, "DROP TABLE, recovered twice, then a sync")),
        pytest.param(
            OVERWRITE,
            marks=[pytest.mark.scenario(35, "UPDATE of all contents, recovered twice, then a sync"), pytest.mark.slow],
        ),
    ],
)
async def test_35_a_second_recovery_changes_nothing(field: Field, scenario: Scenario, blow: Blow) -> None:
    """Neither here nor there: what was restored is not sent back as if it were new."""
    async with watching(field.stores):
        incident, engaged = await field.strike(blow)
        recovery = await field.recovered(incident)
        here, there = await images_here(field), await remote_digest(field.stores.neo4j_uri)
    for arguments in (("--before-incident", incident.id), ()):
        answer = await recover(field.stores, *arguments)
        assert answer.status == 0, answer
        assert (answer.report["will_restore"], answer.report["will_overwrite"]) == (0, 0), answer
    synced = await command(field.stores, "sync", "--no-embed", "--json")
    assert (synced.status, synced.report["pushed"]) == (0, 0), synced
    assert await images_here(field) == here
    assert await remote_digest(field.stores.neo4j_uri) == there
    scenario.note(engaged=engaged, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


async def owned_up(field: Field, answer: Answer, damaged: Iterable[UUID]) -> int:
    """Rows that came back as they were, after seeing that the rest is told of by count, and that it is no success.

    Args:
        damaged: Memories that may be missing or different now, and no other ones.
    """
    now = await images_here(field)
    short = {id_ for id_, image in field.expected.items() if now.get(id_) != image}
    assert short <= set(map(str, damaged)), answer
    assert now.keys() <= field.expected.keys()
    if short:
        assert answer.status == 1, answer
        assert f"{len(short)} " in " ".join(told(answer)), answer
    return len(field.expected) - len(short)


def told(answer: Answer) -> list[str]:
    """What a recovery says in words."""
    return [*answer.report.get("warnings", []), answer.report.get("next_step", ""), answer.said]


@pytest.mark.slow
@pytest.mark.scenario(36, "the remote store is empty when the table is dropped")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
async def test_36_an_empty_remote_store(field: Field, scenario: Scenario) -> None:
    """It is not said that all is well: what the incident took is counted as missing."""
    async with watching(field.stores):
        incident, engaged = await field.strike(DROP)
    await neo4j.empty(field.stores.neo4j_uri)
    answer = await recover(field.stores, "--before-incident", incident.id)
    assert await owned_up(field, answer, field.ids) == 0
    scenario.note(engaged=engaged, restored=0)


@pytest.mark.slow
@pytest.mark.scenario(36, "the remote store is an older copy of itself when the table is dropped")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
async def test_36_a_stale_remote_store(field: Field, scenario: Scenario) -> None:
    """What it has comes back; that it lacks what was pushed since is said, with the count."""
    uri = field.stores.neo4j_uri
    (store,) = await graph(uri, STORE)
    before = set(field.ids)
    async with watching(field.stores), plain_client(field.stores.database_url, timezone="UTC") as client:
        await field.write(client, 20)
        await drained(field.stores.database_url)
        incident, engaged = await field.strike(DROP)
    since = set(field.ids) - before
    await graph(uri, FORGET, ids=list(map(str, since)))
    await graph(uri, PUT_BACK, properties=store)
    answer = await recover(field.stores, "--before-incident", incident.id)
    restored = await owned_up(field, answer, since)
    assert restored == len(before)
    scenario.note(engaged=engaged, restored=restored)


DAMAGES: dict[str, tuple[str, int]] = {
    "a few nodes garbled": (GARBLE, 7),
    "a few nodes garbled with their history": (GARBLE_ALL, 7),
    "a few nodes gone": (FORGET, 5),
}


@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            name,
            id=name,
            marks=[
                pytest.mark.scenario(36, f"the remote store is damaged when the table is dropped: {name}"),
                *([] if name == "a few nodes garbled" else [pytest.mark.slow]),
            ],
        )
        for name in DAMAGES
    ],
)
async def test_36_a_damaged_remote_store(field: Field, scenario: Scenario, damage: str) -> None:
    """What does not come back as it was is told of by count, and is no success; all the rest is here."""
    statement, count = DAMAGES[damage]
    victims = field.ids[3 :: len(field.ids) // count][:count]
    async with watching(field.stores):
        incident, engaged = await field.strike(DROP)
    await graph(field.stores.neo4j_uri, statement, ids=list(map(str, victims)))
    answer = await recover(field.stores, "--before-incident", incident.id)
    restored = await owned_up(field, answer, victims)
    scenario.note(engaged=engaged, restored=restored)


@pytest.mark.slow
@pytest.mark.scenario(37, "second nodes of memories, and no constraint against them, when the table is dropped")
@pytest.mark.promise("P6")
async def test_37_twins_in_the_remote_store(field: Field, scenario: Scenario) -> None:
    """The newer of two nodes is the memory; every row comes back right."""
    uri, twins = field.stores.neo4j_uri, field.ids[:3]
    await graph(uri, DROP_CONSTRAINT)
    try:
        for id_ in twins:
            await graph(uri, TWIN, id=str(id_))
        async with plain_client(field.stores.database_url) as client:
            await client.execute("DROP TABLE memories")
        answer = await recover(field.stores)
        restored = await owned_up(field, answer, twins)
    finally:
        await graph(uri, MERGE_TWINS)
        async with running(field.stores.database_url, uri) as program:
            await program.remote.prepare()
    scenario.note(engaged=True, restored=restored)


@pytest.mark.slow
@pytest.mark.scenario(38, "one letter of one memory of many is flipped in the remote store when the table is dropped")
@pytest.mark.promise("P6")
async def test_38_one_flipped_memory_of_many(field: Field, scenario: Scenario) -> None:
    """It comes back as it was, from its history, or it is named; no other one is touched by it."""
    victim = field.ids[len(field.ids) // 2]
    flip = "MATCH (m:Memory {id: $id}) SET m.content = 'x' + substring(m.content, 1) RETURN count(m)"
    async with plain_client(field.stores.database_url) as client:
        await client.execute("DROP TABLE memories")
    flipped = await graph(field.stores.neo4j_uri, flip, id=str(victim))
    answer = await recover(field.stores)
    restored = await owned_up(field, answer, [victim])
    named = [row["memory_id"] for row in answer.report["refused"]]
    assert named == ([str(victim)] if restored < len(field.expected) else [])
    scenario.note(engaged=flipped == [1], restored=restored)
