"""Sync on demand, on in-memory stores."""

from dataclasses import replace

import anyio
import pytest

from dionysus_sync_mcp.domain.errors import (
    AccessRefused,
    DionysusError,
    Refused,
    RemoteDamaged,
    StoreRolledBack,
    TimedOut,
    Unavailable,
)
from dionysus_sync_mcp.engine.guard import Guard
from dionysus_sync_mcp.engine.ports.push import RemoteBatch, RowOutcome
from dionysus_sync_mcp.engine.ports.shared import Health
from dionysus_sync_mcp.engine.push import SHRINKING_TRIES, Pusher
from dionysus_sync_mcp.engine.refill import Refiller
from dionysus_sync_mcp.engine.reports import VerifyReport
from dionysus_sync_mcp.engine.status import RECOVER, REPAIR, StatusReader
from dionysus_sync_mcp.engine.sync import Syncer, Wanted
from tests.engine.memory_local import MemoryLocal
from tests.engine.memory_remote import MemoryRemote
from tests.engine.test_embed import Model


class Looked:
    """A service with the health that a test gives it."""

    def __init__(self, health: Health) -> None:
        self._health = health

    async def health(self, timeout: float) -> Health:
        """As given, after no time at all."""
        assert timeout > 0
        return self._health


CLEAN = VerifyReport(kind="full", result="clean", next_step="Nothing to do.")
UP = Looked(Health("postgresql"))
AWAY = Looked(Health("neo4j", error="connection refused", hint="Start it."))


def syncer(
    local: MemoryLocal,
    remote: MemoryRemote,
    *services: Looked,
    model: Model | None = None,
    check: VerifyReport | DionysusError = CLEAN,
) -> Syncer:
    """On these stores, in batches of two; a comparison finds what it is given."""
    refiller = Refiller(local, remote, local, Guard(local, remote, remote, may_initialise=False))

    async def compare() -> VerifyReport:
        if isinstance(check, DionysusError):
            raise check
        return check

    unsent: list[str] = []

    async def rebuild() -> int | None:
        if not unsent:
            unsent.extend(["", *local.table])
        memory_id = unsent.pop()
        if not memory_id:
            return None
        local.capture(memory_id, "update")
        return 1

    return Syncer(
        services or (UP,),
        Pusher(local, remote, remote, rows=2),
        local,
        remote,
        model or Model(),
        refill=refiller.refill_once,
        shortcomings=StatusReader([], local, remote, remote, "1").shortcomings,
        rebuild=rebuild,
        check=compare,
    )


async def test_everything_is_pushed_and_embedded() -> None:
    """In as many steps as it takes, and each is told."""
    local, remote = MemoryLocal(), MemoryRemote()
    for number in range(5):
        local.write(str(number), f"text {number}")
    told: list[str] = []

    async def note(_done: int, _total: int | None, message: str) -> None:
        told.append(message)

    report = await syncer(local, remote).sync(on_progress=note)
    assert (report.result, report.pushed, report.embedded, report.remaining) == ("success", 5, 5, 0)
    assert (report.outcomes, report.without_vector, report.warnings) == ({"created": 5}, 0, [])
    assert told == ["2 changes pushed", "4 changes pushed", "5 changes pushed", "5 memories embedded"]
    again = await syncer(local, remote).sync()
    assert (again.result, again.pushed, again.embedded) == ("success", 0, 0)


@pytest.mark.promise("P9")
async def test_a_store_that_is_away_is_said_at_once() -> None:
    """Nothing is tried, everything waits."""
    local, remote = MemoryLocal(), MemoryRemote()
    local.write("a", "1")
    report = await syncer(local, remote, UP, AWAY).sync()
    assert (report.result, report.remaining, report.without_vector) == ("queued", 1, None)
    assert report.warnings == ["neo4j is away: connection refused. Start it."]
    assert not remote.nodes


async def test_what_is_asked_of_the_local_store_is_done_while_the_remote_is_away() -> None:
    """Memories and parked entries wait in the queue then; nothing of it is tried while the local store is away."""
    local, remote = MemoryLocal(), MemoryRemote()
    local.write("a", "1")
    await syncer(local, remote).sync()
    everything = Wanted(rebuild=True, retry_parked=True)
    none = await syncer(local, remote, Looked(Health("postgresql", error="refused"))).sync(everything)
    assert (none.rebuilt, none.remaining) == (0, 0)
    local.write("b", "2")
    parked = max(local.entries)
    local.entries[parked] = replace(local.entries[parked], refusals=1)
    local.parked[parked] = "poison"
    report = await syncer(local, remote, UP, AWAY).sync(everything)
    assert (report.result, report.rebuilt, report.retried, report.pushed) == ("queued", 2, 1, 0)
    assert report.remaining == 3


@pytest.mark.promise("P9")
async def test_a_store_that_goes_away_meanwhile_is_said_too() -> None:
    """What was pushed counts, the rest waits."""
    local, remote = MemoryLocal(), MemoryRemote()

    class Fading(MemoryRemote):
        async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
            if self.nodes:
                raise Unavailable("went away")
            return await super().write(batch)

    remote = Fading()
    for number in range(5):
        local.write(str(number), "c")
    report = await syncer(local, remote).sync()
    assert (report.result, report.pushed, report.remaining, report.embedded) == ("queued", 2, 3, 0)


@pytest.mark.parametrize(("slow", "result"), [(SHRINKING_TRIES - 1, "success"), (SHRINKING_TRIES, "queued")])
async def test_a_store_that_is_slow_at_first_is_asked_again(slow: int, result: str) -> None:
    """A server that has just started has to plan a batch; it is not away for that."""

    class Cold(MemoryRemote):
        times_out = slow

        async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
            if self.times_out:
                self.times_out -= 1
                raise TimedOut("not done in time")
            return await super().write(batch)

    local = MemoryLocal()
    local.write("a", "1")
    report = await syncer(local, Cold()).sync()
    assert (report.result, report.pushed) == (result, int(result == "success"))


async def test_without_an_embedder_memories_are_safe() -> None:
    """The push is a success; the warning says what is missing."""
    local, remote, model = MemoryLocal(), MemoryRemote(), Model()
    local.write("a", "1")
    model.away = Unavailable("Ollama is away")
    report = await syncer(local, remote, model=model).sync()
    assert (report.result, report.without_vector) == ("success", 1)
    assert report.warnings == ["Memories are safe, but not all have their vector yet. Ollama is away."]
    assert (await syncer(local, remote).sync(Wanted(embed=False))).embedded == 0


@pytest.mark.parametrize(("good", "result"), [(0, "failed"), (1, "partial")])
async def test_refused_changes_are_never_a_success(good: int, result: str) -> None:
    """All of them refused, or some."""
    local = MemoryLocal()

    class Choosy(MemoryRemote):
        async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
            if any(c.newest.properties.content == "poison" for c in batch.changes):
                raise Refused("it is poison")
            return await super().write(batch)

    local.write("bad", "poison")
    for number in range(good):
        local.write(str(number), "good")
    report = await syncer(local, Choosy()).sync()
    assert (report.result, report.parked, report.pushed) == (result, 1, good)


@pytest.mark.parametrize("kind", [AccessRefused, StoreRolledBack, RemoteDamaged])
async def test_a_person_has_to_act_is_a_failure_with_its_reason(kind: type[DionysusError]) -> None:
    """A wrong password is not an outage that ends by itself; the report says what to do, and that nothing is lost."""
    local, remote = MemoryLocal(), MemoryRemote(failure=kind("it must not be", hint="Mend it."))
    local.write("a", "1")
    report = await syncer(local, remote).sync()
    assert (report.result, report.pushed, report.remaining) == ("failed", 0, 1)
    assert report.warnings == ["it must not be. Mend it."]
    assert report.next_step == "Nothing is lost: changes wait in the local store. Mend it."


async def test_time_that_runs_out_is_said() -> None:
    """What was pushed by then counts."""
    local = MemoryLocal()

    class Hanging(MemoryRemote):
        async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
            if self.nodes:
                await anyio.sleep_forever()
            return await super().write(batch)

    for number in range(4):
        local.write(str(number), "c")
    report = await syncer(local, Hanging()).sync(timeout=0.05)
    assert (report.result, report.pushed, report.remaining) == ("partial", 2, 2)
    assert "Time ran out" in report.next_step


async def test_while_another_process_pushes_it_waits_for_that() -> None:
    """And is done when the queue is empty, whoever emptied it."""
    local, remote = MemoryLocal(), MemoryRemote()
    local.write("a", "1")
    local.pushing = True

    async def the_other() -> None:
        local.entries.clear()
        local.table.clear()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(the_other)
        with anyio.fail_after(5):
            report = await syncer(local, remote).sync()
    assert (report.result, report.pushed, report.remaining) == ("success", 0, 0)


async def test_changes_that_come_meanwhile_are_not_called_pushed() -> None:
    """The drain was whole; what came after it is said to be on its way."""
    local, remote = MemoryLocal(), MemoryRemote()

    class Late(Model):
        async def embed_documents(self, texts: object) -> list[list[float]]:
            local.write("late", "2")
            assert texts
            return [[1.0, 0.0, 0.0]]

    local.write("a", "1")
    report = await syncer(local, remote, model=Late()).sync()
    assert (report.result, report.remaining) == ("success", 1)
    assert "newer ones are on their way" in report.next_step


@pytest.mark.promise("P7")
async def test_a_wiped_remote_is_filled_again() -> None:
    """It is no loss of the local store, and everything is there again, on record."""
    local, remote = MemoryLocal(), MemoryRemote()
    for number in range(5):
        local.write(str(number), "c")
    await syncer(local, remote).sync()
    remote.nodes.clear()
    remote.stores.clear()
    report = await syncer(local, remote).sync()
    assert (report.result, report.pushed, report.warnings, len(remote.nodes)) == ("success", 5, [], 5)
    assert [e.record_count for e in local.events if e.result == "queued"] == [5]
    del remote.nodes["3"]
    assert (await syncer(local, remote).sync()).pushed == 1


@pytest.mark.promise("P7")
async def test_a_remote_that_is_seen_while_it_is_wiped_is_filled_again() -> None:
    """What it knew of this store went before the memories did, and those of another store hide how few there are."""
    local, other, remote = MemoryLocal(), MemoryLocal(), MemoryRemote()
    other.identity_ = replace(other.identity_, id="other")
    local.write("a", "c")
    for number in range(5):
        other.write(str(number), "c")
    filling = syncer(local, remote)
    await filling.sync()
    await syncer(other, remote).sync()
    del remote.stores[local.identity_.id]
    assert (await filling.sync()).pushed == 0
    del remote.nodes["a"]
    assert (await filling.sync()).pushed == 1
    assert len(remote.nodes) == 6


@pytest.mark.promise("P7")
async def test_a_lost_table_is_not_all_well() -> None:
    """Rows vanished without a change that was captured: the sync says so, and mirrors nothing."""
    local, remote = MemoryLocal(), MemoryRemote()
    for number in range(5):
        local.write(str(number), "c")
    await syncer(local, remote).sync()
    local.rows = {}
    local.write("new", "c")
    report = await syncer(local, remote).sync()
    assert (report.result, report.next_step, report.pushed) == ("partial", RECOVER, 1)
    assert "holds 1 memories" in report.warnings[0]
    assert len(remote.nodes) == 6


async def test_a_rebuild_sends_every_memory_again() -> None:
    """What the remote holds already changes nothing there."""
    local, remote = MemoryLocal(), MemoryRemote()
    for number in range(3):
        local.write(str(number), "c")
    await syncer(local, remote).sync()
    before = dict(remote.nodes)
    told: list[str] = []

    async def note(_done: int, _total: int | None, message: str) -> None:
        told.append(message)

    report = await syncer(local, remote).sync(Wanted(rebuild=True), on_progress=note)
    assert (report.result, report.rebuilt, report.pushed) == ("success", 3, 3)
    assert [said for said in told if "queued" in said] == [f"{number} memories queued" for number in (1, 2, 3)]
    assert remote.nodes.keys() == before.keys()


async def test_parked_changes_are_tried_again_if_it_is_asked_for() -> None:
    """Once the remote store takes them, nothing is left."""
    local = MemoryLocal()

    class Choosy(MemoryRemote):
        sick = True

        async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
            if self.sick and any(c.newest.properties.content == "poison" for c in batch.changes):
                raise Refused("it is poison")
            return await super().write(batch)

    remote = Choosy()
    local.write("bad", "poison")
    assert (await syncer(local, remote).sync()).parked == 1
    remote.sick = False
    untried = await syncer(local, remote).sync()
    assert (untried.result, untried.retried, len(remote.nodes)) == ("partial", 0, 0)
    report = await syncer(local, remote).sync(Wanted(retry_parked=True))
    assert (report.result, report.retried, report.pushed, report.parked) == ("success", 1, 1, 0)


@pytest.mark.parametrize(
    ("found", "result", "step"),
    [
        (CLEAN, "success", "Nothing to do"),
        (CLEAN.model_copy(update={"result": "drift", "counts": {"missing_there": 2}}), "partial", REPAIR),
        (CLEAN.model_copy(update={"result": "skipped"}), "partial", "Too much was on its way"),
    ],
)
async def test_a_comparison_that_is_asked_for_counts(found: VerifyReport, result: str, step: str) -> None:
    """A sync that finds the stores to differ is no success."""
    local, remote = MemoryLocal(), MemoryRemote()
    local.write("a", "1")
    report = await syncer(local, remote, check=found).sync(Wanted(verify=True))
    assert (report.result, report.pushed) == (result, 1)
    assert step in report.next_step
    assert report.check is not None
    assert (report.check.result, report.check.differences) == (found.result, sum(found.counts.values()))
    assert (await syncer(local, remote).sync()).check is None


@pytest.mark.promise("P9")
async def test_a_store_that_goes_away_during_a_comparison_is_said() -> None:
    """What was pushed counts, and it is no success."""
    local, remote = MemoryLocal(), MemoryRemote()
    local.write("a", "1")
    report = await syncer(local, remote, check=Unavailable("went away")).sync(Wanted(verify=True))
    assert (report.result, report.pushed, report.check, report.warnings) == ("queued", 1, None, ["went away."])
