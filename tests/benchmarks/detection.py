"""From the commit of something destructive to the incident on record, with the worker in a process of its own."""

import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import anyio
import asyncpg
from anyio.abc import TaskStatus

from tests.benchmarks.program import READY_WITHIN, worker
from tests.benchmarks.results import Figure, Goal, Section
from tests.benchmarks.rows import rows
from tests.benchmarks.stores import Stores, bare_postgres, copy_rows, one_value
from tests.services import neo4j, postgres
from tests.services.local_store import running
from tests.services.waiting import until

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

ROWS = 1000
ROUNDS = 5
LOOK_EVERY = 0.005
GIVE_UP = 60.0
# As the program does: what it only watches it looks at less often.
TOLD_EVERY, WATCHED_EVERY = 0.25, 2.0
READY = (
    "SELECT EXISTS (SELECT FROM dionysus_sync.watched)"
    " AND NOT EXISTS (SELECT FROM dionysus_sync.observations WHERE judged_at IS NULL)"
)
ON_RECORD = "SELECT count(*) FROM dionysus_sync.incidents"
ON_REMOTE_RECORD = "MATCH (i:Incident) RETURN count(i)"
MISS_BARELY = "CREATE (b:BareRecord) RETURN 1"
MISSED_BARELY = "MATCH (b:BareRecord) RETURN count(b)"
BARE_RECORD = "CREATE SCHEMA bare; CREATE TABLE bare.record (seen_at timestamptz)"
RECORD_BARELY = "INSERT INTO bare.record VALUES (clock_timestamp())"
RECORDED_BARELY = "SELECT count(*) FROM bare.record"
PLACE = "SELECT oid::text || relfilenode FROM pg_class WHERE oid = to_regclass('public.memories')"
COUNT = "SELECT count(*)::text FROM public.memories"
LENGTH = "SELECT sum(length(content))::text FROM public.memories"
TYPES = (
    "SELECT string_agg(concat(attname, atttypid, atttypmod), ' ' ORDER BY attnum) FROM pg_attribute"
    " WHERE attrelid = to_regclass('public.memories')"
)
TRIGGERS = (
    "SELECT string_agg(concat(tgname, tgenabled), ' ' ORDER BY tgname) FROM pg_trigger"
    " WHERE tgrelid = to_regclass('public.memories')"
)
BOOKKEEPING = "SELECT to_regnamespace('dionysus_sync')::text"


class Destruction(NamedTuple):
    """Something destructive, and what a bare client would look at to see it."""

    name: str
    sql: str
    look: str
    told: bool = True


DESTRUCTIONS = (
    Destruction("11 deletes", "DELETE FROM memories WHERE id IN (SELECT id FROM memories LIMIT 11)", COUNT),
    Destruction("UPDATE of all contents", "UPDATE memories SET content = ''", LENGTH),
    Destruction("TRUNCATE", "TRUNCATE memories", PLACE),
    Destruction("DROP TABLE", "DROP TABLE memories", PLACE),
    Destruction("DROP SCHEMA public", "DROP SCHEMA public CASCADE; CREATE SCHEMA public", PLACE),
    Destruction("a column narrowed", "ALTER TABLE memories ALTER COLUMN content TYPE varchar(10) USING 'x'", TYPES),
    Destruction("RENAME", "ALTER TABLE memories RENAME TO memories_old", PLACE),
    Destruction("triggers disabled", "ALTER TABLE memories DISABLE TRIGGER USER", TRIGGERS),
    Destruction(
        "rows gone behind the capture",
        "ALTER TABLE memories DISABLE TRIGGER USER; DELETE FROM memories; ALTER TABLE memories ENABLE TRIGGER USER",
        COUNT,
    ),
    Destruction("our own schema dropped", "DROP SCHEMA dionysus_sync CASCADE", BOOKKEEPING, told=False),
)
DATABASE = "DROP DATABASE"
ABOUT = f"""A plain client destroys a table of {ROWS:,} memories in one way or another while `dionysus-sync-mcp worker`
runs in its own process with its default settings. Seconds from the commit's return until another client, which looks
every {LOOK_EVERY * 1000:.0f} ms, finds the incident in the local store's book; of a database that is gone, in the
remote store's. The median of {ROUNDS} runs, and the longest of all kinds. Baseline: a bare client that looks at the one
thing that the destruction changes, every {TOLD_EVERY * 1000:.0f} ms for what the database tells of by itself, every
{WATCHED_EVERY:.0f} s for what can only be watched, and writes down that it is another one: it knows neither who did it,
nor a restore point, nor which of a user's own statements are none."""


async def benchmark(stores: Stores) -> Section:
    """Seconds."""
    told: list[float] = []
    watched: list[float] = []
    figures = []
    await neo4j.empty(stores.neo4j_uri)
    async with _filled(stores) as template:
        for kind in DESTRUCTIONS:
            stores.say(f"detection: {kind.name}")
            ours = [await _ours(stores, template, kind) for _ in range(ROUNDS)]
            bare = [await _bare(template, kind) for _ in range(ROUNDS)]
            figures.append(Figure(kind.name, statistics.median(ours), "s", statistics.median(bare)))
            (told if kind.told else watched).extend(ours)
        stores.say(f"detection: {DATABASE}")
        gone = [await _database_gone(stores, template) for _ in range(ROUNDS)]
        missed = [await _database_missed(stores, template) for _ in range(ROUNDS)]
        figures.append(Figure(DATABASE, statistics.median(gone), "s", statistics.median(missed)))
        watched.extend(gone)
    longest = [
        Figure("longest, of what the database tells of", max(told), "s", goal=Goal("value", "<", 1)),
        Figure("longest, of what can only be watched", max(watched), "s", goal=Goal("value", "<", 5)),
    ]
    return Section("detection", ABOUT, [*longest, *figures])


@asynccontextmanager
async def _filled(stores: Stores) -> AsyncIterator[str]:
    """A local store to be copied, of which everything has been pushed."""
    async with stores.local() as url:
        await copy_rows(url, "memories", rows(ROWS))
        async with running(url, stores.neo4j_uri) as runtime:
            await runtime.sync(embed=False)
        yield url


async def _ours(stores: Stores, template: str, kind: Destruction) -> float:
    async with _watched(stores, template) as url, bare_postgres(url) as looking, bare_postgres(url) as client:
        return await _delay(
            lambda: client.execute(kind.sql), lambda: _counted(looking, ON_RECORD), what=f"{kind.name} is on record"
        )


async def _database_gone(stores: Stores, template: str) -> float:
    async with _watched(stores, template) as url:
        return await _delay_of_loss(stores, url, ON_REMOTE_RECORD)


async def _database_missed(stores: Stores, template: str) -> float:
    async with postgres.copy_of(template) as url, anyio.create_task_group() as tasks:
        await tasks.start(_miss, stores, url)
        taken = await _delay_of_loss(stores, url, MISSED_BARELY)
        tasks.cancel_scope.cancel()
    return taken


async def _delay_of_loss(stores: Stores, url: str, count: str) -> float:
    drop = f'DROP DATABASE "{urlsplit(url).path[1:]}" WITH (FORCE)'
    async with stores.bare_neo4j() as driver, bare_postgres(postgres.with_database(url, "postgres")) as client:
        (before,) = await one_value(driver, count)

        async def on_record() -> bool:
            return bool((await one_value(driver, count))[0] > before)

        return await _delay(lambda: client.execute(drop), on_record, what="the loss of the database is on record")


async def _miss(stores: Stores, url: str, *, task_status: TaskStatus[None]) -> None:
    """Connects again and again, and notes in the remote store when there is no such database, until cancelled."""
    async with stores.bare_neo4j() as driver:
        task_status.started()
        await until(lambda: _gone(url), what="the database is missed", seconds=GIVE_UP, pause=WATCHED_EVERY)
        await one_value(driver, MISS_BARELY)


async def _gone(url: str) -> bool:
    return not await postgres.answers(url)


async def _bare(template: str, kind: Destruction) -> float:
    async with (
        postgres.copy_of(template) as url,
        bare_postgres(url) as looking,
        bare_postgres(url) as polling,
        bare_postgres(url) as client,
        anyio.create_task_group() as tasks,
    ):
        await client.execute(BARE_RECORD)
        await tasks.start(_poll, polling, kind)
        taken = await _delay(
            lambda: client.execute(kind.sql),
            lambda: _counted(looking, RECORDED_BARELY),
            what=f"{kind.name} is seen by a bare client",
        )
        tasks.cancel_scope.cancel()
    return taken


@asynccontextmanager
async def _watched(stores: Stores, template: str) -> AsyncIterator[str]:
    """A copy of the local store, as another one, with a worker that has seen it as it is."""
    async with postgres.copy_of(template) as url:
        await postgres.execute(url, postgres.NEW_IDENTITY)

        async def ready() -> bool:
            async with bare_postgres(url) as connection:
                return bool(await connection.fetchval(READY))

        async with worker(url, stores.neo4j_uri):
            await until(ready, what="the worker watches", seconds=READY_WITHIN)
            yield url


async def _delay(
    destroy: Callable[[], Awaitable[object]], on_record: Callable[[], Awaitable[bool]], *, what: str
) -> float:
    await destroy()
    committed = time.perf_counter()
    await until(on_record, what=what, seconds=GIVE_UP, pause=LOOK_EVERY)
    return time.perf_counter() - committed


async def _counted(connection: "Connection", count: str) -> bool:
    """Whether something is on record; nothing is where there is no book."""
    with suppress(asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        return bool(await connection.fetchval(count))
    return False


async def _poll(connection: "Connection", kind: Destruction, *, task_status: TaskStatus[None]) -> None:
    """Looks again and again, and writes down each time that something is another thing, until cancelled."""
    before = await connection.fetchval(kind.look)
    task_status.started()
    while True:
        await anyio.sleep(TOLD_EVERY if kind.told else WATCHED_EVERY)
        now = await _look(connection, kind.look)
        if now != before:
            await connection.execute(RECORD_BARELY)
        before = now


async def _look(connection: "Connection", look: str) -> str | None:
    with suppress(asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        found = await connection.fetchval(look)
        return None if found is None else str(found)
    return None
