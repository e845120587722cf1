"""Goes over both stores once, side by side, and tells what a recovery would do with each memory.

The ids are cut into spans that are gone over at the same time: several pages of either store are under way, and what is
held in memory does not grow with the stores.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, NamedTuple, TypeVar, get_args

import anyio

from dionysus_sync_mcp.domain.drift import Here
from dionysus_sync_mcp.domain.lost_columns import LostColumns, lost_values, names_of
from dionysus_sync_mcp.domain.memory import broken_rules
from dionysus_sync_mcp.domain.recovery_plan import Action, PlanClass, State, Wishes, action_of, class_of, fingerprint
from dionysus_sync_mcp.engine.ports.history import EVERY_ID, Concern, LocalRows, RemoteHistory, Span, StateOf
from dionysus_sync_mcp.engine.ports.shared import OnProgress, Scope
from dionysus_sync_mcp.engine.reports import RecoveryClass
from dionysus_sync_mcp.engine.tasks import first_error

PAGE = 2500
# Each has a page of either store under way: with more, a server of few cores is not faster.
LANES = 4
# From so many memories on the ids are cut.
MANY = 10_000
EXAMPLES = 5
FINGERPRINTS = 2**256
_LAST = "\U0010ffff"
_DIGITS = "0123456789abcdef"

Side = TypeVar("Side", Here, State)
NOTHING_LOST: Mapping[str, str] = {}


class Choice(NamedTuple):
    """A memory that a recovery does something with.

    Attributes:
        lost: JSON text of values that its state says nothing of, since the table lacked their columns, by column.
    """

    there: State
    here: Here | None
    action: Action
    lost: Mapping[str, str] = NOTHING_LOST


class Named(NamedTuple):
    """An example, with what there is to say of it."""

    there: State
    reason: str | None


@dataclass(frozen=True, slots=True)
class Question:
    """What is surveyed, and by which wishes.

    Attributes:
        waiting: Memories whose newest state waits in the queue: what the remote store has of them is old.
        memories: About how many there are.
        lost: Columns that an incident took; `None` where none is concerned that did.
        keep: Whether what is chosen is to be told memory by memory.
    """

    concern: Concern
    wishes: Wishes
    waiting: frozenset[str] = frozenset()
    memories: int = 0
    lost: LostColumns | None = None
    keep: bool = False


@dataclass(slots=True)
class Survey:
    """What was found.

    Attributes:
        fingerprint: Stands for what is to be done; another one, if any of it is another.
        then: Memories that were there at the moment in question.
        deleted_since: Chosen ones that somebody has deleted on purpose after that.
        refilled: Chosen ones that get values of lost columns back beside what they hold otherwise.
    """

    counts: dict[RecoveryClass, int] = field(default_factory=lambda: dict.fromkeys(get_args(RecoveryClass), 0))
    examples: dict[RecoveryClass, list[Named]] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    fingerprint: int = 0
    chosen: int = 0
    overwrites: int = 0
    held_back: int = 0
    then: int = 0
    deleted_since: int = 0
    refilled: int = 0

    def add(self, other: "Survey") -> None:
        """What another span has come to."""
        for name, number in other.counts.items():
            self.counts[name] += number
        for name, named in other.examples.items():
            self.examples[name] = [*self.examples.get(name, []), *named][:EXAMPLES]
        self.choices += other.choices
        self.unreadable += other.unreadable
        self.fingerprint = (self.fingerprint + other.fingerprint) % FINGERPRINTS
        self.chosen += other.chosen
        self.overwrites += other.overwrites
        self.held_back += other.held_back
        self.then += other.then
        self.deleted_since += other.deleted_since
        self.refilled += other.refilled


class Surveyor:
    """Surveys both stores."""

    def __init__(self, remote: RemoteHistory, rows: LocalRows) -> None:
        self._remote = remote
        self._rows = rows

    async def survey(self, question: Question, on_progress: OnProgress | None = None) -> Survey:
        """Look at every memory in question; changes nothing."""
        spans = _spans(question.memories)
        found = [_Findings(question) for _ in spans]
        turns = iter(range(len(spans)))
        progress = _Progress(on_progress)
        with first_error():
            async with anyio.create_task_group() as tasks:
                for _ in range(min(LANES, len(spans))):
                    tasks.start_soon(self._lane, turns, spans, found, progress)
        whole = Survey()
        for one in found:
            whole.add(one.survey)
        return whole

    async def reshaped(self, scope: Scope, choices: Sequence[Choice]) -> list[Choice]:
        """The same, of rows in a table that has got other columns since: they have other hashes, and no other version.

        A row that somebody has changed meanwhile stays as it was seen, so that it is not overwritten.
        """
        rows = {memory_id: row async for page in self._rows.rows(scope, EVERY_ID) for memory_id, row in page}
        return [
            choice._replace(here=now)
            if choice.here and (now := rows.get(choice.there.memory_id)) and now.version == choice.here.version
            else choice
            for choice in choices
        ]

    async def _lane(
        self, turns: Iterator[int], spans: Sequence[Span], found: "Sequence[_Findings]", progress: "_Progress"
    ) -> None:
        for turn in turns:
            await self._look(spans[turn], found[turn], progress)

    async def _look(self, span: Span, found: "_Findings", progress: "_Progress") -> None:
        concern = found.question.concern
        pages = self._rows.rows(concern.scope, span)
        async with aclosing(pages) as rows, aclosing(self._states(concern, span)) as states:
            here, there = _Window(rows), _Window(states)
            while not (here.ended and there.ended):
                behind: _Window[Here] | _Window[State] = here if here.last <= there.last else there
                await behind.advance()
                bound = min(here.last, there.last)
                pair = here.until(bound), there.until(bound)
                lost = await self._lost(pair[1], found.question)
                found.note(*pair, lost, await self._undamaged(*pair, found.question))
                await progress.add(len(pair[1]))

    async def _undamaged(
        self, rows: Mapping[str, Here], memories: Mapping[str, State], question: Question
    ) -> frozenset[str]:
        """Rows that differ from their states only by what was not captured, such as a column that was made again."""
        doubted = [
            StateOf(memory_id, there.target_version or 0, there.target_hash)
            for memory_id, there in memories.items()
            if (here := rows.get(memory_id)) and here.content_hash != there.content_hash
            if class_of(here, there, question.wishes) == "overwritten_by_incident"
        ]
        return await self._rows.as_captured(await self._remote.whole_states(doubted)) if doubted else frozenset()

    async def _lost(self, memories: Mapping[str, State], question: Question) -> dict[str, Mapping[str, str]]:
        """What the states in question say nothing of, by memory."""
        lost = question.lost
        meant = {i: s for i, s in memories.items() if s.target_version is not None and not s.target_deleted}
        if lost is None or not meant:
            return {}
        before = {memory.id: memory for memory in await self._remote.states_before(sorted(meant), lost.moment)}
        wanted = [StateOf(i, meant[i].target_version or 0, meant[i].target_hash) for i in before]
        targets = await self._remote.whole_states(wanted) if wanted else []
        found = {target.id: lost_values(target, before[target.id], lost) for target in targets}
        return {memory_id: values for memory_id, values in found.items() if values}

    async def _states(self, concern: Concern, span: Span) -> AsyncGenerator[Sequence[tuple[str, State]], None]:
        last = ""
        while page := await self._remote.states(concern, span, last, PAGE):
            yield [(state.memory_id, state) for state in page]
            last = page[-1].memory_id


class _Findings:
    """What is found in one span."""

    def __init__(self, question: Question) -> None:
        self.question = question
        self.survey = Survey()

    def note(
        self,
        rows: Mapping[str, Here],
        memories: Mapping[str, State],
        lost: Mapping[str, Mapping[str, str]],
        undamaged: frozenset[str],
    ) -> None:
        """Some ids, and all that either side has of them.

        Args:
            lost: What their states say nothing of.
            undamaged: Those whose rows hold all of their states.
        """
        survey = self.survey
        survey.counts["only_here"] += len(rows.keys() - memories.keys())
        survey.unreadable += [memory_id for memory_id, here in rows.items() if not here.content_hash]
        for memory_id, there in memories.items():
            survey.then += there.target_version is not None
            here = rows.get(memory_id)
            plan_class = "identical" if memory_id in undamaged else class_of(here, there, self.question.wishes)
            if plan_class:
                self._note(plan_class, here, there, lost.get(memory_id, NOTHING_LOST))

    def _note(self, plan_class: PlanClass, here: Here | None, there: State, lost: Mapping[str, str]) -> None:
        survey = self.survey
        if plan_class == "identical" and lost:
            plan_class = "overwritten_by_incident"
        survey.counts[plan_class] += 1
        if plan_class == "identical":
            return
        self._name(plan_class, there, _reason(plan_class, here, there, lost))
        if action := action_of(plan_class, here, there, self.question.wishes):
            if there.memory_id in self.question.waiting:
                survey.held_back += 1
                return
            self._choose(Choice(there, here, action, lost))

    def _choose(self, choice: Choice) -> None:
        survey, there = self.survey, choice.there
        survey.chosen += 1
        survey.overwrites += choice.action == "overwrite"
        survey.deleted_since += (
            choice.here is None and there.deleted and not there.target_deleted and not there.by_incident
        )
        survey.refilled += bool(choice.lost)
        survey.fingerprint += fingerprint(there.memory_id, choice.action, there, choice.here, names_of(choice.lost))
        if rules := broken_rules(there.target):
            survey.counts["invalid"] += 1
            self._name("invalid", there, "; ".join(rules))
        if self.question.keep:
            survey.choices.append(choice)

    def _name(self, plan_class: RecoveryClass, there: State, reason: str | None) -> None:
        named = self.survey.examples.setdefault(plan_class, [])
        if len(named) < EXAMPLES:
            named.append(Named(there, reason))


class _Window(Generic[Side]):
    """What has been read of one side and not been looked at yet."""

    def __init__(self, pages: AsyncIterator[Sequence[tuple[str, Side]]]) -> None:
        self._pages: AsyncIterator[Sequence[tuple[str, Side]]] = pages
        self._held: dict[str, Side] = {}
        self.last = ""
        self.ended = False

    async def advance(self) -> None:
        """Read a page; after the last one every id is read."""
        page = await anext(self._pages, None)
        if page is None:
            self.last, self.ended = _LAST, True
            return
        self._held.update(page)
        self.last = page[-1][0]

    def until(self, bound: str) -> dict[str, Side]:
        """Take out what is not above an id."""
        if self.last <= bound:
            taken, self._held = self._held, {}
            return taken
        taken = {i: side for i, side in self._held.items() if i <= bound}
        for memory_id in taken:
            del self._held[memory_id]
        return taken


class _Progress:
    """Tells how many memories have been looked at."""

    def __init__(self, tell: OnProgress | None) -> None:
        self._tell = tell
        self._seen = 0

    async def add(self, memories: int) -> None:
        """So many more."""
        self._seen += memories
        if self._tell and memories:
            await self._tell(self._seen, None, f"{self._seen} memories compared")


def _spans(memories: int) -> list[Span]:
    if memories < MANY:
        return [EVERY_ID]
    return [Span(first, end) for first, end in pairwise(["", *_DIGITS[1:], ""])]


def _reason(plan_class: PlanClass, here: Here | None, there: State, lost: Mapping[str, str]) -> str | None:
    """What there is to say of an example."""
    if lost and plan_class in ("overwritten_by_incident", "missing_here", "deleted_by_incident"):
        return f"an incident took columns of it; their values come back: {names_of(lost)}"
    if here is None:
        return {
            "deleted": "it was deleted on purpose",
            "deleted_by_incident": f"an incident deleted it; version {there.target_version} comes back",
        }.get(plan_class)
    if plan_class == "overwritten_by_incident":
        return f"an incident changed it; version {there.target_version} comes back"
    if there.target_version is None:
        return "it was made after that time"
    return f"the row here is version {here.version}, the state in question version {there.target_version}"
