"""What agents did in incidents that were reported, from the destruction to the memories, through the MCP server.

Replit, 2025: tables were dropped and replaced by empty ones, and then filled with about 4,000 rows that were made up.
PocketOS, 2026: the volume that held the database was deleted, and with it the backups, which lay on the same volume.
"""

import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from tests.faults.agent import Agent
from tests.faults.destruction import AGENT, Field, held, now_there, rows_of_a_field, until_watched
from tests.faults.oracle import Comparison, Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import SOON, Stores, drained, started
from tests.faults.servers import OwnPostgres
from tests.faults.test_destruction_database import database_of, there
from tests.integration.stores import plain_client
from tests.services import postgres
from tests.services.waiting import until

# As a schema tool writes them that takes a table for changed; names quoted, one statement after the other.
PUSHED_SCHEMA = (
    'DROP TABLE "memories" CASCADE',
    'CREATE TABLE "memories" ("id" uuid PRIMARY KEY DEFAULT gen_random_uuid() NOT NULL, "content" text NOT NULL,'
    ' "memory_type" varchar(20), "importance" real, "source_project" text, "session_id" uuid, "tags" text[],'
    ' "created_at" timestamp with time zone DEFAULT now(), "updated_at" timestamp with time zone DEFAULT now())',
)
FABRICATED = """
INSERT INTO "memories" ("id", "content", "memory_type", "source_project")
SELECT ('d' || lpad(to_hex(i), 31, '0'))::uuid, 'John Doe ' || i || ' prefers dark mode.', 'semantic', 'shop'
FROM generate_series(1, $1::integer) AS i
"""


@asynccontextmanager
async def agents_server(stores: Stores) -> AsyncIterator[Agent]:
    """The MCP server of an agent, which has seen the store as it is."""
    begun = await now_there(stores.database_url)
    async with started(stores) as program:
        agent = Agent(program.wire)
        await agent.greet()
        await until_watched(stores.database_url, begun)
        yield agent


async def first_incident(agent: Agent) -> dict[str, Any]:
    """What the status says first, as soon as it says something of the kind."""
    seen: list[dict[str, Any]] = []

    async def shown() -> bool:
        seen[:] = [await agent.call("get_sync_status")]
        return bool(seen[0]["incidents"])

    await until(shown, what="the status shows the incident", seconds=SOON, pause=0.5)
    status = seen[0]
    assert status["open_incidents"] == 1, status
    assert "recover_from_remote" in status["next_step"], status
    incident = status["incidents"][0]
    assert incident["id"] in status["next_step"], status
    return dict(incident)


async def recovered(
    agent: Agent, field: Field, incident: dict[str, Any], missing: int
) -> tuple[int, Comparison, float]:
    """Plan what it destroyed, run the plan, and compare everything; rows that came back, and the seconds."""
    begun = time.monotonic()
    planned = await agent.call("recover_from_remote", {"before_incident": incident["id"]})
    assert (planned["phase"], planned["plan"]["will_restore"]) == ("planned", missing), planned
    done = await agent.call("recover_from_remote", {"plan_id": planned["plan"]["plan_id"]})
    assert (done["phase"], done["report"]["complete"]) == ("done", True), done
    return done["report"]["verified"], await field.compared(), time.monotonic() - begun


@pytest.mark.scenario(26, "Replit, 2025: tables dropped, made again empty, filled with fabricated rows; by the tools")
@pytest.mark.promise("P4")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
@pytest.mark.promise("P8")
async def test_26_tables_replaced_and_filled_with_fabricated_rows(field: Field, scenario: Scenario) -> None:
    """The status says it first, the plan says what comes back, and every memory is back beside what was made up."""
    fabricated = field.rows * 4 // 10
    before, live, field.of_an_agent = dict(field.expected), await field.live(), True
    async with (
        agents_server(field.stores) as agent,
        plain_client(field.stores.database_url, application_name=AGENT, timezone="UTC") as client,
    ):
        for statement in PUSHED_SCHEMA:
            await client.execute(statement)
        emptied = not (await held(client)).images
        await client.execute(FABRICATED, fabricated)
        made_up = (await held(client)).images
        incident = await first_incident(agent)
        assert (incident["kind"], incident["rows"], incident["application_name"]) == ("drop", len(before), AGENT)
        assert await field.live() >= live
        field.keep(made_up)
        restored, compared, seconds = await recovered(agent, field, incident, len(before))
        assert agent.asked == []
    scenario.note(engaged=emptied, compared=compared, seconds=seconds, restored=restored)


@pytest.mark.slow
@pytest.mark.scenario(28, "PocketOS, 2026: the volume with the database and its backups deleted; by the tools")
@pytest.mark.promise("P4")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
@pytest.mark.promise("P9")
async def test_28_the_volume_is_deleted_with_its_backups(
    own_stores: Stores, own_oracle: Oracle, own_postgres: OwnPostgres, scenario: Scenario
) -> None:
    """The server stays up and says what is gone; a new, empty database is filled from the remote store."""
    field = Field(own_stores, own_oracle, rows_of_a_field())
    await field.fill()
    live, volume = await field.live(), own_postgres.data
    backup = volume / "backups" / "nightly.dump"
    await anyio.to_thread.run_sync(write_backup, backup)
    async with agents_server(own_stores) as agent:
        await drained(own_stores.database_url)
        await own_postgres.kill_9()
        await anyio.to_thread.run_sync(shutil.rmtree, volume)
        gone = not backup.exists()
        await own_postgres.start()
        assert not await there(own_stores.database_url)
        incident = await first_incident(agent)
        assert (incident["kind"], incident["rows"]) == ("database_missing", len(field.expected))
        assert await field.live() == live
        await postgres.execute(own_postgres.url, f'CREATE DATABASE "{database_of(own_stores.database_url)}"')
        # A plan that is made before the server has made it a local store is refused, since it would be another one's.
        await until(lambda: is_a_local_store(agent), what="the new database is a local store", seconds=SOON)
        restored, compared, seconds = await recovered(agent, field, incident, len(field.expected))
    scenario.note(engaged=gone, compared=compared, seconds=seconds, restored=restored)


async def is_a_local_store(agent: Agent) -> bool:
    """Whether the status says that the bookkeeping is installed."""
    local = (await agent.call("get_sync_status"))["local"]
    return bool(local and local["initialised"])


def write_backup(file: Path) -> None:
    """What a nightly job would leave there."""
    file.parent.mkdir()
    file.write_text("everything, as of last night", encoding="utf-8")
