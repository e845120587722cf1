"""Changes that go by the capture: the gap is noticed soon, and a comparison finds each change that was made in it."""

import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest

from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.engine.worker import GUARD_SECONDS
from dionysus_sync_mcp.runtime import Runtime
from tests.faults.oracle import Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Stores, drained
from tests.integration.stores import INSERT, Client, graph, plain_client, uid
from tests.services.local_store import running
from tests.services.waiting import until

SOON = 90.0
ROWS = 20
# On top of the guard's interval, for a machine that has much else to do.
SLACK_SECONDS = 20.0
UPDATE = "UPDATE memories SET content = $2 WHERE id = $1"
DELETE = "DELETE FROM memories WHERE id = $1"
QUEUE_PRESENT = "SELECT to_regclass('dionysus_sync.sync_queue') IS NOT NULL"
CAPTURED = "SELECT count(*) FROM dionysus_sync.sync_queue WHERE memory_id = ANY ($1)"
# While an incident is open it is what people are told of, and no drift beside it.
ALERTS = "SELECT details ->> 'kind' FROM dionysus_sync.alerts WHERE kind = 'incident'"


class Gap(NamedTuple):
    """How the capture is put out of work, and how the user's session is set back afterwards.

    Attributes:
        keeps_identity: Whether the store is the same one afterwards: only then is a row that is gone missed.
    """

    statement: str
    afterwards: str = "SELECT 1"
    keeps_identity: bool = True


GAPS = {
    "the triggers disabled": Gap("ALTER TABLE memories DISABLE TRIGGER USER"),
    "triggers that are not ALWAYS, and a session that is a replica": Gap(
        "ALTER TABLE memories ENABLE TRIGGER USER; SET session_replication_role = replica",
        "SET session_replication_role = origin",
    ),
    "the queue table dropped": Gap("DROP TABLE dionysus_sync.sync_queue"),
    "the triggers dropped with the bookkeeping": Gap("DROP SCHEMA dionysus_sync CASCADE", keeps_identity=False),
}
INSERTED, UPDATED, DELETED = range(101, 106), range(1, 6), range(6, 9)


async def write_in_the_gap(client: Client, oracle: Oracle, gap: Gap) -> bool:
    """In one transaction, so that no look of the guard comes between: writes that are captured, the gap, and writes.

    The user's statements all succeed (P5).

    Returns:
        Whether none of the writes in the gap has been captured.
    """
    async with client.transaction():
        await client.execute(INSERT, uid(201), "waits when the gap begins")
        await client.execute(UPDATE, uid(15), "changed when the gap begins")
        await client.execute(gap.statement)
        for number in INSERTED:
            await client.execute(INSERT, uid(number), f"unseen {number}")
        for number in UPDATED:
            await client.execute(UPDATE, uid(number), f"unseen change {number}")
        for number in DELETED:
            await client.execute(DELETE, uid(number))
        unseen = [uid(number) for number in (*INSERTED, *UPDATED, *DELETED)]
        uncaptured = not await client.fetchval(QUEUE_PRESENT) or await client.fetchval(CAPTURED, unseen) == 0
    await client.execute(gap.afterwards)
    for number in (*INSERTED, *UPDATED):
        word = "unseen" if number in INSERTED else "unseen change"
        oracle.expect(uid(number), f"{word} {number}")
    oracle.expect(uid(201), "waits when the gap begins")
    oracle.expect(uid(15), "changed when the gap begins")
    return uncaptured


def noticed(program: Runtime) -> Callable[[], Awaitable[bool]]:
    """Whether the capture is in place again."""

    async def ask() -> bool:
        return await program.installer.initialised() and await program.installer.capture_installed()

    return ask


@pytest.mark.scenario(31, "changes behind the capture: triggers disabled, replica role, queue or bookkeeping dropped")
@pytest.mark.promise("P1")
@pytest.mark.promise("P5")
@pytest.mark.promise("P7")
@pytest.mark.parametrize("name", GAPS)
async def test_31_writes_while_nothing_is_captured(
    stores: Stores, oracle: Oracle, scenario: Scenario, name: str
) -> None:
    """Within the guard's interval it is captured again; what was written arrives unasked, what is gone stays there.

    A delete that nobody saw is not told from a loss: the remote store keeps the memory, people are told, and a repair
    by a person brings the row back.
    """
    gap = GAPS[name]
    async with (
        running(stores.database_url, stores.neo4j_uri, worker=True) as program,
        plain_client(stores.database_url) as client,
    ):
        for number in range(1, ROWS + 1):
            await oracle.insert(uid(number), f"row {number}")
        await drained(stores.database_url, SOON)
        await until(placed(stores.neo4j_uri), what="the remote store knows where this store is", seconds=SOON)
        uncaptured = await write_in_the_gap(client, oracle, gap)
        begun = time.monotonic()
        await until(noticed(program), what="the gap is noticed", seconds=GUARD_SECONDS + SLACK_SECONDS)
        gone = [str(uid(number)) for number in DELETED]
        await until(arrived(stores.neo4j_uri), what="every uncaptured change arrives", seconds=SOON)
        seconds = time.monotonic() - begun
        kept = await graph(stores.neo4j_uri, "MATCH (m:Memory) WHERE m.id IN $ids RETURN m.deleted_at", ids=gone)
        assert kept == [None] * len(gone)
        await drained(stores.database_url, SOON)
        if gap.keeps_identity:
            await until(told(client), what="people are told that changes were not captured", seconds=SOON)
            assert (await program.verify()).counts == {"missing_here": len(gone)}
            await program.verify(repair=True, dry_run=False)
        else:
            await recover(program)
        compared, _ = await oracle.until_whole()
        assert (await program.verify("deep")).result == "clean"
    scenario.note(engaged=uncaptured, compared=compared, seconds=seconds)


def placed(uri: str) -> Callable[[], Awaitable[bool]]:
    """Whether the store would be known again without its identity, by its place: a moment after its first push."""

    async def ask() -> bool:
        return await graph(uri, "MATCH (s:Store) RETURN s.place IS NOT NULL") == [True]

    return ask


def arrived(uri: str) -> Callable[[], Awaitable[bool]]:
    """Whether the remote store has each change that was made in the gap."""
    contents = [f"unseen {n}" for n in INSERTED] + [f"unseen change {n}" for n in UPDATED]
    contents += ["waits when the gap begins", "changed when the gap begins"]

    async def ask() -> bool:
        held = await graph(uri, "MATCH (m:Memory) WHERE m.content IN $contents RETURN m.id", contents=contents)
        return len(held) == len(contents)

    return ask


def told(client: Client) -> Callable[[], Awaitable[bool]]:
    """Whether an alert speaks of a capture that was off, or of a part of the bookkeeping that was gone."""

    async def ask() -> bool:
        return bool({"capture_off", "drop", "bookkeeping_missing"} & {r[0] for r in await client.fetch(ALERTS)})

    return ask


async def recover(program: Runtime) -> None:
    """Of a store that is another one now, since its bookkeeping is new: what it lacks is a recovery's business."""
    plan = await program.plan_recovery(Scope())
    assert (await program.run_recovery(plan.plan_id)).verified == len(DELETED)


@pytest.mark.scenario(31, "changes behind the capture while no program runs, noticed by the next one")
@pytest.mark.promise("P1")
@pytest.mark.promise("P5")
async def test_31_a_gap_while_nobody_watched(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """The next program that starts finds what was written in it, and it finds it once: a second look does nothing."""
    async with plain_client(stores.database_url) as client:
        async with running(stores.database_url, stores.neo4j_uri) as program:
            for number in range(1, ROWS + 1):
                await oracle.insert(uid(number), f"row {number}")
            await program.sync(embed=False)
        uncaptured = await write_in_the_gap(client, oracle, GAPS["the triggers disabled"])
        behind = uncaptured and len(await graph(stores.neo4j_uri, "MATCH (m:Memory) RETURN m.id")) == ROWS
        begun = time.monotonic()
        async with running(stores.database_url, stores.neo4j_uri, worker=True) as program:
            await until(arrived(stores.neo4j_uri), what="every uncaptured change arrives", seconds=SOON)
            seconds = time.monotonic() - begun
            await until(told(client), what="people are told that changes were not captured", seconds=SOON)
            await program.verify(repair=True, dry_run=False)
            compared, _ = await oracle.until_whole()

            assert not (await program.guard.guard_once()).installed
    scenario.note(engaged=behind, compared=compared, seconds=seconds)
