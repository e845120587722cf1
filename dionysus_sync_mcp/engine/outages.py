"""Outages: one prober for all loops. A trivial look pays for an outage, so that the work itself may wait longer."""

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Literal

import anyio

from dionysus_sync_mcp.domain.errors import AccessRefused, Starting, Unavailable
from dionysus_sync_mcp.domain.outage import Outage, after_look, pause_after
from dionysus_sync_mcp.engine.ports.shared import Health, Service
from dionysus_sync_mcp.engine.reports import OutageReport

logger = logging.getLogger(__name__)

LOOK_SECONDS = 3.0
# Between two looks at a service, however much fails.
SHORTEST_SECONDS = 0.5
# Messages that are not repeated; more different ones than this are not one outage.
MOST_SAID = 100

Trouble = Literal["away", "refused", "other"]


@dataclass(slots=True)
class _Watch:
    """One service."""

    service: Service
    name: Literal["postgresql", "neo4j", "ollama"] | None = None
    outage: Outage | None = None
    next_look_at: datetime | None = None


class Outages:
    """Which loops fail, which services are away, and waking the ones when the others return.

    While nothing fails, nothing is looked at. A service that answers is looked at when something newly fails, and
    seldom after that; it wakes nobody: then it is the work that cannot be done, and its waits grow.
    """

    def __init__(self, services: Sequence[Service]) -> None:
        self._watches = [_Watch(service) for service in services]
        self._failing: dict[str, Trouble] = {}
        self._said: set[str] = set()
        self._alarm = anyio.Event()
        self._return = anyio.Event()
        self.returns = 0

    def report(self) -> list[OutageReport]:
        """The services that are away."""
        return [
            OutageReport(service=w.name, since=w.outage.since, error=w.outage.error, next_try_at=w.next_look_at)
            for w in self._watches
            if w.outage and w.name
        ]

    def failed(self, loop: str, error: Exception) -> bool:
        """Note that a loop fails; whether the reason has not been said yet in this outage."""
        message = str(error)
        news = message not in self._said
        trouble, before = _trouble(error), self._failing.get(loop)
        self._failing[loop] = trouble
        if trouble != "other" and (trouble != before or news):
            self._sound()
        if len(self._said) >= MOST_SAID:
            self._said.clear()
        self._said.add(message)
        return news

    def worked(self, loop: str) -> None:
        """Note that a loop does not fail."""
        self._failing.pop(loop, None)
        if not self._failing:
            self._said.clear()

    async def wait(self, seconds: float) -> bool:
        """Wait so long, or until a service returns; whether one did."""
        before, returned = self.returns, self._return
        with anyio.move_on_after(seconds):
            await returned.wait()
        return self.returns != before

    def watches(self) -> list[Callable[[], Awaitable[float]]]:
        """Of each service, the step of a loop: wait until anything fails, look, and rest until the next look."""
        return [partial(self._watch_once, watch) for watch in self._watches]

    async def look_once(self, watch: _Watch) -> float:
        """One look; the seconds until the next one."""
        health = await watch.service.health(LOOK_SECONDS)
        now = datetime.now(UTC)
        finding = after_look(watch.outage, health.error, refused=health.refused, now=now)
        watch.name, watch.outage = health.service, finding.outage
        if finding.began:
            logger.log(logging.ERROR if health.refused else logging.WARNING, "%s", _announcement(health))
        if finding.returned:
            logger.info("%s is back", health.service)
            self.returns += 1
            self._return.set()
            self._return = anyio.Event()
        urgent = self._most_urgent() == "away"
        pause = pause_after(finding.outage, urgent=urgent, fraction=random.random())  # noqa: S311 - jitter, not a secret
        watch.next_look_at = now + timedelta(seconds=pause)
        return pause

    async def _watch_once(self, watch: _Watch) -> float:
        while self._most_urgent() == "other" and not watch.outage:
            await self._alarm.wait()
        alarm = self._alarm
        await self._rest(watch, await self.look_once(watch), alarm)
        return 0.0

    async def _rest(self, watch: _Watch, seconds: float, alarm: anyio.Event) -> None:
        """Not cut short where a person has to act: every look is one more wrong password."""
        with anyio.move_on_after(seconds):
            if watch.outage and watch.outage.refused:
                await anyio.sleep_forever()
            await anyio.sleep(SHORTEST_SECONDS)
            await alarm.wait()

    def _most_urgent(self) -> Trouble:
        troubles = set(self._failing.values())
        return "away" if "away" in troubles else "refused" if "refused" in troubles else "other"

    def _sound(self) -> None:
        self._alarm.set()
        self._alarm = anyio.Event()


def _trouble(error: Exception) -> Trouble:
    if isinstance(error, Unavailable) and not isinstance(error, Starting):
        return "away"
    return "refused" if isinstance(error, AccessRefused) else "other"


def _announcement(health: Health) -> str:
    what = "refuses this program" if health.refused else "is away"
    return f"{health.service} {what}: {health.error}. {health.hint}".rstrip()
