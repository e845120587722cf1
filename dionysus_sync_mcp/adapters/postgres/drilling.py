"""The local store's side of a drill: a scratch schema, filled as a recovery fills the real one, and removed."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any

import anyio

from dionysus_sync_mcp.adapters.postgres.database import LONG_PATIENCE, Database, for_schema
from dionysus_sync_mcp.adapters.postgres.restorer import fill_page, note_event
from dionysus_sync_mcp.domain.errors import DionysusError, Refused
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.engine.ports.drill import Shown
from dionysus_sync_mcp.engine.ports.shared import SyncEvent

logger = logging.getLogger(__name__)

PREFIX = "dionysus_drill_"
# Without it a schema is somebody else's, whatever its name.
MARK = "dionysus-sync: scratch schema of a drill, removed when the drill ends or by the next one"
REMOVE_SECONDS = 10.0
KEPT_REPORTS = 100


class PostgresDrilling:
    """Implements `LocalDrilling`.

    Args:
        statements: The named SQL, in which `:memories` stands for the table.
    """

    def __init__(self, database: Database, statements: Mapping[str, str]) -> None:
        self._database = database
        self._statements = statements

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[bool]:
        """See `LocalDrilling.alone`. A lock of a session ends with it, and the pool takes it off a connection."""
        async with self._database.connection() as connection:
            yield bool(await connection.fetchval(self._database.sql["lock_drill"]))

    async def may_drill(self) -> bool:
        """See `LocalDrilling.may_drill`."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(self._database.sql["may_drill"]))

    async def remove_left_behind(self) -> int:
        """See `LocalDrilling.remove_left_behind`. One that somebody else has put something into stays."""
        async with self._database.connection() as connection:
            found = await connection.fetch(self._database.sql["scratch_schemas"], MARK)
        return sum([await self._removed(r["name"]) for r in found])

    @asynccontextmanager
    async def scratch(self, definition: str) -> AsyncIterator["PostgresScratch"]:
        """See `LocalDrilling.scratch`."""
        name = PREFIX + token_hex(4)
        sql = {key: for_schema(statement, name) for key, statement in self._statements.items()}
        try:
            faults = await self._make(name, sql, definition)
            yield PostgresScratch(self._database, sql, faults)
        finally:
            with anyio.move_on_after(REMOVE_SECONDS, shield=True):
                await self._removed(name)

    async def _make(self, name: str, sql: Mapping[str, str], definition: str) -> list[str]:
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(sql["mark_engine"])
            await connection.execute(sql["name_scratch"], name, MARK)
            await connection.execute(sql["make_scratch"])
            faults: list[str] = await connection.fetchval(sql["rebuild_memories"], name, definition, [])
            await connection.execute(sql["unlog_scratch"])
        return faults

    async def _removed(self, name: str) -> bool:
        """What cannot be removed now is left for the next drill, and said in the log."""
        sql = self._database.sql
        try:
            async with self._database.transaction(patience=REMOVE_SECONDS) as connection:
                await connection.execute(sql["mark_engine"])
                await connection.execute(sql["name_scratch"], name, MARK)
                await connection.execute(sql["remove_scratch"])
        except DionysusError as error:
            logger.warning("the scratch schema %s of a drill could not be removed: %s", name, error)
            return False
        return True

    async def show(self, memory_ids: Sequence[str]) -> list[Shown]:
        """See `LocalDrilling.show`."""
        async with self._database.connection() as connection:
            records = await connection.fetch(self._database.sql["drill_examples"], memory_ids)
        return [Shown(*record) for record in records]

    async def ages(self) -> tuple[float | None, float | None]:
        """See `LocalDrilling.ages`."""
        async with self._database.connection() as connection:
            found = await connection.fetchrow(self._database.sql["drill_ages"])
        return (found["since_done"], found["since_tried"]) if found else (None, None)

    async def record(self, drill_id: str, result: str, report: dict[str, Any], event: SyncEvent | None) -> None:
        """See `LocalDrilling.record`."""
        sql = self._database.sql
        async with self._database.transaction() as connection:
            await connection.execute(sql["note_drill"], drill_id, result, self._database.json_of(report))
            await connection.execute(sql["prune_drills"], KEPT_REPORTS)
            if event:
                await note_event(connection, sql, event)


class PostgresScratch:
    """Implements `Scratch`.

    Args:
        sql: The statements, about the scratch table.
        faults: What of the table could not be made.
    """

    def __init__(self, database: Database, sql: Mapping[str, str], faults: Sequence[str]) -> None:
        self._database = database
        self._sql = sql
        self.faults = faults

    async def restore(self, memories: Sequence[RemoteMemory]) -> list[tuple[str, str]]:
        """See `Scratch.restore`. A page with a row that the table refuses is halved until that row stands alone."""
        try:
            await self._restore_page(memories)
        except Refused as error:
            if len(memories) == 1:
                return [(memories[0].id, error.what)]
        else:
            return []
        middle = len(memories) // 2
        return [*await self.restore(memories[:middle]), *await self.restore(memories[middle:])]

    async def _restore_page(self, memories: Sequence[RemoteMemory]) -> None:
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(self._sql["mark_restore"])
            await fill_page(connection, self._sql, memories)
            await connection.execute(self._database.sql["leave_out_absent"])
            await connection.execute(self._sql["write_restored"], False)

    async def clear(self, memory_ids: Sequence[str]) -> None:
        """See `Scratch.clear`."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            await connection.execute(self._sql["clear_scratch"], memory_ids)

    async def hashes(self, memory_ids: Sequence[str]) -> dict[str, str]:
        """See `Scratch.hashes`."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            records = await connection.fetch(self._sql["scratch_hashes"], memory_ids)
        return {r["id"]: r["content_hash"] for r in records}
