"""The in-memory local store's side of a drill, for tests of the engine."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from dionysus_sync_mcp.domain.memory import Properties, RemoteMemory
from dionysus_sync_mcp.engine.ports.drill import Shown
from dionysus_sync_mcp.engine.ports.shared import SyncEvent
from tests.engine.memory_local import MemoryLocal, Row


@dataclass
class MemoryDrilling:
    """Implements `LocalDrilling`; `standing` counts the scratch tables that are there."""

    local: MemoryLocal
    right: bool = True
    drilling: bool = False
    standing: int = 0
    left_behind: int = 0
    largest_page: int = 0
    definitions: list[str] = field(default_factory=list)
    refusing: set[str] = field(default_factory=set)
    refusal: str = "the table refuses it"
    faults: Sequence[str] = ()
    ages_: tuple[float | None, float | None] = (None, None)
    recorded: list[tuple[str, str, dict[str, Any], SyncEvent | None]] = field(default_factory=list)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[bool]:
        """Until it is left."""
        was, self.drilling = self.drilling, True
        try:
            yield not was
        finally:
            self.drilling = was

    async def may_drill(self) -> bool:
        """As set."""
        return self.right

    async def remove_left_behind(self) -> int:
        """All of them."""
        assert self.drilling
        removed, self.left_behind = self.left_behind, 0
        return removed

    @asynccontextmanager
    async def scratch(self, definition: str) -> AsyncIterator["MemoryScratch"]:
        """A dictionary."""
        self.definitions.append(definition)
        self.standing += 1
        try:
            yield MemoryScratch(self, faults=self.faults)
        finally:
            self.standing -= 1

    async def show(self, memory_ids: Sequence[str]) -> list[Shown]:
        """Of the rows."""
        rows = self.local.table
        return [Shown(i, rows[i].properties.source_project, rows[i].properties.content) for i in memory_ids]

    async def ages(self) -> tuple[float | None, float | None]:
        """As set."""
        return self.ages_

    async def record(self, drill_id: str, result: str, report: dict[str, Any], event: SyncEvent | None) -> None:
        """Keep it."""
        self.recorded.append((drill_id, result, report, event))


@dataclass
class MemoryScratch:
    """Implements `Scratch`."""

    drilling: MemoryDrilling
    rows: dict[str, Row] = field(default_factory=dict)
    faults: Sequence[str] = ()

    async def restore(self, memories: Sequence[RemoteMemory]) -> list[tuple[str, str]]:
        """Those that are here."""
        assert all(memory.deleted_at is None for memory in memories)
        self.drilling.largest_page = max(self.drilling.largest_page, len(memories))
        taken = [m for m in memories if m.id in self.drilling.local.table]
        self.rows |= {m.id: Row(Properties(*m[4:])) for m in taken if m.id not in self.drilling.refusing}
        return [(m.id, self.drilling.refusal) for m in taken if m.id in self.drilling.refusing]

    async def clear(self, memory_ids: Sequence[str]) -> None:
        """Take them out."""
        self.rows = {i: row for i, row in self.rows.items() if i not in memory_ids}

    async def hashes(self, memory_ids: Sequence[str]) -> dict[str, str]:
        """Of the rows."""
        return {i: self.rows[i].content_hash for i in memory_ids if i in self.rows}
