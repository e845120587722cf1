"""The background loops. They only repeat the bounded steps of the other use-cases, and decide how long to wait."""

import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import anyio

from dionysus_sync_mcp.domain.backoff import next_delay
from dionysus_sync_mcp.domain.errors import (
    AccessRefused,
    DionysusError,
    LineageMoved,
    RemoteDamaged,
    SchemaMismatch,
    Starting,
    StoreRolledBack,
    TimedOut,
    Unavailable,
)
from dionysus_sync_mcp.engine.embed import embed_once
from dionysus_sync_mcp.engine.guard import Guard
from dionysus_sync_mcp.engine.outages import Outages
from dionysus_sync_mcp.engine.ports.embed import Embedder, VectorStore
from dionysus_sync_mcp.engine.ports.push import Outbox
from dionysus_sync_mcp.engine.ports.shared import Service
from dionysus_sync_mcp.engine.push import SHRINKING_TRIES, Pusher
from dionysus_sync_mcp.engine.reports import WorkerReport

logger = logging.getLogger(__name__)

# What only looking shows is seen within 5 s; what is missing is put back as soon.
GUARD_SECONDS = 2.0
NOTE_SECONDS = 5.0
EMBED_SECONDS = 1.0
SESSION_SECONDS = 60.0
# Something else is making ready what a step needs; there is nothing to spare by waiting longer.
PREPARING_SECONDS = 0.5
# A person has to act on a refused access: the first wait is as long as after this many failures.
SLOW_START = 5
A_PERSON_ACTS = (AccessRefused, StoreRolledBack, RemoteDamaged)

Step = Callable[[], Awaitable[float]]


@dataclass(frozen=True, slots=True)
class Job:
    """A further loop: `step` does one bounded thing and returns the seconds to wait after it."""

    name: str
    step: Step


@dataclass(slots=True)
class Loop:
    """One step, repeated; after a failure it waits longer each time, with full jitter, or until a service returns."""

    name: str
    step: Step
    outages: Outages = field(default_factory=lambda: Outages(()))
    attempts: int = 0
    failing_since: datetime | None = None
    error: str | None = None
    next_try_at: datetime | None = None

    async def run(self) -> None:
        """Repeat until cancelled."""
        while True:
            delay = await self.run_once()
            if not self.failing_since:
                await anyio.sleep(delay)
            elif await self.outages.wait(delay):
                self.attempts = 0

    async def run_once(self) -> float:
        """One step; the seconds to wait after it.

        In a task of its own: a cancellation that is meant for the loop comes to the loop, whoever asked for it and how;
        one that the step lets out ends the step only.
        """
        delays: list[float] = []

        async def note_delay() -> None:
            delays.append(await self._try())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(note_delay)
        return delays[0]

    async def _try(self) -> float:
        """The top frame: nothing that goes wrong ends the loop."""
        returns = self.outages.returns
        try:
            delay = await self.step()
        except DionysusError as error:
            if self.outages.returns != returns:
                self.attempts = 0
            return self._failed(error, datetime.now(UTC))
        except anyio.get_cancelled_exc_class() as error:
            if anyio.current_effective_deadline() == -math.inf:
                raise
            # Of a task inside the step, let out by mistake: it would end all loops without a word.
            logger.exception("%s was cancelled by nobody", self.name)
            return self._failed(RuntimeError(f"a cancellation that is over: {error}"), datetime.now(UTC))
        except Exception as error:
            logger.exception("%s failed in a way that has no name", self.name)
            return self._failed(error, datetime.now(UTC))
        self._succeeded()
        return delay

    def _succeeded(self) -> None:
        if self.failing_since:
            logger.info("%s works again", self.name)
            self.outages.worked(self.name)
        self.attempts, self.failing_since, self.error, self.next_try_at = 0, None, None, None

    def _failed(self, error: Exception, now: datetime) -> float:
        if self.outages.failed(self.name, error):
            logger.log(self._level(error), "%s: %s", self.name, error)
        delay = self._delay_after(error)
        self.attempts += 1
        self.failing_since = self.failing_since or now
        self.error = str(error)
        self.next_try_at = now + timedelta(seconds=delay)
        return delay

    def _level(self, error: Exception) -> int:
        """What is only being made ready, by the guard or by the embedded services, is no reason to worry anybody."""
        expected = isinstance(error, Starting) or (isinstance(error, SchemaMismatch) and not self.attempts)
        if isinstance(error, AccessRefused):
            return logging.ERROR
        return logging.INFO if expected else logging.WARNING

    def _delay_after(self, error: Exception) -> float:
        if isinstance(error, (SchemaMismatch, Starting)):
            return PREPARING_SECONDS
        slow = SLOW_START if isinstance(error, A_PERSON_ACTS) else 0
        return next_delay(self.attempts + slow, random.random())  # noqa: S311 - jitter, not a secret


class Worker:
    """The loops of one process: push, embed, guard, and saving the session.

    Args:
        poll: Seconds between two looks at an empty queue.
        save_session: Saves the session's row; called again until it succeeds, then once a minute.
        refill: Queues again what the remote store has lost; how many memories were.
        services: Looked at while something fails, so that it goes on as soon as they are back.
        jobs: Further loops, each run beside the others and with their treatment of failures.
    """

    def __init__(
        self,
        pusher: Pusher,
        outbox: Outbox,
        guard: Guard,
        vectors: VectorStore,
        embedder: Embedder,
        *,
        poll: float,
        save_session: Callable[[], Awaitable[None]] | None,
        refill: Callable[[], Awaitable[int]],
        services: Sequence[Service] = (),
        jobs: Sequence[Job] = (),
    ) -> None:
        self._pusher = pusher
        self._outbox = outbox
        self._guard = guard
        self._vectors = vectors
        self._embedder = embedder
        self._poll = poll
        self._save_session = save_session
        self._refill = refill
        self._jobs = jobs
        self._outages = Outages(services)
        self._outage_noted = False
        self._pushing = False
        self._push_loop = self._loop("push", self._push)

    def report(self) -> WorkerReport:
        """How it is doing, for the status."""
        loop = self._push_loop
        state = "waiting" if loop.failing_since else "pushing" if self._pushing else "idle"
        return WorkerReport(
            state=state,
            failing_since=loop.failing_since,
            error=loop.error,
            next_try_at=loop.next_try_at,
            outages=self._outages.report(),
        )

    async def run(self) -> None:
        """All loops, until cancelled."""
        async with anyio.create_task_group() as tasks:
            for number, step in enumerate(self._outages.watches()):
                tasks.start_soon(self._loop(f"watch {number}", step).run)
            tasks.start_soon(self._loop("guard", self._watch).run)
            tasks.start_soon(self._push_loop.run)
            tasks.start_soon(self._loop("definition", self._note_definition).run)
            tasks.start_soon(self._loop("refill", self._refill_remote).run)
            tasks.start_soon(self._loop("embed", self._embed).run)
            if self._save_session:
                tasks.start_soon(self._loop("session", self._keep_session).run)
            for job in self._jobs:
                tasks.start_soon(self._loop(job.name, job.step).run)

    def _loop(self, name: str, step: Step) -> Loop:
        return Loop(name, step, self._outages)

    async def _push(self) -> float:
        if not await self._outbox.anything_queued():
            return self._poll
        self._pushing = True
        try:
            result = await self._pusher.push_once()
        except (Unavailable, *A_PERSON_ACTS) as error:
            await self._note_outage(error)
            raise
        finally:
            self._pushing = False
        if result.pushed or result.parked:
            self._outage_noted = False
        return self._poll if result.busy or not result.pushed else 0.0

    async def _note_outage(self, error: DionysusError) -> None:
        """Once for each outage; where the local store is the one that is away, there is nobody to tell.

        That another process has pushed meanwhile is no outage.
        """
        shrinking = isinstance(error, TimedOut) and self._push_loop.attempts < SHRINKING_TRIES
        if self._outage_noted or shrinking or isinstance(error, LineageMoved):
            return
        try:
            await self._pusher.note_outage(error)
        except DionysusError:
            return
        self._outage_noted = True

    async def _embed(self) -> float:
        result = await embed_once(self._vectors, self._embedder)
        return 0.0 if result.embedded or result.refused else EMBED_SECONDS

    async def _watch(self) -> float:
        result = await self._guard.guard_once()
        if result.installed:
            logger.info("capture installed, %d rows queued that were there before", result.backfilled)
        return GUARD_SECONDS

    async def _note_definition(self) -> float:
        await self._guard.note_definition_once()
        return NOTE_SECONDS

    async def _refill_remote(self) -> float:
        if queued := await self._refill():
            logger.warning("the remote store had lost %d memories, which are queued again", queued)
        return NOTE_SECONDS

    async def _keep_session(self) -> float:
        if self._save_session:
            await self._save_session()
        return SESSION_SECONDS
