"""What rows had in a column that was dropped comes back, also where they were changed and pushed without it."""

import pytest

from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.runtime import Runtime
from tests.integration.stores import Client, uid
from tests.integration.test_recover_in_time import pushed

MANY = 6
SHAPES = ("note text", "note text NOT NULL DEFAULT 'none'", "note numeric")


@pytest.mark.promise("P1")
@pytest.mark.parametrize("column", SHAPES)
async def test_values_of_a_dropped_column_come_back_beside_what_was_changed_since(
    program: Runtime, client: Client, column: str
) -> None:
    """Some rows were changed after the column had gone, others not; a row that never had it gets the default."""
    await client.execute(f"ALTER TABLE memories ADD COLUMN {column}")
    await client.execute("CREATE INDEX own_note ON memories (note)")
    rows = [(uid(n), f"{n}.10") for n in range(1, MANY + 1)]
    insert = "INSERT INTO memories (id, content, note) SELECT id, 'c', made.note FROM jsonb_populate_recordset("
    insert += "NULL::memories, (SELECT jsonb_agg(jsonb_build_object('id', $1::uuid, 'note', $2::text)))) AS made"
    await client.executemany(insert, rows)
    await pushed(program)
    await program.guard.note_definition_once()
    noted = await client.fetch("SELECT id, note FROM memories ORDER BY id")
    await program.detector.watch_once()
    await client.execute("ALTER TABLE memories DROP COLUMN note")
    await client.execute("UPDATE memories SET importance = 0.9 WHERE id = ANY ($1::uuid[])", [uid(1), uid(2)])
    await client.execute("INSERT INTO memories (id, content) VALUES ($1, 'later')", uid(50))
    await pushed(program)
    await program.detector.watch_once()
    plan = await program.plan_recovery(Scope())
    assert (plan.will_restore, plan.will_overwrite, plan.table_lacks) == (
        MANY,
        MANY,
        ["column note", "index own_note"],
    )
    report = await program.run_recovery(plan.plan_id)
    assert (report.complete, report.verified, report.refused) == (True, MANY, [])
    assert await client.fetch("SELECT id, note FROM memories WHERE content = 'c' ORDER BY id") == noted
    changed = "SELECT count(*) FROM memories WHERE importance::numeric = 0.9 AND id = ANY ($1::uuid[])"
    assert await client.fetchval(changed, [uid(1), uid(2)]) == 2
    assert await client.fetchval("SELECT count(*) FROM pg_indexes WHERE indexname = 'own_note'") == 1
    await pushed(program)
    again = await program.plan_recovery(Scope())
    assert (again.will_restore, again.table_lacks, again.is_work) == (0, [], False)


@pytest.mark.promise("P6")
async def test_conditions_that_are_written_otherwise_once_they_are_read_are_not_missed(
    program: Runtime, client: Client
) -> None:
    """PostgreSQL moves casts about in what it has read; a table that was made again lacks nothing for that."""
    condition = "memory_type IN ('episodic', 'semantic')"
    await client.execute(f"ALTER TABLE memories ADD CONSTRAINT own_kinds CHECK ({condition})")
    await client.execute(f"CREATE INDEX own_part ON memories (content) WHERE {condition}")
    await client.execute(
        "INSERT INTO memories (content, memory_type) SELECT 'c', 'episodic' FROM generate_series(1, 3)"
    )
    await pushed(program)
    await program.guard.note_definition_once()
    shape = (
        "SELECT indexname AS name FROM pg_indexes WHERE tablename = 'memories'"
        " UNION ALL SELECT conname FROM pg_constraint WHERE conrelid = 'memories'::regclass AND contype <> 'n'"
        " ORDER BY 1"
    )
    before = await client.fetch(shape)
    await program.detector.watch_once()
    await client.execute("DROP TABLE memories")
    for _ in range(2):
        await program.detector.judge_all()
        plan = await program.plan_recovery(Scope())
        if plan.is_work:
            await program.run_recovery(plan.plan_id)
            await pushed(program)
            await program.guard.note_definition_once()
        assert await client.fetch(shape) == before
    assert (plan.table_lacks, plan.is_work) == ([], False)
