"""From destruction to recovered and back, through the real program: its tools over stdio and its commands."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.context import ClientRequestContext
from mcp.types import ElicitRequestParams, ElicitResult

from tests.integration.stores import images, plain_client
from tests.server.test_program import parameters
from tests.server.wire import REAL
from tests.services.waiting import until

ROWS = 20
FILL = "INSERT INTO memories (content, source_project) SELECT 'memory ' || n, 'atlas' FROM generate_series(1, $1) AS n"
BLANK = "UPDATE memories SET content = ''"
PATIENCE_SECONDS = 60


class User:
    """Says no to the first question, and yes to every later one."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        assert context.session is not None
        self.asked.append(params.message)
        return ElicitResult(action="accept", content={"overwrite": len(self.asked) > 1})


async def _call(client: Client, tool: str, **arguments: object) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    report: dict[str, Any] = result.structured_content or {}
    return report


async def _synced(client: Client) -> None:
    """A server that was just started may answer its first question late."""

    async def synced() -> bool:
        return bool((await _call(client, "sync_now"))["result"] == "success")

    await until(synced, what="the stores were not in step", seconds=PATIENCE_SECONDS)


async def _open_incident(client: Client) -> dict[str, Any]:
    found: list[dict[str, Any]] = []

    async def seen() -> bool:
        found.extend((await _call(client, "get_sync_status"))["incidents"])
        return bool(found)

    await until(seen, what="no incident was seen", seconds=PATIENCE_SECONDS)
    return found[0]


async def _command(program: StdioServerParameters, *args: str) -> dict[str, Any]:
    done = await anyio.run_process(
        [*REAL, *args, "--json"], env={**os.environ, **(program.env or {})}, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.promise("P6")
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_blanked_memories_come_back_once_the_user_agrees_and_an_undo_takes_that_back(
    mode: str, migrated_database_url: str, empty_neo4j: str, tmp_path: Path
) -> None:
    """An agent blanks a column with one UPDATE: nothing is overwritten before the yes, and everything is verified."""
    stores = {"DATABASE_URL": migrated_database_url, "NEO4J_URI": empty_neo4j, "OLLAMA_URL": "http://127.0.0.1:9"}
    program, user = parameters(stores, tmp_path), User()
    async with (
        plain_client(migrated_database_url, application_name="a careless agent") as database,
        Client(program, mode=mode, elicitation_callback=user) as client,
    ):
        await database.execute(FILL, ROWS)
        good = await images(database)
        await _synced(client)
        await database.execute(BLANK)
        blank = await images(database)

        incident = await _open_incident(client)
        assert (incident["kind"], incident["rows"]) == ("bulk_update", ROWS)
        assert incident["application_name"] == "a careless agent"
        assert incident["statement"] == "U·PDATE memories S·ET content = ''"

        plan = (await _call(client, "recover_from_remote", before_incident=incident["id"]))["plan"]
        assert plan["will_overwrite"] == plan["will_restore"] == ROWS
        assert (await _call(client, "recover_from_remote", plan_id=plan["plan_id"]))["phase"] == "declined"
        assert await images(database) == blank

        report = (await _call(client, "recover_from_remote", plan_id=plan["plan_id"]))["report"]
        assert (report["overwritten"], report["verified"]) == (ROWS, ROWS)
        assert await images(database) == good
        assert len(user.asked) == 2
        assert f"overwrites {ROWS} rows" in user.asked[0]

        undone = await _command(program, "undo", report["recovery_id"], "--yes")
        assert (undone["complete"], undone["restored"]) == (True, ROWS)
        assert await images(database) == blank
        closed = await _command(program, "incidents", "--close", incident["id"], "--reason", "tried out")
        assert closed["closed_reason"] == "tried out"
        assert (await _call(client, "get_sync_status"))["open_incidents"] == 0
