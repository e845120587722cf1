"""An in-memory local store, for tests of the engine; its outbox passes the contract suite of the real one."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from dionysus_sync_mcp.domain.backoff import MOST_REFUSALS
from dionysus_sync_mcp.domain.errors import LineageMoved, Unavailable
from dionysus_sync_mcp.domain.memory import Operation, Properties, Version
from dionysus_sync_mcp.engine.ports.install import InstallStep
from dionysus_sync_mcp.engine.ports.push import Conflict, LiveVersion, QueueEntry, Settlement, Stamp
from dionysus_sync_mcp.engine.ports.recover import ContextResult, PageResult, Restoration
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity, SyncEvent
from dionysus_sync_mcp.engine.ports.status import Activity, LastCheck, LocalState

START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Row:
    """A row of the table: the user's columns, and ours."""

    properties: Properties
    version: int = 1
    status: str = "pending"
    confirmed: int | None = None

    @property
    def content_hash(self) -> str:
        """Of the user's columns."""
        return hashlib.sha256(repr(self.properties).encode()).hexdigest()


@dataclass
class MemoryLocal:
    """Implements `Outbox`, `Installation` and `Restorer`. `failure` is raised by the next calls while set."""

    identity_: StoreIdentity = field(default_factory=lambda: StoreIdentity("store", "epoch", 0, "never pushed"))
    rows: dict[str, Row] | None = field(default_factory=dict)
    entries: dict[int, QueueEntry] = field(default_factory=dict)
    parked: dict[int, str] = field(default_factory=dict)
    events: list[SyncEvent] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    superseded: set[int] = field(default_factory=set)
    not_due: set[int] = field(default_factory=set)  # parked entries whose time has not come
    deletions: dict[str, int] = field(default_factory=dict)
    compare_due: bool = False
    reports: list[dict[str, Any]] = field(default_factory=list)
    context: list[dict[str, Any]] = field(default_factory=list)
    captured: bool = True
    bookkeeping: bool = True
    shape: str | None = '{"columns": []}'
    refusing: set[str] = field(default_factory=set)
    refusal: str = "the table refuses it"
    held: set[str] = field(default_factory=set)  # rows that a transaction of somebody's holds
    locked: bool = False  # the whole table is somebody's
    waiting: set[int] = field(default_factory=set)
    failure: Exception | None = None
    pushing: bool = False
    last_seq: int = 0
    last_check: LastCheck | None = None
    recoveries: int = 0  # under way
    kept: dict[tuple[str, str], Row] = field(default_factory=dict)  # what recoveries have overwritten
    completed: list[str | None] = field(default_factory=list)  # definitions of which the rest was asked for
    gaps: int = 0

    # --- what a user does

    def write(self, memory_id: str, content: str) -> None:
        """Insert or update a row."""
        old = self.table.get(memory_id)
        time = self._now()
        properties = Properties(content, "semantic", 0.5, "p", None, [], time, time, None)
        version = old.version + 1 if old else 1
        self.table[memory_id] = Row(properties, version, confirmed=old.confirmed if old else None)
        self.capture(memory_id, "update" if old else "create")

    def delete(self, memory_id: str) -> None:
        """Delete a row."""
        self.capture(memory_id, "delete")
        del self.table[memory_id]

    def capture(self, memory_id: str, operation: Operation) -> None:
        """What the triggers do."""
        row = self.table[memory_id]
        if self.captured:
            number = row.version + (operation == "delete")
            version = Version(number, operation, row.content_hash, self._now(), row.properties)
            self.enqueue(QueueEntry(0, "memory", operation, START, memory_id, row.confirmed, version))

    def enqueue(self, entry: QueueEntry) -> None:
        """Give an entry its place."""
        self.last_seq += 1
        self.entries[self.last_seq] = replace(entry, seq=self.last_seq, id=f"entry {self.last_seq}")

    @property
    def table(self) -> dict[str, Row]:
        """The rows; an error where the table is gone."""
        if self.rows is None:
            raise AssertionError("the table is gone")
        return self.rows

    def _now(self) -> str:
        return (START + timedelta(seconds=self.last_seq)).isoformat()

    def _check(self) -> None:
        if self.failure:
            raise self.failure

    # --- Outbox

    @asynccontextmanager
    async def claim(
        self,
        rows: int,
        size: int,
        seconds: float = 5.0,  # noqa: ARG002 - nothing in memory takes long
    ) -> AsyncIterator["MemoryClaim | None"]:
        """Entries in order; what was settled takes hold when the claim is left without an error."""
        self._check()
        if self.pushing:
            yield None
            return
        self.pushing = True
        try:
            claim = MemoryClaim(self, self.identity_, self._bounded(rows, size))
            yield claim
            if claim.settlement:
                self._check_lineage(claim)
                self._settle(claim.settlement, claim)
        finally:
            self.pushing = False

    async def anything_queued(self) -> bool:
        """Parked entries do not count."""
        return await self.queue_length() > 0

    async def queue_length(self) -> int:
        """Parked entries do not count."""
        self._check()
        return len(self.entries.keys() - self.parked.keys())

    async def retry_parked_once(self, limit: int, *, due_only: bool) -> int:
        """Those that were refused, not those that the capture parked."""
        self._check()
        open_ = {seq: self.entries[seq].refusals for seq in sorted(self.parked.keys() - self.superseded)}
        chosen = [
            seq
            for seq, refusals in open_.items()
            if refusals and not (due_only and (seq in self.not_due or refusals >= MOST_REFUSALS))
        ][:limit]
        for seq in chosen:
            del self.parked[seq]
        ids = sorted({self.entries[seq].memory_id or "" for seq in chosen} - {""})
        self.events += [SyncEvent("local_to_remote", "queued", len(chosen), ids)] if chosen else []
        return len(chosen)

    async def note_outage(self, memory_ids: Sequence[str], event: SyncEvent) -> None:
        """Mark and audit."""
        self._check()
        self.events.append(event)
        self._mark([] if self.locked else memory_ids, "queued")

    def _bounded(self, rows: int, size: int) -> list[QueueEntry]:
        chosen: list[QueueEntry] = []
        used = 0
        queued = [e for seq, e in sorted(self.entries.items()) if seq not in self.parked]
        due = [e for e in queued if e.seq not in self.waiting]
        for entry in due[:rows]:
            if used >= size:
                break
            used += len((entry.version.properties.content if entry.version else None) or "")
            chosen.append(entry)
        taken = {e.memory_id for e in chosen if e.memory_id}
        return sorted([*chosen, *(e for e in queued if e.seq in self.waiting and e.memory_id in taken)], key=_seq)

    def wait(self) -> None:
        """Until what waits and what is parked is due again."""
        self.waiting.clear()
        self.not_due.clear()

    def _check_lineage(self, claim: "MemoryClaim") -> None:
        if claim.settlement and claim.settlement.lineage and self.identity_.lineage != claim.identity.lineage:
            raise LineageMoved

    def _mark(self, memory_ids: Sequence[str], status: str) -> None:
        for memory_id in memory_ids:
            if self.rows and memory_id in self.rows:
                self.rows[memory_id] = replace(self.rows[memory_id], status=status)

    def _settle(self, settlement: Settlement, claim: "MemoryClaim") -> None:
        last = {e.memory_id: e.seq for e in claim.entries if e.memory_id and not e.broken}
        changed = {*(s.memory_id for s in settlement.rebased), *(m.id for m in settlement.pulled)}
        held = (changed if self.locked else self.held & changed) | (claim.unseen & last.keys())
        kept = {last[s.memory_id]: s.version for s in settlement.stamps if not self._carried_on(s, last[s.memory_id])}
        left = kept.keys() | {last[i] for i in held}
        for seq in left:
            entry = self.entries[seq]
            self.entries[seq] = replace(entry, base_version=kept.get(seq, entry.base_version), waited=True)
        parked_ids = [self.entries[p.seq].memory_id or "" for p in settlement.parked]
        self._park(settlement)
        for seq in set(settlement.acknowledged) - left:
            del self.entries[seq]
        self.waiting = (self.waiting | left) & self.entries.keys()
        self.conflicts += [c for c in settlement.conflicts if c.memory_id not in held and c not in self.conflicts]
        self._confirm(settlement, last)
        self.events += [settlement.event] if settlement.event else []
        self._mark([] if self.locked else parked_ids, "failed")
        if self.rows is not None and not self.locked:
            self._settle_rows(self.rows, settlement)

    def _park(self, settlement: Settlement) -> None:
        for parking in settlement.parked:
            entry = self.entries[parking.seq]
            self.entries[parking.seq] = replace(entry, refusals=entry.refusals + 1)
            self.parked[parking.seq] = parking.error
            self.not_due.add(parking.seq)

    def _confirm(self, settlement: Settlement, last: dict[str, int]) -> None:
        for stamp in settlement.deleted:
            self.deletions[stamp.memory_id] = stamp.version
        for stamp in settlement.stamps:
            self.deletions.pop(stamp.memory_id, None)
        for stamp in (*settlement.stamps, *settlement.deleted):
            self.superseded |= {
                seq
                for seq in self.parked
                if self.entries[seq].memory_id == stamp.memory_id and seq < last.get(stamp.memory_id, 0)
            }
        if settlement.lineage:
            here = self.identity_
            new, repeated = settlement.lineage, settlement.repeated
            self.identity_ = replace(here, generation=here.generation + 1, lineage=new, repeated=repeated)
            self.compare_due = self.compare_due or settlement.compare

    def _carried_on(self, stamp: Stamp, last: int) -> bool:
        """Whether nothing of this memory has to wait; what was captured since counts on, if its row can be stamped."""
        if stamp.version <= stamp.captured or self.rows is None:
            return True
        later = [
            e for s, e in self.entries.items() if s > last and s not in self.parked and e.memory_id == stamp.memory_id
        ]
        row = self.rows.get(stamp.memory_id)
        if self.locked:
            return False
        if row is None or stamp.memory_id in self.held:
            return row is None and not later
        if row.version < stamp.captured or any(e.operation != "update" for e in later):
            return not later
        further = stamp.version - stamp.captured
        status = "synced" if row.version == stamp.captured else row.status
        self.rows[stamp.memory_id] = replace(row, version=row.version + further, status=status, confirmed=stamp.version)
        for entry in later:
            self._count_on(entry, further, stamp.version)
        return True

    def _count_on(self, entry: QueueEntry, further: int, confirmed: int) -> None:
        if entry.version:
            version = replace(entry.version, number=entry.version.number + further)
            self.entries[entry.seq] = replace(entry, version=version, base_version=confirmed)

    def _settle_rows(self, rows: dict[str, Row], settlement: Settlement) -> None:
        free = rows.keys() - self.held
        sent = max(settlement.acknowledged, default=0)
        unchanged = free - {e.memory_id for s, e in self.entries.items() if s > sent and s not in self.parked}
        for held in settlement.rebased:
            if held.memory_id in unchanged and rows[held.memory_id].version <= held.version:
                row = replace(rows[held.memory_id], version=held.version + 1, confirmed=held.version, status="pending")
                rows[held.memory_id] = row
                self.capture(held.memory_id, "update")
        for memory in settlement.pulled:
            if memory.id in unchanged:
                rows[memory.id] = Row(Properties(*memory[4:]), memory.version, "synced", memory.version)
        for stamp in settlement.stamps:
            found = rows.get(stamp.memory_id)
            if stamp.version <= stamp.captured <= (found.version if found else 0) and stamp.memory_id in free and found:
                status = "synced" if found.version == stamp.captured else found.status
                rows[stamp.memory_id] = replace(found, status=status, confirmed=stamp.version)

    # --- Installation

    async def missing_steps(self) -> tuple[list[InstallStep], bool]:
        """One step, where capture is not installed."""
        self._check()
        return ([] if self.captured and self.bookkeeping else [InstallStep("install", "")]), self.rows is not None

    async def install(self) -> tuple[list[InstallStep], bool]:
        """Put back what is missing."""
        steps = await self.missing_steps()
        self.rows = self.rows if self.rows is not None else {}
        self.captured = self.bookkeeping = True
        return steps

    async def identity(self) -> StoreIdentity:
        """Which store this is."""
        return self.identity_

    async def initialised(self) -> bool:
        """Whether the bookkeeping is there."""
        self._check()
        return self.bookkeeping

    async def table_present(self) -> bool:
        """Whether the table is there."""
        self._check()
        return self.rows is not None

    async def capture_installed(self) -> bool:
        """Whether changes are captured."""
        self._check()
        return self.rows is not None and self.captured and self.bookkeeping

    async def backfill_once(self, limit: int) -> int:
        """Queue rows that wait and have no entry."""
        queued = {e.memory_id for seq, e in self.entries.items() if seq not in self.superseded}
        missed = [i for i, row in sorted(self.table.items()) if row.status != "synced" and i not in queued][:limit]
        for memory_id in missed:
            self.capture(memory_id, "create")
        return len(missed)

    async def gap(self) -> datetime | None:
        """The last one that was noted."""
        return START + timedelta(seconds=self.gaps) if self.gaps else None

    async def note_gap(self) -> None:
        """Count it."""
        self._check()
        self.gaps += 1

    async def definition(self) -> str | None:
        """The shape, where there is a table."""
        return self.shape if self.rows is not None else None

    # --- Restorer

    @asynccontextmanager
    async def recovering(self) -> AsyncIterator[None]:
        """Until it is over, however that is."""
        self.recoveries += 1
        try:
            yield
        finally:
            self.recoveries -= 1

    async def ensure_schema(self, definition: str | None) -> list[str]:
        """Make what is missing."""
        self._check()
        self.shape = definition if self.rows is None and definition else self.shape
        await self.install()
        return []

    async def complete_schema(self, definition: str | None) -> list[str]:
        """Note that it was asked for."""
        self._check()
        self.completed.append(definition)
        return []

    async def restore(self, recovery_id: str, restorations: Sequence[Restoration]) -> PageResult:
        """Insert what is not there, overwrite what is as it was seen; `refusing` are ids that the table refuses."""
        self._check()
        moved = [r.memory.id for r in restorations if not self._is_as_seen(r)]
        there = [r for r in restorations if r.overwrites is None and r.memory.id in self.table]
        chosen = [r for r in restorations if r not in there and r.memory.id not in moved]
        good = [r for r in chosen if r.memory.id not in self.refusing]
        overwritten = [r for r in good if r.overwrites is not None]
        for one in overwritten:
            self.kept[recovery_id, one.memory.id] = self.table[one.memory.id]
        for one in good:
            self._write_restored(one)
        mismatched = [r.memory.id for r in good if not self._is_as_meant(r)]
        refused = [(r.memory.id, self.refusal) for r in chosen if r not in good]
        refused += [(memory_id, "changed meanwhile") for memory_id in moved]
        verified = len(good) - len(mismatched)
        return PageResult(len(good), verified, len(there), refused, mismatched, len(overwritten))

    def _is_as_meant(self, restoration: Restoration) -> bool:
        return restoration.refilled or self.table[restoration.memory.id].content_hash == restoration.memory.content_hash

    def _is_as_seen(self, restoration: Restoration) -> bool:
        row = self.table.get(restoration.memory.id)
        return restoration.overwrites is None or (row is not None and row.content_hash == restoration.overwrites)

    def _write_restored(self, restoration: Restoration) -> None:
        memory = restoration.memory
        status = "pending" if restoration.is_new else "synced"
        self.table[memory.id] = Row(Properties(*memory[4:]), restoration.number, status, restoration.confirmed)
        if restoration.is_new:
            self.capture(memory.id, "update")

    async def waiting_ids(self) -> list[str]:
        """Of the entries that are not parked."""
        return [e.memory_id for seq, e in self.entries.items() if e.memory_id and seq not in self.parked]

    async def restore_context(
        self,
        sessions: Sequence[dict[str, Any]],
        projects: Sequence[dict[str, Any]],
        references: Sequence[dict[str, Any]] = (),
    ) -> ContextResult:
        """Keep them."""
        linked = [row for row in references if {row["source_id"], row["target_id"]} <= self.table.keys()]
        fresh = [row for row in linked if row not in self.context]
        self.context += [*sessions, *projects, *fresh]
        return ContextResult([], len(fresh))

    async def confirmed_ids(self, after: str, limit: int) -> list[str]:
        """A page."""
        return [i for i, row in sorted((self.rows or {}).items()) if i > after and row.status == "synced"][:limit]

    async def forget_confirmation(self, memory_ids: Sequence[str], event: SyncEvent) -> int:
        """Mark and audit."""
        self._check()
        self._mark(memory_ids, "pending")
        self.events.append(event)
        return len(memory_ids)

    async def state(self) -> LocalState:
        """What it says of itself."""
        self._check()
        return LocalState(
            table_present=self.rows is not None,
            capture_installed=await self.capture_installed(),
            initialised=self.bookkeeping,
            memories=len(self.rows or ()),
            queued=await self.queue_length(),
            parked=len(self.parked.keys() - self.superseded),
            oldest_queued_at=None,
            last_success_at=None,
            open_conflicts=len(self.conflicts),
            last_parked_error=next((e for s, e in reversed(self.parked.items()) if s not in self.superseded), None),
            identity=self.identity_,
        )

    async def has_entry(self, entry_id: str) -> bool:
        """Parked ones too."""
        return any(entry.id == entry_id for entry in self.entries.values())

    async def activity(self, since: datetime) -> Activity:
        """Of the events, as if none were older."""
        assert since.tzinfo is not None
        self._check()
        return Activity(pushes=len(self.events), conflicts=len(self.conflicts), last_check=self.last_check)

    async def record_recovery(self, report: dict[str, Any], event: SyncEvent) -> None:
        """Keep both."""
        self.reports.append(report)
        self.events.append(event)


@dataclass
class MemoryClaim:
    """Implements `Claim`."""

    local: MemoryLocal
    identity: StoreIdentity
    entries: Sequence[QueueEntry]
    settlement: Settlement | None = None
    unseen: set[str] = field(default_factory=set)

    async def live_versions(self, memory_ids: Sequence[str]) -> dict[str, LiveVersion | None]:
        """Those that are there."""
        if self.local.locked:
            self.unseen |= set(memory_ids)
            return dict.fromkeys(memory_ids)
        rows = self.local.rows or {}
        return {
            i: LiveVersion(rows[i].version, (rows[i].properties.content or "")[:100], rows[i].confirmed)
            for i in memory_ids
            if i in rows
        }

    async def has_entry(self, entry_id: str) -> bool:
        """Parked ones too."""
        return any(entry.id == entry_id for entry in self.local.entries.values())

    async def settle(self, settlement: Settlement) -> None:
        """Takes hold when the claim is left."""
        if isinstance(self.local.failure, Unavailable):
            raise self.local.failure
        self.settlement = settlement


def _seq(entry: QueueEntry) -> int:
    return entry.seq
