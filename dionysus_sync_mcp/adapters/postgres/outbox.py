"""The local queue: claim and settlement of a push in one transaction, so that nothing is ever half claimed."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asyncpg import exceptions as pg

from dionysus_sync_mcp.adapters.postgres.database import LOCK_SECONDS, PATIENCE, Database, in_our_words, users_path
from dionysus_sync_mcp.adapters.postgres.installer import identity_of
from dionysus_sync_mcp.adapters.postgres.line import WHERE
from dionysus_sync_mcp.adapters.postgres.restorer import note_event, overwrite_rows
from dionysus_sync_mcp.domain.backoff import MOST_REFUSALS, retry_delay
from dionysus_sync_mcp.domain.context import broken_row
from dionysus_sync_mcp.domain.errors import DionysusError, LineageMoved, Refused, Unavailable
from dionysus_sync_mcp.domain.memory import Version, is_plain_time, properties_of
from dionysus_sync_mcp.engine.ports.push import Conflict, LiveVersion, Parking, QueueEntry, Settlement, Stamp
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity, SyncEvent

if TYPE_CHECKING:
    import asyncpg

    from dionysus_sync_mcp.adapters.postgres.database import Connection

# The capture starts again at 1 from half of this; what is higher leaves no room to count on.
HIGHEST_VERSION = 2_000_000_000
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
    async def claim(self, rows: int, size: int, seconds: float = 5.0) -> "AsyncIterator[PostgresClaim | None]":
        """See `Outbox.claim`. The advisory lock is the transaction's: it cannot outlive this process."""
        sql = self._database.sql
        async with self._database.transaction(patience=min(PATIENCE, seconds)) as connection:
            if not await connection.fetchval(sql["try_push_lock"], connection.may_be_idle(seconds)):
                yield None
                return
            store = identity_of(await connection.fetchrow(sql["lock_identity"]))
            with connection.patient(seconds):
                records = await connection.fetch(sql["claim_entries"], rows, size)
            yield PostgresClaim(connection, sql, store, [_entry(r) for r in records], seconds)

    async def identity(self) -> StoreIdentity:
        """See `Outbox.identity`."""
        async with self._database.connection() as connection:
            return identity_of(await connection.fetchrow(self._database.sql["identity"]))

    async def retry_parked_once(self, limit: int, *, due_only: bool) -> int:
        """See `Outbox.retry_parked_once`."""
        sql = self._database.sql
        async with self._database.transaction() as connection:
            records = await connection.fetch(sql["retry_parked"], limit, due_only, MOST_REFUSALS)
            if records:
                ids = sorted({r["id"] for r in records if r["id"]})
                event = SyncEvent("local_to_remote", "queued", len(records), ids, "parked entries are tried again")
                await note_event(connection, sql, event)
        return len(records)

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
                async with _unless_locked(connection, sql, _Table()), users_path(connection, sql):
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
        seconds: float,
    ) -> None:
        self._connection = connection
        self._seconds = seconds
        self._sql = sql
        self.identity = identity
        self.entries = entries
        self._table = _Table()
        self._unseen: set[str] = set()

    async def live_versions(self, memory_ids: Sequence[str]) -> dict[str, LiveVersion | None]:
        """See `Claim.live_versions`."""
        records = () if self._table.locked else await self._live(memory_ids)
        if self._table.locked:
            self._unseen.update(memory_ids)
            return dict.fromkeys(memory_ids)
        return {r["id"]: LiveVersion(r["version"], r["content"] or "", r["confirmed"]) for r in records}

    async def _live(self, memory_ids: Sequence[str]) -> "Sequence[asyncpg.Record]":
        with _despite_the_table():
            async with self._at_the_table():
                with self._connection.patient(self._seconds):
                    return await self._connection.fetch(self._sql["live_versions"], memory_ids)
        return ()

    async def has_entry(self, entry_id: str) -> bool:
        """See `Claim.has_entry`. The claim's own entries are asked for too: another process may have settled them."""
        return bool(await self._connection.fetchval(self._sql["has_entry"], entry_id))

    async def settle(self, settlement: Settlement) -> None:
        """See `Claim.settle`. The user's table may be gone, or refuse a change: that never stops the queue."""
        await self._move(settlement)
        await self._connection.execute(self._sql["mark_engine"])
        # By now the connection is known to live, after the time in which only the remote store was talked to.
        with self._connection.patient(self._seconds):
            await self._settle(settlement)

    async def _settle(self, settlement: Settlement) -> None:
        execute, sql = self._connection.execute, self._sql
        counted_on = [stamp for stamp in settlement.stamps if stamp.version > stamp.captured]
        waiting = await self._carry_on(counted_on)
        held, unchanged = await self._change_rows(settlement)
        held |= self._unseen & self._last_seqs().keys()
        kept = await self._keep(waiting, held)
        parked = [*settlement.parked, *unchanged]
        left = kept | {p.seq for p in parked}
        await execute(sql["acknowledge"], [seq for seq in settlement.acknowledged if seq not in left])
        await self._park(parked)
        await self._note_confirmed(settlement)
        await self._note_conflicts([c for c in settlement.conflicts if c.memory_id not in held])
        if settlement.event:
            await note_event(self._connection, sql, settlement.event)
        if settlement.compare:
            await execute(sql["note_due"])
        failed = {p.seq for p in parked}
        others = [stamp for stamp in settlement.stamps if stamp.version <= stamp.captured]
        await self._stamp(others, [e.memory_id for e in self.entries if e.seq in failed])

    async def _move(self, settlement: Settlement) -> None:
        """First of all: a process that was overtaken while it was paused changes nothing."""
        if not settlement.lineage:
            return
        old, new = self.identity.lineage, settlement.lineage
        if not await self._connection.fetchval(self._sql["move_lineage"], old, new, settlement.repeated):
            raise LineageMoved(where=WHERE)

    async def _park(self, parked: Sequence[Parking]) -> None:
        if not parked:
            return
        refusals = {e.seq: e.refusals + 1 for e in self.entries}
        delays = [retry_delay(refusals.get(p.seq, 1)) for p in parked]
        await self._connection.execute(self._sql["park"], [p.seq for p in parked], [p.error for p in parked], delays)

    async def _note_confirmed(self, settlement: Settlement) -> None:
        """What this store has deleted for good, and what is parked of memories that have gone on."""
        execute, sql = self._connection.execute, self._sql
        live, deleted = settlement.stamps, settlement.deleted
        if deleted:
            await execute(sql["note_deletions"], [s.memory_id for s in deleted], [s.version for s in deleted])
        if live:
            await execute(sql["forget_deletions"], [s.memory_id for s in live])
        last = self._last_seqs()
        ids = [s.memory_id for s in (*live, *deleted) if s.memory_id in last]
        if ids:
            await execute(sql["supersede"], ids, [last[i] for i in ids])

    async def _carry_on(self, stamps: Sequence[Stamp]) -> list[Stamp]:
        """Rows count on from the number that they were sent by; those of which an entry has to wait until they can."""
        if not stamps or self._table.locked:
            return list(stamps)
        ids = [s.memory_id for s in stamps]
        last = self._last_seqs()
        seqs = [last[i] for i in ids]
        waiting: set[str] = set()
        with _despite_the_table():
            async with self._at_the_table(), users_path(self._connection, self._sql):
                free, held = await self._lock(ids)
                carried = await self._carry([s for s in stamps if s.memory_id in free], last)
                changed = await self._ids("changed_since", ids, seqs)
                waiting = (held | changed) - carried
        return [s for s in stamps if s.memory_id in waiting or self._table.locked]

    async def _carry(self, stamps: Sequence[Stamp], last: Mapping[str, int]) -> set[str]:
        return await self._ids(
            "carry_on",
            [s.memory_id for s in stamps],
            [s.version for s in stamps],
            [s.captured for s in stamps],
            [last[s.memory_id] for s in stamps],
        )

    async def _lock(self, ids: Sequence[str]) -> tuple[set[str], set[str]]:
        """Ids of rows that are locked now, and of those that somebody else holds."""
        free = await self._ids("lock_rows", ids)
        return free, await self._ids("held_rows", ids, sorted(free))

    async def _ids(self, statement: str, *columns: Sequence[object]) -> set[str]:
        return {r["id"] for r in await self._connection.fetch(self._sql[statement], *columns)}

    def _last_seqs(self) -> dict[str, int]:
        """Of each memory, the seq of the last entry that was sent."""
        return {e.memory_id: e.seq for e in self.entries if e.memory_id and e.entity == "memory" and not e.broken}

    async def _keep(self, waiting: Sequence[Stamp], held: set[str]) -> set[int]:
        """The newest entries of these memories wait: with what the remote confirmed, or as they are."""
        last = self._last_seqs()
        kept: dict[int, int | None] = {last[s.memory_id]: s.version for s in waiting}
        kept.update(dict.fromkeys(last[i] for i in held))
        if kept:
            await self._connection.execute(self._sql["keep"], list(kept), list(kept.values()))
        return set(kept)

    async def _change_rows(self, settlement: Settlement) -> tuple[set[str], list[Parking]]:
        """Rebase and pull: the memories whose row somebody holds, and the parked entries of those that refused."""
        changed = sorted({s.memory_id for s in settlement.rebased} | {m.id for m in settlement.pulled})
        held, reason = await self._change(settlement, changed)
        if reason is None:
            return held, []
        if len(changed) == 1:
            return set(), [Parking(e.seq, reason) for e in self.entries if e.memory_id == changed[0]]
        alone = [await self._change_rows(_only(settlement, memory_id)) for memory_id in changed]
        return set().union(*(ids for ids, _ in alone)), [p for _, parked in alone for p in parked]

    async def _change(self, settlement: Settlement, changed: Sequence[str]) -> tuple[set[str], str | None]:
        """The memories whose row somebody holds, or why nothing of it was done."""
        if not changed or self._table.locked:
            return set(changed), None
        held = set(changed)
        try:
            async with self._at_the_table():
                async with users_path(self._connection, self._sql):
                    free, found = await self._lock(changed)
                await self._rebase([s for s in settlement.rebased if s.memory_id in free])
                changeable = free - await self._changed_since(free)
                await overwrite_rows(self._connection, self._sql, [m for m in settlement.pulled if m.id in changeable])
                held = found
        except (pg.PostgresError, pg.InterfaceError, Refused) as error:
            return set(), _about_the_table(error).what
        return held, None

    async def _changed_since(self, ids: set[str]) -> set[str]:
        """Those of these memories of which a later change waits: its turn decides, and nothing of it is overwritten."""
        last = self._last_seqs()
        sent = sorted(ids & last.keys())
        return await self._ids("changed_since", sent, [last[i] for i in sent])

    async def _rebase(self, rebased: Sequence[Stamp]) -> None:
        last = self._last_seqs()
        columns = [s.memory_id for s in rebased], [s.version for s in rebased], [last.get(s.memory_id) for s in rebased]
        async with users_path(self._connection, self._sql):
            rows = await self._connection.fetch(self._sql["rebase"], *columns)
        await self._connection.execute(self._sql["enqueue_rows"], [r["id"] for r in rows])

    async def _stamp(self, stamps: Sequence[Stamp], failed: Sequence[str | None]) -> None:
        """The stamps on the user's rows come last: their locks are held for an instant only."""
        if self._table.locked:
            return
        execute, sql = self._connection.execute, self._sql
        columns = [s.memory_id for s in stamps], [s.version for s in stamps], [s.captured for s in stamps]
        with _despite_the_table():
            async with self._at_the_table(), users_path(self._connection, sql):
                await execute(sql["mark_status"], failed, "failed")
                await execute(sql["stamp"], *columns)

    @asynccontextmanager
    async def _at_the_table(self) -> AsyncIterator[None]:
        async with _unless_locked(self._connection, self._sql, self._table):
            yield

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


def _only(settlement: Settlement, memory_id: str) -> Settlement:
    """The changes of rows that one memory needs."""
    return Settlement(
        acknowledged=(),
        rebased=[s for s in settlement.rebased if s.memory_id == memory_id],
        pulled=[m for m in settlement.pulled if m.id == memory_id],
    )


@dataclass
class _Table:
    """The user's table, as a transaction finds it: one that somebody has locked is not waited for again."""

    locked: bool = False


@asynccontextmanager
async def _unless_locked(connection: "Connection", sql: Mapping[str, str], table: _Table) -> AsyncIterator[None]:
    """A savepoint for statements on the user's table; undone, without an error, if somebody keeps it locked."""
    try:
        async with connection.transaction():
            await connection.execute(sql["table_wait"])
            yield
            await connection.execute(sql["usual_wait"], f"{LOCK_SECONDS}s")
    except pg.LockNotAvailableError:
        table.locked = True


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
        "waited": record["waited"],
        "id": record["id"],
        "refusals": record["retry_count"],
    }
    try:
        if record["entity"] != "memory":
            return QueueEntry(**common, payload=_row(record))
        _check_numbers(record)
        return QueueEntry(**common, version=version_of(record))
    except (ValueError, TypeError, RecursionError) as error:
        return QueueEntry(**common, broken=f"cannot be read: {error}")


def _row(record: "asyncpg.Record") -> dict[str, Any]:
    row: dict[str, Any] = json.loads(record["rest"])
    if fault := broken_row(record["entity"], row):
        raise ValueError(fault)
    return row


def _check_numbers(record: "asyncpg.Record") -> None:
    if any(not 0 <= (record[name] or 0) <= HIGHEST_VERSION for name in ("sync_version", "base_version")):
        raise ValueError("a version out of bounds")
    if record["sync_version"] == 0:
        raise ValueError("a version of 0")
    if not is_plain_time(record["changed_at"]):
        raise ValueError("a time out of bounds")
    if record["image_id"] != record["memory_id"]:
        raise ValueError("the row has another id than the entry")


def version_of(record: "asyncpg.Record") -> Version:
    """The state in a record with the columns of `claim_entries`.

    Raises:
        ValueError, TypeError: Something else than the capture wrote it.
    """
    if record["sync_version"] is None:
        raise ValueError("no sync_version")
    return Version(
        number=record["sync_version"],
        operation=record["operation"],
        content_hash=record["content_hash"],
        changed_at=record["changed_at"],
        properties=properties_of({name: record[column] for name, column in COLUMN_OF.items()}, record["rest"]),
    )
