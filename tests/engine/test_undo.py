"""Undo on in-memory stores: what is put back, what is left, and what is said of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from dionysus_sync_mcp.domain.errors import InputError, Unavailable
from dionysus_sync_mcp.domain.memory import Digest
from dionysus_sync_mcp.engine.ports.recover import PageResult
from dionysus_sync_mcp.engine.ports.shared import Scope, SyncEvent
from dionysus_sync_mcp.engine.ports.undo import KeptRecovery, KeptRow
from dionysus_sync_mcp.engine.undo import NAMED_FAULTS, NAMED_RECOVERIES, PAGE, REMOTE_AWAY, Undoer
from tests.engine.memory_remote import MemoryRemote

RECOVERY = str(UUID(int=1))


@dataclass
class Kept:
    """Implements `Undoing`. `refusing` are ids that the table refuses; the server ends after `last_page`."""

    rows: list[KeptRow]
    refusing: frozenset[str] = frozenset()
    last_page: int = 1000
    put: list[Mapping[str, int]] = field(default_factory=list)
    reports: list[dict[str, Any]] = field(default_factory=list)
    events: list[SyncEvent] = field(default_factory=list)
    others: list[KeptRecovery] = field(default_factory=list)

    async def kept_recoveries(self, limit: int) -> list[KeptRecovery]:
        """The only one, while it has rows that are not back, and those given."""
        left = [row for row in self.rows if row.state != "undone"]
        own = [KeptRecovery(RECOVERY, len(left), datetime(2026, 1, 1, tzinfo=UTC))] if left else []
        return [*own, *self.others][:limit]

    async def last_overwriting(self) -> str | None:
        """The only one."""
        return RECOVERY if self.rows else None

    async def recovery_known(self, recovery_id: str) -> bool:
        """The only one."""
        return recovery_id == RECOVERY

    async def kept_rows(self, recovery_id: str, after: str, limit: int) -> list[KeptRow]:
        """A page."""
        assert recovery_id == RECOVERY
        return [row for row in self.rows if row.memory_id > after][:limit]

    async def put_back(self, recovery_id: str, held: Mapping[str, int]) -> PageResult:
        """Marks them as undone."""
        assert recovery_id == RECOVERY
        if len(self.put) == self.last_page:
            raise Unavailable("gone")
        self.put.append(held)
        done = held.keys() - self.refusing
        self.rows = [row._replace(state="undone") if row.memory_id in done else row for row in self.rows]
        refused = [(memory_id, "the table refuses it") for memory_id in sorted(held.keys() & self.refusing)]
        return PageResult(len(done), len(done), 0, refused, [])

    async def record_undo(self, report: dict[str, Any], event: SyncEvent) -> None:
        """Keep both."""
        self.reports.append(report)
        self.events.append(event)


def waiting(number: int) -> list[KeptRow]:
    """Rows that can be put back."""
    return [KeptRow(f"{n:06}", "waiting") for n in range(number)]


@pytest.mark.promise("P6")
async def test_pages_are_put_back_and_a_second_undo_does_nothing() -> None:
    """All of them, over several pages."""
    kept = Kept(waiting(PAGE + 5))
    undoer = Undoer(kept, MemoryRemote())
    report = await undoer.undo(dry_run=False)
    assert (report.restored, report.complete, [len(page) for page in kept.put]) == (PAGE + 5, True, [PAGE, 5])
    assert (kept.events[-1].result, kept.events[-1].record_count) == ("success", PAGE + 5)
    again = await undoer.undo(RECOVERY, dry_run=False)
    assert (again.restored, again.already_undone, again.complete, len(kept.put)) == (0, PAGE + 5, True, 2)


async def test_a_dry_run_only_counts() -> None:
    """Nothing is put back, nothing is put on record."""
    kept = Kept([*waiting(3), KeptRow("1", "changed"), KeptRow("2", "gone"), KeptRow("3", "undone")])
    report = await Undoer(kept, MemoryRemote()).undo(dry_run=True)
    assert (report.overwritten, report.restored, report.already_undone) == (6, 3, 1)
    assert (report.changed_since, report.missing, report.complete) == (1, 1, False)
    assert (kept.put, kept.reports, kept.events) == ([], [], [])


async def test_what_cannot_be_put_back_is_counted_and_named() -> None:
    """A bounded number by name; the undo is not complete then."""
    rows = [row._replace(lacking="price") if number % 2 else row for number, row in enumerate(waiting(60))]
    kept = Kept(rows, refusing=frozenset({"000000", "000002"}))
    report = await Undoer(kept, MemoryRemote()).undo(dry_run=False)
    assert (report.restored, report.complete, len(report.warnings)) == (28, False, NAMED_FAULTS + 1)
    assert report.warnings[0] == "32 rows cannot be put back as they were."
    assert "price" in report.warnings[1]
    assert kept.events[-1].result == "partial"


@pytest.mark.promise("P3")
async def test_rows_go_above_what_the_remote_store_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that can be asked; where not, by what is known here, and that is said."""
    remote = MemoryRemote()

    async def digests(scope: Scope, after: str, limit: int) -> list[Digest]:
        assert (scope.memory_ids, after, limit) == (("000000", "000001"), "", 2)
        return [Digest("000001", 9, "hash", deleted=False)]

    async def away(*_: object) -> list[Digest]:
        raise Unavailable("away")

    for answer, held, warnings in (
        (digests, {"000000": 0, "000001": 9}, []),
        (away, {"000000": 0, "000001": 0}, [REMOTE_AWAY]),
    ):
        monkeypatch.setattr(remote, "digests", answer)
        kept = Kept(waiting(2))
        report = await Undoer(kept, remote).undo(dry_run=False)
        assert (kept.put, report.warnings, report.complete) == ([held], warnings, True)


async def test_an_unknown_recovery_is_refused() -> None:
    """In words, and nothing is done."""
    kept = Kept(waiting(1))
    for recovery_id in (str(UUID(int=2)), "nonsense", ""):
        with pytest.raises(InputError, match="no such recovery"):
            await Undoer(kept, MemoryRemote()).undo(recovery_id, dry_run=False)
    with pytest.raises(InputError, match="overwritten anything"):
        await Undoer(Kept([]), MemoryRemote()).undo(dry_run=False)
    assert kept.put == []


@pytest.mark.promise("P8")
async def test_an_undo_that_is_cut_off_is_on_record_and_goes_on() -> None:
    """With what it had done until then; the next one does the rest."""
    kept = Kept(waiting(PAGE + 5), last_page=1)
    undoer = Undoer(kept, MemoryRemote())
    with pytest.raises(Unavailable):
        await undoer.undo(dry_run=False)
    assert (kept.reports[0]["restored"], kept.events[0].error_message) == (PAGE, "undo cut off: gone.")
    kept.last_page = 2
    report = await undoer.undo(dry_run=False)
    assert (report.restored, report.already_undone, report.complete) == (5, PAGE, True)


async def test_other_recoveries_that_can_be_undone_are_named() -> None:
    """A few of them, by id, so that one which was cut off can be found; also to whoever names none that is there."""
    others = [KeptRecovery(str(UUID(int=n)), n, datetime(2026, 1, 1, tzinfo=UTC)) for n in range(2, 20)]
    report = await Undoer(Kept(waiting(1), others=others), MemoryRemote()).undo(dry_run=False)
    (told,) = report.warnings
    assert f"{UUID(int=2)} (2 rows, 2026-01-01 00:00:00+0000)" in told
    assert (told.count("rows,"), RECOVERY in told) == (NAMED_RECOVERIES, False)
    with pytest.raises(InputError, match="no such recovery") as refused:
        await Undoer(Kept(waiting(3)), MemoryRemote()).undo("nonsense", dry_run=False)
    assert f"{RECOVERY} (3 rows" in str(refused.value.hint)


async def test_progress_is_told() -> None:
    """After each page."""
    told: list[tuple[int, str]] = []

    async def note(done: int, _total: int | None, message: str) -> None:
        told.append((done, message))

    await Undoer(Kept(waiting(2)), MemoryRemote()).undo(dry_run=False, on_progress=note)
    assert told == [(2, "2 of 2 rows put back")]
