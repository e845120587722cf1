"""What the contract suite of the remote store needs: a store to act on, and a look at all that it holds."""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from neo4j import AsyncDriver

from dionysus_sync_mcp.domain.memory import MemoryChange, Operation, Properties, RemoteMemory, Version
from dionysus_sync_mcp.engine.ports.embed import VectorStore
from dionysus_sync_mcp.engine.ports.push import RemoteBatch, RemoteWriter, RowOutcome
from dionysus_sync_mcp.engine.ports.recover import RemoteReader
from dionysus_sync_mcp.engine.ports.shared import Scope, StoreIdentity
from tests.engine.memory_remote import MemoryRemote

LAPTOP = StoreIdentity("laptop", "1")
DESKTOP = StoreIdentity("desktop", "1")
SESSION = "6f1f7d1c-2f6b-4f8e-9f60-3a4f6c0d1e2f"
EVERYTHING = Scope()


class Remote(RemoteWriter, RemoteReader, VectorStore, Protocol):
    """The three ports together."""


class Held(NamedTuple):
    """All that a remote holds of one memory, apart from the vector."""

    memory: RemoteMemory
    origin: str
    unembedded: bool
    session: str | None
    project: str | None
    history: frozenset[tuple[int, str, str, str | None]]


class Bench(Protocol):
    """A remote store under test."""

    @property
    def remote(self) -> Remote: ...

    async def held(self) -> dict[str, Held]: ...

    async def followed(self) -> set[tuple[str, str]]: ...

    async def referenced(self) -> dict[tuple[str, str, str], bool]:
        """Source, target and context of each reference, and whether it was removed."""
        ...


@dataclass
class TwinBench:
    """The in-memory store."""

    remote: MemoryRemote

    async def held(self) -> dict[str, Held]:
        return {id_: self._held(id_) for id_ in self.remote.nodes}

    async def followed(self) -> set[tuple[str, str]]:
        rows = sorted(self.remote.session_rows.values(), key=lambda row: row["started_at"])
        return {
            (first["id"], second["id"])
            for index, second in enumerate(rows)
            for first in [row for row in rows[:index] if row["project_id"] == second["project_id"]][-1:]
        }

    async def referenced(self) -> dict[tuple[str, str, str], bool]:
        return {key: row["deleted"] for key, row in self.remote.links.items()}

    def _held(self, memory_id: str) -> Held:
        node = self.remote.nodes[memory_id]
        history = frozenset(
            (number, hash_, version.operation, version.properties.content)
            for (id_, number, hash_, _), version in self.remote.history.items()
            if id_ == memory_id
        )
        memory = node.memory
        return Held(memory, node.origin, node.unembedded, memory.session_id, memory.source_project, history)


@dataclass
class Neo4jBench:
    """The real store, looked at with another driver."""

    remote: Remote
    driver: AsyncDriver

    async def held(self) -> dict[str, Held]:
        page = await self.remote.memories(EVERYTHING, "", 10_000)
        rows = await self._rows(
            "MATCH (m:Memory) RETURN m.id, m.origin, m:Unembedded, [(m)-[:BELONGS_TO]->(s) | s.id], "
            "[(m)-[:TAGGED_WITH]->(p) | p.id], "
            "[(m)-[:HAS_VERSION]->(v) | [v.sync_version, v.content_hash, v.operation, v.content]]"
        )
        rest = {row[0]: row[1:] for row in rows}
        return {memory.id: _held(memory, *rest[memory.id]) for memory in page}

    async def followed(self) -> set[tuple[str, str]]:
        return {(a, b) for a, b in await self._rows("MATCH (a)-[:FOLLOWED_BY]->(b) RETURN a.id, b.id")}

    async def referenced(self) -> dict[tuple[str, str, str], bool]:
        rows = await self._rows("MATCH (a)-[r:REFERENCES]->(b) RETURN a.id, b.id, r.context, r.deleted")
        return {(a, b, context): deleted for a, b, context, deleted in rows}

    async def _rows(self, query: str) -> list[list[Any]]:
        async with self.driver.session(database="neo4j") as session:
            result = await session.run(query)
            return await result.values()


def _held(
    memory: RemoteMemory, origin: str, unembedded: bool, sessions: list[str], projects: list[str], history: list[Any]
) -> Held:
    assert len(sessions) <= 1, "a memory belongs to one session"
    assert len(projects) <= 1, "a memory is tagged with one project"
    versions = frozenset(map(tuple, history))
    assert len(versions) == len(history), "a version stands once in the history"
    session, project = next(iter(sessions), None), next(iter(projects), None)
    return Held(memory, origin, unembedded, session, project, versions)


def minute(number: int) -> str:
    """A time, in the form that Neo4j gives back."""
    return f"2026-01-02T{number // 60:02}:{number % 60:02}:05.678901Z"


def version(
    number: int,
    content: str | None = "The build needs Java 21.",
    *,
    operation: Operation = "update",
    at: int | None = None,
    project: str | None = "atlas",
    session: str | None = SESSION,
    importance: float = 0.5,
) -> Version:
    """A version whose hash is that of its properties, changed at minute `at` (by default its number)."""
    changed_at = minute(number if at is None else at)
    properties = Properties(
        content, "semantic", importance, project, session, ["build", "java"], minute(0), changed_at, '{"mood": "good"}'
    )
    return Version(number, operation, sha256(repr(properties)), changed_at, properties)


def change(newest: Version, *older: Version, id_: str = "m1", base: int | None = None) -> MemoryChange:
    """A change of the memory `m1`, if not of another."""
    return MemoryChange(id_, base, newest, older)


async def push(bench: Bench, *changes: MemoryChange, by: StoreIdentity = LAPTOP) -> list[RowOutcome]:
    """Write the changes as one batch."""
    return await bench.remote.write(RemoteBatch(by, changes))


async def outcome_of(bench: Bench, wanted: MemoryChange, by: StoreIdentity = LAPTOP) -> str:
    """Write one change; what became of it."""
    (outcome,) = await push(bench, wanted, by=by)
    return outcome.outcome


def sha256(text: str) -> str:
    """Hex."""
    return hashlib.sha256(text.encode()).hexdigest()
