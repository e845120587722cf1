"""Verify: says in which memories the two stores differ though nothing waits, and mends that where it is told to."""

import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from dionysus_sync_mcp.domain.drift import ACTIONS, Action, DriftClass, Reason, Side, left, repair_of, words_of
from dionysus_sync_mcp.domain.lineage import Standing
from dionysus_sync_mcp.domain.text import line
from dionysus_sync_mcp.engine.compare import Comparer, Comparison, Kind
from dionysus_sync_mcp.engine.mend import Mender
from dionysus_sync_mcp.engine.ports.alerts import NewAlert
from dionysus_sync_mcp.engine.ports.install import Installation
from dionysus_sync_mcp.engine.ports.recover import RemoteReader
from dionysus_sync_mcp.engine.ports.shared import OnProgress, SyncEvent
from dionysus_sync_mcp.engine.ports.verify import Due, LocalComparison, LocalMending, Seen
from dionysus_sync_mcp.engine.reports import Example, VerifyReport

LOOK_SECONDS = 5.0
# Of so many sweeps one passes over all ids, which also finds what left no trace in the versions.
FULL_EVERY = 12
# A comparison that takes long is made more seldom: no more than this part of the time goes into it.
BUSY_SHARE = 50
REPEAT_SHARE = 5
# While somebody has to say which side counts.
HELD_SECONDS = 30.0
LIMIT = 1000
UNASKED_LIMIT = 10_000
REBUILD_PAGE = 1000
EXAMPLES = 3
EXCERPT = 80
NAMED_IDS = 100
# What a person who prefers a side decides about.
DECIDED: dict[Side, frozenset[DriftClass]] = {
    "remote": frozenset({"older_here", "different", "missing_here"}),
    "local": frozenset({"older_here", "different", "missing_here", "deleted_there"}),
}
REASONS = 3
REASON = 200
SYNC_FIRST = "Call sync_now, then verify again."


@dataclass(slots=True)
class _Repair:
    """What a repair may do, and what it did.

    Attributes:
        held: Whether rows that differ at one version wait for a person: an incident may have changed them.
    """

    reason: Reason
    limit: int
    prefer: Side | None
    dry_run: bool
    held: bool = False
    mended: dict[DriftClass, int] = field(default_factory=dict)
    refused: dict[DriftClass, Mapping[str, str]] = field(default_factory=dict)
    made: list[str] = field(default_factory=list)

    def action(self, drift: DriftClass, found: Comparison) -> Action | None:
        """What it does about a class; rows of a database that went back in time wait for a person's word."""
        if drift == "older_here" and found.behind and not self.prefer:
            return None
        if drift == "different" and self.held:
            return None
        return repair_of(drift, self.prefer, self.reason)

    def waiting(self, found: Comparison) -> dict[DriftClass, int]:
        """What another round would mend: what is beyond the limit or was held by somebody, not what was refused."""
        numbers = {drift: len(found.drift.get(drift, ())) + found.unlooked.get(drift, 0) for drift in ACTIONS}
        done = {drift: self.mended.get(drift, 0) + len(self.refused.get(drift, ())) for drift in ACTIONS}
        return {
            drift: number - done[drift]
            for drift, number in numbers.items()
            if number > done[drift] and self.action(drift, found)
        }

    def decided(self, found: Comparison) -> bool:
        """Whether the preferred side has its way in everything in which it can."""
        return self.prefer is not None and not self.waiting(found).keys() & DECIDED[self.prefer]


class Verifier:
    """The use-case verify.

    Args:
        standing: Where this store stands beside what the remote remembers of it: whether it went back in time.
        alert: Puts alerts on record; how many were new.
        altered: Whether an incident is open that has changed rows without any trigger's firing, such as a column of
            another type: what is here does not count before it is closed, or recovered.
        incident_open: Whether an incident is open at all: people are told of it, and what differs may be of it.
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
        standing: Callable[[], Awaitable[Standing | None]],
        alert: Callable[[list[NewAlert]], Awaitable[int]],
        altered: Callable[[], Awaitable[bool]],
        incident_open: Callable[[], Awaitable[bool]],
        seconds: float,
    ) -> None:
        self._comparer = comparer
        self._mender = mender
        self._local = local
        self._mending = mending
        self._reader = reader
        self._installation = installation
        self._standing = standing
        self._alert = alert
        self._altered = altered
        self._incident_open = incident_open
        self._seconds = seconds
        self._took = 0.0
        self._rebuilt_to = ""

    async def verify_once(
        self,
        kind: Kind,
        *,
        repair: bool = False,
        limit: int = LIMIT,
        prefer: Side | None = None,
        dry_run: bool = True,
        on_progress: OnProgress | None = None,
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

    async def rebuild_step(self) -> int | None:
        """Queue a page of the rows that have nothing queued, so that the remote store has all; how many were.

        What the remote has already it answers as unchanged. `None` after the last page; the next step then begins
        anew. A rebuild that was broken off goes on where it stopped.
        """
        last, queued = await self._mending.send_all(self._rebuilt_to, REBUILD_PAGE)
        self._rebuilt_to = last or ""
        return None if last is None else queued

    async def _compare_as_due(self, due: Due) -> float:
        held = due.gap and await self._altered()
        repair = _Repair("gap" if due.gap else "wiped", UNASKED_LIMIT, None, dry_run=False, held=held)
        _, found = await self._verify("full", repair)
        if held and found.drift.get("different"):
            return HELD_SECONDS
        # What was captured before the reason came up may be followed by a change that was not.
        early = found.oldest_waiting_at is not None and found.oldest_waiting_at <= due.since
        if found.skipped or early or repair.waiting(found):
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
        self, kind: Kind, repair: _Repair | None, on_progress: OnProgress | None = None
    ) -> tuple[VerifyReport, Comparison]:
        started = time.monotonic()
        prefer = repair.prefer if repair else None
        store = ""
        if obstacle := await self._local.obstacle():
            found = Comparison(skipped=obstacle)
        else:
            store = (await self._installation.identity()).id
            behind = await self._standing() == "behind_here"
            found = await self._comparer.compare(
                kind, store, waiting_too=bool(prefer), behind=behind, on_progress=on_progress
            )
        self._took = time.monotonic() - started
        counts: dict[DriftClass, int] = {drift: len(seen) for drift, seen in found.drift.items()}
        examples = await self._examples(found)
        if repair and not found.skipped:
            await self._repair(found, repair, store)
        report = _report(kind, found, counts, examples, repair, started)
        if store:
            await self._local.record(kind, report.result, report.model_dump(mode="json"), _event(report, repair))
        if repair and repair.reason != "person" and not await self._incident_open():
            await self._alert(_alerts(found, repair, await self._local.last_clean()))
        return report, found

    async def _repair(self, found: Comparison, repair: _Repair, store: str) -> None:
        if repair.dry_run:
            return
        for drift, seen in found.drift.items():
            if action := repair.action(drift, found):
                done = await self._mender.mend(action, seen, store, repair.limit)
                repair.mended[drift], repair.refused[drift] = done.number, done.left
        # After what was merged: a constraint cannot be made over two nodes of one memory.
        if found.lacking and await self._mender.make_schema():
            repair.made, found.lacking = found.lacking, []
        if repair.decided(found):
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


def _report(
    kind: Kind,
    found: Comparison,
    counts: dict[DriftClass, int],
    examples: dict[DriftClass, list[Example]],
    repair: _Repair | None,
    started: float,
) -> VerifyReport:
    repaired = repair.mended if repair else {}
    unlooked = sum(found.unlooked.values())
    remaining = left(counts, repaired) + unlooked + len(found.lacking)
    return VerifyReport(
        kind=kind,
        result="skipped" if found.skipped else "drift" if remaining else "clean",
        next_step=_advice(found, repair, remaining),
        warnings=_warnings(found, counts, repair),
        local_memories=found.rows,
        remote_memories=found.memories,
        left_out=found.left_out,
        counts=counts,
        unlooked=unlooked,
        examples=examples,
        actions={drift: words_of(drift, repair.prefer if repair else None) for drift in counts},
        dry_run=repair is None or repair.dry_run,
        repaired=repaired,
        duration_ms=round(1000 * (time.monotonic() - started)),
    )


def _advice(found: Comparison, repair: _Repair | None, remaining: int) -> str:
    if found.skipped:
        return SYNC_FIRST if found.left_out else "Call get_sync_status to see what is in the way."
    if found.behind and not (repair and repair.prefer):
        return (
            "Decide which store counts: 'dionysus-sync-mcp verify --repair --prefer remote' takes the remote's newer "
            "memories, --prefer local keeps what is here. Both keep what loses in the history."
        )
    if not (found.drift or found.unlooked or found.lacking):
        return _agreed(found)
    if repair is None or repair.dry_run:
        return "Nothing was changed. Run 'dionysus-sync-mcp verify --repair --yes' to mend this."
    if not remaining:
        return "All was mended: call sync_now, then verify again to see it."
    if repair.waiting(found):
        return "Some are left; call sync_now, then verify again."
    if repair.reason == "person":
        return "What is left was refused, as the warnings say: mend that cause, then verify again."
    return "This cannot be mended unasked: look at the examples, then run 'dionysus-sync-mcp verify --repair'."


def _agreed(found: Comparison) -> str:
    if found.left_out > found.parked:
        return (
            f"What was compared agrees; {found.left_out} memories wait to be pushed: call sync_now, then verify again."
        )
    return "Nothing to do: both stores agree."


def _warnings(found: Comparison, counts: dict[DriftClass, int], repair: _Repair | None) -> list[str]:
    if found.skipped:
        return [f"Nothing was compared: {found.skipped}."]
    said: list[tuple[int, str]] = [
        (found.parked, "{} memories are left out since a change of theirs is parked; see get_sync_status."),
        (
            counts.get("missing_here", 0),
            "{} memories are gone from this database, and no delete of them is on record.",
        ),
        (
            counts.get("different", 0),
            "High alert: {} memories have another content under the same version on both sides.",
        ),
        (
            counts.get("corrupt_there", 0),
            "High alert: {} memories of the remote store are not what their hash says.",
        ),
        (found.behind, "This database is older than what it has pushed: it has gone back in time, or is a copy."),
        (
            sum(found.unlooked.values()),
            "{} more differ and were not looked at closely; mend these first.",
        ),
    ]
    warnings = [text.format(number) for number, text in said if number]
    if found.lacking:
        warnings.append(
            f"The remote store lacks {', '.join(found.lacking)}; a repair makes that again and loses nothing."
        )
    return warnings + (_warnings_of(repair, found) if repair else [])


def _warnings_of(repair: _Repair, found: Comparison) -> list[str]:
    warnings = [f"The remote store lacked {', '.join(repair.made)}; it was made again."] if repair.made else []
    lost = len(found.drift.get("missing_here", ())) + found.unlooked.get("missing_here", 0)
    if lost and repair.prefer == "local" and repair.dry_run:
        warnings.append(
            f"With --prefer local the {lost} memories that only the remote store has become tombstones there, as "
            "if they had been deleted here; 'dionysus-sync-mcp recover --include-deleted' brings them back."
        )
    beyond = {drift: len(seen) - repair.limit for drift, seen in found.drift.items() if repair.action(drift, found)}
    if any(number > 0 for number in beyond.values()):
        named = ", ".join(f"{number} {drift}" for drift, number in beyond.items() if number > 0)
        warnings.append(f"Beyond this round's limit are {named}.")
    return warnings + [_refusals(drift, refused) for drift, refused in repair.refused.items() if refused]


def _refusals(drift: DriftClass, refused: Mapping[str, str]) -> str:
    named = [f"{memory_id}: {line(reason, REASON)}" for memory_id, reason in list(refused.items())[:REASONS]]
    return f"{len(refused)} {drift} were left as they were; {'; '.join(named)}."


def _event(report: VerifyReport, repair: _Repair | None) -> SyncEvent | None:
    if repair is None or not any(repair.mended.values()):
        return None
    done = ", ".join(f"{number} {drift}" for drift, number in repair.mended.items() if number)
    actions = {repair_of(drift, repair.prefer, repair.reason) for drift, number in repair.mended.items() if number}
    into_here = actions <= {"restore", "pull"}
    return SyncEvent(
        direction="remote_to_local" if into_here else "local_to_remote",
        result="success" if report.result == "clean" else "partial",
        record_count=sum(repair.mended.values()),
        memory_ids=[example.memory_id for examples in report.examples.values() for example in examples],
        error_message=f"repair: {done}",
        duration_ms=report.duration_ms,
    )


def _alerts(found: Comparison, repair: _Repair, clean_at: datetime | None) -> list[NewAlert]:
    """One for each class of which some were left unasked.

    The same memories in the same class are the same event, unless all was well in between.
    """
    left_of = {
        drift: [
            one for one in seen if not repair.action(drift, found) or one.memory_id in repair.refused.get(drift, ())
        ]
        for drift, seen in found.drift.items()
    }
    return [_alert(drift, seen, clean_at) for drift, seen in left_of.items() if seen]


def _alert(drift: DriftClass, seen: Sequence[Seen], clean_at: datetime | None) -> NewAlert:
    ids = sorted(one.memory_id for one in seen)
    digest = hashlib.sha256("".join(ids).encode()).hexdigest()
    return NewAlert(
        key=f"drift:{drift}:{digest[:16]}:{clean_at.isoformat() if clean_at else 'never'}",
        kind="drift",
        summary=f"{len(ids)} memories differ between the stores ({drift.replace('_', ' ')}); verify says more.",
        details={"class": drift, "memories": len(ids), "memory_ids": ids[:NAMED_IDS], "repair": ACTIONS[drift]},
    )
