"""A store that is emptied never empties the other one, with a second, healthy local store on the same remote store."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pytest

from tests.faults.destruction import Blow, Field, held, images_here, watching
from tests.faults.plugin import Scenario
from tests.faults.program import SOON, Stores, drained
from tests.integration.stores import graph, plain_client
from tests.services import neo4j, postgres
from tests.services.waiting import until

NEIGHBOURS_ROWS = 50
WRITE = """
INSERT INTO memories (id, content, source_project)
SELECT ('b' || lpad(to_hex(i), 31, '0'))::uuid, 'the neighbour''s ' || i, 'elsewhere'
FROM generate_series(1, $1::integer) AS i
"""
OF_NEIGHBOUR = "MATCH (m:Memory {source_project: 'elsewhere'}) WHERE m.deleted_at IS NULL RETURN count(m)"
EMPTYINGS = {
    "TRUNCATE": Blow("TRUNCATE memories", "truncate"),
    "DROP SCHEMA of both": Blow(
        "DROP SCHEMA public CASCADE; DROP SCHEMA dionysus_sync CASCADE; CREATE SCHEMA public",
        "table_missing",
        told=False,
        here=False,
        last_words=False,
    ),
}


class Neighbour(NamedTuple):
    """A second local store that pushes to the same remote store, and the rows that it has to keep."""

    stores: Stores
    rows: dict[str, dict[str, Any]]

    async def unharmed(self) -> bool:
        """Whether its rows are as they were, here and in the remote store, and nothing of anybody else's is here."""
        async with plain_client(self.stores.database_url, timezone="UTC") as client:
            here = (await held(client)).images
        return here == self.rows and await graph(self.stores.neo4j_uri, OF_NEIGHBOUR) == [len(self.rows)]


@asynccontextmanager
async def neighbour(stores: Stores, template: str) -> AsyncIterator[Neighbour]:
    """With a worker of its own, and everything pushed."""
    async with postgres.copy_of(template) as url:
        await postgres.execute(url, postgres.NEW_IDENTITY)
        home = stores.home / "neighbour"
        home.mkdir()
        beside = replace(stores, database_url=url, home=home)
        async with plain_client(url, timezone="UTC") as client:
            await client.execute(WRITE, NEIGHBOURS_ROWS)
            rows = (await held(client)).images
        async with watching(beside):
            await drained(url)
            yield Neighbour(beside, rows)


@pytest.mark.promise("P4")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            id=name,
            marks=[
                pytest.mark.scenario(37, f"an emptied local store beside a healthy one on the same remote: {name}"),
                pytest.mark.slow,
            ],
        )
        for name in EMPTYINGS
    ],
)
async def test_37_an_emptied_local_store_beside_a_healthy_one(
    field: Field, scenario: Scenario, migrated_template: str, name: str
) -> None:
    """The remote store keeps all; the other one notices nothing; what is recovered is one's own and not the other's."""
    async with neighbour(field.stores, migrated_template) as beside, watching(field.stores):
        incident, engaged = await field.strike(EMPTYINGS[name])
        assert await beside.unharmed()
        field.know(beside.rows)
        recovery = await field.recovered(incident, "--project", "shop", "--project", "blog")
        assert await beside.unharmed()
        assert not (await images_here(field)).keys() & beside.rows.keys()
    scenario.note(engaged=engaged, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


@pytest.mark.slow
@pytest.mark.scenario(37, "an emptied local store, all of it recovered, beside a healthy one on the same remote")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
async def test_37_a_known_store_gets_its_own_memories(field: Field, scenario: Scenario, migrated_template: str) -> None:
    """Without naming projects: the remote store knows which memories a store has written."""
    async with neighbour(field.stores, migrated_template) as beside, watching(field.stores):
        incident, engaged = await field.strike(EMPTYINGS["TRUNCATE"])
        field.know(beside.rows)
        recovery = await field.recovered(incident)
        assert not (await images_here(field)).keys() & beside.rows.keys()
        assert await beside.unharmed()
    scenario.note(engaged=engaged, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


@pytest.mark.slow
@pytest.mark.scenario(37, "an emptied remote store under two local stores with running workers")
@pytest.mark.promise("P1")
@pytest.mark.promise("P7")
async def test_37_an_emptied_remote_store_under_two(field: Field, scenario: Scenario, migrated_template: str) -> None:
    """Both fill it again, unasked, each with its own; no row of either changes."""
    async with neighbour(field.stores, migrated_template) as beside, watching(field.stores):
        whole = await field.live()
        await neo4j.empty(field.stores.neo4j_uri)
        emptied = await field.live() < whole
        await until(holds(field, whole), what="the remote store is filled again", seconds=4 * SOON)
        assert await images_here(field) == field.expected
        assert await beside.unharmed()
        assert await field.local_incidents() == []
    scenario.note(engaged=emptied, restored=whole)


def holds(field: Field, count: int) -> Callable[[], Awaitable[bool]]:
    """Whether the remote store holds as many memories."""

    async def ask() -> bool:
        return await field.live() == count

    return ask
