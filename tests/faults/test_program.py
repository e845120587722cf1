"""The means of the fault tests on real servers: the program as a process, its failpoints, and lost replies."""

import signal

import asyncpg
import pytest
from neo4j import AsyncGraphDatabase
from neo4j.exceptions import IncompleteCommit

from tests.faults.oracle import Oracle
from tests.faults.program import Failpoint, Stores, drained, mcp_server, run, worker
from tests.faults.proxy import BOLT_COMMIT, POSTGRES_COMMIT, open_proxy
from tests.integration.stores import graph, plain_client, uid


async def test_a_worker_brings_what_was_written_and_is_killed(stores: Stores, oracle: Oracle) -> None:
    """The oracle agrees; the process is one of its own, with no children."""
    await oracle.insert(uid(1), "one")
    async with worker(stores) as program:
        await drained(stores.database_url)
        assert (await oracle.until_whole())[0].whole
        assert program.children() == []
        assert program.memory > 10_000_000
        await program.kill_9()
    assert not program.running


async def test_a_stopped_worker_does_nothing_until_it_goes_on(stores: Stores, oracle: Oracle) -> None:
    """What is written meanwhile waits in the queue."""
    async with worker(stores) as program:
        await oracle.insert(uid(1), "one")
        await drained(stores.database_url)
        await program.stop()
        await oracle.insert(uid(2), "two")
        assert (await oracle.compare()).waiting == 1
        program.resume()
        assert (await oracle.until_whole())[0].whole


async def test_a_server_can_be_stopped_at_a_step(stores: Stores, oracle: Oracle) -> None:
    """In the midst of a push, with its transaction open: the entry is still queued."""
    await oracle.insert(uid(1), "one")
    point = Failpoint("before:acknowledge", sends=signal.SIGSTOP)
    async with mcp_server(stores, failpoint=point) as program:
        await program.at_failpoint()
        assert (await oracle.compare()).waiting == 1
        program.resume()
        assert (await oracle.until_whole())[0].whole
        await program.close_stdin()
        assert await program.ended() == 0


async def test_two_programs_can_be_made_to_push_at_once(stores: Stores, oracle: Oracle) -> None:
    """One stands in the midst of its push, holding the local locks; another one pushes the same entry nevertheless."""
    await oracle.insert(uid(1), "one")
    point = Failpoint("before:write_store", sends=signal.SIGSTOP)
    async with worker(stores, failpoint=point) as first:
        await first.at_failpoint()
        other = Failpoint("before:write_memories", both_active=True)
        ended = await run(stores, "sync", "--no-embed", failpoint=other)
        assert ended.reached, ended.output


async def test_the_oracle_finds_what_is_lost_and_what_is_wrong(stores: Stores, oracle: Oracle) -> None:
    """A comparison that finds nothing proves something only if it would find it."""
    for number in range(1, 6):
        await oracle.insert(uid(number), f"number {number}")
    await run(stores, "sync", "--no-embed")
    assert (await oracle.compare()).whole
    await graph(stores.neo4j_uri, "MATCH (m:Memory {id: $id}) SET m.content = 'other'", id=str(uid(1)))
    await graph(stores.neo4j_uri, "MATCH (m:Memory {id: $id}) SET m.sync_version = 0", id=str(uid(2)))
    await graph(stores.neo4j_uri, "MATCH (m:Memory {id: $id}) DETACH DELETE m", id=str(uid(3)))
    await graph(stores.neo4j_uri, "MATCH (m:Memory {id: $id}) SET m.deleted_at = datetime()", id=str(uid(4)))
    await graph(stores.neo4j_uri, "CREATE (:Memory {id: $id})", id=str(uid(9)))
    found = await oracle.compare()
    assert {what.partition(":")[0] for what in found.lost} == {str(uid(3))}
    for number in (1, 2, 3, 4, 9):
        assert any(str(uid(number)) in what for what in found.wrong), number
    assert not any(str(uid(5)) in what for what in [*found.lost, *found.wrong])


async def test_a_lost_reply_to_a_commit_of_neo4j_is_an_incomplete_commit(stores: Stores) -> None:
    """The transaction is there, and the driver cannot know."""
    async with open_proxy(stores.neo4j_uri) as proxy:
        await proxy.drop_reply_once(BOLT_COMMIT)
        async with AsyncGraphDatabase.driver(proxy.through(stores.neo4j_uri)) as driver, driver.session() as session:
            transaction = await session.begin_transaction()
            await (await transaction.run("CREATE (:Kept)")).consume()
            with pytest.raises(IncompleteCommit):
                await transaction.commit()
        assert proxy.engaged["drop_reply"] == 1
    assert await graph(stores.neo4j_uri, "MATCH (k:Kept) RETURN count(k)") == [1]


async def test_a_lost_reply_to_a_commit_of_postgres_breaks_the_connection(stores: Stores) -> None:
    """The row is there; the proxy reaches the server through whatever it listens on."""
    async with open_proxy(stores.database_url) as proxy:
        await proxy.drop_reply_once(POSTGRES_COMMIT)
        connection = await asyncpg.connect(proxy.through(stores.database_url))
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("CREATE TABLE kept ()")
        with pytest.raises((OSError, asyncpg.PostgresConnectionError)):
            await transaction.commit()
        connection.terminate()
        assert proxy.engaged["drop_reply"] == 1
    async with plain_client(stores.database_url) as client:
        assert await client.fetchval("SELECT to_regclass('kept') IS NOT NULL")
