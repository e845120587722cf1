"""Decides what of the observed statements is an incident; what only looks can find is decided in `watching`."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Literal, NamedTuple
from uuid import UUID, uuid5

from dionysus_sync_mcp.domain.text import clause, defused

# Looks count the rows of a table up to this: a full count of more would take too long for every other second.
MOST_COUNTED = 100_000

ObservationKind = Literal["delete", "update", "truncate", "drop", "alter"]
IncidentKind = Literal[
    "rapid_deletes",  # more deletes than the threshold within the span
    "bulk_update",  # the content of more than half of the memories changed within the span
    "truncate",
    "drop",  # the table, its schema, or the bookkeeping, seen by an event trigger
    "alter",  # a column dropped or made another type, the table renamed or swapped
    "capture_off",  # triggers of the capture disabled or gone
    "table_missing",  # seen by watching only
    "table_recreated",  # another table stands at the name
    "rows_missing",  # rows went without being captured
    "bookkeeping_missing",
    "database_missing",
]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From when on something is an incident.

    Attributes:
        deletes: More deletes than this, within the span.
        updates: At least so many memories must have changed content, however few there are.
        share: More of the memories than this share must have changed content, within the span.
        seconds: The span; both ends belong to it.
    """

    deletes: int = 10
    updates: int = 5
    share: float = 0.5
    seconds: float = 60.0


class Who(NamedTuple):
    """Who did it, as far as PostgreSQL tells. `statement` is cut; it never goes into a message as it is."""

    role: str | None = None
    application_name: str | None = None
    client_address: str | None = None
    pid: int | None = None
    statement: str | None = None


NOBODY_KNOWN = Who()


class Observation(NamedTuple):
    """A statement that destroyed something, or could be part of it, as the database itself has seen it.

    `at` is just before the first change of it that was captured, `until` just after the last one: the versions that it
    made lie between. `memory_ids` are those that were deleted, or of which the content was changed; of the other kinds
    there are none.
    """

    seq: int
    kind: ObservationKind
    at: datetime
    until: datetime
    rows: int
    memory_ids: tuple[str, ...] = ()
    table: int | None = None  # oid of the table that it hit
    detail: str = ""  # what was hit, in words without a command, such as "column tags dropped"
    who: Who = NOBODY_KNOWN
    judged: bool = False
    contents: tuple[int | None, ...] = ()  # hashes of what was deleted, in the order of the ids, where they are known


class Interval(NamedTuple):
    """A time between two others; both ends belong to it."""

    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True)
class Incident:
    """A destructive pattern: one for one event, however often and by whatever it is seen.

    Attributes:
        id: UUID that follows from the store and the key, so that both stores and every process give it the same one.
        key: Names the event, such as `gone:16403`.
        store: Id of the local store.
        restore_point: What was changed before it is good; what the incident changed is at or after it.
        last_at: Of the last change that belongs to it.
        rows: Memories that it hit.
        summary: One sentence for people; never a command.
        spans: When the statements that belong to it were under way, in order: what others did between them is none of
            it. None where it is not known of statements; then all between its ends counts.
    """

    id: str
    key: str
    kind: IncidentKind
    store: str
    detected_at: datetime
    restore_point: datetime
    last_at: datetime
    rows: int
    summary: str
    who: Who = NOBODY_KNOWN
    closed_at: datetime | None = None
    closed_reason: str | None = None
    revision: int = 1
    spans: tuple[Interval, ...] = ()


@dataclass(frozen=True, slots=True)
class Sight:
    """How the local store was at one look.

    Attributes:
        seen_at: By the database's clock.
        store: Id of the local store, `None` where the bookkeeping is not installed.
        table: Oid of `memories`, `None` where there is none.
        columns: `name type` of each of the user's columns, in order of name.
        triggers: Those of the capture that fire always.
        event_triggers: Whether the database tells of drops and alterations by itself.
        rows: Memories, counted up to `MOST_COUNTED`; `None` for more.
        last_seq: Of the newest observation.
        gone: Rows that observations after the `last_seq` of the look before account for.
        whole: Whether all of the bookkeeping is there, such as the queue.
        recovering: Whether a recovery was under way: what it makes anew was not put there by somebody else.
        database: Its oid: a dump that was restored holds looks at the database that it was made of.
    """

    seen_at: datetime
    store: str | None
    table: int | None
    columns: tuple[str, ...] = ()
    triggers: frozenset[str] = frozenset()
    event_triggers: bool = False
    rows: int | None = None
    last_seq: int = 0
    gone: int = 0
    whole: bool = True
    recovering: bool = False
    database: int | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What observations are judged by.

    Attributes:
        new: Those that nobody has judged yet.
        around: Deletes and updates within a span of the new ones, the new ones too; others that nobody has judged yet
            do not count before it is their turn.
        live: Of the deleted ids, those that are in the table now.
        replaced: Of those, the ones that have another content than the one that was deleted first, and when they were
            put there, where that is known.
        population: Memories in the table now.
        known: Incidents of this store, closed ones too.
        recovered_at: When the newest recovery was finished: what comes after it is no part of what it repaired.
    """

    new: Sequence[Observation]
    around: Sequence[Observation] = ()
    live: frozenset[str] = frozenset()
    population: int = 0
    known: Sequence[Incident] = ()
    recovered_at: datetime | None = None
    replaced: Mapping[str, datetime | None] = field(default_factory=dict)


class Rows(NamedTuple):
    """How many rows statements have hit; one that was hit twice counts twice."""

    deleted: int
    updated: int


class Questions(NamedTuple):
    """What has to be asked of the table before observations can be judged; nothing, as a rule."""

    deleted: frozenset[str]
    population: bool


# Statements of one client within this time are taken for one event: a schema is gone with all that was in it.
ONE_EVENT = timedelta(seconds=1)
# A recovery looks at each state of a memory with all of them.
MOST_SPANS = 100
# What an observation says of a table that is not at its name any more, and of triggers that do not fire any more.
RENAMED = "table memories renamed to "
SWITCHED_OFF = " switched off"
OF_THE_BOOKKEEPING = " of the bookkeeping dropped"
LONGEST_WHO = 100
LONGEST_DETAIL = 200
# An incident keeps the kind that says most of it; what the database tells itself comes before what a look finds.
_SAYS_MORE: Mapping[IncidentKind, int] = {
    "database_missing": 3,
    "drop": 2,
    "truncate": 2,
    "alter": 2,
    "rapid_deletes": 2,
    "bulk_update": 2,
    "table_missing": 1,
    "table_recreated": 1,
}


def incident_id(store: str, key: str) -> str:
    """The id of the event `key` of a local store: the same in every process, and on both sides."""
    return str(uuid5(UUID(store), key))


def could_be_burst(rows: Rows, thresholds: Thresholds, population: int = 0) -> bool:
    """Whether statements that hit so many rows have to be looked at one by one.

    Args:
        population: Memories in the table a moment ago, 0 where that is not known.
    """
    return rows.deleted > thresholds.deletes or rows.deleted + rows.updated >= _too_many(thresholds, population)


def questions(
    new: Sequence[Observation], around: Sequence[Observation], thresholds: Thresholds, population: int = 0
) -> Questions:
    """What the judging of these needs to know: the table is asked only where an answer could matter.

    Args:
        population: Memories in the table a moment ago, 0 where that is not known.
    """
    changed = {id_ for o in around for id_ in o.memory_ids}
    enough = _too_many(thresholds, population)
    counted = any(o.kind in ("update", "delete") for o in new) and len(changed) >= enough
    deleted = frozenset(id_ for o in around if o.kind == "delete" for id_ in o.memory_ids)
    many = any(o.kind == "delete" for o in new) and len(deleted) > thresholds.deletes
    return Questions(deleted if many or counted else frozenset(), counted)


def _too_many(thresholds: Thresholds, population: int) -> int:
    return max(thresholds.updates, math.floor(thresholds.share * population) + 1)


def judge(seen: Evidence, thresholds: Thresholds, store: str, now: datetime) -> list[Incident]:
    """The incidents that the new observations make, or widen.

    A burst is every statement that lies in a span with too many memories in it: a single change some time after it is
    none of it.
    """
    gone = [_Hit(o, frozenset(o.memory_ids) - seen.live) for o in _of("delete", seen.around)]
    updated = (_Hit(o, frozenset(o.memory_ids)) for o in _of("update", seen.around))
    changed = sorted([*updated, *_replacing(seen, thresholds)], key=lambda hit: (hit.seen.at, hit.seen.seq))
    lost = {id_ for hit in gone for id_ in hit.ids}
    # A table that was emptied, or is not at its name any more, by the time that it is asked, held more at the change.
    before = max(seen.population + len(lost), *(o.rows for o in seen.new if o.kind in _EVENTS), 0)
    enough = _too_many(thresholds, before)
    bursts = (
        *_bursts("rapid_deletes", gone, thresholds.deletes + 1, seen, thresholds.seconds),
        *_bursts("bulk_update", changed, enough, seen, thresholds.seconds),
    )
    return [
        *(_burst_incident(burst, seen, thresholds, store, now, before) for burst in bursts),
        *_events(seen, store, now),
    ]


def widened(known: Incident, seen: Incident) -> Incident:
    """An incident on record, and what was seen of it since, as one; the same one where that is nothing new.

    The earlier restore point, the later end, more rows, and a who where none was known; a closed one stays closed. What
    the database tells of an event knows just when it began; a look that finds it too only knows when all was well last.
    """
    tells = _SAYS_MORE.get(seen.kind, 0), seen.rows, seen.last_at
    newer = tells > (_SAYS_MORE.get(known.kind, 0), known.rows, known.last_at)
    merged = replace(
        known,
        kind=seen.kind if newer else known.kind,
        summary=seen.summary if newer else known.summary,
        detected_at=min(known.detected_at, seen.detected_at),
        restore_point=_restore_point(known, seen),
        last_at=max(known.last_at, seen.last_at),
        rows=max(known.rows, seen.rows),
        who=seen.who if known.who == NOBODY_KNOWN else known.who,
        closed_at=known.closed_at or seen.closed_at,
        closed_reason=known.closed_reason if known.closed_at else seen.closed_reason,
        spans=merged_spans((*known.spans, *seen.spans)) if known.spans and seen.spans else known.spans or seen.spans,
    )
    return known if merged == known else replace(merged, revision=max(known.revision, seen.revision) + 1)


def merged_spans(spans: Iterable[Interval], others: Iterable[datetime] | None = None) -> tuple[Interval, ...]:
    """The same in order, as few as it can be, and at most `MOST_SPANS`: of more, the nearest are merged.

    Args:
        others: When something happened that is none of it: where nothing did, two spans are one. `None`: not known.
    """
    times = sorted(others) if others is not None else None
    found: list[Interval] = []
    for span in sorted(spans):
        if found and (
            span.first <= found[-1].last or (times is not None and _nothing(times, found[-1].last, span.first))
        ):
            found[-1] = Interval(found[-1].first, max(found[-1].last, span.last))
        else:
            found.append(span)
    widest = sorted(range(1, len(found)), key=lambda i: found[i].first - found[i - 1].last)[1 - MOST_SPANS :]
    ends = [0, *sorted(widest), len(found)]
    return tuple(Interval(found[a].first, found[b - 1].last) for a, b in pairwise(ends) if a < b)


def spans_as_text(spans: Iterable[Interval]) -> list[str]:
    """As both records keep them: ISO 8601, in UTC."""
    return [f"{utc_text(span.first)}/{utc_text(span.last)}" for span in spans]


def spans_of_text(texts: object) -> tuple[Interval, ...]:
    """Of what somebody has made something else of by hand, none."""
    try:
        pairs = [str(text).split("/") for text in texts] if isinstance(texts, list) else []
        found = [Interval(*map(datetime.fromisoformat, pair)) for pair in pairs]
    except (ValueError, TypeError):
        return ()
    return merged_spans(found) if all(time.tzinfo for span in found for time in span) else ()


def _nothing(times: Sequence[datetime], first: datetime, last: datetime) -> bool:
    """Whether none of these lies between."""
    after = bisect_left(times, first)
    return after == len(times) or times[after] > last


def is_loss(incident: Incident) -> bool:
    """Whether the store's identity went with it: there is no second such incident of a store."""
    return incident.key.startswith("store:")


def _restore_point(known: Incident, seen: Incident) -> datetime:
    first, second = _SAYS_MORE.get(known.kind, 0), _SAYS_MORE.get(seen.kind, 0)
    if first == second:
        return min(known.restore_point, seen.restore_point)
    return known.restore_point if first > second else seen.restore_point


def details_of(incident: Incident) -> dict[str, Any]:
    """What an alert says of an incident beside its summary; nothing that could be run or that acts on a terminal."""
    who = told_who(incident.who)
    return {
        "kind": incident.kind,
        "rows": incident.rows,
        "restore_point": incident.restore_point.isoformat(),
        "last_at": incident.last_at.isoformat(),
        "store": incident.store,
        **who._asdict(),
    }


def told_who(who: Who) -> Who:
    """The same, made fit for a message: a client calls itself what it likes."""
    return Who(
        role=_told(who.role),
        application_name=_told(who.application_name),
        client_address=_told(who.client_address),
        pid=who.pid,
        statement=None if who.statement is None else defused(who.statement),
    )


def _told(text: str | None) -> str | None:
    return None if text is None else defused(text, LONGEST_WHO)


class _Hit(NamedTuple):
    """An observation, and which memories of it count."""

    seen: Observation
    ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Burst:
    kind: IncidentKind
    hits: Sequence[_Hit]


def _replacing(seen: Evidence, thresholds: Thresholds) -> Iterator[_Hit]:
    """Deletes of memories that live again as something else; what was put there belongs to them.

    Where it is not known any more when that was, it is taken for part of the same span.
    """
    for o in _of("delete", seen.around):
        if ids := frozenset(o.memory_ids) & seen.replaced.keys():
            at_latest = o.until + timedelta(seconds=thresholds.seconds)
            until = max(o.until, *(seen.replaced[id_] or at_latest for id_ in ids))
            yield _Hit(o._replace(until=until), ids)


def original_contents(observations: Iterable[Observation]) -> dict[str, int | None]:
    """Hashes of what each memory was when it was deleted for the first time."""
    found: dict[str, int | None] = {}
    for o in _of("delete", observations):
        for id_, content in zip(o.memory_ids, o.contents, strict=False):
            found.setdefault(id_, content)
    return found


def _of(kind: ObservationKind, observations: Iterable[Observation]) -> list[Observation]:
    return sorted((o for o in observations if o.kind == kind), key=lambda o: (o.at, o.seq))


def _bursts(kind: IncidentKind, hits: Sequence[_Hit], enough: int, seen: Evidence, seconds: float) -> Iterator[_Burst]:
    """The bursts that something new belongs to. What a person has closed is not counted again.

    What is new was not known when it was closed: it counts, whenever it was.
    """
    closed = [i for i in seen.known if i.kind == kind and i.closed_at]
    new = {o.seq for o in seen.new}
    past = {h.seen.seq for h in hits if any(i.restore_point <= h.seen.at <= i.last_at for i in closed)} - new
    counted = [h for h in hits if h.ids and h.seen.seq not in past]
    span = timedelta(seconds=seconds)
    for part in _parted(counted, seen.recovered_at):
        for first, last in _crowded(part, enough, span):
            burst = _of_one_client(part[first : last + 1], enough, span)
            if any(hit.seen.seq in new for hit in burst):
                yield _Burst(kind, burst)


def _parted(hits: Sequence[_Hit], at: datetime | None) -> Iterator[Sequence[_Hit]]:
    """What was before a recovery was finished, and what after it."""
    if at is None:
        yield hits
        return
    yield [hit for hit in hits if hit.seen.at <= at]
    yield [hit for hit in hits if hit.seen.at > at]


def _of_one_client(burst: Sequence[_Hit], enough: int, span: timedelta) -> Sequence[_Hit]:
    """Where single clients hit enough by themselves, what others did beside them is none of it; else all are."""
    alone = []
    for pid in dict.fromkeys(hit.seen.who.pid for hit in burst):
        own = [hit for hit in burst if hit.seen.who.pid == pid]
        alone += [hit for first, last in _crowded(own, enough, span) for hit in own[first : last + 1]]
    return sorted(alone, key=lambda hit: (hit.seen.at, hit.seen.seq)) or burst


def _crowded(hits: Sequence[_Hit], enough: int, span: timedelta) -> Iterator[tuple[int, int]]:
    """First and last index of each stretch in which spans that overlap have enough memories in them."""
    inside: dict[str, int] = {}
    first = 0
    stretch: tuple[int, int] | None = None
    for last, hit in enumerate(hits):
        for id_ in hit.ids:
            inside[id_] = inside.get(id_, 0) + 1
        while hit.seen.at - hits[first].seen.at > span:
            _take_out(inside, hits[first].ids)
            first += 1
        if len(inside) < enough:
            continue
        if stretch and first > stretch[1]:
            yield stretch
            stretch = None
        stretch = (stretch[0] if stretch else first, last)
    if stretch:
        yield stretch


def _take_out(inside: dict[str, int], ids: Iterable[str]) -> None:
    for id_ in ids:
        inside[id_] -= 1
        if not inside[id_]:
            del inside[id_]


def _burst_incident(
    burst: _Burst, seen: Evidence, thresholds: Thresholds, store: str, now: datetime, population: int
) -> Incident:
    first, last = burst.hits[0].seen, max(hit.seen.until for hit in burst.hits)
    open_ones = [i for i in seen.known if i.kind == burst.kind and not i.closed_at]
    if (over := seen.recovered_at) is not None and over < first.at:
        open_ones = [i for i in open_ones if i.restore_point > over]
    known = next((i for i in open_ones if i.restore_point <= last and first.at <= i.last_at), None)
    rows = _rows(burst, seen, known)
    begun = min(first.at, known.restore_point) if known else first.at
    ended = max(last, known.last_at) if known else last
    seconds = max(thresholds.seconds, round((ended - begun).total_seconds()))
    of_all = f" of {max(population, rows)}" if burst.kind == "bulk_update" else ""
    done = "deleted" if burst.kind == "rapid_deletes" else "given another content"
    key = known.key if known else f"{burst.kind}:{utc_text(first.at)}"
    return Incident(
        id=incident_id(store, key),
        key=key,
        kind=burst.kind,
        store=store,
        detected_at=now,
        restore_point=begun,
        last_at=ended,
        rows=rows,
        summary=f"{_memories(rows, of_all)} {done} within {seconds:g} s.",
        who=max(burst.hits, key=lambda hit: len(hit.ids)).seen.who,
        spans=_spans(burst, seen, known),
    )


def _spans(burst: _Burst, seen: Evidence, known: Incident | None) -> tuple[Interval, ...]:
    members = {hit.seen.seq for hit in burst.hits}
    kind: ObservationKind = "delete" if burst.kind == "rapid_deletes" else "update"
    others = [o.at for o in seen.around if o.kind == kind and o.seq not in members]
    found = merged_spans((Interval(hit.seen.at, hit.seen.until) for hit in burst.hits), others)
    return merged_spans((*known.spans, *found)) if known else found


def _rows(burst: _Burst, seen: Evidence, known: Incident | None) -> int:
    """Memories that it hit. What an incident on record counts already is known for the last span only.

    A client's first hits were none of it while there were few; they count once there are enough.
    """
    if known is None:
        return len(_ids(burst.hits))
    new, spans = {o.seq for o in seen.new}, known.spans or (Interval(known.restore_point, known.last_at),)
    parts: tuple[list[_Hit], list[_Hit]] = [], []
    for hit in burst.hits:
        is_counted = hit.seen.seq not in new and any(span.first <= hit.seen.at <= span.last for span in spans)
        parts[is_counted].append(hit)
    added, counted = parts
    return known.rows + len(_ids(added) - _ids(counted))


def _ids(hits: Iterable[_Hit]) -> set[str]:
    return {id_ for hit in hits for id_ in hit.ids}


def _events(seen: Evidence, store: str, now: datetime) -> Iterator[Incident]:
    """One incident for each event, which may have hit several things at once."""
    for kind in _EVENTS:
        event: list[Observation] = []
        for observation in _of(kind, seen.new):
            if event and not _same_event(event[-1], observation):
                yield _event_incident(event, seen.known, store, now)
                event = []
            event.append(observation)
        if event:
            yield _event_incident(event, seen.known, store, now)


_EVENTS: Mapping[ObservationKind, IncidentKind] = {"truncate": "truncate", "drop": "drop", "alter": "alter"}
_FOUND_BY_LOOKS = frozenset({"alter", "capture_off", "bookkeeping_missing", "table_missing", "table_recreated"})


def _same_event(one: Observation, other: Observation) -> bool:
    return one.who.pid == other.who.pid and other.at - one.until <= ONE_EVENT


def _event_incident(event: Sequence[Observation], known: Sequence[Incident], store: str, now: datetime) -> Incident:
    first, last = event[0], max(o.until for o in event)
    kind = _kind_of(event)
    key = next((i.key for i in known if _goes_on(i, kind, first)), None) or _key_of(kind, event, known)
    return Incident(
        id=incident_id(store, key),
        key=key,
        kind=kind,
        store=store,
        detected_at=now,
        restore_point=first.at,
        last_at=last,
        rows=max(o.rows for o in event),
        summary=_event_summary(kind, event),
        who=next((o.who for o in event if o.who != NOBODY_KNOWN), NOBODY_KNOWN),
    )


def _kind_of(event: Sequence[Observation]) -> IncidentKind:
    off = all(o.kind == "alter" and o.detail.startswith("trigger ") and SWITCHED_OFF in o.detail for o in event)
    return "capture_off" if off else _EVENTS[event[0].kind]


def _goes_on(incident: Incident, kind: IncidentKind, first: Observation) -> bool:
    """Whether an observation belongs to an event of which a part is on record, or that a look has found already."""
    near = timedelta() <= first.at - incident.last_at <= ONE_EVENT
    same = incident.kind == kind and incident.who.pid == first.who.pid and near
    looked = incident.kind in _FOUND_BY_LOOKS and incident.who == NOBODY_KNOWN
    found = looked and first.kind != "truncate" and incident.restore_point <= first.at <= incident.last_at
    return (same or found) and not incident.closed_at


def _key_of(kind: IncidentKind, event: Sequence[Observation], known: Sequence[Incident]) -> str:
    """What both the database and a look tell of a table that is gone has the table's key."""
    first = event[0]
    gone = next((o for o in event if o.table is not None and (o.kind == "drop" or o.detail.startswith(RENAMED))), None)
    if gone is not None:
        return free_key(f"gone:{gone.table}", gone.at, known)
    return f"{kind}:{first.table}:{utc_text(first.at)}"


def free_key(key: str, at: datetime, known: Sequence[Incident]) -> str:
    """The key itself, unless a person has closed that incident before: a table can be renamed twice."""
    closed = any(i.key == key and i.closed_at and i.last_at < at for i in known)
    return f"{key}:{utc_text(at)}" if closed else key


def _event_summary(kind: IncidentKind, event: Sequence[Observation]) -> str:
    rows = max(o.rows for o in event)
    held = f"; it held {rows} memories" if rows else ""
    hit = defused("; ".join(dict.fromkeys(clause(o.detail) for o in event if o.detail)), LONGEST_DETAIL)
    if kind == "truncate":
        return f"The table memories was emptied{held}."
    if kind == "capture_off":
        return f"Changes were not all captured until it was put back: {hit}."
    if kind == "alter":
        return f"The table memories was changed: {hit or 'how is not known'}."
    if all(o.table is None for o in event):
        return f"A part of the bookkeeping is gone: {hit.removesuffix(OF_THE_BOOKKEEPING)}."
    return f"The table memories is gone{held}."


def _memories(rows: int, of_all: str = "") -> str:
    return f"{rows}{of_all} memories were" if rows != 1 or of_all else "1 memory was"


def utc_text(at: datetime) -> str:
    """A time as keys have it."""
    return at.astimezone(UTC).isoformat()
