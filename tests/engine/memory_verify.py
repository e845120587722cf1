"""The in-memory stores' sides of a comparison and of its repair, for tests of the engine."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from dionysus_sync_mcp.domain.drift import Here, There
from dionysus_sync_mcp.domain.memory import MemoryChange, Properties, RemoteMemory, Version
from dionysus_sync_mcp.engine.ports.push import QueueEntry
from dionysus_sync_mcp.engine.ports.shared import SyncEvent
from dionysus_sync_mcp.engine.ports.verify import Due, QueueLook, RemoteTallies, Seen, Tally
from tests.engine.memory_local import START, MemoryLocal, Row
from tests.engine.memory_remote import MemoryRemote, Node


@dataclass
class MemoryVerifying:
    """Implements `LocalComparison` and `LocalMending`. `meanwhile` runs before each look, as writers would."""

    local: MemoryLocal
    due_: Due | None = None
    ages_: tuple[float | None, float | None] = (None, None)
    oldest_at: datetime | None = None
    recorded: list[tuple[str, str, dict[str, Any], SyncEvent | None]] = field(default_factory=list)
    epochs: int = 0
    meanwhile: Callable[[], Awaitable[None]] | None = None

    async def obstacle(self) -> str | None:
        """The table is gone."""
        return None if self.local.rows is not None else "the table memories is missing"

    @asynccontextmanager
    async def snapshot(self, most_waiting: int) -> "AsyncIterator[MemorySnapshot]":
        """A copy."""
        waiting = self._waiting()
        known = waiting if len(waiting) <= most_waiting else None
        yield MemorySnapshot(dict(self.local.table), QueueLook(known, oldest_at=self.oldest_at))

    async def look(self, memory_ids: Sequence[str]) -> tuple[dict[str, Here], dict[str, int], frozenset[str]]:
        """Now."""
        if self.meanwhile:
            await self.meanwhile()
        rows = {i: self.local.table[i] for i in memory_ids if i in self.local.table}
        return {i: _here(row) for i, row in rows.items()}, *(await self.marks(memory_ids))

    async def marks(self, memory_ids: Sequence[str]) -> tuple[dict[str, int], frozenset[str]]:
        """Confirmed deletes, and what waits."""
        deletions = {i: v for i, v in self.local.deletions.items() if i in memory_ids}
        return deletions, self._waiting() & set(memory_ids)

    async def hashes(self, memories: Sequence[RemoteMemory]) -> dict[str, str]:
        """Of their properties."""
        return {m.id: Row(Properties(*m[4:])).content_hash for m in memories}

    async def due(self) -> Due | None:
        """As set."""
        return self.due_

    async def ages(self) -> tuple[float | None, float | None]:
        """As set."""
        return self.ages_

    async def last_clean(self) -> datetime | None:
        """As many hours as there were comparisons before it."""
        numbers = [n for n, (kind, result, *_) in enumerate(self.recorded) if kind != "quick" and result == "clean"]
        return START + timedelta(hours=numbers[-1]) if numbers else None

    async def settle_due(self, due: Due) -> None:
        """Unless another one came up."""
        self.due_ = None if self.due_ == due else self.due_

    async def record(self, kind: str, result: str, report: dict[str, Any], event: SyncEvent | None) -> None:
        """Keep it."""
        self.recorded.append((kind, result, report, event))

    async def send(self, seen: Sequence[Seen]) -> int:
        """Queue."""
        return self._send(self._unchanged(seen))

    async def send_above(self, seen: Sequence[Seen]) -> int:
        """Number anew and queue."""
        ids = self._unchanged(seen)
        there = {one.memory_id: one.facts.there.version for one in seen if one.facts.there}
        for i in ids:
            row = self.local.table[i]
            if i in there and row.version <= there[i]:
                self.local.table[i] = replace(row, version=there[i] + 1, confirmed=there[i], status="pending")
        return self._send(ids)

    async def delete_again(self, memories: Sequence[RemoteMemory]) -> int:
        """Queue deletes."""
        for m in memories:
            version = Version(m.version + 1, "delete", m.content_hash, START.isoformat(), Properties(*m[4:]))
            self.local.enqueue(QueueEntry(0, "memory", "delete", START, m.id, m.version, version))
        return len(memories)

    async def states(self, seen: Sequence[Seen]) -> list[MemoryChange]:
        """The rows."""
        rows = {one.memory_id: self.local.table[one.memory_id] for one in seen if one.memory_id in self.local.table}
        return [MemoryChange(i, row.confirmed, _state(row)) for i, row in rows.items()]

    async def pull(self, seen: Sequence[Seen], memories: Sequence[RemoteMemory], kept: Sequence[MemoryChange]) -> int:
        """Overwrite, and drop what waits."""
        ids = set(self._unchanged(seen)) & {change.memory_id for change in kept}
        pulled = [m for m in memories if m.id in ids]
        for m in pulled:
            self.local.table[m.id] = Row(Properties(*m[4:]), m.version, "synced", m.version)
            for seq in [s for s, entry in self.local.entries.items() if entry.memory_id == m.id]:
                del self.local.entries[seq]
        return len(pulled)

    async def begin_epoch(self) -> None:
        """Count them."""
        self.epochs += 1
        self.local.identity_ = replace(self.local.identity_, epoch=f"epoch {self.epochs}")

    async def send_all(self, after: str, limit: int) -> tuple[str | None, int]:
        """A page."""
        ids = [i for i in sorted(self.local.table) if i > after][:limit]
        queued = self._send([i for i in ids if i not in self._waiting()])
        return (ids[-1] if ids else None), queued

    def _waiting(self) -> frozenset[str]:
        return frozenset(e.memory_id for e in self.local.entries.values() if e.memory_id)

    def _unchanged(self, seen: Sequence[Seen]) -> list[str]:
        rows = self.local.table
        return [one.memory_id for one in seen if one.memory_id in rows and _here(rows[one.memory_id]) == one.facts.here]

    def _send(self, memory_ids: Sequence[str]) -> int:
        for memory_id in memory_ids:
            self.local.capture(memory_id, "update")
        return len(memory_ids)


@dataclass
class MemorySnapshot:
    """Implements `LocalSnapshot`."""

    table: dict[str, Row]
    queue: QueueLook

    async def rows(self) -> AsyncIterator[Sequence[tuple[str, Here]]]:
        """Pages of two."""
        ids = sorted(self.table)
        for start in range(0, len(ids), 2):
            yield [(i, _here(self.table[i])) for i in ids[start : start + 2]]

    async def tallies(self) -> dict[str | None, Tally]:
        """One project."""
        versions = [row.version for i, row in self.table.items() if i not in (self.queue.waiting or ())]
        return {"p": Tally(len(versions), sum(versions))} if versions else {}


@dataclass
class MemoryComparing:
    """Implements `RemoteComparison` and `RemoteMending`; `calls` names what was asked for."""

    remote: MemoryRemote
    calls: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    unversioned: set[str] = field(default_factory=set)
    lacking_: list[str] = field(default_factory=list)

    async def standing(self, after: str, limit: int) -> list[tuple[str, There]]:
        """Pages of three at most."""
        self.calls.append("standing")
        ids = [i for i in sorted(self.remote.nodes) if i > after]
        return [(i, self._there(i)) for i in ids[: min(limit, 3)]]

    async def standing_of(self, memory_ids: Sequence[str]) -> dict[str, There]:
        """Those that are there."""
        return {i: self._there(i) for i in memory_ids if i in self.remote.nodes}

    async def tallies(self, without: Sequence[str], store: str) -> RemoteTallies:
        """By project."""
        self.calls.append("tallies")
        live = [n for i, n in self.remote.nodes.items() if i not in without and not n.memory.deleted_at]
        return RemoteTallies(_tally([n for n in live if n.origin == store]), _tally(live))

    async def lacking(self) -> list[str]:
        """As set."""
        return self.lacking_

    async def duplicated(self, limit: int) -> list[str]:
        """As set."""
        return self.duplicates[:limit]

    async def deep_page(self, after: str, limit: int) -> list[tuple[RemoteMemory, There, bool]]:
        """A page."""
        return await self.deep_of([i for i in sorted(self.remote.nodes) if i > after][:limit])

    async def deep_of(self, memory_ids: Sequence[str]) -> list[tuple[RemoteMemory, There, bool]]:
        """Those that are there."""
        nodes = self.remote.nodes
        return [(nodes[i].memory, self._there(i), i not in self.unversioned) for i in memory_ids if i in nodes]

    async def keep_states(self, changes: Sequence[MemoryChange], store: str) -> frozenset[str]:
        """Note whose."""
        there = [c for c in changes if c.memory_id in self.remote.nodes]
        self.kept += [f"{c.memory_id} {c.newest.properties.content} of {store}" for c in there]
        return frozenset(c.memory_id for c in there)

    async def keep_found(self, seen: Sequence[Seen]) -> int:
        """Note whose."""
        self.kept += [f"{one.memory_id} as found" for one in seen]
        self.unversioned -= {one.memory_id for one in seen}
        return len(seen)

    async def merge_duplicates(self, memory_ids: Sequence[str]) -> int:
        """They are one."""
        self.duplicates = [i for i in self.duplicates if i not in memory_ids]
        return len(memory_ids)

    def _there(self, memory_id: str) -> There:
        node = self.remote.nodes[memory_id]
        memory = node.memory
        return There(memory.version, memory.content_hash, memory.deleted_at is not None, node.origin)


def _tally(nodes: Sequence[Node]) -> dict[str | None, Tally]:
    versions: dict[str | None, list[int]] = {}
    for node in nodes:
        versions.setdefault(node.memory.source_project, []).append(node.memory.version)
    return {project: Tally(len(all_), sum(all_)) for project, all_ in versions.items()}


def _here(row: Row) -> Here:
    return Here(row.version, row.content_hash, row.confirmed or 0)


def _state(row: Row) -> Version:
    return Version(row.version, "update", row.content_hash, START.isoformat(), row.properties)
