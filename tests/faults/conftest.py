"""Fixtures of the fault tests: own servers, the stores for the program and the oracle, and what a scenario came to."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dionysus_sync_mcp.domain.errors import EmbeddedError
from dionysus_sync_mcp.embedded.home import Home
from tests.benchmarks.machine import machine
from tests.faults import servers as own
from tests.faults.destruction import Field, rows_of_a_field
from tests.faults.oracle import Oracle, open_oracle
from tests.faults.plugin import SCENARIO, WHERE, FaultResults, Scenario, number_of, only, results_file
from tests.faults.program import Stores
from tests.faults.results import Run
from tests.services import neo4j, postgres
from tests.services.cache import cache_folder
from tests.services.choice import ServerAbsentError
from tests.services.embedded import claimed_home
from tests.services.servers import Servers


def pytest_configure(config: pytest.Config) -> None:
    """Write results where they are asked for."""
    file = results_file()
    if file is not None:
        config.pluginmanager.register(FaultResults(file))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the scenarios that were not asked for."""
    wanted = only(os.environ)
    left_out = [item for item in items if wanted and number_of(item) not in wanted]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
async def where_it_ran(servers: Servers, seed: int) -> str:
    """Machine, versions, date and seed; looked up only for a run that writes results."""
    if results_file() is None:
        return ""
    try:
        where = await machine(await servers.postgres(), await servers.neo4j("5.26.31"))
    except ServerAbsentError as absent:
        where = str(absent)
    return f"{where}; --hypothesis-seed={seed}"


@pytest.fixture
def scenario(request: pytest.FixtureRequest, where_it_ran: str) -> Scenario:
    """Where the test notes what its scenario came to; needs the mark `scenario(number, fault)`."""
    request.config.stash[WHERE] = where_it_ran
    mark = request.node.get_closest_marker("scenario")
    made = Scenario(Run(mark.args[0], mark.args[1], "passed"))
    request.node.stash[SCENARIO] = made
    return made


@pytest.fixture
def stores(migrated_database_url: str, empty_neo4j: str, tmp_path: Path) -> Stores:
    """The run's servers, a database of the test's own, a home folder: for tests that do nothing to the servers."""
    return Stores(migrated_database_url, empty_neo4j, tmp_path)


@pytest.fixture
async def oracle(stores: Stores) -> AsyncIterator[Oracle]:
    """An oracle of `stores`."""
    async with open_oracle(stores.database_url, stores.neo4j_uri) as opened:
        yield opened


@pytest.fixture
async def field(stores: Stores, oracle: Oracle) -> Field:
    """Memories in both of `stores`, to be destroyed."""
    made = Field(stores, oracle, rows_of_a_field())
    await made.fill()
    return made


@pytest.fixture
def edits_are_no_incident(monkeypatch: pytest.MonkeyPatch) -> None:
    """For programs in the test's own process: however many memories are given another content at once.

    A scenario about something else writes a few memories and revises them all within a minute, which is an incident,
    and a recovery would rightly bring back what they were before.
    """
    monkeypatch.setenv("DIONYSUS_INCIDENT_UPDATES", "1000")


@pytest.fixture
def another_home() -> Iterator[Path]:
    """A home folder for a server of this test's, with the programs that the tests share."""
    with claimed_home(cache_folder(os.environ)) as home:
        Home.at(home).make()
        yield home


@pytest.fixture(scope="session")
def own_home() -> Iterator[Path]:
    """The home folder of `own_postgres` and `own_neo4j`."""
    with ExitStack() as stack:
        home = stack.enter_context(claimed_home(cache_folder(os.environ)))
        Home.at(home).make()
        yield home


@pytest.fixture(scope="session")
async def _one_postgres(own_home: Path) -> AsyncIterator[own.OwnPostgres]:
    try:
        async with own.own_postgres(own_home) as running:
            yield running
    except EmbeddedError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
async def _one_neo4j(own_home: Path) -> AsyncIterator[own.OwnNeo4j]:
    try:
        async with own.own_neo4j(own_home) as running:
            yield running
    except EmbeddedError as error:
        pytest.skip(str(error))


@pytest.fixture
async def own_postgres(_one_postgres: own.OwnPostgres) -> AsyncIterator[own.OwnPostgres]:
    """A PostgreSQL on TCP that the test may stop, kill and freeze; running at first, and started again afterwards."""
    await _one_postgres.start()
    yield _one_postgres
    await _made_sound(_one_postgres)


@pytest.fixture
async def own_neo4j(_one_neo4j: own.OwnNeo4j) -> AsyncIterator[own.OwnNeo4j]:
    """A Neo4j that the test may stop, kill and freeze; running and without nodes at first."""
    await _one_neo4j.start()
    await neo4j.empty(_one_neo4j.url)
    yield _one_neo4j
    await _made_sound(_one_neo4j)


@pytest.fixture
async def own_database_url(own_postgres: own.OwnPostgres) -> AsyncIterator[str]:
    """A fresh local store on `own_postgres`."""
    async with postgres.template_database(own_postgres.url, postgres.install_local_store) as url:
        yield url
        await _made_sound(own_postgres)


@pytest.fixture
def own_stores(own_database_url: str, own_neo4j: own.OwnNeo4j, tmp_path: Path) -> Stores:
    """As `stores`, on the two servers to which things may be done."""
    return Stores(own_database_url, own_neo4j.url, tmp_path)


@pytest.fixture
async def own_oracle(own_stores: Stores) -> AsyncIterator[Oracle]:
    """An oracle of `own_stores`."""
    async with open_oracle(own_stores.database_url, own_stores.neo4j_uri) as opened:
        yield opened


async def _made_sound(server: own.OwnServer) -> None:
    """Whatever a test did to it, the next one finds it running."""
    if server.running:
        server.thaw()
    await server.start()
