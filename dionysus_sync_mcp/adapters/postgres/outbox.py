"""The local queue: claim and settlement of a push in one transaction, so that nothing is ever half claimed."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from asyncpg import exceptions as pg

from dionysus_sync_mcp.adapters.postgres.database import Database, in_our_words
from dionysus_sync_mcp.adapters.postgres.restorer import note_event, overwrite_rows
from dionysus_sync_mcp.domain.errors import DionysusError, Refused, SchemaMismatch, Unavailable
from dionysus_sync_mcp.domain.memory import Version, properties_of
from dionysus_sync_mcp.engine.ports import (
    Conflict,
    LiveVersion,
    Parking,
    QueueEntry,
    Settlement,
    Stamp,
    StoreIdentity,
    SyncEvent,
)

if TYPE_CHECKING:
    import asyncpg

    from dionysus_sync_mcp.adapters.postgres.database import Connection

COLUMN_OF = {
    "content": "content",
    "memory_type": "memory_type",
    "importance": "importance",
    "source_project": "source_project",
    "session_id": "session_id",
    "tags": "tags",
    "created_at": "written_at",
    "updated_at": "updated_at",
}


class PostgresOutbox:
    """Implements `Outbox`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def claim(self, rows: int, size: int) -> "AsyncIterator[PostgresClaim | None]":
        """See `Outbox.claim`. The advisory lock is the transaction's: it cannot outlive this process."""
        sql = self._database.sql
        async with self._database.transaction() as connection:
            if not await connection.fetchval(sql["try_push_lock"]):
                yield None
                return
            identity = await connection.fetchrow(sql["identity"])
            if identity is None:
                raise SchemaMismatch("the store's identity is missing", where="dionysus_sync.store_identity")
            records = await connection.fetch(sql["claim_entries"], rows, size)
            store = StoreIdentity(identity["id"], identity["epoch"])
            yield PostgresClaim(connection, sql, store, [_entry(r) for r in records])

    async def anything_queued(self) -> bool:
        """Whether there is anything to push; cheap, for the worker's poll."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(self._database.sql["anything_queued"]))

    async def queue_length(self) -> int:
        """Entries waiting to be pushed."""
        async with self._database.connection() as connection:
            return int(await connection.fetchval(self._database.sql["queue_length"]))

    async def note_outage(self, memory_ids: Sequence[str], event: SyncEvent) -> None:
        """See `Outbox.note_outage`."""
        sql = self._database.sql
        async with self._database.transaction() as connection:
            await connection.execute(sql["mark_engine"])
            with _despite_the_table():
                async with connection.transaction():
                    await connection.execute(sql["mark_status"], memory_ids, "queued")
            await note_event(connection, sql, event)


class PostgresClaim:
    """Implements `Claim` on the transaction that the claim was made in."""

    def __init__(
        self,
        connection: "Connection",
        sql: Mapping[str, str],
        identity: StoreIdentity,
        entries: Sequence[QueueEntry],
    ) -> None:
        self._connection = connection
        self._sql = sql
        self.identity = identity
        self.entries = entries

    async def live_versions(self, memory_ids: Sequence[str]) -> dict[str, LiveVersion]:
        """See `Claim.live_versions`."""
        records = []
        with _despite_the_table():
            async with self._connection.transaction():
                records = await self._connection.fetch(self._sql["live_versions"], memory_ids)
        return {r["id"]: LiveVersion(r["version"], r["content"] or "") for r in records}

    async def settle(self, settlement: Settlement) -> None:
        """See `Claim.settle`. The user's table may be gone, or refuse a change: that never stops the queue."""
        execute, sql = self._connection.execute, self._sql
        await execute(sql["mark_engine"])
        parked = [*settlement.parked, *await self._change_rows(settlement)]
        kept = {p.seq for p in parked}
        await execute(sql["acknowledge"], [seq for seq in settlement.acknowledged if seq not in kept])
        await execute(sql["park"], [p.seq for p in parked], [p.error for p in parked])
        await self._note_conflicts(settlement.conflicts)
        if settlement.event:
            await note_event(self._connection, sql, settlement.event)
        await self._stamp(settlement.stamps, [e.memory_id for e in self.entries if e.seq in kept])

    async def _change_rows(self, settlement: Settlement) -> list[Parking]:
        """Rebase and pull; entries of memories whose row could not be changed are parked with the reason."""
        changed = {s.memory_id for s in settlement.rebased} | {m.id for m in settlement.pulled}
        if not changed:
            return []
        try:
            async with self._connection.transaction():
                await self._rebase(settlement.rebased)
                await overwrite_rows(self._connection, self._sql, settlement.pulled)
        except (pg.PostgresError, pg.InterfaceError, Refused) as error:
            reason = _about_the_table(error).what
            return [Parking(e.seq, reason) for e in self.entries if e.memory_id in changed]
        return []

    async def _rebase(self, rebased: Sequence[Stamp]) -> None:
        versions = [s.version for s in rebased]
        rows = await self._connection.fetch(self._sql["rebase"], [s.memory_id for s in rebased], versions)
        await self._connection.execute(self._sql["enqueue_rows"], [r["id"] for r in rows])

    async def _stamp(self, stamps: Sequence[Stamp], failed: Sequence[str | None]) -> None:
        """The stamps on the user's rows come last: their locks are held for an instant only."""
        execute, sql = self._connection.execute, self._sql
        columns = [s.memory_id for s in stamps], [s.version for s in stamps], [s.captured for s in stamps]
        if any(s.version > s.captured for s in stamps):
            await execute(sql["count_on"], *columns)
        with _despite_the_table():
            async with self._connection.transaction():
                await execute(sql["mark_status"], failed, "failed")
                await execute(sql["stamp"], *columns)

    async def _note_conflicts(self, conflicts: Sequence[Conflict]) -> None:
        if not conflicts:
            return
        columns = zip(
            *(
                (
                    c.memory_id,
                    c.winner,
                    c.local_version,
                    c.remote_version,
                    c.local_content[:100],
                    c.remote_content[:100],
                )
                for c in conflicts
            ),
            strict=True,
        )
        await self._connection.execute(self._sql["note_conflicts"], *map(list, columns))


@contextmanager
def _despite_the_table() -> Iterator[None]:
    """Goes on without what was to be done to the user's table when that is gone, of another shape, or refuses it."""
    try:
        yield
    except pg.PostgresError as error:
        _about_the_table(error)


def _about_the_table(error: Exception) -> DionysusError:
    """Our error for one that the user's table gave; raises one that has another cause."""
    ours = error if isinstance(error, Refused) else in_our_words(error)
    if ours is None or isinstance(ours, Unavailable):
        raise error
    return ours


def _entry(record: "asyncpg.Record") -> QueueEntry:
    common = {
        "seq": record["seq"],
        "entity": record["entity"],
        "operation": record["operation"],
        "created_at": record["created_at"],
        "memory_id": record["memory_id"],
        "base_version": record["base_version"],
    }
    if record["entity"] != "memory":
        return QueueEntry(**common, payload=json.loads(record["rest"]))
    try:
        return QueueEntry(**common, version=_version(record))
    except (ValueError, TypeError) as error:
        return QueueEntry(**common, broken=f"cannot be read: {error}")


def _version(record: "asyncpg.Record") -> Version:
    if record["sync_version"] is None:
        raise ValueError("no sync_version")
    return Version(
        number=record["sync_version"],
        operation=record["operation"],
        content_hash=record["content_hash"],
        changed_at=record["changed_at"],
        properties=properties_of({name: record[column] for name, column in COLUMN_OF.items()}, record["rest"]),
    )
