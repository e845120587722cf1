"""What the scenarios of destruction share: memories in both stores, an agent that destroys them, and what came of it.

The field is as a user's would be after a while: two projects with sessions and references, a column, an index and a
rule of the user's own, memories that were changed, and some that were deleted on purpose.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import anyio
import asyncpg
import pytest
from _pytest.mark import ParameterSet

from dionysus_sync_mcp.engine.recover import PLAN_AGAIN
from dionysus_sync_mcp.runtime import Runtime
from tests.faults.oracle import Comparison, Oracle
from tests.faults.plugin import results_file
from tests.faults.program import CHECKOUT, SOON, Program, Stores, drained, worker
from tests.integration.stores import Client, graph, plain_client, uid
from tests.services.local_store import running
from tests.services.waiting import until

FULL, SAMPLE = 10_000, 1_000
AGENT = "an agent"
CHANGED_EVERY = 5
DELETES, DELETED_AT_ONCE = 6, 5
A_WHILE, AN_HOUR = 120.0, 3600.0  # seconds
LONG = 600.0
LAST_WORDS, NEWER = 3, 5
SESSIONS = 4
FURNISH = """
ALTER TABLE memories ADD COLUMN mood text NOT NULL DEFAULT 'calm' CONSTRAINT some_mood CHECK (mood <> '');
CREATE INDEX memories_by_mood ON memories (mood, importance) WHERE importance > 0.5;
INSERT INTO dionysus_sync.projects (id, name, description) VALUES ('shop', 'The shop', 'sells'), ('blog', 'Blog', NULL);
"""
OPEN_SESSION = """
INSERT INTO dionysus_sync.sessions (id, project_id, started_at, last_activity_at, ended_at, summary)
VALUES ($1, $2, now() - interval '2 days', now() - interval '1 day', now() - interval '1 day', $3)
"""
FILL = """
INSERT INTO memories (id, content, memory_type, importance, source_project, session_id, tags, mood)
SELECT lpad(to_hex(i), 32, '0')::uuid, 'memory ' || i || ' of the user: ' || md5(i::text), 'semantic', (i % 9) / 8.0,
       CASE WHEN i % 2 = 0 THEN 'shop' ELSE 'blog' END, lpad(to_hex(i % 4 + 1), 32, 'a')::uuid, ARRAY['t' || i % 7, ''],
       CASE WHEN i % 3 = 0 THEN 'glad' ELSE 'calm' END
FROM generate_series(1, $1::integer) AS i
"""
REFER = """
INSERT INTO dionysus_sync.memory_references (source_id, target_id, context)
SELECT lpad(to_hex(i), 32, '0')::uuid, lpad(to_hex(i + 1), 32, '0')::uuid, 'follows'
FROM generate_series(1, $1::integer, 20) AS i
"""
CHANGE = "UPDATE memories SET content = content || ', changed', tags = ARRAY['changed'] WHERE id = ANY ($1)"
DELETE = "DELETE FROM memories WHERE id = ANY ($1)"
WRITE = (
    "INSERT INTO memories (id, content, source_project, tags) VALUES ($1, $2, 'shop', ARRAY['newer'])"
    " RETURNING (to_jsonb(memories.*) - $3::text[])::text"
)
# What was done so far becomes a while older, for the detection as for the history.
EARLIER = """
WITH moved AS (
    UPDATE dionysus_sync.observations SET at = at - make_interval(secs => $1), until = until - make_interval(secs => $1)
)
UPDATE dionysus_sync.sync_queue SET created_at = created_at - make_interval(secs => $1)
"""
SYNC_COLUMNS = ["sync_status", "synced_at", "sync_version", "remote_id", "synced_version"]
IMAGES = (
    "SELECT dionysus_row.id::text AS id, (to_jsonb(dionysus_row.*) - $1::text[])::text AS image"
    " FROM public.memories AS dionysus_row WHERE $2::uuid IS NULL OR dionysus_row.id = $2"
)
# Without names of indexes and constraints: a table that was renamed keeps them.
SHAPE = """
SELECT format('column %s %s | %s %s', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
              pg_get_expr(d.adbin, d.adrelid))
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = to_regclass('public.memories') AND a.attnum > 0 AND NOT a.attisdropped
UNION ALL
SELECT regexp_replace(indexdef, 'INDEX .* ON', 'INDEX ON') FROM pg_indexes
WHERE schemaname = 'public' AND tablename = 'memories'
UNION ALL
SELECT pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = to_regclass('public.memories') AND contype IN ('c', 'p', 'u', 'f', 'x')
UNION ALL
SELECT format('trigger %s %s', tgname, tgenabled) FROM pg_trigger
WHERE tgrelid = to_regclass('public.memories') AND NOT tgisinternal
"""
CONTEXT = """
SELECT 'session ' || (to_jsonb(s) - 'created_at')::text FROM dionysus_sync.sessions s WHERE summary LIKE 'field%'
UNION ALL
SELECT 'project ' || (to_jsonb(p) - 'created_at')::text FROM dionysus_sync.projects p WHERE id IN ('shop', 'blog')
UNION ALL SELECT format('reference %s %s %s', source_id, target_id, context) FROM dionysus_sync.memory_references
"""
LIVE = "MATCH (m:Memory) WHERE m.deleted_at IS NULL RETURN count(m)"
VERSIONS = "MATCH (v:MemoryVersion) RETURN count(v)"
LINKS = "MATCH ()-[r:REFERENCES]->() WHERE NOT coalesce(r.deleted, false) RETURN count(r)"
WATCHED = (
    "SELECT EXISTS (SELECT FROM dionysus_sync.watched WHERE seen_at > $1)"
    " AND NOT EXISTS (SELECT FROM dionysus_sync.observations WHERE judged_at IS NULL)"
)
INCIDENTS = (
    "SELECT id::text AS id, kind, row_count AS rows, restore_point, role, application_name, pid, statement,"
    " closed_at IS NULL AS is_open FROM dionysus_sync.incidents ORDER BY detected_at"
)
REMOTE_INCIDENTS = "MATCH (i:Incident) RETURN properties(i) ORDER BY i.detected_at"
NOW = "SELECT clock_timestamp()"


class Recorded(NamedTuple):
    """An incident as a store has it on record."""

    id: str
    kind: str
    rows: int
    restore_point: datetime
    role: str | None
    application_name: str | None
    pid: int | None
    statement: str | None
    is_open: bool


class Blow(NamedTuple):
    """Something destructive that an agent does in one transaction.

    Attributes:
        kind: Of the incident.
        rows: How many memories it hits; `None` for all.
        told: Whether the database tells of it by itself, so that it is known who did it, and just when.
        here: Whether the local store can still take the incident; else it does once it is recovered.
        last_words: Whether rows are written in the same transaction before it, which have not been pushed then.
        newer: Whether rows are written after it.
        deletes: Memories that the remote store marks as deleted: rows that went one by one, with the capture on.
    """

    sql: str
    kind: str
    rows: int | None = None
    told: bool = True
    here: bool = True
    last_words: bool = True
    newer: bool = False
    deletes: int = 0


class Held(NamedTuple):
    """What a local store holds; nothing of what is not there."""

    images: dict[str, dict[str, Any]]
    shape: list[str]
    context: set[str]


class Answer(NamedTuple):
    """What a command came to; `report` is what it wrote to stdout as JSON."""

    status: int
    report: dict[str, Any]
    said: str


class Recovery(NamedTuple):
    """A recovery that is over, and how the stores compare with what was acknowledged."""

    report: dict[str, Any]
    compared: Comparison
    seconds: float

    @property
    def restored(self) -> int:
        """Rows that came back and were verified."""
        return int(self.report["verified"])


@dataclass
class Field:
    """Memories in both stores, and what must be there of them in the end.

    Attributes:
        rows: Memories that were written; a few of them were deleted on purpose since.
        expected: Image of each row that has to be there, by id.
        shape: How the table has to be, apart from names of indexes and constraints.
        of_an_agent: Whether the table is one that an agent has made: rows of its own may break what was demanded of a
            column, and a default that it has is left as it is.
        context: Sessions, projects and references that have to be there.
        links: References in the remote store.
    """

    stores: Stores
    oracle: Oracle
    rows: int
    expected: dict[str, dict[str, Any]] = field(default_factory=dict)
    shape: list[str] = field(default_factory=list)
    context: set[str] = field(default_factory=set)
    links: int = 0
    of_an_agent: bool = False

    @property
    def ids(self) -> list[UUID]:
        """Of the rows that have to be there, in order."""
        return sorted(UUID(id_) for id_ in self.expected)

    async def fill(self) -> None:
        """Write it, bring it into the remote store, and note what has to be there."""
        async with plain_client(self.stores.database_url, timezone="UTC") as client:
            await self._write(client)
            async with running(self.stores.database_url, self.stores.neo4j_uri) as program:
                # A server that has just started may answer late.
                await until(lambda: _synced(program), what="everything is pushed", seconds=LONG)
                await program.guard.note_definition_once()
            await self.note(client)
        compared = await self.oracle.compare()
        assert compared.whole, compared
        (self.links,) = await graph(self.stores.neo4j_uri, LINKS)

    async def note(self, client: Client) -> None:
        """What the local store holds now has to be there in the end."""
        now = await held(client)
        self.shape, self.context = now.shape, now.context
        self.keep(now.images)

    def keep(self, images: dict[str, dict[str, Any]]) -> None:
        """These rows have to be there in the end, like this."""
        for id_, image in images.items():
            if self.expected.get(id_) != image:
                self.oracle.expect(UUID(id_), image["content"])
        self.expected.update(images)

    async def keep_row(self, client: Client, id_: UUID) -> None:
        """This row has to be there in the end as it is now."""
        (row,) = await client.fetch(IMAGES, SYNC_COLUMNS, id_)
        self.keep({row["id"]: json.loads(row["image"])})

    def forget(self, ids: Sequence[UUID]) -> None:
        """These were deleted on purpose."""
        for id_ in ids:
            self.oracle.expect(id_, None)
            self.expected.pop(str(id_), None)

    def know(self, images: dict[str, dict[str, Any]]) -> None:
        """Another store has these: they are in the remote store, and have no business here."""
        self.oracle.elsewhere |= {UUID(id_) for id_ in images}

    async def write(self, client: Client, count: int) -> None:
        """Write further rows, which have to be there in the end."""
        for number in range(self.oracle.rows_written + 1, self.oracle.rows_written + 1 + count):
            content = f"memory {number}, written later"
            image = await client.fetchval(WRITE, uid(FULL**2 + number), content, SYNC_COLUMNS)
            self.keep({str(uid(FULL**2 + number)): json.loads(image)})

    async def strike(self, blow: Blow) -> tuple[Recorded, bool]:
        """Let an agent do it, beside a running worker, and look for what came of it.

        Returns:
            The incident, which is on record once on both sides, and whether the local store is another one than before.
        """
        url = self.stores.database_url
        live = await self.live()
        async with plain_client(url, application_name=AGENT, timezone="UTC") as client:
            pid, before, begun = client.get_server_pid(), await held(client), await client.fetchval(NOW)
            async with client.transaction():
                if blow.last_words:
                    await self.write(client, LAST_WORDS)
                    before = await held(client)
                await client.execute(blow.sql)
            ended = await client.fetchval(NOW)
            engaged = await held(client) != before
            if blow.newer:
                await self.write(client, NEWER)
        hit = len(before.images) if blow.rows is None else blow.rows
        incident = await self.incident(blow.kind, hit, here=blow.here)
        assert incident.restore_point <= ended
        if blow.told:
            assert (incident.role, incident.application_name, incident.pid) == ("postgres", AGENT, pid)
            assert incident.statement
            assert begun <= incident.restore_point
        written = (LAST_WORDS if blow.last_words else 0) + (NEWER if blow.newer else 0)
        await until_drained(url)
        assert await self.live() >= live - blow.deletes
        assert await self.live() <= live - blow.deletes + written
        return incident, engaged

    async def incident(self, kind: str, rows: int, *, here: bool = True) -> Recorded:
        """The only one that is on record: in the remote store, and, if `here`, the same in the local store."""
        found: list[list[Recorded]] = []

        async def recorded() -> bool:
            found[:] = [await self.remote_incidents(), *([await self.local_incidents()] if here else [])]
            return all([(i.kind, i.rows, i.is_open) for i in side] == [(kind, rows, True)] for side in found) and (
                found[0] == found[-1]
            )

        try:
            await until(recorded, what=f"one incident {kind} of {rows} rows on record", seconds=SOON)
        except TimeoutError as error:
            raise AssertionError(f"{error}: {found}") from None
        return found[0][0]

    async def local_incidents(self) -> list[Recorded]:
        """On record in the local store; none where it is not there."""
        try:
            async with plain_client(self.stores.database_url) as client:
                return [Recorded(*row) for row in await client.fetch(INCIDENTS)]
        except (OSError, asyncpg.PostgresError):
            return []

    async def remote_incidents(self) -> list[Recorded]:
        """On record in the remote store."""
        return [_recorded(node) for node in await graph(self.stores.neo4j_uri, REMOTE_INCIDENTS)]

    async def live(self) -> int:
        """Memories that the remote store holds and does not mark as deleted."""
        (found,) = await graph(self.stores.neo4j_uri, LIVE)
        return int(found)

    async def recovered(self, incident: Recorded | None, *arguments: str) -> Recovery:
        """Recover, by the command, what it destroyed (without one, what is missing), and compare everything."""
        before = ["--before-incident", incident.id] if incident else []
        begun = time.monotonic()
        answer = await recover(self.stores, *before, *arguments)
        assert (answer.status, answer.report.get("complete")) == (0, True), answer
        recovery = Recovery(answer.report, await self.compared(), time.monotonic() - begun)
        if incident:
            still = await self.incident(incident.kind, incident.rows)
            assert still == incident, f"{still} was {incident}"
        return recovery

    async def compared(self) -> Comparison:
        """Both stores beside what was acknowledged: every row with every column, the table's shape, the context."""
        compared, _ = await self.oracle.until_whole(2 * SOON)
        async with plain_client(self.stores.database_url, timezone="UTC") as client:
            now = await held(client)
        compared.lost.extend(f"{id_}: not here" for id_ in self.expected.keys() - now.images.keys())
        compared.lost.extend(sorted(self.context - now.context))
        compared.wrong.extend(
            f"{id_}: {now.images[id_]} is not {image}"
            for id_, image in self.expected.items()
            if id_ in now.images and not image.items() <= now.images[id_].items()
        )
        wanted, found = self._wanted(self.shape), self._wanted(now.shape)
        compared.wrong.extend(f"the table lacks: {part}" for part in sorted(wanted - found))
        compared.wrong.extend(f"the table has: {part}" for part in sorted(found - wanted))
        (links,) = await graph(self.stores.neo4j_uri, LINKS)
        if links < self.links:
            compared.lost.append(f"{self.links - links} references in the remote store")
        return compared

    def _wanted(self, shape: list[str]) -> set[str]:
        """What counts of how a table is."""
        return {part.partition("|")[0] if self.of_an_agent else part for part in shape}

    async def _write(self, client: Client) -> None:
        """Hours ago, so that nothing of it is in one span with what follows, and each step a while after the other."""
        await client.execute(FURNISH)
        for number in range(1, SESSIONS + 1):
            session = UUID(f"{number:x}".rjust(32, "a"))
            await client.execute(OPEN_SESSION, session, ("shop", "blog")[number % 2], f"field {number}")
        await client.execute(FILL, self.rows, timeout=LONG)
        await client.execute(REFER, self.rows - DELETES * DELETED_AT_ONCE - 1)
        self.keep((await held(client)).images)
        await client.execute(EARLIER, A_WHILE)
        changed = [uid(number) for number in range(1, self.rows + 1, CHANGED_EVERY)]
        await client.execute(CHANGE, changed, timeout=LONG)
        await client.execute(EARLIER, A_WHILE)
        deleted = [uid(self.rows - number) for number in range(DELETES * DELETED_AT_ONCE)]
        for first in range(0, len(deleted), DELETED_AT_ONCE):
            await client.execute(DELETE, deleted[first : first + DELETED_AT_ONCE])
            await client.execute(EARLIER, A_WHILE)
        self.forget(deleted)
        await client.execute(EARLIER, AN_HOUR)


def rows_of_a_field() -> int:
    """All where what a run comes to is written down (`make faults`), and a sample in `make test`."""
    return FULL if results_file() else SAMPLE


def blows(number: int, named: dict[str, Blow], fast: Sequence[str]) -> list[ParameterSet]:
    """Parameters of a test that does each of them, as faults of that scenario; all but a few only in `make faults`."""
    slow = {name: [] if name in fast else [pytest.mark.slow] for name in named}
    return [
        pytest.param(blow, id=name, marks=[pytest.mark.scenario(number, name), *slow[name]])
        for name, blow in named.items()
    ]


@asynccontextmanager
async def watching(stores: Stores, **settings: str) -> AsyncIterator[Program]:
    """A worker that has seen the store as it is, and has judged all that was done so far."""
    begun = await now_there(stores.database_url)
    async with worker(stores.with_settings(**settings)) as program:
        await until_watched(stores.database_url, begun)
        yield program


async def _synced(program: Runtime) -> bool:
    return (await program.sync(timeout=LONG, embed=False)).result == "success"


async def now_there(url: str) -> datetime:
    """The time by the database's clock."""
    async with plain_client(url) as client:
        now: datetime = await client.fetchval(NOW)
        return now


async def until_watched(url: str, begun: datetime) -> None:
    """Wait until somebody has looked at the store since then, and has judged all that was seen."""
    async with plain_client(url) as client:

        async def is_watched() -> bool:
            return bool(await client.fetchval(WATCHED, begun))

        await until(is_watched, what="a look at the store", seconds=SOON)


async def until_drained(url: str) -> None:
    """Wait until nothing waits to be pushed; a database without a queue has nothing."""
    async with plain_client(url) as client:
        if await client.fetchval("SELECT to_regclass('dionysus_sync.sync_queue') IS NULL"):
            return
    await drained(url)


async def held(client: Client) -> Held:
    """What the local store holds."""
    if await client.fetchval("SELECT to_regclass('public.memories') IS NULL"):
        images = {}
    else:
        images = {r["id"]: json.loads(r["image"]) for r in await client.fetch(IMAGES, SYNC_COLUMNS, None)}
    if await client.fetchval("SELECT to_regclass('dionysus_sync.memory_references') IS NULL"):
        context = set[str]()
    else:
        context = {r[0] for r in await client.fetch(CONTEXT)}
    return Held(images, sorted(_plain(r[0]) for r in await client.fetch(SHAPE)), context)


async def images_here(field: Field) -> dict[str, dict[str, Any]]:
    """The rows that are in the local store."""
    async with plain_client(field.stores.database_url, timezone="UTC") as client:
        return (await held(client)).images


async def recover(stores: Stores, *arguments: str) -> Answer:
    """The command `recover`, with the answer to its question given; what it says of an outdated plan is done, once.

    Nothing is changed by a plan that the stores have outrun: a worker may put the bookkeeping back in between.
    """
    answer = await command(stores, "recover", "--yes", "--json", *arguments)
    if PLAN_AGAIN not in answer.report.get("error", {}).get("hint", ""):
        return answer
    return await command(stores, "recover", "--yes", "--json", *arguments)


async def command(stores: Stores, *arguments: str) -> Answer:
    """Run a command that reports as JSON, in a process of its own."""
    with anyio.fail_after(LONG):
        ended = await anyio.run_process(
            [sys.executable, "-m", "dionysus_sync_mcp", *arguments],
            stdin=subprocess.DEVNULL,
            cwd=CHECKOUT,
            env=stores.environment,
            check=False,
        )
    said = ended.stderr.decode("utf-8", "replace")
    return Answer(ended.returncode, json.loads(ended.stdout or "{}"), said)


def _plain(part: str) -> str:
    """Without casts and brackets, which PostgreSQL writes in another way once it has read what it wrote."""
    return re.sub(r"::[a-z ]+(\[\])?|[()]", "", part)


def _recorded(node: dict[str, Any]) -> Recorded:
    values = {name: node.get(name) for name in Recorded._fields}
    point = node["restore_point"].to_native()
    return Recorded(**{**values, "restore_point": point, "is_open": node.get("closed_at") is None})
