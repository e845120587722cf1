"""Verify, end to end: what somebody changed behind our back is found, only that, and mended on both sides."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from uuid import UUID

import anyio
import pytest

from dionysus_sync_mcp.domain.drift import DriftClass
from dionysus_sync_mcp.engine.compare import Kind
from dionysus_sync_mcp.runtime import Runtime
from tests.integration.stores import INSERT, Client, graph, history, images, node, plain_client, queue, uid
from tests.services.local_store import running

ROWS = 12
VICTIM = uid(7)
SOURCE = "FROM dionysus_sync.verifications ORDER BY finished_at"


class Fault(NamedTuple):
    """How one class of drift comes about, and what must be true after it was mended."""

    drift: DriftClass
    make: Callable[[Client, str, Runtime], Awaitable[None]]
    kind: Kind = "full"
    content: str | None = "second"
    kept: str | None = None


async def push(program: Runtime) -> None:
    """Push until nothing is left."""
    while (step := await program.pusher.push_once()).pushed or step.parked:
        pass


@asynccontextmanager
async def behind_our_back(client: Client) -> AsyncIterator[None]:
    """Statements that the capture does not see, as those of a disabled trigger."""
    await client.execute("SET dionysus.origin = 'restore'")
    yield
    await client.execute("RESET dionysus.origin")


async def filled(client: Client, program: Runtime) -> None:
    """Rows of two versions each, in both stores."""
    for number in range(1, ROWS + 1):
        await client.execute(INSERT, uid(number), f"first {number}")
    await push(program)
    await client.execute("UPDATE memories SET content = 'second'")
    await push(program)


async def on_node(uri: str, change: str, **parameters: object) -> None:
    """Change the victim's node by hand."""
    await graph(uri, f"MATCH (m:Memory {{id: $id}}) {change}", id=str(VICTIM), **parameters)


async def _lose_there(_client: Client, uri: str, _program: Runtime) -> None:
    await on_node(uri, "DETACH DELETE m")


async def _age_there(_client: Client, uri: str, _program: Runtime) -> None:
    await on_node(
        uri,
        "MATCH (m)-[:HAS_VERSION]->(v {sync_version: 1})"
        " SET m.content = v.content, m.content_hash = v.content_hash, m.sync_version = 1",
    )


async def _delete_there(_client: Client, uri: str, _program: Runtime) -> None:
    await on_node(uri, "SET m.deleted_at = datetime(), m.sync_version = 9")


async def _revive_there(client: Client, uri: str, program: Runtime) -> None:
    await client.execute("DELETE FROM memories WHERE id = $1", VICTIM)
    await push(program)
    await on_node(uri, "SET m.sync_version = 2 REMOVE m.deleted_at")


async def _lose_here(client: Client, _uri: str, _program: Runtime) -> None:
    async with behind_our_back(client):
        await client.execute("DELETE FROM memories WHERE id = $1", VICTIM)


async def _age_here(client: Client, _uri: str, _program: Runtime) -> None:
    async with behind_our_back(client):
        await client.execute("UPDATE memories SET content = 'of yore', sync_version = 1 WHERE id = $1", VICTIM)


async def _flip_here(client: Client, _uri: str, _program: Runtime) -> None:
    async with behind_our_back(client):
        await client.execute("UPDATE memories SET content = 'flipped here' WHERE id = $1", VICTIM)


async def _flip_there(_client: Client, uri: str, _program: Runtime) -> None:
    await on_node(
        uri, "SET m.content = 'flipped there', m.content_hash = 'f00d', m.updated_at = datetime('9000-01-01T00:00:00Z')"
    )


async def _corrupt_there(_client: Client, uri: str, _program: Runtime) -> None:
    await on_node(uri, "SET m.content = 'garbled'")


async def _double_there(_client: Client, uri: str, _program: Runtime) -> None:
    await graph(uri, "DROP CONSTRAINT memory_id_unique IF EXISTS")
    await on_node(uri, "CREATE (twin:Memory) SET twin = properties(m), twin.sync_version = 1, twin.content = 'twin'")


async def _unversion_there(_client: Client, uri: str, _program: Runtime) -> None:
    await on_node(uri, "MATCH (m)-[:HAS_VERSION]->(v {sync_version: 2}) DETACH DELETE v")


FAULTS = [
    Fault("missing_there", _lose_there),
    Fault("older_there", _age_there),
    Fault("deleted_there", _delete_there),
    Fault("deleted_here", _revive_there, content=None, kept="second"),
    Fault("missing_here", _lose_here),
    Fault("older_here", _age_here, kept="of yore"),
    Fault("different", _flip_here, content="flipped here", kept="second"),
    Fault("corrupt_there", _corrupt_there, "deep", kept="garbled"),
    Fault("duplicate_there", _double_there, kept="twin"),
    Fault("unversioned_there", _unversion_there, "deep", kept="second"),
]


@pytest.fixture
async def either(migrated_database_url: str, neo4j_both: str) -> AsyncIterator[Runtime]:
    """The program without its background loops, on each supported Neo4j."""
    async with running(migrated_database_url, neo4j_both) as runtime:
        yield runtime


@pytest.mark.promise("P1")
@pytest.mark.promise("P3")
@pytest.mark.promise("P4")
@pytest.mark.promise("P8")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.drift)
async def test_each_class_of_drift_is_found_and_mended(
    either: Runtime, client: Client, neo4j_both: str, fault: Fault
) -> None:
    """Only the one memory is found, a dry run changes nothing, a repair mends it, and the next look is clean."""
    await filled(client, either)
    assert (await either.verify("deep")).counts == {}
    await fault.make(client, neo4j_both, either)
    before = await images(client), await everything(neo4j_both)
    found = await either.verify(fault.kind, repair=True)
    assert found.counts == {fault.drift: 1}
    assert [example.memory_id for example in found.examples[fault.drift]] == [str(VICTIM)]
    assert (found.result, found.dry_run, found.repaired) == ("drift", True, {})
    assert (await images(client), await everything(neo4j_both), await queue(client)) == (*before, [])
    nodes = await count_nodes(neo4j_both)
    mended = await either.verify(fault.kind, repair=True, dry_run=False)
    assert (mended.result, mended.repaired) == ("clean", {fault.drift: 1})
    await push(either)
    again = await either.verify("deep", repair=True, dry_run=False)
    assert (again.counts, again.warnings) == ({}, [])
    assert await client.fetchval("SELECT content FROM memories WHERE id = $1", VICTIM) == fault.content
    held = await node(neo4j_both, VICTIM)
    assert ("deleted_at" in held) == (fault.content is None)
    if fault.kept:
        assert fault.kept in [content for _, _, content in await history(neo4j_both, VICTIM)]
    assert await count_nodes(neo4j_both) >= nodes
    assert await repairs(client) == [f"repair: 1 {fault.drift}"]


async def everything(uri: str) -> list[Any]:
    """All nodes of memories and of their histories, comparable."""
    return await graph(
        uri,
        "MATCH (m) WHERE m:Memory OR m:MemoryVersion"
        " RETURN [coalesce(m.id, m.key), m.sync_version, m.content, toString(m.deleted_at)] AS digest ORDER BY digest",
    )


async def count_nodes(uri: str) -> int:
    """Of memories and of their histories."""
    return int((await graph(uri, "MATCH (m) WHERE m:Memory OR m:MemoryVersion RETURN count(m)"))[0])


async def repairs(client: Client) -> list[str]:
    """What the audit says of repairs."""
    rows = await client.fetch(
        "SELECT error_message FROM dionysus_sync.sync_events WHERE error_message LIKE 'repair:%' ORDER BY timestamp"
    )
    return [r[0] for r in rows]
