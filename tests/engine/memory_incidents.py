"""In-memory ports of the detection; both records pass the contract suite of the real ones."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from dionysus_sync_mcp.domain.destruction import (
    NOBODY_KNOWN,
    Incident,
    Observation,
    ObservationKind,
    Rows,
    Sight,
    Who,
    details_of,
    widened,
)
from dionysus_sync_mcp.domain.errors import DatabaseMissing, SchemaMismatch
from dionysus_sync_mcp.engine.ports.alerts import NewAlert

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
STORE = "0b7a5f0e-8f1d-4f0e-9a37-1a6f3f7f9a11"
OTHER_STORE = "0b7a5f0e-8f1d-4f0e-9a37-1a6f3f7f9a12"
TRIGGERS = frozenset({"capture_insert", "capture_update", "capture_delete"})
CLOSED_AT = NOW + timedelta(hours=1)


def newest_first(incidents: Iterable[Incident], *, open_only: bool, limit: int) -> list[Incident]:
    """As both records list them."""
    found = [incident for incident in incidents if not (open_only and incident.closed_at)]
    return sorted(found, key=lambda i: (-i.detected_at.timestamp(), i.id))[:limit]


@dataclass
class MemoryBook:
    """Implements `IncidentBook`. `present` is whether there is any bookkeeping."""

    judged: set[int] = field(default_factory=set)
    held: dict[str, Incident] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    alerts: dict[str, NewAlert] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    present: bool = True

    async def record(
        self, incidents: Sequence[Incident], judged: Sequence[int], told: Collection[str] = ()
    ) -> list[Incident]:
        """All or nothing."""
        self._check()
        if self.judged & set(judged):
            return []
        self.judged |= set(judged)
        known = set(self.held)
        for incident in incidents:
            before = self.held.get(incident.id)
            self.held[incident.id] = widened(before, incident) if before else incident
            self._alert(self.held[incident.id], told=incident.id in told)
        return [self.held[id_] for id_ in dict.fromkeys(i.id for i in incidents) if id_ not in known]

    async def incidents(self, *, open_only: bool, limit: int) -> list[Incident]:
        """Newest first."""
        self._check()
        return newest_first(self.held.values(), open_only=open_only, limit=limit)

    async def incident(self, incident_id: str) -> Incident | None:
        """One of them."""
        self._check()
        return self.held.get(incident_id)

    async def close(self, incident_id: str, reason: str) -> bool:
        """Once."""
        self._check()
        incident = self.held.get(incident_id)
        if incident is None or incident.closed_at:
            return False
        closed = replace(incident, closed_at=CLOSED_AT, closed_reason=reason, revision=incident.revision + 1)
        self.held[incident_id] = closed
        return True

    async def unpublished(self, limit: int) -> list[Incident]:
        """Those that have changed since they were published."""
        self._check()
        return [i for i in self.held.values() if self.published.get(i.id, 0) < i.revision][:limit]

    async def note_published(self, incidents: Sequence[Incident]) -> None:
        """At their revision."""
        self._check()
        for incident in incidents:
            self.published[incident.id] = max(incident.revision, self.published.get(incident.id, 0))

    async def note_there(self, stores: Collection[str], there: Sequence[Incident]) -> None:
        """What it lacks is not published."""
        self._check()
        has = {incident.id: incident.revision for incident in there}
        for id_, incident in self.held.items():
            if incident.store in stores and has.get(id_, 0) < self.published.get(id_, 0):
                self.published[id_] = 0

    async def adopt(self, incidents: Sequence[Incident]) -> int:
        """New ones, and closings."""
        self._check()
        new = [incident for incident in incidents if incident.id not in self.held]
        for incident in incidents:
            before = self.held.get(incident.id)
            if before is None:
                self.held[incident.id] = incident
                self._alert(incident, told=incident.closed_at is not None)
            elif incident.closed_at and not before.closed_at:
                self.held[incident.id] = widened(before, incident)
        return len(new)

    def _check(self) -> None:
        if not self.present:
            raise SchemaMismatch("there is no bookkeeping")

    def _alert(self, incident: Incident, *, told: bool) -> None:
        key = f"incident:{incident.id}"
        self.alerts.setdefault(incident.id, NewAlert(key, "incident", incident.summary, details_of(incident)))
        if told:
            self.told.add(incident.id)


@dataclass
class MemoryRemoteIncidents:
    """Implements `RemoteIncidents`. `failure` is raised by everything while set."""

    held: dict[str, Incident] = field(default_factory=dict)
    places: dict[str, list[Sight]] = field(default_factory=dict)
    stores: set[str] = field(default_factory=lambda: {STORE})
    failure: Exception | None = None

    async def save_incidents(self, incidents: Sequence[Incident]) -> None:
        """Widens."""
        self._check()
        for incident in incidents:
            before = self.held.get(incident.id)
            self.held[incident.id] = merged(before, incident) if before else incident

    async def remote_incidents(
        self, *, open_only: bool, limit: int, stores: Collection[str] | None = None, after: Incident | None = None
    ) -> list[Incident]:
        """Newest first."""
        self._check()
        of_these = [incident for incident in self.held.values() if stores is None or incident.store in stores]
        found = newest_first(of_these, open_only=open_only, limit=len(of_these))
        return found[found.index(after) + 1 if after else 0 :][:limit]

    async def note_place(self, place: str, sight: Sight) -> bool:
        """The newest first."""
        self._check()
        if sight.store not in self.stores:
            return False
        others = [s for s in self.places.get(place, []) if s.store != sight.store]
        self.places[place] = [Sight(sight.seen_at, sight.store, sight.table, rows=0), *others]
        return True

    async def seen_at(self, place: str) -> list[Sight]:
        """As noted."""
        self._check()
        return self.places.get(place, [])

    def _check(self) -> None:
        if self.failure:
            raise self.failure


def merged(before: Incident, seen: Incident) -> Incident:
    """What the remote store makes of two states: of kind, summary and restore point, the later revision's."""
    wider = widened(before, seen)
    latest = seen if seen.revision >= before.revision else before
    point = min(before, seen, key=lambda i: (-i.revision, i.restore_point)).restore_point
    return replace(
        wider,
        kind=latest.kind,
        summary=latest.summary,
        restore_point=point,
        revision=latest.revision,
        spans=latest.spans,
    )


@dataclass
class MemoryObserving:
    """Implements `Observing`: a table as a test makes it, by a clock of its own."""

    book: MemoryBook
    ids: set[str] = field(default_factory=set)
    observations: list[Observation] = field(default_factory=list)
    now: datetime = NOW
    table: int | None = 1
    store: str | None = STORE
    triggers: frozenset[str] = TRIGGERS
    event_triggers: bool = False
    recovering: bool = False
    whole: bool = True
    last: Sight | None = None
    failure: Exception | None = None
    asked: int = 0
    other: dict[str, datetime | None] = field(default_factory=dict)
    recovered: datetime | None = None

    def fill(self, count: int) -> None:
        """So many memories."""
        self.ids |= {str(n) for n in range(count)}

    def observe(
        self,
        kind: ObservationKind,
        ids: Iterable[int] = (),
        *,
        rows: int = 0,
        who: Who = NOBODY_KNOWN,
        detail: str = "",
    ) -> None:
        """A statement, now."""
        memory_ids = tuple(map(str, ids))
        if kind == "delete":
            self.ids -= set(memory_ids)
        seq = len(self.observations) + 1
        until = self.now + timedelta(milliseconds=1)
        self.observations.append(
            Observation(seq, kind, self.now, until, rows or len(memory_ids), memory_ids, self.table, detail, who)
        )

    def wait(self, seconds: float) -> None:
        """Later."""
        self.now += timedelta(seconds=seconds)

    def lose_bookkeeping(self) -> None:
        """With all that it holds; what is put back later is another store's."""
        self.store, self.last, self.book.present = None, None, False
        self.observations.clear()
        self.triggers = frozenset()

    def reinstall(self) -> None:
        """As the guard does it."""
        self.store, self.book.present, self.triggers, self.whole = OTHER_STORE, True, TRIGGERS, True
        for records in (self.book.held, self.book.published, self.book.alerts):
            records.clear()

    async def unjudged(self, limit: int) -> list[Observation]:
        """By number."""
        self._check()
        if self.store is None:
            raise SchemaMismatch("there is no bookkeeping")
        return [o for o in self.observations if o.seq not in self.book.judged][:limit]

    async def between(self, first: datetime, last: datetime) -> list[Observation]:
        """By time."""
        found = [o for o in self.observations if first <= o.at <= last and o.kind in ("delete", "update")]
        return [o._replace(judged=o.seq in self.book.judged) for o in found]

    async def rows_between(self, first: datetime, last: datetime) -> Rows:
        """Of the same."""
        found = await self.between(first, last)
        return Rows(*(sum(o.rows for o in found if o.kind == kind) for kind in ("delete", "update")))

    async def live(self, memory_ids: Sequence[str]) -> frozenset[str]:
        """Counts how often it is asked."""
        self.asked += 1
        return frozenset(self.ids & set(memory_ids))

    async def recovered_at(self) -> datetime | None:
        """As a test says."""
        return self.recovered

    async def replaced(self, contents: Mapping[str, int | None]) -> dict[str, datetime | None]:
        """As set."""
        return {id_: at for id_, at in self.other.items() if id_ in contents}

    async def population(self) -> int:
        """Counts how often it is asked."""
        self.asked += 1
        return len(self.ids)

    async def sight(self, after_seq: int) -> Sight:
        """As it is."""
        self._check()
        new = [o for o in self.observations if o.seq > after_seq and o.kind in ("delete", "truncate")]
        return Sight(
            self.now,
            self.store,
            self.table,
            ("content text",),
            self.triggers,
            self.event_triggers,
            None if self.table is None else len(self.ids),
            len(self.observations),
            sum(o.rows for o in new),
            self.whole,
            self.recovering,
        )

    async def remembered(self) -> Sight | None:
        """The newest."""
        return self.last

    async def remember(self, sight: Sight) -> None:
        """Never an older one."""
        if self.store is None:
            raise SchemaMismatch("there is no bookkeeping")
        if self.last is None or self.last.seen_at <= sight.seen_at:
            self.last = sight

    async def prune_observations(self) -> int:
        """One page of them."""
        pruned = len(self.book.judged)
        self.book.judged.clear()
        return pruned

    def _check(self) -> None:
        if self.failure:
            raise self.failure


def no_database() -> DatabaseMissing:
    """What the server says."""
    return DatabaseMissing('database "memories" does not exist')
