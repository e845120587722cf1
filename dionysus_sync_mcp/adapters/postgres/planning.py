"""The rows of the local store as the plan of a recovery looks at them."""

from collections.abc import AsyncGenerator, Sequence
from uuid import UUID

from dionysus_sync_mcp.adapters.postgres.database import LONG_PATIENCE, Database
from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.adapters.postgres.verifying import DIGEST_PAGE
from dionysus_sync_mcp.domain.drift import Here
from dionysus_sync_mcp.domain.errors import Refused
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.engine.ports.history import Span
from dionysus_sync_mcp.engine.ports.shared import Scope

DIGITS = 32


class PostgresRows:
    """Implements `LocalRows`."""

    def __init__(self, database: Database, installer: Installer) -> None:
        self._database = database
        self._installer = installer

    async def rows(self, scope: Scope, span: Span) -> AsyncGenerator[Sequence[tuple[str, Here]], None]:
        """See `LocalRows.rows`. Keyset pages: no transaction stays open between them."""
        if not await self._installer.table_present():
            return
        first, last = _bounds(span)
        while first <= last and (page := await self._page(scope, first, last)):
            yield page
            first = UUID(page[-1][0]).int + 1

    async def as_captured(self, memories: Sequence[RemoteMemory]) -> frozenset[str]:
        """See `LocalRows.as_captured`."""
        states = zip(*((m.id, m.content_hash, m.extra) for m in memories), strict=True)
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            records = await connection.fetch(self._database.sql["rows_as_captured"], *map(list, states))
        return frozenset(r["id"] for r in records)

    async def _page(self, scope: Scope, first: int, last: int) -> list[tuple[str, Here]]:
        try:
            return await self._read("rows_between", scope, first, last)
        except Refused:
            return await self._read("rows_between_one_by_one", scope, first, last)

    async def _read(self, name: str, scope: Scope, first: int, last: int) -> list[tuple[str, Here]]:
        bounds = UUID(int=first), UUID(int=last)
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            records = await connection.fetch(self._database.sql[name], *scope_of(scope), *bounds, DIGEST_PAGE)
        return [(r["id"], Here(r["version"], r["content_hash"], r["base"])) for r in records]


def scope_of(scope: Scope) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """As the first parameters of the statements that take one."""
    return scope.projects, scope.sessions, scope.memory_ids


def _bounds(span: Span) -> tuple[int, int]:
    """The first and the last id of a span."""
    first, end = (int(digits.ljust(DIGITS, "0"), 16) for digits in span)
    return first, end - 1 if span.end else 16**DIGITS - 1
