"""Own servers come back on the same address with the same data, whatever was done to them."""

from pathlib import Path

import anyio
import asyncpg
import pytest
from neo4j import AsyncGraphDatabase
from neo4j.exceptions import AuthError

from tests.faults.servers import OwnNeo4j, OwnPostgres, filled, own_neo4j, own_postgres, small_disk
from tests.integration.stores import graph, plain_client
from tests.services import neo4j, postgres


async def test_a_killed_postgres_comes_back_with_what_it_had_acknowledged(own_postgres: OwnPostgres) -> None:
    """On the same port; while it is away, nobody answers there."""
    url = own_postgres.url
    await postgres.execute(url, "CREATE TABLE kept AS SELECT 1 AS one")
    await own_postgres.kill_9()
    assert not await postgres.answers(url)
    await own_postgres.start()
    assert own_postgres.url == url
    await postgres.execute(url, "DROP TABLE kept")


async def test_a_killed_neo4j_comes_back_with_what_it_had_acknowledged(own_neo4j: OwnNeo4j) -> None:
    """As PostgreSQL does."""
    uri = own_neo4j.url
    await graph(uri, "CREATE (:Kept)")
    await own_neo4j.kill_9()
    assert not await neo4j.answers(uri)
    await own_neo4j.start()
    assert await graph(uri, "MATCH (k:Kept) RETURN count(k)") == [1]


async def test_a_frozen_postgres_is_silent_until_it_thaws(own_postgres: OwnPostgres) -> None:
    """A connection that it has hears nothing, and everything afterwards."""
    async with plain_client(own_postgres.url) as client:
        own_postgres.freeze()
        with pytest.raises(TimeoutError):
            await client.fetchval("SELECT 1", timeout=0.2)
        own_postgres.thaw()
        with anyio.fail_after(20):
            assert await client.fetchval("SELECT 2") == 2


async def test_a_postgres_may_ask_for_a_password(another_home: Path) -> None:
    """Its URL has it; the one before is refused."""
    async with own_postgres(another_home) as server:
        await server.set_password("first")
        first = server.url
        assert await postgres.answers(first)
        await server.set_password("second")
        with pytest.raises(asyncpg.InvalidPasswordError):
            await postgres.execute(first, "SELECT 1")
        assert await postgres.answers(server.url)


async def test_a_postgres_on_a_full_disk_says_so_and_goes_on(another_home: Path) -> None:
    """Only what needs room fails, and only as long as there is none."""
    much = "INSERT INTO much SELECT repeat('x', 1000) FROM generate_series(1, 5000)"
    try:
        with small_disk(another_home / "data", 128) as disk:
            async with own_postgres(another_home, log_aside=True) as server:
                await postgres.execute(server.url, "CREATE TABLE much (content text)")
                with filled(disk):
                    with pytest.raises(asyncpg.DiskFullError):
                        await postgres.execute(server.url, much)
                    assert await postgres.answers(server.url)
                await postgres.execute(server.url, much)
    except PermissionError as refused:
        pytest.skip(str(refused))


@pytest.mark.slow
async def test_a_neo4j_may_ask_for_a_password(another_home: Path) -> None:
    """Its `auth` has it, also after a restart; the one before is refused."""
    async with own_neo4j(another_home, password="first-password") as server:  # noqa: S106 - of this test's server
        first = server.auth
        assert first is not None
        await server.set_password("second-password")
        await server.restart()
        async with AsyncGraphDatabase.driver(server.url, auth=server.auth) as driver:
            await driver.verify_authentication()
        async with AsyncGraphDatabase.driver(server.url, auth=first) as driver:
            with pytest.raises(AuthError):
                await driver.verify_connectivity()
