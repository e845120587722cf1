"""Whole schemas, the whole database or the whole server are gone: all of it comes back from the remote store alone."""

import shutil
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import anyio.to_thread
import asyncpg
import pytest

from tests.faults.destruction import Blow, Field, Recorded, blows, rows_of_a_field, watching
from tests.faults.oracle import Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import SOON, Stores
from tests.faults.servers import OwnPostgres
from tests.services import postgres
from tests.services.waiting import until

BOTH = "DROP SCHEMA public CASCADE; DROP SCHEMA dionysus_sync CASCADE"
SCHEMAS = {
    "DROP SCHEMA public CASCADE": Blow("DROP SCHEMA public CASCADE", "drop"),
    "DROP SCHEMA public CASCADE, made again empty": Blow("DROP SCHEMA public CASCADE; CREATE SCHEMA public", "drop"),
    "DROP SCHEMA dionysus_sync CASCADE, our own": Blow(
        "DROP SCHEMA dionysus_sync CASCADE", "bookkeeping_missing", rows=0, told=False, last_words=False
    ),
    "DROP SCHEMA of both": Blow(BOTH, "table_missing", told=False, here=False, last_words=False),
    "DROP SCHEMA of both, ours first": Blow(
        "DROP SCHEMA dionysus_sync CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public",
        "table_missing",
        told=False,
        here=False,
        last_words=False,
    ),
}
MISSING = ("database_missing",)
# What is seen of a database that is made again at once: a look may fall in between.
REPLACED = ("table_missing", "table_recreated", *MISSING)


@pytest.mark.promise("P4")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
@pytest.mark.promise("P8")
@pytest.mark.parametrize("blow", blows(27, SCHEMAS, fast=["DROP SCHEMA of both"]))
async def test_27_schemas_are_dropped(field: Field, scenario: Scenario, blow: Blow) -> None:
    """With what else was in them; one command brings the memories back, and what is known of them."""
    async with watching(field.stores) as program:
        incident, engaged = await field.strike(blow)
        recovery = await field.recovered(incident)
        assert program.running
    scenario.note(engaged=engaged, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


def database_of(url: str) -> str:
    """The name of its database."""
    return urlsplit(url).path.lstrip("/")


async def there(url: str) -> bool:
    """Whether there is such a database."""
    try:
        await postgres.execute(url, "SELECT 1")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    return True


def on_remote_record(field: Field, kinds: tuple[str, ...]) -> Callable[[], Awaitable[bool]]:
    """Whether the remote store, and it alone, has one incident of one of these kinds."""

    async def ask() -> bool:
        return [i.kind in kinds for i in await field.remote_incidents()] == [True]

    return ask


async def recorded(field: Field, kinds: tuple[str, ...]) -> Recorded:
    """The incident that the remote store has on record of a database that is gone, of which nobody knows who did it."""
    await until(on_remote_record(field, kinds), what=f"an incident {kinds}", seconds=SOON)
    (incident,) = await field.remote_incidents()
    assert (incident.rows, incident.role, incident.is_open) == (len(field.expected), None, True)
    return incident


@pytest.mark.promise("P4")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
@pytest.mark.promise("P8")
@pytest.mark.promise("P9")
@pytest.mark.parametrize(
    "at_once",
    [
        pytest.param(False, marks=pytest.mark.scenario(28, "DROP DATABASE WITH (FORCE); later made again empty")),
        pytest.param(
            True, marks=[pytest.mark.scenario(28, "DROP DATABASE WITH (FORCE), made again at once"), pytest.mark.slow]
        ),
    ],
)
async def test_28_the_database_is_dropped(field: Field, scenario: Scenario, *, at_once: bool) -> None:
    """With queue, audit and triggers; the worker stays up, and the remote store alone brings all of it back."""
    url, live = field.stores.database_url, await field.live()
    server, name = postgres.with_database(url, "postgres"), database_of(url)
    async with watching(field.stores) as program:
        await postgres.execute(server, f'DROP DATABASE "{name}" WITH (FORCE)')
        gone = not await there(url)
        if not at_once:
            await recorded(field, MISSING)
        await postgres.execute(server, f'CREATE DATABASE "{name}" TEMPLATE template0')
        incident = await recorded(field, REPLACED if at_once else MISSING)
        assert await field.live() == live
        recovery = await field.recovered(incident)
        assert program.running
    scenario.note(engaged=gone, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


@pytest.mark.slow
@pytest.mark.scenario(28, "the server with all its files is gone; a fresh cluster in its place")
@pytest.mark.promise("P4")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
@pytest.mark.promise("P9")
async def test_28_a_fresh_cluster(
    own_stores: Stores, own_oracle: Oracle, own_postgres: OwnPostgres, scenario: Scenario
) -> None:
    """Nothing local is left; whoever makes the database again gets everything back, and the incident is on record."""
    field = Field(own_stores, own_oracle, rows_of_a_field())
    await field.fill()
    live = await field.live()
    async with watching(own_stores) as program:
        await own_postgres.kill_9()
        await anyio.to_thread.run_sync(shutil.rmtree, own_postgres.data)
        await own_postgres.start()
        gone = not await there(own_stores.database_url)
        await recorded(field, MISSING)
        await postgres.execute(own_postgres.url, f'CREATE DATABASE "{database_of(own_stores.database_url)}"')
        assert await field.live() == live
        (incident,) = await field.remote_incidents()
        recovery = await field.recovered(incident)
        assert program.running
    scenario.note(engaged=gone, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)
