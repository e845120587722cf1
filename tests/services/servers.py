"""The servers of one run: each is found or started when it is first asked for, and all are stopped together.

Sources in order: an address in the environment, Docker, and what the program itself can run (Ollama: build).
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cached_property
from pathlib import Path

from dionysus_sync_mcp.settings import Neo4jVersion
from tests.services import docker, embedded, neo4j
from tests.services.cache import cache_folder
from tests.services.choice import ServerAbsentError, Service, SourceAbsentError
from tests.services.ollama import ollama, planned_binary

POSTGRES_VARIABLE = "DIONYSUS_TEST_DATABASE_URL"
NEO4J_VARIABLES: dict[Neo4jVersion, str] = {
    "5.26.31": "DIONYSUS_TEST_NEO4J_URI",
    "2026.09.0": "DIONYSUS_TEST_NEO4J_2026_URI",
}
OLLAMA_VARIABLE = "OLLAMA_URL"

Source = Callable[[], AbstractAsyncContextManager[str]]


class Servers:
    """Gives the address of each server; see `open_servers`."""

    def __init__(self, environment: Mapping[str, str], say: Callable[[str], None], stack: AsyncExitStack) -> None:
        self._environment = environment
        self._say = say
        self._stack = stack
        self._addresses: dict[str, str] = {}

    async def postgres(self) -> str:
        """The URL of a PostgreSQL server where databases may be made, as a superuser.

        Raises:
            ServerAbsentError: There is none.
        """
        return await self._address("postgres", POSTGRES_VARIABLE, [docker.postgres_container, self._embedded_postgres])

    async def neo4j(self, version: Neo4jVersion) -> str:
        """The Bolt URI of a Neo4j of that version without authentication, whose data may be removed.

        Raises:
            ServerAbsentError: There is none.
        """
        sources = [lambda: docker.neo4j_container(version), lambda: self._embedded_neo4j(version)]
        return await self._address("neo4j", NEO4J_VARIABLES[version], sources)

    @asynccontextmanager
    async def throwaway_neo4j(self, version: Neo4jVersion) -> AsyncIterator[str]:
        """The Bolt URI of one for more data than can be removed in passing: its data goes with it.

        One that is given by the environment is emptied instead, before and after, however long that takes.

        Raises:
            ServerAbsentError: There is none.
        """
        given = self._environment.get(NEO4J_VARIABLES[version])
        if given:
            await neo4j.empty(given)
            yield given
            await neo4j.empty(given)
            return
        cache = cache_folder(self._environment)
        sources = [
            lambda: docker.neo4j_container(version),
            lambda: embedded.throwaway_neo4j(cache, version, self._say),
        ]
        async with AsyncExitStack() as stack:
            yield await _first_that_works(stack, "neo4j", sources)

    async def ollama(self) -> str:
        """The URL of an Ollama that has the model `nomic-embed-text`.

        Raises:
            ServerAbsentError: There is none.
        """
        return await self._address("ollama", OLLAMA_VARIABLE, [self._own_ollama])

    def _embedded_postgres(self) -> AbstractAsyncContextManager[str]:
        return embedded.embedded_postgres(self._embedded_home, self._say)

    def _embedded_neo4j(self, version: Neo4jVersion) -> AbstractAsyncContextManager[str]:
        return embedded.embedded_neo4j(self._embedded_home, version, self._say)

    def _own_ollama(self) -> AbstractAsyncContextManager[str]:
        return ollama(self._environment, cache_folder(self._environment), self._say)

    @cached_property
    def _embedded_home(self) -> Path:
        return self._stack.enter_context(embedded.claimed_home(cache_folder(self._environment)))

    async def _address(self, service: Service, variable: str, sources: Sequence[Source]) -> str:
        if variable not in self._addresses:
            given = self._environment.get(variable)
            self._addresses[variable] = given or await _first_that_works(self._stack, service, sources)
        return self._addresses[variable]


async def _first_that_works(stack: AsyncExitStack, service: Service, sources: Sequence[Source]) -> str:
    reasons = []
    for source in sources:
        try:
            return await stack.enter_async_context(source())
        except SourceAbsentError as error:
            reasons.append(str(error))
    raise ServerAbsentError(service, reasons)


@asynccontextmanager
async def open_servers(environment: Mapping[str, str], say: Callable[[str], None]) -> AsyncIterator[Servers]:
    """The servers for as long as the context lasts; `say` gets a line where something takes long."""
    async with AsyncExitStack() as stack:
        yield Servers(environment, say, stack)


def planned_sources(environment: Mapping[str, str]) -> dict[Service, str]:
    """Where each server would come from if a test asked for it now; nothing is started to find out."""
    local = "Docker" if docker.daemon_answers(environment) else "the embedded services"
    return {
        "postgres": _given(environment, POSTGRES_VARIABLE) or local,
        "neo4j": ", ".join(filter(None, (_given(environment, name) for name in NEO4J_VARIABLES.values()))) or local,
        "ollama": _given(environment, OLLAMA_VARIABLE) or planned_binary(environment, cache_folder(environment)),
    }


def _given(environment: Mapping[str, str], variable: str) -> str:
    return variable if environment.get(variable) else ""
