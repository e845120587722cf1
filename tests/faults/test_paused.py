"""A process stands still in the middle of a push for longer than every time-out, and goes on when others have pushed.

That its transaction is ended for being idle takes the server two minutes at least; in `make test` it is told to do so.
"""

import signal
from collections.abc import AsyncIterator

import anyio
import pytest

from tests.faults.contest import CONFLICTS, SHARED, another_store, contest
from tests.faults.crashes import PUSH, finished
from tests.faults.oracle import Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import SOON, Failpoint, Program, Stores, drained, started, waiting, worker
from tests.integration.stores import Client, plain_client, remote_digest, uid
from tests.services.local_store import running
from tests.services.waiting import until

ALONE = uid(2)
IDLE = "pid FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
# Until a push has 5 s, as it has on a link that is quick; its transaction may then be idle for 24 times as long.
PUSHES = 4
LONG = 600.0
# Several pages of a comparison.
ROWS = 3_000
STEPS = ["after:write_store", "before:COMMIT(write_memories)", "before:acknowledge"]


@pytest.fixture
async def user(stores: Stores) -> AsyncIterator[Client]:
    """Sees what the local store has."""
    async with plain_client(stores.database_url) as client:
        yield client


async def contested(stores: Stores, oracle: Oracle, migrated_template: str) -> None:
    """A memory of which the remote store has a version that will win, and one that only this store has."""
    await oracle.insert(SHARED, "shared")
    assert (await finished(stores, oracle))[0].whole
    async with another_store(migrated_template, stores.neo4j_uri) as other:
        await contest(oracle, other, "contested")
    await oracle.insert(ALONE, "on its way")


async def stands_still(paused: Program) -> None:
    """Wait until it has come to its failpoint and stands there."""
    await paused.at_failpoint(2 * SOON)
    await until(paused.stopped, what="the program stands still", seconds=SOON)


async def take_over(stores: Stores, oracle: Oracle) -> None:
    """Another process pushes what the one that stands still had claimed, and then newer versions of it."""
    async with running(stores.database_url, stores.neo4j_uri) as program:
        for newer in (None, "newer", "newer still"):
            if newer:
                await oracle.update(SHARED, f"shared: {newer}")
                await oracle.update(ALONE, f"alone: {newer}")
            with anyio.fail_after(2 * SOON):
                while (await waiting(stores.database_url))[0]:
                    await program.sync(timeout=SOON, embed=False)
    compared, _ = await oracle.until_whole()
    assert compared.whole, compared


async def changed_nothing(
    before: list[object], stores: Stores, oracle: Oracle, user: Client, scenario: Scenario, *, conflicts: int
) -> None:
    """The remote store is as it was, nothing is lost, and a conflict is on record once."""
    assert await remote_digest(stores.neo4j_uri) == before
    assert [row["winner"] for row in await user.fetch(CONFLICTS)] == ["remote"] * conflicts
    compared, seconds = await oracle.until_whole()
    scenario.note(engaged=True, compared=compared, seconds=seconds)


@pytest.mark.scenario(15, "SIGSTOP in the middle of a push; another process takes over, then SIGCONT")
@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
@pytest.mark.promise("P8")
@pytest.mark.parametrize("step", STEPS)
async def test_15_a_push_that_is_resumed_changes_nothing(
    step: str, stores: Stores, oracle: Oracle, user: Client, migrated_template: str, scenario: Scenario
) -> None:
    """Its claim is another's by then, and what it sends or acknowledges late is refused on both sides."""
    await contested(stores, oracle, migrated_template)
    async with started(stores, *PUSH, failpoint=Failpoint(step, sends=signal.SIGSTOP)) as paused:
        await stands_still(paused)
        assert await user.fetch(f"SELECT pg_terminate_backend(pid), {IDLE}")
        await take_over(stores, oracle)
        before = await remote_digest(stores.neo4j_uri)
        assert await paused.stopped()
        paused.resume()
        await paused.ended(2 * SOON)
    await changed_nothing(before, stores, oracle, user, scenario, conflicts=1)


@pytest.mark.slow
@pytest.mark.scenario(15, "SIGSTOP in the middle of a push until the server ends its transaction, then SIGCONT")
@pytest.mark.promise("P1")
@pytest.mark.promise("P2")
async def test_15_the_lock_of_a_process_that_stands_still_is_free_in_the_end(
    stores: Stores, oracle: Oracle, user: Client, scenario: Scenario
) -> None:
    """Nobody has to do anything for it; the worker goes on afterwards as if nothing had been."""
    point = Failpoint(f"before:acknowledge#{PUSHES + 1}", sends=signal.SIGSTOP)
    async with worker(stores, failpoint=point) as paused:
        for number in range(1, PUSHES + 1):
            await oracle.insert(uid(10 + number), f"push {number}")
            await drained(stores.database_url)
        await oracle.insert(SHARED, "shared")
        await oracle.insert(ALONE, "alone")
        await stands_still(paused)

        async def free() -> bool:
            return not await user.fetch(f"SELECT {IDLE}")

        assert not await free()
        await until(free, what="the transaction is ended", seconds=LONG, pause=1.0)
        await take_over(stores, oracle)
        before, trace = await remote_digest(stores.neo4j_uri), paused.trace
        assert await paused.stopped()
        paused.resume()

        async def goes_on() -> bool:
            return "claim_entries" in paused.trace.removeprefix(trace)

        await until(goes_on, what=f"the worker claims again: {paused.log[-2000:]}", seconds=2 * SOON)
        await changed_nothing(before, stores, oracle, user, scenario, conflicts=0)
        paused.terminate()
        assert await paused.ended() == 0


@pytest.mark.slow
@pytest.mark.scenario(15, "SIGSTOP in the middle of a comparison, while a user changes the table")
@pytest.mark.promise("P5")
async def test_15_a_comparison_that_stands_still_holds_up_nobody_for_ever(
    stores: Stores, oracle: Oracle, user: Client, scenario: Scenario
) -> None:
    """It has read a whole page by then, so that it is its idle transaction that the server ends."""
    rows = [(uid(number), f"content {number}") for number in range(1, ROWS + 1)]
    await user.executemany("INSERT INTO memories (id, content) VALUES ($1, $2)", rows)
    for row in rows:
        oracle.expect(*row)
    async with worker(stores):
        await drained(stores.database_url)
    async with started(stores, "verify", failpoint=Failpoint("before:local_digests#2", sends=signal.SIGSTOP)) as paused:
        await stands_still(paused)
        with anyio.fail_after(LONG):
            begun = anyio.current_time()
            await user.execute("ALTER TABLE memories ADD COLUMN mood text")
            waited = anyio.current_time() - begun
        assert await paused.stopped()
        paused.resume()
        await paused.ended(2 * SOON)
    compared, seconds = await oracle.until_whole()
    scenario.note(engaged=waited > 1, compared=compared, seconds=seconds)
