"""Connections to a peer that is lost are given up in time, and none of them is used again."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import anyio
import asyncpg
import pytest
from anyio.abc import SocketAttribute, SocketStream
from neo4j.exceptions import Neo4jError
from pydantic import SecretStr

from dionysus_sync_mcp.adapters.neo4j import RemoteStore, writer
from dionysus_sync_mcp.adapters.postgres import line
from dionysus_sync_mcp.adapters.postgres import outbox as outbox_module
from dionysus_sync_mcp.adapters.postgres.database import Database
from dionysus_sync_mcp.adapters.postgres.outbox import PostgresOutbox
from dionysus_sync_mcp.domain.errors import AccessRefused, TimedOut, Unavailable
from dionysus_sync_mcp.engine.ports.push import RemoteBatch, Settlement
from tests.contract.remote_bench import LAPTOP, change, version
from tests.faults.proxy import Proxy, Slowness, open_proxy
from tests.integration.roles import role_of
from tests.integration.stores import Client, plain_client, uid
from tests.services.local_store import opened
from tests.services.postgres import execute
from tests.services.waiting import until

DIMENSIONS = 768
SECONDS = 0.5
# On a busy machine; what hangs would hang for hours.
SOON = 15.0
SLEEP = "SELECT pg_sleep(60)"
GIVEN_UP = "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND query = $1"


@pytest.fixture
async def postgres_proxy(migrated_database_url: str) -> AsyncIterator[Proxy]:
    """The way to the local store."""
    async with open_proxy(migrated_database_url) as proxy:
        yield proxy


@pytest.fixture
async def client(migrated_database_url: str) -> AsyncIterator[Client]:
    """Somebody else at the local store."""
    async with plain_client(migrated_database_url) as client:
        yield client


@pytest.fixture
async def database(migrated_database_url: str, postgres_proxy: Proxy) -> AsyncIterator[Database]:
    """Our access to the local store, by that way."""
    async with opened(postgres_proxy.through(migrated_database_url)) as database:
        yield database


@pytest.fixture
async def neo4j_proxy(empty_neo4j: str) -> AsyncIterator[Proxy]:
    """The way to the remote store."""
    async with open_proxy(empty_neo4j) as proxy:
        yield proxy


@pytest.fixture
async def remote(empty_neo4j: str, neo4j_proxy: Proxy) -> AsyncIterator[RemoteStore]:
    """Our access to the remote store, by that way, with short deadlines."""
    uri = neo4j_proxy.through(empty_neo4j)

    async def address() -> str:
        return uri

    store = RemoteStore(address, "neo4j", SecretStr(""), "neo4j", DIMENSIONS, "english", look_seconds=2.0)
    await store.prepare()
    yield store
    await store.close()


async def one(database: Database, seconds: float = SECONDS) -> int:
    """A value from the local store."""
    async with database.connection(seconds, seconds) as connection:
        return int(await connection.fetchval("SELECT 1"))


async def fill(database: Database, count: int) -> None:
    """Put as many connections into the pool."""
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(sleep_a_little, database)


async def sleep_a_little(database: Database) -> None:
    """Use a connection for so long that others need one of their own."""
    async with database.connection(SOON) as connection:
        await connection.execute("SELECT pg_sleep(0.3)")


@pytest.mark.promise("P9")
async def test_one_hung_statement_takes_all_idle_connections_out_of_the_pool(
    database: Database, postgres_proxy: Proxy
) -> None:
    """Else each of them would hang until its deadline, one after the other."""
    await fill(database, 4)
    await postgres_proxy.blackhole()
    assert postgres_proxy.engaged["blackhole"] >= 4
    with pytest.raises(Unavailable) as caught:
        await one(database)
    assert not isinstance(caught.value, TimedOut)
    await postgres_proxy.heal()
    assert await one(database, SOON) == 1


@pytest.mark.promise("P9")
async def test_a_claim_that_hangs_ends_in_time_and_its_lock_with_it(
    migrated_database_url: str, database: Database, postgres_proxy: Proxy
) -> None:
    """The server does not know that the peer is lost, and would keep the lock; the next connection has it ended."""
    outbox = PostgresOutbox(database)
    async with outbox.claim(10, 10_000, SOON):
        pass
    started = time.monotonic()
    with pytest.raises(TimedOut):
        await lost_within(outbox, postgres_proxy)
    assert time.monotonic() - started < SOON / 3, "neither the rollback nor the release waits for the peer"
    assert postgres_proxy.engaged["blackhole"]
    async with opened(migrated_database_url) as other, PostgresOutbox(other).claim(1, 1, SOON) as held:
        assert held is None, "the lost connection still has the lock"
    await postgres_proxy.heal()
    with anyio.fail_after(SOON):
        while True:
            async with outbox.claim(10, 10_000, SOON) as claim:
                if claim is not None:
                    break


@pytest.mark.promise("P9")
@pytest.mark.parametrize("after", [True, False], ids=["a remote write", "nothing"])
async def test_a_lost_server_is_noticed_as_soon_by_a_claim_of_a_slow_pace(
    database: Database, postgres_proxy: Proxy, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """The time that many rows need is not given to a statement that waits for a sign of life."""
    monkeypatch.setattr(outbox_module, "PATIENCE", SECONDS)
    assert await one(database, SOON) == 1
    with pytest.raises(Unavailable), anyio.fail_after(SOON):
        await lost_with_a_settlement(PostgresOutbox(database), postgres_proxy, after=after)
    assert postgres_proxy.engaged["blackhole"]


async def lost_with_a_settlement(outbox: PostgresOutbox, proxy: Proxy, *, after: bool) -> None:
    """A claim that may take ten minutes, whose connection is lost before it or before it is settled."""
    if not after:
        await proxy.blackhole()
    async with outbox.claim(10, 10_000, 600.0) as claim:
        assert claim is not None
        await proxy.blackhole()
        await claim.settle(Settlement(acknowledged=(), lineage=str(uid(1))))


async def lost_within(outbox: PostgresOutbox, proxy: Proxy) -> None:
    """A claim whose connection is lost while it is held."""
    async with outbox.claim(10, 10_000, SECONDS) as claim:
        assert claim is not None
        await proxy.blackhole()
        await claim.live_versions([])


@pytest.mark.promise("P9")
async def test_a_claim_that_the_server_has_ended_for_being_idle_is_to_be_smaller(
    migrated_database_url: str, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for an outage, it would come back as long for ever."""
    monkeypatch.setattr(line, "IDLE_DEADLINES", 0.1)
    async with opened(migrated_database_url) as database:
        with pytest.raises(TimedOut, match="while the remote store was written"):
            await claimed_until_ended(PostgresOutbox(database), client)
        assert await one(database, SOON) == 1


async def claimed_until_ended(outbox: PostgresOutbox, client: Client) -> None:
    """A claim that is held until the server has ended it."""
    async with outbox.claim(10, 10_000, SOON) as claim:
        assert claim is not None
        pid = claim._connection.pid

        async def gone() -> bool:
            return not await client.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", pid)

        await until(gone, what="the server has ended it", seconds=SOON)
        await until(closed(claim._connection), what="its end has arrived", seconds=SOON)
        await claim.has_entry(str(uid(1)))


@pytest.mark.promise("P9")
@pytest.mark.parametrize("when", ["during a statement", "between two"])
async def test_what_the_server_says_when_it_ends_a_connection_is_what_is_told(
    migrated_database_url: str, client: Client, when: str
) -> None:
    """And the idle connections beside it are given up with it, since the server may have been started anew."""
    async with opened(migrated_database_url) as database:
        await fill(database, 2)
        said = "administrator command" if when == "during a statement" else "the connection was closed"
        with pytest.raises(Unavailable, match=said):
            await ended(database, client, when)
        assert len(database._left_behind) == 1
        assert await one(database, SOON) == 1
        assert not database._left_behind


async def ended(database: Database, client: Client, when: str) -> None:
    """A use of a connection that the server ends."""
    async with database.transaction(patience=SOON) as connection:
        if when == "between two":
            await client.fetchval("SELECT pg_terminate_backend($1, 10000)", connection.pid)
            await until(closed(connection), what="its end has arrived", seconds=SOON)
        await connection.fetchval("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(60)")


def closed(connection: line.Line) -> Callable[[], Awaitable[bool]]:
    """Whether it is, for polling."""

    async def asked() -> bool:
        return connection.closed()

    return asked


@pytest.mark.promise("P9")
async def test_a_process_of_somebody_else_that_got_the_number_of_a_lost_one_is_left_alone(
    migrated_database_url: str,
) -> None:
    """A server that was started anew gives the numbers again; so may one that runs for long."""
    async with opened(migrated_database_url) as database, opened(migrated_database_url) as other:
        async with other.connection(SOON, SOON) as theirs:
            database._left_behind.add(theirs.pid)
            assert await one(database, SOON) == 1
            assert await theirs.fetchval("SELECT 1") == 1
        async with database.connection(SOON, SOON) as own:
            database._left_behind.add(own.pid)
            assert await one(database, SOON) == 1
            await until(closed(own), what="a lost one of its own is ended", seconds=SOON)


@pytest.mark.promise("P9")
async def test_a_role_that_may_not_end_its_lost_connections_works_on(
    migrated_database_url: str, client: Client
) -> None:
    """They end by themselves, when the server notices."""
    await client.execute("REVOKE EXECUTE ON FUNCTION pg_terminate_backend(integer, bigint) FROM PUBLIC")
    async with role_of(client, migrated_database_url) as url, opened(url) as database:
        assert await one(database, SOON) == 1
        database._left_behind.add(1)
        assert await one(database, SOON) == 1
        assert not database._left_behind


async def sleep_long(database: Database, *before: str, patience: float = SECONDS) -> None:
    """A statement that the server is at for a minute, after others."""
    async with (
        database.transaction(patience=patience) if before else database.connection(patience=patience) as connection
    ):
        for statement in before:
            await connection.fetchval(statement)
        await connection.execute(SLEEP)


@pytest.mark.promise("P9")
async def test_a_cancelled_statement_does_not_wait_for_a_lost_peer(database: Database, postgres_proxy: Proxy) -> None:
    """A tool that must answer in time does."""
    assert await one(database, SOON) == 1
    await postgres_proxy.blackhole()
    started = time.monotonic()
    with anyio.move_on_after(SECONDS) as scope:
        await sleep_long(database, "SELECT 1", patience=SOON)
    assert scope.cancelled_caught
    assert time.monotonic() - started < 4


@pytest.mark.promise("P9")
async def test_a_cancellation_that_is_over_is_not_raised_again(migrated_database_url: str) -> None:
    """What failed beside a statement, and had it cancelled, is what the caller gets to know."""
    async with opened(migrated_database_url) as database:
        with pytest.raises(Unavailable, match="the other store is away"):
            await cancelled_within(database)
        assert await one(database, SOON) == 1


async def cancelled_within(database: Database) -> None:
    """A transaction in which a statement is cancelled, and which then fails for another reason."""
    async with database.transaction(patience=SOON) as connection:
        with anyio.move_on_after(SECONDS):
            await connection.execute(SLEEP)
        with pytest.raises(Unavailable, match="given up"):
            await connection.execute("SELECT 1")
        raise Unavailable("the other store is away")


@pytest.mark.promise("P9")
async def test_a_slow_statement_is_told_from_a_server_that_is_away(migrated_database_url: str) -> None:
    """Only of a server that has answered it is known that a smaller piece of work may help."""
    async with opened(migrated_database_url) as database:
        with pytest.raises(Unavailable) as away:
            await sleep_long(database)
        with pytest.raises(TimedOut):
            await sleep_long(database, "SELECT 1")
        assert type(away.value) is Unavailable

        async def given_up() -> bool:
            async with database.connection(SOON, SOON) as connection:
                return bool(await connection.fetchval(GIVEN_UP, SLEEP))

        await until(given_up, what="what nobody waits for is ended", seconds=SOON)


@pytest.mark.promise("P9")
async def test_a_slow_statement_does_not_cost_the_connections_that_are_answered(migrated_database_url: str) -> None:
    """The server is there; and where the line is slow, connecting anew takes longest of all."""
    beside: list[int] = []

    async def use(database: Database) -> None:
        async with database.connection(SOON, SOON) as connection:
            await connection.execute("SELECT 1")
            beside.append(connection.pid)

    async with opened(migrated_database_url) as database:
        async with database.connection(SOON, 2.0) as slow, anyio.create_task_group() as tasks:
            tasks.start_soon(use, database)
            with pytest.raises(TimeoutError):
                await slow.execute(SLEEP)
        async with database.connection(SOON, SOON) as connection:
            assert [connection.pid] == beside


@pytest.mark.promise("P9")
async def test_a_connection_is_made_in_few_round_trips(database: Database, postgres_proxy: Proxy) -> None:
    """At 300 ms each way there is time for eight of them until the server counts as away."""
    assert (await database.health(SOON)).up  # which looks at what the role may do, too
    await postgres_proxy.slow(Slowness(latency=0.001))
    assert (await database.health(SOON)).up
    looked = postgres_proxy.engaged["slow"]
    assert looked <= 10, "pieces of data, two for a round trip: for TLS or not, the greeting, and one statement"
    database._left_behind.add(1)
    assert await one(database, SOON) == 1
    assert postgres_proxy.engaged["slow"] - looked <= 20, "and two more statements, and the reset"


@pytest.mark.promise("P9")
async def test_health_tells_the_server_from_a_dead_pool(database: Database, postgres_proxy: Proxy) -> None:
    """It looks over a connection of its own."""
    assert await one(database, SOON) == 1
    await postgres_proxy.blackhole()
    dead = await database.health(SECONDS)
    assert (dead.up, dead.error) == (False, "no answer within 0.5 s")
    await postgres_proxy.heal()
    assert (await database.health(SOON)).up


@pytest.mark.promise("P9")
async def test_settings_of_the_database_stay_overridden_when_a_connection_is_used_again(
    migrated_database_url: str,
) -> None:
    """`transaction_timeout` too, which older servers do not know and so cannot be told when connecting."""
    async with opened(migrated_database_url) as database, database.connection() as connection:
        name = await connection.fetchval("SELECT current_database()")
        new = bool(await connection.fetchval("SELECT current_setting('transaction_timeout', true) IS NOT NULL"))
    settings = ["statement_timeout", *(["transaction_timeout"] if new else [])]
    for setting in settings:
        await execute(migrated_database_url, f'ALTER DATABASE "{name}" SET {setting} = 77')
    async with opened(migrated_database_url) as database:
        for _ in range(2):
            async with database.connection() as connection:
                found = [await connection.fetchval("SELECT current_setting($1)", s) for s in settings]
                assert found == ["0"] * len(settings)
    plain = await asyncpg.connect(migrated_database_url)
    assert await plain.fetchval("SELECT current_setting('statement_timeout')") == "77ms"
    await plain.close()


@pytest.mark.promise("P9")
async def test_a_remote_store_that_is_lost_and_found_again_is_used_at_once(
    remote: RemoteStore, neo4j_proxy: Proxy
) -> None:
    """The call that hung ends in time; the next one takes none of the old connections."""
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(remote.counts)
    await neo4j_proxy.blackhole()
    assert neo4j_proxy.engaged["blackhole"] >= 2
    started = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await remote.write(RemoteBatch(LAPTOP, [change(version(1))], seconds=SECONDS))
    assert type(caught.value) is Unavailable
    assert time.monotonic() - started < 4
    assert not (await remote.health(SECONDS)).up
    await neo4j_proxy.heal()
    assert (await remote.health(SOON)).up
    await remote.write(RemoteBatch(LAPTOP, [change(version(1))], seconds=SOON))
    assert (await remote.counts()).live == 1


@pytest.mark.promise("P9")
async def test_a_batch_that_a_narrow_link_does_not_carry_in_time_is_told_from_an_outage(
    remote: RemoteStore, neo4j_proxy: Proxy
) -> None:
    """A smaller one, or more time, gets through."""
    batch = RemoteBatch(LAPTOP, [change(version(1, content="word " * 20_000))], seconds=SECONDS)
    await remote.counts()
    await neo4j_proxy.slow(Slowness(bytes_per_second=50_000))
    with pytest.raises(TimedOut):
        await remote.write(batch)
    assert neo4j_proxy.engaged["slow"]
    small = RemoteBatch(LAPTOP, [change(version(1, content="word"))], seconds=SOON)
    assert [o.outcome for o in await remote.write(small)] == ["created"]


@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    "frame", [b"\xff", b"\xb1\x70\x90", b"\xb1\x70\x81\xff", b"\xb0\x01", b"\xb1\x70\x8f"], ids=bytes.hex
)
async def test_a_server_that_talks_nonsense_is_away(frame: bytes) -> None:
    """Whatever the driver makes of it; a look tells so, and what is done on it is tried again."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra_attributes[SocketAttribute.local_port]()

    async def address() -> str:
        return f"bolt://127.0.0.1:{port}"

    async def answer(stream: SocketStream) -> None:
        async with stream:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await stream.receive(20)
                await stream.send(b"\x00\x00\x04\x05")
                await stream.receive()
                await stream.send(len(frame).to_bytes(2, "big") + frame + b"\x00\x00")
                await stream.receive()

    store = RemoteStore(address, "neo4j", SecretStr(""), "neo4j", DIMENSIONS, "english")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        assert (await store.health(SOON)).error == "the answer cannot be read"
        with pytest.raises(Unavailable, match="cannot be read"):
            await store.prepare()
        await store.close()
        tasks.cancel_scope.cancel()


@pytest.mark.promise("P9")
async def test_a_wrong_password_is_not_sent_again_and_again(
    remote: RemoteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within ten seconds the process as a whole asks once: a server locks out whoever asks more often."""
    asked = []

    async def refuse(*_: object) -> None:
        asked.append("once")
        raise Neo4jError._hydrate_neo4j(code="Neo.ClientError.Security.Unauthorized", message="wrong password")

    with monkeypatch.context() as fault:
        fault.setattr(remote._connection, "_value_of", refuse)
        for _ in range(5):
            with pytest.raises(AccessRefused, match="wrong password"):
                await remote.counts()
        with pytest.raises(AccessRefused):
            await remote.write(RemoteBatch(LAPTOP, [change(version(1))]))
        health = await remote.health(SOON)
        assert (health.refused, len(asked)) == (True, 1)
    error, _ = remote._connection._refusal or pytest.fail("no refusal was noted")
    remote._connection._refusal = error, time.monotonic()
    assert (await remote.health(SOON)).up
    assert (await remote.counts()).live == 0, "once a look has got in, nobody waits any longer"


@pytest.mark.promise("P9")
async def test_a_look_at_the_schema_is_given_up_in_time(
    remote: RemoteStore, neo4j_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage the schema is looked at under the push lock, which a lost peer must not keep."""
    monkeypatch.setattr(writer, "SCHEMA_SECONDS", SECONDS)
    await neo4j_proxy.blackhole()
    started = time.monotonic()
    with pytest.raises(Unavailable):
        await remote.prepare()
    assert time.monotonic() - started < SOON
    assert neo4j_proxy.engaged["blackhole"]
    await neo4j_proxy.heal()
    monkeypatch.undo()
    await remote.prepare()
