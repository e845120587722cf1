"""Rows that the remote store refuses, batches that are too much for it, and nonsense in the queue."""

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest

from dionysus_sync_mcp.domain.backoff import MOST_REFUSALS
from dionysus_sync_mcp.domain.errors import TooLarge, Unavailable
from dionysus_sync_mcp.embedded import neo4j_server
from dionysus_sync_mcp.engine.ports.push import RemoteBatch, RemoteWriter, RowOutcome
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity
from dionysus_sync_mcp.engine.push import Pusher
from dionysus_sync_mcp.runtime import Runtime
from tests.faults.oracle import Oracle, open_oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Program, Stores, mcp_server, run, waiting, worker
from tests.faults.servers import own_neo4j
from tests.integration.stores import Client, graph, history, node, plain_client, queue, uid
from tests.services.local_store import running
from tests.services.waiting import until

SOON = 60.0
ROWS = 40
POISON = uid(13)
# Somebody's own index of contents, which takes none that is longer than about 8 kB: Neo4j then refuses such a row.
INDEX = "CREATE RANGE INDEX somebodys_own FOR (m:Memory) ON (m.content)"
NO_INDEX = "DROP INDEX somebodys_own IF EXISTS"
TOO_LONG = "x" * 40_000
INSERT_ALL = "INSERT INTO memories (id, content) SELECT * FROM unnest($1::uuid[], $2::text[])"
REFUSALS = "SELECT retry_count FROM dionysus_sync.sync_queue WHERE parked_at IS NOT NULL"
BY_HAND = (
    "INSERT INTO dionysus_sync.sync_queue"
    " (entity, operation, payload, sync_version, base_version, created_at, memory_id)"
    " VALUES ($1, $2, $3::text::jsonb, $4::text::integer, 77, $5::text::timestamptz, $6)"
)
SMALL_TRANSACTIONS = "db.memory.transaction.max=8m\n"
LARGE_ROWS = 60
LARGE = 100_000


@pytest.fixture
async def client(stores: Stores) -> AsyncIterator[Client]:
    """A user's own connection."""
    async with plain_client(stores.database_url) as connection:
        yield connection


@pytest.fixture
async def program(stores: Stores) -> AsyncIterator[Runtime]:
    """The program without its background loops."""
    async with running(stores.database_url, stores.neo4j_uri) as runtime:
        yield runtime


@asynccontextmanager
async def refusing(uri: str) -> AsyncIterator[None]:
    """Within it, Neo4j refuses memories whose content is too long for somebody's own index."""
    await graph(uri, INDEX)
    await graph(uri, "CALL db.awaitIndexes(60)")
    try:
        yield
    finally:
        await graph(uri, NO_INDEX)


async def write_all(client: Client, oracle: Oracle) -> None:
    """Rows in one statement, one of them poison."""
    ids = [uid(number) for number in range(1, ROWS + 1)]
    contents = [TOO_LONG if id_ == POISON else f"good {id_.int}" for id_ in ids]
    await client.execute(INSERT_ALL, ids, contents)
    for id_, content in zip(ids, contents, strict=True):
        oracle.expect(id_, content)


async def status_of(program: Program, id_: int) -> dict[str, Any]:
    """What get_sync_status says."""
    await program.wire.call(id_, "get_sync_status")
    while (reply := await program.wire.receive()).get("id") != id_:
        pass
    content = reply["result"]["structuredContent"]
    assert isinstance(content, dict)
    return content


async def parked_alone(client: Client) -> bool:
    """Whether nothing but the poison row is left, parked with its error, and its row says so."""
    entries = await queue(client)
    status = await client.fetchval("SELECT sync_status FROM memories WHERE id = $1", POISON)
    alone = [entry.memory_id for entry in entries] == [POISON]
    return alone and entries[0].parked and bool(entries[0].error) and status == "failed"


@pytest.mark.scenario(20, "a row that Neo4j refuses among forty, mended and retried by command")
@pytest.mark.promise("P1")
async def test_20_a_poison_row(stores: Stores, oracle: Oracle, scenario: Scenario, client: Client) -> None:
    """The others flow on, the status has the error, and `sync --retry-parked` brings the row once it is taken."""
    async with mcp_server(stores) as program:
        await oracle.insert(uid(1000), "pushed before, so that the statements are planned")
        await oracle.until_whole()
        async with refusing(stores.neo4j_uri):
            begun = time.monotonic()
            await write_all(client, oracle)

            async def others_arrived() -> bool:
                return (await oracle.compare()).waiting == 0

            await until(others_arrived, what="the others flow on", seconds=SOON)
            flowed_on = time.monotonic() - begun
            assert await parked_alone(client)
            status = await status_of(program, 1)
            queued = status["local"]["queue"]
            assert (queued["parked"], queued["failed"]) == (1, 0)
            assert queued["last_parked_error"]
            assert any(queued["last_parked_error"] in warning for warning in status["warnings"])
            assert status["exposure"]["unsynced"] == 1
            refused = await run(stores, "sync", "--no-embed", "--retry-parked")
            assert refused.status == 1, refused.output
            assert await parked_alone(client)
            refusals = await client.fetchval(REFUSALS)
        taken = await run(stores, "sync", "--no-embed", "--retry-parked")
        assert taken.status == 0, taken.output
        compared, _ = await oracle.until_whole()
        assert await queue(client) == []
        assert (await status_of(program, 2))["local"]["queue"]["parked"] == 0
        scenario.note(engaged=refusals == 2, compared=compared, seconds=flowed_on)


@pytest.mark.scenario(20, "a row that Neo4j refuses, superseded by a later version")
@pytest.mark.promise("P1")
async def test_20_a_later_version_supersedes(
    stores: Stores, oracle: Oracle, scenario: Scenario, client: Client
) -> None:
    """The later version goes through, and what is parked of the memory worries nobody any more."""
    async with running(stores.database_url, stores.neo4j_uri, worker=True) as program, refusing(stores.neo4j_uri):
        await write_all(client, oracle)

        async def parked() -> bool:
            return await waiting(stores.database_url) == (0, 1)

        await until(parked, what="the row is parked", seconds=SOON)
        await oracle.update(POISON, "good again")

        async def superseded() -> bool:
            report = await program.status()
            return report.local is not None and report.local.queue.parked == 0 and report.exposure.unsynced == 0

        await until(superseded, what="nothing is parked", seconds=SOON)
        entries = await queue(client)
        compared, seconds = await oracle.until_whole()
        engaged = [(entry.memory_id, entry.parked, entry.version) for entry in entries] == [(POISON, True, 1)]
        scenario.note(engaged=engaged, compared=compared, seconds=seconds)
        held = await node(stores.neo4j_uri, POISON)
        assert (held["content"], held["sync_version"]) == ("good again", 2)
        assert await history(stores.neo4j_uri, POISON) == [(2, "update", "good again")]
        assert await client.fetchval("SELECT sync_status FROM memories WHERE id = $1", POISON) == "synced"


@pytest.mark.scenario(20, "a row that Neo4j refuses ten times")
@pytest.mark.promise("P1")
async def test_20_failed_for_good(
    stores: Stores, oracle: Oracle, scenario: Scenario, client: Client, program: Runtime
) -> None:
    """It is said to have failed for good and left alone; a command still brings it when it is taken."""
    async with refusing(stores.neo4j_uri):
        await write_all(client, oracle)
        for _ in range(MOST_REFUSALS):
            await program.sync(timeout=SOON, embed=False, retry_parked=True)
        refusals = await client.fetchval(REFUSALS)
        report = await program.status()
        assert report.local is not None
        assert (report.local.queue.parked, report.local.queue.failed) == (1, 1)
        assert any("failed for good" in warning for warning in report.warnings)
        await client.execute("UPDATE dionysus_sync.sync_queue SET next_retry_at = clock_timestamp()")
        await program.pusher.retry_due_once()
        assert await program.outbox.queue_length() == 0
    await program.sync(timeout=SOON, embed=False, retry_parked=True)
    compared, seconds = await oracle.until_whole()
    assert await queue(client) == []
    scenario.note(engaged=refusals == MOST_REFUSALS, compared=compared, seconds=seconds)


def nonsense() -> list[tuple[str, str, str, str, str]]:
    """Entity, operation, payload, version and time of entries that nobody's trigger has written, as text."""
    id_ = str(uid(500))
    good = {"id": id_, "content": "made by hand"}
    deep = '{"id": "' + id_ + '", "content": ' + "[" * 3000 + "]" * 3000 + "}"
    payloads: Sequence[tuple[str, str, str]] = [
        ("memory", json.dumps({}), "1"),
        ("memory", json.dumps({**good, "id": "no uuid"}), "1"),
        ("memory", json.dumps({**good, "id": str(uuid4())}), "1"),
        ("memory", json.dumps({**good, "importance": "much"}), "1"),
        ("memory", json.dumps({**good, "tags": {"a": 1}, "importance": [1]}), "1"),
        ("memory", json.dumps(good), "0"),
        ("memory", json.dumps(good), "-7"),
        ("memory", json.dumps(good), "2147483647"),
        ("session", json.dumps({"id": 5}), "1"),
        ("project", json.dumps({"id": ["'}) DETACH DELETE (m) //"]}), "1"),
        ("reference", json.dumps({}), "1"),
        ("project", json.dumps({"id": "p", "name": {"a": 1}}), "1"),
        ("project", deep, "1"),
    ]
    rows = [(entity, "update", payload, version, "now") for entity, payload, version in payloads]
    return [*rows, ("project", "create", "{}", "1", "infinity"), ("reference", "delete", "{}", "1", "4713-01-01 BC")]


@pytest.mark.scenario(20, "queue rows made by hand with nonsense in them")
@pytest.mark.promise("P1")
async def test_20_nonsense_in_the_queue(stores: Stores, oracle: Oracle, scenario: Scenario, client: Client) -> None:
    """Each is parked with a reason, or was refused when it was made; real changes before and behind flow on."""
    async with worker(stores) as program:
        await oracle.insert(uid(1), "before")
        await oracle.until_whole()
        before = await graph(stores.neo4j_uri, "MATCH (n) WHERE n:Memory OR n:MemoryVersion RETURN count(n)")
        async with client.transaction():
            for row in nonsense():
                await client.execute(BY_HAND, *row, uid(500) if row[0] == "memory" else None)
        for number in range(2, 12):
            await oracle.insert(uid(number), f"behind {number}")

        async def nothing_waits() -> bool:
            return (await waiting(stores.database_url))[0] == 0

        await until(nothing_waits, what="nothing waits", seconds=SOON)
        compared, seconds = await oracle.until_whole()
        parked = await client.fetch("SELECT last_error FROM dionysus_sync.sync_queue WHERE parked_at IS NOT NULL")
        assert all(row["last_error"] for row in parked)
        assert "Traceback" not in program.log
        scenario.note(engaged=len(parked) == len(nonsense()), compared=compared, seconds=seconds)
        after = await graph(stores.neo4j_uri, "MATCH (n) WHERE n:Memory OR n:MemoryVersion RETURN count(n)")
        assert after == [before[0] + 20]


class Measured:
    """A remote writer that keeps the size of each batch, and of those that were too large."""

    def __init__(self, writer: RemoteWriter) -> None:
        self.sizes: list[int] = []
        self.too_large: list[int] = []
        self._writer = writer

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """As the remote store does."""
        self.sizes.append(len(batch.changes))
        try:
            return await self._writer.write(batch)
        except TooLarge:
            self.too_large.append(len(batch.changes))
            raise

    async def prepare(self) -> None:
        """As the remote store does."""
        await self._writer.prepare()

    async def note_definition(self, identity: StoreIdentity, definition: str) -> None:
        """As the remote store does."""
        await self._writer.note_definition(identity, definition)


@pytest.mark.slow
@pytest.mark.scenario(21, "a batch too large for the memory of a transaction of Neo4j")
@pytest.mark.promise("P1")
async def test_21_a_batch_too_large_is_halved(
    migrated_database_url: str, another_home: Path, scenario: Scenario
) -> None:
    """Each row arrives, in batches that fit."""
    small = neo4j_server.CONFIGURATION + SMALL_TRANSACTIONS
    with mock.patch.object(neo4j_server, "CONFIGURATION", small):
        async with (
            own_neo4j(another_home) as server,
            open_oracle(migrated_database_url, server.url) as oracle,
            running(migrated_database_url, server.url) as program,
            plain_client(migrated_database_url) as client,
        ):
            ids = [uid(number) for number in range(1, LARGE_ROWS + 1)]
            contents = [f"{id_.int}: " + "long " * (LARGE // 5) for id_ in ids]
            await client.execute(INSERT_ALL, ids, contents)
            for id_, content in zip(ids, contents, strict=True):
                oracle.expect(id_, content)
            measured = Measured(program.remote)
            pusher = Pusher(program.outbox, measured, program.remote, size=1_000_000_000)
            begun = time.monotonic()

            async def pushed() -> bool:
                with suppress(Unavailable):  # a server that has just started may be slow
                    await pusher.push_once()
                return await waiting(migrated_database_url) == (0, 0)

            await until(pushed, what="everything is pushed", seconds=5 * SOON)
            compared, _ = await oracle.until_whole()
            engaged = max(measured.too_large, default=0) == LARGE_ROWS and min(measured.sizes) < LARGE_ROWS / 2
            scenario.note(engaged=engaged, compared=compared, seconds=time.monotonic() - begun)
            assert await queue(client) == []
