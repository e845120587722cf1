"""The prober of outages, look by look."""

import logging
from dataclasses import dataclass, field

import anyio
import pytest

from dionysus_sync_mcp.domain.errors import AccessRefused, DionysusError, SchemaMismatch, Starting, Unavailable
from dionysus_sync_mcp.domain.outage import LOOK_EVERY_SECONDS, SELDOM_SECONDS
from dionysus_sync_mcp.engine.outages import Outages
from dionysus_sync_mcp.engine.ports.shared import Health
from dionysus_sync_mcp.engine.worker import Loop
from tests.engine.test_worker import Step, eventually

AWAY = Health("neo4j", error="connection refused", hint="Check it.")
REFUSING = Health("neo4j", error="wrong password", hint="Check it.", refused=True)
UP = Health("neo4j")


@dataclass
class Looked:
    """A service that answers as told."""

    health_: Health = UP
    looks: int = 0
    seen: anyio.Event = field(default_factory=anyio.Event)

    async def health(self, timeout: float) -> Health:
        """One look."""
        assert timeout > 0
        self.looks += 1
        self.seen.set()
        return self.health_


def prober(service: Looked, failing: DionysusError | None = None) -> Outages:
    """With one service; one loop fails."""
    outages = Outages([service])
    if failing:
        outages.failed("push", failing)
    return outages


async def watch(outages: Outages) -> None:
    """Look at its services, as the worker does."""
    async with anyio.create_task_group() as tasks:
        for step in outages.watches():
            tasks.start_soon(Loop("watch", step, outages).run)


async def looked(outages: Outages) -> float:
    """One look at its only service; the pause after it."""
    return await outages.look_once(outages._watches[0])


@pytest.mark.promise("P9")
async def test_an_outage_is_reported_since_when_why_and_when_is_the_next_look() -> None:
    """The reason is the newest, the time the first one's."""
    service = Looked(AWAY)
    outages = prober(service, Unavailable("away"))
    assert outages.report() == []
    assert await looked(outages) <= LOOK_EVERY_SECONDS
    (first,) = outages.report()
    service.health_ = Health("neo4j", error="no answer")
    await looked(outages)
    (second,) = outages.report()
    assert (first.service, first.error, second.error) == ("neo4j", "connection refused", "no answer")
    assert first.since == second.since
    assert second.next_try_at is not None
    assert second.next_try_at > second.since
    service.health_ = UP
    await looked(outages)
    assert outages.report() == []


@pytest.mark.promise("P9")
async def test_a_loop_with_a_long_wait_goes_on_when_the_service_is_back() -> None:
    """At once, and as if it had not failed before."""
    service = Looked(AWAY)
    outages = prober(service)
    step = Step(Unavailable("away"))
    loop = Loop("push", step, outages, attempts=40)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, outages)
        tasks.start_soon(loop.run)
        await eventually(lambda: outages.report() != [])
        service.health_ = UP
        await eventually(lambda: step.calls == 2)
        tasks.cancel_scope.cancel()
    assert (loop.attempts, loop.error, outages.returns) == (0, None, 1)


async def test_a_try_that_began_before_the_return_and_fails_after_it_is_not_followed_by_a_long_wait() -> None:
    """It found the service as it was."""
    service = Looked(AWAY)
    outages = prober(service, Unavailable("away"))
    await looked(outages)

    async def slow() -> float:
        service.health_ = UP
        await looked(outages)
        raise Unavailable("away")

    loop = Loop("push", slow, outages, attempts=40)
    assert await loop.run_once() <= 0.25


async def test_a_service_that_answers_all_along_wakes_nobody() -> None:
    """The waits of work that it cannot do grow."""
    outages = prober(Looked(UP), Unavailable("it refuses every write"))
    for _ in range(3):
        await looked(outages)
    assert outages.returns == 0
    assert not await outages.wait(0.01)


@pytest.mark.parametrize("failure", [SchemaMismatch("not installed"), Starting("being fetched"), None])
async def test_while_no_service_is_away_nothing_is_looked_at(failure: DionysusError | None) -> None:
    """And as soon as one may be, it is."""
    service = Looked(UP)
    outages = prober(service, failure)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, outages)
        await anyio.wait_all_tasks_blocked()
        assert service.looks == 0
        outages.failed("embed", Unavailable("away"))
        with anyio.fail_after(5):
            await service.seen.wait()
        tasks.cancel_scope.cancel()


async def test_looking_ends_when_nothing_fails_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks that follow each other without a pause stop."""
    monkeypatch.setattr("dionysus_sync_mcp.engine.outages.pause_after", lambda *_, **__: 0.0)
    service = Looked(UP)
    outages = prober(service, Unavailable("away"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, outages)
        await eventually(lambda: service.looks >= 2)
        outages.worked("push")
        with anyio.fail_after(5):
            await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()


async def test_a_wrong_password_is_said_loudly_once_and_tried_seldom(caplog: pytest.LogCaptureFixture) -> None:
    """However many loops it stops; when it is mended, they go on."""
    service = Looked(REFUSING)
    outages = prober(service)
    loops = [Loop(name, Step(*[AccessRefused("wrong password")] * 3), outages) for name in ("push", "embed")]
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            for loop in loops:
                await loop.run_once()
            assert await looked(outages) >= SELDOM_SECONDS
    loud = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert loud == ["push: wrong password.", "neo4j refuses this program: wrong password. Check it."]
    service.health_ = UP
    await looked(outages)
    assert outages.returns == 1


async def test_a_new_outage_does_not_wait_for_the_next_look_that_a_person_is_waited_with() -> None:
    """While one service waits for a person, another one goes away: it is looked at at once."""
    service = Looked(UP)
    outages = prober(service, AccessRefused("wrong password"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, outages)
        await eventually(lambda: service.looks == 1)
        await anyio.wait_all_tasks_blocked()
        service.health_ = AWAY
        outages.failed("embed", Unavailable("away"))
        await eventually(lambda: outages.report() != [])
        tasks.cancel_scope.cancel()


@pytest.mark.promise("P10")
async def test_a_service_that_answers_is_looked_at_again_only_when_something_newly_fails() -> None:
    """Each look is a connection made for it; that the same goes on failing is no reason."""
    service = Looked(UP)
    outages = prober(service)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, outages)
        outages.failed("push", Unavailable("away"))
        await eventually(lambda: service.looks == 1)
        outages.failed("embed", Unavailable("away"))
        await eventually(lambda: service.looks == 2)
        unheard = outages._alarm
        outages.failed("push", Unavailable("away"))
        outages.failed("guard", SchemaMismatch("not installed"))
        assert not unheard.is_set()
        outages.failed("push", Unavailable("away for another reason"))
        assert unheard.is_set()
        tasks.cancel_scope.cancel()


async def test_what_fails_during_a_look_calls_for_another_one() -> None:
    """The look may have found the service as it was before."""
    service = Looked(UP)
    outages = prober(service, Unavailable("away"))

    async def slow(timeout: float) -> Health:
        assert timeout > 0
        service.looks += 1
        if service.looks == 1:
            outages.failed("embed", Unavailable("away too"))
        return UP

    service.health = slow  # type: ignore[method-assign]  # a service that is slower
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, outages)
        await eventually(lambda: service.looks == 2)
        tasks.cancel_scope.cancel()


async def test_reasons_that_change_without_end_do_not_pile_up() -> None:
    """What was said is remembered, within bounds (P10)."""
    outages = prober(Looked(AWAY))
    assert all(outages.failed("push", Unavailable(f"reason {number}")) for number in range(500))
    assert len(outages._said) <= 100
