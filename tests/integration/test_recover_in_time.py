"""Recovery to a time, or from before an incident, on real stores: exactly what should come back does, once."""

from datetime import datetime, timedelta
from typing import Any

import anyio
import pytest

from dionysus_sync_mcp.domain.errors import InputError, PlanOutdated
from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.engine.reports import RecoveryReport
from dionysus_sync_mcp.runtime import Runtime, utc_now
from tests.integration.stores import (
    INSERT,
    Client,
    graph,
    history,
    images,
    node,
    plain_client,
    queue,
    remote_digest,
    uid,
)
from tests.services.local_store import running
from tests.services.waiting import until

EVERYTHING = Scope()
MANY = 20


async def filled(client: Client, number: int = MANY) -> None:
    """So many memories, of two projects."""
    rows = [(uid(n), f"content {n}", f"p{n % 2}") for n in range(1, number + 1)]
    await client.executemany("INSERT INTO memories (id, content, source_project) VALUES ($1, $2, $3)", rows)


async def pushed(program: Runtime) -> None:
    """All that waits. The first push to a server makes plans of the statements, which a busy machine is slow at."""

    async def is_pushed() -> bool:
        return (await program.sync(embed=False)).remaining == 0

    await until(is_pushed, what="all is pushed", seconds=60)


async def recovered(program: Runtime, scope: Scope = EVERYTHING, **wish: Any) -> RecoveryReport:  # noqa: ANN401 - as of `plan_recovery`
    """Plan and run."""
    plan = await program.plan_recovery(scope, **wish)
    return await program.run_recovery(plan.plan_id)


async def clock(client: Client) -> datetime:
    """The database's."""
    now: datetime = await client.fetchval("SELECT clock_timestamp()")
    return now


async def only_incident(program: Runtime) -> str:
    """The id of the one that is open."""
    (one,) = (await program.incidents(open_only=True, limit=5)).incidents
    return str(one.id)


@pytest.mark.promise("P3")
@pytest.mark.promise("P6")
async def test_a_recovery_goes_back_to_a_time_and_forward_in_the_remote(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Each row is as it was then, pending at a version of its own, and one push later both stores agree for good."""
    await filled(client)
    await client.execute("UPDATE memories SET content = 'good ' || content WHERE id <= $1", uid(4))
    await pushed(program)
    then, before = await clock(client), await images(client)
    await client.execute("UPDATE memories SET content = 'worse', tags = '{x}' WHERE id <= $1", uid(4))
    await client.execute("DELETE FROM memories WHERE id = $1", uid(7))
    await client.execute(INSERT, uid(100), "made since")
    await pushed(program)
    made_since = (await images(client))[str(uid(100))]
    plan = await program.plan_recovery(EVERYTHING, as_of=then)
    assert (plan.will_restore, plan.will_overwrite, plan.counts["newer_here"], plan.counts["only_here"]) == (1, 0, 4, 1)
    report = await recovered(program, as_of=then, overwrite_newer=True)
    assert (report.complete, report.restored, report.overwritten, report.verified) == (True, 5, 4, 5), report
    assert await images(client) == before | {str(uid(100)): made_since}
    queued = {(entry.memory_id, entry.version) for entry in await queue(client)}
    assert queued == {(uid(n), 4) for n in range(1, 5)} | {(uid(7), 3)}
    await pushed(program)
    held = await node(empty_neo4j, uid(7))
    assert (held["content"], held["sync_version"], held.get("deleted_at")) == ("content 7", 3, None)
    kept = [content for _, _, content in await history(empty_neo4j, uid(1))]
    assert kept == ["content 1", "good content 1", "worse", "good content 1"]
    remote = await remote_digest(empty_neo4j)
    assert (await recovered(program, as_of=then, overwrite_newer=True)).planned == 0
    assert (await program.sync(embed=False)).pushed == 0
    assert await remote_digest(empty_neo4j) == remote
    assert (await program.verify("full")).result == "clean"


@pytest.mark.promise("P6")
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    "destruction",
    [
        "DELETE FROM memories WHERE id <= '00000000-0000-0000-0000-000000000010'",
        "UPDATE memories SET content = ''",
        "TRUNCATE memories",
        "DROP TABLE memories",
        "ALTER TABLE memories ALTER content TYPE varchar(4) USING left(content, 4)",
        "TRUNCATE memories; INSERT INTO memories (id, content) SELECT numbered(i), 'made up'"
        " FROM generate_series(1, 9) AS i",
    ],
)
async def test_an_incident_is_undone_by_plan_and_run(
    program: Runtime, client: Client, empty_neo4j: str, destruction: str, named: bool
) -> None:
    """What was deleted on purpose before it stays deleted; the second run, and a push, change nothing."""
    await client.execute(
        "CREATE FUNCTION numbered(i integer) RETURNS uuid LANGUAGE sql AS $$ SELECT lpad(to_hex(i), 32, '0')::uuid $$"
    )
    await filled(client)
    await client.execute("DELETE FROM memories WHERE id = $1", uid(19))
    await pushed(program)
    await program.guard.note_definition_once()
    await program.guard.look()
    # So that the delete on purpose is no part of a burst.
    await client.execute("UPDATE dionysus_sync.observations SET at = at - interval '10 minutes'")
    before = await images(client)
    await client.execute(destruction)
    await pushed(program)
    await program.guard.look()
    made_up = "made up" in destruction
    if made_up and not named:
        assert (await program.plan_recovery(EVERYTHING)).will_overwrite == 0
        return
    wish: dict[str, Any] = {"before_incident": await only_incident(program)} if named else {}
    plan = await program.plan_recovery(EVERYTHING, **wish)
    report = await program.run_recovery(plan.plan_id)
    assert (report.complete, report.restored) == (True, plan.will_restore), report
    assert await images(client) == before
    await pushed(program)
    remote = await remote_digest(empty_neo4j)
    assert (await recovered(program, **wish)).planned == 0
    assert (await program.sync(embed=False)).pushed == 0
    assert await remote_digest(empty_neo4j) == remote


@pytest.mark.promise("P6")
async def test_a_partial_recovery_beside_writers_touches_its_scope_only(
    program: Runtime, client: Client, migrated_database_url: str
) -> None:
    """What others write meanwhile is theirs, in scope and out of it."""
    await filled(client)
    await pushed(program)
    before = await images(client)
    await client.execute("DELETE FROM memories WHERE id <= $1", uid(16))
    await pushed(program)
    plan = await program.plan_recovery(Scope(projects=("p0",)))
    assert plan.will_restore == 8
    written = 0

    async def write() -> None:
        nonlocal written
        async with plain_client(migrated_database_url) as other:
            while True:
                await other.execute("UPDATE memories SET content = 'by the writer' WHERE id = $1", uid(20))
                await other.execute("INSERT INTO memories (content, source_project) VALUES ('new', 'p0')")
                written += 1

    async def has_written() -> bool:
        return written > 0

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        report = await program.run_recovery(plan.plan_id)
        await until(has_written, what="the writer wrote", seconds=15)
        tasks.cancel_scope.cancel()
    after = await images(client)
    assert (report.complete, report.restored) == (True, 8)
    assert {id_ for id_ in before if id_ in after} == {str(uid(n)) for n in (*range(2, 17, 2), 17, 18, 19, 20)}
    assert all(after[str(uid(n))] == before[str(uid(n))] for n in (*range(2, 17, 2), 17, 18, 19))
    assert await client.fetchval("SELECT content FROM memories WHERE id = $1", uid(20)) == "by the writer"
    assert await client.fetchval("SELECT count(*) FROM memories WHERE content = 'new'") >= written


@pytest.mark.promise("P6")
async def test_a_history_that_was_edited_by_hand_is_refused_row_by_row(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """A state whose hash is not that of its content overwrites nothing, and the rest comes back: no success."""
    await filled(client)
    await pushed(program)
    then, before = await clock(client), await images(client)
    await client.execute("UPDATE memories SET content = 'changed'")
    await pushed(program)
    now = await images(client)
    await graph(
        empty_neo4j,
        "MATCH (:Memory {id: $id})-[:HAS_VERSION]->(h {sync_version: 1}) SET h.content = 'forged' RETURN 1",
        id=str(uid(3)),
    )
    report = await recovered(program, as_of=then, overwrite_newer=True)
    assert (report.complete, report.planned, report.verified, report.refused_count) == (False, MANY, MANY - 1, 1)
    assert report.refused[0].memory_id == str(uid(3))
    assert await images(client) == before | {str(uid(3)): now[str(uid(3))]}


@pytest.mark.promise("P6")
async def test_what_a_remote_store_has_lost_is_counted(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """An incident took more than it knows: the plan says so, and the run is no success."""
    await filled(client)
    await pushed(program)
    await client.execute("TRUNCATE memories")
    await graph(empty_neo4j, "MATCH (m:Memory) WHERE m.id > $id DETACH DELETE m RETURN count(*)", id=str(uid(15)))
    plan = await program.plan_recovery(EVERYTHING)
    assert (plan.will_restore, any("At least 5 memories" in warning for warning in plan.warnings)) == (15, True)
    report = await program.run_recovery(plan.plan_id)
    assert (report.complete, report.planned, report.verified) == (False, 20, 15)


async def test_a_plan_that_is_outrun_is_refused(program: Runtime, client: Client) -> None:
    """Somebody has put a row back in the meantime: nothing is changed."""
    await filled(client)
    await pushed(program)
    await client.execute("TRUNCATE memories")
    plan = await program.plan_recovery(EVERYTHING)
    await client.execute(INSERT, uid(1), "made by hand")
    with pytest.raises(PlanOutdated, match="named 20 memories"):
        await program.run_recovery(plan.plan_id)
    assert len(await images(client)) == 1


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"as_of": utc_now() + timedelta(days=1)}, "in the future"),
        ({"as_of": utc_now() - timedelta(days=9999)}, "before all history"),
        ({"as_of": utc_now().replace(tzinfo=None)}, "no time zone"),
        ({"before_incident": str(uid(5))}, "no incident"),
    ],
)
async def test_bad_times_and_incidents_are_refused(
    program: Runtime, client: Client, wish: dict[str, Any], words: str
) -> None:
    """In words, before anything is done."""
    await client.execute(INSERT, uid(1), "c")
    await pushed(program)
    with pytest.raises(InputError, match=words):
        await program.plan_recovery(EVERYTHING, **wish)


@pytest.mark.promise("P7")
async def test_two_stores_recover_their_own(
    program: Runtime, client: Client, database_url: str, empty_neo4j: str
) -> None:
    """The other one's memories stay where they are."""
    await filled(client)
    await pushed(program)
    async with running(database_url, empty_neo4j) as second, plain_client(database_url) as there:
        await second.init(dry_run=False)
        await there.execute(INSERT, uid(500), "the other store's")
        await pushed(second)
        before = await images(client)
        await client.execute("TRUNCATE memories")
        report = await recovered(program)
        assert (report.complete, report.restored) == (True, MANY)
        assert await images(client) == before
        await there.execute("TRUNCATE memories")
        assert (await recovered(second)).restored == 1


@pytest.mark.promise("P3")
@pytest.mark.promise("P8")
@pytest.mark.parametrize("at_once", [True, False], ids=["judged at once", "judged after the push"])
async def test_made_up_contents_under_the_ids_of_deleted_memories_are_brought_back(
    program: Runtime, client: Client, empty_neo4j: str, at_once: bool
) -> None:
    """In one transaction all go and come again: only what has another content than before is of an incident."""
    await filled(client)
    await pushed(program)
    before = {row["id"]: row["content"] for row in await client.fetch("SELECT id, content FROM memories")}
    again = "INSERT INTO memories (id, content, source_project) SELECT id, {}, source_project FROM kept"
    async with client.transaction():
        await client.execute("CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM memories; DELETE FROM memories")
        await client.execute(again.format("content"))
    assert await program.detector.judge_all()
    assert (await program.incidents(open_only=True, limit=5)).incidents == []
    await pushed(program)
    async with client.transaction():
        await client.execute("CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT * FROM memories; DELETE FROM memories")
        await client.execute(again.format("'made up'"))
    if at_once:
        assert await program.detector.judge_all()
    await pushed(program)
    assert await program.detector.judge_all()
    (incident,) = (await program.incidents(open_only=True, limit=5)).incidents
    assert (incident.kind, incident.rows) == ("bulk_update", MANY)
    await recovered(program)
    assert {row["id"]: row["content"] for row in await client.fetch("SELECT id, content FROM memories")} == before
    await pushed(program)
    assert (await node(empty_neo4j, uid(1)))["content"] == before[uid(1)]


@pytest.mark.promise("P1")
@pytest.mark.parametrize("finder", ["guard", "check"])
async def test_rows_of_a_table_put_in_place_are_queued_after_a_recovery(
    program: Runtime, client: Client, finder: str
) -> None:
    """Nobody had captured them, and it was the recovery that put the capture back; whoever looks finds them."""
    await filled(client)
    await pushed(program)
    await program.guard.guard_once()
    await program.guard.note_definition_once()
    await program.detector.watch_once()
    await client.execute("CREATE TABLE another (LIKE memories INCLUDING ALL); DROP TABLE memories")
    await client.execute("ALTER TABLE another RENAME TO memories")
    await client.execute("INSERT INTO memories (id, content) VALUES ($1, 'made up')", uid(500))
    assert (await recovered(program)).restored == MANY
    assert await queue(client) == []
    await (program.guard.guard_once() if finder == "guard" else program.verifier.check_once())
    await pushed(program)
    assert (await program.verify()).result == "clean"
