"""Undo: brings back, as they were before a recovery, the rows that it overwrote."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

import anyio

from dionysus_sync_mcp.domain.errors import DionysusError, InputError, Unavailable
from dionysus_sync_mcp.engine.ports.recover import PageResult, RemoteReader
from dionysus_sync_mcp.engine.ports.shared import OnProgress, Scope, SyncEvent
from dionysus_sync_mcp.engine.ports.undo import KeptRecovery, KeptRow, KeptState, Undoing
from dionysus_sync_mcp.engine.reports import UndoReport

PAGE = 2000
NAMED_FAULTS = 20
NAMED_RECOVERIES = 5
RECORD_SECONDS = 5.0
REMOTE_AWAY = "The remote store is away: the rows are numbered by what is known of it here."


@dataclass(slots=True)
class _Tally:
    """What an undo has found and done so far."""

    states: Counter[KeptState] = field(default_factory=Counter)
    restored: int = 0
    refused: int = 0
    faults: list[str] = field(default_factory=list)
    remote_away: bool = False
    others: Sequence[KeptRecovery] = ()

    def look_at(self, rows: Sequence[KeptRow]) -> list[str]:
        """Count the rows; the ids of those that can be put back."""
        self.states.update(row.state for row in rows)
        waiting = [row for row in rows if row.state == "waiting"]
        self.refuse((row.memory_id, f"the table has no column for its {row.lacking}") for row in waiting if row.lacking)
        return [row.memory_id for row in waiting if not row.lacking]

    def add(self, page: PageResult) -> None:
        self.restored += page.verified
        self.states["undone"] += page.already_there
        self.refuse(page.refused)

    def refuse(self, reasons: Iterable[tuple[str, str]]) -> None:
        for memory_id, reason in reasons:
            self.refused += 1
            if len(self.faults) < NAMED_FAULTS:
                self.faults.append(f"{memory_id} was not put back: {reason}.")


class Undoer:
    """The use-case undo. Rows that a recovery inserted stay; nothing is deleted."""

    def __init__(self, undoing: Undoing, reader: RemoteReader) -> None:
        self._undoing = undoing
        self._reader = reader

    async def undo(
        self, recovery_id: str | None = None, *, dry_run: bool, on_progress: OnProgress | None = None
    ) -> UndoReport:
        """Put back what a recovery overwrote, where it still is what the recovery wrote; each row goes one version on.

        Whole pages at a time: one that is cut off can be run again, and goes on where it was.

        Args:
            recovery_id: `None` for the recovery that overwrote rows last, of those that have rows left to put back.
            dry_run: Only say what would be put back.

        Raises:
            InputError: There is no such recovery, or none that overwrote anything.
        """
        chosen = await self._chosen(recovery_id)
        started, tally = time.monotonic(), _Tally()
        try:
            await self._put_pages_back(chosen, tally, on_progress, dry_run=dry_run)
        except BaseException as error:
            if not dry_run:
                await self._record_stop(_report(chosen, tally, started, dry_run=False), error)
            raise
        kept = await self._undoing.kept_recoveries(NAMED_RECOVERIES + 1)
        tally.others = [one for one in kept if one.recovery_id != chosen][:NAMED_RECOVERIES]
        report = _report(chosen, tally, started, dry_run=dry_run)
        if not dry_run:
            await self._undoing.record_undo(report.model_dump(mode="json"), _event(report))
        return report

    async def _chosen(self, recovery_id: str | None) -> str:
        if recovery_id is None:
            last = await self._undoing.last_overwriting()
            if last is None:
                raise InputError("no recovery has overwritten anything here", hint="There is nothing to undo.")
            return last
        if not _is_uuid(recovery_id) or not await self._undoing.recovery_known(recovery_id):
            kept = await self._undoing.kept_recoveries(NAMED_RECOVERIES)
            hint = f"A recovery's report names it. {_named(kept)}" if kept else "A recovery's report names it."
            raise InputError("there is no such recovery here", where="recovery_id", hint=hint)
        return recovery_id

    async def _put_pages_back(
        self, recovery_id: str, tally: _Tally, on_progress: OnProgress | None, *, dry_run: bool
    ) -> None:
        after = ""
        while rows := await self._undoing.kept_rows(recovery_id, after, PAGE):
            after = rows[-1].memory_id
            wanted = tally.look_at(rows)
            if dry_run:
                tally.restored += len(wanted)
            elif wanted:
                tally.add(await self._undoing.put_back(recovery_id, await self._held(wanted, tally)))
            if on_progress:
                seen = tally.states.total()
                await on_progress(
                    seen, None, f"{tally.restored} of {seen} rows {'would be ' if dry_run else ''}put back"
                )

    async def _held(self, memory_ids: Sequence[str], tally: _Tally) -> dict[str, int]:
        """The versions that the remote store holds; 0 for none, or where it is away."""
        held = dict.fromkeys(memory_ids, 0)
        try:
            found = await self._reader.digests(Scope(memory_ids=tuple(memory_ids)), "", len(memory_ids))
        except Unavailable:
            tally.remote_away = True
            return held
        return held | {digest.id: digest.version for digest in found}

    async def _record_stop(self, report: UndoReport, error: BaseException) -> None:
        """One that was cut off is on record too, where the local store still takes it."""
        reason = str(error) if isinstance(error, DionysusError) else "it was cancelled"
        event = _event(report, f"undo cut off: {reason}")
        with anyio.move_on_after(RECORD_SECONDS, shield=True), suppress(DionysusError):
            await self._undoing.record_undo(report.model_dump(mode="json"), event)


def _report(recovery_id: str, tally: _Tally, started: float, *, dry_run: bool) -> UndoReport:
    states = tally.states
    overwritten = states.total()
    left = overwritten - tally.restored - states["undone"]
    warnings = [REMOTE_AWAY] if tally.remote_away else []
    if states["changed"] or states["gone"]:
        number = states["changed"] + states["gone"]
        warnings.append(
            f"{number} rows are left alone: somebody has changed them since the recovery, or they are gone."
        )
    if tally.refused:
        warnings.append(f"{tally.refused} rows cannot be put back as they were.")
    if tally.others:
        warnings.append(_named(tally.others))
    return UndoReport(
        recovery_id=recovery_id,
        complete=not left,
        dry_run=dry_run,
        next_step=_advice(tally.restored, left, dry_run=dry_run),
        warnings=[*warnings, *tally.faults],
        overwritten=overwritten,
        restored=tally.restored,
        changed_since=states["changed"],
        missing=states["gone"],
        already_undone=states["undone"],
        duration_ms=round(1000 * (time.monotonic() - started)),
    )


def _named(kept: Sequence[KeptRecovery]) -> str:
    named = ", ".join(f"{one.recovery_id} ({one.rows} rows, {one.last_at:%Y-%m-%d %H:%M:%S%z})" for one in kept)
    return f"Recoveries with rows that can be put back: {named}."


def _advice(restored: int, left: int, *, dry_run: bool) -> str:
    if dry_run and restored:
        return "Nothing was changed. Run the same without the dry run to put these rows back."
    if left:
        return "Look at the warnings: what was not put back is kept, and the undo can be run again."
    if restored:
        return "The rows go to the remote store by themselves, as newer versions; check get_sync_status."
    return "There is nothing to put back."


def _event(report: UndoReport, error: str | None = None) -> SyncEvent:
    nothing = not report.restored and not report.complete
    return SyncEvent(
        direction="remote_to_local",
        result="success" if report.complete else "failed" if nothing else "partial",
        record_count=report.restored,
        error_message=error or (report.warnings[0] if report.warnings else None),
        duration_ms=report.duration_ms,
    )


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True
