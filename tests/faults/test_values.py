"""Values that are hard to carry, a table that changes its shape, and words that try to be statements."""

import json
import math
from collections.abc import AsyncIterator, Sequence
from itertools import count
from typing import Any

import pytest

from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.runtime import Runtime
from tests.faults.oracle import Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Program, Stores, drained, mcp_server, waiting
from tests.integration.stores import Client, graph, images, node, plain_client, queue, remote_digest, uid
from tests.services.local_store import running
from tests.services.waiting import until

SOON = 60.0
MEGABYTE = 1_000_000
INSERT = "INSERT INTO memories (id, content) VALUES ($1, $2)"
RANDOM = "SELECT string_agg(md5(i::text), ' ') FROM generate_series(0, $1) AS i"
SHAPE = (
    "SELECT array_agg(attname || ' ' || format_type(atttypid, atttypmod) ORDER BY attnum)::text"
    " FROM pg_attribute WHERE attrelid = 'memories'::regclass AND attnum > 0"
)
MEND = "UPDATE memories SET plain = '{}', content = $2 WHERE id = $1"
COLUMNS = (
    "ALTER TABLE memories ADD COLUMN score float8, ADD COLUMN exact numeric, ADD COLUMN doc jsonb,"
    " ADD COLUMN plain json, ADD COLUMN day date, ADD COLUMN at timestamptz, ADD COLUMN raw bytea, ADD COLUMN note text"
)
TEXTS = {
    "emoji": "\U0001f600 \U0001f469\u200d\U0001f467 \U0001d54f \U0010ffff",
    "right to left": "\u202eabc\u202c \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u2066x\u2069",
    "line ends": "a\r\nb\rc\nd\u2028e\u2029f\x0bg\x85h\r\n",
    "composed": "\u00e9 \u1e9b\u0323 \ufb01",
    "decomposed": "e\u0301 \u017f\u0323\u0307 fi",
    "control": "\x01\x02\x1f\x7f\x80\ufffe\uffff\ufeff",
    "quotes": "' \" ` \\ \\u0000 $1 :memories {} %s ; -- // /* */",
    "empty": "",
}
# Column and value in SQL: each a row of its own.
VALUES = [
    ("score", "'NaN'"),
    ("score", "'Infinity'"),
    ("score", "'-Infinity'"),
    ("score", "'-0.0'"),
    ("score", "5e-324"),
    ("score", "0.1::float8 + 0.2::float8"),
    ("exact", "'NaN'"),
    ("exact", "1e400"),
    ("exact", "-1e-400"),
    ("exact", "123456789012345678901234567890.000"),
    ("doc", """'{"a": 1e400, "b": -0.0, "c": 1.000, "": null, "d": 9007199254740993}'"""),
    ("doc", """'["\\ud83d\\ude00", "\\u202e", {"x": []}]'"""),
    ("doc", "'null'"),
    ("day", "'0044-03-15 BC'"),
    ("day", "'infinity'"),
    ("day", "'4713-01-01 BC'"),
    ("at", "'0044-03-15 12:00:00.123456+00 BC'"),
    ("at", "'-infinity'"),
    ("at", "'294276-12-31 23:59:59.999999+00'"),
    ("raw", r"'\x00ff00'"),
    ("created_at", "'0001-01-01 00:00:00+00 BC'"),
    ("updated_at", "'infinity'"),
    ("importance", "'1e-40'"),
    ("tags", "ARRAY['', NULL, 'a,b', '{}', '\U0001f600']"),
]
# What `json` keeps as text and PostgreSQL itself cannot read as JSON: parked with the reason, whatever else is written.
UNREADABLE = [r'{"nul": "\u0000"}', r'{"lone": "\ud800"}', r'{"reversed": "\ude00\ud83d"}']
REASONS = ("unsupported Unicode escape sequence", "invalid input syntax for type json")
SIZES = [1, 2000, 7990, 8000, 8191, 8192, 8193, 9000, 10_000, 32_767, 65_536]
HOSTILE = [
    "'}) DETACH DELETE (m) //",
    'x" OR 1=1; --',
    "$id",
    "`) MATCH (n) DETACH DELETE n RETURN (`",
    "\\u0027 }) CALL db.dropConstraint() //",
    "'; TRUNCATE memories CASCADE; --",
    '+content:* AND -"a" ~2 ^5 [a TO z] /.*/ {!func}',
    "../../etc/passwd\n\r\t",
    "\u202e\u2066$1{{7*7}}${jndi:ldap://127.0.0.1/a}",
]
BAD_IDS = ["1 OR 1=1", "' OR ''='", "00000000-0000-0000-0000-00000000000g", "", "\x00", "{}", "x" * 5000]


@pytest.fixture
async def client(stores: Stores) -> AsyncIterator[Client]:
    """A user's own connection."""
    async with plain_client(stores.database_url) as connection:
        yield connection


@pytest.fixture
async def worker(stores: Stores) -> AsyncIterator[Runtime]:
    """The program with its background loops."""
    async with running(stores.database_url, stores.neo4j_uri, worker=True) as runtime:
        yield runtime


async def write(client: Client, oracle: Oracle, number: int, content: str) -> None:
    """Insert a memory; that the statement succeeds is a part of every test here (P5)."""
    await client.execute(INSERT, uid(number), content)
    oracle.expect(uid(number), content)


async def recovered(program: Runtime, client: Client) -> dict[str, str]:
    """Every row as text, after the table was emptied behind the triggers' back and recovered from the remote."""
    await client.execute("ALTER TABLE memories DISABLE TRIGGER USER")
    await client.execute("DELETE FROM memories")
    await client.execute("ALTER TABLE memories ENABLE TRIGGER USER")
    await program.init(dry_run=False)
    plan = await program.plan_recovery(Scope())
    report = await program.run_recovery(plan.plan_id)
    assert report.complete, report
    return await images(client)


@pytest.mark.slow
@pytest.mark.scenario(21, "a row of 20 MB, and rows around 8 kB, of letters and of what does not compress")
@pytest.mark.promise("P1")
@pytest.mark.promise("P5")
@pytest.mark.usefixtures("worker")
async def test_21_large_rows(stores: Stores, oracle: Oracle, scenario: Scenario, client: Client) -> None:
    """Each arrives, and the small ones behind the largest do too."""
    numbers = count(1)
    for size in SIZES:
        await write(client, oracle, next(numbers), f"{size}: ".ljust(size, "x"))
        random = await client.fetchval(
            "SELECT string_agg(md5(i::text), '') FROM generate_series(1, $1) i", size // 32 + 1
        )
        await write(client, oracle, next(numbers), f"{size} random: {random}")
    random = await client.fetchval("SELECT string_agg(md5(i::text), ' ') FROM generate_series(1, 620000) AS i")
    await write(client, oracle, next(numbers), random)
    await write(client, oracle, next(numbers), "small, behind the large one")
    compared, seconds = await oracle.until_whole(5 * SOON)
    scenario.note(engaged=len(random) > 20 * MEGABYTE, compared=compared, seconds=seconds)
    assert (await node(stores.neo4j_uri, uid(1)))["content"].startswith("1: ")


@pytest.mark.scenario(22, "texts, numbers and times that are hard to carry, there and back again")
@pytest.mark.promise("P6")
async def test_22_every_value_comes_back(stores: Stores, oracle: Oracle, scenario: Scenario, client: Client) -> None:
    """Byte for byte, through a push and a recovery."""
    await client.execute(COLUMNS)
    numbers = count(1)
    for name, text in TEXTS.items():
        id_ = uid(next(numbers))
        await client.execute(
            "INSERT INTO memories (id, content, source_project, tags, note, doc) VALUES ($1, $2, $2, $3, $2, $4)",
            id_, f"{name}: {text}", [text, text], json.dumps({"text": text, f"key {text}": [text]}),
        )  # fmt: skip
        oracle.expect(id_, f"{name}: {text}")
    for column, value in VALUES:
        id_, content = uid(next(numbers)), f"{column} {value}"
        statement = f"INSERT INTO memories (id, content, {column}) VALUES ($1, $2, {value})"  # noqa: S608 - constants
        await client.execute(statement, id_, content)
        oracle.expect(id_, content)
    before = await images(client)
    async with running(stores.database_url, stores.neo4j_uri) as program:
        await program.sync(timeout=SOON, embed=False)
        assert await queue(client) == []
        compared, seconds = await oracle.until_whole()
        after = await recovered(program, client)
    differ = {id_: (image, after.get(id_)) for id_, image in before.items() if after.get(id_) != image}
    assert not differ
    engaged = any("Infinity" in image for image in before.values()) and any(" BC" in image for image in before.values())
    scenario.note(engaged=engaged, compared=compared, seconds=seconds)


@pytest.mark.scenario(22, "NUL and halves of surrogate pairs in json, which PostgreSQL keeps and cannot read")
@pytest.mark.promise("P5")
@pytest.mark.usefixtures("worker")
async def test_22_what_cannot_be_read_is_parked(
    stores: Stores, oracle: Oracle, scenario: Scenario, client: Client
) -> None:
    """The user's write succeeds, the row is parked with PostgreSQL's own reason, and once it can be read it arrives."""
    await client.execute(COLUMNS)
    for number, text in enumerate(UNREADABLE, start=1):
        statement = "INSERT INTO memories (id, content, plain) VALUES ($1, $2, $3::text::json), ($4, $5, '{}')"
        await client.execute(statement, uid(number), f"bad {number}", text, uid(100 + number), f"good {number}")
        oracle.expect(uid(number), f"bad {number}")
        oracle.expect(uid(100 + number), f"good {number}")

    async def all_but_these() -> bool:
        return await waiting(stores.database_url) == (0, len(UNREADABLE))

    await until(all_but_these, what="the others are pushed", seconds=SOON)
    parked = [entry for entry in await queue(client) if entry.parked]
    assert {entry.memory_id for entry in parked} == {uid(number) for number in range(1, len(UNREADABLE) + 1)}
    assert all(entry.error in REASONS for entry in parked), parked
    for number in range(1, len(UNREADABLE) + 1):
        await client.execute(
            "UPDATE memories SET plain = '{}', content = $2 WHERE id = $1", uid(number), f"mended {number}"
        )
        oracle.expect(uid(number), f"mended {number}")
    await drained(stores.database_url)
    compared, seconds = await oracle.until_whole()
    scenario.note(engaged=len(parked) == len(UNREADABLE), compared=compared, seconds=seconds)
    mended = [(await node(stores.neo4j_uri, entry.memory_id))["content"] for entry in parked]
    assert sorted(mended) == [f"mended {number}" for number in range(1, len(UNREADABLE) + 1)]


@pytest.mark.scenario(22, "what PostgreSQL itself refuses: NUL in text, importance that is no number")
@pytest.mark.promise("P5")
async def test_22_what_postgres_refuses_leaves_no_trace(
    stores: Stores, oracle: Oracle, scenario: Scenario, client: Client
) -> None:
    """The error is PostgreSQL's own, and nothing of the row is queued."""
    await oracle.insert(uid(1), "good")
    for importance in (math.nan, math.inf, -math.inf, 1.5):
        with pytest.raises(Exception, match="check constraint"):
            await client.execute("INSERT INTO memories (content, importance) VALUES ('bad', $1)", importance)
    with pytest.raises(Exception, match="invalid byte sequence"):
        await client.execute(INSERT, uid(2), "nul \x00")
    assert [entry.memory_id for entry in await queue(client)] == [uid(1)]
    async with running(stores.database_url, stores.neo4j_uri) as program:
        await program.sync(timeout=SOON, embed=False)
    compared, seconds = await oracle.until_whole()
    scenario.note(engaged=True, compared=compared, seconds=seconds)


async def call(program: Program, id_: int, tool: str, arguments: dict[str, Any]) -> tuple[bool, str]:
    """Whether a tool answered with an error, and what it said."""
    await program.wire.call(id_, tool, arguments)
    while (reply := await program.wire.receive()).get("id") != id_:
        pass
    if "error" in reply:
        return True, str(reply["error"]["message"])
    result = reply["result"]
    return bool(result.get("isError")), str(result["content"][0]["text"])


def hostile_calls() -> Sequence[tuple[str, dict[str, Any]]]:
    """Every text argument of every tool, with every hostile text."""
    texts = [
        (tool, arguments)
        for text in HOSTILE
        for tool, arguments in (
            ("query_cross_project", {"query": text}),
            ("query_cross_project", {"query": "kept", "projects": [text], "tags": [text]}),
            ("query_cross_project", {"query": "kept", "cursor": text}),
            ("recover_from_remote", {"plan_id": text}),
            ("recover_from_remote", {"projects": [text]}),
            ("sync_now", {"timeout_seconds": text}),
            ("get_sync_status", {text: text}),
        )
    ]
    ids = [
        (tool, {name: [bad]})
        for bad in BAD_IDS
        for tool, name in (("recover_from_remote", "memory_ids"), ("recover_from_remote", "sessions"))
    ]
    return [*texts, *ids]


@pytest.mark.scenario(46, "hostile ids, projects, tags, questions and cursors through every tool")
@pytest.mark.promise("P4")
async def test_46_hostile_arguments(stores: Stores, oracle: Oracle, scenario: Scenario, client: Client) -> None:
    """They are values and nothing else: both stores stay as they are, and each refusal says what is wrong."""
    for number, text in enumerate(HOSTILE, start=1):
        statement = "INSERT INTO memories (id, content, source_project, tags) VALUES ($1, $2, $3, ARRAY[$3])"
        await client.execute(statement, uid(number), f"kept {text}", text)
        oracle.expect(uid(number), f"kept {text}")
    async with mcp_server(stores) as program:
        await oracle.until_whole()
        digest, rows = await remote_digest(stores.neo4j_uri), await images(client)
        schema = await graph(stores.neo4j_uri, "SHOW INDEXES YIELD name RETURN name ORDER BY name")
        refused = 0
        for id_, (tool, arguments) in enumerate(hostile_calls(), start=1):
            is_error, said = await call(program, id_, tool, arguments)
            refused += is_error
            assert said
            assert "Traceback" not in said
            assert "fault in this program" not in said, (tool, arguments, said)
            assert program.running
        for number, text in enumerate(HOSTILE, start=1):
            arguments = {"query": "kept", "projects": [text]}
            is_error, said = await call(program, 1000 + number, "query_cross_project", arguments)
            assert not is_error, said
            assert [hit["memory_id"] for hit in json.loads(said)["items"]] == [str(uid(number))]
        assert await remote_digest(stores.neo4j_uri) == digest
        assert await images(client) == rows
        assert await graph(stores.neo4j_uri, "SHOW INDEXES YIELD name RETURN name ORDER BY name") == schema
        compared, seconds = await oracle.until_whole()
        scenario.note(engaged=refused >= len(BAD_IDS), compared=compared, seconds=seconds)


CHANGES = [
    "ALTER TABLE memories ADD COLUMN mood text DEFAULT 'good'",
    "ALTER TABLE memories ALTER COLUMN importance TYPE double precision",
    "ALTER TABLE memories DROP COLUMN tags",
    "ALTER TABLE memories ALTER COLUMN mood DROP DEFAULT, ALTER COLUMN mood TYPE jsonb USING to_jsonb(mood)",
    "ALTER TABLE memories DROP COLUMN mood, ADD COLUMN mood integer NOT NULL DEFAULT 7",
    "ALTER TABLE memories ALTER COLUMN content TYPE varchar(5000)",
    "ALTER TABLE memories RENAME COLUMN importance TO weight",
]


@pytest.mark.scenario(30, "columns of memories added, dropped, renamed and of another type while programs run")
@pytest.mark.promise("P1")
@pytest.mark.promise("P5")
async def test_30_the_table_changes(stores: Stores, oracle: Oracle, scenario: Scenario, client: Client) -> None:
    """Two programs that have prepared their statements for the table as it was push what follows."""
    numbers, changed = count(1), 0
    async with (
        running(stores.database_url, stores.neo4j_uri, worker=True),
        running(stores.database_url, stores.neo4j_uri, worker=True),
    ):
        for statement in CHANGES:
            first = next(numbers)
            await write(client, oracle, first, f"{first} before {statement}")
            compared, _ = await oracle.until_whole()
            assert compared.whole, (statement, compared)
            before = await client.fetchval(SHAPE)
            await client.execute(statement)
            changed += before != await client.fetchval(SHAPE)
            second = next(numbers)
            await write(client, oracle, second, f"{second} after {statement}")
            # What a change of the table does to rows is no change of theirs; the next write of each carries it.
            for row in await client.fetch("UPDATE memories SET content = content || '!' RETURNING id, content"):
                oracle.expect(row["id"], row["content"])
            await client.execute("DELETE FROM memories WHERE id = $1", uid(first))
            oracle.expect(uid(first), None)
        compared, seconds = await oracle.until_whole()
        scenario.note(engaged=changed == len(CHANGES), compared=compared, seconds=seconds)
    assert await queue(client) == []


@pytest.mark.scenario(30, "a column that the triggers name is dropped, and nobody is there to put it back")
@pytest.mark.promise("P5")
@pytest.mark.parametrize("column", ["sync_status", "synced_at", "remote_id", "synced_version", "updated_at"])
async def test_30_a_column_that_the_triggers_name_is_gone(
    stores: Stores, oracle: Oracle, scenario: Scenario, client: Client, column: str
) -> None:
    """Every statement of the user's goes through all the same, and the program brings what it came to."""
    for number in range(1, 4):
        await oracle.insert(uid(number), f"before {number}")
    async with running(stores.database_url, stores.neo4j_uri) as program:
        await program.sync(timeout=SOON, embed=False)
        await client.execute(f"ALTER TABLE memories DROP COLUMN {column}")
        gone = f" {column} " not in (await client.fetchval(SHAPE)).replace("{", " ").replace('"', " ")
        await oracle.update(uid(1), "updated without it")
        await oracle.delete(uid(2))
        await oracle.insert(uid(4), "inserted without it")
        # A column of the user's own is the user's to put back: until then `init` says that it is missing.
        await client.execute("ALTER TABLE memories ADD COLUMN IF NOT EXISTS updated_at timestamptz")
        await program.init(dry_run=False)
        for id_ in oracle.live:
            await oracle.update(id_, f"{id_.int} at last")
        await program.sync(timeout=SOON, embed=False)
    compared, seconds = await oracle.until_whole(10)
    scenario.note(engaged=gone, compared=compared, seconds=seconds)


@pytest.mark.scenario(30, "a column that the triggers name gets another type, in sessions that have written before")
@pytest.mark.promise("P5")
@pytest.mark.parametrize(
    ("column", "kind"),
    [("sync_status", "text"), ("synced_at", "timestamp"), ("remote_id", "text"), ("synced_version", "bigint")],
)
async def test_30_a_column_that_the_triggers_name_has_another_type(
    stores: Stores, oracle: Oracle, scenario: Scenario, client: Client, column: str, kind: str
) -> None:
    """Every statement of an open session goes through, and what it came to arrives."""
    async with running(stores.database_url, stores.neo4j_uri) as program:
        for number in (1, 2):
            await oracle.insert(uid(number), f"before {number}")
            await client.execute("UPDATE memories SET content = $2 WHERE id = $1", uid(number), f"early {number}")
            oracle.expect(uid(number), f"early {number}")
        await program.sync(timeout=SOON, embed=False)
        before = await client.fetchval(SHAPE)
        await client.execute(f"ALTER TABLE memories ALTER COLUMN {column} TYPE {kind}")
        for number in (1, 2):
            await client.execute("UPDATE memories SET content = $2 WHERE id = $1", uid(number), f"late {number}")
            oracle.expect(uid(number), f"late {number}")
        await program.sync(timeout=SOON, embed=False)
        changed = before != await client.fetchval(SHAPE)
    compared, seconds = await oracle.until_whole(10)
    scenario.note(engaged=changed, compared=compared, seconds=seconds)
