"""Incidents: what destroys is judged, put on record on both sides, and told of. Nothing is blocked.

Every step can be cut off anywhere and done again: an incident has the same id whoever sees it, and observations are
marked as judged in the transaction that records what they came to.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import anyio

from dionysus_sync_mcp.domain.destruction import (
    MOST_COUNTED,
    Evidence,
    Incident,
    Observation,
    Sight,
    Thresholds,
    Who,
    could_be_burst,
    details_of,
    is_loss,
    judge,
    original_contents,
    questions,
    told_who,
    widened,
)
from dionysus_sync_mcp.domain.errors import (
    AccessRefused,
    DatabaseMissing,
    DionysusError,
    InputError,
    Refused,
    SchemaMismatch,
    Unavailable,
)
from dionysus_sync_mcp.domain.text import defused, storable
from dionysus_sync_mcp.domain.watching import compare, database_missing
from dionysus_sync_mcp.engine.alerts import body_of
from dionysus_sync_mcp.engine.ports.alerts import AlertSink, DueAlert
from dionysus_sync_mcp.engine.ports.incidents import IncidentBook, Observing, RemoteIncidents
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity
from dionysus_sync_mcp.engine.reports import IncidentReport

logger = logging.getLogger(__name__)

JUDGE_SECONDS = 0.25
WATCH_SECONDS = 2.0
PUBLISH_SECONDS = 1.0
ADOPT_SECONDS = 30.0
# For the remote store's word on who was here, before the local store is looked at for the first time.
ASK_SECONDS = 1.0
# Who looks puts back what is missing after it, and must not wait for a remote store that hangs.
SAVE_SECONDS = 5.0
# How long what a look has counted is good for.
LATELY_SECONDS = 10.0
PRUNE_SECONDS = 3600.0
PRUNE_PAGE_SECONDS = 1.0
UNADOPTED_SECONDS = 1.0
PAGE = 1000
# Of observations, that somebody waits for who must not go on before they are judged.
MOST_PAGES = 100
MOST_KNOWN = 100
LONGEST_REASON = 500
# The local store cannot be asked: what the remote store knows is said.
NOT_HERE = (Unavailable, AccessRefused, SchemaMismatch)
LIST_THEM = "'dionysus-sync-mcp incidents' lists them."


@dataclass(slots=True)
class _Kept:
    """An incident that the local store cannot take now, and what was done about it so far."""

    incident: Incident
    saved: bool = False
    told: bool = False


class Unrecorded:
    """Incidents that are in no local book yet: kept in memory and in the remote store until one takes them."""

    def __init__(self, remote: RemoteIncidents, sink: AlertSink | None, project: str | None) -> None:
        self._remote = remote
        self._sink = sink
        self._project = project
        self._kept: dict[str, _Kept] = {}

    def incidents(self) -> list[Incident]:
        """Those that wait."""
        return [kept.incident for kept in self._kept.values()]

    def keep(self, incident: Incident) -> None:
        """Widens one that is kept already."""
        kept = self._kept.get(incident.id)
        if kept is None:
            self._kept[incident.id] = _Kept(incident)
            return
        merged = widened(kept.incident, incident)
        kept.saved = kept.saved and merged is kept.incident
        kept.incident = merged

    async def send(self) -> None:
        """Save each in the remote store, and tell the webhook; what fails is tried again by the next call."""
        for kept in list(self._kept.values()):
            await self._save(kept)
            await self._tell(kept)

    async def move_to(self, book: IncidentBook) -> None:
        """Put them on record in the local store."""
        for incident_id, kept in list(self._kept.items()):
            told = [incident_id] if kept.told else []
            await book.record([kept.incident], [], told)
            self._kept.pop(incident_id, None)

    async def _save(self, kept: _Kept) -> None:
        if kept.saved:
            return
        incident = kept.incident
        with suppress(DionysusError), anyio.move_on_after(SAVE_SECONDS):
            await self._remote.save_incidents([incident])
            kept.saved = kept.incident is incident

    async def _tell(self, kept: _Kept) -> None:
        if kept.told or self._sink is None:
            return
        incident = kept.incident
        alert = DueAlert(
            incident.id, "incident", incident.summary, details_of(incident), incident.detected_at, incident.store, 0
        )
        with suppress(DionysusError):
            await self._sink.post(incident.id, body_of(alert, self._project))
            kept.told = True


class Detector:
    """The use-case incidents.

    Args:
        identify: Which local store this is.
        locate: Where the database is, so that the remote store knows who was there when nobody else does any more.
        unrecorded: Shared with `IncidentRecords`, so that what only this process knows is shown.
        expected: Triggers of the capture.
    """

    def __init__(
        self,
        observing: Observing,
        book: IncidentBook,
        remote: RemoteIncidents,
        identify: Callable[[], Awaitable[StoreIdentity]],
        locate: Callable[[], Awaitable[str]],
        unrecorded: Unrecorded,
        *,
        thresholds: Thresholds,
        expected: frozenset[str],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._observing = observing
        self._book = book
        self._remote = remote
        self._identify = identify
        self._locate = locate
        self._unrecorded = unrecorded
        self._thresholds = thresholds
        self._expected = expected
        self._clock = clock
        self._turn = anyio.Lock()
        self._last: Sight | None = None
        self._looked_at = 0.0
        self._recent: dict[str, Incident] = {}
        # This local store, and those that the database was before.
        self.stores: set[str] = set()
        self._adopted_at: float | None = None
        self._placed: tuple[str | None, int | None] = None, None
        self._asked = False

    async def judge_once(self) -> float:
        """Judge a page of what was observed; the seconds to wait before the next one.

        One cheap query where nothing is new.
        """
        try:
            new = await self._observing.unjudged(PAGE)
            if new:
                await self._judge(new)
        except SchemaMismatch:  # a database that is not adopted yet has nothing to judge
            return UNADOPTED_SECONDS
        return 0.0 if len(new) == PAGE else JUDGE_SECONDS

    async def watch_once(self) -> float:
        """Compare a look at the local store with the look before it; the seconds to wait before the next one.

        Raises:
            DatabaseMissing: After an incident was made of it, if the store was seen before.
        """
        async with self._turn:
            try:
                with suppress(Refused):  # the loop that judges says so, and a look must not wait for that
                    await self.judge_once()
                await self._watch()
            except DatabaseMissing:
                await self._miss_database()
                raise
        return WATCH_SECONDS

    async def take_as_it_is(self) -> None:
        """A look that nothing is made of: what has changed since the one before was our own doing."""
        async with self._turn:
            await self._remember(await self._observing.sight(0))

    async def publish_once(self) -> float:
        """Bring both records to the same state; the seconds to wait before the next time."""
        await self._unrecorded.send()
        try:
            await self._unrecorded.move_to(self._book)
            await self._publish()
            await self._note_place()
            await self._adopt()
        except SchemaMismatch:
            return UNADOPTED_SECONDS
        return PUBLISH_SECONDS

    async def judge_all(self) -> bool:
        """Judge what was observed until now; whether nothing is left that nobody has judged.

        Raises:
            SchemaMismatch: The database is not adopted.
        """
        for _ in range(MOST_PAGES):
            if not await self._observing.unjudged(1):
                return True
            await self.judge_once()
        return not await self._observing.unjudged(1)

    async def stores_here(self) -> set[str]:
        """This local store, and those that were in its place before."""
        there = await self._remote.seen_at(await self._locate())
        return {(await self._identify()).id, *self.stores, *(sight.store for sight in there if sight.store)}

    async def prune_once(self) -> float:
        """Remove a page of observations that were judged long ago; the seconds to wait before the next one."""
        try:
            return PRUNE_PAGE_SECONDS if await self._observing.prune_observations() else PRUNE_SECONDS
        except SchemaMismatch:
            return PRUNE_SECONDS

    async def _judge(self, new: Sequence[Observation]) -> None:
        store = (await self._identify()).id
        span = timedelta(seconds=self._thresholds.seconds)
        first, last = min(o.at for o in new) - span, max(o.at for o in new) + span
        lately = self._population_lately()
        rows = await self._observing.rows_between(first, last)
        crowded = could_be_burst(rows, self._thresholds, lately)
        seqs = {o.seq for o in new}
        around = await self._observing.between(first, last) if crowded else []
        due = [o for o in around if o.judged or o.seq in seqs]
        asked = questions(new, due, self._thresholds, lately)
        live = await self._observing.live(sorted(asked.deleted)) if asked.deleted else frozenset()
        were = {id_: content for id_, content in original_contents(due).items() if id_ in live}
        evidence = Evidence(
            new=new,
            around=due,
            live=live,
            replaced=await self._observing.replaced(were) if were else {},
            population=await self._observing.population() if asked.population else lately,
            known=[i for i in await self._known() if i.store == store],
            recovered_at=await self._observing.recovered_at() if crowded else None,
        )
        if (asked.deleted or asked.population) and await self._emptied_since(seqs):
            return
        found = judge(evidence, self._thresholds, store, self._clock())
        try:
            new_ones = await self._book.record(found, sorted(seqs))
        except Refused:  # one text that cannot be kept must not keep the others from being judged
            bare = [replace(incident, who=Who()) for incident in found]
            new_ones = await self._book.record(bare, sorted(seqs))
        self._say(new_ones)

    async def _emptied_since(self, seqs: Collection[int]) -> bool:
        """Whether the table that was asked is another one, or empty, since then: these are judged with that."""
        later = [o for o in await self._observing.unjudged(PAGE) if o.seq not in seqs]
        return any(o.kind in ("truncate", "drop", "alter") for o in later)

    def _population_lately(self) -> int:
        """A table that is changed all the time is not counted for each change."""
        last = self._last
        if last is None or anyio.current_time() - self._looked_at > LATELY_SECONDS:
            return 0
        return MOST_COUNTED if last.table is not None and last.rows is None else last.rows or 0

    async def _watch(self) -> None:
        before = await self._before()
        now = await self._observing.sight(before.last_seq if before else 0)
        found = compare(before, now, self._thresholds, self._expected, await self._known())
        if found:
            await self._record(found)
        await self._remember(now)

    async def _before(self) -> Sight | None:
        """The look before. Where the bookkeeping is not the one that this process has seen, its own last one."""
        remembered: Sight | None = None
        with suppress(SchemaMismatch):
            remembered = await self._observing.remembered()
        last = self._last
        if last and last.store and (remembered is None or remembered.store != last.store):
            return last
        if remembered is None:
            return await self._of_the_remote()
        # Of these, another version of the program may have looked for other ones.
        whole, event_triggers = (last.whole, last.event_triggers) if last else (False, False)
        return replace(remembered, whole=whole, event_triggers=event_triggers)

    async def _of_the_remote(self) -> Sight | None:
        """Who was at this place, as the remote store knows it; asked by a process that has seen nothing itself.

        Not one of which the loss is on record there: that comes here with the rest of the record.
        """
        if self._asked or (self._last and self._last.store):
            return None
        with suppress(DionysusError), anyio.move_on_after(ASK_SECONDS):
            there = await self._remote.seen_at(await self._locate())
            here = [sight.store for sight in there if sight.store]
            lost = {incident.store for incident in await _all_there(self._remote, here) if is_loss(incident)}
            self._asked = True
            self.stores.update(here)
            return there[0] if there and there[0].store not in lost else None
        return None

    async def _remember(self, sight: Sight) -> None:
        with suppress(SchemaMismatch):
            await self._observing.remember(sight)
        self._last, self._looked_at = sight, anyio.current_time()
        if sight.store:
            self.stores.add(sight.store)

    async def _known(self) -> Sequence[Incident]:
        try:
            return await self._book.incidents(open_only=False, limit=MOST_KNOWN)
        except SchemaMismatch:
            return list(self._recent.values())

    async def _record(self, found: Sequence[Incident]) -> None:
        """In the local book, or, where that is what is gone, in memory and in the remote store."""
        try:
            self._say(await self._book.record(found, []))
        except SchemaMismatch:
            await self._keep(found)

    async def _keep(self, found: Sequence[Incident]) -> None:
        for incident in found:
            self._unrecorded.keep(incident)
        self._say(found)
        await self._unrecorded.send()

    async def _miss_database(self) -> None:
        last = self._last or await self._of_the_remote()
        if last is None or last.store is None:
            return
        self._last = last
        incident = database_missing(last, last.store, self._clock())
        if incident.id not in self._recent:
            await self._keep([incident])

    def _say(self, incidents: Sequence[Incident]) -> None:
        for incident in incidents:
            if incident.id not in self._recent:
                logger.warning("incident %s: %s", incident.id, incident.summary)
            self._recent[incident.id] = incident
        while len(self._recent) > MOST_KNOWN:
            self._recent.pop(next(iter(self._recent)))

    async def _publish(self) -> None:
        while page := await self._book.unpublished(MOST_KNOWN):
            await self._remote.save_incidents(page)
            await self._book.note_published(page)

    async def _note_place(self) -> None:
        last = self._last
        if last is None or last.store is None or self._placed == (last.store, last.table):
            return
        if await self._remote.note_place(await self._locate(), last):
            self._placed = last.store, last.table

    async def _adopt(self) -> None:
        """What only the remote store knows of this store, and of those that this database was before.

        And what it does not know any more, as one that was emptied: that is published again.
        """
        now = anyio.current_time()
        if self._adopted_at is not None and now - self._adopted_at < ADOPT_SECONDS:
            return
        here = await self._book.incidents(open_only=False, limit=MOST_KNOWN)
        stores = {(await self._identify()).id, *self.stores, *(i.store for i in here)}
        there = await _all_there(self._remote, stores)
        await self._book.adopt(there)
        await self._book.note_there(stores, there)
        self._adopted_at = now


class IncidentRecords:
    """What is on record of incidents: the local book, or the remote store's where that is away.

    Args:
        unrecorded: What only this process knows yet; `None` where it does not look itself.
        mine: Stores of which the remote's record is shown; all, as long as this is empty.
    """

    def __init__(
        self,
        book: IncidentBook,
        remote: RemoteIncidents,
        unrecorded: Unrecorded | None = None,
        mine: Collection[str] = (),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._book = book
        self._remote = remote
        self._unrecorded = unrecorded
        self._mine = mine
        self._clock = clock

    async def open(self, patience: float = math.inf) -> list[Incident]:
        """Those that nobody has closed, newest first."""
        return await self.newest(open_only=True, limit=MOST_KNOWN, patience=patience)

    async def newest(self, *, open_only: bool, limit: int, patience: float = math.inf) -> list[Incident]:
        """Newest first.

        Args:
            patience: Seconds after which a local store that does not answer counts as away.
        """
        found: list[Incident] | None = None
        with suppress(*NOT_HERE), anyio.move_on_after(patience):
            found = await self._book.incidents(open_only=open_only, limit=limit)
        if found is None:
            found = await self._remote.remote_incidents(open_only=open_only, limit=limit, stores=self._mine or None)
        ids = {incident.id for incident in found}
        waiting = self._unrecorded.incidents() if self._unrecorded else []
        both = [*(incident for incident in waiting if incident.id not in ids), *found]
        return sorted(both, key=lambda incident: incident.detected_at, reverse=True)[:limit]

    async def open_anywhere(self, stores: Collection[str] | None) -> list[Incident]:
        """Those that are open on either side; of the remote's record, of these stores, `None` for all.

        What was closed here is closed, also where the remote store has not heard of it yet.
        """
        there = await _all_there(self._remote, stores, open_only=True)
        found = {incident.id: incident for incident in await self.open()}
        for incident in there:
            if incident.id not in found and not await self._closed_here(incident.id):
                found[incident.id] = incident
        return sorted(found.values(), key=lambda incident: incident.detected_at, reverse=True)

    async def find(self, incident_id: str) -> Incident:
        """One of them.

        Raises:
            InputError: There is none with this id.
        """
        wanted = _uuid(incident_id)
        for incident in self._unrecorded.incidents() if self._unrecorded else []:
            if incident.id == wanted:
                return incident
        try:
            found = await self._book.incident(wanted) or await self._only_there(wanted)
        except NOT_HERE:
            found = await self._there(wanted)
        if found is None:
            raise _unknown(wanted)
        return found

    async def close(self, incident_id: str, reason: str) -> Incident:
        """Close one for good: it concerns no recovery any more, and the status says nothing of it.

        Raises:
            InputError: There is none with this id, it is closed, or the reason is empty or too long.
        """
        said = _reason(reason)
        incident = await self.find(incident_id)
        if incident.closed_at:
            raise _closed(incident)
        closed = replace(incident, closed_at=self._clock(), closed_reason=said, revision=incident.revision + 1)
        try:
            return await self._close_here(incident, closed)
        except NOT_HERE:
            await self._remote.save_incidents([closed])
            return closed

    async def _closed_here(self, incident_id: str) -> bool:
        with suppress(*NOT_HERE):
            known = await self._book.incident(incident_id)
            return known is not None and known.closed_at is not None
        return False

    async def _there(self, incident_id: str) -> Incident | None:
        there = await _all_there(self._remote, None)
        return next((incident for incident in there if incident.id == incident_id), None)

    async def _only_there(self, incident_id: str) -> Incident | None:
        """One that the local store does not know; while the remote one is away, nobody does."""
        with suppress(Unavailable, AccessRefused):
            return await self._there(incident_id)
        return None

    async def _close_here(self, incident: Incident, closed: Incident) -> Incident:
        if await self._book.incident(incident.id) is None:
            await self._book.adopt([incident])
        won = await self._book.close(incident.id, closed.closed_reason or "")
        found = await self._book.incident(incident.id) or closed
        if not won:
            raise _closed(found)
        with suppress(DionysusError):  # the background loop publishes what is not published
            await self._remote.save_incidents([found])
            await self._book.note_published([found])
        return found


async def _all_there(
    remote: RemoteIncidents, stores: Collection[str] | None, *, open_only: bool = False
) -> list[Incident]:
    """Every incident of these local stores that the remote store has on record; of all stores for `None`."""
    found: list[Incident] = []
    while page := await remote.remote_incidents(
        open_only=open_only, limit=MOST_KNOWN, stores=stores, after=found[-1] if found else None
    ):
        found += page
    return found


def report_of(incident: Incident) -> IncidentReport:
    """As it is shown: nothing of it can be run or acts on a terminal."""
    return IncidentReport(
        id=incident.id,
        kind=incident.kind,
        summary=incident.summary,
        detected_at=incident.detected_at,
        restore_point=incident.restore_point,
        last_at=incident.last_at,
        rows=incident.rows,
        closed_at=incident.closed_at,
        closed_reason=None if incident.closed_reason is None else defused(incident.closed_reason, LONGEST_REASON),
        **told_who(incident.who)._asdict(),
    )


def _uuid(text: str) -> str:
    try:
        return str(UUID(text.strip()))
    except ValueError:
        raise InputError("this is not the id of an incident", where="incident", hint=LIST_THEM) from None


def _unknown(incident_id: str) -> InputError:
    return InputError(f"there is no incident {incident_id}", where="incident", hint=LIST_THEM)


def _closed(incident: Incident) -> InputError:
    when = f"{incident.closed_at:%Y-%m-%d %H:%M:%S} UTC" if incident.closed_at else "meanwhile"
    why = defused(incident.closed_reason or "", LONGEST_REASON)
    return InputError(f"the incident {incident.id} was closed {when}: {why}", where="incident", hint=LIST_THEM)


def _reason(text: str) -> str:
    said = storable(text).strip()
    if not said:
        raise InputError("a reason is needed", where="reason", hint="Say in a sentence why it needs no attention.")
    if len(said) > LONGEST_REASON:
        raise InputError(
            f"the reason has {len(said)} characters, more than {LONGEST_REASON}", where="reason", hint="Shorten it."
        )
    return said
