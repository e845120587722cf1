"""Compare: what differs between both stores although no change waits, and is still so a little later."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from dionysus_sync_mcp.domain.drift import DriftClass, Facts, Here, There, changed_on_both, classify, confirmed
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.engine.ports.shared import OnProgress
from dionysus_sync_mcp.engine.ports.verify import (
    LocalComparison,
    LocalSnapshot,
    QueueLook,
    RemoteComparison,
    RemoteTallies,
    Seen,
    Tally,
)
from dionysus_sync_mcp.engine.tasks import first_error

Kind = Literal["quick", "full", "deep"]
OneSide = TypeVar("OneSide", Here, There)

MOST_WAITING = 10_000
# So much of each class is held in memory until it was looked at again; many of one class hide no other one.
MOST_DIFFERENCES = 20_000
PAGE = 5000
DEEP_PAGE = 1000
LOOK_PAGE = 1000
PAGES_AHEAD = 2
PAUSE_SECONDS = 0.5
_LAST = "\U0010ffff"


@dataclass(slots=True)
class Comparison:
    """What a comparison found.

    Attributes:
        skipped: Why nothing was compared, one clause; `None` where it was.
        behind: Whether this database went back in time, as the caller has said.
        lacking: Names of the remote's constraints and indexes that are missing.
        unlooked: Differences of each class beyond those that are held, which were not looked at again.
    """

    skipped: str | None = None
    rows: int = 0
    memories: int = 0
    left_out: int = 0
    parked: int = 0
    oldest_waiting_at: datetime | None = None
    behind: bool = False
    unlooked: dict[DriftClass, int] = field(default_factory=dict)
    drift: dict[DriftClass, list[Seen]] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)

    def note(self, drift: DriftClass, seen: Seen) -> None:
        """Add a difference."""
        self.drift.setdefault(drift, []).append(seen)

    def pass_over(self, drift: DriftClass, number: int = 1) -> None:
        """Count differences that are not held."""
        if number:
            self.unlooked[drift] = self.unlooked.get(drift, 0) + number

    def take_out(self, memory_ids: Iterable[str], classes: Iterable[DriftClass]) -> None:
        """Remove memories that are in a graver class."""
        gone = set(memory_ids)
        for name in classes:
            kept = [seen for seen in self.drift.get(name, []) if seen.memory_id not in gone]
            self.drift = {**self.drift, name: kept} if kept else {k: v for k, v in self.drift.items() if k != name}


class _Rules(NamedTuple):
    """By which memories are judged; see `Comparer.compare` and `classify`."""

    store: str
    waiting_too: bool
    rolled_back: bool

    def judge(self, facts: Facts) -> DriftClass | None:
        """In which way the two sides differ."""
        return classify(facts, self.store, rolled_back=self.rolled_back)

    def waits_in_vain(self, facts: Facts) -> bool:
        """Whether the remote has more than the change that waits would bring; a delete that waits was meant."""
        here, there = facts.here, facts.there
        if not self.waiting_too or here is None or there is None:
            return False
        return here.version <= there.version or (self.rolled_back and changed_on_both(here, there))


class Comparer:
    """Compares both stores.

    One pass over every id, version and hash costs as much as summing the hashes would, since the local store has to
    make each row's hash for either. So there are two levels only: `quick` sums versions by project, for a tenth of
    that, and passes over the ids where the sums differ.

    Args:
        pause: Seconds between the two looks at what differs; longer than a push's poll.
    """

    def __init__(self, local: LocalComparison, remote: RemoteComparison, *, pause: float = PAUSE_SECONDS) -> None:
        self._local = local
        self._remote = remote
        self._pause = pause

    async def compare(
        self,
        kind: Kind,
        store: str,
        *,
        waiting_too: bool = False,
        behind: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Comparison:
        """Compare what no change waits for.

        Args:
            store: The id of this local store.
            waiting_too: Also look at memories of which a change waits in vain, for a database whose pushes are refused.
            behind: Whether this database went back in time.
        """
        rules = _Rules(store, waiting_too, rolled_back=waiting_too and behind)
        async with self._local.snapshot(MOST_WAITING) as snapshot:
            found = _begun(snapshot.queue, behind)
            if snapshot.queue.waiting is None and not waiting_too:
                found.skipped = f"more than {MOST_WAITING} memories wait to be pushed"
                return found
            found.lacking = await self._remote.lacking()
            left_out = frozenset() if waiting_too else snapshot.queue.waiting or frozenset()
            if kind == "quick" and await self._same_sums(snapshot, store, left_out, found):
                return found
            one_pass = _Pass(self._local, self._remote, rules, left_out, found, on_progress)
            differing = await one_pass.run(snapshot)
        for seen in await self._still_differing(differing, rules):
            if drift := rules.judge(seen.facts):
                found.note(drift, seen)
        if kind == "deep":
            await self._compare_contents(found, store, on_progress)
        await self._note_duplicates(found)
        return found

    async def _same_sums(
        self, snapshot: LocalSnapshot, store: str, left_out: frozenset[str], found: Comparison
    ) -> bool:
        sums: dict[str | None, Tally] = {}
        theirs: list[RemoteTallies] = []

        async def here() -> None:
            sums.update(await snapshot.tallies())

        async def there() -> None:
            theirs.append(await self._remote.tallies(sorted(left_out), store))

        with first_error():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(here)
                tasks.start_soon(there)
        if not _same(sums, theirs[0]):
            return False
        found.rows = found.memories = sum(tally.memories for tally in sums.values())
        return True

    async def _still_differing(self, memory_ids: Sequence[str], rules: _Rules) -> list[Seen]:
        """Those that two more looks, some time apart, see in the same state.

        Each look reads the remote first. What is here without a waiting change at the first look has been pushed by
        then, so the second look at the remote must see it; what is there at the second look was here before.
        """
        first = await self._look(memory_ids, rules)
        left = [i for i, facts in first.items() if rules.judge(facts)]
        if not left:
            return []
        await anyio.sleep(self._pause)
        second = await self._look(left, rules)
        return [Seen(i, facts) for i, facts in second.items() if confirmed(first[i], facts)]

    async def _look(self, memory_ids: Sequence[str], rules: _Rules) -> dict[str, Facts]:
        found: dict[str, Facts] = {}
        for ids in _pages(memory_ids, LOOK_PAGE):
            there = await self._remote.standing_of(ids)
            here, deletions, waiting = await self._local.look(ids)
            for i in ids:
                facts = Facts(here.get(i), there.get(i), deletions.get(i))
                if i not in waiting or rules.waits_in_vain(facts):
                    found[i] = facts
        return found

    async def _compare_contents(self, found: Comparison, store: str, on_progress: OnProgress | None) -> None:
        suspects: list[str] = []
        last, seen = "", 0
        while page := await self._remote.deep_page(last, DEEP_PAGE):
            last, seen = page[-1][0].id, seen + len(page)
            wrong = [one.memory_id for one, _ in await self._judged(page)]
            room = MOST_DIFFERENCES - len(suspects)
            suspects += wrong[:room]
            found.pass_over("corrupt_there", len(wrong[room:]))
            if on_progress:
                await on_progress(seen, None, f"{seen} contents compared")
        first = await self._deep_look(suspects)
        if first:
            await anyio.sleep(self._pause)
        second = await self._deep_look(list(first))
        same = [judged for i, judged in second.items() if first[i] == judged and _concerns(judged[0].facts, store)]
        _note_contents(found, same)

    async def _deep_look(self, memory_ids: Sequence[str]) -> dict[str, tuple[Seen, bool]]:
        found: dict[str, tuple[Seen, bool]] = {}
        for ids in _pages(memory_ids, LOOK_PAGE):
            judged = await self._judged(await self._remote.deep_of(ids))
            here, deletions, waiting = await self._local.look(ids)
            for seen, versioned in judged:
                i = seen.memory_id
                if i not in waiting:
                    facts = Facts(here.get(i), seen.facts.there, deletions.get(i))
                    found[i] = (seen._replace(facts=facts), versioned)
        return found

    async def _judged(self, page: Sequence[tuple[RemoteMemory, There, bool]]) -> list[tuple[Seen, bool]]:
        """Memories whose content is not what their hash says, or whose version is not in their history."""
        plain = [(memory, there, versioned) for memory, there, versioned in page if _is_id(memory.id)]
        hashes = await self._local.hashes([memory for memory, _, _ in plain]) if plain else {}
        return [
            (Seen(memory.id, Facts(None, there), hashes[memory.id]), versioned)
            for memory, there, versioned in plain
            if hashes[memory.id] != there.content_hash or not versioned
        ]

    async def _note_duplicates(self, found: Comparison) -> None:
        duplicated = [i for i in await self._remote.duplicated(MOST_DIFFERENCES) if _is_id(i)]
        if not duplicated:
            return
        found.take_out(duplicated, tuple(found.drift))
        there = await self._remote.standing_of(duplicated)
        for memory_id in duplicated:
            found.note("duplicate_there", Seen(memory_id, Facts(None, there.get(memory_id))))


class _Pass:
    """One pass over all ids of both sides, which are read at the same time, some pages ahead of the comparison."""

    def __init__(
        self,
        local: LocalComparison,
        remote: RemoteComparison,
        rules: _Rules,
        left_out: frozenset[str],
        found: Comparison,
        on_progress: OnProgress | None,
    ) -> None:
        self._local = local
        self._remote = remote
        self._rules = rules
        self._left_out = left_out
        self._found = found
        self._on_progress = on_progress
        self._differing: dict[DriftClass, list[str]] = {}

    async def run(self, snapshot: LocalSnapshot) -> list[str]:
        """The ids that differ, at most `MOST_DIFFERENCES` of each class."""
        send_here, here = anyio.create_memory_object_stream[Sequence[tuple[str, Here]]](PAGES_AHEAD)
        send_there, there = anyio.create_memory_object_stream[Sequence[tuple[str, There]]](PAGES_AHEAD)
        with first_error():
            async with anyio.create_task_group() as tasks, here, there:
                tasks.start_soon(_feed, snapshot.rows(), send_here)
                tasks.start_soon(_feed, self._memories(), send_there)
                await self._merge(_Window(here), _Window(there))
        return [memory_id for ids in self._differing.values() for memory_id in ids]

    async def _memories(self) -> AsyncIterator[Sequence[tuple[str, There]]]:
        last = ""
        while page := await self._remote.standing(last, PAGE):
            yield page
            last = page[-1][0]

    async def _merge(self, here: "_Window[Here]", there: "_Window[There]") -> None:
        while True:
            behind: _Window[Here] | _Window[There] = here if here.last <= there.last else there
            if behind.ended:
                return
            await behind.advance()
            bound = min(here.last, there.last)
            await self._compare(here.until(bound), there.until(bound))
            if self._on_progress:
                await self._on_progress(self._found.rows, None, f"{self._found.rows} memories compared")

    async def _compare(self, here: Mapping[str, Here], there: Mapping[str, There]) -> None:
        differing: dict[str, Facts] = {}
        for memory_id in here.keys() | there.keys() if here.keys() != there.keys() else here:
            if memory_id in self._left_out:
                continue
            facts = Facts(here.get(memory_id), there.get(memory_id))
            self._count(facts)
            if self._rules.judge(facts) and _is_id(memory_id):
                differing[memory_id] = facts
        for ids in _pages(list(differing), LOOK_PAGE):
            await self._note_page({i: differing[i] for i in ids})

    async def _note_page(self, differing: Mapping[str, Facts]) -> None:
        """What waits would fill the room of what does not; a delete on record makes another class."""
        deletions, waiting = await self._local.marks(list(differing))
        for memory_id, facts in differing.items():
            drift = self._rules.judge(facts._replace(deletion=deletions.get(memory_id)))
            if drift and (memory_id not in waiting or self._rules.waits_in_vain(facts)):
                self._note(drift, memory_id)

    def _count(self, facts: Facts) -> None:
        self._found.rows += facts.here is not None
        live = facts.there is not None and not facts.there.deleted
        self._found.memories += live and _concerns(facts, self._rules.store)

    def _note(self, drift: DriftClass, memory_id: str) -> None:
        ids = self._differing.setdefault(drift, [])
        if len(ids) < MOST_DIFFERENCES:
            ids.append(memory_id)
        else:
            self._found.pass_over(drift)


class _Window(Generic[OneSide]):
    """What has been read of one side and not compared yet."""

    def __init__(self, pages: MemoryObjectReceiveStream[Sequence[tuple[str, OneSide]]]) -> None:
        self._pages: MemoryObjectReceiveStream[Sequence[tuple[str, OneSide]]] = pages
        self._held: dict[str, OneSide] = {}
        self.last = ""
        self.ended = False

    async def advance(self) -> None:
        """Read a page; after the last one every id is read."""
        try:
            page = await self._pages.receive()
        except anyio.EndOfStream:
            self.last, self.ended = _LAST, True
            return
        self._held.update(page)
        self.last = page[-1][0]

    def until(self, bound: str) -> dict[str, OneSide]:
        """Take out what is not above an id."""
        taken = self._held if self.last <= bound else {i: side for i, side in self._held.items() if i <= bound}
        self._held = {} if taken is self._held else {i: side for i, side in self._held.items() if i > bound}
        return taken


async def _feed(
    pages: AsyncIterator[Sequence[tuple[str, OneSide]]], send: MemoryObjectSendStream[Sequence[tuple[str, OneSide]]]
) -> None:
    async with send:
        async for page in pages:
            await send.send(page)


def _same(here: Mapping[str | None, Tally], there: RemoteTallies) -> bool:
    """Whether each project here has as much there, and this store has written in no other one.

    A project that is not here is another store's business. In one that both write in, sums tell nothing: a memory that
    this one has lost and one that the other has written would make up for each other.
    """
    return not there.own.keys() - here.keys() and all(there.all.get(name) == tally for name, tally in here.items())


def _begun(queue: QueueLook, behind: bool) -> Comparison:
    left_out = len(queue.waiting) if queue.waiting is not None else MOST_WAITING
    return Comparison(left_out=left_out, parked=len(queue.parked), oldest_waiting_at=queue.oldest_at, behind=behind)


def _concerns(facts: Facts, store: str) -> bool:
    return facts.here is not None or (facts.there is not None and facts.there.origin == store)


def _note_contents(found: Comparison, judged: Sequence[tuple[Seen, bool]]) -> None:
    known = {seen.memory_id: name for name, all_seen in found.drift.items() for seen in all_seen}
    corrupt = [s for s, _ in judged if _is_corrupt(s) and known.get(s.memory_id) in (None, "different")]
    found.take_out([seen.memory_id for seen in corrupt], ["different"])
    for seen in corrupt:
        found.note("corrupt_there", seen)
    for seen, versioned in judged:
        if not (versioned or _is_corrupt(seen) or seen.memory_id in known):
            found.note("unversioned_there", seen._replace(actual=None))


def _is_corrupt(seen: Seen) -> bool:
    return seen.facts.there is not None and seen.actual != seen.facts.there.content_hash


def _is_id(memory_id: object) -> bool:
    """Whether it can be the id of a row, as PostgreSQL writes it; somebody may have made nodes by hand."""
    try:
        return str(UUID(str(memory_id))) == memory_id
    except ValueError:
        return False


def _pages(memory_ids: Sequence[str], size: int) -> list[Sequence[str]]:
    return [memory_ids[start : start + size] for start in range(0, len(memory_ids), size)]
