"""The remote store as it was at a time: keyset pages, each travelling as one value without a temporal one in it."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from dionysus_sync_mcp.adapters.neo4j.connection import Part
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.domain.recovery_plan import KnownStore, Moment, State
from dionysus_sync_mcp.engine.ports.history import Concern, Span, StateOf
from dionysus_sync_mcp.engine.ports.shared import Scope


class History(Part):
    """Implements `RemoteHistory`."""

    async def states(self, concern: Concern, span: Span, after: str, limit: int) -> list[State]:
        """See `RemoteHistory.states`."""
        scope, moment = concern.scope, concern.moment
        page: list[list[Any]] | None = await self._connection.read(
            _statement(moment),
            self._limits.read_seconds,
            first=span.first,
            end=span.end,
            after=after,
            limit=limit,
            projects=list(scope.projects),
            sessions=list(scope.sessions),
            memory_ids=list(scope.memory_ids),
            stores=list(concern.stores),
            as_of=_text(moment.as_of) if moment.as_of else None,
            windows=[_window(w) for w in moment.without],
        )
        return sorted(map(_state, page or ()))

    async def whole_states(self, wanted: Sequence[StateOf]) -> list[RemoteMemory]:
        """See `RemoteHistory.whole_states`."""
        rows = [list(one) for one in wanted]
        page = await self._connection.read("whole_states", self._limits.read_seconds, rows=rows)
        return [RemoteMemory(*row) for row in page]

    async def states_before(self, memory_ids: Sequence[str], moment: datetime) -> list[RemoteMemory]:
        """See `RemoteHistory.states_before`."""
        page = await self._connection.read(
            "states_before", self._limits.read_seconds, memory_ids=list(memory_ids), moment=_text(moment)
        )
        return [RemoteMemory(*row) for row in page]

    async def deleted_before(self, moment: datetime, stores: Sequence[str]) -> int:
        """See `RemoteHistory.deleted_before`."""
        deleted: int = await self._connection.read(
            "deleted_before", self._limits.read_seconds, moment=_text(moment), stores=list(stores)
        )
        return deleted

    async def history_begins(self) -> datetime | None:
        """See `RemoteHistory.history_begins`."""
        found: str | None = await self._connection.read("history_begins", self._limits.read_seconds)
        return _time(found)

    async def known_stores(self) -> list[KnownStore]:
        """See `RemoteHistory.known_stores`."""
        rows = await self._connection.read("known_stores", self._limits.look_seconds)
        return [
            KnownStore(store, _time(begun), _time(last), _time(purged), place)
            for store, place, begun, last, purged in rows
        ]

    async def unknown(self, scope: Scope) -> Scope:
        """See `RemoteHistory.unknown`."""
        projects, sessions, memory_ids = await self._connection.read(
            "unknown_names",
            self._limits.look_seconds,
            projects=list(scope.projects),
            sessions=list(scope.sessions),
            memory_ids=list(scope.memory_ids),
        )
        return Scope(tuple(projects), tuple(sessions), tuple(memory_ids))

    async def project_names(self) -> list[str]:
        """See `RemoteHistory.project_names`."""
        names: list[str] = await self._connection.read("project_names", self._limits.look_seconds)
        return names


def _statement(moment: Moment) -> str:
    if moment.without:
        return "states_without"
    return "states_as_of" if moment.as_of else "states_now"


def _window(window: Sequence[Any]) -> dict[str, str]:
    store, first, last, operation = window
    return {"store": store, "first": _text(first), "last": _text(last), "operation": operation}


def _state(row: Sequence[Any]) -> State:
    """What somebody wrote by hand may have no version or no hash, which then differs from every row's."""
    id_, version, hash_, deleted, by_incident, target_version, target_hash, target_deleted, *rest = row
    number, text = _numbered(version, hash_)
    if target_version is None and target_hash is None:
        return State(id_, number, text, deleted, by_incident, None, "", False)
    target = _numbered(target_version, target_hash)
    return State(id_, number, text, deleted, by_incident, *target, target_deleted, *rest)


def _numbered(version: object, content_hash: object) -> tuple[int, str]:
    return version if isinstance(version, int) else 0, content_hash if isinstance(content_hash, str) else ""


def _text(time: datetime) -> str:
    """Of offsets with seconds in them, Neo4j knows nothing."""
    return time.astimezone(UTC).isoformat()


def _time(text: str | None) -> datetime | None:
    # A time that somebody has written by hand may name its zone, in brackets behind the offset.
    return datetime.fromisoformat(text.partition("[")[0]) if text else None
