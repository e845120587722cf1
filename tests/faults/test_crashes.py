"""The program is killed with -9 at each step of a push, and what it leaves is finished by the next one.

The steps are not listed here: a push on record says what there is, so that a step that is added is killed at, too.
"""

import signal

import pytest

from tests.faults.failpoints import Step
from tests.faults.oracle import Comparison, Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Failpoint, Stores, run
from tests.integration.stores import graph, plain_client, remote_digest, uid
from tests.services import postgres
from tests.services.local_store import running

PUSH = ("sync", "--no-embed")
RECOVER = ("recover", "--yes", "--json")
LOSS = "DROP TABLE memories CASCADE"
LOSS_OF_ALL = f"{LOSS}; DROP SCHEMA dionysus_sync CASCADE"
TRIGGERS = "SELECT count(*) FROM pg_trigger WHERE tgrelid = to_regclass('memories') AND NOT tgisinternal"
CLAIM = "try_push_lock"
REMOTE_COMMIT = ("COMMIT", "write_memories")


@pytest.fixture
async def push_steps(stores: Stores, oracle: Oracle) -> list[Step]:
    """Every step of a push of changes of each kind, as a command that is not disturbed takes them.

    The first push makes the remote store's indexes, which are there for every later one; so the second is on record.
    """
    await write(oracle, "first")
    await run(stores, *PUSH)
    await write(oracle, "recorded")
    ended = await run(stores, *PUSH, failpoint=Failpoint())
    assert ended.status == 0, ended.output
    assert (await oracle.compare()).whole
    return ended.steps


async def write(oracle: Oracle, word: str) -> None:
    """One insert, one update, one delete and one insert after a delete; `word` makes their contents unique."""
    new, old = uid(oracle.rows_written + 1), uid(oracle.rows_written + 2)
    await oracle.insert(new, f"{word}: inserted")
    await oracle.update(new, f"{word}: updated")
    await oracle.insert(old, f"{word}: to be deleted")
    await oracle.delete(old)


async def test_a_push_on_record_shows_its_steps(push_steps: list[Step]) -> None:
    """The enumeration that the scenarios rest on has the remote commit between the claim and the acknowledgement."""
    names = [step.statement or step.name for step in push_steps if step.when == "before"]
    assert names.index("claim_entries") < names.index("write_memories") < names.index("acknowledge")


@pytest.mark.scenario(1, "kill -9 at each step of a push before the remote commit")
@pytest.mark.promise("P1")
async def test_killed_before_the_remote_commit(
    stores: Stores, oracle: Oracle, scenario: Scenario, push_steps: list[Step]
) -> None:
    """Nothing has reached the remote store, everything is still queued, and the next push brings it."""
    for step in before_remote_commit(push_steps):
        await write(oracle, str(step))
        before = await remote_digest(stores.neo4j_uri)
        killed = await run(stores, *PUSH, failpoint=Failpoint(str(step)))
        assert killed.reached, f"{step}: {killed.output}"
        assert await remote_digest(stores.neo4j_uri) == before
        compared, seconds = await finished(stores, oracle)
        scenario.note(engaged=killed.status == -signal.SIGKILL, compared=compared, seconds=seconds)


@pytest.mark.scenario(2, "kill -9 at each step of a push after the remote commit")
@pytest.mark.promise("P2")
async def test_killed_after_the_remote_commit(
    stores: Stores, oracle: Oracle, scenario: Scenario, push_steps: list[Step]
) -> None:
    """What was sent already is sent again, or was acknowledged: the remote store stays as it is either way."""
    for step in after_remote_commit(push_steps):
        await write(oracle, str(step))
        killed = await run(stores, *PUSH, failpoint=Failpoint(str(step)))
        assert killed.reached, f"{step}: {killed.output}"
        arrived = await remote_digest(stores.neo4j_uri)
        compared, seconds = await finished(stores, oracle)
        assert await remote_digest(stores.neo4j_uri) == arrived
        scenario.note(engaged=killed.status == -signal.SIGKILL, compared=compared, seconds=seconds)
    assert await graph(stores.neo4j_uri, "MATCH (s:Store) RETURN count(s)") == [1]


@pytest.mark.slow
@pytest.mark.scenario(3, "kill -9 at each step of a recovery")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
@pytest.mark.parametrize("loss", [LOSS, LOSS_OF_ALL], ids=["the table", "all"])
async def test_03_killed_while_recovering(stores: Stores, oracle: Oracle, scenario: Scenario, loss: str) -> None:
    """Rows are there as they were or not at all, a table is there captured or not at all; the next run brings all."""
    await write(oracle, "recovered")
    await run(stores, *PUSH)
    assert (await oracle.compare()).whole
    whole = await remote_digest(stores.neo4j_uri)
    rows, triggers = await local_state(stores.database_url)
    await postgres.execute(stores.database_url, loss)
    recorded = await run(stores, *RECOVER, failpoint=Failpoint())
    assert recorded.status == 0, recorded.output
    for step in [*(step for step in recorded.steps if step.when == "before"), recorded.steps[-1]]:
        await postgres.execute(stores.database_url, loss)
        killed = await run(stores, *RECOVER, failpoint=Failpoint(str(step)))
        assert killed.reached, f"{step}: {killed.output}"
        left, left_triggers = await local_state(stores.database_url)
        assert left.items() <= rows.items(), step
        assert left_triggers in (0, triggers), step
        again = await run(stores, *RECOVER)
        assert again.status == 0, again.output
        assert await local_state(stores.database_url) == (rows, triggers)
        assert await remote_digest(stores.neo4j_uri) == whole
        compared, seconds = await oracle.until_whole()
        scenario.note(engaged=killed.status == -signal.SIGKILL, compared=compared, seconds=seconds)


async def local_state(url: str) -> tuple[dict[str, str], int]:
    """Every row's content by id, and the number of triggers on the table; nothing where there is none."""
    async with plain_client(url) as client:
        if await client.fetchval("SELECT to_regclass('memories') IS NULL"):
            return {}, 0
        rows = await client.fetch("SELECT id::text AS id, content FROM memories")
        return {row["id"]: row["content"] for row in rows}, await client.fetchval(TRIGGERS)


def before_remote_commit(steps: list[Step]) -> list[Step]:
    """From the claim on, the steps at which the remote store has nothing of the batch.

    Only those before something: what comes after a step is what comes before the next one.
    """
    claimed = next(i for i, step in enumerate(steps) if step.name == CLAIM)
    return [step for step in steps[claimed : position(steps, "before") + 1] if step.when == "before"]


def after_remote_commit(steps: list[Step]) -> list[Step]:
    """From the moment when the remote store has all of the batch until the local store has acknowledged it."""
    first = position(steps, "after")
    last = next(i for i, step in enumerate(steps) if i > first and step.name == "COMMIT" and step.when == "after")
    return [steps[first], *(step for step in steps[first:last] if step.when == "before"), steps[last]]


def position(steps: list[Step], when: str) -> int:
    """Of the commit of the batch in the remote store."""
    return next(i for i, step in enumerate(steps) if (step.when, step.name, step.statement) == (when, *REMOTE_COMMIT))


async def finished(stores: Stores, oracle: Oracle) -> tuple[Comparison, float]:
    """Another program pushes what is left; how the stores compare then, and the seconds that it took."""
    async with running(stores.database_url, stores.neo4j_uri) as runtime:
        await runtime.sync(timeout=60, embed=False)
        return await oracle.until_whole()
