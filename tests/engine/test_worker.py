"""The background loops, one step at a time."""

import asyncio
import logging
from collections.abc import Callable, Sequence

import anyio
import pytest

from dionysus_sync_mcp.domain.errors import (
    AccessRefused,
    DionysusError,
    LineageMoved,
    NotAdoptable,
    RemoteDamaged,
    SchemaMismatch,
    Starting,
    StoreRolledBack,
    Unavailable,
)
from dionysus_sync_mcp.engine.guard import Guard
from dionysus_sync_mcp.engine.ports.shared import Health, Service
from dionysus_sync_mcp.engine.push import Pusher
from dionysus_sync_mcp.engine.refill import Refiller
from dionysus_sync_mcp.engine.worker import PREPARING_SECONDS, Job, Loop, Worker
from tests.engine.memory_local import MemoryLocal
from tests.engine.memory_remote import MemoryRemote
from tests.engine.test_embed import Model
from tests.services.waiting import until

POLL = 0.01


def worker(local: MemoryLocal, remote: MemoryRemote, *jobs: Job, services: Sequence[Service] = ()) -> Worker:
    """On these stores."""
    guard = Guard(local, remote, remote, may_initialise=False)
    refill = Refiller(local, remote, local, guard).refill_once
    pusher = Pusher(local, remote, remote)
    return Worker(
        pusher,
        local,
        guard,
        remote,
        Model(),
        poll=POLL,
        save_session=None,
        refill=refill,
        services=services,
        jobs=jobs,
    )


class Step:
    """Fails as told, then works."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.calls = 0

    async def __call__(self) -> float:
        """One step."""
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return 7.0


async def eventually(condition: Callable[[], bool]) -> None:
    """Let the loops run until something is so."""

    async def asked() -> bool:
        return condition()

    await until(asked, what="it becomes so", seconds=5)


@pytest.mark.promise("P9")
@pytest.mark.parametrize("failure", [Unavailable("away"), NotAdoptable("a view"), RuntimeError("a bug"), KeyError("k")])
async def test_nothing_that_goes_wrong_ends_a_loop(failure: Exception) -> None:
    """It is kept for the status until a step works again."""
    loop = Loop("test", Step(failure))
    assert 0 <= await loop.run_once() <= 0.25
    assert (loop.attempts, loop.error, loop.failing_since is not None) == (1, str(failure), True)
    assert await loop.run_once() == 7.0
    assert (loop.attempts, loop.error, loop.failing_since, loop.next_try_at) == (0, None, None, None)


@pytest.mark.promise("P9")
async def test_a_cancellation_that_nobody_asked_for_does_not_end_a_loop() -> None:
    """One that somebody asked for does."""
    leaked = Step()
    leaked.failures.append(asyncio.CancelledError())  # type: ignore[arg-type]  # what a driver may let out
    loop = Loop("test", leaked)
    await loop.run_once()
    assert loop.error == "a cancellation that is over: "
    with anyio.move_on_after(0.01) as scope:
        await Loop("test", anyio.sleep_forever).run_once()  # type: ignore[arg-type]  # it never returns
    assert scope.cancelled_caught


@pytest.mark.promise("P10")
async def test_a_loop_ends_when_its_task_is_cancelled_without_a_scope() -> None:
    """As the standard library does it, when the program is interrupted."""
    begun = anyio.Event()

    async def step() -> float:
        begun.set()
        await anyio.sleep_forever()
        return 0.0

    task = asyncio.ensure_future(Loop("test", step).run())
    with anyio.fail_after(5):
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize(
    ("failure", "longest_first"), [(Unavailable("away"), 0.25), (AccessRefused("wrong password"), 8.0)]
)
async def test_waits_grow(failure: DionysusError, longest_first: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is probed soon; a wrong password is not tried in a tight loop."""
    monkeypatch.setattr("random.random", lambda: 0.999)
    loop = Loop("test", Step(*[failure] * 20))
    waits = [await loop.run_once() for _ in range(20)]
    assert waits[0] == pytest.approx(longest_first, rel=0.01)
    assert waits == sorted(waits)
    assert max(waits) < 60


@pytest.mark.parametrize("failure", [SchemaMismatch("not installed"), Starting("being fetched")])
async def test_what_is_being_made_ready_is_looked_at_again_soon(failure: DionysusError) -> None:
    """Waiting longer would spare nothing."""
    loop = Loop("test", Step(*[failure] * 3))
    assert [await loop.run_once() for _ in range(3)] == [PREPARING_SECONDS] * 3


async def test_the_same_failure_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """And that it is over."""
    loop = Loop("push", Step(Unavailable("away"), Unavailable("away"), Unavailable("still away")))
    with caplog.at_level(logging.INFO):
        for _ in range(4):
            await loop.run_once()
    assert [r.getMessage() for r in caplog.records] == ["push: away.", "push: still away.", "push works again"]


@pytest.mark.promise("P1")
async def test_what_is_written_is_pushed_and_embedded() -> None:
    """By itself, while the loops run."""
    local, remote = MemoryLocal(), MemoryRemote()
    background = worker(local, remote)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(background.run)
        local.write("a", "1")
        await eventually(lambda: "a" in remote.nodes and not remote.nodes["a"].unembedded and not local.entries)
        assert background.report().state in ("idle", "pushing")
        tasks.cancel_scope.cancel()
    assert remote.noted == {"store": local.shape}


@pytest.mark.promise("P8")
async def test_an_outage_is_audited_once_however_long_it_lasts() -> None:
    """The next one again."""
    local, remote = MemoryLocal(), MemoryRemote()
    background = worker(local, remote)
    for number in range(2):
        local.write(f"memory {number}", "c")
        remote.failure = Unavailable("away")
        for _ in range(3):
            await background._push_loop.run_once()
        assert (background.report().state, background.report().error) == ("waiting", "away.")
        assert local.table[f"memory {number}"].status == "queued"
        remote.failure = None
        await background._push_loop.run_once()
        assert background.report().error is None
    assert [e.result for e in local.events] == ["queued", "success", "queued", "success"]


@pytest.mark.promise("P8")
@pytest.mark.parametrize(
    ("error", "audited"),
    [
        (StoreRolledBack("older than what it has pushed"), [("failed", 0)]),
        (RemoteDamaged("two nodes of one memory"), [("failed", 0)]),
        (LineageMoved(), []),
    ],
)
async def test_what_a_person_has_to_decide_is_audited_once_and_no_race_of_two_processes(
    error: DionysusError, audited: list[tuple[str, int]]
) -> None:
    """It is no outage of the remote store, nor a push of any rows."""
    local, remote = MemoryLocal(), MemoryRemote()
    background = worker(local, remote)
    local.write("a", "c")
    remote.failure = error
    for _ in range(3):
        await background._push_loop.run_once()
        assert background.report().error == str(error)
    assert [(e.result, e.record_count) for e in local.events] == audited


@pytest.mark.promise("P9")
async def test_with_the_local_store_away_nobody_is_told_and_nothing_ends() -> None:
    """When it is back, the queue is pushed."""
    local, remote = MemoryLocal(), MemoryRemote()
    local.write("a", "1")
    local.failure = Unavailable("the local store is away")
    background = worker(local, remote)
    await background._push_loop.run_once()
    assert (background.report().state, local.events) == ("waiting", [])
    local.failure = None
    assert await background._push_loop.run_once() == 0.0
    assert "a" in remote.nodes


async def test_an_empty_queue_is_polled() -> None:
    """After the pause that the settings say."""
    assert await worker(MemoryLocal(), MemoryRemote())._push_loop.run_once() == POLL


async def test_the_session_is_saved_until_it_succeeds() -> None:
    """In a loop of its own."""
    saved = Step(Unavailable("away"))

    async def save() -> None:
        await saved()

    local, remote = MemoryLocal(), MemoryRemote()
    guard = Guard(local, remote, remote, may_initialise=False)
    refill = Refiller(local, remote, local, guard).refill_once
    pusher = Pusher(local, remote, remote)
    background = Worker(pusher, local, guard, remote, Model(), poll=POLL, save_session=save, refill=refill)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(background.run)
        await eventually(lambda: saved.calls == 2)
        tasks.cancel_scope.cancel()
    assert saved.failures == []


class Broken:
    """A service of which a look raises what nobody foresaw, the first time."""

    looks = 0

    async def health(self, timeout: float) -> Health:
        """One look."""
        assert timeout > 0
        self.looks += 1
        if self.looks == 1:
            raise ValueError("a frame that cannot be read")
        return Health("neo4j")


@pytest.mark.promise("P9")
async def test_a_look_that_fails_in_a_way_that_has_no_name_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is made again, and what is written meanwhile is pushed."""
    local, remote, service = MemoryLocal(), MemoryRemote(), Broken()
    job = Step(*[Unavailable("away")] * 1000)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker(local, remote, Job("verify", job), services=[service]).run)
        await eventually(lambda: service.looks >= 1)
        local.write("a", "1")
        await eventually(lambda: service.looks >= 2 and "a" in remote.nodes)
        tasks.cancel_scope.cancel()
    assert "watch 0 failed in a way that has no name" in caplog.messages


async def test_a_job_is_repeated_beside_the_other_loops() -> None:
    """One that fails is tried again, and the queue is pushed meanwhile."""
    job = Step(Unavailable("away"))
    local, remote = MemoryLocal(), MemoryRemote()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker(local, remote, Job("verify", job)).run)
        local.write("a", "1")
        await eventually(lambda: job.calls == 2 and "a" in remote.nodes)
        tasks.cancel_scope.cancel()
    assert job.failures == []
