"""The program is killed with -9 at each step of a recovery that overwrites, of an undo and of a drill."""

from collections.abc import Sequence
from uuid import UUID

import pytest

from tests.faults.crashes import at_steps, distinct, finished, killed_at, recorded
from tests.faults.destruction import command
from tests.faults.oracle import Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Stores
from tests.integration.stores import Client, graph, plain_client, uid

ROWS = 12
CLAIM = "try_push_lock"
UNDO = ("undo", "--yes", "--json")
DRILL = ("drill", "--json")
TIME = "SELECT clock_timestamp()"
CONTENTS = "SELECT id, content FROM memories"
SCHEMAS = "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg_%' ORDER BY nspname"
TRIGGERS = "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'memories'::regclass AND tgenabled = 'A'"

Contents = dict[UUID, str]


def some(steps: Sequence[str]) -> list[str]:
    """The steps in the middle and near the end, where it writes."""
    return [steps[len(steps) * part // 6] for part in (3, 4, 5)]


async def contents(client: Client) -> Contents:
    """Of each row."""
    return {row["id"]: row["content"] for row in await client.fetch(CONTENTS)}


async def overwrite(oracle: Oracle, word: str) -> Contents:
    """A user gives every memory another content, one by one; a recovery to a time takes that back."""
    written = {uid(number): f"{word}: overwritten {number}" for number in range(1, ROWS + 1)}
    for id_, content in written.items():
        await oracle.update(id_, content)
    return written


async def good_rows(stores: Stores, oracle: Oracle, client: Client) -> tuple[Contents, str]:
    """Rows in both stores, and a time at which they were."""
    for number in range(1, ROWS + 1):
        await oracle.insert(uid(number), f"good {number}")
    assert (await finished(stores, oracle))[0].whole
    return await contents(client), (await client.fetchval(TIME)).isoformat()


def expect(oracle: Oracle, rows: Contents) -> None:
    """These are to be there now."""
    for id_, content in rows.items():
        oracle.expect(id_, content)


def is_mixture(now: Contents, *states: Contents) -> bool:
    """Whether each row is as in one of these states, and none is missing."""
    return now.keys() == states[0].keys() and all(now[id_] in {state[id_] for state in states} for id_ in now)


@at_steps(3, "a recovery that overwrites rows")
@pytest.mark.promise("P3")
@pytest.mark.promise("P6")
async def test_03_killed_while_overwriting(stores: Stores, oracle: Oracle, scenario: Scenario, *, every: bool) -> None:
    """Each row is as it was or as it is to be, whole pages at a time; the next run brings all, and it can be undone."""
    async with plain_client(stores.database_url) as client:
        good, moment = await good_rows(stores, oracle, client)
        back = ("recover", "--as-of", moment, "--overwrite-newer", "--yes", "--json")
        triggers = await client.fetchval(TRIGGERS)
        await overwrite(oracle, "recorded")
        steps = distinct(await recorded(stores, *back), since=CLAIM)
        for step in steps if every else some(steps):
            bad = await overwrite(oracle, step)
            engaged = await killed_at(step, stores, *back)
            assert is_mixture(await contents(client), good, bad), step
            assert await client.fetchval(TRIGGERS) == triggers
            again = await command(stores, *back)
            assert (again.status, again.report.get("complete", True)) == (0, True), again
            assert await contents(client) == good, step
            expect(oracle, good)
            compared, seconds = await finished(stores, oracle)
            scenario.note(engaged=engaged, compared=compared, seconds=seconds, restored=len(good))


@at_steps(3, "an undo")
@pytest.mark.promise("P3")
@pytest.mark.promise("P6")
async def test_03_killed_while_undoing(stores: Stores, oracle: Oracle, scenario: Scenario, *, every: bool) -> None:
    """Each row is as the recovery made it or as it was before it; the next run brings the rest."""
    async with plain_client(stores.database_url) as client:
        good, moment = await good_rows(stores, oracle, client)
        back = ("recover", "--as-of", moment, "--overwrite-newer", "--yes", "--json")
        await overwrite(oracle, "recorded")
        assert (await command(stores, *back)).status == 0
        steps = undo_steps(await recorded(stores, *UNDO))
        for step in steps if every else some(steps):
            bad = await overwrite(oracle, step)
            assert (await command(stores, *back)).status == 0
            assert await contents(client) == good
            engaged = await killed_at(step, stores, *UNDO)
            assert is_mixture(await contents(client), good, bad), step
            again = await command(stores, *UNDO)
            assert again.status == 0, again
            assert await contents(client) == bad, step
            expect(oracle, bad)
            compared, seconds = await finished(stores, oracle)
            scenario.note(engaged=engaged, compared=compared, seconds=seconds, restored=len(bad))


def undo_steps(steps: Sequence[object]) -> list[str]:
    """From the first thing that it asks for on."""
    return [
        str(step) for step in steps if str(step).endswith("#1") and str(step).startswith(("before:", "after:COMMIT"))
    ]


@at_steps(3, "a drill")
@pytest.mark.promise("P6")
@pytest.mark.promise("P8")
async def test_03_killed_while_drilling(stores: Stores, oracle: Oracle, scenario: Scenario, *, every: bool) -> None:
    """Neither a row nor an incident comes of it; the next drill removes what was left, and passes."""
    async with plain_client(stores.database_url) as client:
        good, _ = await good_rows(stores, oracle, client)
        schemas = await client.fetch(SCHEMAS)
        steps = undo_steps(await recorded(stores, *DRILL))
        for step in steps if every else some(steps):
            engaged = await killed_at(step, stores, *DRILL)
            assert await contents(client) == good, step
            again = await command(stores, *DRILL)
            assert (again.status, again.report["result"], again.report["verified"]) == (0, "passed", ROWS), again
            assert await client.fetch(SCHEMAS) == schemas, step
            compared, seconds = await finished(stores, oracle)
            assert await client.fetchval("SELECT count(*) FROM dionysus_sync.incidents") == 0
            assert await graph(stores.neo4j_uri, "MATCH (i:Incident) RETURN i") == []
            scenario.note(engaged=engaged, compared=compared, seconds=seconds)
