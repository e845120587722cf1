"""The alerts on record in the local store, and the pruning of its audit."""

import json

from dionysus_sync_mcp.adapters.postgres.database import Database
from dionysus_sync_mcp.engine.ports.alerts import DueAlert, NewAlert

PAGE = 1000
_ERROR_LENGTH = 300


class PostgresAlerts:
    """Implements `AlertBook` and `AuditPruning`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def raise_alert(self, alert: NewAlert) -> bool:
        """See `AlertBook.raise_alert`."""
        async with self._database.connection() as connection:
            summary, details = self._database.fit(alert.summary), self._database.json_of(alert.details)
            new = await connection.fetchval(self._database.sql["raise_alert"], alert.key, alert.kind, summary, details)
        return new is not None

    async def take_due(self, lease: float) -> DueAlert | None:
        """See `AlertBook.take_due`; one statement, so that no transaction is open while the alert is posted."""
        async with self._database.connection() as connection:
            found = await connection.fetchrow(self._database.sql["take_alert"], lease)
        return DueAlert(**{**dict(found), "details": json.loads(found["details"])}) if found else None

    async def note_delivered(self, alert_id: str) -> None:
        """See `AlertBook.note_delivered`."""
        async with self._database.connection() as connection:
            await connection.execute(self._database.sql["note_delivered"], alert_id)

    async def postpone(self, alert_id: str, delay: float, error: str) -> None:
        """See `AlertBook.postpone`."""
        async with self._database.connection() as connection:
            said = self._database.fit(error[:_ERROR_LENGTH])
            await connection.execute(self._database.sql["postpone_alert"], alert_id, delay, said)

    async def prune_events(self) -> int:
        """See `AuditPruning.prune_events`."""
        async with self._database.connection() as connection:
            alerts = await connection.fetchval(self._database.sql["prune_alerts"], PAGE)
            return int(alerts + await connection.fetchval(self._database.sql["prune_events"], PAGE))
