"""Drill: brings everything back into a scratch schema, compares it with what is here, and throws it away (P6)."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import uuid4

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from dionysus_sync_mcp.domain.definition import reshaped
from dionysus_sync_mcp.domain.drift import Here
from dionysus_sync_mcp.domain.drilling import is_due, scratch_definition
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.domain.text import defused, line
from dionysus_sync_mcp.engine.definitions import definition_for
from dionysus_sync_mcp.engine.ports.alerts import NewAlert
from dionysus_sync_mcp.engine.ports.drill import LocalDrilling, Scratch
from dionysus_sync_mcp.engine.ports.install import Installation
from dionysus_sync_mcp.engine.ports.recover import RemoteReader
from dionysus_sync_mcp.engine.ports.shared import OnProgress, Scope, SyncEvent
from dionysus_sync_mcp.engine.ports.verify import LocalComparison, LocalSnapshot
from dionysus_sync_mcp.engine.reports import DrillReport, Example
from dionysus_sync_mcp.engine.tasks import first_error

logger = logging.getLogger(__name__)

LOOK_SECONDS = 60.0
PAGE = 2000
PAGES_AHEAD = 2
# Each has a connection, which keeps one core of the local store busy.
WRITERS = 2
LOOK_PAGE = 1000
MOST_WAITING = 10_000
# Beyond it, differences count as they were seen first.
MOST_DIFFERENCES = 10_000
PAUSE_SECONDS = 0.5
EXAMPLES = 5
EXCERPT = 80
REASON = 200
NAMED_IDS = 100
INCIDENT = "an incident is open, and until it is closed it is not known what should come back"
NO_RIGHT = "the role that DATABASE_URL names may not make a schema in this database"
NOTHING = "there is no memory here that could be compared"
VERIFY = "Run 'dionysus-sync-mcp verify' to see what differs, and 'verify --repair' for what mends it."


class _Pair(NamedTuple):
    """The hash of a row, and of what came back in its place; `None` where nothing did."""

    here: str
    back: str | None


@dataclass(slots=True)
class _Found:
    """What a drill has found so far.

    Attributes:
        skipped: Why it was not carried out, a clause; `None` where it was.
        verified: Rows that came back as they are.
        moved: Rows that changed, or went, while they were compared.
        refused: Why the scratch table did not take some.
        unlooked: Differences beyond those that are held.
        noted: Whether the table's definition is in the remote store.
        faults: What of it could not be made.
    """

    skipped: str | None = None
    noted: bool = True
    faults: Sequence[str] = ()
    verified: int = 0
    left_out: int = 0
    parked: int = 0
    moved: int = 0
    refused: dict[str, str] = field(default_factory=dict)
    differing: dict[str, _Pair] = field(default_factory=dict)
    unlooked: list[int] = field(default_factory=lambda: [0, 0])

    def note(self, memory_id: str, pair: _Pair) -> None:
        """A row that was compared."""
        if pair.here == pair.back:
            self.verified += 1
        elif len(self.differing) < MOST_DIFFERENCES:
            self.differing[memory_id] = pair
        else:
            self.unlooked[pair.back is not None] += 1

    def note_refused(self, refused: Sequence[tuple[str, str]]) -> None:
        """What the scratch table did not take; no more is kept than may be shown."""
        for memory_id, reason in refused[: MOST_DIFFERENCES - len(self.refused)]:
            self.refused[memory_id] = reason

    @property
    def compared(self) -> int:
        """Rows that were compared, and were the same at both looks."""
        return self.verified + self.missing + self.different

    @property
    def missing(self) -> int:
        """Rows of which nothing came back."""
        return sum(pair.back is None for pair in self.differing.values()) + self.unlooked[0]

    @property
    def different(self) -> int:
        """Rows that came back with another content."""
        return sum(pair.back is not None for pair in self.differing.values()) + self.unlooked[1]


class Driller:
    """The use-case drill.

    Args:
        incident_open: Whether an incident is open.
        alert: Puts alerts on record; how many were new.
        hours: Between two drills that the background loop makes; 0: none.
        pause: Seconds between the two looks at what differs; longer than a push's poll.
    """

    def __init__(
        self,
        comparison: LocalComparison,
        drilling: LocalDrilling,
        reader: RemoteReader,
        installation: Installation,
        *,
        incident_open: Callable[[], Awaitable[bool]],
        alert: Callable[[list[NewAlert]], Awaitable[int]],
        hours: float,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        self._comparison = comparison
        self._drilling = drilling
        self._reader = reader
        self._installation = installation
        self._incident_open = incident_open
        self._alert = alert
        self._hours = hours
        self._pause = pause
        self._started = False
        self._tidy = False
        self._waits_for: str | None = None

    async def drill_once(self, now: datetime, on_progress: OnProgress | None = None) -> DrillReport:
        """Bring everything back that is here, compare each row, and put the result on record; safe to repeat.

        Memories of which a change waits are left out. Others are compared twice, some time apart: only what differs
        in the same way both times counts.

        Raises:
            Unavailable: A store is away; there is no result then.
        """
        started = time.monotonic()
        drill_id = str(uuid4())
        async with self._drilling.alone() as alone:
            found = await self._drill(on_progress) if alone else _Found("another drill is under way")
            examples = await self._examples(found)
            seconds = time.monotonic() - started
            report = _report(found, examples, now + timedelta(seconds=seconds), seconds)
            if alone and await self._installation.initialised():
                await self._drilling.record(drill_id, report.result, report.model_dump(mode="json"), _event(report))
        if report.result == "failed":
            await self._alert([_alert(drill_id, report, list(found.differing))])
        return report

    async def drill_if_due(self, now: datetime) -> float:
        """What the background loop does: a drill when it is time, and nothing is in its way; the seconds to wait.

        Never at once: who starts the program wants something else of it first. What a killed drill has left is removed
        also where none is due.
        """
        if not self._started:
            self._started = True
            return LOOK_SECONDS
        if not self._tidy:
            await self._remove_left_behind()
            self._tidy = True
        if not self._hours or await self._comparison.obstacle():
            return LOOK_SECONDS
        if not is_due(*await self._drilling.ages(), self._hours):
            return LOOK_SECONDS
        reason = await self._hindrance()
        if reason and reason != self._waits_for:
            logger.info("the drill waits: %s", reason)
        self._waits_for = reason
        if reason is None:
            report = await self.drill_once(now)
            logger.info("drill %s: %d memories came back as they are here", report.result, report.verified)
        return LOOK_SECONDS

    async def _remove_left_behind(self) -> None:
        async with self._drilling.alone() as alone:
            if alone:
                await self._drilling.remove_left_behind()

    async def _hindrance(self) -> str | None:
        """Why a drill would say nothing now, a clause; `None` if it would."""
        if reason := await self._comparison.obstacle():
            return reason
        if await self._incident_open():
            return INCIDENT
        async with self._comparison.snapshot(MOST_WAITING) as snapshot:
            return None if snapshot.queue.waiting is not None else _too_many()

    async def _drill(self, on_progress: OnProgress | None) -> _Found:
        if reason := await self._hindrance():
            return _Found(reason)
        if not await self._drilling.may_drill():
            return _Found(NO_RIGHT)
        await self._drilling.remove_left_behind()
        noted, current = await self._definitions()
        if noted and current and reshaped(current, noted):
            return _Found("the table has changed its shape, which is not in the remote store yet")
        found = _Found(noted=noted is not None)
        async with self._drilling.scratch(scratch_definition(noted or current or "{}")) as scratch:
            found.faults = scratch.faults
            await self._bring_back(scratch, found, on_progress)
            async with self._comparison.snapshot(MOST_WAITING) as snapshot:
                await self._compare(snapshot, scratch, found)
            await self._look_again(scratch, found)
        if not found.skipped and not found.compared:
            found.skipped = NOTHING
        return found

    async def _definitions(self) -> tuple[str | None, str | None]:
        """The one that a recovery would go by, and the table's own."""
        noted = await definition_for(self._reader, self._installation)
        return noted, await self._installation.definition()

    async def _bring_back(self, scratch: Scratch, found: _Found, on_progress: OnProgress | None) -> None:
        """Reading runs a few pages ahead of writing."""
        send, receive = anyio.create_memory_object_stream[list[RemoteMemory]](PAGES_AHEAD)
        with first_error():
            async with anyio.create_task_group() as tasks, receive:
                tasks.start_soon(self._read, send, on_progress)
                for _ in range(WRITERS):
                    tasks.start_soon(_write, scratch, receive.clone(), found)

    async def _read(self, send: MemoryObjectSendStream[list[RemoteMemory]], on_progress: OnProgress | None) -> None:
        async with send:
            last, read = "", 0
            while page := await self._reader.memories(Scope(), last, PAGE):
                last, read = page[-1].id, read + len(page)
                if live := [memory for memory in page if memory.deleted_at is None]:
                    await send.send(live)
                if on_progress:
                    await on_progress(read, None, f"{read} memories read from the remote store")

    async def _compare(self, snapshot: LocalSnapshot, scratch: Scratch, found: _Found) -> None:
        """One pass over all rows here, as they were at one moment."""
        if snapshot.queue.waiting is None:
            found.skipped = _too_many()
            return
        found.parked = len(snapshot.queue.parked)
        send, receive = anyio.create_memory_object_stream[Sequence[tuple[str, Here]]](PAGES_AHEAD)
        with first_error():
            async with anyio.create_task_group() as tasks, receive:
                tasks.start_soon(_feed, snapshot.rows(), send)
                async for page in receive:
                    rows = {i: row.content_hash for i, row in page if i not in snapshot.queue.waiting}
                    found.left_out += len(page) - len(rows)
                    back = await scratch.hashes(list(rows))
                    for memory_id, content_hash in rows.items():
                        found.note(memory_id, _Pair(content_hash, back.get(memory_id)))

    async def _look_again(self, scratch: Scratch, found: _Found) -> None:
        """Differences count that two more looks see in the same state; of the rest, each is in one of the counts.

        Each look reads the remote first. What is here without a waiting change at the first look has been pushed by
        then, so the second look at the remote must see it.
        """
        first = await self._look(list(found.differing), scratch, found)
        found.differing = {}
        if not first:
            return
        await anyio.sleep(self._pause)
        second = await self._look(list(first), scratch, found)
        found.differing = {i: pair for i, pair in second.items() if pair == first[i]}
        found.moved += len(second) - len(found.differing)

    async def _look(self, memory_ids: Sequence[str], scratch: Scratch, found: _Found) -> dict[str, _Pair]:
        """Bring these back anew; those that still differ. What agrees now, and what has moved, is counted."""
        differing: dict[str, _Pair] = {}
        for start in range(0, len(memory_ids), LOOK_PAGE):
            ids = memory_ids[start : start + LOOK_PAGE]
            there = [memory for memory in await self._reader.by_id(ids) if memory.deleted_at is None]
            await scratch.clear(ids)
            found.note_refused(await scratch.restore(there) if there else [])
            here, _, waiting = await self._comparison.look(ids)
            back = await scratch.hashes(ids)
            for i in ids:
                if i in waiting or i not in here:
                    found.moved += 1
                elif here[i].content_hash == back.get(i):
                    found.verified += 1
                else:
                    differing[i] = _Pair(here[i].content_hash, back.get(i))
        return differing

    async def _examples(self, found: _Found) -> list[Example]:
        if not found.differing:
            return []
        shown = await self._drilling.show(sorted(found.differing)[:EXAMPLES])
        return [
            Example(
                memory_id=one.memory_id,
                project=line(one.project, EXCERPT) if one.project else None,
                excerpt=line(one.content or "", EXCERPT),
                reason=_reason(found.differing[one.memory_id], found.refused.get(one.memory_id)),
            )
            for one in shown
        ]


async def _write(scratch: Scratch, receive: MemoryObjectReceiveStream[list[RemoteMemory]], found: _Found) -> None:
    async with receive:
        async for memories in receive:
            found.note_refused(await scratch.restore(memories))


async def _feed(
    pages: AsyncIterator[Sequence[tuple[str, Here]]], send: MemoryObjectSendStream[Sequence[tuple[str, Here]]]
) -> None:
    async with send:
        async for page in pages:
            await send.send(page)


def _too_many() -> str:
    return f"more than {MOST_WAITING} memories wait to be pushed"


def _reason(pair: _Pair, refused: str | None) -> str:
    if refused:
        return defused(refused, REASON)
    return "nothing came back" if pair.back is None else "another content came back"


def _report(found: _Found, examples: list[Example], finished_at: datetime, seconds: float) -> DrillReport:
    failed = found.missing + found.different
    return DrillReport(
        result="skipped" if found.skipped else "failed" if failed else "passed",
        next_step=_advice(found),
        warnings=_warnings(found),
        finished_at=finished_at,
        recovered=found.verified + found.different,
        verified=found.verified,
        missing=found.missing,
        different=found.different,
        left_out=found.left_out + found.moved,
        examples=examples,
        duration_ms=round(1000 * seconds),
    )


def _advice(found: _Found) -> str:
    if found.skipped == NO_RIGHT:
        return "Grant this role CREATE on the database, so that recoveries can be tried out."
    if found.skipped == INCIDENT:
        return (
            "Call recover_from_remote without plan_id, then close the incident: 'dionysus-sync-mcp incidents' lists it."
        )
    if found.skipped:
        return "Call get_sync_status to see what is in the way."
    if found.missing or found.different:
        return VERIFY
    return "Nothing to do: every memory that was compared came back as it is here."


def _warnings(found: _Found) -> list[str]:
    if found.skipped:
        return [f"Nothing was tried: {found.skipped}."]
    said: Mapping[str, int] = {
        "{} memories that are here did not come back from the remote store.": found.missing,
        "{} memories came back from the remote store with another content than they have here.": found.different,
        "{} memories are left out since a change of theirs is parked; see get_sync_status.": found.parked,
    }
    warnings = [text.format(number) for text, number in said.items() if number]
    if not found.noted:
        warnings.append("The table's definition is not in the remote store yet; a worker notes it.")
    return [*warnings, *(f"A recovery could not make all of the table: {defused(f, REASON)}." for f in found.faults)]


def _event(report: DrillReport) -> SyncEvent | None:
    """Of this direction, so that it counts neither as a push nor as the last success of one."""
    if report.result == "skipped":
        return None
    said = f"{report.verified} verified, {report.missing} missing, {report.different} different"
    return SyncEvent(
        direction="remote_to_local",
        result="success" if report.result == "passed" else "failed",
        record_count=report.recovered,
        memory_ids=[example.memory_id for example in report.examples],
        error_message=f"drill {report.result}: {said}",
        duration_ms=report.duration_ms,
    )


def _alert(drill_id: str, report: DrillReport, memory_ids: Sequence[str]) -> NewAlert:
    return NewAlert(
        key=f"drill_failed:{drill_id}",
        kind="drill_failed",
        summary=(
            f"A recovery was tried out and failed: {report.missing} memories did not come back, "
            f"{report.different} came back otherwise."
        ),
        details={
            "missing": report.missing,
            "different": report.different,
            "verified": report.verified,
            "memory_ids": sorted(memory_ids)[:NAMED_IDS],
        },
    )
