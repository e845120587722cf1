"""What making a database a local store, and keeping it one, needs."""

from datetime import datetime
from typing import NamedTuple, Protocol

from dionysus_sync_mcp.engine.ports.shared import StoreIdentity


class InstallStep(NamedTuple):
    """One step of making a database a local store."""

    name: str
    sql: str


class Installation(Protocol):
    """Making a database a local store, and keeping it one."""

    async def missing_steps(self) -> tuple[list[InstallStep], bool]:
        """The steps that are left, and whether there is a table `memories`; changes nothing."""
        ...

    async def install(self) -> tuple[list[InstallStep], bool]: ...

    async def identity(self) -> StoreIdentity: ...

    async def initialised(self) -> bool: ...

    async def table_present(self) -> bool: ...

    async def capture_installed(self) -> bool: ...

    async def backfill_once(self, limit: int) -> int:
        """Queue at most `limit` rows that are pending and have no queue entry; how many were."""
        ...

    async def definition(self) -> str | None:
        """The table's own words for its shape, JSON text; `None` while there is no table."""
        ...

    async def gap(self) -> datetime | None:
        """Since when there may be changes that nobody has captured, and for which no comparison has looked."""
        ...

    async def note_gap(self) -> None:
        """Rows have changed without being captured: a full comparison is due, in which what is here counts."""
        ...
