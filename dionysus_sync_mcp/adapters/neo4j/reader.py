"""The remote's reading side: keyset pages, each travelling as one value."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from dionysus_sync_mcp.adapters.neo4j.connection import Part
from dionysus_sync_mcp.adapters.neo4j.rows import lineage_of
from dionysus_sync_mcp.domain.lineage import RemoteLineage
from dionysus_sync_mcp.domain.memory import Digest, RemoteMemory
from dionysus_sync_mcp.engine.ports.recover import EVERYTHING, Holdings, RemoteCounts
from dionysus_sync_mcp.engine.ports.shared import Scope

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Reader(Part):
    """Implements `RemoteReader`."""

    async def digests(self, scope: Scope, after: str, limit: int) -> list[Digest]:
        """Ids above `after`, in order, at most `limit`; tombstones too."""
        return [Digest(*row) for row in await self._page("digests", scope, after, limit)]

    async def memories(self, scope: Scope, after: str, limit: int) -> list[RemoteMemory]:
        """Ids above `after`, in order, at most `limit`; tombstones too, with `deleted_at` set."""
        return [RemoteMemory(*row) for row in await self._page("memories", scope, after, limit)]

    async def by_id(self, memory_ids: Sequence[str]) -> list[RemoteMemory]:
        """Those that are there, sorted by id."""
        wanted = sorted(set(memory_ids))
        page = await self._connection.read("memories_by_id", self._limits.read_seconds, memory_ids=wanted)
        return [RemoteMemory(*row) for row in page]

    async def unlinked(self, references: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of which a memory is not there."""
        rows = list(references)
        found: list[dict[str, Any]] = await self._connection.read("unlinked", self._limits.look_seconds, rows=rows)
        return found

    async def sessions(self, scope: Scope = EVERYTHING) -> list[dict[str, Any]]:
        """Those that were pushed as rows, times as ISO 8601 text."""
        return await self._rows("sessions", scope)

    async def projects(self, scope: Scope = EVERYTHING) -> list[dict[str, Any]]:
        """Those that were pushed as rows, times as ISO 8601 text."""
        return await self._rows("projects", scope)

    async def references(self, scope: Scope, after: str, limit: int) -> list[dict[str, Any]]:
        """Those of so many sources, times as ISO 8601 text."""
        return await self._rows("references", scope, after=after, limit=limit)

    async def counts(self) -> RemoteCounts:
        """What the remote store holds."""
        memories, tombstones, versions = await self._connection.read("counts", self._limits.look_seconds)
        return RemoteCounts(live=memories - tombstones, tombstones=tombstones, versions=versions)

    async def holdings(self, store: str) -> Holdings:
        """What that store wrote last."""
        return Holdings(*await self._connection.read("holdings", self._limits.look_seconds, store=store))

    async def lineage(self, store: str) -> RemoteLineage | None:
        """What that store's pushes have left."""
        return lineage_of(await self._connection.read("lineage", self._limits.look_seconds, id=store))

    async def definitions(self) -> dict[str, str]:
        """By the id of the local store, newest first."""
        rows: list[tuple[str, str]] = await self._connection.read("definitions", self._limits.look_seconds)
        return dict(rows)

    async def definition_history(self, store: str) -> list[tuple[datetime, str]]:
        """In the order in which they were noted."""
        rows = await self._connection.read("definition_history", self._limits.look_seconds, store=store)
        return [(EPOCH + timedelta(seconds=seconds, microseconds=micros), text) for seconds, micros, text in rows]

    async def _rows(self, statement: str, scope: Scope, **more: object) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = await self._connection.read(
            statement, self._limits.read_seconds, **_scope(scope), **more
        )
        return rows

    async def _page(self, statement: str, scope: Scope, after: str, limit: int) -> list[list[Any]]:
        page: list[list[Any]] = await self._connection.read(
            statement,
            self._limits.read_seconds,
            after=after,
            limit=limit,
            **_scope(scope),
        )
        return page


def _scope(scope: Scope) -> dict[str, list[str]]:
    return {
        "projects": list(scope.projects),
        "sessions": list(scope.sessions),
        "memory_ids": list(scope.memory_ids),
    }
