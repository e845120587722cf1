"""What was written last is what stands, whatever the clocks say and whenever transactions are committed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

import anyio
import asyncpg
import pytest
from pydantic import BaseModel

from dionysus_sync_mcp.engine.reports import StatusReport
from dionysus_sync_mcp.runtime import Runtime, utc_now
from tests.faults.oracle import Oracle, open_oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Stores, drained, waiting
from tests.faults.writes import UPSERT, User, Write
from tests.integration.stores import INSERT, Client, graph, history, node, plain_client, queue, uid
from tests.services import postgres
from tests.services.local_store import running
from tests.services.waiting import until

SOON = 60.0
HOUR = timedelta(hours=1)
NO_SHIFT = timedelta(0)
UPDATE = "UPDATE memories SET content = $2 WHERE id = $1"
INSERT_OF = (
    "INSERT INTO memories (id, content, created_at, updated_at)"
    " VALUES ($1, $2, $3::text::timestamptz, $3::text::timestamptz)"
)
LAST_SEQ = "SELECT max(seq) FROM dionysus_sync.sync_queue"
CAPTURED = "SELECT count(*) FROM dionysus_sync.sync_queue WHERE entity = 'memory'"
WRITERS = 4
STORM = 25  # upserts of each writer
STORM_MEMORIES = 3
# Whatever asks this database for the time by a function's name gets another one. It is made before the bookkeeping is,
# so that the defaults of its columns ask for it too. CURRENT_TIMESTAMP, which is no function, stays as it is.
SHIFTABLE_CLOCK = """
SET allow_system_table_mods = on;
CREATE TABLE public.clock (shift interval NOT NULL);
INSERT INTO public.clock VALUES ('0');
GRANT SELECT ON public.clock TO PUBLIC;
ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO true_clock_timestamp;
ALTER FUNCTION pg_catalog.now() RENAME TO true_now;
CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
    AS 'SELECT pg_catalog.true_clock_timestamp() + (SELECT shift FROM public.clock)';
CREATE FUNCTION pg_catalog.now() RETURNS timestamptz LANGUAGE sql STABLE
    AS 'SELECT pg_catalog.true_now() + (SELECT shift FROM public.clock)';
"""
AHEAD = "SELECT round(extract(epoch FROM clock_timestamp() - true_clock_timestamp()))::int"


@pytest.fixture
async def client(stores: Stores) -> AsyncIterator[Client]:
    """A user's own connection."""
    async with plain_client(stores.database_url) as connection:
        yield connection


@pytest.fixture
async def other(stores: Stores) -> AsyncIterator[Client]:
    """Another user's connection."""
    async with plain_client(stores.database_url) as connection:
        yield connection


@pytest.fixture
async def program(stores: Stores) -> AsyncIterator[Runtime]:
    """The program without its background loops: a test says when it pushes."""
    async with running(stores.database_url, stores.neo4j_uri) as runtime:
        yield runtime


@pytest.fixture
async def worker(stores: Stores) -> AsyncIterator[Runtime]:
    """The program with its background loops."""
    async with running(stores.database_url, stores.neo4j_uri, worker=True) as runtime:
        yield runtime


async def push(program: Runtime) -> None:
    """Push until nothing is due."""
    while (await program.pusher.push_once()).pushed:
        pass


@pytest.mark.scenario(16, "a slow transaction commits after faster later ones")
@pytest.mark.promise("P1")
@pytest.mark.usefixtures("worker")
async def test_16_a_slow_transaction_commits_after_faster_later_ones(
    stores: Stores, oracle: Oracle, scenario: Scenario, client: Client
) -> None:
    """Its entries have lower numbers than those that were pushed while it was open, and are not skipped."""
    await oracle.insert(uid(100), "to be updated")
    await oracle.insert(uid(101), "to be deleted")
    async with client.transaction():
        await client.execute(INSERT, uid(1), "slow")
        await client.execute(UPDATE, uid(100), "slowly updated")
        await client.execute("DELETE FROM memories WHERE id = $1", uid(101))
        slow = await client.fetchval(LAST_SEQ)
        for number in range(2, 12):
            await oracle.insert(uid(number), f"fast {number}")
            await oracle.update(uid(number), f"fast again {number}")
        await drained(stores.database_url)
        pushed = await graph(stores.neo4j_uri, "MATCH (m:Memory) RETURN m.id")
        later = await client.fetchval("SELECT nextval('dionysus_sync.sync_queue_seq_seq')")
    for id_, state in ((uid(1), "slow"), (uid(100), "slowly updated"), (uid(101), None)):
        oracle.expect(id_, state)
    compared, seconds = await oracle.until_whole()
    passed_over = str(uid(11)) in pushed and str(uid(1)) not in pushed and slow + 20 < later
    scenario.note(engaged=passed_over, compared=compared, seconds=seconds)


@pytest.mark.scenario(17, "an older transaction writes the row last")
@pytest.mark.promise("P1")
@pytest.mark.parametrize("pushed_between", [True, False])
async def test_17_an_older_transaction_writes_the_row_last(
    oracle: Oracle, scenario: Scenario, program: Runtime, client: Client, other: Client, *, pushed_between: bool
) -> None:
    """Whether what the younger one wrote was pushed by then or is in the same batch: the last content stands."""
    at_now = "UPDATE memories SET content = $2, updated_at = now() WHERE id = $1 RETURNING now()"
    await oracle.insert(uid(1), "base")
    async with client.transaction():
        await client.execute("SELECT 1")
        younger = await other.fetchval(at_now, uid(1), "by the younger one")
        oracle.expect(uid(1), "by the younger one")
        if pushed_between:
            await push(program)
        older = await client.fetchval(at_now, uid(1), "by the older one, last")
    oracle.expect(uid(1), "by the older one, last")
    await push(program)
    compared, seconds = await oracle.until_whole()
    scenario.note(engaged=older < younger, compared=compared, seconds=seconds)


@asynccontextmanager
async def shiftable_store(server_url: str) -> AsyncIterator[tuple[str, Client]]:
    """A fresh local store whose database can be told the time, and a connection to it."""
    async with postgres.template_database(server_url, postgres.leave_as_is) as url:
        await postgres.execute(url, SHIFTABLE_CLOCK)
        await postgres.install_local_store(url)
        async with plain_client(url) as client:
            yield url, client


async def set_clock(client: Client, shift: timedelta) -> bool:
    """The database's clock is ahead by so much; whether it is."""
    await client.execute("UPDATE public.clock SET shift = $1", shift)
    return bool(await client.fetchval(AHEAD) == shift.total_seconds())


async def everything_once(oracle: Oracle, first: int, word: str) -> None:
    """Changes of each kind, to memories of this number on that are there already, or new."""
    kept, gone, back, new = (uid(first + number) for number in range(4))
    for id_ in (kept, gone, back):
        await (oracle.update if id_ in oracle.live else oracle.insert)(id_, f"{word}: {id_.int}")
    await oracle.delete(gone)
    await oracle.delete(back)
    await oracle.insert(back, f"{word}: inserted again")
    if new in oracle.live:
        await oracle.delete(new)
    await oracle.insert(new, f"{word}: new")


def numbers_in(value: object) -> list[float]:
    """Every number that a report holds."""
    if isinstance(value, BaseModel):
        return numbers_in(value.model_dump())
    if isinstance(value, dict):
        return [number for one in value.values() for number in numbers_in(one)]
    if isinstance(value, list):
        return [number for one in value for number in numbers_in(one)]
    return [float(value)] if isinstance(value, int | float) else []


async def status_at(program: Runtime, shift: timedelta) -> StatusReport:
    """The status as a program shows it whose own clock is ahead by so much."""
    return await program._status.read(utc_now() + shift, 5.0, None, None)


@pytest.mark.scenario(18, "the local store's clock an hour ahead, an hour behind, and jumping back (not Neo4j's)")
@pytest.mark.promise("P3")
async def test_18_the_local_clock_jumps(postgres_url: str, empty_neo4j: str, scenario: Scenario) -> None:
    """The version decides; a delete after the jump is newer than what was written before; no age is negative."""
    async with (
        shiftable_store(postgres_url) as (url, client),
        open_oracle(url, empty_neo4j) as oracle,
        running(url, empty_neo4j) as program,
    ):
        for shift in (HOUR, NO_SHIFT, -HOUR, HOUR, -HOUR):
            engaged = await set_clock(client, shift)
            await everything_once(oracle, 1, f"{len(oracle.live)} at {shift}")
            status = [await status_at(program, ahead) for ahead in (NO_SHIFT, HOUR, -HOUR)]
            assert min(numbers_in(status)) >= 0
            assert all(report.exposure.unsynced for report in status)
            await push(program)
            compared, seconds = await oracle.until_whole()
            scenario.note(engaged=engaged, compared=compared, seconds=seconds)
            assert min(numbers_in(await status_at(program, -2 * HOUR))) >= 0


@pytest.mark.scenario(18, "the clock jumps back an hour while an entry waits to be tried again")
@pytest.mark.promise("P1")
async def test_18_the_clock_jumps_back_while_an_entry_waits(
    postgres_url: str, empty_neo4j: str, scenario: Scenario
) -> None:
    """An entry that waits a second for a row that somebody holds does not wait an hour then."""
    async with (
        shiftable_store(postgres_url) as (url, client),
        open_oracle(url, empty_neo4j) as oracle,
        running(url, empty_neo4j) as program,
    ):
        await set_clock(client, HOUR)
        await oracle.insert(uid(1), "first")
        await oracle.update(uid(1), "second")
        await push(program)
        await oracle.delete(uid(1))
        await push(program)
        await oracle.insert(uid(1), "inserted again")
        async with plain_client(url) as holder, holder.transaction():
            await holder.execute("SELECT FROM memories FOR UPDATE")
            await push(program)
            waits = await client.fetchval(
                "SELECT count(*) FROM dionysus_sync.sync_queue WHERE next_retry_at > clock_timestamp()"
            )
            engaged = await set_clock(client, -HOUR)

        async def pushed() -> bool:
            await push(program)
            return await waiting(url) == (0, 0)

        await until(pushed, what="the entry that waited is pushed", seconds=SOON)
        compared, seconds = await oracle.until_whole()
        scenario.note(engaged=engaged and waits == 1, compared=compared, seconds=seconds)


@pytest.mark.scenario(18, "rows of the user's own with times an hour ahead and behind, and at the ends of time")
@pytest.mark.promise("P1")
@pytest.mark.usefixtures("worker")
async def test_18_times_of_the_users_own(oracle: Oracle, scenario: Scenario, client: Client) -> None:
    """Of rows of one memory that follow each other, the last one stands, whatever time it says it is of."""
    now = utc_now()
    times = [str(now + HOUR), str(now - HOUR), "infinity", "-infinity", "4713-01-01 BC"]
    for number, time in enumerate(times, start=1):
        await client.execute(INSERT_OF, uid(1), f"of {time}", time)
        oracle.expect(uid(1), f"of {time}")
        await client.execute(UPDATE, uid(1), f"updated after {time}")
        oracle.expect(uid(1), f"updated after {time}")
        if number < len(times):
            await oracle.delete(uid(1))
    compared, seconds = await oracle.until_whole()
    held = await client.fetchval("SELECT created_at::text FROM memories")
    scenario.note(engaged=held.endswith("BC"), compared=compared, seconds=seconds)


@pytest.mark.scenario(32, "delete and insert of one id in a transaction, changes of primary keys")
@pytest.mark.promise("P1")
@pytest.mark.parametrize("pushed_between", [True, False])
async def test_32_delete_insert_and_other_primary_keys(
    oracle: Oracle, scenario: Scenario, program: Runtime, client: Client, other: Client, *, pushed_between: bool
) -> None:
    """The net state arrives, whether each transaction is pushed by itself or all at once."""
    user = User(client, other, oracle)

    def write(kind: Any, number: int, becomes: int = 0) -> Write:  # noqa: ANN401 - one of the kinds of writes
        return Write(kind, number, becomes, f"{kind} {number}")

    transactions = [
        [write("put", 1), write("put", 2), write("put", 3)],
        [write("delete", 1), write("put", 1)],
        [write("insert again", 2), write("put", 2), write("insert again", 2)],
        [write("rekey", 1, 4), write("put", 1)],
        [write("rekey", 2, 5), write("rekey", 3, 2), write("rekey", 5, 3)],
        [write("delete", 4), write("rekey", 1, 4), write("upsert", 1), write("delete", 1)],
        [write("insert again", 3), write("rekey", 3, 6), write("insert again", 6), write("upsert", 3)],
        [write("delete all", 1, 6), write("put all", 2, 5), write("rekey", 2, 1)],
    ]
    for transaction in transactions:
        await user.transact(transaction)
        if pushed_between:
            await push(program)
    engaged = await client.fetchval(CAPTURED) > len(transactions) or pushed_between
    await push(program)
    compared, seconds = await oracle.until_whole()
    scenario.note(engaged=engaged, compared=compared, seconds=seconds)


async def _storm(stores: Stores, writer: int, done: dict[UUID, dict[int, str]]) -> None:
    async with plain_client(stores.database_url) as client:
        for number in range(STORM):
            id_, content = uid(1 + number % STORM_MEMORIES), f"{writer}: {number}"
            version = await client.fetchval(f"{UPSERT} RETURNING sync_version", id_, content, None, [])
            done[id_][version] = content


@pytest.mark.scenario(32, "a storm of upserts of a few ids by several users")
@pytest.mark.promise("P1")
@pytest.mark.usefixtures("worker")
async def test_32_an_upsert_storm(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """The content of the highest version stands, and every other one is in the history."""
    done: dict[UUID, dict[int, str]] = {uid(1 + number): {} for number in range(STORM_MEMORIES)}
    async with anyio.create_task_group() as tasks:
        for writer in range(WRITERS):
            tasks.start_soon(_storm, stores, writer, done)
    for id_, contents in done.items():
        for version in sorted(contents):
            oracle.expect(id_, contents[version])
    compared, seconds = await oracle.until_whole()
    taken_in_turns = all(len({c.split(":")[0] for c in contents.values()}) > 1 for contents in done.values())
    scenario.note(engaged=taken_in_turns, compared=compared, seconds=seconds)


async def captured_inside(client: Client, number: int, word: str) -> bool:
    """Changes of each kind within a transaction; whether they were captured."""
    before = await client.fetchval(CAPTURED)
    await client.execute(INSERT, uid(number), f"{word}: never committed")
    await client.execute(UPDATE, uid(number), f"{word}: nor this")
    await client.execute(UPDATE, uid(1), f"{word}: nor this")
    await client.execute("DELETE FROM memories WHERE id = $1", uid(2))
    return bool(await client.fetchval(CAPTURED) == before + 4)


@pytest.mark.scenario(33, "rollback, rollback to a savepoint, an error, and a connection that ends")
@pytest.mark.promise("P7")
@pytest.mark.usefixtures("worker")
async def test_33_what_is_rolled_back_is_not_sent(
    stores: Stores, oracle: Oracle, scenario: Scenario, client: Client, other: Client
) -> None:
    """Nothing of it reaches the remote store, not even its history; what was committed beside it does."""
    for number in (1, 2):
        await oracle.insert(uid(number), f"stays {number}")
    captured = []
    with suppress(ZeroDivisionError):
        async with client.transaction():
            captured.append(await captured_inside(client, 10, "rollback"))
            raise ZeroDivisionError
    async with client.transaction():
        await client.execute(INSERT, uid(11), "committed around a savepoint")
        with suppress(ZeroDivisionError):
            async with client.transaction():
                captured.append(await captured_inside(client, 12, "savepoint"))
                raise ZeroDivisionError
        await client.execute(UPDATE, uid(11), "committed after a savepoint")
    oracle.expect(uid(11), "committed around a savepoint")
    oracle.expect(uid(11), "committed after a savepoint")
    with suppress(asyncpg.DivisionByZeroError):
        async with client.transaction():
            captured.append(await captured_inside(client, 13, "error"))
            await client.execute("SELECT 1 / 0")
    await other.execute("BEGIN")
    captured.append(await captured_inside(other, 14, "ended"))
    await client.execute("SELECT pg_terminate_backend($1, 10000)", other.get_server_pid())
    await oracle.insert(uid(20), "after all that")
    compared, seconds = await oracle.until_whole()
    scenario.note(engaged=all(captured) and len(captured) == 4, compared=compared, seconds=seconds)
    assert await queue(client) == []
    assert await graph(stores.neo4j_uri, "MATCH (v:MemoryVersion) WHERE v.content CONTAINS 'nor this' RETURN 1") == []
    assert [content for _, _, content in await history(stores.neo4j_uri, uid(1))] == ["stays 1"]
    assert (await node(stores.neo4j_uri, uid(2))).get("deleted_at") is None
