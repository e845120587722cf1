"""Verify: says in which memories the two stores differ though nothing waits, and mends that where it is told to."""

import hashlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from dionysus_sync_mcp.domain.drift import ACTIONS, DriftClass, Reason, Side, left, repair_of, rolled_back
from dionysus_sync_mcp.domain.text import line
from dionysus_sync_mcp.engine.compare import Comparer, Comparison, Kind, Progress
from dionysus_sync_mcp.engine.mend import Mender
from dionysus_sync_mcp.engine.ports import (
    Due,
    Installation,
    LocalComparison,
    LocalMending,
    NewAlert,
    RemoteReader,
    Seen,
    SyncEvent,
)
from dionysus_sync_mcp.engine.reports import Example, VerifyReport

LOOK_SECONDS = 5.0
# Of so many sweeps one passes over all ids, which also finds what left no trace in the versions.
FULL_EVERY = 12
# A comparison that takes long is made more seldom: no more than this part of the time goes into it.
BUSY_SHARE = 50
REPEAT_SHARE = 5
LIMIT = 1000
UNASKED_LIMIT = 10_000
REBUILD_PAGE = 1000
EXAMPLES = 3
EXCERPT = 80
NAMED_IDS = 100
SYNC_FIRST = "Call sync_now, then verify again."


@dataclass(slots=True)
class _Repair:
    """What a repair may do, and what it did."""

    reason: Reason
    limit: int
    prefer: Side | None
    dry_run: bool
    mended: dict[DriftClass, int] = field(default_factory=dict)
    asks: bool = False

    def leaves(self, drift: DriftClass, number: int) -> bool:
        """Whether it was not this repair's business, or the remote's content was the later one."""
        action = repair_of(drift, self.prefer, self.reason)
        return action is None or (action == "keep_here" and self.mended.get(drift, 0) < number)

    def goes_on(self, found: Comparison) -> bool:
        """Whether another round would mend more."""
        beyond = found.unlooked or any(
            len(seen) > self.limit for drift, seen in found.drift.items() if drift in self.mended
        )
        return bool(beyond and any(self.mended.values()))


class Verifier:
    """The use-case verify.

    Args:
        alert: Puts alerts on record; how many were new.
        seconds: Between two comparisons that the background loop makes; 0: none but those that something calls for.
    """

    def __init__(
        self,
        comparer: Comparer,
        mender: Mender,
        local: LocalComparison,
        mending: LocalMending,
        reader: RemoteReader,
        installation: Installation,
        *,
        alert: Callable[[list[NewAlert]], Awaitable[int]],
        seconds: float,
    ) -> None:
        self._comparer = comparer
        self._mender = mender
        self._local = local
        self._mending = mending
        self._reader = reader
        self._installation = installation
        self._alert = alert
        self._seconds = seconds
        self._took = 0.0

    async def verify_once(
        self,
        kind: Kind,
        *,
        repair: bool = False,
        limit: int = LIMIT,
        prefer: Side | None = None,
        dry_run: bool = True,
        on_progress: Progress | None = None,
    ) -> VerifyReport:
        """Compare both stores, and mend what differs; safe to repeat.

        Args:
            limit: Memories that are mended, at most, of each class.
            prefer: Which side counts where this database has gone back in time, as a person has decided. When nothing
                of that is left, this store goes on under a new epoch and pushes again.
            dry_run: Only say what a repair would do.
        """
        plan = _Repair("person", limit, prefer, dry_run) if repair else None
        report, _ = await self._verify(kind, plan, on_progress)
        return report

    async def check_once(self) -> float:
        """What the background loop does: compare when something calls for it or it is time; the seconds to wait.

        Unasked, only this store's own changes are brought to the remote; of everything else people are told.
        """
        if await self._local.obstacle():
            return LOOK_SECONDS
        if due := await self._local.due():
            return await self._compare_as_due(due)
        if kind := await self._kind_due():
            await self._verify(kind, _Repair("sweep", UNASKED_LIMIT, None, dry_run=False))
        return LOOK_SECONDS

    async def rebuild_once(self, on_progress: Progress | None = None) -> int:
        """Queue every row that has nothing queued, so that the remote store has all of them; how many were.

        What the remote has already it answers as unchanged.
        """
        total, (last, queued) = 0, await self._mending.send_all("", REBUILD_PAGE)
        while last is not None:
            total += queued
            if on_progress:
                await on_progress(total, None, f"{total} memories queued")
            last, queued = await self._mending.send_all(last, REBUILD_PAGE)
        return total

    async def _compare_as_due(self, due: Due) -> float:
        repair = _Repair("gap" if due.gap else "wiped", UNASKED_LIMIT, None, dry_run=False)
        _, found = await self._verify("full", repair)
        # What was captured before the reason came up may be followed by a change that was not.
        early = found.oldest_waiting_at is not None and found.oldest_waiting_at <= due.since
        if found.skipped or early or repair.goes_on(found):
            return max(LOOK_SECONDS, REPEAT_SHARE * self._took)
        await self._local.settle_due(due)
        return LOOK_SECONDS

    async def _kind_due(self) -> Kind | None:
        if not self._seconds:
            return None
        since_any, since_full = await self._local.ages()
        pause = max(self._seconds, BUSY_SHARE * self._took)
        if since_any is not None and since_any < pause:
            return None
        return "full" if since_full is None or since_full >= FULL_EVERY * pause else "quick"

    async def _verify(
        self, kind: Kind, repair: _Repair | None, on_progress: Progress | None = None
    ) -> tuple[VerifyReport, Comparison]:
        started = time.monotonic()
        prefer = repair.prefer if repair else None
        store = ""
        if obstacle := await self._local.obstacle():
            found = Comparison(skipped=obstacle)
        else:
            store = (await self._installation.identity()).id
            found = await self._comparer.compare(kind, store, waiting_too=bool(prefer), on_progress=on_progress)
        self._took = time.monotonic() - started
        counts: dict[DriftClass, int] = {drift: len(seen) for drift, seen in found.drift.items()}
        examples = await self._examples(found)
        if repair and not found.skipped:
            await self._repair(found, counts, repair, store)
        report = _report(kind, found, counts, examples, repair, started)
        if store:
            await self._local.record(kind, report.result, report.model_dump(mode="json"), _event(report, repair))
        if repair and repair.reason != "person":
            await self._alert(_alerts(found, repair))
        return report, found

    async def _repair(self, found: Comparison, counts: dict[DriftClass, int], repair: _Repair, store: str) -> None:
        repair.asks = not repair.prefer and rolled_back(counts.get("older_here", 0), found.rows)
        if repair.dry_run:
            return
        for drift, seen in found.drift.items():
            action = repair_of(drift, repair.prefer, repair.reason)
            if action is None or (drift == "older_here" and repair.asks):
                continue
            repair.mended[drift] = await self._mender.mend(action, seen[: repair.limit], store)
        if repair.prefer and not found.unlooked and not _undecided(counts, repair):
            await self._mending.begin_epoch()

    async def _examples(self, found: Comparison) -> dict[DriftClass, list[Example]]:
        named = {drift: seen[:EXAMPLES] for drift, seen in found.drift.items()}
        wanted = [one for seen in named.values() for one in seen]
        there = [one.memory_id for one in wanted if one.facts.there]
        here = [one for one in wanted if one.facts.here]
        texts = {}
        if here:
            states = await self._mending.states(here)
            texts.update(
                {c.memory_id: (c.newest.properties.source_project, c.newest.properties.content) for c in states}
            )
        if there:
            texts.update({m.id: (m.source_project, m.content) for m in await self._reader.by_id(there)})
        return {
            drift: [_example(one, *texts.get(one.memory_id, (None, None))) for one in n] for drift, n in named.items()
        }


def _example(seen: Seen, project: str | None, content: str | None) -> Example:
    # What somebody wrote into the remote by hand may be no text.
    here, there = seen.facts.here, seen.facts.there
    versions = f"version {here.version if here else 'none'} here, {there.version if there else 'none'} there"
    return Example(
        memory_id=seen.memory_id,
        project=line(str(project), EXCERPT) if project else None,
        excerpt=line(str(content or ""), EXCERPT),
        reason=versions,
    )


def _undecided(counts: dict[DriftClass, int], repair: _Repair) -> int:
    """How many memories the preferred side does not have its way in yet."""
    classes: Sequence[DriftClass] = ("older_here", "different", "missing_here")
    if repair.prefer == "local":
        classes = ("older_here", "different", "deleted_there")
    return sum(max(0, counts.get(drift, 0) - repair.mended.get(drift, 0)) for drift in classes)


def _report(
    kind: Kind,
    found: Comparison,
    counts: dict[DriftClass, int],
    examples: dict[DriftClass, list[Example]],
    repair: _Repair | None,
    started: float,
) -> VerifyReport:
    repaired = repair.mended if repair else {}
    remaining = left(counts, repaired) + found.unlooked
    return VerifyReport(
        kind=kind,
        result="skipped" if found.skipped else "drift" if remaining else "clean",
        next_step=_advice(found, counts, repair, remaining),
        warnings=_warnings(found, counts, repair),
        local_memories=found.rows,
        remote_memories=found.memories,
        left_out=found.left_out,
        counts=counts,
        examples=examples,
        actions={drift: ACTIONS[drift] for drift in counts},
        dry_run=repair is None or repair.dry_run,
        repaired=repaired,
        duration_ms=round(1000 * (time.monotonic() - started)),
    )


def _advice(found: Comparison, counts: dict[DriftClass, int], repair: _Repair | None, remaining: int) -> str:
    if found.skipped:
        return SYNC_FIRST if found.left_out else "Call get_sync_status to see what is in the way."
    if not counts:
        return "Nothing to do: both stores agree."
    if repair and repair.asks:
        return (
            "Decide which store counts: 'dionysus-sync-mcp verify --repair --prefer remote' takes the remote's newer "
            "memories, --prefer local keeps what is here. Both keep what loses in the history."
        )
    if repair is None or repair.dry_run:
        return "Nothing was changed. Run 'dionysus-sync-mcp verify --repair --yes' to mend this."
    if remaining and any(repair.mended.values()):
        return "Some are left; call sync_now, then verify again."
    if remaining:
        return "This cannot be mended unasked: look at the examples, then run 'dionysus-sync-mcp verify --repair'."
    return "All was mended: call sync_now, then verify again to see it."


def _warnings(found: Comparison, counts: dict[DriftClass, int], repair: _Repair | None) -> list[str]:
    warnings = [f"Nothing was compared: {found.skipped}."] if found.skipped else []
    if found.parked:
        warnings.append(
            f"{found.parked} memories are left out since a change of theirs is parked; see get_sync_status."
        )
    if number := counts.get("missing_here"):
        warnings.append(f"{number} memories are gone from this database, and no delete of them is on record.")
    if number := counts.get("different"):
        warnings.append(f"High alert: {number} memories have another content under the same version on both sides.")
    if number := counts.get("corrupt_there"):
        warnings.append(f"High alert: {number} memories of the remote store are not what their hash says.")
    if rolled_back(counts.get("older_here", 0), found.rows) and counts.get("older_here"):
        warnings.append("So many rows are older than the remote's that this database must have gone back in time.")
    if found.unlooked:
        warnings.append(f"{found.unlooked} more differ and were not looked at closely; mend these first.")
    beyond = [f"{n - repair.limit} {drift}" for drift, n in counts.items() if n > repair.limit] if repair else []
    if beyond:
        warnings.append(f"Beyond this round's limit are {', '.join(beyond)}.")
    return warnings


def _event(report: VerifyReport, repair: _Repair | None) -> SyncEvent | None:
    if repair is None or not any(repair.mended.values()):
        return None
    done = ", ".join(f"{number} {drift}" for drift, number in repair.mended.items() if number)
    into_here = all(drift in ("missing_here", "older_here") for drift, number in repair.mended.items() if number)
    return SyncEvent(
        direction="remote_to_local" if into_here else "local_to_remote",
        result="success" if report.result == "clean" else "partial",
        record_count=sum(repair.mended.values()),
        memory_ids=[example.memory_id for examples in report.examples.values() for example in examples],
        error_message=f"repair: {done}",
        duration_ms=report.duration_ms,
    )


def _alerts(found: Comparison, repair: _Repair) -> list[NewAlert]:
    """One for each class that was not mended unasked; the same memories in the same class are the same event."""
    return [_alert(drift, seen) for drift, seen in found.drift.items() if repair.leaves(drift, len(seen))]


def _alert(drift: DriftClass, seen: Sequence[Seen]) -> NewAlert:
    ids = sorted(one.memory_id for one in seen)
    digest = hashlib.sha256("".join(ids).encode()).hexdigest()
    return NewAlert(
        key=f"drift:{drift}:{digest[:16]}",
        kind="drift",
        summary=f"{len(ids)} memories differ between the stores ({drift.replace('_', ' ')}); verify says more.",
        details={"class": drift, "memories": len(ids), "memory_ids": ids[:NAMED_IDS], "repair": ACTIONS[drift]},
    )
