"""A local store that is empty, made anew, restored from an old dump or copied: the remote store forgets nothing."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal, NamedTuple

import pytest

from dionysus_sync_mcp.domain.errors import StoreRolledBack
from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.runtime import Runtime
from tests.faults.oracle import Comparison, Oracle, open_oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Stores, waiting, worker
from tests.integration.stores import INSERT, Client, images, plain_client, remote_digest, uid
from tests.services import postgres
from tests.services.local_store import running
from tests.services.waiting import until

pytestmark = pytest.mark.usefixtures("edits_are_no_incident")

Side = Literal["remote", "local"]

ROWS = 12
MANY_EDITS = 40
SOON = 60.0
UPDATE = "UPDATE memories SET content = $2 WHERE id = $1"
DELETE = "DELETE FROM memories WHERE id = $1"
TABLE = (
    "CREATE TABLE memories (id uuid PRIMARY KEY, content text, memory_type text, importance real, source_project text,"
    " session_id uuid, tags text[], created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now())"
)
IDENTITY = "SELECT id::text || epoch::text FROM dionysus_sync.store_identity"
LOSSES = {
    "every row gone without a trace": "ALTER TABLE memories DISABLE TRIGGER USER; DELETE FROM memories",
    "the table emptied": "TRUNCATE memories",
    "the table made anew": f"DROP TABLE memories; {TABLE}",
    "the whole database made anew": f"DROP SCHEMA dionysus_sync CASCADE; DROP TABLE memories; {TABLE}",
}


async def push(program: Runtime) -> None:
    """Push until nothing is left."""
    while (step := await program.pusher.push_once()).pushed or step.parked:
        pass


async def fill(oracle: Oracle) -> None:
    """Memories of two versions each, and one that was deleted."""
    for number in range(1, ROWS + 1):
        await oracle.insert(uid(number), f"first {number}")
        await oracle.update(uid(number), f"second {number}")
    await oracle.insert(uid(99), "to be deleted")
    await oracle.delete(uid(99))


async def detected(program: Runtime) -> None:
    """One round of the detection: among others, the remote store knows then where this local store is."""
    await program.detector.judge_once()
    await program.detector.watch_once()
    await program.detector.publish_once()


async def unasked(program: Runtime) -> None:
    """One round of all that the background loops do to the stores."""
    await program.guard.guard_once()
    await detected(program)
    await program.sync(embed=False)
    for _ in range(2):
        await program.verifier.check_once()
        await push(program)


def held(digest: list[list[object]]) -> set[tuple[object, ...]]:
    """A digest of the remote store, comparable in parts."""
    return {tuple(entry) for entry in digest}


@pytest.mark.scenario(37, "identity: the local store is emptied or made anew; then one recovery")
@pytest.mark.promise("P4")
@pytest.mark.promise("P7")
@pytest.mark.parametrize("loss", LOSSES)
async def test_37_an_empty_local_store_makes_the_remote_forget_nothing(
    stores: Stores, oracle: Oracle, scenario: Scenario, loss: str
) -> None:
    """Not by anything that runs unasked, nor by a rebuild of the remote from what is there; a recovery brings all."""
    async with running(stores.database_url, stores.neo4j_uri) as program, plain_client(stores.database_url) as client:
        await fill(oracle)
        await push(program)
        await detected(program)
        before = held(await remote_digest(stores.neo4j_uri))
        await client.execute(LOSSES[loss])
        empty = await client.fetchval("SELECT count(*) FROM memories") == 0
        await program.init(dry_run=False)
        await oracle.insert(uid(50), f"after {loss}")
        await unasked(program)
        await program.sync(embed=False, rebuild=True)
        assert before <= held(await remote_digest(stores.neo4j_uri))
        plan = await program.plan_recovery(Scope())
        await program.run_recovery(plan.plan_id)
        compared, seconds = await oracle.until_whole()
    scenario.note(engaged=empty and len(before) > ROWS, compared=compared, seconds=seconds)


@pytest.mark.scenario(37, "identity: the ids of an older table are given again, in a database made anew")
@pytest.mark.promise("P3")
@pytest.mark.promise("P4")
@pytest.mark.promise("P7")
async def test_37_the_same_ids_in_a_database_made_anew(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """Their versions begin at 1 again: what the remote had becomes history, and what is written now is live."""
    async with running(stores.database_url, stores.neo4j_uri) as program, plain_client(stores.database_url) as client:
        await fill(oracle)
        await push(program)
        before = await client.fetchval(IDENTITY)
        await client.execute(LOSSES["the whole database made anew"])
        await program.init(dry_run=False)
        restarted = before != await client.fetchval(IDENTITY)
        for number in range(1, ROWS + 1):
            await oracle.insert(uid(number), f"anew {number}")
        await unasked(program)
        compared, seconds = await oracle.until_whole()
    scenario.note(engaged=restarted, compared=compared, seconds=seconds)


class Written(NamedTuple):
    """Writes to a database that were acknowledged, in order; `None` stands for a delete."""

    entries: list[tuple[int, str | None]]

    async def write(self, client: Client, number: int, content: str | None) -> None:
        """Insert, change or delete a memory."""
        here = await client.fetchval("SELECT true FROM memories WHERE id = $1", uid(number))
        if content is None:
            await client.execute(DELETE, uid(number))
        else:
            await client.execute(UPDATE if here else INSERT, uid(number), content)
        self.entries.append((number, content))


async def write_before(client: Client, written: Written) -> None:
    """What the dump has."""
    for number in range(1, ROWS + 1):
        await written.write(client, number, f"first {number}")
        await written.write(client, number, f"second {number}")


async def write_after_the_dump(client: Client, written: Written) -> None:
    """What only the remote store knows when the dump is restored."""
    for number in (1, 2, 3, 4):
        await written.write(client, number, f"later {number}")
    await written.write(client, 20, "later, new")


async def write_after_the_restore(client: Client, written: Written, edits: int) -> None:
    """Memory 1 was changed after the dump too; 5 was not; 6 goes; 30 is new."""
    for edit in range(1, edits + 1):
        await written.write(client, 1, f"mine 1, edit {edit}")
        await written.write(client, 5, f"mine 5, edit {edit}")
    if edits:
        await written.write(client, 6, None)
        await written.write(client, 30, "mine, new")


class Restored(NamedTuple):
    """A database that was restored from a dump that is older than what the remote store holds."""

    url: str
    dump: Written
    later: Written


@asynccontextmanager
async def restored_from_an_old_dump(stores: Stores) -> AsyncIterator[Restored]:
    """As `CREATE DATABASE ... TEMPLATE` makes one, after which the program went on with the newer one."""
    dump, later = Written([]), Written([])
    async with running(stores.database_url, stores.neo4j_uri) as program, plain_client(stores.database_url) as client:
        await write_before(client, dump)
        await push(program)
    async with postgres.copy_of(stores.database_url) as url:
        async with (
            running(stores.database_url, stores.neo4j_uri) as program,
            plain_client(stores.database_url) as client,
        ):
            await write_after_the_dump(client, later)
            await push(program)
        yield Restored(url, dump, later)


async def compare(
    url: str, uri: str, prefer: Side, restored: Restored, mine: Written, program: Runtime
) -> tuple[Comparison, float]:
    """With what must have come of it all: each content in the history, and of each memory the preferred side's."""
    async with open_oracle(url, uri) as oracle:
        order = (restored.later, mine) if prefer == "local" else (mine, restored.later)
        for written in (restored.dump, *order):
            for number, content in written.entries:
                oracle.expect(uid(number), content)
        if prefer == "local":
            touched = {number for number, _ in mine.entries}
            for number in {1, 2, 3, 4} - touched:
                oracle.expect(uid(number), f"second {number}")
        await push(program)
        return await oracle.until_whole()


@pytest.mark.scenario(37, "identity: a database restored from an old dump, edited since or not, pushes")
@pytest.mark.promise("P1")
@pytest.mark.promise("P3")
@pytest.mark.promise("P4")
@pytest.mark.promise("P7")
@pytest.mark.parametrize("prefer", ["remote", "local"])
@pytest.mark.parametrize("edits", [0, 1, MANY_EDITS])
async def test_37_a_database_restored_from_an_old_dump(
    stores: Stores, scenario: Scenario, prefer: Side, edits: int
) -> None:
    """However often it was edited since, nothing is pushed and a person is asked; either answer converges."""
    mine, uri = Written([]), stores.neo4j_uri
    async with (
        restored_from_an_old_dump(stores) as restored,
        plain_client(restored.url) as client,
        running(restored.url, uri) as program,
    ):
        await write_after_the_restore(client, mine, edits)
        remote, rows = await remote_digest(uri), await images(client)
        refused = await refuses_to_push(program, client)
        assert await remote_digest(uri) == remote
        await unasked_without_pushes(program)
        undecided = await program.verify(repair=True)
        assert (await remote_digest(uri), without_probe(await images(client))) == (remote, rows)
        assert "--prefer" in (await program.status()).next_step
        assert edits or undecided.counts
        decided = await program.verify(repair=True, prefer=prefer, dry_run=False)
        assert decided.repaired
        await client.execute(DELETE, PROBE)
        mine.entries.extend([(PROBE_NUMBER, PROBE_CONTENT), (PROBE_NUMBER, None)])
        await push(program)
        await bring_what_the_dump_lacks(program, prefer)
        compared, seconds = await compare(restored.url, uri, prefer, restored, mine, program)
        assert not (await program.verify("deep")).counts
    scenario.note(engaged=refused, compared=compared, seconds=seconds)


PROBE_NUMBER, PROBE_CONTENT = 77, "waits for a decision"
PROBE = uid(PROBE_NUMBER)


async def refuses_to_push(program: Runtime, client: Client) -> bool:
    """Whether a change that waits is not pushed, by any means."""
    await client.execute(INSERT, PROBE, PROBE_CONTENT)
    before = await waiting_entries(client)
    with pytest.raises(StoreRolledBack, match="older than what it has pushed"):
        await program.pusher.push_once()
    assert (await program.sync(embed=False)).result == "failed"
    return before > 0 and await waiting_entries(client) == before


async def waiting_entries(client: Client) -> int:
    """Queue entries that wait."""
    return int(await client.fetchval("SELECT count(*) FROM dionysus_sync.sync_queue WHERE parked_at IS NULL"))


async def unasked_without_pushes(program: Runtime) -> None:
    """What the background loops do beside the push."""
    await program.guard.guard_once()
    for _ in range(2):
        await program.verifier.check_once()


def without_probe(rows: dict[str, str]) -> dict[str, str]:
    """Images of the rows but that of the change that waits."""
    return {id_: image for id_, image in rows.items() if id_ != str(PROBE)}


async def bring_what_the_dump_lacks(program: Runtime, prefer: Side) -> None:
    """With the local side preferred, a memory that only the remote store had is a tombstone, until it is asked for."""
    assert (await program.verify()).counts == {}
    if prefer == "local":
        plan = await program.plan_recovery(Scope(memory_ids=(str(uid(20)),)), include_deleted=True)
        assert plan.will_restore == 1
        await program.run_recovery(plan.plan_id)


@pytest.mark.scenario(37, "identity: the real worker on a database restored from an old dump, then an answer")
@pytest.mark.promise("P7")
@pytest.mark.promise("P9")
async def test_37_the_worker_asks_and_goes_on_by_itself_once_it_is_answered(stores: Stores, scenario: Scenario) -> None:
    """It stays up, says in its log what to decide, and pushes on when somebody has decided beside it."""
    mine, uri = Written([]), stores.neo4j_uri
    async with restored_from_an_old_dump(stores) as restored, plain_client(restored.url) as client:
        await write_after_the_restore(client, mine, 1)
        here = Stores(restored.url, uri, stores.home)
        before = await remote_digest(uri)
        async with worker(here) as program:
            await until(says(lambda: program.log, "--prefer remote"), what="it asks", seconds=SOON)
            engaged = await remote_digest(uri) == before and (await waiting(restored.url))[0] > 0
            async with running(restored.url, uri) as person:
                await person.verify(repair=True, prefer="remote", dry_run=False)

                async def pushed() -> bool:
                    return (await waiting(restored.url))[0] == 0

                await until(pushed, what="the worker pushes again", seconds=2 * SOON)
                assert program.running
                compared, seconds = await compare(restored.url, uri, "remote", restored, mine, person)
    scenario.note(engaged=engaged, compared=compared, seconds=seconds)


def says(log: Callable[[], str], words: str) -> Callable[[], Awaitable[bool]]:
    """Whether a log has these words."""

    async def ask() -> bool:
        return words in log()

    return ask


@pytest.mark.scenario(37, "identity: a copy of the database pushes too")
@pytest.mark.promise("P1")
@pytest.mark.promise("P4")
@pytest.mark.promise("P7")
async def test_37_a_copy_of_the_database_that_pushes_too(stores: Stores, scenario: Scenario) -> None:
    """The second one to push is stopped and asked about; what it decides, the other one is asked about in turn."""
    uri, dump, ours, copys = stores.neo4j_uri, Written([]), Written([]), Written([])
    async with running(stores.database_url, uri) as program, plain_client(stores.database_url) as client:
        await write_before(client, dump)
        await push(program)
    async with AsyncExitStack() as stack:
        copy = await stack.enter_async_context(postgres.copy_of(stores.database_url))
        original = await stack.enter_async_context(running(stores.database_url, uri))
        another = await stack.enter_async_context(running(copy, uri))
        client = await stack.enter_async_context(plain_client(stores.database_url))
        copy_client = await stack.enter_async_context(plain_client(copy))
        await copys.write(copy_client, 1, "by the copy")
        await copys.write(copy_client, 40, "new in the copy")
        await push(another)
        await ours.write(client, 1, "by the original")
        await ours.write(client, 30, "new in the original")
        before = await remote_digest(uri)
        refused = await stopped(original)
        assert await remote_digest(uri) == before
        await original.verify(repair=True, prefer="remote", dry_run=False)
        await push(original)
        await copys.write(copy_client, 2, "by the copy again")
        refused = refused and await stopped(another)
        restored = Restored(stores.database_url, dump, Written(copys.entries[:2]))
        compared, seconds = await compare(stores.database_url, uri, "remote", restored, ours, original)
        assert await copy_client.fetchval("SELECT content FROM memories WHERE id = $1", uid(2)) == "by the copy again"
        assert await waiting(copy) == (1, 0)
    scenario.note(engaged=refused, compared=compared, seconds=seconds, rows=len(dump.entries + ours.entries) + 3)


async def stopped(program: Runtime) -> bool:
    """Whether it refuses to push."""
    with pytest.raises(StoreRolledBack):
        await program.pusher.push_once()
    return True
