"""Recovery: whatever was lost here comes back from the remote store, verified, and nothing else changes."""

import json
from datetime import timedelta
from typing import Any

import pytest

from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.adapters.postgres.restorer import PostgresRestorer
from dionysus_sync_mcp.adapters.statements import load_migrations
from dionysus_sync_mcp.domain.errors import InputError
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.engine.ports.recover import as_it_stands
from dionysus_sync_mcp.engine.ports.sessions import SessionRow
from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.engine.reports import RecoveryReport
from dionysus_sync_mcp.runtime import Runtime, utc_now
from tests.integration.stores import (
    INSERT,
    Client,
    graph,
    images,
    node,
    operations,
    plain_client,
    queue,
    remote_digest,
    uid,
)
from tests.services.local_store import opened, running

EVERYTHING = Scope()
ODD_COLUMNS = """
CREATE TYPE mood AS ENUM ('calm', 'cross');
ALTER TABLE memories
    ADD COLUMN price numeric, ADD COLUMN j json, ADD COLUMN jb jsonb, ADD COLUMN pt point, ADD COLUMN b bytea,
    ADD COLUMN grid integer[], ADD COLUMN span tstzrange, ADD COLUMN pause interval,
    ADD COLUMN feeling mood DEFAULT 'calm',
    ADD COLUMN serial_no serial, ADD COLUMN identity_no bigint GENERATED ALWAYS AS IDENTITY,
    ADD COLUMN twice numeric GENERATED ALWAYS AS (price * 2) STORED, ADD COLUMN "Odd "" name" text UNIQUE,
    ADD CONSTRAINT priced CHECK (price < 1000);
CREATE INDEX by_price ON memories (price DESC) WHERE price > 1
"""
ODD_ROWS = r"""
INSERT INTO memories (content, importance, tags, source_project, price, j, jb, pt, b, grid, span, pause, "Odd "" name",
                      created_at)
SELECT 'memory ' || i, (i % 10) / 10.0, ARRAY['a', NULL, 'b "' || i], 'p' || i % 3, (i || '.50')::numeric,
       '{"b": 1, "a": [null]}', '{"deep": {"nothing": null, "n": 1.10}}', point(i, -i), '\xdeadbeef', '{{1,2},{3,4}}',
       '[2020-01-01 00:00+00,infinity)', '1 mon 2 days 03:00:00.5', 'odd ' || i,
       CASE i WHEN 1 THEN 'infinity' WHEN 2 THEN '-infinity' WHEN 3 THEN '0044-03-15 12:00+00 BC'
              WHEN 4 THEN '12345-01-01 00:00+00' ELSE '2024-01-02 03:04:05.678901+00'::timestamptz END
FROM generate_series(1, 40) AS i
"""
LOSSES = {
    "table dropped": "DROP TABLE memories",
    "schema dropped": "DROP SCHEMA public CASCADE",
    "table truncated": "TRUNCATE memories",
    "table made again": "DROP TABLE memories; CREATE TABLE memories AS SELECT * FROM kept WHERE false;"
    " ALTER TABLE memories ADD PRIMARY KEY (id)",
}
SHAPE = (
    "SELECT a.attname::text AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS required,"
    " a.attgenerated::text AS generated, a.attidentity::text AS identity, pg_get_expr(d.adbin, d.adrelid) AS formula"
    " FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum"
    " WHERE a.attrelid = 'memories'::regclass AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
)


async def settled(program: Runtime) -> None:
    """Everything pushed, and the table's definition noted."""
    assert (await program.sync(embed=False)).result == "success"
    await program.guard.note_definition_once()


async def recovered(program: Runtime, scope: Scope = EVERYTHING, *, include_deleted: bool = False) -> RecoveryReport:
    """Plan and run."""
    plan = await program.plan_recovery(scope, include_deleted=include_deleted)
    report = await program.run_recovery(plan.plan_id)
    assert report.planned == plan.will_restore
    return report


async def shape(client: Client) -> list[dict[str, Any]]:
    """The columns of the table as the catalogue has them."""
    return [dict(r) for r in await client.fetch(SHAPE)]


@pytest.mark.promise("P6")
@pytest.mark.parametrize("loss", LOSSES)
async def test_every_column_of_every_row_comes_back(
    program: Runtime, client: Client, empty_neo4j: str, loss: str
) -> None:
    """Unknown columns of any type, infinite and BC times, nulls in arrays, numeric scale: all is the same."""
    await client.execute(ODD_COLUMNS)
    await client.execute(ODD_ROWS)
    await client.execute("CREATE SCHEMA elsewhere; CREATE TABLE kept AS SELECT * FROM memories")
    await settled(program)
    before, remote = await images(client), await remote_digest(empty_neo4j)
    await client.execute(LOSSES[loss])
    report = await recovered(program)
    assert (report.complete, report.restored, report.verified) == (True, 40, 40), report
    assert await images(client) == before
    assert await queue(client) == []
    assert await remote_digest(empty_neo4j) == remote


async def test_a_table_that_was_dropped_has_its_shape_again(program: Runtime, client: Client) -> None:
    """Columns, types, defaults, constraints and indexes as noted, and numbers go on where they were."""
    await client.execute(ODD_COLUMNS)
    await client.execute(ODD_ROWS)
    await settled(program)
    before = await shape(client)
    parts = (
        "SELECT conname::text FROM pg_constraint WHERE conrelid = 'memories'::regclass"
        " UNION ALL SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 'memories'::regclass ORDER BY 1"
    )
    kept = await client.fetch(parts)
    await client.execute("DROP TABLE memories")
    assert (await recovered(program)).complete
    after = await shape(client)
    counted = {"serial_no", "identity_no"}
    assert [c for c in after if c["name"] not in counted] == [c for c in before if c["name"] not in counted]
    assert await client.fetch(parts) == kept
    numbers = await client.fetchrow("INSERT INTO memories (content) VALUES ('next') RETURNING serial_no, identity_no")
    assert tuple(numbers or ()) == (41, 41)


@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    "column",
    [
        "ref text DEFAULT gen_random_uuid()",
        "at text DEFAULT now()",
        "n varchar(40) DEFAULT 7",
        "fee money DEFAULT 12.5",
    ],
)
async def test_a_default_of_another_type_than_its_column_is_no_obstacle(
    migrated_database_url: str, client: Client, column: str
) -> None:
    """Rows come back with the value that they had, or with the default where they had no such column."""
    await client.execute(f"ALTER TABLE memories ADD COLUMN {column}")
    name = column.split()[0]
    insert = f"INSERT INTO memories (content) VALUES ('x') RETURNING {name}::text"  # noqa: S608 - constants
    select = f"SELECT {name}::text FROM memories WHERE id = ANY ($1) ORDER BY id"  # noqa: S608 - constants
    default = await client.fetchval(insert)
    then, extra = "2024-01-02T03:04:05+00:00", json.dumps({name: default})
    kept = RemoteMemory(str(uid(1)), 1, "", None, "kept", "episodic", 0.5, "p", None, [], then, then, extra)
    bare = kept._replace(id=str(uid(2)), content="bare", extra="{}")
    async with opened(migrated_database_url) as database:
        restorer = PostgresRestorer(database, Installer(database, load_migrations()))
        result = await restorer.restore(str(uid(9)), [as_it_stands(kept), as_it_stands(bare)])
    assert (result.restored, result.refused) == (2, [])
    found = await client.fetch(select, [uid(1), uid(2)])
    assert found[0][0] == default
    assert found[1][0] is not None


@pytest.mark.promise("P6")
async def test_a_column_that_was_added_later_gets_its_default(program: Runtime, client: Client) -> None:
    """Rows that were captured without it come back all the same, although it must not be null."""
    await client.execute(INSERT, uid(1), "before the column")
    await client.execute("ALTER TABLE memories ADD COLUMN priority integer NOT NULL DEFAULT 5")
    await client.execute("INSERT INTO memories (id, content, priority) VALUES ($1, 'after the column', 7)", uid(2))
    await settled(program)
    before = await images(client)
    await client.execute("DROP TABLE memories")
    report = await recovered(program)
    assert (report.complete, report.verified) == (True, 2), report.refused
    assert await images(client) == before


@pytest.mark.promise("P6")
async def test_a_plan_changes_nothing_and_a_second_run_nothing_more(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Planning leaves both sides as they are; after a run there is nothing left to do."""
    await client.execute("INSERT INTO memories (content) SELECT 'c' || i FROM generate_series(1, 30) AS i")
    await settled(program)
    await client.execute("ALTER TABLE memories DISABLE TRIGGER ALL; DELETE FROM memories WHERE content > 'c2'")
    before, remote = await images(client), await remote_digest(empty_neo4j)
    plan = await program.plan_recovery(EVERYTHING)
    assert (plan.will_restore, plan.table_missing) == (30 - len(before), False)
    assert (await images(client), await remote_digest(empty_neo4j)) == (before, remote)
    assert (await recovered(program)).restored == plan.will_restore
    restored = await images(client)
    again = await recovered(program)
    assert (again.planned, again.restored, again.complete) == (0, 0, True)
    assert await images(client) == restored
    assert await remote_digest(empty_neo4j) == remote
    assert await queue(client) == []


async def test_a_plan_is_used_once_and_only_for_a_while(program: Runtime) -> None:
    """A plan that is used, unknown or expired is refused in words."""
    plan = await program.plan_recovery(EVERYTHING)
    await program.run_recovery(plan.plan_id)
    for plan_id, words in ((plan.plan_id, "was used"), ("any", "no such plan")):
        with pytest.raises(InputError, match=words):
            await program.run_recovery(plan_id)
    late = await program.plan_recovery(EVERYTHING)
    with pytest.raises(InputError, match="expired"):
        await program._recoverer.run(late.plan_id, utc_now() + timedelta(minutes=16))


async def test_what_was_deleted_on_purpose_comes_back_only_when_asked_for(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """By default it stays deleted; with include_deleted it is live again, here and in the remote store."""
    await client.execute(INSERT, uid(1), "deleted")
    await client.execute(INSERT, uid(2), "kept")
    await settled(program)
    before = await images(client)
    await client.execute("DELETE FROM memories WHERE id = $1", uid(1))
    await settled(program)
    plan = await program.plan_recovery(EVERYTHING)
    assert (plan.will_restore, plan.counts["deleted"], bool(plan.warnings)) == (0, 1, True)
    report = await recovered(program, include_deleted=True)
    assert (report.complete, report.restored) == (True, 1)
    assert await images(client) == before
    await settled(program)
    held = await node(empty_neo4j, uid(1))
    assert (held["content"], held.get("deleted_at")) == ("deleted", None)
    assert await client.fetchval("SELECT count(*) FROM memories WHERE sync_status <> 'synced'") == 0
    assert (await recovered(program, include_deleted=True)).planned == 0


@pytest.mark.promise("P1")
async def test_what_was_captured_but_not_pushed_is_recovered_too(program: Runtime, client: Client) -> None:
    """The queue outlives the table: its newest states are what comes back, and its deletes were meant."""
    for number in (1, 2):
        await client.execute(INSERT, uid(number), "old")
    await settled(program)
    await client.execute("UPDATE memories SET content = 'newest' WHERE id = $1", uid(1))
    await client.execute("DELETE FROM memories WHERE id = $1", uid(2))
    await client.execute(INSERT, uid(3), "never pushed")
    await client.execute("DROP TABLE memories")
    assert (await recovered(program)).complete
    rows = await client.fetch("SELECT id, content FROM memories ORDER BY id")
    assert [tuple(r) for r in rows] == [(uid(1), "newest"), (uid(3), "never pushed")]
    assert await queue(client) == []


async def test_what_is_newer_here_is_not_touched(program: Runtime, client: Client) -> None:
    """A local change that the remote has not got, and cannot get now, survives a recovery of the rest."""
    for number in (1, 2):
        await client.execute(INSERT, uid(number), "old")
    await settled(program)
    await client.execute("UPDATE memories SET content = 'newer here' WHERE id = $1", uid(1))
    await client.execute("UPDATE dionysus_sync.sync_queue SET parked_at = now()")
    await client.execute("ALTER TABLE memories DISABLE TRIGGER ALL")
    await client.execute("DELETE FROM memories WHERE id = $1", uid(2))
    plan = await program.plan_recovery(EVERYTHING)
    assert (plan.counts["newer_here"], plan.counts["missing_here"]) == (1, 1)
    assert (await program.run_recovery(plan.plan_id)).restored == 1
    assert await client.fetchval("SELECT content FROM memories WHERE id = $1", uid(1)) == "newer here"


async def test_scope_is_kept(program: Runtime, client: Client) -> None:
    """By project, by session and by memory."""
    session = uid(100)
    rows = [(uid(n), "c", f"p{n % 2}", session if n < 4 else None) for n in range(1, 11)]
    await client.executemany(
        "INSERT INTO memories (id, content, source_project, session_id) VALUES ($1, $2, $3, $4)", rows
    )
    await settled(program)
    await client.execute("TRUNCATE memories")
    assert (await recovered(program, Scope(memory_ids=(str(uid(2)), str(uid(3)))))).restored == 2
    assert (await recovered(program, Scope(sessions=(str(session),)))).restored == 1
    assert (await recovered(program, Scope(projects=("p0",)))).restored == 4
    with pytest.raises(InputError, match=r"'nothing there' is in neither store.*p0, p1"):
        await recovered(program, Scope(projects=("nothing there",)))
    assert (await recovered(program)).restored == 3


async def test_the_first_and_the_last_id_there_can_be(program: Runtime, client: Client) -> None:
    """Neither end of the ids is left out of a comparison."""
    for number in (0, 2**128 - 1):
        await client.execute(INSERT, uid(number), "at the end")
    await settled(program)
    plan = await program.plan_recovery(EVERYTHING)
    assert (plan.counts["identical"], plan.will_restore) == (2, 0)


async def test_rows_that_break_a_rule_are_reported_in_the_data_models_words(program: Runtime, client: Client) -> None:
    """They come back as they were, each with the rule that it breaks."""
    await client.execute("ALTER TABLE memories DROP CONSTRAINT memories_memory_type_check")
    await client.execute("ALTER TABLE memories DROP CONSTRAINT memories_importance_check")
    await client.execute("ALTER TABLE memories ALTER session_id TYPE text")
    await client.execute(
        "INSERT INTO memories (id, content, memory_type, importance, session_id) VALUES"
        " ($1, 'a', 'odd', 0.5, NULL), ($2, 'b', 'semantic', 7, NULL), ($3, 'c', 'semantic', 0.5, 'no uuid')",
        uid(1),
        uid(2),
        uid(3),
    )
    await settled(program)
    await client.execute("TRUNCATE memories")
    plan = await program.plan_recovery(EVERYTHING)
    assert plan.counts["invalid"] == 3
    report = await program.run_recovery(plan.plan_id)
    assert (report.complete, report.restored, report.invalid_count) == (True, 3, 3)
    assert [e.reason for e in report.invalid] == [
        "Invalid memory_type: odd",
        "Importance must be between 0 and 1",
        "Invalid session_id format",
    ]
    assert [e.reason for e in plan.examples["invalid"]] == [e.reason for e in report.invalid]


@pytest.mark.parametrize(
    "edit",
    [
        "m.importance = 'high'",
        "m.content = 'other'",
        'm.extra = \'{"importance": "x"}\'',
        "m.content = 5",
        "m.extra = '{'",
    ],
)
@pytest.mark.promise("P6")
async def test_a_memory_edited_by_hand_in_the_remote_is_named(
    program: Runtime, client: Client, empty_neo4j: str, edit: str
) -> None:
    """What does not come back as its hash says is never called recovered, and does not stop the others."""
    for number in range(1, 8):
        await client.execute(INSERT, uid(number), "c")
    await settled(program)
    await client.execute("TRUNCATE memories")
    await graph(empty_neo4j, f"MATCH (m:Memory {{id: $id}}) SET {edit} RETURN 1", id=str(uid(4)))
    report = await recovered(program)
    assert (report.complete, report.verified, report.refused_count) == (False, 6, 1)
    assert report.refused[0].memory_id == str(uid(4))
    assert report.warnings


@pytest.mark.promise("P6")
async def test_a_row_that_the_table_refuses_is_named(program: Runtime, client: Client) -> None:
    """The rest comes back, the report is not complete, and it says which row and why."""
    for number in range(1, 31):
        await client.execute(INSERT, uid(number), "bad" if number == 17 else f"good {number}")
    await settled(program)
    await client.execute("TRUNCATE memories; ALTER TABLE memories ADD CONSTRAINT only_good CHECK (content <> 'bad')")
    report = await recovered(program)
    assert (report.complete, report.verified, report.refused_count) == (False, 29, 1)
    assert (report.refused[0].memory_id, "only_good" in (report.refused[0].reason or "")) == (str(uid(17)), True)


async def test_a_row_that_a_trigger_swallows_is_named_and_one_that_it_changes_is_put_right(
    program: Runtime, client: Client
) -> None:
    """Verification is of what stands in the table, not of what was sent to it."""
    for number in range(1, 6):
        await client.execute(INSERT, uid(number), f"c{number}")
    await settled(program)
    await client.execute(
        "TRUNCATE memories;"
        "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.content IN ('c1', 'c2') THEN RETURN NULL; END IF;"
        " IF NEW.content = 'c3' THEN NEW.content := 'meddled'; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER meddle BEFORE INSERT ON memories FOR EACH ROW EXECUTE FUNCTION meddle()"
    )
    report = await recovered(program)
    assert (report.complete, report.verified, report.refused_count) == (False, 3, 2)
    assert await client.fetchval("SELECT content FROM memories WHERE id = $1", uid(3)) == "c3"


async def test_sessions_and_projects_come_back(program: Runtime, client: Client) -> None:
    """With their times and summaries, and are not pushed again."""
    now = utc_now()
    await program.reading.save_session(SessionRow(str(uid(9)), "the project", now, now))
    await program.reading.end_session(str(uid(9)), now, "what it was about")
    await client.execute(INSERT, uid(1), "c")
    await settled(program)
    tables = "SELECT to_jsonb(s.*)::text FROM dionysus_sync.sessions s UNION ALL SELECT id FROM dionysus_sync.projects"
    before = [r[0] for r in await client.fetch(tables)]
    await client.execute("DROP SCHEMA public CASCADE; DROP SCHEMA dionysus_sync CASCADE")
    assert (await recovered(program)).sessions_restored == 1
    after = [r[0] for r in await client.fetch(tables)]
    assert [json.loads(after[0]), *after[1:]] == [json.loads(before[0]), *before[1:]]
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.sync_queue") == 0


@pytest.mark.promise("P7")
async def test_a_fresh_database_is_filled_from_the_remote_alone(
    program: Runtime, client: Client, database_url: str, empty_neo4j: str
) -> None:
    """Everything local is gone, the bookkeeping included: plan and run bring it all back, and echo nothing."""
    await client.execute("ALTER TABLE memories ADD COLUMN extra_one text DEFAULT 'x'")
    await client.execute("INSERT INTO memories (content) SELECT 'c' || i FROM generate_series(1, 30) AS i")
    await settled(program)
    before, remote = await images(client), await remote_digest(empty_neo4j)
    async with running(database_url, empty_neo4j) as fresh, plain_client(database_url) as other:
        plan = await fresh.plan_recovery(EVERYTHING)
        assert (plan.table_missing, plan.will_restore) == (True, 30)
        assert (await fresh.run_recovery(plan.plan_id)).complete
        await fresh.sync(embed=False)
        assert await images(other) == before
    assert await remote_digest(empty_neo4j) == remote


async def test_without_a_noted_definition_the_plain_table_is_made(program: Runtime, client: Client) -> None:
    """The rows come back into the table that `init` makes."""
    await client.execute(INSERT, uid(1), "c")
    await program.sync(embed=False)
    before = await images(client)
    await client.execute("DROP TABLE memories")
    assert (await recovered(program)).complete
    assert await images(client) == before


async def test_a_table_put_in_its_place_does_not_replace_the_noted_definition(program: Runtime, client: Client) -> None:
    """Only a table that is captured is worth noting."""
    await client.execute("ALTER TABLE memories ADD COLUMN mine text")
    await client.execute(INSERT, uid(1), "c")
    await settled(program)
    before = await images(client)
    await client.execute("DROP TABLE memories; CREATE TABLE memories (junk text)")
    assert await program.guard.note_definition_once() is False
    await client.execute("DROP TABLE memories")
    assert (await recovered(program)).complete
    assert await images(client) == before


@pytest.mark.promise("P6")
async def test_a_table_made_again_narrower_gets_its_columns_back(program: Runtime, client: Client) -> None:
    """Though it was captured and noted meanwhile: no memory comes back without what it had."""
    await client.execute("ALTER TABLE memories ADD COLUMN price numeric")
    await client.execute("INSERT INTO memories (content, price) SELECT 'c' || i, i FROM generate_series(1, 30) AS i")
    await settled(program)
    before = await client.fetch("SELECT id, content, price FROM memories ORDER BY id")
    await client.execute("DROP TABLE memories")
    await program.init(dry_run=False)
    await client.execute(INSERT, uid(1), "new")
    await program.guard.note_definition_once()
    report = await recovered(program)
    assert (report.complete, report.verified, report.warnings) == (True, 30, [])
    after = await client.fetch("SELECT id, content, price FROM memories WHERE id <> $1 ORDER BY id", uid(1))
    assert after == before


@pytest.mark.promise("P6")
async def test_a_row_that_would_lose_a_value_is_not_brought_back(program: Runtime, client: Client) -> None:
    """Where no definition says what the column was, the row stays in the remote store, and the report says why."""
    await client.execute("ALTER TABLE memories ADD COLUMN price numeric")
    await client.execute("INSERT INTO memories (content, price) VALUES ('plain', NULL), ('priced', 7)")
    await program.sync(embed=False)
    await client.execute("DROP TABLE memories")
    report = await recovered(program)
    assert (report.complete, report.verified, report.restored, report.refused_count) == (False, 1, 1, 1)
    assert "price" in (report.refused[0].reason or "")
    assert [r["content"] for r in await client.fetch("SELECT content FROM memories")] == ["plain"]


async def test_a_session_that_is_refused_does_not_stop_a_recovery(
    program: Runtime, client: Client, empty_neo4j: str
) -> None:
    """Memories come first; what is wrong with the session is said."""
    now = utc_now()
    await program.reading.save_session(SessionRow(str(uid(9)), "the project", now, now))
    await client.execute(INSERT, uid(1), "c")
    await settled(program)
    await graph(empty_neo4j, "MATCH (s:Session) SET s.last_activity_at = null")
    await client.execute("DROP SCHEMA public CASCADE; DROP SCHEMA dionysus_sync CASCADE")
    report = await recovered(program)
    assert (report.complete, report.sessions_restored) == (True, 0)
    assert "last_activity_at" in report.warnings[0]


@pytest.mark.promise("P7")
async def test_a_wiped_remote_is_filled_again(program: Runtime, client: Client, empty_neo4j: str) -> None:
    """From the local store, on record, and the definition too; the status says what is missing until then."""
    await client.execute("INSERT INTO memories (content) SELECT 'c' || i FROM generate_series(1, 30) AS i")
    await settled(program)
    held = await remote_digest(empty_neo4j)
    await graph(empty_neo4j, "MATCH (n) DETACH DELETE n")
    assert "30 memories or more are missing in the remote store" in (await program.status()).warnings[0]
    report = await program.sync(embed=False)
    assert (report.result, report.pushed) == ("success", 30)
    assert await remote_digest(empty_neo4j) == held
    assert await program.guard.note_definition_once()
    events = "SELECT record_count FROM dionysus_sync.sync_events WHERE result = 'queued'"
    assert [r[0] for r in await client.fetch(events)] == [30]


@pytest.mark.promise("P8")
async def test_a_recovery_is_on_record(program: Runtime, client: Client) -> None:
    """One report and one audit row for each."""
    await client.execute(INSERT, uid(1), "c")
    await settled(program)
    await client.execute("TRUNCATE memories")
    await recovered(program)
    report = json.loads(await client.fetchval("SELECT report::text FROM dionysus_sync.recoveries"))
    assert (report["complete"], report["verified"]) == (True, 1)
    events = "SELECT result, record_count FROM dionysus_sync.sync_events WHERE direction = 'remote_to_local'"
    assert [tuple(r) for r in await client.fetch(events)] == [("success", 1)]


async def test_what_is_written_after_a_recovery_is_captured(program: Runtime, client: Client) -> None:
    """A table that was made again has its triggers again."""
    await client.execute(INSERT, uid(1), "c")
    await settled(program)
    await client.execute("DROP TABLE memories")
    await recovered(program)
    await client.execute("UPDATE memories SET content = 'after'")
    assert await operations(client) == [("update", 2)]
    assert (await program.sync(embed=False)).outcomes == {"updated": 1}


@pytest.mark.promise("P1")
async def test_a_row_that_cannot_be_made_json_is_parked_and_named(program: Runtime, client: Client) -> None:
    """Neither the backfill nor a plan ends at such a row: the others are queued, and it is named."""
    await client.execute("ALTER TABLE memories ADD COLUMN meta json, DISABLE TRIGGER USER")
    await client.execute(
        "INSERT INTO memories (id, content, meta) SELECT md5(i::text)::uuid, 'c',"
        r""" CASE i WHEN 5 THEN '{"a": "\u0000"}' ELSE '{}' END::json FROM generate_series(1, 20) AS i"""
    )
    poisoned = str(await client.fetchval("SELECT md5('5')::uuid"))
    assert (await program.guard.guard_once()).backfilled == 20
    (parked,) = [entry for entry in await queue(client) if entry.parked]
    assert (str(parked.memory_id), parked.error) == (poisoned, "unsupported Unicode escape sequence")
    assert (await program.pusher.push_once()).pushed == 19
    await client.execute("DELETE FROM memories WHERE id = md5('6')::uuid")
    plan = await program.plan_recovery(EVERYTHING)
    assert [poisoned in warning for warning in plan.warnings if "JSON" in warning] == [True]
    assert plan.counts["identical"] == 18
