"""Fixtures that every test may ask for: real servers, databases of one's own, the run's seed."""

import os
import secrets
from collections.abc import AsyncIterator, Awaitable
from inspect import iscoroutinefunction

import pytest
from _pytest.capture import CaptureManager
from _pytest.terminal import TerminalReporter

from dionysus_sync_mcp.settings import Neo4jVersion
from tests.services import neo4j, postgres
from tests.services.choice import ServerAbsentError, Service, on_absence, required_services
from tests.services.limits import limited
from tests.services.servers import NEO4J_VARIABLES, Servers, open_servers, planned_sources

LIMIT_SECONDS = 600.0
SLOW_LIMIT_SECONDS = 3600.0

REQUIRED: pytest.StashKey[frozenset[Service]] = pytest.StashKey()
SEED: pytest.StashKey[int] = pytest.StashKey()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Read what the run requires, and give Hypothesis a seed that can be printed and used again."""
    given = config.getoption("--hypothesis-seed")
    try:
        config.stash[REQUIRED] = required_services(os.environ.get("DIONYSUS_TEST_REQUIRE", ""))
        config.stash[SEED] = secrets.randbelow(2**32) if given is None else int(given)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    config.option.hypothesis_seed = config.stash[SEED]


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say where the servers come from and how to repeat the run's random choices."""
    sources = ", ".join(f"{service} from {source}" for service, source in planned_sources(os.environ).items())
    return [f"servers: {sources}", f"seed: --hypothesis-seed={config.stash[SEED]}"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test a limit: one that waits for ever says where, and lets the others run."""
    for item in items:
        if isinstance(item, pytest.Function) and iscoroutinefunction(item.obj):
            seconds = SLOW_LIMIT_SECONDS if item.get_closest_marker("slow") else LIMIT_SECONDS
            item.obj = limited(item.obj, seconds)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The drivers know asyncio only."""
    return "asyncio"


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """The run's seed, for random choices that Hypothesis does not make."""
    return pytestconfig.stash[SEED]


@pytest.fixture(scope="session")
async def servers(pytestconfig: pytest.Config) -> AsyncIterator[Servers]:
    """The run's servers, each started when it is first asked for."""
    capture = pytestconfig.pluginmanager.get_plugin("capturemanager")
    terminal = pytestconfig.pluginmanager.get_plugin("terminalreporter")

    def say(line: str) -> None:
        if isinstance(capture, CaptureManager) and isinstance(terminal, TerminalReporter):
            with capture.global_and_fixture_disabled():
                terminal.write_line(line)

    async with open_servers(os.environ, say) as opened:
        yield opened


@pytest.fixture(scope="session")
async def postgres_url(servers: Servers, pytestconfig: pytest.Config) -> str:
    """A PostgreSQL server, by the URL of its maintenance database."""
    return await _present(servers.postgres(), pytestconfig)


@pytest.fixture(scope="session")
async def neo4j_uri(servers: Servers, pytestconfig: pytest.Config) -> str:
    """The Neo4j of the long-term-support version, with whatever the last test left in it."""
    return await _present(servers.neo4j("5.26.31"), pytestconfig)


@pytest.fixture(scope="session")
async def ollama_url(servers: Servers, pytestconfig: pytest.Config) -> str:
    """An Ollama that has the model `nomic-embed-text`, of 768 dimensions."""
    return await _present(servers.ollama(), pytestconfig)


@pytest.fixture
async def empty_neo4j(neo4j_uri: str) -> str:
    """The Neo4j of the long-term-support version without nodes; its schema stays."""
    await neo4j.empty(neo4j_uri)
    return neo4j_uri


@pytest.fixture(params=list(NEO4J_VARIABLES))
async def neo4j_both(request: pytest.FixtureRequest, servers: Servers, pytestconfig: pytest.Config) -> str:
    """Each supported Neo4j in turn, without nodes; its schema stays."""
    version: Neo4jVersion = request.param
    uri = await _present(servers.neo4j(version), pytestconfig)
    await neo4j.empty(uri)
    return uri


@pytest.fixture(scope="session")
async def plain_template(postgres_url: str) -> AsyncIterator[str]:
    """The database that `database_url` is a copy of: nothing in it."""
    async with postgres.template_database(postgres_url, postgres.leave_as_is) as url:
        yield url


@pytest.fixture
async def database_url(plain_template: str) -> AsyncIterator[str]:
    """A fresh database with nothing in it, of this test alone."""
    async with postgres.copy_of(plain_template) as url:
        yield url


@pytest.fixture(scope="session")
async def migrated_template(postgres_url: str) -> AsyncIterator[str]:
    """The database that `migrated_database_url` is a copy of."""
    async with postgres.template_database(postgres_url, postgres.install_local_store) as url:
        yield url


@pytest.fixture
async def migrated_database_url(migrated_template: str) -> AsyncIterator[str]:
    """A fresh database of this test alone, made a local store, without memories and with an identity of its own."""
    async with postgres.copy_of(migrated_template) as url:
        await postgres.execute(url, postgres.NEW_IDENTITY)
        yield url


async def _present(address: Awaitable[str], config: pytest.Config) -> str:
    try:
        return await address
    except ServerAbsentError as absent:
        if on_absence(absent.service, config.stash[REQUIRED]) == "fail":
            pytest.fail(str(absent))
        pytest.skip(str(absent))
