"""Verify, end to end: what somebody changed behind our back is found, only that, and mended on both sides."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

import anyio
import pytest

from dionysus_sync_mcp.adapters.postgres.verifying import PostgresVerifying
from dionysus_sync_mcp.domain.drift import DriftClass, Facts
from dionysus_sync_mcp.domain.errors import StoreRolledBack
from dionysus_sync_mcp.engine import compare
from dionysus_sync_mcp.engine.compare import Kind
from dionysus_sync_mcp.engine.ports.verify import Seen
from dionysus_sync_mcp.runtime import Runtime
from tests.integration.stores import INSERT, Client, graph, history, images, node, plain_client, queue, uid
from tests.services import postgres
from tests.services.local_store import running

ROWS = 12
VICTIM = uid(7)


class Fault(NamedTuple):
    """How one class of drift comes about, and what must be true after it was mended."""

    drift: DriftClass
    make: Callable[[Client, str, Runtime], Awaitable[None]]
    kind: Kind = "full"
    content: str | None = "second"
    kept: str | None = None


async def push(program: Runtime) -> None:
    """Push until nothing is left."""
    while (step := await program.pusher.push_once()).pushed or step.parked:
        pass


@asynccontextmanager
async def behind_our_back(client: Client) -> AsyncIterator[None]:
    """Statements that the capture does not see, as those of a disabled trigger."""
    await client.execute("SET dionysus.origin = 'restore'")
    yield
    await client.execute("RESET dionysus.origin")


async def filled(client: Client, program: Runtime) -> None:
    """Rows of two versions each, in both stores."""
    for number in range(1, ROWS + 1):
        await client.execute(INSERT, uid(number), f"first {number}")
    await push(program)
    await client.execute("UPDATE memories SET content = 'second'")
    await push(program)


async def on_node(uri: str, change: str, **parameters: object) -> None:
    """Change the victim's node by hand."""
    await graph(uri, f"MATCH (m:Memory {{id: $id}}) {change}", id=str(VICTIM), **parameters)


async def _lose_there(_client: Client, uri: str, _program: Runtime) -> None:
    await on_node(uri, "DETACH DELETE m")


async def _age_there(_client: Client, uri: str, _program: Runtime) -> None:
    await on_node(
        uri,
        "MATCH (m)-[:HAS_VERSION]->(v {sync_version: 1})"
        " SET m.content = v.content, m.content_hash = v.content_hash, m.sync_version = 1",
    )


async def _delete_there(_client: Client, uri: str, _program: Runtime) -> None:
    await on_node(uri, "SET m.deleted_at = datetime(), m.sync_version = 9")


async def _revive_there(client: Client, uri: str, program: Runtime) -> None:
    await client.execute("DELETE FROM memories WHERE id = $1", VICTIM)
    await push(program)
    await on_node(uri, "SET m.sync_version = 2 REMOVE m.deleted_at")


async def _lose_here(client: Client, _uri: str, _program: Runtime) -> None:
    async with behind_our_back(client):
        await client.execute("DELETE FROM memories WHERE id = $1", VICTIM)


async def _age_here(client: Client, _uri: str, _program: Runtime) -> None:
    async with behind_our_back(client):
        await client.execute("UPDATE memories SET content = 'of yore', sync_version = 1 WHERE id = $1", VICTIM)


async def _flip_here(client: Client, _uri: str, _program: Runtime) -> None:
    async with behind_our_back(client):
        await client.execute("UPDATE memories SET content = 'flipped here' WHERE id = $1", VICTIM)


async def _corrupt_there(_client: Client, uri: str, _program: Runtime) -> None:
    await on_node(uri, "SET m.content = 'garbled'")


async def _double_there(_client: Client, uri: str, _program: Runtime) -> None:
    await graph(uri, "DROP CONSTRAINT memory_id_unique IF EXISTS")
    await on_node(uri, "CREATE (twin:Memory) SET twin = properties(m), twin.sync_version = 1, twin.content = 'twin'")


async def _unversion_there(_client: Client, uri: str, _program: Runtime) -> None:
    await on_node(uri, "MATCH (m)-[:HAS_VERSION]->(v {sync_version: 2}) DETACH DELETE v")


FAULTS = [
    Fault("missing_there", _lose_there),
    Fault("older_there", _age_there),
    Fault("deleted_there", _delete_there),
    Fault("deleted_here", _revive_there, content=None, kept="second"),
    Fault("missing_here", _lose_here),
    Fault("older_here", _age_here, kept="of yore"),
    Fault("different", _flip_here, content="flipped here", kept="second"),
    Fault("corrupt_there", _corrupt_there, "deep", kept="garbled"),
    Fault("duplicate_there", _double_there, kept="twin"),
    Fault("unversioned_there", _unversion_there, "deep", kept="second"),
]


@pytest.fixture
async def either(migrated_database_url: str, neo4j_both: str) -> AsyncIterator[Runtime]:
    """The program without its background loops, on each supported Neo4j."""
    async with running(migrated_database_url, neo4j_both) as runtime:
        yield runtime


@pytest.mark.promise("P1")
@pytest.mark.promise("P3")
@pytest.mark.promise("P4")
@pytest.mark.promise("P8")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.drift)
async def test_each_class_of_drift_is_found_and_mended(
    either: Runtime, client: Client, neo4j_both: str, fault: Fault
) -> None:
    """Only the one memory is found, a dry run changes nothing, a repair mends it, and the next look is clean."""
    await filled(client, either)
    assert (await either.verify("deep")).counts == {}
    await fault.make(client, neo4j_both, either)
    before = await images(client), await everything(neo4j_both)
    found = await either.verify(fault.kind, repair=True)
    assert found.counts == {fault.drift: 1}
    assert [example.memory_id for example in found.examples[fault.drift]] == [str(VICTIM)]
    assert (found.result, found.dry_run, found.repaired) == ("drift", True, {})
    assert (await images(client), await everything(neo4j_both), await queue(client)) == (*before, [])
    nodes = await count_nodes(neo4j_both)
    mended = await either.verify(fault.kind, repair=True, dry_run=False)
    assert (mended.result, mended.repaired) == ("clean", {fault.drift: 1})
    await push(either)
    again = await either.verify("deep", repair=True, dry_run=False)
    assert (again.counts, again.warnings) == ({}, [])
    assert await client.fetchval("SELECT content FROM memories WHERE id = $1", VICTIM) == fault.content
    held = await node(neo4j_both, VICTIM)
    assert ("deleted_at" in held) == (fault.content is None)
    if fault.kept:
        assert fault.kept in [content for _, _, content in await history(neo4j_both, VICTIM)]
    assert await count_nodes(neo4j_both) >= nodes
    assert await repairs(client) == [f"repair: 1 {fault.drift}"]


async def everything(uri: str) -> list[Any]:
    """All nodes of memories and of their histories, comparable."""
    return await graph(
        uri,
        "MATCH (m) WHERE m:Memory OR m:MemoryVersion"
        " RETURN [coalesce(m.id, m.key), m.sync_version, m.content, toString(m.deleted_at)] AS digest ORDER BY digest",
    )


async def count_nodes(uri: str) -> int:
    """Of memories and of their histories."""
    return int((await graph(uri, "MATCH (m) WHERE m:Memory OR m:MemoryVersion RETURN count(m)"))[0])


async def repairs(client: Client) -> list[str]:
    """What the audit says of repairs."""
    rows = await client.fetch(
        "SELECT error_message FROM dionysus_sync.sync_events WHERE error_message LIKE 'repair:%' ORDER BY timestamp"
    )
    return [r[0] for r in rows]


@pytest.mark.promise("P1")
async def test_one_flipped_row_of_many_is_found_on_each_side(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Of two thousand rows, one on either side, and only these."""
    await client.execute("INSERT INTO memories (content) SELECT 'row ' || i FROM generate_series(1, 2000) AS i")
    await push(program)
    ids = [str(r["id"]) for r in await client.fetch("SELECT id FROM memories ORDER BY id")]
    async with behind_our_back(client):
        await client.execute("UPDATE memories SET content = 'flipped' WHERE id = $1::text::uuid", ids[1234])
    await graph(empty_neo4j, "MATCH (m:Memory {id: $id}) SET m.content = 'flipped'", id=ids[777])
    found = await program.verify("deep")
    assert (found.local_memories, found.remote_memories) == (2000, 2000)
    assert found.counts == {"different": 1, "corrupt_there": 1}
    assert [example.memory_id for name in found.counts for example in found.examples[name]] == [ids[1234], ids[777]]


@pytest.mark.promise("P7")
async def test_what_another_store_wrote_is_no_drift(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """Its memories are not missing here."""
    await filled(client, program)
    await graph(
        empty_neo4j, "CREATE (:Memory {id: $id, sync_version: 1, content_hash: 'x', origin: 'o'})", id=str(uid(99))
    )
    await graph(empty_neo4j, "CREATE (:Memory {id: 'made by hand', sync_version: 'one', origin: 'o'})")
    found = await program.verify("deep")
    assert (found.result, found.remote_memories) == ("clean", ROWS)


async def test_no_false_alarm_while_writers_and_a_pusher_are_busy(
    program: Runtime, client: Client, migrated_database_url: str
) -> None:
    """Rows are inserted, changed, deleted and inserted again all the time: ten comparisons find nothing."""
    await filled(client, program)
    written = 0
    compared: list[dict[DriftClass, int]] = []
    written_at: list[int] = []

    async def write() -> None:
        nonlocal written
        async with plain_client(migrated_database_url) as writer:
            while True:
                victim = uid(written % (2 * ROWS) + 1)
                await writer.execute(
                    INSERT + " ON CONFLICT (id) DO UPDATE SET content = EXCLUDED.content", victim, f"{written}"
                )
                if written % 5 == 0:
                    await writer.execute("DELETE FROM memories WHERE id = $1", victim)
                written += 1

    async def push_always() -> None:
        while True:
            await program.pusher.push_once()

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            tasks.start_soon(push_always)
            for kind in ("full", "quick", "full", "deep", "full", "quick", "full", "deep", "full", "full"):
                compared.append((await program.verify(kind)).counts)
                written_at.append(written)
            tasks.cancel_scope.cancel()
    assert compared == [{}] * 10
    assert written_at == sorted(set(written_at)), "nothing was written meanwhile"


@pytest.mark.promise("P1")
async def test_changes_that_went_by_the_capture_are_compared_and_sent(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Triggers were disabled for a while: the change here wins unasked; people are told once, of the incident."""
    await filled(client, program)
    await program.verifier.check_once()
    await client.execute("ALTER TABLE memories DISABLE TRIGGER USER")
    await client.execute("UPDATE memories SET content = 'unseen' WHERE id = $1", uid(1))
    await client.execute("DELETE FROM memories WHERE id = $1", uid(2))
    await client.execute(INSERT, uid(50), "unseen too")
    assert await queue(client) == []
    assert (await program.guard.guard_once()).installed
    assert await due(client)
    await push(program)
    await program.verifier.check_once()
    await push(program)
    assert (await node(empty_neo4j, uid(1)))["content"] == "unseen"
    assert (await node(empty_neo4j, uid(50)))["content"] == "unseen too"
    assert not await due(client)
    assert (await program.verify()).counts == {"missing_here": 1}
    alerts = await client.fetch("SELECT kind, details ->> 'class' AS class FROM dionysus_sync.alerts")
    assert {tuple(r) for r in alerts} == {("incident", None)}
    assert "deleted_at" not in await node(empty_neo4j, uid(2))


@pytest.mark.promise("P7")
async def test_a_wiped_remote_is_compared_and_filled_again(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """The push that finds it so calls for a comparison, after which every row is there again."""
    await filled(client, program)
    await program.verifier.check_once()
    assert not await due(client)
    await graph(empty_neo4j, "MATCH (n) DETACH DELETE n")
    await client.execute("UPDATE memories SET content = 'third' WHERE id = $1", uid(1))
    await push(program)
    assert await due(client)
    await program.verifier.check_once()
    assert not await due(client)
    await push(program)
    report = await program.verify()
    assert (report.result, report.remote_memories) == ("clean", ROWS)


async def test_a_sweep_is_made_when_it_is_time_and_by_one_process(program: Runtime, client: Client) -> None:
    """The first passes over all ids; the next one waits, though another process would make it."""
    await filled(client, program)
    await client.execute("DELETE FROM dionysus_sync.comparison_due")
    await program.verifier.check_once()
    await program.verifier.check_once()
    assert await checks(client) == [("full", "clean")]
    await client.execute("UPDATE dionysus_sync.verifications SET finished_at = finished_at - interval '10 min'")
    await program.verifier.check_once()
    assert await checks(client) == [("full", "clean"), ("quick", "clean")]
    status = await program.status()
    assert status.last_check is not None
    assert (status.last_check.kind, status.last_check.differences) == ("quick", 0)


async def test_the_last_check_counts_what_was_not_looked_at_closely(
    program: Runtime, client: Client, empty_neo4j: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More differ than are held at once."""
    monkeypatch.setattr(compare, "MOST_DIFFERENCES", 5)
    await filled(client, program)
    await graph(empty_neo4j, "MATCH (m:Memory) DETACH DELETE m")
    report = await program.verify()
    assert (report.counts, report.unlooked) == ({"missing_there": 5}, ROWS - 5)
    last = (await program.status()).last_check
    assert last is not None
    assert last.differences == ROWS


async def test_a_sweep_mends_what_only_the_remote_lacks(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """A row that is missing there is sent; of one that is older here people are told, and it stays."""
    await filled(client, program)
    await client.execute("DELETE FROM dionysus_sync.comparison_due")
    await graph(empty_neo4j, "MATCH (m:Memory {id: $id}) DETACH DELETE m", id=str(uid(1)))
    await _age_here(client, empty_neo4j, program)
    await program.verifier.check_once()
    await program.verifier.check_once()
    await push(program)
    assert (await program.verify()).counts == {"older_here": 1}
    assert await client.fetchval("SELECT content FROM memories WHERE id = $1", VICTIM) == "of yore"
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.alerts") == 1


@pytest.mark.promise("P2")
async def test_a_rebuild_sends_every_row_and_changes_nothing(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """All rows are queued, in pages; the remote answers that it has them."""
    await filled(client, program)
    before = await everything(empty_neo4j)
    assert await rebuild(program) == ROWS
    assert (await program.pusher.push_once()).outcomes == {"unchanged": ROWS}
    assert await everything(empty_neo4j) == before
    await graph(empty_neo4j, "MATCH (m:Memory) DETACH DELETE m")
    await rebuild(program)
    await push(program)
    assert len(await graph(empty_neo4j, "MATCH (m:Memory) RETURN m.id")) == ROWS


async def rebuild(program: Runtime) -> int:
    """Queue all rows; how many were."""
    queued = 0
    while (step := await program.verifier.rebuild_step()) is not None:
        queued += step
    return queued


@pytest.mark.promise("P1")
async def test_a_rebuild_goes_on_past_a_row_that_cannot_be_json(program: Runtime, client: Client) -> None:
    """It is parked with the reason, the others are queued."""
    await filled(client, program)
    await client.execute("ALTER TABLE memories ADD COLUMN j json")
    async with behind_our_back(client):
        await client.execute("UPDATE memories SET j = $2::text::json WHERE id = $1", VICTIM, '"\\u0000"')
    assert await rebuild(program) == ROWS
    parked = await client.fetch("SELECT memory_id FROM dionysus_sync.sync_queue WHERE parked_at IS NOT NULL")
    assert [r["memory_id"] for r in parked] == [VICTIM]
    assert len(await queue(client)) == ROWS


async def test_what_waits_or_is_parked_is_left_out(program: Runtime, client: Client) -> None:
    """It is no drift; what is parked is said."""
    await filled(client, program)
    await client.execute(INSERT, uid(60), "waits")
    await client.execute("UPDATE memories SET content = 'parked' WHERE id = $1", uid(1))
    await client.execute("UPDATE dionysus_sync.sync_queue SET parked_at = now() WHERE memory_id = $1", uid(1))
    report = await program.verify("deep")
    assert (report.result, report.left_out, report.local_memories) == ("clean", 2, ROWS - 1)
    assert ["1 memories are left out" in warning for warning in report.warnings] == [True]


async def test_nothing_is_compared_while_much_waits(
    program: Runtime, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report says to sync first."""
    monkeypatch.setattr(compare, "MOST_WAITING", 3)
    for number in range(1, 5):
        await client.execute(INSERT, uid(number), "waits")
    report = await program.verify(repair=True, dry_run=False)
    assert (report.result, report.repaired) == ("skipped", {})
    assert "sync_now" in report.next_step


@pytest.mark.promise("P7")
@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("DROP TABLE memories", "missing"),
        ("ALTER TABLE memories DISABLE TRIGGER USER", "not being captured"),
        ("ALTER TABLE memories DROP COLUMN sync_version CASCADE", "not being captured"),
        ("ALTER TABLE memories DROP COLUMN synced_version", "add_sync_columns is due"),
        ("ALTER TABLE memories DROP COLUMN memory_type", "lacks the column(s) memory_type"),
        ("DROP SCHEMA dionysus_sync CASCADE", "not protected"),
    ],
)
async def test_a_local_store_in_a_bad_state_is_not_compared(
    program: Runtime, client: Client, empty_neo4j: str, statement: str, reason: str
) -> None:
    """A repair then does nothing, and says why."""
    await filled(client, program)
    before = await everything(empty_neo4j)
    await client.execute(statement)
    report = await program.verify(repair=True, dry_run=False)
    assert (report.result, report.repaired) == ("skipped", {})
    assert reason in report.warnings[0]
    assert await everything(empty_neo4j) == before
    await program.verifier.check_once()
    assert await everything(empty_neo4j) == before


async def test_a_repair_is_bounded(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """No more than the limit of each class, and the rest is said."""
    await filled(client, program)
    await graph(empty_neo4j, "MATCH (m:Memory) DETACH DELETE m")
    report = await program.verify(repair=True, dry_run=False, limit=5)
    assert (report.result, report.counts, report.repaired) == ("drift", {"missing_there": ROWS}, {"missing_there": 5})
    assert f"Beyond this round's limit are {ROWS - 5} missing_there." in report.warnings
    assert len(await queue(client)) == 5


@pytest.mark.promise("P4")
@pytest.mark.promise("P7")
@pytest.mark.parametrize("prefer", ["remote", "local"])
async def test_a_database_that_went_back_goes_on_as_a_person_decides(
    migrated_database_url: str, empty_neo4j: str, prefer: Literal["remote", "local"]
) -> None:
    """A restored dump does not push until one side is preferred; what loses is in the history, and pushes go on."""
    async with plain_client(migrated_database_url) as client, running(migrated_database_url, empty_neo4j) as program:
        await filled(client, program)
    async with postgres.copy_of(migrated_database_url) as dump:
        async with (
            plain_client(migrated_database_url) as client,
            running(migrated_database_url, empty_neo4j) as program,
        ):
            await client.execute("UPDATE memories SET content = 'third' WHERE id <= $1", uid(5))
            await client.execute(INSERT, uid(20), "later")
            await push(program)
        async with plain_client(dump) as client, running(dump, empty_neo4j) as program:
            await client.execute("UPDATE memories SET content = 'mine' WHERE id = $1", uid(1))
            await client.execute(INSERT, uid(30), "mine too")
            with pytest.raises(StoreRolledBack):
                await push(program)
            undecided = await program.verify(repair=True)
            assert "--prefer" in undecided.next_step
            assert await client.fetchval("SELECT content FROM memories WHERE id = $1", uid(3)) == "second"
            epoch = await client.fetchval("SELECT epoch FROM dionysus_sync.store_identity")
            decided = await program.verify(repair=True, dry_run=False, prefer=prefer)
            assert await client.fetchval("SELECT epoch FROM dionysus_sync.store_identity") != epoch
            await push(program)
            await push(program)
            assert (decided.result, (await program.verify("deep")).counts) == ("clean", {})
            rows = {r["id"]: r["content"] for r in await client.fetch("SELECT id, content FROM memories")}
            winners = ("third", "third") if prefer == "remote" else ("mine", "second")
            assert (rows[uid(1)], rows[uid(3)], rows[uid(30)]) == (*winners, "mine too")
            assert (uid(20) in rows) == (prefer == "remote")
            later = await node(empty_neo4j, uid(20))
            assert (later["content"], "deleted_at" in later) == ("later", prefer == "local")
            assert [(await node(empty_neo4j, uid(i)))["content"] for i in (1, 3)] == list(winners)
            assert {"first 1", "second", "third", "mine"} == {text for _, _, text in await history(empty_neo4j, uid(1))}


@pytest.mark.promise("P1")
async def test_a_waiting_change_is_dropped_only_once_it_is_kept_and_its_row_was_taken_over(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """One whose row was not taken over still waits, and so does one that cannot be read."""
    await filled(client, program)
    await graph(empty_neo4j, "MATCH (m:Memory) SET m.sync_version = 9")
    await client.execute("UPDATE memories SET content = 'typed' WHERE id <= $1", uid(3))
    await client.execute("UPDATE dionysus_sync.sync_queue SET sync_version = NULL WHERE memory_id = $1", uid(2))
    verifying = PostgresVerifying(program.database, program.installer)
    ids = [str(uid(number)) for number in (1, 2, 3)]
    here, _, _ = await verifying.look(ids)
    there = await program.remote.standing_of(ids)
    seen = [Seen(i, Facts(here[i], there[i])) for i in ids]
    memories = [memory for memory in await program.remote.by_id(ids) if memory.id != str(uid(3))]
    assert await verifying.pull(seen, memories, await verifying.states(seen)) == 2
    waiting = await client.fetch("SELECT memory_id FROM dionysus_sync.sync_queue ORDER BY memory_id")
    assert [r["memory_id"] for r in waiting] == [uid(2), uid(3)]
    assert await contents(client, 1, 2, 3) == ["second", "second", "typed"]


@pytest.mark.promise("P4")
@pytest.mark.parametrize("way", ["a trigger of the table's own", "a hash that is not the content's"])
async def test_what_is_pulled_is_verified(program: Runtime, client: Client, empty_neo4j: str, way: str) -> None:
    """A row that would be another one than the remote holds stays as it was, and is reported; others are pulled."""
    await filled(client, program)
    await graph(
        empty_neo4j, "MATCH (m:Memory) WHERE m.id IN $ids SET m.sync_version = 9", ids=[str(VICTIM), str(uid(1))]
    )
    if way.startswith("a trigger"):
        await client.execute(
            "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql"
            " AS 'BEGIN NEW.content := upper(NEW.content); RETURN NEW; END'"
        )
        await client.execute(
            "CREATE TRIGGER shout BEFORE UPDATE ON memories FOR EACH ROW"
            f" WHEN (OLD.id = '{VICTIM}') EXECUTE FUNCTION shout()"
        )
    else:
        await on_node(empty_neo4j, "SET m.content_hash = 'f00d'")
    report = await program.verify(repair=True, prefer="remote", dry_run=False)
    assert (report.counts, report.repaired, report.result) == ({"older_here": 2}, {"older_here": 1}, "drift")
    assert await contents(client, 1, 7) == ["second", "second"]
    assert await client.fetchval("SELECT sync_version FROM memories WHERE id = $1", VICTIM) == 2


async def contents(client: Client, *numbers: int) -> list[str]:
    """Of these rows."""
    rows = await client.fetch(
        "SELECT content FROM memories WHERE id = ANY ($1::uuid[]) ORDER BY id", [*map(uid, numbers)]
    )
    return [r["content"] for r in rows]


async def test_old_reports_are_pruned(program: Runtime, client: Client) -> None:
    """The newest thousand stay, the last one among them."""
    await client.execute(
        "INSERT INTO dionysus_sync.verifications (kind, result, report, finished_at)"
        " SELECT 'full', 'clean', '{}', now() - i * interval '1 min' FROM generate_series(1, 1005) AS i"
    )
    await program.verify("quick")
    found = await checks(client)
    assert (len(found), found[-1]) == (1000, ("quick", "clean"))


async def due(client: Client) -> bool:
    """Whether a comparison is called for."""
    return await client.fetchval("SELECT compare_since FROM dionysus_sync.comparison_due") is not None


async def checks(client: Client) -> list[tuple[str, str]]:
    """Kind and result of each comparison on record, in order."""
    rows = await client.fetch("SELECT kind, result FROM dionysus_sync.verifications ORDER BY finished_at")
    return [(r[0], r[1]) for r in rows]
