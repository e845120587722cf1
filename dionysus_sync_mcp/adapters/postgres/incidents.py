"""The incidents on record in the local store."""

import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from dionysus_sync_mcp.adapters.postgres.database import Database
from dionysus_sync_mcp.domain.destruction import Incident, Who, details_of, spans_as_text, spans_of_text, widened

if TYPE_CHECKING:
    import asyncpg

    from dionysus_sync_mcp.adapters.postgres.database import Connection


class PostgresIncidents:
    """Implements `IncidentBook`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(
        self, incidents: Sequence[Incident], judged: Sequence[int], told: Collection[str] = ()
    ) -> list[Incident]:
        """See `IncidentBook.record`."""
        sql = self._database.sql
        async with self._database.transaction() as connection:
            await connection.execute(sql["lock_incidents"])
            if judged and not await connection.fetchval(sql["mark_judged"], list(judged)):
                return []
            known = await self._known(connection, incidents)
            here = dict(known)
            for incident in incidents:
                before = here.get(incident.id)
                here[incident.id] = merged = widened(before, incident) if before else incident
                if merged is not before:
                    await self._write(connection, merged)
                await self._alert(connection, merged, told=incident.id in told)
        return [incident for id_, incident in here.items() if id_ not in known]

    async def incidents(self, *, open_only: bool, limit: int) -> list[Incident]:
        """See `IncidentBook.incidents`."""
        async with self._database.connection() as connection:
            found = await connection.fetch(self._database.sql["newest_incidents"], open_only, limit)
        return [_incident(row) for row in found]

    async def incident(self, incident_id: str) -> Incident | None:
        """See `IncidentBook.incident`."""
        async with self._database.connection() as connection:
            found = await connection.fetchrow(self._database.sql["incidents_by_id"], [incident_id])
        return _incident(found) if found else None

    async def close(self, incident_id: str, reason: str) -> bool:
        """See `IncidentBook.close`."""
        async with self._database.connection() as connection:
            return bool(
                await connection.fetchval(self._database.sql["close_incident"], incident_id, self._database.fit(reason))
            )

    async def unpublished(self, limit: int) -> list[Incident]:
        """See `IncidentBook.unpublished`."""
        async with self._database.connection() as connection:
            found = await connection.fetch(self._database.sql["unpublished_incidents"], limit)
        return [_incident(row) for row in found]

    async def note_published(self, incidents: Sequence[Incident]) -> None:
        """See `IncidentBook.note_published`."""
        ids, revisions = [i.id for i in incidents], [i.revision for i in incidents]
        async with self._database.connection() as connection:
            await connection.execute(self._database.sql["note_published"], ids, revisions)

    async def note_there(self, stores: Collection[str], there: Sequence[Incident]) -> None:
        """See `IncidentBook.note_there`."""
        ids, revisions = [i.id for i in there], [i.revision for i in there]
        async with self._database.connection() as connection:
            await connection.execute(self._database.sql["note_there"], sorted(stores), ids, revisions)

    async def adopt(self, incidents: Sequence[Incident]) -> int:
        """See `IncidentBook.adopt`."""
        if not incidents:
            return 0
        sql = self._database.sql
        async with self._database.transaction() as connection:
            await connection.execute(sql["lock_incidents"])
            known = await self._known(connection, incidents)
            for incident in incidents:
                before = known.get(incident.id)
                if before is None:
                    await self._write(connection, incident)
                    await self._alert(connection, incident, told=incident.closed_at is not None)
                elif incident.closed_at and not before.closed_at:
                    await self._write(connection, widened(before, incident))
        return len({incident.id for incident in incidents} - known.keys())

    async def _known(self, connection: "Connection", incidents: Sequence[Incident]) -> dict[str, Incident]:
        ids = [incident.id for incident in incidents]
        found = await connection.fetch(self._database.sql["incidents_by_id"], ids) if ids else []
        return {incident.id: incident for incident in map(_incident, found)}

    async def _write(self, connection: "Connection", incident: Incident) -> None:
        await connection.execute(self._database.sql["write_incident"], *map(self._fit, _row(incident)))

    def _fit(self, value: object) -> object:
        return self._database.fit(value) if isinstance(value, str) else value

    async def _alert(self, connection: "Connection", incident: Incident, *, told: bool) -> None:
        details = self._database.json_of(details_of(incident))
        summary = self._database.fit(incident.summary)
        await connection.execute(self._database.sql["raise_incident_alert"], incident.id, summary, details, told)


def _incident(row: "asyncpg.Record") -> Incident:
    fields = dict(row)
    who = Who(**{name: fields.pop(name) for name in Who._fields})
    spans = spans_of_text(json.loads(fields.pop("spans")))
    return Incident(**fields, who=who, spans=spans)


def _row(incident: Incident) -> list[Any]:
    who = incident.who
    return [
        incident.id,
        incident.key,
        incident.kind,
        incident.store,
        incident.detected_at,
        incident.restore_point,
        incident.last_at,
        incident.rows,
        incident.summary,
        who.role,
        who.application_name,
        who.client_address,
        who.pid,
        who.statement,
        incident.closed_at,
        incident.closed_reason,
        incident.revision,
        json.dumps(spans_as_text(incident.spans)),
    ]
