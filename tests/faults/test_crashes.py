"""The program is killed with -9 at each step of a push or of a recovery; what it leaves is finished by the next one.

The steps are not listed here: a command on record says what there is, so that a step that is added is killed at, too.
"""

import pytest

from dionysus_sync_mcp.engine.ports.shared import Scope
from tests.faults.crashes import PUSH, at_steps, distinct, finished, killed_at, recorded
from tests.faults.failpoints import Step
from tests.faults.oracle import Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Stores, run
from tests.integration.stores import graph, plain_client, remote_digest, uid
from tests.services import postgres
from tests.services.local_store import running

RECOVER = ("recover", "--yes", "--json")
LOSS = "DROP TABLE memories CASCADE"
LOSS_OF_ALL = f"{LOSS}; DROP SCHEMA dionysus_sync CASCADE"
TRIGGERS = "SELECT count(*) FROM pg_trigger WHERE tgrelid = to_regclass('memories') AND NOT tgisinternal"
CLAIM = "try_push_lock"
REMOTE_COMMIT = ("COMMIT", "write_memories")
SOME_BEFORE = ["before:write_memories", "before:COMMIT(write_memories)"]
SOME_AFTER = ["after:COMMIT(write_memories)", "after:COMMIT(acknowledge)"]
SOME_OF_RECOVERY = ["after:COMMIT(install_capture)", "before:COMMIT(write_restored)"]


async def push_steps(stores: Stores, oracle: Oracle) -> list[Step]:
    """Every step of a push of changes of each kind.

    The first push makes the remote store's indexes, which are there for every later one; so the second is on record.
    """
    await write(oracle, "first")
    await run(stores, *PUSH)
    await write(oracle, "recorded")
    steps = await recorded(stores, *PUSH)
    assert (await oracle.compare()).whole
    names = [step.statement or step.name for step in steps if step.when == "before"]
    assert names.index("claim_entries") < names.index("write_memories") < names.index("acknowledge")
    return steps


async def write(oracle: Oracle, word: str) -> None:
    """One insert, one update, one delete and one insert after a delete; `word` makes their contents unique."""
    new, old = uid(oracle.rows_written + 1), uid(oracle.rows_written + 2)
    await oracle.insert(new, f"{word}: inserted")
    await oracle.update(new, f"{word}: updated")
    await oracle.insert(old, f"{word}: to be deleted")
    await oracle.delete(old)


@at_steps(1, "a push before the remote commit")
@pytest.mark.promise("P1")
async def test_01_killed_before_the_remote_commit(
    stores: Stores, oracle: Oracle, scenario: Scenario, *, every: bool
) -> None:
    """Nothing has reached the remote store, everything is still queued, and the next push brings it."""
    for step in before_remote_commit(await push_steps(stores, oracle)) if every else SOME_BEFORE:
        await write(oracle, step)
        before = await remote_digest(stores.neo4j_uri)
        engaged = await killed_at(step, stores, *PUSH)
        assert await remote_digest(stores.neo4j_uri) == before
        compared, seconds = await finished(stores, oracle)
        scenario.note(engaged=engaged, compared=compared, seconds=seconds)


@at_steps(2, "a push after the remote commit")
@pytest.mark.promise("P2")
async def test_02_killed_after_the_remote_commit(
    stores: Stores, oracle: Oracle, scenario: Scenario, *, every: bool
) -> None:
    """What was sent already is sent again, or was acknowledged: the remote store stays as it is either way."""
    for step in after_remote_commit(await push_steps(stores, oracle)) if every else SOME_AFTER:
        await write(oracle, step)
        engaged = await killed_at(step, stores, *PUSH)
        arrived = await remote_digest(stores.neo4j_uri)
        compared, seconds = await finished(stores, oracle)
        assert await remote_digest(stores.neo4j_uri) == arrived
        scenario.note(engaged=engaged, compared=compared, seconds=seconds)
    assert await graph(stores.neo4j_uri, "MATCH (s:Store) RETURN count(s)") == [1]


@at_steps(3, "a recovery")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
@pytest.mark.parametrize("loss", [pytest.param(LOSS, marks=pytest.mark.slow), LOSS_OF_ALL], ids=["the table", "all"])
async def test_03_killed_while_recovering(
    stores: Stores, oracle: Oracle, scenario: Scenario, loss: str, *, every: bool
) -> None:
    """Rows are there as they were or not at all, a table is there captured or not at all; the next run brings all."""
    await write(oracle, "recovered")
    assert (await finished(stores, oracle))[0].whole
    whole = await remote_digest(stores.neo4j_uri)
    rows, triggers = await local_state(stores.database_url)
    for step in await recovery_steps(stores, loss) if every else SOME_OF_RECOVERY:
        await postgres.execute(stores.database_url, loss)
        engaged = await killed_at(step, stores, *RECOVER)
        left, left_triggers = await local_state(stores.database_url)
        assert left.items() <= rows.items(), step
        assert left_triggers in (0, triggers), step
        await recover(stores)
        assert await local_state(stores.database_url) == (rows, triggers), step
        assert await remote_digest(stores.neo4j_uri) == whole, step
        compared, seconds = await oracle.until_whole()
        scenario.note(engaged=engaged, compared=compared, seconds=seconds)


async def recovery_steps(stores: Stores, loss: str) -> list[str]:
    """Those of a recovery after such a loss."""
    await postgres.execute(stores.database_url, loss)
    return distinct(await recorded(stores, *RECOVER), since=CLAIM)


async def recover(stores: Stores) -> None:
    """As `recover --yes` does, without the time that a process takes to start."""
    async with running(stores.database_url, stores.neo4j_uri) as program:
        report = await program.run_recovery((await program.plan_recovery(Scope())).plan_id)
    assert report.complete, report


async def local_state(url: str) -> tuple[dict[str, str], int]:
    """Every row's content by id, and the number of triggers on the table; nothing where there is none."""
    async with plain_client(url) as client:
        if await client.fetchval("SELECT to_regclass('memories') IS NULL"):
            return {}, 0
        rows = await client.fetch("SELECT id::text AS id, content FROM memories")
        return {row["id"]: row["content"] for row in rows}, await client.fetchval(TRIGGERS)


def before_remote_commit(steps: list[Step]) -> list[str]:
    """From the claim on, the steps at which the remote store has nothing of the batch.

    Only those before something: what comes after a step is what comes before the next one.
    """
    claimed = next(i for i, step in enumerate(steps) if step.name == CLAIM)
    return [str(step) for step in steps[claimed : position(steps, "before") + 1] if step.when == "before"]


def after_remote_commit(steps: list[Step]) -> list[str]:
    """From the moment when the remote store has all of the batch until the local store has acknowledged it."""
    first = position(steps, "after")
    last = next(i for i, step in enumerate(steps) if i > first and step.name == "COMMIT" and step.when == "after")
    return list(map(str, [steps[first], *(s for s in steps[first:last] if s.when == "before"), steps[last]]))


def position(steps: list[Step], when: str) -> int:
    """Of the commit of the batch in the remote store."""
    return next(i for i, step in enumerate(steps) if (step.when, step.name, step.statement) == (when, *REMOTE_COMMIT))
