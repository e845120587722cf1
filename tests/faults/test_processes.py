"""Several processes on one database, and a database that has no connection left for any of them."""

import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import asyncpg
import pytest

from dionysus_sync_mcp.domain.errors import StoreRolledBack, Unavailable
from dionysus_sync_mcp.runtime import Runtime
from tests.faults.oracle import Oracle, open_oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Failpoint, Program, Stores, drained, mcp_server, worker
from tests.faults.servers import OwnPostgres, own_postgres
from tests.faults.writes import User, Write, end_connections
from tests.integration.stores import Client, graph, plain_client, remote_digest, uid
from tests.services import postgres
from tests.services.local_store import running
from tests.services.waiting import until

SOON = 60.0
FEW = {"max_connections": "14", "superuser_reserved_connections": "0"}
OURS = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'dionysus-sync-mcp %'"
WAITS_FOR_THE_ROW = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'dionysus-sync-mcp %'"
    " AND wait_event_type = 'Lock' AND datname = current_database() AND query LIKE '%FOR NO KEY UPDATE%'"
)
ADVISORY = "pg_try_advisory_xact_lock(7165101844002)"
ROLLED_BACK = "older than what it has pushed"
BETWEEN_WRITES = 0.02
TAKEN_OVER_WITHIN = 20.0  # seconds; a second where nothing else runs
TWO_WRITES_OF = 12
ROUNDS = 5
MOST_ROUNDS = 100


class Crowd:
    """Connections of an agent that takes all that there are."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._held: list[Client] = []

    async def take_all(self, client: Client) -> None:
        """Take what is free, and what the program had, until it has none."""
        await end_connections(client)

        async def taken() -> bool:
            try:
                while True:
                    self._held.append(await asyncpg.connect(self._url, timeout=10))
            except asyncpg.TooManyConnectionsError:
                pass
            if await client.fetchval(OURS):
                await end_connections(client)
                return False
            return True

        await until(taken, what="the agent has every connection", seconds=SOON, pause=0)

    async def let_go(self) -> int:
        """Give all back; how many there were."""
        for connection in self._held:
            await connection.close(timeout=10)
        number = len(self._held)
        self._held.clear()
        return number


@pytest.fixture
async def crowded(another_home: Path) -> AsyncIterator[OwnPostgres]:
    """A PostgreSQL with few connections, for superusers as for all others."""
    async with own_postgres(another_home, FEW) as server:
        yield server


async def says_crowded(program: Runtime) -> bool:
    """Whether the status says that the local store has no connection left."""
    report = await program.status(2.0)
    local = next(service for service in report.services if service.service == "postgresql")
    return not local.up and "too many clients" in (local.error or "")


@pytest.mark.scenario(10, "the agent takes every connection that PostgreSQL has, those of the program too")
@pytest.mark.promise("P5")
@pytest.mark.promise("P9")
async def test_10_no_connection_is_left(crowded: OwnPostgres, empty_neo4j: str, scenario: Scenario) -> None:
    """Writes are captured, the status says what is the matter, and the worker goes on when there is a connection."""
    async with (
        postgres.template_database(crowded.url, postgres.install_local_store) as url,
        open_oracle(url, empty_neo4j) as oracle,
        plain_client(url) as client,
        running(url, empty_neo4j, worker=True) as program,
    ):
        for number in range(1, 11):
            await oracle.insert(uid(number), f"before {number}")
        await drained(url)
        crowd = Crowd(url)
        await crowd.take_all(client)
        for number in range(1, 21):
            await (oracle.update if number <= 10 else oracle.insert)(uid(number), f"meanwhile {number}")
        await oracle.delete(uid(1))
        engaged = (await oracle.compare()).waiting == 20 and await says_crowded(program)
        engaged = engaged and await client.fetchval(OURS) == 0
        assert await crowd.let_go() >= 8
        compared, seconds = await oracle.until_whole()
        scenario.note(engaged=engaged, compared=compared, seconds=seconds)


async def answer(program: Program, id_: int, tool: str, **arguments: object) -> dict[str, Any]:
    """The structured result of a tool."""
    await program.wire.call(id_, tool, arguments)
    while (reply := await program.wire.receive()).get("id") != id_:
        pass
    assert not reply["result"].get("isError"), reply
    content = reply["result"]["structuredContent"]
    assert isinstance(content, dict)
    return content


async def all_answer(programs: Sequence[Program], number: int, ids: "count[int]") -> None:
    """Every MCP server says how the memories are protected, and finds one of them."""
    for program in programs:
        status = await answer(program, next(ids), "get_sync_status")
        assert status["local"]["memories"] == number
        found = await answer(program, next(ids), "query_cross_project", query="remembered")
        assert found["items"]


@pytest.mark.scenario(14, "two MCP servers and a worker at once; the one that pushes is killed with -9")
@pytest.mark.promise("P1")
async def test_14_the_pusher_is_killed(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """All answer; one of the others takes over, and nothing is lost."""
    point = Failpoint("before:COMMIT(acknowledge)#2", sends=signal.SIGKILL)
    ids = count(1)
    async with mcp_server(stores, failpoint=point) as first, mcp_server(stores) as second, worker(stores):
        numbers = count(1)

        async def killed() -> bool:
            number = next(numbers)
            await oracle.insert(uid(number), f"remembered {number}")
            return not first.running

        await oracle.insert(uid(1000), "remembered at first")
        await drained(stores.database_url)
        await all_answer([second], 1, ids)
        await until(killed, what="the first server pushes", seconds=SOON, pause=BETWEEN_WRITES)
        status = await first.ended()
        pushed = await graph(stores.neo4j_uri, "MATCH (s:Store) RETURN s.lineage")
        await oracle.insert(uid(1001), "remembered at last")
        compared, seconds = await oracle.until_whole()
        assert seconds < TAKEN_OVER_WITHIN
        assert await graph(stores.neo4j_uri, "MATCH (s:Store) RETURN s.lineage") != pushed
        scenario.note(engaged=status == -signal.SIGKILL, compared=compared, seconds=seconds)
        await all_answer([second], next(numbers) + 1, ids)
        assert ROLLED_BACK not in second.log


@pytest.mark.slow
@pytest.mark.scenario(14, "two MCP servers and a worker at once, all of them alive")
@pytest.mark.promise("P2")
async def test_14_three_at_once(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """All answer while there is something to push; each change arrives once."""
    ids = count(1)
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(mcp_server(stores, failpoint=Failpoint())) for _ in range(2)]
        third = await stack.enter_async_context(worker(stores, failpoint=Failpoint()))
        for number in range(1, 61):
            await oracle.insert(uid(number), f"remembered {number}")
            await oracle.update(uid(number), f"remembered {number}, again")
            if number % 20 == 0:
                await drained(stores.database_url)
                await all_answer(servers, number, ids)
        more = count(61)

        async def each_has_tried() -> bool:
            """Chance may let two of them take it all; so there is more until the third has come to it."""
            number = next(more)
            await oracle.insert(uid(number), f"remembered {number}")
            return all("after:try_push_lock" in program.trace for program in (*servers, third))

        await until(each_has_tried, what="each has tried to push", seconds=SOON)
        compared, seconds = await oracle.until_whole()
        scenario.note(engaged=True, compared=compared, seconds=seconds)
    assert await graph(stores.neo4j_uri, "MATCH (v:MemoryVersion) RETURN count(v)") == [oracle.rows_written]


@pytest.fixture
async def user(stores: Stores, oracle: Oracle) -> AsyncIterator[User]:
    """Somebody who writes."""
    async with plain_client(stores.database_url) as client, plain_client(stores.database_url) as holder:
        yield User(client, holder, oracle)


async def write_of_each_kind(user: User, word: str) -> None:
    """Transactions with inserts, updates, deletes, inserts after a delete, and changes of primary keys."""
    await user.transact([Write("put all", 0, TWO_WRITES_OF, word)])
    for number in range(TWO_WRITES_OF):
        await user.transact([Write("insert again" if number % 3 else "delete", number, 0, word)])
        await user.transact([Write("put", number, 0, word), Write("rekey", number, 20 + number, word)])
    await user.transact([Write("delete all", 18, 24, word)])


async def push_on(program: Runtime, pushed: Counter[int], number: int) -> None:
    """As a program's loop does it: an outage is waited out, anything else is an error."""
    while True:
        with suppress(Unavailable):
            pushed[number] += (await program.pusher.push_once()).pushed
        await anyio.lowlevel.checkpoint()


def pushes(program: Program) -> int:
    """How many batches it has brought to the remote store."""
    return sum(line.startswith("after:COMMIT(") and "write_memories" in line for line in program.trace.splitlines())


@pytest.mark.scenario(14, "two past all locks at once, one of them standing still before or after its remote commit")
@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
@pytest.mark.parametrize("at", ["before:write_store", "before:move_lineage"])
async def test_14_both_forced_active_one_stands_still(
    stores: Stores, oracle: Oracle, scenario: Scenario, user: User, at: str
) -> None:
    """The other one pushes the same entries and newer ones; what the first does then changes nothing."""
    await write_of_each_kind(user, "first")
    still = Failpoint(at, sends=signal.SIGSTOP, both_active=True)
    async with worker(stores, failpoint=still) as first:
        await first.at_failpoint()
        async with worker(stores, failpoint=Failpoint(both_active=True)) as second:
            await brings_all(second, stores)
            await write_of_each_kind(user, "second")
            await brings_all(second, stores)
            engaged = pushes(second) >= 2 and await first.stopped()
            before, steps = await remote_digest(stores.neo4j_uri), len(first.trace)
            first.resume()
            await until(_goes_on(first, steps), what="the first one looks at the queue", seconds=SOON)
            compared, seconds = await oracle.until_whole()
            assert await remote_digest(stores.neo4j_uri) == before
            assert ROLLED_BACK not in first.log + second.log
            scenario.note(engaged=engaged, compared=compared, seconds=seconds)


async def brings_all(program: Program, stores: Stores) -> None:
    """Wait until the queue is empty; what this program has to say, if it never is."""
    try:
        await drained(stores.database_url)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; {program.log[-2000:]}; {program.trace[-400:]}") from None


def _goes_on(program: Program, steps: int) -> Callable[[], Awaitable[bool]]:
    """Whether it is done with the push in which it stood still, overtaken or past its deadline, and looks anew."""

    async def goes_on() -> bool:
        return "after:anything_queued" in program.trace[steps:]

    return goes_on


def without_the_advisory_lock(program: Runtime) -> None:
    """It always believes that nobody else pushes."""
    database = program.outbox._database
    statement = database.sql["try_push_lock"]
    assert ADVISORY in statement
    database.sql = {**database.sql, "try_push_lock": statement.replace(ADVISORY, "true")}


@pytest.mark.scenario(14, "two forced to push at once, without the advisory lock that keeps them apart")
@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
async def test_14_both_forced_active(stores: Stores, oracle: Oracle, scenario: Scenario, user: User) -> None:
    """Each waits for the other's row of the store's identity: neither takes the other for a database that went back."""
    pushed, waited = Counter[int](), 0
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(plain_client(stores.database_url))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for number in range(2):
            program = await stack.enter_async_context(running(stores.database_url, stores.neo4j_uri))
            without_the_advisory_lock(program)
            tasks.start_soon(push_on, program, pushed, number)
        for number in range(MOST_ROUNDS):
            await write_of_each_kind(user, f"round {number}")
            waited += await client.fetchval(WAITS_FOR_THE_ROW)
            if min(pushed[0], pushed[1], waited) > 0 and number >= ROUNDS:
                break
        compared, seconds = await oracle.until_whole()
        tasks.cancel_scope.cancel()
    scenario.note(engaged=min(pushed[0], pushed[1], waited) > 0, compared=compared, seconds=seconds)


@pytest.mark.slow
@pytest.mark.scenario(14, "two past all locks at once, both going on, until the program stops and a person decides")
@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
async def test_14_both_past_all_locks(stores: Stores, oracle: Oracle, scenario: Scenario, user: User) -> None:
    """Without the row lock too, one can look like a copy of the database that pushes: nothing is lost even so."""
    active = Failpoint(both_active=True)
    async with worker(stores, failpoint=active) as first, worker(stores, failpoint=active) as second:
        for number in range(MOST_ROUNDS):
            await write_of_each_kind(user, f"round {number}")
            compared = await oracle.compare()
            assert not compared.lost, compared
            if min(pushes(first), pushes(second)) > 0:
                break
        engaged = min(pushes(first), pushes(second)) > 0
    async with running(stores.database_url, stores.neo4j_uri) as program:
        try:
            await program.pusher.push_once()
        except StoreRolledBack:
            await program.verify(repair=True, prefer="local", dry_run=False)
        await program.sync(timeout=SOON, embed=False)
    compared, seconds = await oracle.until_whole()
    scenario.note(engaged=engaged, compared=compared, seconds=seconds)
