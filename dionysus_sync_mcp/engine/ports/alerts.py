"""What alerts need, and the keeping of the audit."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

AlertKind = Literal["drift", "rolled_back", "failed_for_good", "incident", "drill_failed"]


@dataclass(frozen=True, slots=True)
class NewAlert:
    """What people should be told of. `key` names the event: there is one alert for it, however often it is seen."""

    key: str
    kind: AlertKind
    summary: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DueAlert:
    """An alert that is to be posted now.

    Attributes:
        attempts: How often it was tried before.
    """

    id: str
    kind: str
    summary: str
    details: dict[str, Any]
    raised_at: datetime
    store_id: str
    attempts: int


class AlertBook(Protocol):
    """The alerts on record."""

    async def raise_alert(self, alert: NewAlert) -> bool:
        """Put it on record; whether it is new."""
        ...

    async def take_due(self, lease: float) -> DueAlert | None:
        """One that is due, by the database's clock; nobody else takes it for `lease` seconds."""
        ...

    async def note_delivered(self, alert_id: str) -> None: ...

    async def postpone(self, alert_id: str, delay: float, error: str) -> None:
        """Try it again in `delay` seconds."""
        ...


class AuditPruning(Protocol):
    """Keeping the audit bounded."""

    async def prune_events(self) -> int:
        """Remove a page of what is older than it is kept for; how many rows were, 0 when there are no more."""
        ...


class AlertSink(Protocol):
    """Where alerts are sent to."""

    async def post(self, alert_id: str, body: bytes) -> None:
        """Send it; returns when it was taken.

        Raises:
            Unavailable: It was not, or not in time.
        """
        ...
