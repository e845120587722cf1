"""A disk without room: the user meets with the server's own error, and the program goes on when there is room again."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.faults.oracle import Oracle, open_oracle
from tests.faults.outage import SOON, Watched, watched_server, whole_again, writing
from tests.faults.plugin import Scenario
from tests.faults.program import Stores, drained
from tests.faults.servers import filled, own_neo4j, own_postgres, small_disk
from tests.integration.stores import uid
from tests.services import postgres
from tests.services.waiting import until

MEGABYTES = 192
LENGTH = 4000  # of contents that nothing can make shorter
MOST_ROWS = 5000
BACKLOG = 300  # rows: to stamp them, the table has to grow
REFUSALS = 20
LONG = 200_000  # of contents that soon fill what Neo4j has set aside for its log


@pytest.fixture
def disk(another_home: Path) -> Iterator[Path]:
    """A small disk for the data of a server of this test's."""
    try:
        with small_disk(another_home / "data", MEGABYTES) as folder:
            yield folder
    except PermissionError as refused:
        pytest.skip(str(refused))


async def refusals(oracle: Oracle) -> int:
    """Write until PostgreSQL has refused so many writes that the disk is full for the user, too."""
    refused = 0
    for number in range(MOST_ROWS):
        try:
            await oracle.insert(uid(20_000 + number), f"{number}: {secrets.token_hex(LENGTH // 2)}")
        except asyncpg.DiskFullError:
            refused += 1
        if refused == REFUSALS:
            break
    return refused


@pytest.mark.slow
@pytest.mark.scenario(39, "no room on the disk of PostgreSQL")
@pytest.mark.promise("P1")
@pytest.mark.promise("P5")
@pytest.mark.promise("P9")
async def test_39_no_room_for_postgres(
    another_home: Path, disk: Path, empty_neo4j: str, tmp_path: Path, scenario: Scenario
) -> None:
    """What was acknowledged before it was full arrives; what was refused was refused by PostgreSQL."""
    async with (
        own_postgres(another_home, log_aside=True) as server,
        postgres.template_database(server.url, postgres.install_local_store) as url,
        open_oracle(url, empty_neo4j) as oracle,
        watched_server(Stores(url, empty_neo4j, tmp_path)) as watched,
    ):
        async with writing(oracle) as writer:
            await writer.wrote(5)
        await drained(url)
        await watched.program.stop()
        for number in range(1, BACKLOG):
            await oracle.insert(uid(10_000 + number), f"in the backlog {number}")
        with filled(disk):
            watched.program.resume()
            refused = await refusals(oracle)
            await until_failing(watched)
        await whole_again(oracle, scenario, engaged=refused == REFUSALS)


@pytest.mark.slow
@pytest.mark.scenario(39, "no room on the disk of Neo4j, which is started again when there is some")
@pytest.mark.promise("P1")
@pytest.mark.promise("P9")
async def test_39_no_room_for_neo4j(
    another_home: Path,
    disk: Path,
    migrated_database_url: str,
    tmp_path: Path,
    scenario: Scenario,
) -> None:
    """The user does not notice, the status does; nothing is parked for it, and all is pushed when there is room."""
    async with (
        own_neo4j(another_home) as server,
        open_oracle(migrated_database_url, server.url) as oracle,
        watched_server(Stores(migrated_database_url, server.url, tmp_path)) as watched,
    ):
        async with writing(oracle) as writer:
            await writer.wrote(5)
        await drained(migrated_database_url)
        with filled(disk):
            async with writing(oracle, length=LONG):
                await until_failing(watched)
        await server.restart()
        await whole_again(oracle, scenario, engaged=True, seconds=5 * SOON)


async def until_failing(watched: Watched) -> None:
    """Wait until the status says that pushes fail."""

    async def failing() -> bool:
        status = await watched.status()
        assert status.local is not None
        assert status.local.queue.parked == 0
        return status.worker is not None and status.worker.failing_since is not None

    await until(failing, what="pushes fail", seconds=3 * SOON)
