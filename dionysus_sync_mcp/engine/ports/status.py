"""What the status reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

from dionysus_sync_mcp.domain.roles import RoleInUse
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity


@dataclass(frozen=True, slots=True)
class LocalState:
    """What the local store says of itself."""

    table_present: bool
    capture_installed: bool
    initialised: bool
    memories: int
    queued: int
    parked: int
    oldest_queued_at: datetime | None
    last_success_at: datetime | None
    open_conflicts: int
    last_parked_error: str | None
    identity: StoreIdentity | None
    failed: int = 0  # of the parked: refused so often that nothing but a person's word sends them again
    last_failed_at: datetime | None = None
    unsent: int = 0  # of the parked: PostgreSQL cannot make JSON of these rows, so only a change of theirs helps


class LastCheck(NamedTuple):
    """A comparison of both stores on record."""

    finished_at: datetime
    kind: Literal["quick", "full", "deep"]
    result: Literal["clean", "drift", "skipped"]
    differences: int


class PastAlert(NamedTuple):
    """An alert on record."""

    kind: str
    summary: str
    raised_at: datetime
    delivered_at: datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class Activity:
    """What the sync has done since a time, from the audit, and the newest entries of the other records.

    Attributes:
        drift: The newest comparison that found differences, unless one that looked as closely was clean since.
        undelivered: Alerts that were sent in vain so far; `undelivered_error` says why.
        last_drill: The report of the newest drill, as it was put on record.
    """

    pushes: int = 0
    pushed: int = 0
    failed_pushes: int = 0
    outages: int = 0
    average_ms: float | None = None
    slowest_ms: int | None = None
    conflicts: int = 0
    repaired: int = 0
    last_check: LastCheck | None = None
    drift: LastCheck | None = None
    alerts: tuple[PastAlert, ...] = ()
    undelivered: int = 0
    undelivered_error: str | None = None
    last_drill: Mapping[str, Any] | None = None


class LocalStatus(Protocol):
    """Reads for the status; fast, changes nothing."""

    async def state(self) -> LocalState:
        """A queue of more than 100,000 entries is not counted: its length is then an upper bound."""
        ...

    async def identity(self) -> StoreIdentity | None:
        """`None` where the bookkeeping is not installed; cheap, whatever the queue holds."""
        ...

    async def has_entry(self, entry_id: str) -> bool:
        """Whether the queue entry with this id is still there, also to be acknowledged by a push that is under way."""
        ...

    async def activity(self, since: datetime) -> Activity: ...


class LocalRights(Protocol):
    """What the doctor asks about rights."""

    async def role_in_use(self) -> RoleInUse: ...
