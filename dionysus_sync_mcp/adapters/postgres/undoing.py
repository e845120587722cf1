"""The local store's side of an undo: what a recovery overwrote is put back, a page in one transaction."""

from collections.abc import Mapping, Sequence
from typing import Any

from dionysus_sync_mcp.adapters.postgres.database import LONG_PATIENCE, Database
from dionysus_sync_mcp.adapters.postgres.restorer import NOT_AS_SEEN, halving, leave_out_moved, note_event, write_page
from dionysus_sync_mcp.domain.text import defused
from dionysus_sync_mcp.engine.ports.recover import PageResult
from dionysus_sync_mcp.engine.ports.shared import SyncEvent
from dionysus_sync_mcp.engine.ports.undo import KeptRecovery, KeptRow


class PostgresUndoing:
    """Implements `Undoing`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def last_overwriting(self) -> str | None:
        """See `Undoing.last_overwriting`."""
        async with self._database.connection() as connection:
            found: str | None = await connection.fetchval(self._database.sql["last_overwriting"])
            return found

    async def kept_recoveries(self, limit: int) -> list[KeptRecovery]:
        """See `Undoing.kept_recoveries`."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            records = await connection.fetch(self._database.sql["kept_recoveries"], limit)
        return [KeptRecovery(r["id"], r["rows"], r["last_at"]) for r in records]

    async def recovery_known(self, recovery_id: str) -> bool:
        """See `Undoing.recovery_known`."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(self._database.sql["recovery_known"], recovery_id))

    async def kept_rows(self, recovery_id: str, after: str, limit: int) -> list[KeptRow]:
        """See `Undoing.kept_rows`."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            records = await connection.fetch(self._database.sql["kept_rows"], recovery_id, after or None, limit)
        return [KeptRow(r["id"], r["state"], defused(r["lacking"])) for r in records]

    async def put_back(self, recovery_id: str, held: Mapping[str, int]) -> PageResult:
        """See `Undoing.put_back`. A page with a row that the table refuses is halved until that row stands alone."""

        async def write(memory_ids: Sequence[str]) -> PageResult:
            return await self._put_page_back(recovery_id, memory_ids, [held[i] for i in memory_ids])

        return await halving(write, list(held))

    async def _put_page_back(self, recovery_id: str, memory_ids: Sequence[str], held: Sequence[int]) -> PageResult:
        sql = self._database.sql
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(sql["mark_restore"])
            await connection.execute(sql["create_restore_page"])
            await connection.execute(sql["fill_undo_page"], recovery_id, memory_ids, held)
            moved = await leave_out_moved(connection, sql, memory_ids)
            back = [r["id"] for r in await connection.fetch(sql["page_ids"])]
            written, *_ = await write_page(connection, sql, back)
            there = [memory_id for memory_id, state in moved.items() if state == "there"]
            await connection.execute(sql["mark_undone"], recovery_id, [*back, *there])
            await connection.execute(sql["enqueue_rows"], back)
        refused = [(memory_id, NOT_AS_SEEN[state]) for memory_id, state in moved.items() if state != "there"]
        return PageResult(written, len(back), len(there), refused, [])

    async def record_undo(self, report: dict[str, Any], event: SyncEvent) -> None:
        """See `Undoing.record_undo`."""
        sql = self._database.sql
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(sql["note_undo"], self._database.json_of(report))
            await note_event(connection, sql, event)
