"""Outages of real stores while the program works: nothing is lost, and it goes on unaided."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from dionysus_sync_mcp.engine.ports.push import RemoteBatch, RowOutcome
from dionysus_sync_mcp.runtime import Runtime
from tests.faults.proxy import Proxy, open_proxy
from tests.integration.stores import INSERT, Client, graph, plain_client, uid
from tests.services.local_store import running
from tests.services.waiting import until

# On a busy machine; the waits that must not be waited out are longer.
SOON = 60.0
END_ALL = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE application_name LIKE 'dionysus-sync-mcp %' AND datname = current_database()"
)
QUEUED_EVENTS = "SELECT count(*) FROM dionysus_sync.sync_events WHERE result = 'queued'"


@asynccontextmanager
async def between(database_url: str, neo4j_uri: str) -> AsyncIterator[tuple[Runtime, Proxy, Proxy]]:
    """The program with its background loops, and the ways to the local and to the remote store."""
    async with (
        open_proxy(database_url) as local,
        open_proxy(neo4j_uri) as remote,
        running(local.through(database_url), remote.through(neo4j_uri), worker=True) as program,
    ):
        yield program, local, remote


async def drained(client: Client, uri: str, memories: int) -> None:
    """Wait until so many memories are in the remote store and the queue is empty."""

    async def whole() -> bool:
        there = (await graph(uri, "MATCH (m:Memory) RETURN count(m)"))[0]
        left = await client.fetchval("SELECT count(*) FROM dionysus_sync.sync_queue")
        return bool(there == memories and left == 0)

    await until(whole, what=f"{memories} memories are in the remote store", seconds=SOON)


async def away(program: Runtime, service: str) -> None:
    """Wait until the program knows that a service is away, and let its waits have become long."""
    worker = program._worker

    async def known() -> bool:
        report = worker.report()
        return report.failing_since is not None and service in {outage.service for outage in report.outages}

    await until(known, what=f"{service} is known to be away", seconds=SOON)
    worker._push_loop.attempts = 1000


@pytest.mark.promise("P1")
@pytest.mark.promise("P9")
@pytest.mark.parametrize("fault", ["refuse", "blackhole"])
async def test_a_remote_store_that_comes_back_is_used_at_once(
    migrated_database_url: str, empty_neo4j: str, client: Client, fault: str
) -> None:
    """Refused or lost without a word: the outage is reported and audited once, and its end is not slept through."""
    async with between(migrated_database_url, empty_neo4j) as (program, _, remote):
        await client.execute(INSERT, uid(1), "before")
        await drained(client, empty_neo4j, 1)
        await getattr(remote, fault)()
        await client.execute(INSERT, uid(2), "meanwhile")
        await away(program, "neo4j")
        assert remote.engaged[fault]
        report = program._worker.report()
        outage = next(o for o in report.outages if o.service == "neo4j")
        assert (report.state, report.error is None, outage.error != "") == ("waiting", False, True)
        await remote.heal()
        await drained(client, empty_neo4j, 2)
        assert await client.fetchval(QUEUED_EVENTS) == 1


@pytest.mark.promise("P1")
@pytest.mark.promise("P9")
@pytest.mark.parametrize("fault", ["refuse", "blackhole"])
async def test_a_local_store_that_comes_back_is_used_at_once(
    migrated_database_url: str, empty_neo4j: str, client: Client, fault: str
) -> None:
    """The same on this side; what was written meanwhile by others is pushed."""
    async with between(migrated_database_url, empty_neo4j) as (program, local, _):
        await client.execute(INSERT, uid(1), "before")
        await drained(client, empty_neo4j, 1)
        await getattr(local, fault)()
        await client.execute(INSERT, uid(2), "meanwhile")
        await away(program, "postgresql")
        assert local.engaged[fault]
        await local.heal()
        await drained(client, empty_neo4j, 2)


@pytest.mark.promise("P1")
@pytest.mark.promise("P9")
async def test_all_connections_ended_while_idle_and_during_a_push(
    migrated_database_url: str, empty_neo4j: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The push lock goes with its connection; the next claim gets it, and the batch that was sent is sent again."""
    async with running(migrated_database_url, empty_neo4j, worker=True) as program:
        await client.execute(INSERT, uid(1), "before")
        await drained(client, empty_neo4j, 1)
        assert await client.fetchval(END_ALL) > 0
        await client.execute(INSERT, uid(2), "after the first time")
        await drained(client, empty_neo4j, 2)
        sound = program.remote.write
        ended: list[int] = []

        async def ending(batch: RemoteBatch) -> list[RowOutcome]:
            outcomes = await sound(batch)
            if not ended:
                async with plain_client(migrated_database_url) as other:
                    ended.append(await other.fetchval(END_ALL))
            return outcomes

        monkeypatch.setattr(program.remote, "write", ending)
        await client.execute(INSERT, uid(3), "during a push")
        await drained(client, empty_neo4j, 3)
        assert ended[0] > 0
        versions = await graph(empty_neo4j, "MATCH (v:MemoryVersion) RETURN count(v)")
        assert versions == [3], "sent twice, there once"


@pytest.mark.promise("P1")
@pytest.mark.promise("P9")
async def test_a_remote_store_that_comes_and_goes_each_second(
    migrated_database_url: str, empty_neo4j: str, client: Client
) -> None:
    """Everything written meanwhile arrives, once it stays."""
    async with between(migrated_database_url, empty_neo4j) as (_, __, remote):
        for number in range(1, 5):
            await remote.refuse()
            await client.execute(INSERT, uid(number), "c")
            await anyio.sleep(0.5)
            await remote.heal()
            await anyio.sleep(0.5)
        assert remote.engaged["refuse"] >= 4
        await drained(client, empty_neo4j, 4)
        assert await graph(empty_neo4j, "MATCH (v:MemoryVersion) RETURN count(v)") == [4]
