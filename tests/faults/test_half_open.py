"""A peer is lost without a word: connections stay open, packets vanish. Noticed, and left as soon as packets flow."""

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from tests.faults.oracle import Oracle
from tests.faults.outage import SOON, WHOLE_AGAIN, Watched, watched_server, whole_again, writing
from tests.faults.plugin import Scenario
from tests.faults.program import Failpoint, Stores, drained
from tests.faults.proxy import Proxy, open_proxy

# Each stands in the midst of work with its service: the packets that would finish it vanish.
IN_FLIGHT = {"neo4j": "before:write_memories#3", "postgresql": "before:acknowledge#3", "ollama": "before:embed#2"}
SLOW = pytest.mark.slow


@asynccontextmanager
async def through_a_proxy(
    service: str, stores: Stores, point: Failpoint | None
) -> AsyncIterator[tuple[Proxy, Watched]]:
    """An MCP server that reaches one of the services through a proxy."""
    url = {"neo4j": stores.neo4j_uri, "postgresql": stores.database_url, "ollama": stores.ollama_url}[service]
    async with open_proxy(url) as proxy:
        match service:
            case "neo4j":
                stores = stores.through(remote=proxy)
            case "postgresql":
                stores = stores.through(local=proxy)
            case _:
                stores = replace(stores, ollama_url=proxy.through(stores.ollama_url))
        async with watched_server(stores, failpoint=point) as watched:
            yield proxy, watched


@pytest.mark.parametrize("service", ["postgresql", pytest.param("neo4j", marks=SLOW)])
@pytest.mark.scenario(7, "packets to Neo4j or PostgreSQL vanish during a push")
@pytest.mark.promise("P9")
@pytest.mark.promise("P1")
async def test_07_half_open_during_a_push(service: str, stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """The push gives up; what waits for the service goes on as soon as it is there again, on new connections."""
    point = Failpoint(IN_FLIGHT[service], sends=signal.SIGSTOP)
    async with through_a_proxy(service, stores, point) as (proxy, watched):
        async with writing(oracle) as writer:
            await watched.program.at_failpoint()
            await proxy.blackhole()
            watched.program.resume()
            before = proxy.engaged["blackhole"]
            await watched.until_away(service)
            vanished = proxy.engaged["blackhole"] - before
            await writer.wrote(5)
        await proxy.heal()
        assert await whole_again(oracle, scenario, engaged=vanished > 0) < WHOLE_AGAIN
        await watched.until_back(service)


@pytest.mark.slow
@pytest.mark.parametrize("service", ["neo4j", "postgresql"])
@pytest.mark.scenario(7, "packets to Neo4j or PostgreSQL vanish while nothing happens")
@pytest.mark.promise("P9")
@pytest.mark.promise("P1")
async def test_07_half_open_while_idle(service: str, stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """Noticed by itself, before anybody writes."""
    async with through_a_proxy(service, stores, None) as (proxy, watched):
        async with writing(oracle) as writer:
            await writer.wrote(5)
        await drained(stores.database_url)
        await proxy.blackhole()
        before = proxy.engaged["blackhole"]
        await watched.until_away(service)
        vanished = proxy.engaged["blackhole"] - before
        async with writing(oracle) as writer:
            await writer.wrote(5)
        await proxy.heal()
        assert await whole_again(oracle, scenario, engaged=vanished > 0) < WHOLE_AGAIN
        await watched.until_back(service)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["in flight", "idle"])
@pytest.mark.scenario(7, "packets to a real Ollama vanish")
@pytest.mark.promise("P9")
async def test_07_half_open_to_ollama(
    when: str, stores: Stores, ollama_url: str, oracle: Oracle, scenario: Scenario
) -> None:
    """Pushes go on meanwhile; the vectors follow. Idle, nothing is asked of Ollama, so the next text finds it lost."""
    point = Failpoint(IN_FLIGHT["ollama"], sends=signal.SIGSTOP) if when == "in flight" else None
    async with through_a_proxy("ollama", replace(stores, ollama_url=ollama_url), point) as (proxy, watched):
        if point is None:
            async with writing(oracle) as writer:
                await writer.wrote(5)
            await drained(stores.database_url)
            await watched.until_embedded(len(oracle.live))
        async with writing(oracle) as writer:
            if point:
                await watched.program.at_failpoint()
            await proxy.blackhole()
            watched.program.resume()
            before = proxy.engaged["blackhole"]
            await writer.wrote(5)
        await watched.until_away("ollama", seconds=3 * SOON)
        vanished = proxy.engaged["blackhole"] - before
        await drained(stores.database_url)
        await proxy.heal()
        started = time.monotonic()
        await watched.until_embedded(len(oracle.live))
        seconds = time.monotonic() - started
        compared, _ = await oracle.until_whole()
        scenario.note(engaged=vanished > 0, compared=compared, seconds=seconds)
        assert seconds < WHOLE_AGAIN
