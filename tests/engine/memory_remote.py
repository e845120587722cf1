"""An in-memory remote store, for tests of the engine; it passes the contract suite of the real one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from dionysus_sync_mcp.domain.errors import LineageMoved
from dionysus_sync_mcp.domain.lineage import Lineage, RemoteLineage
from dionysus_sync_mcp.domain.memory import Digest, MemoryChange, RemoteMemory, Version
from dionysus_sync_mcp.engine.ports.embed import Text, Vector
from dionysus_sync_mcp.engine.ports.push import Move, Outcome, RemoteBatch, Replaced, RowOutcome
from dionysus_sync_mcp.engine.ports.recover import EVERYTHING, Holdings, RemoteCounts
from dionysus_sync_mcp.engine.ports.shared import Scope, StoreIdentity

APPLIED: frozenset[Outcome] = frozenset({"created", "updated", "resurrected", "conflict_won"})
NEVER_PUSHED = RemoteLineage(Lineage("", 0, ""))
FIRST_NOTED = datetime(2026, 1, 1, tzinfo=UTC)
HistoryKey = tuple[str, int, str, bool]


@dataclass
class Node:
    """A memory with what only the remote knows of it."""

    memory: RemoteMemory
    origin: str
    unembedded: bool = False
    vector: Vector | None = None
    model: str | None = None
    refused: str | None = None


@dataclass
class MemoryRemote:
    """Implements `RemoteWriter`, `RemoteReader` and `VectorStore`. `failure` is raised by the next writes while set."""

    nodes: dict[str, Node] = field(default_factory=dict)
    history: dict[HistoryKey, Version] = field(default_factory=dict)
    origins: dict[HistoryKey, str] = field(default_factory=dict)  # which local store wrote it
    stores: dict[str, RemoteLineage] = field(default_factory=dict)
    session_rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    project_rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    links: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    noted: dict[str, str] = field(default_factory=dict)
    noted_before: dict[str, list[str]] = field(default_factory=dict)
    replaced: dict[tuple[str, int, str, str], Replaced] = field(default_factory=dict)
    failure: Exception | None = None
    prepared: bool = False

    async def prepare(self) -> None:
        """Nothing to create, but noted."""
        self.prepared = True

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Apply a batch, or raise `failure` and change nothing."""
        if self.failure:
            raise self.failure
        self._move(batch.identity, batch.move)
        changes = sorted(batch.changes, key=lambda change: change.memory_id)
        outcomes = [self._write(change, batch.identity.id) for change in changes]
        for project in batch.projects:
            self._write_project(project)
        for session in batch.sessions:
            self._write_session(session)
        for reference in batch.references:
            self._write_reference(reference)
        return outcomes

    async def note_definition(self, identity: StoreIdentity, definition: str) -> None:
        """The newest one wins."""
        self.stores.setdefault(identity.id, NEVER_PUSHED)
        if self.noted.get(identity.id) != definition:
            self.noted_before.setdefault(identity.id, []).append(definition)
        self.noted = {identity.id: definition, **{i: text for i, text in self.noted.items() if i != identity.id}}

    async def digests(self, scope: Scope, after: str, limit: int) -> list[Digest]:
        """A page."""
        page = await self.memories(scope, after, limit)
        return [
            Digest(m.id, m.version, m.content_hash, m.deleted_at is not None, m.memory_type, m.importance, m.session_id)
            for m in page
        ]

    async def memories(self, scope: Scope, after: str, limit: int) -> list[RemoteMemory]:
        """A page."""
        found = [n.memory for id_, n in sorted(self.nodes.items()) if id_ > after and _in_scope(n.memory, scope)]
        return found[:limit]

    async def by_id(self, memory_ids: Sequence[str]) -> list[RemoteMemory]:
        """Those that are there."""
        return [self.nodes[id_].memory for id_ in sorted(set(memory_ids)) if id_ in self.nodes]

    async def unlinked(self, references: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of which a memory is not there."""
        return [row for row in references if not {row["source_id"], row["target_id"]} <= self.nodes.keys()]

    async def sessions(self, scope: Scope = EVERYTHING) -> list[dict[str, Any]]:
        """Rows of the scope, and of its memories."""
        used = {node.memory.session_id for node in self.nodes.values() if _in_scope(node.memory, scope)}
        return [
            row
            for _, row in sorted(self.session_rows.items())
            if row["id"] in used or _holds(scope, row["project_id"], row["id"])
        ]

    async def projects(self, scope: Scope = EVERYTHING) -> list[dict[str, Any]]:
        """Rows of the scope, and of its memories."""
        used = {node.memory.source_project for node in self.nodes.values() if _in_scope(node.memory, scope)}
        return [
            row for _, row in sorted(self.project_rows.items()) if row["id"] in used or _holds(scope, row["id"], None)
        ]

    async def references(self, scope: Scope, after: str, limit: int) -> list[dict[str, Any]]:
        """Of so many sources, without those that were removed."""
        live = [row for _, row in sorted(self.links.items()) if not row["deleted"]]
        sources = {row["source_id"] for row in live if _in_scope(self.nodes[row["source_id"]].memory, scope)}
        page = sorted(source for source in sources if source > after)[:limit]
        return [row for row in live if row["source_id"] in page]

    async def counts(self) -> RemoteCounts:
        """Of the nodes and the history."""
        tombstones = sum(node.memory.deleted_at is not None for node in self.nodes.values())
        return RemoteCounts(len(self.nodes) - tombstones, tombstones, len(self.history))

    async def holdings(self, store: str) -> Holdings:
        """Of the nodes that the store wrote last."""
        own = [node.memory.deleted_at is not None for node in self.nodes.values() if node.origin == store]
        return Holdings(store in self.stores, len(own) - sum(own), sum(own))

    async def lineage(self, store: str) -> RemoteLineage | None:
        """What its pushes have left."""
        there = self.stores.get(store, NEVER_PUSHED)
        return there if there.last.lineage else None

    async def definitions(self) -> dict[str, str]:
        """The newest first."""
        return dict(self.noted)

    async def definition_history(self, store: str) -> list[tuple[datetime, str]]:
        """An hour apart."""
        return [(FIRST_NOTED + timedelta(hours=n), text) for n, text in enumerate(self.noted_before.get(store, []))]

    async def texts_without_vector(self, limit: int) -> list[Text]:
        """Those that wait."""
        waiting = [Text(id_, n.memory.content or "") for id_, n in self.nodes.items() if n.unembedded]
        return waiting[:limit]

    async def store_vectors(self, vectors: Sequence[Vector], model: str) -> int:
        """Those whose text is still the same."""
        current = [vector for vector in vectors if self._is_current(vector.memory_id, vector.text_hash)]
        for vector in current:
            node = self.nodes[vector.memory_id]
            node.vector, node.model, node.unembedded, node.refused = vector, model, False, None
        return len(current)

    async def refuse_text(self, memory_id: str, text_hash: str, reason: str) -> None:
        """Take it off the list."""
        if self._is_current(memory_id, text_hash):
            self.nodes[memory_id].refused = reason
            self.nodes[memory_id].unembedded = False

    async def count_without_vector(self) -> int:
        """Those that wait."""
        return sum(node.unembedded for node in self.nodes.values())

    def _move(self, here: StoreIdentity, move: Move) -> None:
        there = self.stores.get(here.id, NEVER_PUSHED)
        if there.last.lineage not in (*move.accepted, move.to):
            raise LineageMoved(there=there if there.last.lineage else None)
        given_up = {there.last.epoch} - {here.epoch, ""}
        last = Lineage(here.epoch, here.generation + 1, move.to)
        self.stores[here.id] = RemoteLineage(last, there.past_epochs | given_up, move.last_entry)

    def _is_current(self, memory_id: str, text_hash: str) -> bool:
        node = self.nodes.get(memory_id)
        if node is None or node.memory.deleted_at is not None or node.memory.content is None:
            return False
        return hashlib.sha256(node.memory.content.encode()).hexdigest() == text_hash

    def _write(self, change: MemoryChange, store: str) -> RowOutcome:
        old = self.nodes.get(change.memory_id)
        outcome = decide(old, change, store)
        outlived = outcome in ("stale", "conflict_lost") and self._outlived(old, change, store)
        for version in (*change.older, change.newest):
            key = (change.memory_id, version.number, version.content_hash, version.operation == "delete")
            self.history.setdefault(key, version)
            self.origins.setdefault(key, store)
        if old and outcome == "conflict_won":
            won = Replaced((old.memory.content or "")[:100], old.memory.version, change.newest.number)
            self.replaced[change.memory_id, change.newest.number, change.newest.content_hash, store] = won
        if outcome in APPLIED:
            self.nodes[change.memory_id] = _applied(old, change, store)
        keys = [(change.memory_id, v.number, v.content_hash, store) for v in (*change.older, change.newest)]
        replaced = tuple(self.replaced[key] for key in keys if key in self.replaced)
        return RowOutcome(change.memory_id, outcome, self.nodes[change.memory_id].memory.version, replaced, outlived)

    def _outlived(self, old: Node | None, change: MemoryChange, store: str) -> bool:
        if old is None or old.origin != store or old.memory.deleted_at or change.newest.operation != "delete":
            return False
        held = self.history.get((change.memory_id, old.memory.version, old.memory.content_hash, False))
        return held is not None and _time(held.changed_at) < _time(change.newest.changed_at)

    def _write_project(self, row: dict[str, Any]) -> None:
        old = self.project_rows.get(row["id"], {})
        new = {"changed_at": row["created_at"], **row}
        if not old or _time(new["changed_at"]) >= _time(old["changed_at"]):
            self.project_rows[row["id"]] = new

    def _write_session(self, row: dict[str, Any]) -> None:
        old = self.session_rows.get(row["id"])
        if old is None:
            self.session_rows[row["id"]] = dict(row)
            return
        newer = _time(row["last_activity_at"]) >= _time(old["last_activity_at"])
        ended = max(filter(None, (old["ended_at"], row["ended_at"])), key=_time, default=None)
        summary = row["summary"] or old["summary"]
        latest = {**row, "started_at": old["started_at"], "summary": summary} if newer else old
        self.session_rows[row["id"]] = {**latest, "ended_at": ended}

    def _write_reference(self, row: dict[str, Any]) -> None:
        key = (row["source_id"], row["target_id"], row["context"])
        old = self.links.get(key)
        new = {"deleted": False, "changed_at": row["created_at"], **row}
        if {row["source_id"], row["target_id"]} <= self.nodes.keys() and _replaces(old, new):
            self.links[key] = new


def decide(old: Node | None, change: MemoryChange, store: str) -> Outcome:
    """What becomes of a change: DESIGN.md section 7, "Conflict"."""
    new, is_delete = change.newest, change.newest.operation == "delete"
    if old is None:
        return "created"
    gone = old.memory.deleted_at is not None
    if new.number < old.memory.version:
        return "stale"
    if new.number == old.memory.version:
        judged = _decide_equal(old.memory, new)
        return _without_conflict(judged, gone) if old.origin == store else judged
    if gone and not is_delete:
        return "resurrected"
    if gone or old.origin == store or old.memory.version <= (change.base_version or 0):
        return "updated"
    return "conflict_lost" if is_delete else "conflict_won"


def _decide_equal(old: RemoteMemory, new: Version) -> Outcome:
    gone, is_delete = old.deleted_at is not None, new.operation == "delete"
    if gone == is_delete and old.content_hash == new.content_hash:
        return "unchanged"
    if gone and not is_delete:
        return "stale"
    if is_delete and not gone:
        return "conflict_lost"
    ours = (_time(new.properties.updated_at), new.content_hash)
    return "conflict_won" if ours > (_time(old.updated_at), old.content_hash) else "conflict_lost"


def _without_conflict(judged: Outcome, gone: bool) -> Outcome:
    """Of a store that meets what it wrote itself."""
    if judged == "conflict_won":
        return "updated"
    if judged == "conflict_lost":
        return "unchanged" if gone else "stale"
    return judged


def _applied(old: Node | None, change: MemoryChange, store: str) -> Node:
    new, properties = change.newest, change.newest.properties
    deleted_at = new.changed_at if new.operation == "delete" else None
    memory = RemoteMemory(change.memory_id, new.number, new.content_hash, deleted_at, *properties)
    same_text = old is not None and not old.memory.deleted_at and old.memory.content == properties.content
    if old is not None and same_text and deleted_at is None:
        return Node(memory, store, old.unembedded, old.vector, old.model, old.refused)
    return Node(memory, store, unembedded=deleted_at is None and properties.content is not None)


def _replaces(old: dict[str, Any] | None, new: dict[str, Any]) -> bool:
    if old is None or _time(new["changed_at"]) > _time(old["changed_at"]):
        return True
    return _time(new["changed_at"]) == _time(old["changed_at"]) and (new["deleted"] or not old["deleted"])


def _in_scope(memory: RemoteMemory, scope: Scope) -> bool:
    return (
        (not scope.projects or memory.source_project in scope.projects)
        and (not scope.sessions or memory.session_id in scope.sessions)
        and (not scope.memory_ids or memory.id in scope.memory_ids)
    )


def _holds(scope: Scope, project: str | None, session: str | None) -> bool:
    return (
        not scope.memory_ids
        and (not scope.projects or project in scope.projects)
        and (not scope.sessions or session in scope.sessions)
    )


def _time(text: str | None) -> datetime:
    return datetime.fromisoformat(text or "0001-01-01T00:00:00Z")
