"""Outages of PostgreSQL, Neo4j and Ollama under a user's writes: lost replies, servers that go, come back and flap."""

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from tests.faults.ollama import OwnOllama, own_ollama
from tests.faults.oracle import Oracle, open_oracle
from tests.faults.outage import SOON, Watched, drained_in_order, watched_server, whole_again, writing
from tests.faults.plugin import Scenario
from tests.faults.program import Failpoint, Program, Stores, drained, waiting, worker
from tests.faults.proxy import BOLT_COMMIT, POSTGRES_COMMIT, Proxy, open_proxy
from tests.faults.servers import OwnNeo4j, OwnPostgres
from tests.faults.writes import end_connections
from tests.integration.stores import graph, plain_client, uid
from tests.services import postgres
from tests.services.choice import ServerAbsentError
from tests.services.waiting import until

OUTAGE_VARIABLE = "DIONYSUS_TEST_OUTAGE_SECONDS"
LONG_OUTAGE = float(os.environ.get(OUTAGE_VARIABLE, 600))
SHORT_OUTAGE = 5.0
LONG_PAUSE = 0.1
FLAP_SECONDS = 0.5  # away, and there again, each
# Without a backoff there would be fifty a second.
MOST_PUSHES = 40
MOST_PUSHES_OF_A_LONG_OUTAGE = 120
# The prober looks at most twice a second, over a connection of its own each time; the status asks, too.
MOST_CONNECTIONS_PER_SECOND = 4
# Each of the background loops finds out by itself, and tries a few times quickly at first.
MOST_CONNECTIONS_AT_FIRST = 120
MOST_CONNECTIONS_OF_A_FLAP = 40
OUR_PIDS = (
    "SELECT pid FROM pg_stat_activity"
    " WHERE application_name LIKE 'dionysus-sync-mcp %' AND datname = current_database()"
)
LOCKS = (
    "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
    " WHERE locktype = 'advisory' AND state <> 'active' AND datname = current_database()"
)


async def write(oracle: Oracle, word: str) -> None:
    """An insert, an update, a delete, and two in a row of the same memory."""
    first, second = uid(oracle.rows_written + 1), uid(oracle.rows_written + 2)
    await oracle.insert(first, f"{word}: inserted")
    await oracle.insert(second, f"{word}: to be deleted")
    await oracle.update(first, f"{word}: updated")
    await oracle.delete(second)


@pytest.mark.scenario(4, "Neo4j's reply to the commit of a batch is lost")
@pytest.mark.promise("P2")
async def test_04_reply_to_the_remote_commit_lost(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """Nobody can know whether the batch is there, so it is sent again, and changes nothing more."""
    point = Failpoint("before:COMMIT(write_memories)#2", sends=signal.SIGSTOP)
    async with (
        open_proxy(stores.neo4j_uri) as remote,
        worker(stores.through(remote=remote), failpoint=point) as program,
    ):
        await write(oracle, "before")
        await drained(stores.database_url)
        await write(oracle, "in doubt")
        await program.at_failpoint()
        await remote.drop_reply_once(BOLT_COMMIT)
        program.resume()
        await drained(stores.database_url)
        await whole_again(oracle, scenario, engaged=remote.engaged["drop_reply"] == 1)
        assert commits(program, "write_memories") == (3, 2), "committed without a word, and sent again"
    assert await graph(stores.neo4j_uri, "MATCH (v:MemoryVersion) RETURN count(v)") == [oracle.rows_written]


@pytest.mark.scenario(4, "PostgreSQL's reply to the commit of a push is lost")
@pytest.mark.promise("P2")
async def test_04_reply_to_the_local_commit_lost(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """What was acknowledged stays acknowledged, and what is written next is pushed over a new connection."""
    point = Failpoint("before:COMMIT(acknowledge)#2", sends=signal.SIGSTOP)
    async with (
        open_proxy(stores.database_url) as local,
        worker(stores.through(local=local), failpoint=point) as program,
    ):
        await write(oracle, "before")
        await drained(stores.database_url)
        await write(oracle, "in doubt")
        await program.at_failpoint()
        await local.drop_reply_once(POSTGRES_COMMIT)
        program.resume()
        await drained(stores.database_url)
        await write(oracle, "after")
        await whole_again(oracle, scenario, engaged=local.engaged["drop_reply"] == 1)
        begun, done = commits(program, "acknowledge")
        assert begun == done + 1
    assert await graph(stores.neo4j_uri, "MATCH (v:MemoryVersion) RETURN count(v)") == [oracle.rows_written]


def commits(program: Program, statement: str) -> tuple[int, int]:
    """How many commits of transactions with that statement were sent, and how many were answered."""
    lines = [line for line in program.trace.splitlines() if "COMMIT(" in line and statement in line]
    return sum(line.startswith("before") for line in lines), sum(line.startswith("after") for line in lines)


def pushes(program: Program) -> int:
    """How often a push was tried."""
    return program.trace.splitlines().count("before:try_push_lock")


@asynccontextmanager
async def behind_a_door(stores: Stores) -> AsyncIterator[tuple[Proxy, Proxy, Watched]]:
    """An MCP server behind two proxies: the first can refuse as the remote store, the second counts who comes."""
    async with (
        open_proxy(stores.neo4j_uri) as server,
        open_proxy(server.through(stores.neo4j_uri)) as door,
        watched_server(stores.through(remote=door), failpoint=Failpoint()) as watched,
    ):
        yield server, door, watched


@pytest.mark.scenario(5, "Neo4j away for 5 s under writes")
@pytest.mark.promise("P5")
@pytest.mark.promise("P9")
async def test_05_remote_down_under_writes(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """The user does not notice; the queue grows, few tries are made, and all is pushed in order when it is back."""
    async with behind_a_door(stores) as (server, door, watched):
        async with writing(oracle) as writer:
            await writer.wrote(5)
            await server.refuse()
            connections, tries, before = door.accepted, pushes(watched.program), writer.acknowledged
            await anyio.sleep(SHORT_OUTAGE)
            outage = await watched.until_away("neo4j")
            queued = await grown(stores, writer.acknowledged - before)
        seconds = (datetime.now(UTC) - outage.since).total_seconds()
        assert seconds > SHORT_OUTAGE / 2
        assert door.accepted - connections <= MOST_CONNECTIONS_PER_SECOND * seconds + MOST_CONNECTIONS_AT_FIRST
        assert 1 <= pushes(watched.program) - tries <= MOST_PUSHES
        async with plain_client(stores.database_url) as client:
            await server.heal()
            await drained_in_order(client)
        await whole_again(oracle, scenario, engaged=server.engaged["refuse"] > 0 and queued > 0)


@pytest.mark.slow
@pytest.mark.scenario(5, f"Neo4j killed, and started again after {LONG_OUTAGE:g} s of writes")
@pytest.mark.promise("P5")
@pytest.mark.promise("P9")
async def test_05_remote_down_for_long(own_stores: Stores, own_neo4j: OwnNeo4j, scenario: Scenario) -> None:
    """As for seconds; the tries become rare, and their number does not depend on that of the writes."""
    async with (
        open_oracle(own_stores.database_url, own_stores.neo4j_uri) as oracle,
        open_proxy(own_stores.neo4j_uri) as door,
        watched_server(own_stores.through(remote=door), failpoint=Failpoint()) as watched,
    ):
        async with writing(oracle, pause=LONG_PAUSE) as writer:
            await writer.wrote(5)
            await own_neo4j.kill_9()
            connections, tries, before = door.accepted, pushes(watched.program), writer.acknowledged
            await anyio.sleep(LONG_OUTAGE)
            await watched.until_away("neo4j")
            queued = await grown(own_stores, writer.acknowledged - before)
            connections, tries = door.accepted - connections, pushes(watched.program) - tries
            await own_neo4j.start()
        assert connections <= MOST_CONNECTIONS_PER_SECOND * LONG_OUTAGE + MOST_CONNECTIONS_AT_FIRST
        assert 1 <= tries <= MOST_PUSHES_OF_A_LONG_OUTAGE
        async with plain_client(own_stores.database_url) as client:
            await drained_in_order(client, seconds=10 * SOON)
        await whole_again(oracle, scenario, engaged=queued > 0)


async def grown(stores: Stores, writes: int) -> int:
    """How long the queue is; at least half of the writes wait in it, each as an entry of its own."""
    queued, parked = await waiting(stores.database_url)
    assert parked == 0
    assert queued >= writes / 2 > 0
    return queued


@pytest.mark.parametrize("seconds", [3.0, pytest.param(30.0, marks=pytest.mark.slow)])
@pytest.mark.scenario(6, "Neo4j away for half of each second")
@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
async def test_06_remote_flapping(seconds: float, stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """No crowd of tries at each return, nothing twice, nothing goes back."""
    flaps = int(seconds)
    async with behind_a_door(stores) as (server, door, watched):
        async with writing(oracle) as writer:
            await writer.wrote(5)
            before, connections = server.engaged["refuse"], door.accepted
            for _ in range(flaps):
                await server.refuse()
                await anyio.sleep(FLAP_SECONDS)
                await server.heal()
                await anyio.sleep(FLAP_SECONDS)
            connections = door.accepted - connections
        await whole_again(oracle, scenario, engaged=server.engaged["refuse"] - before >= flaps)
        assert connections <= MOST_CONNECTIONS_OF_A_FLAP * flaps
        assert commits(watched.program, "write_memories")[1] > 0
    assert await graph(stores.neo4j_uri, "MATCH (v:MemoryVersion) RETURN count(v)") == [oracle.rows_written]


async def harm(kind: str, server: OwnPostgres, stores: Stores) -> None:
    """Do to PostgreSQL what `kind` says; it may still be on its way back."""
    async with plain_client(stores.database_url) as client:
        match kind:
            case "terminated":
                assert await end_connections(client) > 0
            case "a backend killed":  # PostgreSQL ends all other connections, too, and starts anew by itself
                os.kill((await client.fetch(OUR_PIDS))[0]["pid"], signal.SIGKILL)
            case "restarted":
                await server.restart()
            case "killed":
                await server.kill_9()
                await server.start()


@pytest.fixture
def half_own_stores(own_database_url: str, empty_neo4j: str, tmp_path: Path) -> Stores:
    """A PostgreSQL to which things may be done, and the run's Neo4j."""
    return Stores(own_database_url, empty_neo4j, tmp_path)


@pytest.mark.parametrize(
    "kind",
    [
        "terminated",
        "killed",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("a backend killed", "restarted")),
    ],
)
@pytest.mark.scenario(9, "PostgreSQL restarted, killed, its connections ended")
@pytest.mark.promise("P9")
@pytest.mark.promise("P1")
async def test_09_postgres_goes_and_comes_back(
    kind: str, half_own_stores: Stores, own_postgres: OwnPostgres, scenario: Scenario
) -> None:
    """The pool and the lock of the pushes come back unaided; the user meets with PostgreSQL's own errors only."""
    stores = half_own_stores
    async with open_oracle(stores.database_url, stores.neo4j_uri) as oracle, watched_server(stores) as watched:
        async with writing(oracle, may_fail=True) as writer:
            await until_pushed(stores, 5)
            old = await our_pids(stores)
            await harm(kind, own_postgres, stores)
            await until_answering(stores)
            await writer.wrote(5)
        await whole_again(oracle, scenario, engaged=bool(old) and old.isdisjoint(await our_pids(stores)))
        await watched.until_back("postgresql")
        await until_unlocked(stores)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stopped", "killed with -9"])
@pytest.mark.scenario(9, "Neo4j stopped or killed with -9, and started again")
@pytest.mark.promise("P9")
@pytest.mark.promise("P1")
async def test_09_neo4j_restarted(kind: str, own_stores: Stores, own_neo4j: OwnNeo4j, scenario: Scenario) -> None:
    """Under writes, which succeed all along; the status says it meanwhile."""
    async with (
        open_oracle(own_stores.database_url, own_stores.neo4j_uri) as oracle,
        watched_server(own_stores) as watched,
    ):
        async with writing(oracle) as writer:
            await until_pushed(own_stores, 5)
            old = own_neo4j.pid
            await (own_neo4j.kill_9() if kind == "killed with -9" else own_neo4j.stop())
            await watched.until_away("neo4j")
            await own_neo4j.start()
            await writer.wrote(5)
        await whole_again(oracle, scenario, engaged=own_neo4j.pid != old)
        await watched.until_back("neo4j")


@pytest.fixture
async def ollama() -> AsyncIterator[OwnOllama]:
    """A real Ollama with a tiny model."""
    try:
        async with own_ollama() as running:
            yield running
    except ServerAbsentError as absent:
        pytest.skip(str(absent))


@pytest.mark.slow
@pytest.mark.scenario(9, "a real Ollama killed with -9, and started again")
@pytest.mark.promise("P9")
async def test_09_ollama_restarted(ollama: OwnOllama, stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """What is written meanwhile is pushed as always, and gets its vectors when Ollama is back."""
    async with watched_server(replace(stores, ollama_url=ollama.url)) as watched:
        async with writing(oracle) as writer:
            await writer.wrote(5)
        await watched.until_embedded(len(oracle.live))
        await ollama.kill_9()
        async with writing(oracle) as writer:
            await writer.wrote(20)
        await watched.until_away("ollama")
        await drained(stores.database_url)
        status = await watched.status()
        assert status.remote is not None
        engaged = not ollama.running and status.remote.without_vector > 0
        await ollama.start()
        started = time.monotonic()
        await watched.until_embedded(len(oracle.live))
        seconds = time.monotonic() - started
        compared, _ = await oracle.until_whole(SOON)
        scenario.note(engaged=engaged, compared=compared, seconds=seconds)


async def our_pids(stores: Stores) -> set[int]:
    """Of the server processes that serve the program."""
    async with plain_client(stores.database_url) as client:
        return {row["pid"] for row in await client.fetch(OUR_PIDS)}


async def until_answering(stores: Stores) -> None:
    """Wait until PostgreSQL takes connections."""

    async def answering() -> bool:
        return await postgres.answers(stores.database_url)

    await until(answering, what="PostgreSQL answers", seconds=SOON)


async def until_pushed(stores: Stores, count: int) -> None:
    """Wait until so many memories are in the remote store."""

    async def pushed() -> bool:
        return bool((await graph(stores.neo4j_uri, "MATCH (m:Memory) RETURN count(m)"))[0] >= count)

    await until(pushed, what=f"{count} memories are pushed", seconds=SOON)


async def until_unlocked(stores: Stores) -> None:
    """Wait until nobody has an advisory lock of the program and does nothing with it."""
    async with plain_client(stores.database_url) as client:

        async def unlocked() -> bool:
            return bool(await client.fetchval(LOCKS) == 0)

        await until(unlocked, what="no lock is left behind", seconds=SOON)
