"""Search in the remote store by words and by vector."""

from collections.abc import Sequence
from typing import Any

from dionysus_sync_mcp.adapters.neo4j.connection import Part
from dionysus_sync_mcp.domain.words import lucene_query
from dionysus_sync_mcp.engine.ports.query import Filters, FoundMemory

# A hit's content is cut there, so that a page of hits stays bounded whatever the memories hold.
CONTENT_CHARACTERS = 20_000
# Below this many candidates an exact scan takes less than about 0.2 s and finds everything.
SCAN_AT_MOST = 10_000
DEPTH_FACTOR = 4


class Search(Part):
    """Implements `WordSearch` and `VectorSearch`."""

    async def search_words(self, text: str, filters: Filters, limit: int) -> list[FoundMemory]:
        """Best first; `text` is data, never syntax. Contents are cut after 20,000 characters."""
        query = lucene_query(text)
        if not query:
            return []
        return await self._deepening("search_words", filters, limit, query=query)

    async def search_vector(self, vector: Sequence[float], filters: Filters, limit: int) -> list[FoundMemory]:
        """Nearest first. The score is (1 + cosine) / 2. Contents are cut after 20,000 characters.

        A filtered set that is small is compared one by one; otherwise the index is asked for more until enough pass.
        The index may run out before it has named every memory, so what it does not find is then scanned for.
        """
        wanted = list(vector)
        filtered = filters != Filters()
        if filtered and await self._is_small(filters):
            return await self._scan(filters, limit, wanted)
        found = await self._deepening("search_vector", filters, limit, vector=wanted)
        return await self._scan(filters, limit, wanted) if filtered and len(found) < limit else found

    async def _scan(self, filters: Filters, limit: int, vector: list[float]) -> list[FoundMemory]:
        page = await self._read("scan_vectors", filters, limit=limit, vector=vector)
        return [FoundMemory(*row) for row in page]

    async def _is_small(self, filters: Filters) -> bool:
        candidates: int = await self._connection.read(
            "count_candidates", self._limits.read_seconds, **_filters(filters), limit=SCAN_AT_MOST + 1
        )
        return candidates <= SCAN_AT_MOST

    async def _deepening(self, statement: str, filters: Filters, limit: int, **wanted: object) -> list[FoundMemory]:
        """Ask the index for ever more until enough of them pass the filters or it has no more."""
        depth = limit
        while True:
            given, page = await self._read(statement, filters, limit=limit, depth=depth, **wanted)
            if len(page) >= limit or given < depth:
                return [FoundMemory(*row) for row in page]
            depth *= DEPTH_FACTOR

    async def _read(self, statement: str, filters: Filters, **parameters: Any) -> Any:  # noqa: ANN401 - what a statement returns
        return await self._connection.read(
            statement, self._limits.read_seconds, **_filters(filters), characters=CONTENT_CHARACTERS, **parameters
        )


def _filters(filters: Filters) -> dict[str, Any]:
    return {
        "projects": sorted(set(filters.projects)),
        "sessions": sorted(set(filters.sessions)),
        "memory_types": list(filters.memory_types),
        "tags": list(filters.tags),
        "created_after": filters.created_after and filters.created_after.isoformat(),
        "created_before": filters.created_before and filters.created_before.isoformat(),
    }
