"""A sync on demand, on real stores: what it can be asked for besides pushing."""

import pytest

from dionysus_sync_mcp.domain.errors import Refused
from dionysus_sync_mcp.engine.ports.push import RemoteBatch, RowOutcome
from dionysus_sync_mcp.engine.status import PARKED
from dionysus_sync_mcp.runtime import Runtime
from tests.integration.stores import INSERT, Client, graph, uid

LIVE = "MATCH (m:Memory) WHERE m.deleted_at IS NULL RETURN m.content ORDER BY m.content"


@pytest.fixture
def refusing(program: Runtime, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Contents that the remote store refuses."""
    sound, refused = program.remote.write, {"poison"}

    async def choosy(batch: RemoteBatch) -> list[RowOutcome]:
        if any(change.newest.properties.content in refused for change in batch.changes):
            raise Refused("it is poison")
        return await sound(batch)

    monkeypatch.setattr(program.remote, "write", choosy)
    return refused


@pytest.mark.promise("P1")
async def test_what_was_refused_is_tried_again_if_it_is_asked_for(
    program: Runtime, client: Client, empty_neo4j: str, refusing: set[str]
) -> None:
    """Parked and said; with the tenth refusal failed for good; and gone from the status once the remote takes it."""
    await client.execute(INSERT, uid(1), "poison")
    await client.execute(INSERT, uid(2), "good")
    first = await program.sync(embed=False)
    assert (first.result, first.pushed, first.parked, first.failed_for_good) == ("partial", 1, 1, 0)
    assert await graph(empty_neo4j, LIVE) == ["good"]
    await client.execute("UPDATE dionysus_sync.sync_queue SET retry_count = 9")
    tenth = await program.sync(embed=False, retry_parked=True)
    assert (tenth.result, tenth.retried, tenth.parked, tenth.failed_for_good) == ("failed", 1, 1, 1)
    status = await program.status()
    assert any("1 of them failed for good" in warning for warning in status.warnings)
    assert status.next_step == PARKED
    refusing.clear()
    untried = await program.sync(embed=False)
    assert (untried.result, untried.pushed, untried.failed_for_good) == ("partial", 0, 1)
    last = await program.sync(embed=False, retry_parked=True)
    assert (last.result, last.retried, last.pushed, last.failed_for_good) == ("success", 1, 1, 0)
    assert await graph(empty_neo4j, LIVE) == ["good", "poison"]


@pytest.mark.promise("P7")
async def test_the_remote_is_made_anew_from_the_local_store(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """Contents that were damaged there too, and memories with an old refusal on record; then both stores agree."""
    for number in (1, 2, 3):
        await client.execute(INSERT, uid(number), f"text {number}")
    assert (await program.sync(embed=False)).pushed == 3
    superseded = (
        "INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, retry_count, parked_at,"
        " superseded_at) VALUES ($1, 'update', '{}', 1, 1, now(), now())"
    )
    await client.execute(superseded, uid(1))
    await graph(empty_neo4j, "MATCH (n) DETACH DELETE n")
    assert await graph(empty_neo4j, LIVE) == []
    report = await program.sync(embed=False, rebuild=True, verify=True)
    assert (report.result, report.rebuilt, report.pushed) == ("success", 3, 3)
    assert report.check is not None
    assert (report.check.kind, report.check.result, report.check.differences) == ("full", "clean", 0)
    assert await graph(empty_neo4j, LIVE) == ["text 1", "text 2", "text 3"]
    again = await program.sync(embed=False, rebuild=True)
    assert (again.result, again.rebuilt, again.outcomes) == ("success", 3, {"unchanged": 3})


@pytest.mark.promise("P7")
async def test_a_sync_without_a_worker_leaves_on_record_where_the_store_is(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """So that the store that is made in its place later is told what was there."""
    await client.execute(INSERT, uid(1), "text")
    assert (await program.sync(embed=False)).result == "success"
    assert await graph(empty_neo4j, "MATCH (s:Store) RETURN s.place IS NOT NULL") == [True]


async def test_a_difference_is_found_where_it_is_asked_for(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """A memory that was changed in the remote store: no plain sync sees it, a comparison does and changes nothing."""
    await client.execute(INSERT, uid(1), "text")
    assert (await program.sync(embed=False)).result == "success"
    await graph(empty_neo4j, "MATCH (m:Memory) SET m.content_hash = 'another', m.content = 'changed by hand'")
    assert (await program.sync(embed=False)).result == "success"
    report = await program.sync(embed=False, verify=True)
    assert report.check is not None
    assert (report.result, report.check.result, report.check.differences) == ("partial", "drift", 1)
    assert "verify --repair" in report.next_step
    assert await graph(empty_neo4j, LIVE) == ["changed by hand"]
