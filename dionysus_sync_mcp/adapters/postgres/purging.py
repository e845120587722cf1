"""The local store's side of a purge: what recoveries kept for an undo, and the audit."""

from collections.abc import Sequence
from datetime import datetime

from dionysus_sync_mcp.adapters.postgres.database import LONG_PATIENCE, Database
from dionysus_sync_mcp.adapters.postgres.restorer import note_event
from dionysus_sync_mcp.engine.ports.shared import SyncEvent


class PostgresPurging:
    """Implements `LocalPurging`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def recovery_under_way(self) -> bool:
        """See `LocalPurging.recovery_under_way`."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(self._database.sql["recovery_under_way"]))

    async def count_images(self, before: datetime | None, memory_ids: Sequence[str]) -> int:
        """See `LocalPurging.count_images`."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            return int(await connection.fetchval(self._database.sql["count_images"], before, memory_ids))

    async def purge_images(self, before: datetime | None, memory_ids: Sequence[str], limit: int) -> int:
        """See `LocalPurging.purge_images`."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            return int(await connection.fetchval(self._database.sql["purge_images"], before, memory_ids, limit))

    async def record_purge(self, event: SyncEvent) -> None:
        """See `LocalPurging.record_purge`."""
        async with self._database.connection() as connection:
            await note_event(connection, self._database.sql, event)
