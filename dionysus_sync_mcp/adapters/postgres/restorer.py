"""The local store's side of a recovery: pages by COPY, inserted and verified in one transaction each."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from dionysus_sync_mcp.adapters.postgres.database import LONG_PATIENCE, Database, users_path
from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.domain.errors import Refused
from dionysus_sync_mcp.domain.memory import Digest, RemoteMemory
from dionysus_sync_mcp.engine.ports.recover import PageResult
from dionysus_sync_mcp.engine.ports.shared import Scope, SyncEvent

if TYPE_CHECKING:
    from dionysus_sync_mcp.adapters.postgres.database import Connection

PAGE_COLUMNS = (
    "id", "version", "content_hash", "deleted_at", "content", "memory_type", "importance", "source_project",
    "session_id", "tags", "created_at", "updated_at", "extra",
)  # fmt: skip
DIGEST_PAGE = 5000
LAST_ID = 2**128 - 1


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

    async def ensure_schema(self, definition: str | None) -> bool:
        """See `Restorer.ensure_schema`."""
        return await self._installer.rebuild(definition)

    async def digests(self, scope: Scope) -> AsyncIterator[Sequence[Digest]]:
        """See `Restorer.digests`. Keyset pages: no transaction stays open between them."""
        first = 0
        while page := await self._digest_page(scope, UUID(int=first)) if first <= LAST_ID else []:
            yield page
            first = UUID(page[-1].id).int + 1

    async def _digest_page(self, scope: Scope, first: UUID) -> list[Digest]:
        try:
            return await self._digests(scope, first, "local_digests")
        except Refused:
            return await self._digests(scope, first, "local_digests_one_by_one")

    async def _digests(self, scope: Scope, first: UUID, name: str) -> list[Digest]:
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            records = await connection.fetch(
                self._database.sql[name],
                scope.projects,
                scope.sessions,
                scope.memory_ids,
                first,
                DIGEST_PAGE,
            )
        return [Digest(r["id"], r["version"], r["content_hash"], deleted=False) for r in records]

    async def restore(self, memories: Sequence[RemoteMemory]) -> PageResult:
        """See `Restorer.restore`. A page with a row that the table refuses is halved until that row stands alone."""
        try:
            return await self._restore_page(memories)
        except Refused as error:
            if len(memories) == 1:
                return PageResult(0, 0, 0, [(memories[0].id, error.what)], [])
        middle = len(memories) // 2
        return _together(await self.restore(memories[:middle]), await self.restore(memories[middle:]))

    async def _restore_page(self, memories: Sequence[RemoteMemory]) -> PageResult:
        sql = self._database.sql
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(sql["mark_restore"])
            await fill_page(connection, sql, memories)
            present = await connection.fetchval(sql["leave_out_present"])
            restored = await connection.fetchval(sql["write_restored"], False)
            mismatched = [r["id"] for r in await connection.fetch(sql["verify_restored"])]
            narrowed = await connection.fetch(sql["undo_narrowed"], mismatched) if mismatched else []
            resurrected = [r["id"] for r in await connection.fetch(sql["resurrected_ids"])]
            if resurrected:
                await connection.execute(sql["enqueue_rows"], resurrected)
        lacking = {r["id"]: f"the table has no column for what it has in {r['lacking']}" for r in narrowed}
        return PageResult(
            restored=restored - len(lacking),
            verified=len(memories) - present - len(mismatched),
            already_there=present,
            refused=list(lacking.items()),
            mismatched=[memory_id for memory_id in mismatched if memory_id not in lacking],
        )

    async def waiting_ids(self) -> list[str]:
        """See `Restorer.waiting_ids`."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            return [r["id"] for r in await connection.fetch(self._database.sql["waiting_ids"])]

    async def restore_context(
        self, sessions: Sequence[dict[str, Any]], projects: Sequence[dict[str, Any]]
    ) -> list[str]:
        """See `Restorer.restore_context`. Where one row is refused, each has a transaction of its own."""
        refused = []
        sql = self._database.sql
        parts = (("project", sql["restore_projects"], projects), ("session", sql["restore_sessions"], sessions))
        for kind, statement, rows in parts:
            try:
                await self._restore_rows(statement, rows)
            except Refused:
                refused += [fault for row in rows if (fault := await self._restore_alone(kind, statement, row))]
        return refused

    async def _restore_alone(self, kind: str, statement: str, row: dict[str, Any]) -> str | None:
        try:
            await self._restore_rows(statement, [row])
        except Refused as error:
            return f"{kind} {row.get('id')} was not restored: {error.what}"
        return None

    async def _restore_rows(self, statement: str, rows: Sequence[dict[str, Any]]) -> None:
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(self._database.sql["mark_engine"])
            await connection.execute(statement, json.dumps(list(rows)))

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
    await connection.execute(sql["create_restore_page"])
    try:
        await connection.copy_records_to_table("dionysus_restore", records=memories, columns=PAGE_COLUMNS)
    except (TypeError, ValueError, OverflowError) as error:
        raise Refused(f"a property in the remote store has another type than its column: {error}") from error


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
    )
