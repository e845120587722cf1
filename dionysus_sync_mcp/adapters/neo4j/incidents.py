"""The incidents on record in the remote store, and where the local stores are that write to it."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from dionysus_sync_mcp.adapters.neo4j.connection import Call, Part
from dionysus_sync_mcp.domain.destruction import Incident, Sight, Who, spans_as_text, spans_of_text
from dionysus_sync_mcp.domain.errors import RemoteDamaged
from dionysus_sync_mcp.domain.text import storable

CONSTRAINT = "incident_id_unique"
_TIMES = ("detected_at", "restore_point", "last_at", "closed_at")
_FIELDS = (
    "id", "key", "kind", "store", "detected_at", "restore_point", "last_at", "rows", "summary", "closed_at",
    "closed_reason", "revision",
)  # fmt: skip


class Incidents(Part):
    """Implements `RemoteIncidents`."""

    _constrained = False

    async def save_incidents(self, incidents: Sequence[Incident]) -> None:
        """See `RemoteIncidents.save_incidents`. The first ones may come before any push has made the schema."""
        if not incidents:
            return
        if not self._constrained:
            await self._constrain()
        rows = [_row(incident) for incident in sorted(incidents, key=lambda incident: incident.id)]
        await self._connection.write([Call("save_incidents", {"rows": rows})], self._limits.write_seconds)

    async def _constrain(self) -> None:
        """Once: a change of the schema has the server plan every statement anew."""
        seconds = self._limits.look_seconds
        if CONSTRAINT not in {name for name, *_ in await self._connection.read("schema_present", seconds)}:
            with suppress(RemoteDamaged):  # two nodes of one incident are read as one
                await self._connection.read(CONSTRAINT, seconds)
        self._constrained = True

    async def remote_incidents(
        self, *, open_only: bool, limit: int, stores: Collection[str] | None = None, after: Incident | None = None
    ) -> list[Incident]:
        """See `RemoteIncidents.remote_incidents`."""
        page = await self._connection.read(
            "incidents",
            self._limits.look_seconds,
            open_only=open_only,
            limit=limit,
            stores=None if stores is None else sorted(stores),
            after_at=after.detected_at.isoformat() if after else None,
            after_id=after.id if after else None,
        )
        found: dict[str, Incident] = {}
        for values in page:
            incident = _incident(values)
            found.setdefault(incident.id, incident)
        return list(found.values())

    async def note_place(self, place: str, sight: Sight) -> bool:
        """See `RemoteIncidents.note_place`."""
        parameters = {
            "place": place,
            "store": sight.store,
            "table": sight.table,
            "seen_at": sight.seen_at.isoformat(),
        }
        (noted,) = await self._connection.write([Call("note_place", parameters)], self._limits.look_seconds)
        return bool(noted)

    async def seen_at(self, place: str) -> list[Sight]:
        """See `RemoteIncidents.seen_at`."""
        rows = await self._connection.read("stores_at", self._limits.look_seconds, place=place)
        # How many rows there were is not known: none is missed.
        return [Sight(datetime.fromisoformat(at), store, table, rows=0) for store, table, at in rows]


def _row(incident: Incident) -> dict[str, Any]:
    row = {name: getattr(incident, name) for name in _FIELDS} | incident.who._asdict()
    row |= {name: row[name].isoformat() for name in _TIMES if row[name] is not None}
    row["spans"] = spans_as_text(incident.spans)
    return {name: storable(value) if isinstance(value, str) else value for name, value in row.items()}


def _incident(values: Sequence[Any]) -> Incident:
    fields = dict(zip(_FIELDS, values, strict=False))
    fields |= {name: datetime.fromisoformat(fields[name]) for name in _TIMES if fields[name] is not None}
    *who, spans = values[len(_FIELDS) :]
    return Incident(**fields, who=Who(*who), spans=spans_of_text(spans))
