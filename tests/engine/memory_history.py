"""The in-memory stores as a plan looks at them; the remote one passes the contract suite of the real one."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from dionysus_sync_mcp.domain.destruction import Incident
from dionysus_sync_mcp.domain.drift import Here
from dionysus_sync_mcp.domain.errors import InputError
from dionysus_sync_mcp.domain.memory import Properties, RemoteMemory, Version
from dionysus_sync_mcp.domain.recovery_plan import KnownStore, Moment, State, Window
from dionysus_sync_mcp.engine.ports.history import Concern, Span, StateOf
from dionysus_sync_mcp.engine.ports.shared import Scope
from tests.engine.memory_local import MemoryLocal
from tests.engine.memory_remote import MemoryRemote, Node

MOST = 7  # so that a page of rows is no page of states
SOME_TIME = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class MemoryHistory:
    """Implements `RemoteHistory` on an in-memory remote store."""

    remote: MemoryRemote
    pushes: dict[str, tuple[datetime | None, datetime | None]] = field(default_factory=dict)  # first and last
    places: dict[str, str] = field(default_factory=dict)

    async def states(self, concern: Concern, span: Span, after: str, limit: int) -> list[State]:
        """A page."""
        found = [
            self._state(id_, node, concern.moment)
            for id_, node in sorted(self.remote.nodes.items())
            if id_ > after and _in_span(id_, span) and self._concerns(concern, id_, node)
        ]
        return found[:limit]

    async def whole_states(self, wanted: Sequence[StateOf]) -> list[RemoteMemory]:
        """From the current states, else from the history."""
        found = (self._whole(one) for one in sorted(wanted))
        return [memory for memory in found if memory is not None]

    async def states_before(self, memory_ids: Sequence[str], moment: datetime) -> list[RemoteMemory]:
        """From the history."""
        found = []
        for memory_id in sorted(memory_ids):
            versions = [
                version for _, version in self._versions(memory_id, self.remote.nodes[memory_id].memory.version)
            ]
            before = [version for version in versions if _time(version.changed_at) < moment]
            if before and before[0] is not versions[0] and before[0].operation != "delete":
                number, content_hash = _key(before[0])[:2]
                found.append(RemoteMemory(memory_id, number, content_hash, None, *before[0].properties))
        return found

    async def deleted_before(self, moment: datetime, stores: Sequence[str]) -> int:
        """By the time of the tombstone."""
        return sum(
            node.memory.deleted_at is not None
            and _time(node.memory.deleted_at) < moment
            and (not stores or node.origin in stores)
            for node in self.remote.nodes.values()
        )

    async def history_begins(self) -> datetime | None:
        """Of all versions."""
        return min((_time(version.changed_at) for version in self.remote.history.values()), default=None)

    async def known_stores(self) -> list[KnownStore]:
        """With the pushes that a test has noted; one of which it has noted nothing has pushed some time."""
        return [
            KnownStore(id_, *self.pushes.get(id_, (None, SOME_TIME)), place=self.places.get(id_))
            for id_ in self.remote.stores
        ]

    async def unknown(self, scope: Scope) -> Scope:
        """By the memories that there are, and were."""
        states = [*(n.memory.source_project for n in self.remote.nodes.values()), *self.remote.project_rows]
        states += [version.properties.source_project for version in self.remote.history.values()]
        sessions = {n.memory.session_id for n in self.remote.nodes.values()} | self.remote.session_rows.keys()
        return Scope(
            tuple(name for name in scope.projects if name not in states),
            tuple(id_ for id_ in scope.sessions if id_ not in sessions),
            tuple(id_ for id_ in scope.memory_ids if id_ not in self.remote.nodes),
        )

    async def project_names(self) -> list[str]:
        """Of the memories."""
        return sorted({n.memory.source_project for n in self.remote.nodes.values() if n.memory.source_project})

    def _concerns(self, concern: Concern, memory_id: str, node: Node) -> bool:
        scope, memory = concern.scope, node.memory
        in_scope = (
            (not scope.projects or memory.source_project in scope.projects)
            and (not scope.sessions or memory.session_id in scope.sessions)
            and (not scope.memory_ids or memory.id in scope.memory_ids)
        )
        return in_scope and (not concern.stores or not self._writers(memory_id, node).isdisjoint(concern.stores))

    def _writers(self, memory_id: str, node: Node) -> set[str]:
        return {node.origin, *(origin for key, origin in self.remote.origins.items() if key[0] == memory_id)}

    def _state(self, memory_id: str, node: Node, moment: Moment) -> State:
        memory = node.memory
        current = (memory.version, memory.content_hash, memory.deleted_at is not None)
        if moment == Moment():
            return _state(memory, hit=False, target=current, properties=memory)
        versions = self._versions(memory_id, memory.version)
        bad = [one for one in versions if any(_made(one, versions, window) for window in moment.without)]
        hit = any(_key(version) == current for _, version in bad)
        if moment.as_of is None and not hit:
            return _state(memory, hit=False, target=current, properties=memory)
        good = [one for one in versions if one not in bad]
        if moment.as_of is not None:
            good = [one for one in versions if _time(one[1].changed_at) <= moment.as_of]
        if not good:
            return State(memory_id, *current, hit, None, "", False)
        target = good[0][1]
        return _state(memory, hit=hit, target=_key(target), properties=target.properties)

    def _versions(self, memory_id: str, highest: int) -> list[tuple[str, Version]]:
        """With the store that wrote it; the newest first."""
        found = [
            (self.remote.origins[key], version)
            for key, version in self.remote.history.items()
            if key[0] == memory_id and version.number <= highest
        ]
        return sorted(found, key=lambda one: (one[1].number, _time(one[1].changed_at)), reverse=True)

    def _whole(self, wanted: StateOf) -> RemoteMemory | None:
        node = self.remote.nodes.get(wanted.memory_id)
        if node is None:
            return None
        if (node.memory.version, node.memory.content_hash) == wanted[1:]:
            return node.memory._replace(deleted_at=None)
        for deleted in (False, True):
            version = self.remote.history.get((*wanted, deleted))
            if version is not None:
                now = version.properties
                return RemoteMemory(wanted.memory_id, wanted.version, wanted.content_hash, None, *now)
        return None


@dataclass
class MemoryRows:
    """Implements `LocalRows` on an in-memory local store."""

    local: MemoryLocal

    async def as_captured(self, memories: Sequence[RemoteMemory]) -> frozenset[str]:
        """Rows have no columns here but those that were captured."""
        rows = self.local.rows or {}
        return frozenset(m.id for m in memories if m.id in rows and rows[m.id].content_hash == m.content_hash)

    async def rows(self, scope: Scope, span: Span) -> AsyncGenerator[Sequence[tuple[str, Here]], None]:
        """In pages of a few."""
        found = [
            (id_, Here(row.version, row.content_hash, row.confirmed or 0))
            for id_, row in sorted((self.local.rows or {}).items())
            if _in_span(id_, span)
            and (not scope.memory_ids or id_ in scope.memory_ids)
            and (not scope.projects or row.properties.source_project in scope.projects)
            and (not scope.sessions or row.properties.session_id in scope.sessions)
        ]
        for start in range(0, len(found), MOST):
            yield found[start : start + MOST]


@dataclass
class MemoryIncidents:
    """Implements `KnownIncidents`."""

    known: dict[str, Incident] = field(default_factory=dict)

    async def open(self) -> list[Incident]:
        """Those without a time of closing."""
        return [incident for incident in self.known.values() if incident.closed_at is None]

    async def find(self, incident_id: str) -> Incident:
        """By its id."""
        if incident_id not in self.known:
            raise InputError(f"there is no incident {incident_id}", where="before_incident")
        return self.known[incident_id]


def _made(one: tuple[str, Version], versions: Sequence[tuple[str, Version]], window: Window) -> bool:
    origin, version = one
    if origin != window.store or not window.first <= _time(version.changed_at) <= window.last:
        return False
    if window.operation != "create":
        return version.operation == window.operation
    made = [
        other
        for store, other in versions
        if store == window.store and other.operation == "create"
        if window.first <= _time(other.changed_at) <= _time(version.changed_at)
    ]
    return bool(made) and any(_time(other.changed_at) < window.first for _, other in versions)


def _state(
    memory: RemoteMemory, *, hit: bool, target: tuple[int, str, bool], properties: RemoteMemory | Properties
) -> State:
    current = (memory.version, memory.content_hash, memory.deleted_at is not None)
    rest = properties.memory_type, properties.importance, properties.session_id
    return State(memory.id, *current, hit, *target, *rest)


def _key(version: Version) -> tuple[int, str, bool]:
    return version.number, version.content_hash, version.operation == "delete"


def _in_span(memory_id: str, span: Span) -> bool:
    return memory_id >= span.first and (not span.end or memory_id < span.end)


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
