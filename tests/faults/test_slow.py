"""A bad line: long ways, little bandwidth, small packets. Slower, but it gets there, in smaller batches."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.oracle import Oracle
from tests.faults.outage import Watched, watched_server, whole_again
from tests.faults.plugin import Scenario
from tests.faults.program import Failpoint, Stores, drained
from tests.faults.proxy import Proxy, Slowness, open_proxy
from tests.integration.stores import plain_client, uid

BAD_LINE = Slowness(latency=0.3, bytes_per_second=64_000, slice_bytes=500)
FEW, MANY = 20, 400
LENGTH = 1000
# Each halves what is sent: from the largest batch to one row there are ten.
MOST_TIME_OUTS = 10
SLOW_SECONDS = 500.0
LARGEST_BATCH = "SELECT max(record_count) FROM dionysus_sync.sync_events WHERE result = 'success'"


@asynccontextmanager
async def over_a_bad_line(side: str, stores: Stores) -> AsyncIterator[tuple[Proxy, Watched]]:
    """An MCP server, one store of which is reached over a line that can be made bad."""
    async with open_proxy(stores.neo4j_uri if side == "remote" else stores.database_url) as line:
        through = stores.through(remote=line) if side == "remote" else stores.through(local=line)
        async with watched_server(through, failpoint=Failpoint()) as watched:
            yield line, watched


async def write_backlog(oracle: Oracle, watched: Watched, line: Proxy, rows: int) -> None:
    """What waits when the line has become bad: the program stands still meanwhile."""
    await watched.program.stop()
    for number in range(1, rows + 1):
        await oracle.insert(uid(oracle.rows_written + 1), f"{number}: ".ljust(LENGTH, "x"))
    await line.slow(BAD_LINE)
    watched.program.resume()


@pytest.mark.scenario(8, "300 ms for every 3 kB, at most 64 kB/s, packets of 500 bytes to Neo4j; 20 rows")
@pytest.mark.promise("P9")
async def test_08_few_rows_over_a_bad_line(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """They arrive over the bad line."""
    async with over_a_bad_line("remote", stores) as (line, watched):
        await oracle.insert(uid(1), "before")
        await drained(stores.database_url)
        await write_backlog(oracle, watched, line, FEW)
        await drained(stores.database_url)
        slowed = line.engaged["slow"]
        await line.heal()
        await whole_again(oracle, scenario, engaged=slowed > FEW)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["remote", "local"])
@pytest.mark.scenario(8, "300 ms for every 3 kB, at most 64 kB/s, packets of 500 bytes; 400 rows of 1 kB")
@pytest.mark.promise("P9")
async def test_08_backlog_over_a_bad_line(side: str, stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """Batches become smaller until they get through; what was tried in vain is little."""
    async with over_a_bad_line(side, stores) as (line, watched):
        await oracle.insert(uid(1), "before")
        await drained(stores.database_url)
        before = tries_in_vain(watched)
        await write_backlog(oracle, watched, line, MANY)
        await drained(stores.database_url, seconds=SLOW_SECONDS)
        slowed = line.engaged["slow"]
        in_vain = tries_in_vain(watched) - before
        await line.heal()
        await whole_again(oracle, scenario, engaged=slowed > MANY)
        assert in_vain <= MOST_TIME_OUTS
        async with plain_client(stores.database_url) as client:
            assert 1 <= await client.fetchval(LARGEST_BATCH) < MANY


def tries_in_vain(watched: Watched) -> int:
    """Batches that were claimed and not acknowledged."""
    lines = watched.program.trace.splitlines()
    claimed = lines.count("after:claim_entries")
    return claimed - sum(line.startswith("after:COMMIT(") and "acknowledge" in line for line in lines)
