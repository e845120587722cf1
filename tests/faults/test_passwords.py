"""A wrong password, mended while the program runs: said loudly and once, never tried in a tight loop, never shown."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest
from neo4j.exceptions import Neo4jError

from dionysus_sync_mcp.adapters.neo4j.connection import LOCKED_OUT
from tests.faults.oracle import Oracle, open_oracle
from tests.faults.outage import SOON, Watched, watched_server, whole_again, writing
from tests.faults.plugin import Scenario
from tests.faults.program import Stores, drained
from tests.faults.proxy import Proxy, open_proxy
from tests.faults.servers import OwnNeo4j, OwnPostgres, own_neo4j, own_postgres
from tests.faults.writes import end_connections
from tests.integration.stores import plain_client
from tests.services import postgres
from tests.services.waiting import until

OURS, OTHER = "xyzzy-of-the-program", "plugh-of-somebody-else"
WRONG_SECONDS = 12.0
# PostgreSQL has no lock-out; each of the background loops tries by itself, first after seconds, then after a minute.
MOST_LOGINS_AT_POSTGRES = 60
# Neo4j locks a user out for 5 s after three.
MOST_LOGINS_AT_NEO4J = 6
SAID = 2


@asynccontextmanager
async def asking_postgres(home: Path, uri: str, folder: Path) -> AsyncIterator[tuple[OwnPostgres, Stores, str]]:
    """A PostgreSQL that asks for the program's password, the stores, and a URL that asks for none."""
    async with (
        own_postgres(home) as server,
        postgres.template_database(server.admin_url, postgres.install_local_store) as url,
    ):
        await server.set_password(OURS)
        database = url.split("?")[0].rsplit("/", 1)[1]
        yield server, Stores(postgres.with_database(server.url, database), uri, folder), url


@pytest.mark.slow
@pytest.mark.parametrize("running", [True, False])
@pytest.mark.scenario(11, "PostgreSQL has another password for 12 s")
@pytest.mark.promise("P9")
@pytest.mark.promise("P5")
async def test_11_wrong_password_of_postgres(
    running: bool, another_home: Path, empty_neo4j: str, tmp_path: Path, scenario: Scenario
) -> None:
    """Changed while the program runs, or wrong at its start, and then set to what the program has."""
    async with (
        asking_postgres(another_home, empty_neo4j, tmp_path) as (server, stores, admin_url),
        open_oracle(admin_url, empty_neo4j) as oracle,
        open_proxy(stores.database_url) as door,
    ):
        if not running:
            await server.set_password(OTHER)
        async with watched_server(stores.through(local=door)) as watched:
            if running:
                await settle(oracle, admin_url)
                await server.set_password(OTHER)
                async with plain_client(admin_url) as client:
                    assert await end_connections(client) > 0
            logins = await refused(watched, "postgresql", oracle, door)
            await server.set_password(OURS)
            await whole_again(oracle, scenario, engaged=0 < logins <= MOST_LOGINS_AT_POSTGRES)
            await mended(watched, "postgresql")


@pytest.mark.slow
@pytest.mark.scenario(11, "Neo4j has another password for 12 s")
@pytest.mark.promise("P9")
@pytest.mark.promise("P5")
async def test_11_wrong_password_of_neo4j(
    another_home: Path, migrated_database_url: str, tmp_path: Path, scenario: Scenario
) -> None:
    """Changed while the program runs; nobody is locked out when it is right again."""
    async with (
        own_neo4j(another_home, password=OURS) as server,
        open_oracle(migrated_database_url, server.url, server.auth) as oracle,
        open_proxy(server.url) as door,
    ):
        stores = Stores(migrated_database_url, server.url, tmp_path).with_settings(NEO4J_PASSWORD=OURS)
        async with watched_server(stores.through(remote=door)) as watched:
            await settle(oracle, migrated_database_url)
            await server.set_password(OTHER)
            await door.cut()
            logins = await refused(watched, "neo4j", oracle, door)
            await until(partial(changed, server), what="the administrator gets in", seconds=SOON)
            await whole_again(oracle, scenario, engaged=0 < logins <= MOST_LOGINS_AT_NEO4J)
            await mended(watched, "neo4j")


async def changed(server: OwnNeo4j) -> bool:
    """Whether the password could be changed; for 5 s after a wrong one, the right one may be refused too."""
    try:
        await server.set_password(OURS)
    except Neo4jError as error:
        if error.code != LOCKED_OUT:
            raise
        return False
    return True


async def settle(oracle: Oracle, database_url: str) -> None:
    """Some memories are written and pushed."""
    async with writing(oracle) as writer:
        await writer.wrote(5)
    await drained(database_url, seconds=2 * SOON)


async def refused(watched: Watched, service: str, oracle: Oracle, door: Proxy) -> int:
    """The user writes while the password is wrong; how often the program tries it by itself."""
    async with writing(oracle) as writer:
        await watched.until_away(service)
        before = door.accepted
        await anyio.sleep(WRONG_SECONDS)
        logins = door.accepted - before
        await writer.wrote(5)
    status = await watched.status()
    assert any(service in warning.lower() for warning in [*status.warnings, status.next_step])
    return logins


async def mended(watched: Watched, service: str) -> None:
    """The status says so; what was wrong was said once, or once for each way of saying it, and no password was."""
    await watched.until_back(service)
    lines = [line.lower() for line in watched.program.log.splitlines()]
    assert len([line for line in lines if f"{service} refuses this program" in line]) == 1
    assert len([line for line in lines if "password" in line or "unauthorized" in line]) <= 1 + SAID, lines
    for secret in (OURS, OTHER):
        assert not any(secret in said for said in [watched.program.log, *watched.said])
