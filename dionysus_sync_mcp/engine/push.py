"""Push: queue entries to the remote store, claimed and acknowledged in one transaction of the local store."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from dionysus_sync_mcp.domain.conflict import decide_consequence
from dionysus_sync_mcp.domain.context import CONTEXT_COLUMNS
from dionysus_sync_mcp.domain.errors import (
    DionysusError,
    LineageMoved,
    OutcomeUnknown,
    Refused,
    RemoteDamaged,
    StoreRolledBack,
    TimedOut,
    Unavailable,
)
from dionysus_sync_mcp.domain.folding import fold
from dionysus_sync_mcp.domain.lineage import Lineage, RemoteLineage, Standing, standing
from dionysus_sync_mcp.domain.memory import MemoryChange, RemoteMemory, Version
from dionysus_sync_mcp.domain.pacing import Budget, Pace
from dionysus_sync_mcp.engine.ports.push import (
    Claim,
    Conflict,
    LiveVersion,
    Move,
    Outbox,
    Parking,
    QueueEntry,
    RemoteBatch,
    RemoteWriter,
    Replaced,
    RowOutcome,
    Settlement,
    Stamp,
)
from dionysus_sync_mcp.engine.ports.recover import RemoteReader
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity, SyncEvent

UNLINKED = "one of the two memories is not in the remote store"
_ILL = "Look into the log of the remote store; the changes are kept and tried again."
_ROLLED_BACK = (
    "Run 'dionysus-sync-mcp verify --repair --prefer remote' to take over what the remote store holds, or "
    "--prefer local to let this database count; both show a plan first."
)
RETRY_SECONDS = 10.0
# A batch that is too slow shrinks; only one that does not get through all the same is an outage.
SHRINKING_TRIES = 3
_RETRIED_AT_ONCE = 10_000
_RETRIED_BY_ITSELF = 100
_PARTS = ("changes", "sessions", "projects", "references")
_KEYS = {"session": ("id",), "project": ("id",), "reference": ("source_id", "target_id", "context")}


@dataclass(frozen=True, slots=True)
class PushResult:
    """What one bounded push did. `busy` says that another process is pushing."""

    pushed: int = 0
    parked: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    busy: bool = False

    def plus(self, other: "PushResult") -> "PushResult":
        """Both together; `busy` is the later one's."""
        names = {*self.outcomes, *other.outcomes}
        together = {name: self.outcomes.get(name, 0) + other.outcomes.get(name, 0) for name in names}
        return PushResult(self.pushed + other.pushed, self.parked + other.parked, together, other.busy)


@dataclass(frozen=True, slots=True)
class Written:
    """What a batch became: the outcomes, and the memories and context rows that the remote refused, with the reason.

    Attributes:
        refused_older: Memories whose newest state went through, but only without the states before it.
        undecided: Memories and context rows that were not got to; they wait for the next push.
    """

    outcomes: list[RowOutcome] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    refused_older: dict[str, str] = field(default_factory=dict)
    refused_context: dict[tuple[Any, ...], str] = field(default_factory=dict)
    undecided: set[str | tuple[Any, ...]] = field(default_factory=set)


class Pusher:
    """The use-case push.

    Args:
        rows: Queue entries in one batch, at most.
        size: Bytes of their rows, about.
    """

    def __init__(
        self, outbox: Outbox, writer: RemoteWriter, reader: RemoteReader, *, rows: int = 1000, size: int = 4_000_000
    ) -> None:
        self._outbox = outbox
        self._writer = writer
        self._reader = reader
        self._pace = Pace.first(rows, size)
        self._prepared = False

    async def push_once(self) -> PushResult:
        """Push one batch.

        A crash at any point leaves either nothing done, or a remote batch that is sent again and changes nothing (P2).

        Raises:
            Unavailable: A store is away, or another process has pushed meanwhile; the entries stay as they were.
            TimedOut: The same; the next batch is smaller, and may take longer.
            RemoteDamaged: The remote store has to be repaired first.
            StoreRolledBack: This database is older than what it has pushed: nothing is, until somebody has decided.
        """
        started = time.monotonic()
        try:
            result = await self._push(started)
        except (TimedOut, OutcomeUnknown):
            self._pace = self._pace.after_time_out()
            raise
        if result.pushed or result.parked:
            self._pace = self._pace.after_success(time.monotonic() - started)
        return result

    async def _push(self, started: float) -> PushResult:
        async with self._claim() as claim:
            if claim is None:
                return PushResult(busy=True)
            if not claim.entries:
                return PushResult()
            await self._prepare_remote()
            settlement, outcomes = await self._apply_as_next(claim)
            result = _result(settlement, outcomes)
            await claim.settle(replace(settlement, event=_event(settlement, result, started)))
        return result

    def _claim(self) -> AbstractAsyncContextManager[Claim | None]:
        return self._outbox.claim(self._pace.rows, self._pace.size, self._pace.seconds)

    async def _prepare_remote(self) -> None:
        """Only the write after it is given time to be planned: by then the link has just been tried."""
        is_cold = not self._prepared
        if is_cold:
            await self._writer.prepare()
            self._prepared = True
        self._pace = self._pace.when_cold(is_cold)

    async def note_outage(self, error: DionysusError) -> None:
        """Mark the next entries' memories as queued, and audit why: the remote store is away, or a person has to act.

        What comes back may be another server, so its schema is looked at again.
        """
        self._prepared = False
        async with self._claim() as claim:
            ids = sorted({e.memory_id for e in claim.entries if e.memory_id}) if claim else []
        failed = isinstance(error, (StoreRolledBack, RemoteDamaged))
        event = SyncEvent("local_to_remote", "queued", len(ids), ids, str(error))
        await self._outbox.note_outage(ids, replace(event, result="failed", record_count=0) if failed else event)

    async def retry_due_once(self) -> float:
        """Put parked entries whose time has come back into the queue; the seconds until the next look."""
        await self._outbox.retry_parked_once(_RETRIED_BY_ITSELF, due_only=True)
        return RETRY_SECONDS

    async def retry_parked(self) -> int:
        """Put all parked entries back into the queue, at most 10,000; how many were."""
        return await self._outbox.retry_parked_once(_RETRIED_AT_ONCE, due_only=False)

    async def _apply_as_next(self, claim: Claim) -> tuple[Settlement, list[RowOutcome]]:
        """Apply a claim as the push that follows the last one that both stores remember."""
        move = Move(_expected(claim.identity), to=str(uuid4()), last_entry=claim.entries[-1].id)
        found: Standing = "same"
        there = ""
        try:
            settlement, outcomes = await self._apply(claim, move)
        except LineageMoved as moved:
            found = await self._accept(claim, moved.there)
            self._prepared = False
            await self._prepare_remote()
            there = moved.there.last.lineage if moved.there else ""
            settlement, outcomes = await self._apply(claim, move._replace(accepted=(there,)))
        repeated = there if found == "resent" else ""
        compare = found in ("behind_there", "unknown_there")
        return replace(settlement, lineage=move.to, repeated=repeated, compare=compare), outcomes

    async def _accept(self, claim: Claim, there: RemoteLineage | None) -> Standing:
        """Accept that the remote remembers another push; where the stores stand.

        Raises:
            Unavailable: This process was overtaken by another one.
            StoreRolledBack: This database was.
        """
        here = claim.identity
        waits = there is not None and await claim.has_entry(there.last_entry)
        lineage = Lineage(here.epoch, here.generation, here.lineage)
        found = standing(lineage, there, last_push_waits=waits, repeated=here.repeated)
        if found == "behind_here":
            await self._check_that_nobody_pushed(here)
            what = "this database is older than what it has pushed, or a copy of it has pushed"
            raise StoreRolledBack(what, hint=_ROLLED_BACK)
        return found

    async def _check_that_nobody_pushed(self, here: StoreIdentity) -> None:
        """Asks on a connection of its own: that of the claim may be one that the server has given up."""
        if (await self._outbox.identity()).lineage != here.lineage:
            raise LineageMoved

    async def _apply(self, claim: Claim, move: Move) -> tuple[Settlement, list[RowOutcome]]:
        memories = [e for e in claim.entries if e.entity == "memory" and e.version is not None]
        context = [e for e in claim.entries if e.entity != "memory" and not e.broken]
        changes = fold((e.memory_id or "", e.base_version, _as_sent(e, e.version)) for e in memories if e.version)
        batch = RemoteBatch(
            claim.identity,
            changes,
            move,
            sessions=_last_rows(context, "session"),
            projects=_last_rows(context, "project"),
            references=_last_rows(context, "reference"),
            seconds=self._pace.deadline,
        )
        written = await self._insist_on_deletes(claim, batch, await self._write_or_halve(batch))
        written = await self._with_unlinked(batch, written)
        parked = [*_broken(claim.entries), *_refused(claim.entries, written)]
        left = {p.seq for p in parked} | _undecided(claim.entries, written)
        acknowledged = [e.seq for e in claim.entries if e.seq not in left]
        captured = {e.memory_id or "": e.version.number for e in memories if e.version}
        settlement = await self._consequences(claim, changes, captured, written.outcomes)
        return replace(settlement, acknowledged=acknowledged, parked=parked), written.outcomes

    async def _write_or_halve(self, batch: RemoteBatch) -> Written:
        try:
            return Written(outcomes=await self._writer.write(batch))
        except Refused as error:
            await self._check_that_the_rows_are_to_blame(batch)
            return await self._halve(batch, error, self._pace.budget(time.monotonic()))

    async def _check_that_the_rows_are_to_blame(self, batch: RemoteBatch) -> None:
        """Without this, a remote store that is damaged and refuses every write would have the whole queue parked."""
        try:
            await self._writer.write(_of(batch, {}))
        except Refused as error:
            raise Unavailable(f"it refuses every write: {error.what}", where="the remote store", hint=_ILL) from error

    async def _write_halving(self, batch: RemoteBatch, budget: Budget) -> Written:
        """Write a batch; one that the remote refuses is halved until the refused row stands alone."""
        if budget.is_spent(time.monotonic()):
            return Written(undecided=_keys(batch))
        budget.writes -= 1
        try:
            outcomes = await self._writer.write(batch)
        except Refused as error:
            return await self._halve(batch, error, budget)
        budget.decided = True
        return Written(outcomes=outcomes)

    async def _halve(self, batch: RemoteBatch, error: Refused, budget: Budget) -> Written:
        pieces = _halves(batch)
        if not pieces:
            budget.decided = True
            return await self._write_newest(batch, error)
        written = Written()
        for piece in pieces:
            part = await self._write_halving(piece, budget)
            written = Written(
                [*written.outcomes, *part.outcomes],
                {**written.refused, **part.refused},
                {**written.refused_older, **part.refused_older},
                {**written.refused_context, **part.refused_context},
                written.undecided | part.undecided,
            )
        return written

    async def _insist_on_deletes(self, claim: Claim, batch: RemoteBatch, written: Written) -> Written:
        """A delete that went by too low a number, since its row's count had started again, goes above the remote's.

        Only where no row is live here: a row that was inserted again is what counts.
        """
        outlived = {o.memory_id: o for o in written.outcomes if o.outlived}
        live = await claim.live_versions(list(outlived)) if outlived else {}
        again = [
            _above(c, outlived[c.memory_id]) for c in batch.changes if c.memory_id in outlived.keys() - live.keys()
        ]
        if not again:
            return written
        # A budget of its own: else what was decided might be undone again, in each push anew.
        insisted = await self._write_halving(_of(batch, {"changes": again}), self._pace.budget(time.monotonic()))
        done = {change.memory_id for change in again}
        outcomes = [o for o in written.outcomes if o.memory_id not in done] + insisted.outcomes
        return replace(
            written,
            outcomes=outcomes,
            refused={**written.refused, **insisted.refused},
            undecided=written.undecided | insisted.undecided,
        )

    async def _with_unlinked(self, batch: RemoteBatch, written: Written) -> Written:
        """A reference of which a memory is not in the remote store is parked: it must not vanish (P1)."""
        decided = [row for row in batch.references if _context_key("reference", row) not in written.undecided]
        kept = [row for row in decided if not row.get("deleted")]
        if not kept:
            return written
        unlinked = {_context_key("reference", row): UNLINKED for row in await self._reader.unlinked(kept)}
        return replace(written, refused_context={**unlinked, **written.refused_context})

    async def _write_newest(self, batch: RemoteBatch, error: Refused) -> Written:
        """A state that the remote refuses must not hold back the one that came after it."""
        if not batch.changes:
            return Written(refused_context=dict.fromkeys(_context_keys(batch), error.what))
        change = batch.changes[0]
        if not change.older:
            return Written(refused={change.memory_id: error.what})
        try:
            outcomes = await self._writer.write(replace(batch, changes=[replace(change, older=())]))
        except Refused as newest_error:
            return Written(refused={change.memory_id: newest_error.what})
        return Written(outcomes, refused_older={change.memory_id: error.what})

    async def _consequences(
        self,
        claim: Claim,
        changes: Sequence[MemoryChange],
        captured: Mapping[str, int],
        outcomes: Sequence[RowOutcome],
    ) -> Settlement:
        sent = {change.memory_id: change for change in changes}
        contested = [o for o in outcomes if o.outcome in ("stale", "conflict_won", "conflict_lost")]
        live = await claim.live_versions([o.memory_id for o in contested]) if contested else {}
        decided = [(o, _decide(o, sent[o.memory_id], live.get(o.memory_id))) for o in outcomes]
        pulled = await self._held_by_remote([o for o, consequence in decided if consequence == "pull"])
        confirmed = [o for o, consequence in decided if consequence == "confirm"]
        remote = {m.id: m for m in pulled}
        return Settlement(
            acknowledged=(),
            stamps=_stamps((o for o in confirmed if not _is_delete(sent[o.memory_id])), captured),
            deleted=_stamps((o for o in confirmed if _is_delete(sent[o.memory_id])), captured),
            rebased=_stamps((o for o, consequence in decided if consequence == "rebase"), captured),
            pulled=pulled,
            conflicts=[
                *(_won(replaced, sent[o.memory_id]) for o in outcomes for replaced in o.replaced),
                *(_lost(o, sent[o.memory_id], remote.get(o.memory_id)) for o in outcomes if _is_lost(o)),
            ],
        )

    async def _held_by_remote(self, outcomes: Sequence[RowOutcome]) -> list[RemoteMemory]:
        if not outcomes:
            return []
        return await self._reader.by_id([o.memory_id for o in outcomes])


def _as_sent(entry: QueueEntry, version: Version) -> Version:
    """An entry that was sent before goes by the number that it went by."""
    return replace(version, number=max(version.number, entry.base_version or 0)) if entry.waited else version


def _above(change: MemoryChange, held: RowOutcome) -> MemoryChange:
    return MemoryChange(change.memory_id, held.version, replace(change.newest, number=held.version + 1))


def _decide(outcome: RowOutcome, change: MemoryChange, live: LiveVersion | None) -> str:
    return decide_consequence(
        outcome.outcome,
        change.newest.number,
        outcome.version,
        live.version if live else None,
        sent_delete=_is_delete(change),
        confirmed=live.confirmed if live else None,
    )


def _expected(here: StoreIdentity) -> tuple[str, ...]:
    """The lineages that the remote may remember without any question; a store that never pushed is new there."""
    return (here.lineage,) if here.generation else (here.lineage, "")


def _stamps(outcomes: Iterable[RowOutcome], captured: Mapping[str, int]) -> list[Stamp]:
    return [Stamp(o.memory_id, o.version, captured[o.memory_id]) for o in outcomes]


def _is_delete(change: MemoryChange) -> bool:
    return change.newest.operation == "delete"


def _is_lost(outcome: RowOutcome) -> bool:
    return outcome.outcome == "conflict_lost"


def _won(replaced: Replaced, change: MemoryChange) -> Conflict:
    """The version that won may be an older one, if what became of its first delivery was never heard."""
    winner = next((v for v in (*change.older, change.newest) if v.number == replaced.by), change.newest)
    content = (winner.properties.content or "")[:100]
    return Conflict(change.memory_id, "local", winner.number, replaced.version, content, replaced.content)


def _lost(outcome: RowOutcome, change: MemoryChange, remote: RemoteMemory | None) -> Conflict:
    return Conflict(
        outcome.memory_id,
        "remote",
        change.newest.number,
        outcome.version,
        (change.newest.properties.content or "")[:100],
        ((remote.content if remote else None) or "")[:100],
    )


def _last_rows(entries: Iterable[QueueEntry], entity: str) -> list[dict[str, Any]]:
    """The last state of each row of an entity, with the time of its capture.

    A deleted reference says so; other context is never deleted remotely (P4).
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for entry in entries:
        if entry.entity != entity or (entry.operation == "delete" and entity != "reference"):
            continue
        known = {name: entry.payload.get(name) for name in CONTEXT_COLUMNS[entity]}
        row = {**known, "changed_at": entry.created_at.isoformat()}
        rows[_context_key(entity, row)] = {**row, "deleted": True} if entry.operation == "delete" else row
    return list(rows.values())


def _halves(batch: RemoteBatch) -> list[RemoteBatch]:
    """Smaller batches, memories before what refers to them; empty when the batch cannot be made smaller."""
    parts = {name: rows for name in _PARTS if (rows := getattr(batch, name))}
    if len(parts) > 1:
        return [_of(batch, {name: rows}) for name, rows in parts.items()]
    halves = [(name, half) for name, rows in parts.items() if len(rows) > 1 for half in _both_halves(rows)]
    return [_of(batch, {name: half}) for name, half in halves]


def _both_halves(rows: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def _of(batch: RemoteBatch, parts: Mapping[str, Sequence[Any]]) -> RemoteBatch:
    """A batch of the same store with these parts and nothing else."""
    rows = {**dict.fromkeys(_PARTS, ()), **parts}
    return replace(
        batch,
        changes=rows["changes"],
        sessions=rows["sessions"],
        projects=rows["projects"],
        references=rows["references"],
    )


def _context_keys(batch: RemoteBatch) -> list[tuple[Any, ...]]:
    parts = (("session", batch.sessions), ("project", batch.projects), ("reference", batch.references))
    return [_context_key(entity, row) for entity, rows in parts for row in rows]


def _context_key(entity: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (entity, *(row.get(name) for name in _KEYS[entity]))


def _keys(batch: RemoteBatch) -> set[str | tuple[Any, ...]]:
    return {*(c.memory_id for c in batch.changes), *_context_keys(batch)}


def _key(entry: QueueEntry) -> str | tuple[Any, ...]:
    return entry.memory_id or "" if entry.entity == "memory" else _context_key(entry.entity, entry.payload)


def _undecided(entries: Iterable[QueueEntry], written: Written) -> set[int]:
    return {e.seq for e in entries if not e.broken and _key(e) in written.undecided}


def _broken(entries: Iterable[QueueEntry]) -> list[Parking]:
    return [Parking(e.seq, e.broken) for e in entries if e.broken]


def _refused(entries: Sequence[QueueEntry], written: Written) -> list[Parking]:
    newest = {e.memory_id: e.seq for e in entries if e.entity == "memory" and not e.broken}
    parked = []
    for entry in entries:
        reason = _reason(entry, written, is_newest=newest.get(entry.memory_id) == entry.seq)
        if reason and not entry.broken:
            parked.append(Parking(entry.seq, reason))
    return parked


def _reason(entry: QueueEntry, written: Written, *, is_newest: bool) -> str | None:
    if entry.entity != "memory":
        return written.refused_context.get(_context_key(entry.entity, entry.payload))
    memory_id = entry.memory_id or ""
    return written.refused.get(memory_id) or (None if is_newest else written.refused_older.get(memory_id))


def _result(settlement: Settlement, outcomes: Iterable[RowOutcome]) -> PushResult:
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.outcome] = counts.get(outcome.outcome, 0) + 1
    return PushResult(len(settlement.acknowledged), len(settlement.parked), counts)


def _event(settlement: Settlement, result: PushResult, started: float) -> SyncEvent:
    return SyncEvent(
        direction="local_to_remote",
        result="partial" if result.parked and result.pushed else "failed" if result.parked else "success",
        record_count=result.pushed,
        memory_ids=[s.memory_id for s in settlement.stamps],
        error_message=settlement.parked[0].error if settlement.parked else None,
        duration_ms=round(1000 * (time.monotonic() - started)),
    )
