"""The composition root: how long a call waits to hear where an embedded service is."""

import anyio
import pytest

from dionysus_sync_mcp.domain.errors import Starting
from dionysus_sync_mcp.embedded.services import Progress
from dionysus_sync_mcp.runtime import FIND_SECONDS, Address

URL = "bolt://127.0.0.1:1"


async def test_the_first_call_of_a_process_finds_an_embedded_service_that_runs_already() -> None:
    """Asking for the running service takes a moment, and a call that comes in it is not refused."""
    address = Address("embedded:", "neo4j", patient=False)
    found: list[str] = []

    async def call() -> None:
        found.append(await address())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        assert found == []
        address.found(URL)
    assert found == [URL]


async def test_calls_hear_how_far_a_service_is_instead_of_waiting_for_it() -> None:
    """Once the time for finding a running service is over, no call waits any more."""
    address = Address("embedded:", "neo4j", patient=False)
    address.note(Progress("neo4j", "fetching", 12, 100, "Neo4j is being fetched, 12 %"))
    started = anyio.current_time()
    with pytest.raises(Starting, match="12 %"):
        await address()
    waited = anyio.current_time()
    with pytest.raises(Starting, match="12 %"):
        await address()
    assert FIND_SECONDS <= waited - started < FIND_SECONDS + 0.5
    assert anyio.current_time() - waited < 0.1
