"""The remote's side of a purge: the only place from which anything is removed there."""

from collections.abc import Sequence
from datetime import datetime

from dionysus_sync_mcp.adapters.neo4j.connection import Call, Part
from dionysus_sync_mcp.engine.ports.purge import Purgeable, PurgePage


class Purging(Part):
    """Implements `RemotePurging`."""

    async def purgeable(self, store: str, before: datetime, after: str, limit: int) -> PurgePage:
        """See `RemotePurging.purgeable`."""
        last, found = await self._connection.read(
            "purgeable", self._limits.read_seconds, store=store, before=before.isoformat(), after=after, limit=limit
        )
        return PurgePage(last, [one for row in found if (one := Purgeable(*row)).whole or one.keys])

    async def purgeable_of(self, memory_ids: Sequence[str]) -> list[Purgeable]:
        """See `RemotePurging.purgeable_of`."""
        found = await self._connection.read("purgeable_of", self._limits.read_seconds, memory_ids=list(memory_ids))
        return [Purgeable(*row) for row in found]

    async def note_purge(self, store: str, before: datetime) -> None:
        """See `RemotePurging.note_purge`."""
        call = Call("note_purge", {"store": store, "before": before.isoformat()})
        await self._connection.write([call], self._limits.write_seconds)

    async def purge_versions(self, purged: Sequence[Purgeable]) -> int:
        """See `RemotePurging.purge_versions`."""
        rows = [{"id": one.memory_id, "keys": list(one.keys)} for one in sorted(purged)]
        (removed,) = await self._connection.write([Call("purge_versions", {"rows": rows})], self._limits.write_seconds)
        return int(removed or 0)

    async def purge_tombstones(self, memory_ids: Sequence[str]) -> int:
        """See `RemotePurging.purge_tombstones`."""
        call = Call("purge_tombstones", {"memory_ids": sorted(memory_ids)})
        (removed,) = await self._connection.write([call], self._limits.write_seconds)
        return int(removed or 0)

    async def other_stores(self, store: str) -> int:
        """See `RemotePurging.other_stores`."""
        return int(await self._connection.read("other_stores", self._limits.look_seconds, store=store))
