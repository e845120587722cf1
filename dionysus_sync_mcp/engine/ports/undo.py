"""What undoing a recovery needs."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

from dionysus_sync_mcp.engine.ports.recover import PageResult
from dionysus_sync_mcp.engine.ports.shared import SyncEvent

# undone: it is back already. changed: it is not what the recovery wrote any more. gone: there is no such row.
KeptState = Literal["waiting", "undone", "changed", "gone"]


class KeptRow(NamedTuple):
    """A row that a recovery has overwritten, and how it stands now.

    Attributes:
        lacking: Columns that it had filled and that the table does not have now, named; empty for none.
    """

    memory_id: str
    state: KeptState
    lacking: str = ""


class KeptRecovery(NamedTuple):
    """A recovery with rows that it has overwritten and that are not back, and when it overwrote the last of them."""

    recovery_id: str
    rows: int
    last_at: datetime


class Undoing(Protocol):
    """The local store's side of an undo."""

    async def last_overwriting(self) -> str | None:
        """Id of the recovery that overwrote rows last, of those with rows that are not back; else the last of all.

        `None` where none has overwritten anything.
        """
        ...

    async def kept_recoveries(self, limit: int) -> list[KeptRecovery]:
        """Recoveries with rows that are not back, newest first; those that were cut off among them."""
        ...

    async def recovery_known(self, recovery_id: str) -> bool:
        """Whether there is a recovery of that id on record, or there are rows that it overwrote."""
        ...

    async def kept_rows(self, recovery_id: str, after: str, limit: int) -> list[KeptRow]:
        """A keyset page of the rows that a recovery overwrote."""
        ...

    async def put_back(self, recovery_id: str, held: Mapping[str, int]) -> PageResult:
        """Give rows that still are what the recovery wrote their content of before it, in one transaction.

        Each goes forward: its version is above those that it has, had, and that the remote store holds, and it is
        queued. What is not put back stays as it is, and is among `refused`.

        Args:
            held: The rows, with the version that the remote store holds of each, 0 for none or where it is away.
        """
        ...

    async def record_undo(self, report: dict[str, Any], event: SyncEvent) -> None: ...
