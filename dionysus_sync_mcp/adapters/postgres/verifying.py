"""The local store's side of a comparison of both stores, and of its repair."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from asyncpg import exceptions as pg

from dionysus_sync_mcp.adapters.postgres.database import Database, in_our_words, users_path
from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.adapters.postgres.outbox import version_of
from dionysus_sync_mcp.adapters.postgres.restorer import fill_page, note_event, overwrite_rows
from dionysus_sync_mcp.domain.drift import Here
from dionysus_sync_mcp.domain.errors import NotAdoptable, Refused
from dionysus_sync_mcp.domain.folding import fold
from dionysus_sync_mcp.domain.memory import MemoryChange, RemoteMemory
from dionysus_sync_mcp.engine.ports.shared import SyncEvent
from dionysus_sync_mcp.engine.ports.verify import Due, QueueLook, Seen, Tally

if TYPE_CHECKING:
    import asyncpg

    from dionysus_sync_mcp.adapters.postgres.database import Connection

KEPT_REPORTS = 1000
OTHER_ROW = "The table lacks a column that it needs, or one of its own triggers changes it."

# So few that the server can hand over a page whole: were the process stopped, the server would wait in the middle of
# one, with the table locked against changes, and has no time-out for that.
DIGEST_PAGE = 1000
LAST_ID = 2**128 - 1


class PostgresVerifying:
    """Implements `LocalComparison` and `LocalMending`."""

    def __init__(self, database: Database, installer: Installer) -> None:
        self._database = database
        self._installer = installer

    async def obstacle(self) -> str | None:
        """See `LocalComparison.obstacle`."""
        if not await self._installer.initialised():
            return "this database is not protected yet"
        async with self._database.connection() as connection:
            if await connection.fetchval(self._database.sql["recovery_under_way"]):
                return "a recovery is under way"
        if not await self._installer.table_present():
            return "the table memories is missing"
        try:
            steps, _ = await self._installer.missing_steps()
        except NotAdoptable as error:
            return f"the table memories cannot be captured: {error.what}"
        missing = [step.name for step in steps if step.name != "add_sync_indexes"]
        return f"the table memories is not being captured, {', '.join(missing)} is due" if missing else None

    @asynccontextmanager
    async def snapshot(self, most_waiting: int) -> "AsyncIterator[PostgresSnapshot]":
        """See `LocalComparison.snapshot`. One read-only transaction, which sees the queue as it was with the rows."""
        sql = self._database.sql
        async with self._database.transaction() as connection:
            await connection.execute(sql["one_moment"])
            yield PostgresSnapshot(connection, sql, await _queue(connection, sql, most_waiting))

    async def look(self, memory_ids: Sequence[str]) -> tuple[dict[str, Here], dict[str, int], frozenset[str]]:
        """See `LocalComparison.look`."""
        sql = self._database.sql
        async with self._database.transaction() as connection:
            await connection.execute(sql["one_moment"])
            found = await _page(connection, sql, memory_ids, UUID(int=0), len(memory_ids))
            deletions, waiting = await _marks(connection, sql, memory_ids)
        return dict(found), deletions, waiting

    async def marks(self, memory_ids: Sequence[str]) -> tuple[dict[str, int], frozenset[str]]:
        """See `LocalComparison.marks`."""
        async with self._database.connection() as connection:
            return await _marks(connection, self._database.sql, memory_ids)

    async def hashes(self, memories: Sequence[RemoteMemory]) -> dict[str, str]:
        """See `LocalComparison.hashes`. A page with a memory that cannot be a row is halved until that stands alone."""
        try:
            return await self._hashes(memories)
        except Refused:
            if len(memories) == 1:
                return {memories[0].id: ""}
        middle = len(memories) // 2
        return {**await self.hashes(memories[:middle]), **await self.hashes(memories[middle:])}

    async def _hashes(self, memories: Sequence[RemoteMemory]) -> dict[str, str]:
        sql = self._database.sql
        async with self._database.transaction() as connection:
            await fill_page(connection, sql, memories)
            return {r["id"]: r["content_hash"] for r in await connection.fetch(sql["page_hashes"])}

    async def due(self) -> Due | None:
        """See `LocalComparison.due`."""
        async with self._database.connection() as connection:
            found = await connection.fetchrow(self._database.sql["comparison_due"])
        return Due(found["compare_since"], found["gap_since"] is not None) if found else None

    async def ages(self) -> tuple[float | None, float | None]:
        """See `LocalComparison.ages`."""
        async with self._database.connection() as connection:
            found = await connection.fetchrow(self._database.sql["comparison_ages"])
        return (found["since_any"], found["since_full"]) if found else (None, None)

    async def last_clean(self) -> datetime | None:
        """See `LocalComparison.last_clean`."""
        async with self._database.connection() as connection:
            found: datetime | None = await connection.fetchval(self._database.sql["last_clean"])
            return found

    async def settle_due(self, due: Due) -> None:
        """See `LocalComparison.settle_due`."""
        async with self._database.connection() as connection:
            await connection.execute(self._database.sql["settle_due"], due.since)

    async def record(self, kind: str, result: str, report: dict[str, Any], event: SyncEvent | None) -> None:
        """See `LocalComparison.record`."""
        sql = self._database.sql
        async with self._database.transaction() as connection:
            await connection.execute(sql["note_verification"], kind, result, self._database.json_of(report))
            await connection.execute(sql["prune_verifications"], KEPT_REPORTS)
            if event:
                await note_event(connection, sql, event)

    async def send(self, seen: Sequence[Seen]) -> int:
        """See `LocalMending.send`."""
        async with self._database.transaction() as connection:
            return await self._enqueue(connection, await self._lock(connection, seen))

    async def send_above(self, seen: Sequence[Seen]) -> int:
        """See `LocalMending.send_above`."""
        sql = self._database.sql
        versions = {s.memory_id: s.facts.there.version for s in seen if s.facts.there}
        async with self._database.transaction() as connection:
            locked = await self._lock(connection, seen, waiting_too=True)
            below = [memory_id for memory_id in locked if memory_id in versions]
            await connection.execute(sql["mark_engine"])
            async with users_path(connection, sql):
                await connection.fetch(sql["rebase"], below, [versions[i] for i in below], [None] * len(below))
            return await self._enqueue(connection, locked)

    async def delete_again(self, memories: Sequence[RemoteMemory]) -> int:
        """See `LocalMending.delete_again`."""
        sql = self._database.sql
        async with self._database.transaction() as connection:
            await fill_page(connection, sql, memories)
            return len(await connection.fetch(sql["enqueue_deletes"]))

    async def states(self, seen: Sequence[Seen]) -> list[MemoryChange]:
        """See `LocalMending.states`."""
        async with self._database.connection() as connection:
            records = await connection.fetch(self._database.sql["row_states"], [s.memory_id for s in seen])
        # A state that cannot be read was never sent either; its entry is parked by the push.
        return fold((r["memory_id"], r["base_version"], version_of(r)) for r in records if _readable(r))

    async def pull(self, seen: Sequence[Seen], memories: Sequence[RemoteMemory], kept: Sequence[MemoryChange]) -> int:
        """See `LocalMending.pull`."""
        sql = self._database.sql
        async with self._database.transaction() as connection:
            free = set(await self._lock(connection, seen, waiting_too=True)) & {change.memory_id for change in kept}
            taken = [memory for memory in memories if memory.id in free]
            await connection.execute(sql["mark_engine"])
            async with users_path(connection, sql):
                await connection.execute(sql["lower_rows"], [m.id for m in taken], [m.version for m in taken])
            await overwrite_rows(connection, sql, taken)
            if wrong := await connection.fetch(sql["verify_restored"]):
                raise Refused(f"memory {wrong[0]['id']} does not become the row that the remote holds", hint=OTHER_ROW)
            await self._drop_waiting(connection, kept, {memory.id for memory in taken})
            return len(taken)

    async def _drop_waiting(self, connection: "Connection", kept: Sequence[MemoryChange], taken: set[str]) -> None:
        states = [(c.memory_id, v) for c in kept if c.memory_id in taken for v in (*c.older, c.newest)]
        columns = [i for i, _ in states], [v.operation for _, v in states], [v.content_hash for _, v in states]
        await connection.execute(self._database.sql["drop_waiting"], *columns)

    async def begin_epoch(self) -> None:
        """See `LocalMending.begin_epoch`."""
        async with self._database.connection() as connection:
            await connection.execute(self._database.sql["new_epoch"])

    async def send_all(self, after: str, limit: int) -> tuple[str | None, int]:
        """See `LocalMending.send_all`. Rows that somebody holds are about to be captured anyway."""
        try:
            return await self._send_page("send_page", after, limit)
        except Refused:
            return await self._send_page("send_page_one_by_one", after, limit)

    async def _send_page(self, name: str, after: str, limit: int) -> tuple[str | None, int]:
        async with self._database.connection() as connection:
            page = await connection.fetchrow(self._database.sql[name], after or None, limit)
        return (page["id"], page["queued"]) if page else (None, 0)

    async def _lock(self, connection: "Connection", seen: Sequence[Seen], *, waiting_too: bool = False) -> list[str]:
        """Lock the rows that are still as they were seen; their ids."""
        here = [(s.memory_id, s.facts.here.version, s.facts.here.content_hash) for s in seen if s.facts.here]
        columns = [[row[i] for row in here] for i in range(3)]
        found = await connection.fetch(self._database.sql["lock_unchanged"], *columns, waiting_too)
        return [r["id"] for r in found]

    async def _enqueue(self, connection: "Connection", memory_ids: Sequence[str]) -> int:
        await connection.execute(self._database.sql["enqueue_rows"], memory_ids)
        return len(memory_ids)


class PostgresSnapshot:
    """Implements `LocalSnapshot` on a transaction that sees one moment."""

    def __init__(self, connection: "Connection", sql: Mapping[str, str], queue: QueueLook) -> None:
        self._connection = connection
        self._sql = sql
        self.queue = queue

    async def rows(self) -> AsyncIterator[Sequence[tuple[str, Here]]]:
        """See `LocalSnapshot.rows`."""
        first = 0
        while first <= LAST_ID and (page := await _page(self._connection, self._sql, (), UUID(int=first), DIGEST_PAGE)):
            yield page
            first = UUID(page[-1][0]).int + 1

    async def tallies(self) -> dict[str | None, Tally]:
        """See `LocalSnapshot.tallies`."""
        records = await self._connection.fetch(self._sql["local_tallies"], sorted(self.queue.waiting or ()))
        return {r["project"]: Tally(r["memories"], r["versions"]) for r in records}


async def _queue(connection: "Connection", sql: Mapping[str, str], most_waiting: int) -> QueueLook:
    found = await connection.fetchrow(sql["snapshot_queue"])
    if found is None or found["waiting"] > most_waiting:
        return QueueLook(None, oldest_at=found["oldest_at"] if found else None)
    records = await connection.fetch(sql["snapshot_waiting"])
    parked = frozenset(r["id"] for r in records if r["parked"])
    return QueueLook(frozenset(r["id"] for r in records), parked, found["oldest_at"])


async def _marks(
    connection: "Connection", sql: Mapping[str, str], memory_ids: Sequence[str]
) -> tuple[dict[str, int], frozenset[str]]:
    deletions = await connection.fetch(sql["confirmed_deletions"], memory_ids)
    waiting = await connection.fetch(sql["waiting_of"], memory_ids)
    return {r["id"]: r["version"] for r in deletions}, frozenset(r["id"] for r in waiting)


async def _page(
    connection: "Connection", sql: Mapping[str, str], memory_ids: Sequence[str], first: UUID, limit: int
) -> list[tuple[str, Here]]:
    """A page of rows; one with a row that PostgreSQL cannot make JSON of is read row by row."""
    parameters = (memory_ids, first, limit)
    try:
        async with connection.transaction():
            records = await connection.fetch(sql["local_digests"], *parameters)
    except pg.PostgresError as error:
        if not isinstance(in_our_words(error), Refused):
            raise
        records = await connection.fetch(sql["local_digests_one_by_one"], *parameters)
    return [(r["id"], Here(r["version"], r["content_hash"], r["base"])) for r in records]


def _readable(record: "asyncpg.Record") -> bool:
    try:
        version_of(record)
    except (ValueError, TypeError):
        return False
    return True
