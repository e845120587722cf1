"""What the status and the search read of the local store, and the rows of its sessions."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from dionysus_sync_mcp.adapters.postgres.database import Database
from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.domain.backoff import MOST_REFUSALS
from dionysus_sync_mcp.domain.errors import SchemaMismatch
from dionysus_sync_mcp.domain.roles import RoleInUse
from dionysus_sync_mcp.engine.ports.query import Filters, FoundMemory
from dionysus_sync_mcp.engine.ports.sessions import SessionRow
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity
from dionysus_sync_mcp.engine.ports.status import Activity, LastCheck, LocalState, PastAlert

if TYPE_CHECKING:
    import asyncpg

NOT_INITIALISED = LocalState(
    table_present=False,
    capture_installed=False,
    initialised=False,
    memories=0,
    queued=0,
    parked=0,
    oldest_queued_at=None,
    last_success_at=None,
    open_conflicts=0,
    last_parked_error=None,
    identity=None,
)
MOST_ALERTS = 5


class PostgresReading:
    """Implements `LocalStatus`, `LocalRights`, `WordSearch` and `SessionStore`."""

    def __init__(self, database: Database, installer: Installer) -> None:
        self._database = database
        self._installer = installer

    async def state(self) -> LocalState:
        """See `LocalStatus.state`."""
        if not await self._installer.initialised():
            return NOT_INITIALISED
        await self._installer.refuse_other_bookkeeping()
        sql = self._database.sql
        captured = await self._installer.capture_installed()
        async with self._database.connection() as connection:
            state = await connection.fetchrow(sql["local_state"], MOST_REFUSALS)
            present = state is not None and state["table_present"]
            memories = await connection.fetchval(sql["count_memories"]) if present else 0
        return _state(state, memories, captured) if state is not None else NOT_INITIALISED

    async def identity(self) -> StoreIdentity | None:
        """See `LocalStatus.identity`."""
        try:
            return await self._installer.identity()
        except SchemaMismatch:
            return None

    async def has_entry(self, entry_id: str) -> bool:
        """See `LocalStatus.has_entry`."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(self._database.sql["has_entry"], entry_id))

    async def activity(self, since: datetime) -> Activity:
        """See `LocalStatus.activity`."""
        sql = self._database.sql
        async with self._database.connection() as connection:
            counts = await connection.fetchrow(sql["local_activity"], since)
            checks = {r["open"]: _check(r) for r in await connection.fetch(sql["last_checks"])}
            alerts = await connection.fetch(sql["recent_alerts"], MOST_ALERTS)
            undelivered = await connection.fetchrow(sql["undelivered_alerts"])
            drill = await connection.fetchval(sql["last_drill"])
        return Activity(
            **dict(counts or {}),
            **dict(undelivered or {}),
            last_check=checks.get(False),
            drift=checks.get(True),
            alerts=tuple(PastAlert(**dict(alert)) for alert in alerts),
            last_drill=json.loads(drill) if drill else None,
        )

    async def role_in_use(self) -> RoleInUse:
        """See `LocalRights.role_in_use`."""
        async with self._database.connection() as connection:
            record = await connection.fetchrow(self._database.sql["role_in_use"])
        return RoleInUse(**dict(record or {}))

    async def search_words(self, text: str, filters: Filters, limit: int) -> list[FoundMemory]:
        """See `WordSearch.search_words`; any word of the question counts."""
        async with self._database.connection() as connection:
            records = await connection.fetch(
                self._database.sql["search_local"],
                text.replace("\x00", " "),
                filters.projects,
                filters.sessions,
                filters.memory_types,
                filters.tags,
                filters.created_after,
                filters.created_before,
                limit,
            )
        return [FoundMemory(**{**dict(r), "tags": r["tags"] or [], "content": r["content"] or ""}) for r in records]

    async def save_session(self, session: SessionRow) -> None:
        """See `SessionStore.save_session`."""
        sql = self._database.sql
        async with self._database.transaction() as connection:
            await connection.execute(sql["save_project"], session.project_id)
            await connection.execute(
                sql["save_session"], session.id, session.project_id, session.started_at, session.last_activity_at
            )

    async def end_session(self, session_id: str, ended_at: datetime, summary: str | None = None) -> bool:
        """See `SessionStore.end_session`."""
        async with self._database.connection() as connection:
            found = await connection.fetchval(self._database.sql["end_session"], session_id, ended_at, summary)
        return found is not None

    async def sessions(self, project: str | None, limit: int) -> list[SessionRow]:
        """See `SessionStore.sessions`; newest first."""
        async with self._database.connection() as connection:
            records: Sequence[asyncpg.Record] = await connection.fetch(
                self._database.sql["list_sessions"], project, limit
            )
        return [SessionRow(**dict(r)) for r in records]


def _check(record: "asyncpg.Record") -> LastCheck:
    return LastCheck(record["finished_at"], record["kind"], record["result"], record["differences"])


def _state(state: "asyncpg.Record", memories: int, captured: bool) -> LocalState:
    return LocalState(
        table_present=state["table_present"],
        capture_installed=captured,
        initialised=True,
        memories=memories,
        queued=state["queued"],
        parked=state["parked"],
        oldest_queued_at=state["oldest_queued_at"],
        last_success_at=state["last_success_at"],
        open_conflicts=state["open_conflicts"],
        last_parked_error=state["last_parked_error"],
        identity=StoreIdentity(state["id"], state["epoch"], state["generation"], state["lineage"]),
        failed=state["failed"],
        last_failed_at=state["last_failed_at"],
        unsent=state["unsent"],
    )
