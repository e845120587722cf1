"""The remote store is wiped, put back or edited by hand, or single rows rot on either side: found, named and mended."""

import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import anyio.to_thread
import pytest

from dionysus_sync_mcp.domain.drift import DriftClass
from dionysus_sync_mcp.engine.reports import VerifyReport
from dionysus_sync_mcp.runtime import Runtime
from tests.faults.oracle import Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Stores, drained
from tests.faults.servers import OwnNeo4j
from tests.integration.stores import Client, graph, images, plain_client, queue, uid
from tests.services import neo4j
from tests.services.local_store import running

ROWS = 30
SOON = 60.0
LONG = 600.0
WIPE = "MATCH (n) DETACH DELETE n"
FORGET = "MATCH (m:Memory) WHERE m.id IN $ids OPTIONAL MATCH (m)-[:HAS_VERSION]->(v) DETACH DELETE m, v"
# A time goes through the driver as text, since the zone that it makes of UTC is another one than the server's.
NODES = (
    "MATCH (n) WITH n, [k IN keys(n) WHERE n[k] IS :: ZONED DATETIME NOT NULL | [k, toString(n[k])]] AS times"
    " RETURN [elementId(n), labels(n), properties(n), times]"
)
EDGES = "MATCH (a)-[r]->(b) RETURN [elementId(a), type(r), properties(r), elementId(b)]"
PUT_BACK = (
    "UNWIND $nodes AS node CREATE (n:$(node[1])) SET n = node[2]"
    " FOREACH (time IN node[3] | SET n[time[0]] = datetime(time[1]))"
    " WITH node[0] AS old, n WITH collect([old, n]) AS pairs"
    " UNWIND $edges AS edge"
    " WITH edge, [p IN pairs WHERE p[0] = edge[0] | p[1]][0] AS a, [p IN pairs WHERE p[0] = edge[3] | p[1]][0] AS b"
    " CREATE (a)-[r:$(edge[1])]->(b) SET r = edge[2]"
)
CONSTRAINT = "memory_id_unique"
CONSTRAINTS = "SHOW CONSTRAINTS YIELD name ORDER BY name RETURN collect(name)"
BULK = (
    "INSERT INTO memories (id, content)"
    " SELECT lpad(to_hex(i), 32, '0')::uuid, 'row ' || i FROM generate_series(1, $1) AS i"
)
FLIP = "UPDATE memories SET content = overlay(content PLACING 'x' FROM 1) WHERE id = $1"


class Edit(NamedTuple):
    """What somebody does by hand to the node `m` of one memory, and what that is called."""

    drift: DriftClass
    change: str


EDITS = [
    Edit("corrupt_there", "SET m.content = 'garbled'"),
    Edit("older_there", "SET m.content = 'of yore', m.content_hash = 'f00d', m.sync_version = 0"),
    Edit("deleted_there", "SET m.deleted_at = datetime()"),
    Edit("missing_there", "DETACH DELETE m"),
    Edit("unversioned_there", "MATCH (m)-[:HAS_VERSION]->(v) DETACH DELETE v"),
    Edit("duplicate_there", "CREATE (t:Memory) SET t = properties(m), t.content = 'twin', t.sync_version = 0"),
]


async def fill(oracle: Oracle, program: Runtime) -> None:
    """Rows in both stores."""
    for number in range(1, ROWS + 1):
        await oracle.insert(uid(number), f"row {number}")
    await push(program)


async def push(program: Runtime) -> None:
    """Push until nothing is left."""
    while (step := await program.pusher.push_once()).pushed or step.parked:
        pass


async def found_and_mended(program: Runtime, client: Client, expected: Mapping[DriftClass, int]) -> VerifyReport:
    """Verify names exactly these, a repair mends them, a second check is clean; no row here changes meanwhile."""
    rows = await images(client)
    found = await program.verify("deep", repair=True)
    assert found.counts == dict(expected)
    assert (found.dry_run, await queue(client)) == (True, [])
    mended = await program.verify("deep", repair=True, dry_run=False)
    assert mended.repaired == dict(expected)
    await push(program)
    again = await program.verify("deep")
    assert (again.result, again.counts) == ("clean", {})
    assert await images(client) == rows
    return found


async def wipe(uri: str) -> dict[DriftClass, int]:
    """Everything is gone."""
    await graph(uri, WIPE)
    return {"missing_there": ROWS}


async def wipe_partly(uri: str) -> dict[DriftClass, int]:
    """Every third memory is gone with its history."""
    gone = [str(uid(number)) for number in range(1, ROWS + 1, 3)]
    await graph(uri, FORGET, ids=gone)
    return {"missing_there": len(gone)}


LOSSES: dict[str, Callable[[str], Awaitable[dict[DriftClass, int]]]] = {"wiped": wipe, "partly wiped": wipe_partly}


@pytest.mark.scenario(37, "the remote store is wiped, in whole or in part; verify and repair are asked for")
@pytest.mark.promise("P1")
@pytest.mark.promise("P7")
@pytest.mark.parametrize("loss", LOSSES)
async def test_37_a_wiped_remote_is_named_and_repaired(
    stores: Stores, oracle: Oracle, scenario: Scenario, loss: str
) -> None:
    """All that is missing is named, and nothing else; the local store stays as it is."""
    async with running(stores.database_url, stores.neo4j_uri) as program, plain_client(stores.database_url) as client:
        await fill(oracle, program)
        expected = await LOSSES[loss](stores.neo4j_uri)
        engaged = (await oracle.compare()).rows_lost >= expected["missing_there"]
        await found_and_mended(program, client, expected)
        compared, seconds = await oracle.until_whole()
    scenario.note(engaged=engaged, compared=compared, seconds=seconds)


@pytest.mark.scenario(37, "the remote store is wiped, in whole or in part, under a running program; nobody acts")
@pytest.mark.promise("P1")
@pytest.mark.promise("P7")
@pytest.mark.parametrize("loss", LOSSES)
async def test_37_a_wiped_remote_fills_again_unasked(
    stores: Stores, oracle: Oracle, scenario: Scenario, loss: str
) -> None:
    """Without a write, without a restart."""
    async with (
        running(stores.database_url, stores.neo4j_uri, worker=True) as program,
        plain_client(stores.database_url) as client,
    ):
        await fill(oracle, program)
        await drained(stores.database_url, SOON)
        rows = await images(client)
        expected = await LOSSES[loss](stores.neo4j_uri)
        engaged = bool(expected["missing_there"])
        compared, seconds = await oracle.until_whole(SOON)
        assert await images(client) == rows
    scenario.note(engaged=engaged, compared=compared, seconds=seconds)


@pytest.mark.scenario(37, "nodes edited by hand in six ways at once, one of them a second node of a memory")
@pytest.mark.promise("P4")
@pytest.mark.promise("P7")
async def test_37_nodes_edited_by_hand(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """Each is named by its class, and mended; what somebody wrote by hand is kept in the history."""
    uri = stores.neo4j_uri
    async with running(stores.database_url, uri) as program, plain_client(stores.database_url) as client:
        await fill(oracle, program)
        await graph(uri, f"DROP CONSTRAINT {CONSTRAINT}")
        try:
            for number, edit in enumerate(EDITS, start=1):
                await graph(uri, f"MATCH (m:Memory {{id: $id}}) {edit.change}", id=str(uid(number)))
            engaged = (await oracle.compare()).rows_wrong > 0
            found = await found_and_mended(program, client, {edit.drift: 1 for edit in EDITS})
        finally:
            await restore_the_constraint(program, uri)
        victims = {edit.drift: str(uid(number)) for number, edit in enumerate(EDITS, start=1)}
        assert {drift: seen[0].memory_id for drift, seen in found.examples.items()} == victims
        compared, seconds = await oracle.until_whole()
        texts = set(await graph(uri, "MATCH (v:MemoryVersion) RETURN v.content"))
        assert {"garbled", "of yore", "twin"} <= texts
    scenario.note(engaged=engaged, compared=compared, seconds=seconds)


async def restore_the_constraint(program: Runtime, uri: str) -> None:
    """Whatever a test came to: the server is shared."""
    await graph(uri, "MATCH (m:Memory) WITH m.id AS id, collect(m) AS ms UNWIND ms[1..] AS m DETACH DELETE m")
    await program.remote.prepare()


@pytest.mark.scenario(37, "the remote store's constraint is dropped by hand under a running program")
@pytest.mark.promise("P2")
@pytest.mark.promise("P9")
async def test_37_a_constraint_that_is_missing(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """Verify says which; a repair makes it again; nothing of the memories is touched."""
    uri = stores.neo4j_uri
    async with running(stores.database_url, uri) as program, plain_client(stores.database_url) as client:
        await fill(oracle, program)
        before = await graph(uri, CONSTRAINTS)
        await graph(uri, f"DROP CONSTRAINT {CONSTRAINT}")
        try:
            engaged = await graph(uri, CONSTRAINTS) != before
            await oracle.insert(uid(99), "written without it")
            await push(program)
            found = await program.verify()
            assert (found.result, [CONSTRAINT in warning for warning in found.warnings]) == ("drift", [True])
            assert "verify --repair" in found.next_step
            await found_and_mended(program, client, {})
            assert await graph(uri, CONSTRAINTS) == before
            assert (await program.verify()).warnings == []
        finally:
            await restore_the_constraint(program, uri)
        compared, seconds = await oracle.until_whole()
    scenario.note(engaged=engaged, compared=compared, seconds=seconds)


class Copied(NamedTuple):
    """All nodes and relationships of a remote store, as a backup has them."""

    nodes: list[Any]
    edges: list[Any]


async def copied(uri: str) -> Copied:
    """The remote store now."""
    return Copied(await graph(uri, NODES), await graph(uri, EDGES))


async def put_back(uri: str, copy: Copied) -> None:
    """As if nothing had been written since."""
    await neo4j.empty(uri)
    await graph(uri, PUT_BACK, nodes=copy.nodes, edges=copy.edges)


async def write_since(oracle: Oracle) -> None:
    """What the copy does not have: changes, new rows, deletes, a row inserted again."""
    for number in range(1, 6):
        await oracle.update(uid(number), f"since {number}")
    for number in range(101, 106):
        await oracle.insert(uid(number), f"new since {number}")
    for number in (10, 11):
        await oracle.delete(uid(number))
    await oracle.insert(uid(11), "inserted again since")


@pytest.mark.scenario(37, "the remote store is put back to an older copy of itself under a running program")
@pytest.mark.promise("P1")
@pytest.mark.promise("P7")
async def test_37_an_older_copy_of_the_remote_is_put_back(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """The next push finds it; what it lacks is sent again unasked, deletes too, and the local store stays as it is."""
    uri = stores.neo4j_uri
    async with (
        running(stores.database_url, uri, worker=True) as program,
        plain_client(stores.database_url) as client,
    ):
        await fill(oracle, program)
        await drained(stores.database_url, SOON)
        copy = await copied(uri)
        await write_since(oracle)
        await drained(stores.database_url, SOON)
        await put_back(uri, copy)
        engaged = "since 1" not in await graph(uri, "MATCH (m:Memory) RETURN m.content")
        await oracle.insert(uid(200), "the next write")
        rows = await images(client)
        compared, seconds = await oracle.until_whole(SOON)
        assert await images(client) == rows
        assert (await program.verify("deep")).counts == {}
    scenario.note(engaged=engaged, compared=compared, seconds=seconds)


@pytest.mark.slow
@pytest.mark.scenario(37, "Neo4j's data folder is put back to an older copy while it is stopped")
@pytest.mark.promise("P1")
@pytest.mark.promise("P7")
async def test_37_an_older_data_folder_of_the_remote_is_put_back(
    own_stores: Stores, own_oracle: Oracle, own_neo4j: OwnNeo4j, scenario: Scenario, tmp_path: Path
) -> None:
    """As it is done by somebody who restores a backup of the files."""
    folder, backup = own_neo4j._server.folder, tmp_path / "backup"
    async with running(own_stores.database_url, own_neo4j.url) as program:
        await fill(own_oracle, program)
    await own_neo4j.stop()
    await anyio.to_thread.run_sync(shutil.copytree, folder, backup)
    await own_neo4j.start()
    async with (
        running(own_stores.database_url, own_neo4j.url, worker=True) as program,
        plain_client(own_stores.database_url) as client,
    ):
        await write_since(own_oracle)
        await drained(own_stores.database_url, SOON)
        await own_neo4j.stop()
        await anyio.to_thread.run_sync(shutil.rmtree, folder)
        await anyio.to_thread.run_sync(shutil.copytree, backup, folder)
        await own_neo4j.start()
        engaged = "since 1" not in await graph(own_neo4j.url, "MATCH (m:Memory) RETURN m.content")
        await own_oracle.insert(uid(200), "the next write")
        rows = await images(client)
        compared, seconds = await own_oracle.until_whole(2 * SOON)
        assert await images(client) == rows
        assert (await program.verify("deep")).counts == {}
    scenario.note(engaged=engaged, compared=compared, seconds=seconds)


async def fill_in_bulk(client: Client, oracle: Oracle, program: Runtime, rows: int) -> None:
    """Rows in both stores."""
    await client.execute(BULK, rows, timeout=LONG)
    for number in range(1, rows + 1):
        oracle.expect(uid(number), f"row {number}")
    await push(program)


def one(found: VerifyReport) -> dict[DriftClass, list[UUID]]:
    """The memories that a report names, by class; all of them, where there are no more than it has examples."""
    return {drift: [UUID(e.memory_id) for e in seen] for drift, seen in found.examples.items()}


@pytest.mark.scenario(
    38, "one letter of one row of many is flipped, on each side, by the content alone or with its hash"
)
@pytest.mark.promise("P1")
@pytest.mark.promise("P4")
@pytest.mark.parametrize("rows", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_38_one_flipped_row_of_many(stores: Stores, oracle: Oracle, scenario: Scenario, rows: int) -> None:
    """It is found, and only that one; the side that is right is taken when it is said which that is."""
    uri, here, there, silent = stores.neo4j_uri, rows // 3, rows // 2, rows - 7
    async with running(stores.database_url, uri) as program, plain_client(stores.database_url) as client:
        await fill_in_bulk(client, oracle, program, rows)
        await client.execute("SET dionysus.origin = 'restore'")
        await client.execute(FLIP, uid(here))
        await client.execute("RESET dionysus.origin")
        found = await program.verify()
        assert (found.counts, one(found)) == ({"different": 1}, {"different": [uid(here)]})
        assert (found.local_memories, found.remote_memories) == (rows, rows)
        await program.verify(repair=True, prefer="remote", dry_run=False)
        await flip_there(uri, there, "m.content_hash = 'f00d'")
        found = await program.verify()
        assert (found.counts, one(found)) == ({"different": 1}, {"different": [uid(there)]})
        await program.verify(repair=True, prefer="local", dry_run=False)
        await push(program)
        await flip_there(uri, silent, "m.touched = null")
        assert (await program.verify()).counts == {}
        found = await program.verify("deep")
        assert (found.counts, one(found)) == ({"corrupt_there": 1}, {"corrupt_there": [uid(silent)]})
        await program.verify("deep", repair=True, dry_run=False)
        await push(program)
        compared, seconds = await oracle.until_whole(LONG)
        assert (await program.verify("deep")).counts == {}
    scenario.note(engaged=bool(found.counts), compared=compared, seconds=seconds)


async def flip_there(uri: str, number: int, further: str) -> None:
    """The first letter of a memory in the remote store, and something further."""
    flip = f"MATCH (m:Memory {{id: $id}}) SET m.content = 'x' + substring(m.content, 1), {further}"
    await graph(uri, flip, id=str(uid(number)))
