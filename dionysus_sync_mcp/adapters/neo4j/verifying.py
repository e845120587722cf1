"""The remote's side of a comparison of both stores, and of its repair."""

from collections.abc import Iterable, Sequence
from typing import Any

from dionysus_sync_mcp.adapters.neo4j.connection import Call, Part
from dionysus_sync_mcp.adapters.neo4j.rows import HASH_CHARACTERS, memory_row
from dionysus_sync_mcp.adapters.neo4j.writer import SCHEMA
from dionysus_sync_mcp.domain.drift import There
from dionysus_sync_mcp.domain.memory import MemoryChange, RemoteMemory
from dionysus_sync_mcp.engine.ports.verify import RemoteTallies, Seen, Tally

CONSTRAINT = "memory_id_unique"


class Verifying(Part):
    """Implements `RemoteComparison` and `RemoteMending`."""

    async def standing(self, after: str, limit: int) -> list[tuple[str, There]]:
        """See `RemoteComparison.standing`; a page travels as one value."""
        return _standing(await self._connection.read("standing", self._limits.read_seconds, after=after, limit=limit))

    async def standing_of(self, memory_ids: Sequence[str]) -> dict[str, There]:
        """See `RemoteComparison.standing_of`; of several nodes of one id, the highest version."""
        page = await self._connection.read("standing_of", self._limits.read_seconds, memory_ids=list(memory_ids))
        return dict(sorted(_standing(page), key=lambda found: found[1].version))

    async def tallies(self, without: Sequence[str], store: str) -> RemoteTallies:
        """See `RemoteComparison.tallies`."""
        rows = await self._connection.read("tallies", self._limits.read_seconds, without=list(without), store=store)
        own = [(project, memories, versions) for project, is_own, memories, versions in rows if is_own]
        return RemoteTallies(_added(own), _added((project, *numbers) for project, _, *numbers in rows))

    async def lacking(self) -> list[str]:
        """See `RemoteComparison.lacking`."""
        present = {name for name, *_ in await self._connection.read("schema_present", self._limits.read_seconds)}
        return [] if present.isdisjoint(SCHEMA) else [name for name in SCHEMA if name not in present]

    async def duplicated(self, limit: int) -> list[str]:
        """See `RemoteComparison.duplicated`."""
        indexes = await self._connection.read("schema_present", self._limits.read_seconds)
        if CONSTRAINT in {name for name, *_ in indexes}:
            return []
        ids: list[str] = await self._connection.read("duplicated", self._limits.read_seconds, limit=limit)
        return ids

    async def deep_page(self, after: str, limit: int) -> list[tuple[RemoteMemory, There, bool]]:
        """See `RemoteComparison.deep_page`."""
        return _deep(await self._connection.read("deep_page", self._limits.read_seconds, after=after, limit=limit))

    async def deep_of(self, memory_ids: Sequence[str]) -> list[tuple[RemoteMemory, There, bool]]:
        """See `RemoteComparison.deep_of`."""
        return _deep(await self._connection.read("deep_of", self._limits.read_seconds, memory_ids=list(memory_ids)))

    async def keep_states(self, changes: Sequence[MemoryChange], store: str) -> frozenset[str]:
        """See `RemoteMending.keep_states`."""
        rows = [memory_row(change, store) for change in sorted(changes, key=lambda change: change.memory_id)]
        (kept,) = await self._connection.write([Call("keep_states", {"rows": rows})], self._limits.write_seconds)
        return frozenset(kept or ())

    async def keep_found(self, seen: Sequence[Seen]) -> int:
        """See `RemoteMending.keep_found`."""
        rows = [_found(one) for one in sorted(seen, key=lambda one: one.memory_id) if one.facts.there]
        (stood,) = await self._connection.write([Call("keep_found", {"rows": rows})], self._limits.write_seconds)
        return int(stood or 0)

    async def merge_duplicates(self, memory_ids: Sequence[str]) -> int:
        """See `RemoteMending.merge_duplicates`."""
        parameters = {"memory_ids": sorted(memory_ids)}
        (merged,) = await self._connection.write([Call("merge_duplicates", parameters)], self._limits.write_seconds)
        return int(merged or 0)


def _added(rows: Iterable[Sequence[Any]]) -> dict[str | None, Tally]:
    found: dict[str | None, Tally] = {}
    for project, memories, versions in rows:
        before = found.get(project, Tally(0, 0))
        found[project] = Tally(before.memories + memories, before.versions + (versions or 0))
    return {project: tally for project, tally in found.items() if tally.memories}


def _standing(page: Iterable[Sequence[Any]]) -> list[tuple[str, There]]:
    """What somebody wrote by hand may have no version or no hash, which then differs from every row's."""
    return [(id_, There(*_numbered(version, hash_), deleted, origin)) for id_, version, hash_, deleted, origin in page]


def _numbered(version: object, content_hash: object) -> tuple[int, str]:
    return version if isinstance(version, int) else 0, content_hash if isinstance(content_hash, str) else ""


def _deep(page: Iterable[Sequence[Any]]) -> list[tuple[RemoteMemory, There, bool]]:
    found = []
    for values, origin, versioned in page:
        memory = RemoteMemory(*values)
        there = There(*_numbered(memory.version, memory.content_hash), memory.deleted_at is not None, origin)
        found.append((memory, there, versioned))
    return found


def _found(seen: Seen) -> dict[str, Any]:
    """What the memory holds as a version. One whose content is not what its hash says has a key of its own."""
    there = seen.facts.there
    if there is None:
        raise ValueError(f"memory {seen.memory_id} is not in the remote store")
    corrupt = seen.actual is not None and seen.actual != there.content_hash
    kind = f":corrupt:{(seen.actual or '')[:HASH_CHARACTERS]}" if corrupt else ":deleted" if there.deleted else ""
    return {
        "id": seen.memory_id,
        "version": there.version,
        "content_hash": there.content_hash,
        "key": f"{seen.memory_id}:{there.version}:{there.content_hash[:HASH_CHARACTERS]}{kind}",
        "corrupt": corrupt,
    }
