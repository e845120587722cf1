"""The background loops on real stores: whatever happens, a committed row arrives, unaided."""

from collections.abc import AsyncIterator, Awaitable, Callable
from time import perf_counter

import anyio
import pytest

from dionysus_sync_mcp.domain.errors import Unavailable
from dionysus_sync_mcp.engine.ports.push import RemoteBatch, RowOutcome
from dionysus_sync_mcp.runtime import Runtime
from tests.integration.stores import INSERT, Client, graph, node, uid
from tests.services.local_store import running
from tests.services.waiting import until

SOON = 60.0


@pytest.fixture
async def worker(
    migrated_database_url: str, empty_neo4j: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Runtime]:
    """The program with its background loops, looking after the local store more often than it does for users."""
    for pause in ("GUARD_SECONDS", "NOTE_SECONDS"):
        monkeypatch.setattr(f"dionysus_sync_mcp.engine.worker.{pause}", 0.05)
    async with running(migrated_database_url, empty_neo4j, worker=True) as runtime:
        yield runtime


def arrived(uri: str, content: str) -> Callable[[], Awaitable[bool]]:
    """Asks whether a memory with that content is live in the remote store."""

    async def ask() -> bool:
        found = await graph(uri, "MATCH (m:Memory {content: $c}) WHERE m.deleted_at IS NULL RETURN m.id", c=content)
        return bool(found)

    return ask


@pytest.mark.promise("P1")
@pytest.mark.usefixtures("worker")
async def test_a_committed_row_arrives_by_itself(client: Client, empty_neo4j: str) -> None:
    """A plain client writes, and does nothing else."""
    await client.execute(INSERT, uid(1), "written by a plain client")
    await until(arrived(empty_neo4j, "written by a plain client"), what="the row arrives", seconds=SOON)


@pytest.mark.promise("P9")
async def test_a_failing_step_is_tried_again(
    worker: Runtime, client: Client, empty_neo4j: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remote store is away for a while, then something goes wrong that has no name: neither ends the loop."""
    sound = worker.remote.write
    failures = iter([Unavailable("away", where="neo4j"), RuntimeError("a bug")])
    raised = []

    async def shaky(batch: RemoteBatch) -> list[RowOutcome]:
        if failure := next(failures, None):
            raised.append(failure)
            raise failure
        return await sound(batch)

    monkeypatch.setattr(worker.remote, "write", shaky)
    await client.execute(INSERT, uid(1), "in the end")
    await until(arrived(empty_neo4j, "in the end"), what="the row arrives", seconds=SOON)
    assert len(raised) == 2
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.sync_events WHERE result = 'queued'") == 1


@pytest.mark.promise("P1")
@pytest.mark.parametrize(
    "damage",
    [
        "DROP TRIGGER dionysus_capture_insert ON memories",
        "ALTER TABLE memories DISABLE TRIGGER ALL",
        "DROP FUNCTION dionysus_sync.capture_memories CASCADE",
        "DROP TABLE dionysus_sync.sync_queue",
        "DROP SCHEMA dionysus_sync CASCADE",
    ],
)
@pytest.mark.usefixtures("worker")
async def test_capture_that_was_removed_is_put_back(client: Client, empty_neo4j: str, damage: str) -> None:
    """And the row that was written meanwhile is found."""
    await client.execute(INSERT, uid(1), "before")
    await until(arrived(empty_neo4j, "before"), what="the first row arrives", seconds=SOON)
    async with client.transaction():
        await client.execute(damage)
        await client.execute(INSERT, uid(2), "written meanwhile")
    await until(arrived(empty_neo4j, "written meanwhile"), what="the missed row arrives", seconds=SOON)
    await client.execute(INSERT, uid(3), "after")
    await until(arrived(empty_neo4j, "after"), what="the next row arrives", seconds=SOON)


@pytest.mark.promise("P7")
async def test_a_table_put_in_place_of_the_lost_one_is_captured(
    worker: Runtime, client: Client, empty_neo4j: str
) -> None:
    """An empty table of that name is adopted; nothing in the remote store becomes a tombstone."""
    await client.execute(INSERT, uid(1), "old")
    await until(arrived(empty_neo4j, "old"), what="the row arrives", seconds=SOON)
    await client.execute("CREATE TABLE blank (LIKE memories INCLUDING DEFAULTS); DROP TABLE memories")
    assert await client.fetchval("SELECT to_regclass('memories') IS NULL")
    await client.execute("ALTER TABLE blank RENAME TO memories; ALTER TABLE memories ADD PRIMARY KEY (id)")
    await until(worker.installer.capture_installed, what="the table is captured", seconds=SOON)
    await client.execute(INSERT, uid(2), "new")
    await until(arrived(empty_neo4j, "new"), what="the row arrives", seconds=SOON)
    assert (await node(empty_neo4j, uid(1))).get("deleted_at") is None


@pytest.mark.promise("P9")
async def test_connections_that_are_cut_are_made_again(worker: Runtime, client: Client, empty_neo4j: str) -> None:
    """Every connection of ours is ended by the server's administrator; the next row arrives all the same."""
    await client.execute(INSERT, uid(1), "before")
    await until(arrived(empty_neo4j, "before"), what="the row arrives", seconds=SOON)
    ended = await client.fetchval(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE application_name LIKE 'dionysus-sync-mcp %' AND datname = current_database()"
    )
    assert ended > 0
    await client.execute(INSERT, uid(2), "after")
    await until(arrived(empty_neo4j, "after"), what="the row arrives", seconds=SOON)

    async def nothing_left() -> bool:
        return (await worker.status()).exposure.unsynced == 0

    await until(nothing_left, what="everything is acknowledged", seconds=SOON)


@pytest.mark.promise("P5")
async def test_capture_never_waits_on_the_network(
    worker: Runtime, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a push hangs in the remote store, holding its claim, a client's writes to the same rows go on at once."""
    hanging = anyio.Event()

    async def hang(_batch: object) -> None:
        hanging.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(worker.remote, "write", hang)
    await client.execute(INSERT, uid(1), "c")
    with anyio.fail_after(SOON):
        await hanging.wait()
    started = perf_counter()
    with anyio.fail_after(5):
        await client.execute("UPDATE memories SET content = 'd'")
        await client.execute(INSERT, uid(2), "e")
        await client.execute("DELETE FROM memories")
        await client.execute("TRUNCATE memories")
    assert perf_counter() - started < 2
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.sync_queue") == 5
