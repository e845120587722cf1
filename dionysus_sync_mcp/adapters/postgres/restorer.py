"""The local store's side of a recovery: pages by COPY, inserted and verified in one transaction each."""

import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from asyncpg import exceptions as pg

from dionysus_sync_mcp.adapters.postgres.database import LOCK_SECONDS, LONG_PATIENCE, Database, users_path
from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.domain.errors import Refused
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.domain.text import defused
from dionysus_sync_mcp.engine.ports.recover import ContextResult, PageResult, Restoration, as_it_stands
from dionysus_sync_mcp.engine.ports.shared import SyncEvent

if TYPE_CHECKING:
    from dionysus_sync_mcp.adapters.postgres.database import Connection

PAGE_COLUMNS = (
    "id", "version", "content_hash", "deleted_at", "content", "memory_type", "importance", "source_project",
    "session_id", "tags", "created_at", "updated_at", "extra", "number", "confirmed", "is_new", "overwrites",
)  # fmt: skip
NOT_AS_SEEN = {
    "changed": "changed meanwhile",
    "gone": "changed meanwhile: it is not here any more",
    "held": "changed meanwhile, or about to be: somebody holds it",
    "skipped": "the table did not take it: one of its triggers leaves it out",
}
MISMATCHED = "it would not become what it was: the table lacks a column, or one of its triggers changes it"
NOTHING = PageResult(0, 0, 0, [], [])
# That a page waits for whoever holds rows of it; long enough to find out which of its rows those are.
HELD_SECONDS = 60.0


class PostgresRestorer:
    """Implements `Restorer` and `Refilling`."""

    def __init__(self, database: Database, installer: Installer) -> None:
        self._database = database
        self._installer = installer

    @asynccontextmanager
    async def recovering(self) -> AsyncIterator[None]:
        """See `Restorer.recovering`. A lock of a session ends with it, and the pool takes it off a connection."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            await connection.execute(self._database.sql["mark_recovery"])
            yield

    async def ensure_schema(self, definition: str | None) -> list[str]:
        """See `Restorer.ensure_schema`."""
        return await self._installer.rebuild(definition)

    async def complete_schema(self, definition: str | None) -> list[str]:
        """See `Restorer.complete_schema`."""
        return await self._installer.complete(definition)

    async def restore(self, recovery_id: str, restorations: Sequence[Restoration]) -> PageResult:
        """See `Restorer.restore`. A page with a row that the table refuses is halved until that row stands alone."""
        rows = {restoration.memory.id: restoration for restoration in restorations}
        held = _Held()

        async def write(memory_ids: Sequence[str]) -> PageResult:
            return await self._restore_page(recovery_id, [rows[memory_id] for memory_id in memory_ids], held)

        return await halving(write, list(rows))

    async def _restore_page(self, recovery_id: str, restorations: Sequence[Restoration], held: "_Held") -> PageResult:
        sql = self._database.sql
        overwriting = [r.memory.id for r in restorations if r.overwrites is not None]
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(sql["mark_restore"])
            await connection.execute(sql["claim_table"])
            await _fill(connection, sql, restorations)
            if refilled := [r.memory.id for r in restorations if r.refilled]:
                await connection.execute(sql["seal_page"], refilled)
            left = await _left_out(connection, sql, written=False)
            left |= await leave_out_moved(connection, sql, overwriting)
            kept = [memory_id for memory_id in overwriting if memory_id not in left]
            await connection.execute(sql["keep_overwritten"], recovery_id, kept)
            async with held.told(connection, sql):
                written, skipped, mismatched, wider = await write_page(connection, sql, kept)
            left |= skipped
            lacking = await _take_out_narrowed(connection, sql, mismatched)
            if wider:
                await connection.execute(sql["note_written_hashes"], recovery_id, list(wider), list(wider.values()))
            new = [r["id"] for r in await connection.fetch(sql["new_ids"])]
            await connection.execute(sql["enqueue_rows"], new)
        refused = [(memory_id, NOT_AS_SEEN[state]) for memory_id, state in left.items() if state != "there"]
        return PageResult(
            restored=written - len(lacking),
            verified=len(restorations) - len(left) - len(mismatched),
            already_there=len(left) - len(refused),
            refused=[*refused, *lacking.items()],
            mismatched=[memory_id for memory_id in mismatched if memory_id not in lacking],
            overwritten=len(kept),
        )

    async def waiting_ids(self) -> list[str]:
        """See `Restorer.waiting_ids`."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            return [r["id"] for r in await connection.fetch(self._database.sql["waiting_ids"])]

    async def restore_context(
        self,
        sessions: Sequence[dict[str, Any]],
        projects: Sequence[dict[str, Any]],
        references: Sequence[dict[str, Any]] = (),
    ) -> ContextResult:
        """See `Restorer.restore_context`. Where one row is refused, each has a transaction of its own."""
        sql = self._database.sql
        refused: list[str] = []
        await self._restore_rows("project", sql["restore_projects"], projects, refused)
        await self._restore_rows("session", sql["restore_sessions"], sessions, refused)
        added = await self._restore_rows("reference", sql["restore_references"], references, refused)
        return ContextResult(refused, added)

    async def _restore_rows(self, kind: str, statement: str, rows: Sequence[dict[str, Any]], refused: list[str]) -> int:
        """How many rows were inserted; of those that are refused, which and why goes to `refused`."""
        if not rows:
            return 0
        try:
            return await self._insert(statement, rows)
        except Refused as error:
            if len(rows) == 1:
                name = rows[0].get("id") or rows[0].get("source_id")
                refused.append(f"{kind} {name} was not restored: {defused(error.what)}")
                return 0
        middle = len(rows) // 2
        first = await self._restore_rows(kind, statement, rows[:middle], refused)
        return first + await self._restore_rows(kind, statement, rows[middle:], refused)

    async def _insert(self, statement: str, rows: Sequence[dict[str, Any]]) -> int:
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(self._database.sql["mark_engine"])
            inserted = await connection.execute(statement, json.dumps(list(rows)))
        return int(inserted.split()[-1])

    async def record_recovery(self, report: dict[str, Any], event: SyncEvent) -> None:
        """See `Restorer.record_recovery`."""
        sql = self._database.sql
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(sql["note_recovery"], json.dumps(report))
            await note_event(connection, sql, event)

    async def confirmed_ids(self, after: str, limit: int) -> list[str]:
        """See `Refilling.confirmed_ids`."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            records = await connection.fetch(self._database.sql["confirmed_ids"], after or None, limit)
        return [r["id"] for r in records]

    async def forget_confirmation(self, memory_ids: Sequence[str], event: SyncEvent) -> int:
        """See `Refilling.forget_confirmation`."""
        sql = self._database.sql
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(sql["mark_engine"])
            async with users_path(connection, sql):
                marked = await connection.execute(sql["mark_status"], memory_ids, "pending")
            await note_event(connection, sql, event)
        return int(marked.split()[-1])


async def note_event(connection: "Connection", sql: Mapping[str, str], event: SyncEvent) -> None:
    """Write an audit row."""
    await connection.execute(
        sql["note_event"],
        event.direction,
        event.result,
        event.record_count,
        event.memory_ids,
        event.error_message,
        event.duration_ms,
        event.retry_count,
    )


async def fill_page(connection: "Connection", sql: Mapping[str, str], memories: Sequence[RemoteMemory]) -> None:
    """Put memories into the temporary table that the other statements of a restore read.

    Raises:
        Refused: A property that somebody wrote into the remote by hand is of another type than the column.
    """
    await _fill(connection, sql, map(as_it_stands, memories))


async def _fill(connection: "Connection", sql: Mapping[str, str], restorations: Iterable[Restoration]) -> None:
    await connection.execute(sql["create_restore_page"])
    records = ((*r.memory, r.number, r.confirmed, r.is_new, r.overwrites) for r in restorations)
    try:
        await connection.copy_records_to_table("dionysus_restore", records=records, columns=PAGE_COLUMNS)
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(f"a property in the remote store has another type than its column: {error}") from error


async def _left_out(connection: "Connection", sql: Mapping[str, str], *, written: bool) -> dict[str, str]:
    """Take rows out of the page that are here and were not to be, or that were not inserted; how those stand."""
    return {r["id"]: r["state"] for r in await connection.fetch(sql["leave_out_present"], written)}


async def leave_out_moved(
    connection: "Connection", sql: Mapping[str, str], memory_ids: Sequence[str]
) -> dict[str, str]:
    """Lock the rows that are to be overwritten, and take those out of the page that are not as they were seen.

    Returns how those stand: as in `NOT_AS_SEEN`, or `there` for one that is what it is to become already.
    """
    if not memory_ids:
        return {}
    locked = await _lock(connection, sql, memory_ids)
    return {r["id"]: r["state"] for r in await connection.fetch(sql["leave_out_moved"], locked)}


async def _lock(connection: "Connection", sql: Mapping[str, str], memory_ids: Sequence[str]) -> list[str]:
    """A push holds rows for an instant; who holds one for longer is about to change it."""
    try:
        async with connection.transaction():
            await connection.execute(sql["table_wait"])
            locked = await connection.fetch(sql["lock_waiting"], memory_ids)
            await connection.execute(sql["usual_wait"], f"{LOCK_SECONDS}s")
    except pg.LockNotAvailableError:
        locked = await connection.fetch(sql["lock_rows"], memory_ids)
    return [r["id"] for r in locked]


async def write_page(
    connection: "Connection", sql: Mapping[str, str], overwriting: Sequence[str]
) -> tuple[int, dict[str, str], list[str], dict[str, str]]:
    """Write the rows of the page.

    What a trigger of the user's has changed of a row, such as `updated_at`, is put right. A row that somebody else has
    inserted meanwhile is theirs: it is neither put right nor looked at.

    Returns:
        How many were written; those that were to be inserted and were not, and how they stand, as in `NOT_AS_SEEN`, or
        `there`; the ids of those inserted that have another hash; and the hashes, by id, of those that
        have columns of which the page says nothing, and are right otherwise.

    Raises:
        OthersRefused: Of those that are overwritten some would have another hash; none may be left so.
    """
    written = int(await connection.fetchval(sql["write_restored"], False))
    skipped = await _left_out(connection, sql, written=True)
    mismatched, wider = await _other_hashes(connection, sql)
    if mismatched:
        await connection.execute(sql["wanted_images"])
        async with users_path(connection, sql):
            await connection.execute(sql["straighten"], mismatched)
        mismatched, wider = await _other_hashes(connection, sql)
    if wrong := set(mismatched) & set(overwriting):
        raise OthersRefused(dict.fromkeys(wrong, MISMATCHED))
    return written, skipped, mismatched, wider


async def _other_hashes(connection: "Connection", sql: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    others = await connection.fetch(sql["other_hashes"])
    return [r["id"] for r in others if not r["fits"]], {r["id"]: r["hash"] for r in others if r["fits"]}


async def _take_out_narrowed(
    connection: "Connection", sql: Mapping[str, str], mismatched: Sequence[str]
) -> dict[str, str]:
    """Take rows out again for which the table lacks a column that they fill; why, by id."""
    narrowed = await connection.fetch(sql["undo_narrowed"], mismatched) if mismatched else []
    return {r["id"]: f"the table has no column for what it has in {defused(r['lacking'])}" for r in narrowed}


class OthersRefused(Refused):
    """Some rows of a page cannot be written; without them, the others can. Nothing was written."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("some rows of a page cannot be written")
        self.reasons = reasons


class _Held:
    """Pages that wait for somebody's transaction: once as usual, then briefly, and for `HELD_SECONDS` in all."""

    def __init__(self) -> None:
        self._until = math.inf

    @asynccontextmanager
    async def told(self, connection: "Connection", sql: Mapping[str, str]) -> AsyncIterator[None]:
        """That somebody holds a row which is written within is raised as `Refused`."""
        if self._until < time.monotonic():
            raise Refused(NOT_AS_SEEN["held"])
        if self._until < math.inf:
            await connection.execute(sql["brief_wait"])
        try:
            yield
        except pg.LockNotAvailableError as error:
            self._until = min(self._until, time.monotonic() + HELD_SECONDS)
            raise Refused(NOT_AS_SEEN["held"]) from error


WritePage = Callable[[Sequence[str]], Awaitable[PageResult]]


async def halving(write: WritePage, memory_ids: Sequence[str]) -> PageResult:
    """Write a page of rows; one that is refused is written in halves, until the refused row stands alone."""
    if not memory_ids:
        return NOTHING
    try:
        return await write(memory_ids)
    except OthersRefused as error:
        refused = PageResult(0, 0, 0, list(error.reasons.items()), [])
        return _together(refused, await halving(write, [i for i in memory_ids if i not in error.reasons]))
    except Refused as error:
        if len(memory_ids) == 1:
            return PageResult(0, 0, 0, [(memory_ids[0], defused(error.what))], [])
    middle = len(memory_ids) // 2
    return _together(await halving(write, memory_ids[:middle]), await halving(write, memory_ids[middle:]))


async def overwrite_rows(connection: "Connection", sql: Mapping[str, str], memories: Sequence[RemoteMemory]) -> int:
    """Make the local rows what the remote holds, unless they are newer; how many were written."""
    await connection.execute(sql["mark_restore"])
    await fill_page(connection, sql, memories)
    written = int(await connection.fetchval(sql["write_restored"], True))
    await connection.execute(sql["mark_engine"])
    return written


def _together(first: PageResult, second: PageResult) -> PageResult:
    return PageResult(
        restored=first.restored + second.restored,
        verified=first.verified + second.verified,
        already_there=first.already_there + second.already_there,
        refused=[*first.refused, *second.refused],
        mismatched=[*first.mismatched, *second.mismatched],
        overwritten=first.overwritten + second.overwritten,
    )
