"""Restoring on a real PostgreSQL: rows are overwritten only as they were seen, and a table becomes what it was."""

import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import anyio
import asyncpg
import pytest

from dionysus_sync_mcp.adapters.postgres.database import Database
from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.adapters.postgres.restorer import PostgresRestorer
from dionysus_sync_mcp.adapters.statements import load_migrations
from dionysus_sync_mcp.domain.definition import same
from dionysus_sync_mcp.domain.errors import Unavailable
from dionysus_sync_mcp.domain.memory import KNOWN_COLUMNS, RemoteMemory, properties_of
from dionysus_sync_mcp.engine.definitions import definition_for
from dionysus_sync_mcp.engine.ports.recover import PageResult, Restoration
from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.runtime import Runtime
from tests.integration.stores import INSERT, Client, images, plain_client, queue, uid
from tests.services.local_store import opened
from tests.services.waiting import until

RECOVERY = str(uid(777))
TEXTS = ", ".join(
    f"image ->> '{name}' AS {name}" if name != "tags" else "(image -> 'tags')::text AS tags" for name in KNOWN_COLUMNS
)
STATE = (
    f"SELECT dionysus_sync.content_hash(image) AS hash, version, {TEXTS}, (image - $2::text[])::text AS extra"  # noqa: S608 - constants
    " FROM (SELECT to_jsonb(m.*) - dionysus_sync.sync_columns() AS image, sync_version AS version FROM memories m"
    " WHERE id = $1) AS found"
)
STAMPS = "SELECT sync_version, synced_version, sync_status FROM memories WHERE id = $1"
KILL_SLEEPER = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE wait_event = 'PgSleep' AND datname = current_database()"
)
KEPT = "SELECT count(*) FROM dionysus_sync.recovery_undo"


@pytest.fixture
async def database(migrated_database_url: str) -> AsyncIterator[Database]:
    """The program's own access to it."""
    async with opened(migrated_database_url) as access:
        yield access


@pytest.fixture
def installer(database: Database) -> Installer:
    """Of that database."""
    return Installer(database, load_migrations())


@pytest.fixture
def restorer(database: Database, installer: Installer) -> PostgresRestorer:
    """Of that database."""
    return PostgresRestorer(database, installer)


async def state(client: Client, memory_id: UUID) -> RemoteMemory:
    """A row as the remote store would hold it."""
    async with client.transaction():
        await client.execute("SET LOCAL timezone = 'UTC'; SET LOCAL intervalstyle = 'iso_8601'")
        row = await client.fetchrow(STATE, memory_id, list(KNOWN_COLUMNS))
    assert row is not None
    properties = properties_of({name: row[name] for name in KNOWN_COLUMNS}, row["extra"])
    return RemoteMemory(str(memory_id), row["version"], row["hash"], None, *properties)


def forward(good: RemoteMemory, now: RemoteMemory) -> Restoration:
    """The row goes forward to an older state."""
    return Restoration(good, now.version + 1, now.version, is_new=True, overwrites=now.content_hash)


async def blanked(client: Client, numbers: Sequence[int]) -> list[Restoration]:
    """Rows of which the content was good, and what makes it good again."""
    await client.executemany(INSERT, [(uid(n), f"good {n}") for n in numbers])
    good = [await state(client, uid(n)) for n in numbers]
    await client.execute("UPDATE memories SET content = ''; DELETE FROM dionysus_sync.sync_queue")
    return [forward(memory, await state(client, UUID(memory.id))) for memory in good]


@pytest.mark.promise("P6")
async def test_a_page_inserts_overwrites_and_leaves_alone(client: Client, restorer: PostgresRestorer) -> None:
    """What is new to the remote store is queued above what it holds; what it holds as its newest comes without echo."""
    first, second = await blanked(client, [1, 2])
    held = second._replace(number=7, confirmed=7, is_new=False)
    await client.execute(INSERT, uid(3), "here already")
    await client.execute("DELETE FROM dionysus_sync.sync_queue")
    missing = second.memory._replace(id=str(uid(4)), content="missing", extra=None)
    hashed = "SELECT dionysus_sync.content_hash($1::jsonb || jsonb_build_object('id', $2::uuid, 'content', 'missing'))"
    image = (
        await client.fetchval("SELECT to_jsonb(m.*) - dionysus_sync.sync_columns() FROM memories m LIMIT 1"),
        uid(4),
    )
    row = json.loads(image[0]) | {n: getattr(missing, n) for n in ("created_at", "updated_at")}
    missing = missing._replace(content_hash=await client.fetchval(hashed, json.dumps(row), uid(4)))
    there = Restoration((await state(client, uid(3)))._replace(content="other"), 1, 1)
    result = await restorer.restore(RECOVERY, [first, held, there, Restoration(missing, 5, 5)])
    assert result == PageResult(3, 3, 1, [], [], overwritten=2)
    rows = await client.fetch("SELECT content, sync_version, synced_version, sync_status FROM memories ORDER BY id")
    assert [tuple(r) for r in rows] == [
        ("good 1", 3, 2, "pending"), ("good 2", 7, 7, "synced"), ("here already", 1, None, "pending"),
        ("missing", 5, 5, "synced"),
    ]  # fmt: skip
    (entry,) = await queue(client)
    assert (entry.memory_id, entry.version, entry.image["content"]) == (uid(1), 3, "good 1")
    assert await client.fetchval(KEPT) == 2


@pytest.mark.promise("P6")
async def test_what_was_changed_meanwhile_stays(client: Client, restorer: PostgresRestorer) -> None:
    """Changed, gone, held by somebody: each is named with its reason, and the others of the page are written."""
    changed, gone, held, fine, done = await blanked(client, [1, 2, 3, 4, 5])
    await client.execute("UPDATE memories SET content = 'mine' WHERE id = $1", uid(1))
    await client.execute("DELETE FROM memories WHERE id = $1", uid(2))
    await client.execute(
        "UPDATE memories SET content = 'good 5', updated_at = $2::text::timestamptz WHERE id = $1",
        uid(5),
        done.memory.updated_at,
    )
    done = done._replace(memory=await state(client, uid(5)))
    async with client.transaction():
        await client.execute("SELECT FROM memories WHERE id = $1 FOR UPDATE", uid(3))
        result = await restorer.restore(RECOVERY, [changed, gone, held, fine, done])
    assert (result.restored, result.verified, result.overwritten, result.already_there) == (1, 1, 1, 1)
    reasons = {UUID(i).int: reason for i, reason in result.refused}
    assert reasons.keys() == {1, 2, 3}
    assert all(reason.startswith("changed meanwhile") for reason in reasons.values())
    contents = await client.fetch("SELECT content FROM memories ORDER BY id")
    assert [r[0] for r in contents] == ["mine", "", "good 4", "good 5"]
    assert await client.fetchval(KEPT) == 1


async def deleted(client: Client, numbers: Sequence[int]) -> list[Restoration]:
    """Rows that are not here any more, and what brings them back."""
    page = await blanked(client, numbers)
    await client.execute("DELETE FROM memories; DELETE FROM dionysus_sync.sync_queue")
    return [Restoration(one.memory, one.memory.version, one.memory.version) for one in page]


@pytest.mark.promise("P6")
async def test_a_row_that_somebody_inserts_meanwhile_is_theirs(
    client: Client, restorer: PostgresRestorer, migrated_database_url: str
) -> None:
    """It is committed while the page waits for it: it stays as it is, and is told of; the others come back."""
    await client.execute("ALTER TABLE memories ADD COLUMN price numeric DEFAULT 2")
    page = await deleted(client, [1, 2, 3])
    await client.execute("ALTER TABLE memories DROP COLUMN price")
    page[0] = page[0]._replace(memory=page[0].memory._replace(extra='{"embargo": 1}'))
    results: list[PageResult] = []

    async def restore() -> None:
        results.append(await restorer.restore(RECOVERY, page[:2]))

    async def waits() -> bool:
        return bool(await client.fetch("SELECT FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'"))

    async with plain_client(migrated_database_url) as other, anyio.create_task_group() as tasks, other.transaction():
        await other.executemany(INSERT, [(uid(1), "theirs"), (uid(2), "theirs too")])
        tasks.start_soon(restore)
        await until(waits, what="the page waits for the other's row", seconds=15)
    (result,) = results
    assert (result.restored, result.verified, result.already_there, result.mismatched) == (0, 0, 0, [])
    assert dict(result.refused) == {str(uid(n)): "changed meanwhile" for n in (1, 2)}
    rows = await client.fetch("SELECT content, sync_version, sync_status FROM memories ORDER BY id")
    assert [tuple(r) for r in rows] == [("theirs", 1, "pending"), ("theirs too", 1, "pending")]
    assert [entry.image["content"] for entry in await queue(client)] == ["theirs", "theirs too"]


@pytest.mark.promise("P6")
async def test_a_row_that_came_back_otherwise_is_not_counted_as_there(
    client: Client, restorer: PostgresRestorer
) -> None:
    """Only one that is what it is to be."""
    first, second = await deleted(client, [1, 2])
    await client.execute(INSERT, uid(1), "made up")
    await client.execute("INSERT INTO memories (id, content) SELECT $1, 'x'", uid(2))
    there = Restoration(await state(client, uid(2)), 1, 1)
    result = await restorer.restore(RECOVERY, [first, there])
    assert (result.restored, result.already_there, result.refused) == (
        0, 1, [(str(uid(1)), "changed meanwhile")],
    )  # fmt: skip
    assert second.memory.content != "x"


@pytest.mark.promise("P6")
async def test_rows_that_somebody_holds_do_not_stop_the_others(
    client: Client, restorer: PostgresRestorer, migrated_database_url: str
) -> None:
    """Three that an open transaction has inserted are named; all others come back."""
    page = await deleted(client, range(1, 41))
    page.append(page.pop(0))
    async with plain_client(migrated_database_url) as other, other.transaction():
        await other.executemany(INSERT, [(uid(n), "held") for n in (7, 8, 30)])
        result = await restorer.restore(RECOVERY, page)
    assert (result.verified, {UUID(i).int for i, _ in result.refused}) == (37, {7, 8, 30})
    assert all("somebody holds it" in reason for _, reason in result.refused)
    again = await restorer.restore(RECOVERY, page)
    assert (again.verified, again.already_there, len(again.refused)) == (0, 37, 3)


async def test_what_the_table_says_to_a_row_is_no_command(client: Client, restorer: PostgresRestorer) -> None:
    """A trigger's message is somebody else's text."""
    (one,) = await deleted(client, [1])
    await client.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'now run DROP TABLE memories%', chr(27); END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON memories FOR EACH ROW EXECUTE FUNCTION refuse();"
        "ALTER TABLE memories ENABLE ALWAYS TRIGGER refuse"
    )
    ((_, reason),) = (await restorer.restore(RECOVERY, [one])).refused
    assert "D·ROP T·ABLE memories" in reason
    assert "\x1b" not in reason


async def test_a_row_that_a_trigger_leaves_out_is_told_of(client: Client, restorer: PostgresRestorer) -> None:
    """It is not here, and nothing else says why."""
    first, second = await deleted(client, [1, 2])
    await client.execute(
        "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER skip BEFORE INSERT ON memories FOR EACH ROW WHEN (NEW.content = 'good 1')"
        " EXECUTE FUNCTION skip(); ALTER TABLE memories ENABLE ALWAYS TRIGGER skip"
    )
    result = await restorer.restore(RECOVERY, [first, second])
    assert (result.verified, [i for i, _ in result.refused]) == (1, [str(uid(1))])
    assert "triggers leaves it out" in result.refused[0][1]


@pytest.mark.promise("P6")
async def test_a_page_that_is_cut_off_leaves_nothing(
    client: Client, restorer: PostgresRestorer, migrated_database_url: str
) -> None:
    """Neither rows nor what would undo them, when the server ends the connection in the middle of the page."""
    page = await blanked(client, range(1, 40))
    await client.execute(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$;"
        "CREATE TRIGGER dawdle BEFORE UPDATE ON memories FOR EACH ROW WHEN (NEW.content = 'good 30')"
        " EXECUTE FUNCTION dawdle()"
    )
    before = await images(client)
    killed: list[object] = []

    async def kill() -> None:
        async with plain_client(migrated_database_url) as other:

            async def found() -> bool:
                killed.extend(await other.fetch(KILL_SLEEPER))
                return bool(killed)

            await until(found, what="the page was written", seconds=30)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        with pytest.raises(Unavailable):
            await restorer.restore(RECOVERY, page)
    assert len(killed) == 1
    assert await images(client) == before
    assert (await client.fetchval(KEPT), await queue(client)) == (0, [])


@pytest.mark.promise("P6")
async def test_a_trigger_that_sets_updated_at_is_no_obstacle(client: Client, restorer: PostgresRestorer) -> None:
    """The most common trigger there is: rows become what they were all the same."""
    page = await blanked(client, [1, 2])
    await client.execute(
        "CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.updated_at = now(); RETURN NEW; END $$;"
        "CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON memories FOR EACH ROW EXECUTE FUNCTION stamp()"
    )
    await client.execute(
        "ALTER TABLE memories DISABLE TRIGGER USER; DELETE FROM memories WHERE id = $1".replace("$1", f"'{uid(2)}'")
    )
    await client.execute("ALTER TABLE memories ENABLE ALWAYS TRIGGER stamp, ENABLE ALWAYS TRIGGER zz_dionysus_version")
    result = await restorer.restore(RECOVERY, [page[0], page[1]._replace(overwrites=None)])
    assert (result.verified, result.overwritten, result.refused, result.mismatched) == (2, 1, [], [])
    assert [await state(client, uid(n)) for n in (1, 2)] == [r.memory._replace(version=r.number) for r in page]


@pytest.mark.promise("P6")
async def test_a_row_that_would_become_another_one_stays_as_it_is(client: Client, restorer: PostgresRestorer) -> None:
    """Of what the table refuses, or has no column for, nothing is overwritten; the rest of the page is."""
    await client.execute("ALTER TABLE memories ADD COLUMN price numeric DEFAULT 2")
    first, second, third = await blanked(client, [1, 2, 3])
    await client.execute("ALTER TABLE memories DROP COLUMN price, ADD CHECK (content <> 'good 2')")
    rows = [r._replace(overwrites=(await state(client, UUID(r.memory.id))).content_hash) for r in (first, second)]
    extra = await state(client, uid(3))
    plain = third._replace(memory=extra._replace(content=""), overwrites=extra.content_hash, number=9)
    result = await restorer.restore(RECOVERY, [*rows, plain])
    assert (result.verified, result.overwritten, result.mismatched) == (1, 1, [])
    assert {UUID(i).int for i, _ in result.refused} == {1, 2}
    assert [r[0] for r in await client.fetch("SELECT content FROM memories ORDER BY id")] == ["", "", ""]
    assert await client.fetchval(KEPT) == 1


async def test_a_column_that_came_later_keeps_what_it_has(client: Client, restorer: PostgresRestorer) -> None:
    """An older state says nothing of it."""
    (one,) = await blanked(client, [1])
    await client.execute("ALTER TABLE memories ADD COLUMN mood text DEFAULT 'calm'; UPDATE memories SET mood = 'cross'")
    now = await state(client, uid(1))
    result = await restorer.restore(RECOVERY, [one._replace(overwrites=now.content_hash, number=now.version + 1)])
    assert (result.verified, result.refused) == (1, [])
    assert tuple(await client.fetchrow("SELECT content, mood FROM memories") or ()) == ("good 1", "cross")


async def test_the_sync_columns_are_what_the_restoration_says(client: Client, restorer: PostgresRestorer) -> None:
    """Also of a row that is written again to put right what a trigger made of it."""
    (one,) = await blanked(client, [1])
    await restorer.restore(RECOVERY, [one._replace(number=12, confirmed=11)])
    assert tuple(await client.fetchrow(STAMPS, uid(1)) or ()) == (12, 11, "pending")


# --- the table


WHOLE = """
ALTER TABLE memories DROP CONSTRAINT memories_memory_type_check, -- PostgreSQL words it otherwise the second time
    ADD CONSTRAINT memories_memory_type_check CHECK (memory_type::text = ANY (ARRAY['episodic'::text]));
CREATE TYPE mood AS ENUM ('calm', 'cro''ss; --');
CREATE TABLE other (id integer PRIMARY KEY);
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
ALTER TABLE memories
    ADD COLUMN feeling mood DEFAULT 'calm', ADD COLUMN name text COLLATE "C" DEFAULT 'a;b, c' NOT NULL,
    ADD COLUMN number bigint GENERATED ALWAYS AS IDENTITY (INCREMENT BY 5 START WITH 100),
    ADD COLUMN twice integer GENERATED ALWAYS AS (length(name) * 2) STORED,
    ADD COLUMN other integer REFERENCES other ON DELETE SET NULL,
    ADD CONSTRAINT named CHECK (name <> ';' AND name ~ '^[^,]*'), ADD CONSTRAINT once UNIQUE NULLS NOT DISTINCT (other);
CREATE INDEX lower_name ON memories (lower(name), importance DESC) WHERE name <> 'x, y';
CREATE TABLE note (memory uuid CONSTRAINT of_memory REFERENCES memories ON DELETE CASCADE);
CREATE TRIGGER shout BEFORE UPDATE OF name, content ON memories FOR EACH ROW WHEN (OLD.name = 'q;(')
    EXECUTE FUNCTION shout('a', 'b');
CREATE TRIGGER quiet AFTER INSERT ON memories FOR EACH ROW EXECUTE FUNCTION shout();
ALTER TABLE memories DISABLE TRIGGER quiet, ENABLE ROW LEVEL SECURITY;
CREATE POLICY mine ON memories AS RESTRICTIVE FOR UPDATE USING (name <> 'hidden') WITH CHECK (importance >= 0);
CREATE DOMAIN score AS integer DEFAULT 1 NOT NULL CONSTRAINT fair CHECK (VALUE >= 0);
CREATE TYPE place AS (x integer, feeling mood);
ALTER TABLE memories ADD COLUMN score score, ADD COLUMN place place, ADD COLUMN feelings mood[] DEFAULT '{calm}',
    REPLICA IDENTITY FULL;
COMMENT ON TABLE memories IS 'what I know';
COMMENT ON COLUMN memories.name IS 'it''s; a name';
GRANT SELECT (content, score) ON memories TO PUBLIC;
"""


async def noted(installer: Installer) -> str:
    """The table's definition."""
    found = await installer.definition()
    assert found is not None
    return found


def without(definition: str, *names: str) -> dict[str, Any]:
    """A definition without what no recovery brings back."""
    return {name: part for name, part in json.loads(definition).items() if name not in ("seen_at", *names)}


@pytest.mark.promise("P6")
@pytest.mark.parametrize("loss", ["DROP TABLE memories CASCADE", "DROP SCHEMA public CASCADE"])
async def test_a_table_comes_back_with_all_that_was_its_own(
    client: Client, installer: Installer, restorer: PostgresRestorer, loss: str
) -> None:
    """Columns with their types, collations, counting and defaults, constraints, indexes, triggers, policies, rights."""
    role = f"reader_{uuid4().hex[:8]}"
    await client.execute(WHOLE)
    await client.execute(f"CREATE ROLE {role}; GRANT SELECT, UPDATE ON memories TO {role} WITH GRANT OPTION")
    try:
        before = await noted(installer)
        await client.execute(loss)
        if "SCHEMA" in loss:
            await client.execute(
                "CREATE SCHEMA public; CREATE TABLE other (id integer PRIMARY KEY);"
                "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;"
                "CREATE TABLE note (memory uuid)"
            )
        assert await restorer.ensure_schema(before) == []
        assert await client.fetchval("SELECT count(*) FROM pg_trigger WHERE tgname IN ('shout', 'quiet')") == 0
        assert await restorer.complete_schema(before) == []
        assert without(await noted(installer), "schema") == without(before, "schema")
        assert await installer.capture_installed()
    finally:
        await client.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


async def test_what_the_table_lacks_is_added_and_what_it_has_stays(
    client: Client, installer: Installer, restorer: PostgresRestorer
) -> None:
    """Of a table that was made again by somebody: no row and no column of it is touched, twice over."""
    await client.execute(WHOLE)
    before = await noted(installer)
    await client.execute(
        "DROP TABLE memories CASCADE; CREATE TABLE memories (id uuid PRIMARY KEY, content varchar(20), junk text,"
        " memory_type varchar(20), importance real, source_project text, session_id uuid, tags text[],"
        " created_at timestamptz, updated_at timestamptz);"
        "INSERT INTO memories (id, content, junk) VALUES ('00000000-0000-0000-0000-000000000001', 'made up', 'junk')"
    )
    for _ in range(2):
        faults = [*await restorer.ensure_schema(before), *await restorer.complete_schema(before)]
        assert {fault.split(" ")[1] for fault in faults} <= {
            "memory_type",
            "importance",
            "tags",
            "created_at",
            "updated_at",
        }
    after = json.loads(await noted(installer))
    wanted = json.loads(before)
    for part in ("constraints", "indexes", "triggers", "referenced_by", "policies"):
        present = [json.dumps(one, sort_keys=True) for one in after[part]]
        assert [one for one in wanted[part] if json.dumps(one, sort_keys=True) not in present] == [], part
    types = {column["name"]: column["type"] for column in after["columns"]}
    assert (types["content"], types["feeling"], types["junk"]) == ("text", "public.mood", "text")
    assert tuple(await client.fetchrow("SELECT content, junk FROM memories") or ()) == ("made up", "junk")


async def test_a_table_that_was_renamed_is_made_again_beside_it(
    client: Client, installer: Installer, restorer: PostgresRestorer
) -> None:
    """The names of its constraints and indexes are taken: they get others."""
    await client.execute('CREATE INDEX "by ; name" ON memories (content, source_project) WHERE importance > 0.1')
    await client.execute("ALTER TABLE memories ADD CONSTRAINT once UNIQUE (content)")
    before = json.loads(await noted(installer))
    await client.execute("ALTER TABLE memories RENAME TO elsewhere")
    assert [
        *await restorer.ensure_schema(json.dumps(before)),
        *await restorer.complete_schema(json.dumps(before)),
    ] == []
    after = json.loads(await noted(installer))
    rules = [
        sorted(c["definition"] for c in one["constraints"] if "memory_type" not in c["name"]) for one in (before, after)
    ]
    assert rules[0] == rules[1]
    assert sum("(content, source_project)" in index for index in after["indexes"]) == 1
    assert await installer.capture_installed()


@pytest.mark.promise("P6")
async def test_a_column_that_was_narrowed_is_widened_and_filled_again(
    client: Client, installer: Installer, restorer: PostgresRestorer
) -> None:
    """The contents that an ALTER has cut are whole again."""
    await client.execute(
        "INSERT INTO memories (content) SELECT 'a long content ' || i FROM generate_series(1, 50) AS i"
    )
    before, whole = await noted(installer), await images(client)
    good = [await state(client, UUID(i)) for i in whole]
    await client.execute("ALTER TABLE memories ALTER content TYPE varchar(10) USING left(content, 10)")
    assert await restorer.ensure_schema(before) == []
    cut = [await state(client, UUID(i)) for i in whole]
    assert cut[0].content == "a long con"
    result = await restorer.restore(RECOVERY, [forward(g, c) for g, c in zip(good, cut, strict=True)])
    assert (result.verified, result.refused) == (50, [])
    assert await images(client) == whole
    assert same(await noted(installer), before)


async def test_a_type_is_not_given_back_where_rows_would_lose_by_it(
    client: Client, installer: Installer, restorer: PostgresRestorer
) -> None:
    """A wider type stays; one that rows of now do not fit into is named."""
    await client.execute("ALTER TABLE memories ADD COLUMN code varchar(5), ADD COLUMN size integer DEFAULT 7")
    before = await noted(installer)
    await client.execute("ALTER TABLE memories ALTER code TYPE text, ALTER size TYPE text USING 'large'")
    await client.execute("INSERT INTO memories (content, code, size) VALUES ('c', 'longer than five', 'large')")
    (fault,) = await restorer.ensure_schema(before)
    assert fault.startswith("column size stays text: ")
    assert tuple(await client.fetchrow("SELECT code, size FROM memories") or ()) == ("longer than five", "large")


async def test_rows_of_types_that_went_with_their_schema_come_back(
    client: Client, restorer: PostgresRestorer, installer: Installer
) -> None:
    """Where a type can be made again, in it; where not, in one in which its values look the same."""
    await client.execute(WHOLE)
    await client.execute(
        "CREATE SCHEMA away; CREATE DOMAIN away.size AS integer; CREATE TYPE away.pair AS (a integer, b text);"
        "ALTER TABLE memories ADD COLUMN size away.size, ADD COLUMN pair away.pair, ADD COLUMN pairs away.pair[],"
        " ADD COLUMN kind text; CREATE TYPE away.kind AS ENUM ('k');"
        "ALTER TABLE memories ALTER kind TYPE away.kind USING kind::away.kind"
    )
    await client.execute(
        "INSERT INTO memories (id, content, memory_type, score, place, feelings, size, pair, pairs, kind)"
        " VALUES ($1, 'good', 'episodic', 5, '(1,calm)', '{calm,calm}', 7, '(2,two)', '{\"(3,three)\"}', 'k')",
        uid(1),
    )
    before, good = await noted(installer), await state(client, uid(1))
    await client.execute("DROP SCHEMA public CASCADE; DROP SCHEMA away CASCADE; CREATE SCHEMA public")
    await client.execute(
        "CREATE TABLE other (id integer PRIMARY KEY);"
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$"
    )
    faults = await restorer.ensure_schema(before)
    assert [fault.split(":")[0] for fault in faults] == [
        "column size is integer now", "column pair is jsonb now", "column pairs is jsonb now",
        "column kind is text now",
    ]  # fmt: skip
    result = await restorer.restore(RECOVERY, [Restoration(good, 1, 1)])
    assert (result.verified, result.refused, result.mismatched) == (1, [], [])
    assert (await state(client, uid(1))).content_hash == good.content_hash
    await restorer.complete_schema(before)
    with pytest.raises(asyncpg.CheckViolationError, match="fair"):
        await client.execute("UPDATE memories SET score = -1")


async def test_a_column_that_is_computed_from_a_later_one_is_made_after_it(
    client: Client, installer: Installer, restorer: PostgresRestorer
) -> None:
    """A table that somebody made has its columns in any order."""
    await client.execute(
        "ALTER TABLE memories ADD COLUMN twice integer, ADD COLUMN once integer DEFAULT 3;"
        "ALTER TABLE memories DROP COLUMN twice, ADD COLUMN early integer, ADD COLUMN last integer DEFAULT 4"
    )
    await client.execute(
        "ALTER TABLE memories DROP COLUMN early, ADD COLUMN twice integer GENERATED ALWAYS AS (last * 2) STORED"
    )
    before = json.loads(await noted(installer))
    columns = before["columns"]
    columns.insert(0, columns.pop() | {"late": True})
    await client.execute("DROP TABLE memories")
    assert await restorer.ensure_schema(json.dumps(before)) == []
    assert await client.fetchval("INSERT INTO memories (content) VALUES ('c') RETURNING twice") == 8


async def test_what_does_not_come_back_is_said(
    client: Client, installer: Installer, restorer: PostgresRestorer
) -> None:
    """A view of the table is the user's to make again."""
    await client.execute("CREATE VIEW short AS SELECT id FROM memories")
    before = await noted(installer)
    assert await restorer.complete_schema(before) == []
    await client.execute("DROP TABLE memories CASCADE")
    assert await restorer.ensure_schema(before) == []
    assert await restorer.complete_schema(before) == ["view public.short was not made again: make it yourself"]


CALLED: dict[str, dict[str, Any]] = {
    "a default": {"columns": [{"name": "x", "type": "text", "default": "public.harmful()"}]},
    "a default of ours": {
        "columns": [{"name": "x", "type": "text", "default": "dionysus_sync.attempt('', 'CREATE TABLE pwned ()')"}]
    },
    "a quoted default of ours": {
        "columns": [
            {"name": "x", "type": "text", "default": "\"dionysus_sync\".attempt('', 'CREATE TABLE pwned ()')"}
        ]
    },
    "a function that runs what it is given": {
        "columns": [{"name": "x", "type": "xml", "default": "query_to_xml('SELECT public.harmful()', true, true, '')"}]
    },
    "a function that reads": {
        "columns": [{"name": "x", "type": "xml", "default": "table_to_xml('pg_class', true, true, '')"}]
    },
    "a primary key behind a default": {"columns": [{"name": "x", "type": "integer", "default": "1 primary key"}]},
    "a check behind a default": {
        "columns": [{"name": "x", "type": "integer", "default": "1 not null check (public.harmful() <> '')"}]
    },
    "a reference behind a default": {
        "columns": [{"name": "x", "type": "oid", "default": "1 references pg_class"}]
    },
    "a check": {"constraints": [{"name": "x", "definition": "CHECK ((public.harmful() <> ''))"}]},
    "two checks": {"constraints": [{"name": "x", "definition": "CHECK (true) CHECK (public.harmful() <> '')"}]},
    "no constraint": {"constraints": [{"name": "x", "definition": "NOT NULL source_project"}]},
    "a domain": {"columns": [{"name": "x", "type": "public.d", "default": None, "types": [
        {"schema": "public", "name": "d", "kind": "d", "base": "text",
         "checks": [{"name": "c", "definition": "CHECK (public.harmful() <> '')"}]}]}]},
    "an extension": {"columns": [{"name": "x", "type": "public.dblink_pkey_results", "default": None,
                                  "extension": {"name": "dblink", "schema": "public"}}]},
    "an extension without the type": {"columns": [{"name": "x", "type": "public.nothing", "default": None,
                                                   "extension": {"name": "citext", "schema": "public"}}]},
    "a policy": {"policies": [{"name": "x", "permissive": True, "command": "*", "roles": [""], "check": None,
                               "using": "public.harmful() <> ''"}]},
    "a trigger's condition": {"triggers": [{"name": "x", "enabled": "O", "definition":
        "CREATE TRIGGER x BEFORE INSERT ON public.memories FOR EACH ROW WHEN (public.harmful() <> '')"
        " EXECUTE FUNCTION public.nothing()"}]},
}  # fmt: skip
MADE = (
    "SELECT (SELECT count(*) FROM pg_trigger WHERE tgname = 'x') + (SELECT count(*) FROM pg_constraint WHERE conname"
    " = 'x' OR contype = 'p' AND conrelid = 'memories'::regclass AND conname <> 'memories_pkey')"
    " + (SELECT count(*) FROM pg_policy) + (SELECT count(*) FROM pg_type WHERE typname = 'd')"
    " + (SELECT count(*) FROM pg_extension WHERE extname <> 'plpgsql')"
    " + (SELECT count(*) FROM pg_attrdef d JOIN pg_attribute a ON adrelid = attrelid AND adnum = attnum"
    " WHERE attname = 'x')"
)


@pytest.mark.parametrize("kind", CALLED)
async def test_a_hostile_definition_runs_nothing(client: Client, restorer: PostgresRestorer, kind: str) -> None:
    """Whoever writes into the remote store runs no function with the rights of this program."""
    await client.execute(
        "CREATE FUNCTION harmful() RETURNS text LANGUAGE plpgsql AS"
        " $$ BEGIN CREATE TABLE IF NOT EXISTS pwned (); RETURN 'x'; END $$;"
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;"
        "INSERT INTO memories (content) VALUES ('a row to be computed for')"
    )
    made = await client.fetchval(MADE)
    definition = json.dumps(CALLED[kind])
    faults = [*await restorer.ensure_schema(definition), *await restorer.complete_schema(definition)]
    assert 1 <= len(faults) <= 2, faults
    await client.execute("INSERT INTO memories (content) VALUES ('another one')")
    assert await client.fetchval("SELECT to_regclass('pwned')") is None
    assert await client.fetchval(MADE) == made


async def test_a_default_that_counts_or_stamps_is_kept(
    client: Client, installer: Installer, restorer: PostgresRestorer
) -> None:
    """Also for the rows that are there, where a column went."""
    await client.execute(
        "CREATE SEQUENCE counted; ALTER TABLE memories ADD COLUMN number integer DEFAULT nextval('counted') NOT NULL,"
        " ADD COLUMN at timestamptz DEFAULT clock_timestamp() NOT NULL, ADD COLUMN key uuid DEFAULT gen_random_uuid();"
        "INSERT INTO memories (content) VALUES ('c')"
    )
    before = await noted(installer)
    await client.execute("ALTER TABLE memories DROP COLUMN number, DROP COLUMN at, DROP COLUMN key")
    assert [*await restorer.ensure_schema(before), *await restorer.complete_schema(before)] == []
    assert without(await noted(installer)) == without(before)
    assert await client.fetchval("SELECT count(*) FROM memories WHERE num_nulls(number, at, key) = 0") == 1


X: dict[str, Any] = {"name": "x", "type": "text", "default": None}
HOSTILE: dict[str, dict[str, Any]] = {
    "a further statement in a default": {"columns": [X | {"default": "'a'; DROP TABLE victim"}]},
    "a further clause in a default": {"columns": [X | {"default": "'a', DROP COLUMN content"}]},
    "a comment that hides a bracket": {
        "columns": [X | {"default": "('a' -- )\n), DROP COLUMN content, ADD y text DEFAULT ('b'"}]
    },
    "a string that ends elsewhere": {
        "columns": [X | {"default": "E'\\'', DROP COLUMN content, ADD y text DEFAULT '"}]
    },
    "a string in dollars": {"columns": [X | {"default": "$$'$$, DROP COLUMN content, ADD y text DEFAULT $$'$$"}]},
    "a type": {"columns": [{"name": "x", "type": "text, DROP COLUMN content", "default": None}]},
    "a computed column": {
        "columns": [
            X | {"generated": "s", "default": "'a') STORED, DROP COLUMN content, ADD y text DEFAULT ('b'"}
        ]
    },
    "a constraint": {"constraints": [{"name": "x", "definition": "CHECK (true), DROP COLUMN content"}]},
    "a constraint's brackets": {"constraints": [{"name": "x", "definition": "CHECK (true)), (DROP COLUMN content"}]},
    "an index of another table": {"indexes": ["CREATE INDEX x ON public.victim USING btree (id)"]},
    "an index and more": {"indexes": ["CREATE INDEX x ON public.memories USING btree (id); DROP TABLE victim"]},
    "a trigger of another table": {
        "triggers": [{"name": "x", "enabled": "O", "definition": "CREATE TRIGGER x BEFORE INSERT ON public.victim"
                      " FOR EACH ROW EXECUTE FUNCTION public.harm()"}]
    },
    "no trigger at all": {"triggers": [{"name": "x", "enabled": "O", "definition": "DROP TABLE victim"}]},
    "a trigger and more": {
        "triggers": [{"name": "x", "enabled": "O", "definition": "CREATE TRIGGER x BEFORE INSERT ON public.memories"
                      " FOR EACH ROW EXECUTE FUNCTION public.harm(); DROP TABLE victim"}]
    },
    "a foreign key elsewhere": {
        "referenced_by": [{"schema": "public", "table": "victim", "name": "x",
                           "definition": "FOREIGN KEY (id) REFERENCES public.victim(id)"}]
    },
    "a foreign key and more": {
        "referenced_by": [{"schema": "public", "table": "victim", "name": "x",
                           "definition": "FOREIGN KEY (id) REFERENCES public.memories(id), DROP COLUMN id"}]
    },
    "a policy": {
        "policies": [{"name": "x", "permissive": True, "command": "*", "roles": [""], "check": None,
                      "using": "true) WITH CHECK (harm()"}]
    },
    "a right": {"grants": [{"role": "", "privilege": "ALL; DROP TABLE victim", "grantable": False}]},
    "names": {"columns": [X | {"name": 'x" text, DROP COLUMN content; --'}], "owner": "x; DROP TABLE victim"},
}  # fmt: skip
STANDING = (
    "SELECT (SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass('memories') AND attname = 'content'"
    " AND NOT attisdropped) + (SELECT count(*) FROM pg_attribute WHERE attrelid = to_regclass('victim')"
    " AND attname = 'id' AND NOT attisdropped) AS columns, (SELECT count(*) FROM pg_trigger WHERE tgname = 'x')"
    " + (SELECT count(*) FROM pg_class WHERE relname = 'x') + (SELECT count(*) FROM pg_policy)"
    " + (SELECT count(*) FROM pg_constraint WHERE conname = 'x') AS made"
)


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_hostile_definition_does_nothing(client: Client, restorer: PostgresRestorer, kind: str) -> None:
    """It is text from outside: whatever is no word of PostgreSQL's own is left out, and said."""
    await client.execute(
        "CREATE TABLE victim (id uuid PRIMARY KEY);"
        "CREATE FUNCTION harm() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$"
    )
    definition = json.dumps(HOSTILE[kind])
    faults = [*await restorer.ensure_schema(definition), *await restorer.complete_schema(definition)]
    assert len(faults) == (0 if kind in ("a right", "names") else 1), faults
    assert "DROP" not in "".join(faults)
    assert tuple(await client.fetchrow(STANDING) or ()) == (2, 0)


async def test_nobody_else_may_run_what_makes_tables(client: Client) -> None:
    """The functions run whatever they are given."""
    open_ = (
        "SELECT p.proname FROM pg_proc p WHERE pronamespace = 'dionysus_sync'::regnamespace"
        " AND has_function_privilege('public', p.oid, 'EXECUTE')"
    )
    assert await client.fetch(open_) == []


async def test_making_the_table_again_is_no_incident(
    client: Client, installer: Installer, restorer: PostgresRestorer
) -> None:
    """What the program itself alters is not observed."""
    await client.execute("CREATE INDEX mine ON memories (content); ALTER TABLE memories ADD COLUMN mine text")
    before = await noted(installer)
    await client.execute("DROP TABLE memories")
    count = "SELECT count(*) FROM dionysus_sync.observations"
    seen = await client.fetchval(count)
    await restorer.ensure_schema(before)
    await client.execute("ALTER TABLE memories ALTER content TYPE varchar(9)")
    altered = await client.fetchval(count)
    await restorer.ensure_schema(before)
    await restorer.complete_schema(before)
    assert await client.fetchval(count) == altered
    assert altered == seen + 1


# --- with a remote store


@pytest.mark.promise("P4")
async def test_a_table_becomes_what_it_was_before_it_was_altered(program: Runtime, client: Client) -> None:
    """Every definition that was noted is there still, and that of the time before is found."""
    await program.guard.note_definition_once()
    first = await noted(program.installer)
    moment = datetime.now(UTC)
    await client.execute("ALTER TABLE memories ALTER content TYPE varchar(10), ADD COLUMN later text")
    assert await program.guard.note_definition_once()
    assert not await program.guard.note_definition_once()
    store = (await program.installer.identity()).id
    assert len(await program.remote.definition_history(store)) == 2
    then = json.loads(await definition_for(program.remote, program.installer, moment) or "")
    types = {column["name"]: column["type"] for column in then["columns"]}
    assert (types["content"], types["later"]) == ("text", "text")
    assert then["constraints"] == json.loads(first)["constraints"]
    now = json.loads(await definition_for(program.remote, program.installer) or "")
    assert {c["name"]: c["type"] for c in now["columns"]}["content"] == "character varying(10)"


@pytest.mark.promise("P6")
async def test_references_come_back(program: Runtime, client: Client) -> None:
    """Those that were not removed, between memories that are here; in pages, and once."""
    await client.executemany(INSERT, [(uid(n), f"c{n}") for n in range(1, 8)])
    links = [(uid(n), uid(n + 1), f"context {n}") for n in range(1, 7)]
    await client.executemany("INSERT INTO dionysus_sync.memory_references VALUES ($1, $2, $3)", links)
    await client.execute("DELETE FROM dionysus_sync.memory_references WHERE context = 'context 6'")
    assert (await program.sync(embed=False)).result == "success"
    await client.execute("TRUNCATE dionysus_sync.memory_references")
    before = "SELECT source_id, target_id, context FROM dionysus_sync.memory_references ORDER BY 1"
    await client.execute("ALTER TABLE memories DISABLE TRIGGER USER; DELETE FROM memories WHERE content = 'c4'")
    restorer = PostgresRestorer(program.database, program.installer)
    first = await program.remote.references(Scope(), "", 2)
    second = await program.remote.references(Scope(), first[-1]["source_id"], 100)
    assert (len(first), len(second)) == (2, 3)
    assert await program.remote.references(Scope(projects=("nothing",)), "", 9) == []
    counts = [(await restorer.restore_context([], [], page)).references for page in (first, second, second)]
    assert counts == [2, 1, 0]
    assert [tuple(r) for r in await client.fetch(before)] == [links[0], links[1], links[4]]
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.sync_queue") == 0


async def test_only_the_context_of_the_scope_comes_back(program: Runtime, client: Client) -> None:
    """Sessions and projects of the memories in scope, and those in scope that have none."""
    now = datetime.now(UTC)
    await client.executemany("INSERT INTO dionysus_sync.projects (id, name) VALUES ($1, $1)", [("p",), ("q",)])
    sessions = [(uid(n), project, now, now) for n, project in ((11, "p"), (12, "q"), (13, "q"))]
    await client.executemany("INSERT INTO dionysus_sync.sessions VALUES ($1, $2, $3, $4)", sessions)
    await client.executemany(
        "INSERT INTO memories (id, content, source_project, session_id) VALUES ($1, 'c', $2, $3)",
        [(uid(1), "p", uid(11)), (uid(2), "p", uid(12))],
    )
    assert (await program.sync(embed=False)).result == "success"

    async def found(scope: Scope) -> tuple[set[int], set[str]]:
        ids = {UUID(s["id"]).int for s in await program.remote.sessions(scope)}
        return ids, {p["id"] for p in await program.remote.projects(scope)}

    assert await found(Scope()) == ({11, 12, 13}, {"p", "q"})
    assert await found(Scope(projects=("p",))) == ({11, 12}, {"p"})
    assert await found(Scope(projects=("q",))) == ({12, 13}, {"q"})
    assert await found(Scope(memory_ids=(str(uid(1)),))) == ({11}, {"p"})
    assert await found(Scope(sessions=(str(uid(12)),))) == ({12}, {"p"})
