"""Random writes, faults, deliveries and restarts on real servers, and a plain dictionary that says what comes of it.

The engine is asynchronous and Hypothesis is not: its steps are called in an event loop of another thread.
"""

import signal
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, get_args

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.faults.engine import Engine, Fault, Ground, LocalFault, Point, RemoteFault, lost_since, open_ground
from tests.faults.oracle import Comparison
from tests.faults.plugin import Scenario
from tests.faults.program import Failpoint, Stores, run
from tests.faults.writes import Kind, Write
from tests.services.local_store import running

# Hypothesis gives an example 8 kB of choices: longer texts and transactions would leave fewer steps.
MEMORIES = 7  # few, so that most writes meet a memory that has been through something
KILLED_AT = (
    "before:claim_entries",
    "before:write_memories",
    "before:COMMIT(write_memories)",
    "after:COMMIT(write_memories)",
    "before:acknowledge",
    "before:COMMIT(acknowledge)",
    "after:COMMIT(acknowledge)",
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
NUMBERS = st.integers(0, MEMORIES - 1)
WRITES = st.builds(Write, st.sampled_from(get_args(Kind)), NUMBERS, NUMBERS, TEXTS)
TRANSACTIONS = st.lists(WRITES, min_size=1, max_size=3)
EVERY_FAULT = {"killed", *get_args(LocalFault), *get_args(RemoteFault)}
POINTS = st.sampled_from(get_args(Point))


@dataclass
class Tally:
    """What all examples of a run came to together."""

    rows: int = 0
    seconds: float = 0.0
    engaged: Counter[str] = field(default_factory=Counter)
    void: Counter[str] = field(default_factory=Counter)

    def add(self, ground: Ground, compared: Comparison, seconds: float) -> None:
        """Another example."""
        self.rows += compared.rows_written
        self.seconds = max(self.seconds, seconds)
        self.engaged += ground.engaged
        self.void += ground.void


@dataclass(frozen=True, slots=True)
class Place:
    """Where examples run."""

    portal: BlockingPortal
    template_url: str
    neo4j_uri: str
    tally: Tally = field(default_factory=Tally)


class Machine(RuleBasedStateMachine):
    """One example: a user, an engine, and what is done to them, step by step."""

    place: ClassVar[Place]

    def __init__(self) -> None:
        super().__init__()
        place = self.place
        self._call = place.portal.call
        self._all = ExitStack()
        self._running = ExitStack()
        opened = place.portal.wrap_async_context_manager(open_ground(place.template_url, place.neo4j_uri))
        self.ground: Ground = self._all.enter_context(opened)
        self.engine = self._started()
        self._seen = self._call(self.ground.seen)
        self._holding = False

    @rule(write=WRITES)
    def write(self, write: Write) -> None:
        """The user writes; it must succeed (P5)."""
        self._call(self.ground.user.write, write)

    @rule(writes=TRANSACTIONS, undone_from=st.none() | st.integers(0, 2), commit=st.booleans())
    def transact(self, writes: list[Write], undone_from: int | None, commit: bool) -> None:
        """The user writes in a transaction, of which a part or all may be undone."""
        user = self.ground.user
        self._call(lambda: user.transact(writes, undone_from=undone_from, commit=commit))

    @precondition(lambda self: not self._holding)
    @rule(writes=st.lists(WRITES, min_size=1, max_size=3))
    def hold(self, writes: list[Write]) -> None:
        """A slow transaction of the user holds rows while others go on."""
        self._call(self.ground.user.hold, writes)
        self._holding = True

    @precondition(lambda self: self._holding)
    @rule(commit=st.booleans())
    def let_go(self, commit: bool) -> None:
        """The slow transaction ends, after faster later ones."""
        self._call(lambda: self.ground.user.let_go(commit=commit))
        self._holding = False

    @rule()
    def push(self) -> None:
        """One push that nobody disturbs."""
        self._call(self.ground.push, self.engine)

    @rule(point=POINTS, writes=TRANSACTIONS)
    def push_while_the_user_writes(self, point: Point, writes: list[Write]) -> None:
        """The rows that a push has claimed change, or go, before it is over."""

        async def act() -> None:
            await self.ground.user.transact(writes)

        self._call(self.ground.push_meanwhile, self.engine, point, act)

    @rule(fault=st.sampled_from(get_args(RemoteFault)), point=POINTS, write=WRITES, noticed=st.booleans())
    def push_without_remote(self, fault: RemoteFault, point: Point, write: Write, noticed: bool) -> None:
        """The remote store goes in the middle of a push."""
        self._push_under(fault, point, write, noticed)

    @rule(fault=st.sampled_from(get_args(LocalFault)), point=POINTS, write=WRITES, noticed=st.booleans())
    def push_without_local(self, fault: LocalFault, point: Point, write: Write, noticed: bool) -> None:
        """The local store goes in the middle of a push."""
        self._push_under(fault, point, write, noticed)

    @rule(point=POINTS, write=WRITES)
    def push_and_die(self, point: Point, write: Write) -> None:
        """The engine ends in the middle of a push; another one starts on what it left."""
        self._push_under("killed", point, write, noticed=False)
        self.restart()

    @rule(
        write=WRITES,
        number=st.integers(0, 9),
        part=st.tuples(st.integers(1, 3), st.integers(0, 2)),
        fenced=st.booleans(),
    )
    def deliver_again(self, write: Write, number: int, part: tuple[int, int], fenced: bool) -> None:
        """A batch arrives once more, out of order, whole or in part: nothing changes (P2)."""
        self.write(write)
        self.push()
        self._call(lambda: self.ground.deliver_again(self.engine, number, part, fenced=fenced))

    @rule()
    def restart(self) -> None:
        """Another engine in the place of this one."""
        self._running.close()
        self.engine = self._started()

    @invariant()
    def the_remote_store_has_all_that_it_had(self) -> None:
        """No version went back (P3), nothing went away (P4)."""
        now = self._call(self.ground.seen)
        assert lost_since(self._seen, now) == []
        self._seen = now

    def teardown(self) -> None:
        """All faults are over: both stores come to what the dictionary says (P1), unless the example failed already."""
        try:
            if sys.exc_info()[0] is None:
                self._finish()
        finally:
            self._running.close()
            self._all.close()

    def _push_under(self, fault: Fault, point: Point, write: Write, noticed: bool) -> None:
        self._call(self.ground.user.write, write)
        self._call(self.ground.push_under, self.engine, fault, point)
        if noticed:
            self._call(self.ground.servers_give_up)

    def _finish(self) -> None:
        ground = self.ground
        self._call(lambda: ground.user.let_go(commit=True))
        self._call(ground.drain, self.engine)
        compared, seconds = self._call(ground.oracle.until_whole)
        assert compared.whole, compared
        assert self._call(ground.conflicts) == [], "one store alone has none"
        self.the_remote_store_has_all_that_it_had()
        self.place.tally.add(ground, compared, seconds)

    def _started(self) -> Engine:
        local, remote = self.ground.local, self.ground.remote
        opened = running(local.through(self.ground.database_url), remote.through(self.place.neo4j_uri))
        runtime = self._running.enter_context(self.place.portal.wrap_async_context_manager(opened))
        return Engine(runtime)


class KillingMachine(Machine):
    """The same, and the program runs as a process, too, and is killed with -9."""

    @rule(at=st.sampled_from(KILLED_AT), write=WRITES)
    def kill(self, at: str, write: Write) -> None:
        """A command `sync` is killed at a step of its push."""
        self._call(self.ground.user.write, write)
        with tempfile.TemporaryDirectory() as home:
            stores = Stores(self.ground.database_url, self.place.neo4j_uri, Path(home))
            point = Failpoint(at)
            ended = self._call(lambda: run(stores, "sync", "--no-embed", "--timeout", "20", failpoint=point))
        assert ended.status == -signal.SIGKILL or not ended.reached
        (self.ground.engaged if ended.reached else self.ground.void)["killed with -9"] += 1


def machine_run(place: Place, machine: type[Machine], examples: int, steps: int) -> None:
    """So many examples of so many steps."""
    machine.place = place
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            # To shrink an example would take real servers through it for minutes.
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def noted(scenario: Scenario, tally: Tally) -> None:
    """Each example has compared both stores with the dictionary: what is left to note are the numbers."""
    voids = tally.void.total()
    scenario.note(
        engaged=tally.engaged.total() > voids,
        compared=Comparison(tally.rows),
        seconds=tally.seconds,
    )


@pytest.mark.scenario(13, "random writes, pushes, faults, restarts and deliveries in any order")
@pytest.mark.promise("P1")
@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
@pytest.mark.promise("P4")
@pytest.mark.promise("P5")
@pytest.mark.usefixtures("anyio_backend")
def test_13_any_order_of_things(migrated_template: str, neo4j_uri: str, scenario: Scenario) -> None:
    """Whatever happens in whatever order, both stores come to what a dictionary says."""
    with start_blocking_portal("asyncio") as portal:
        place = Place(portal, migrated_template, neo4j_uri)
        machine_run(place, Machine, examples=5, steps=25)
    noted(scenario, place.tally)


@pytest.mark.slow
@pytest.mark.scenario(13, "the same for longer, and processes killed with -9")
@pytest.mark.promise("P1")
@pytest.mark.usefixtures("anyio_backend")
def test_13_any_order_of_things_for_longer(migrated_template: str, neo4j_uri: str, scenario: Scenario) -> None:
    """The same with longer stories and more of them; every fault takes hold at some time."""
    with start_blocking_portal("asyncio") as portal:
        place = Place(portal, migrated_template, neo4j_uri)
        machine_run(place, KillingMachine, examples=50, steps=30)
    assert place.tally.engaged.keys() >= EVERY_FAULT
    noted(scenario, place.tally)
