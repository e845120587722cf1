"""Alerts: people are told once of what needs them, whether or not anybody listens just then."""

import json
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any

from dionysus_sync_mcp.domain.backoff import next_delay
from dionysus_sync_mcp.domain.errors import DionysusError, SchemaMismatch
from dionysus_sync_mcp.domain.lineage import Lineage, Standing
from dionysus_sync_mcp.engine.ports.alerts import AlertBook, AlertSink, DueAlert, NewAlert
from dionysus_sync_mcp.engine.ports.status import LocalState, LocalStatus

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
WATCH_SECONDS = 10.0
# How long nobody else posts an alert that was taken: well over the deadline of a post.
LEASE_SECONDS = 30.0
LONGEST_DELAY_SECONDS = 300.0
FIRST_DELAY_SECONDS = 1.0


class Alerter:
    """The use-case alerts.

    Args:
        sink: `None` where nobody is to be told: alerts are then only on record.
        project: Named in what is sent, where it is known.
    """

    def __init__(self, book: AlertBook, sink: AlertSink | None, project: str | None = None) -> None:
        self._book = book
        self._sink = sink
        self._project = project
        self._failing: str | None = None

    async def raise_alerts(self, alerts: list[NewAlert]) -> int:
        """Put on record what is new; how many were."""
        new = 0
        for alert in alerts:
            if await self._book.raise_alert(alert):
                logger.warning("alert: %s", alert.summary)
                new += 1
        return new

    async def deliver_once(self) -> float:
        """Send one alert that is due; the seconds to wait before the next look.

        An alert that was not taken is tried again later, under the same id: a receiver that has seen the id has seen
        the alert. Others are not held back by it.
        """
        alert = await self._due()
        if alert is None or self._sink is None:
            return LOOK_SECONDS
        try:
            await self._sink.post(alert.id, body_of(alert, self._project))
        except DionysusError as error:
            await self._postpone(alert, error)
            return LOOK_SECONDS
        await self._book.note_delivered(alert.id)
        self._failing = None
        return 0.0

    async def _due(self) -> DueAlert | None:
        try:
            return await self._book.take_due(LEASE_SECONDS) if self._sink else None
        except SchemaMismatch:  # a database that is not adopted yet has no alerts
            return None

    async def _postpone(self, alert: DueAlert, error: DionysusError) -> None:
        fraction = random.random()  # noqa: S311 - jitter, not a secret
        delay = next_delay(alert.attempts, fraction, base=FIRST_DELAY_SECONDS, cap=LONGEST_DELAY_SECONDS)
        await self._book.postpone(alert.id, delay, error.what)
        if error.what != self._failing:
            logger.warning("an alert could not be delivered and is sent again later: %s", error.what)
        self._failing = error.what


class AlertWatch:
    """Raises the alerts of what can be seen from here.

    Args:
        standing: Where the local store stands beside what the remote remembers of it, `None` if that is unknown.
    """

    def __init__(
        self, alerter: Alerter, local: LocalStatus, standing: Callable[[], Awaitable[Standing | None]]
    ) -> None:
        self._alerter = alerter
        self._local = local
        self._standing = standing

    async def watch_once(self) -> float:
        """One look; the seconds to wait after it. A remote store that is away keeps no other alert from being raised.

        Raises:
            Unavailable: A store is away, so that its return is waited for as in every other loop.
        """
        state = await self._local.state()
        if state.initialised:
            await self._alerter.raise_alerts(decide_alerts(state, None))
            standing = await self._standing()
            # As it is after that was judged: the database may go back between the looks, and one event has one key.
            await self._alerter.raise_alerts(decide_alerts(await self._local.state(), standing))
        return WATCH_SECONDS


def decide_alerts(state: LocalState, standing: Standing | None) -> list[NewAlert]:
    """What people should be told of; the same event has the same key each time."""
    found: list[NewAlert] = []
    if standing == "behind_here" and state.identity is not None:
        here = Lineage(state.identity.epoch, state.identity.generation, state.identity.lineage)
        found.append(_rolled_back(here))
    if state.failed and state.last_failed_at is not None:
        found.append(_failed_for_good(state, state.last_failed_at.isoformat()))
    return found


def body_of(alert: DueAlert, project: str | None) -> bytes:
    """What is sent: a JSON object in UTF-8."""
    fields: dict[str, Any] = {
        "id": alert.id,
        "kind": alert.kind,
        "summary": alert.summary,
        "details": alert.details,
        "raised_at": alert.raised_at.isoformat(),
        "store_id": alert.store_id,
    }
    if project is not None:
        fields["project"] = project
    return json.dumps(fields, ensure_ascii=False, sort_keys=True).encode("utf-8", "replace")


def _rolled_back(here: Lineage) -> NewAlert:
    return NewAlert(
        key=f"rolled_back:{here.lineage}",
        kind="rolled_back",
        summary="The local store is older than what it has pushed: nothing is pushed until a person decides.",
        details={"generation": here.generation},
    )


def _failed_for_good(state: LocalState, since: str) -> NewAlert:
    return NewAlert(
        key=f"failed_for_good:{since}",
        kind="failed_for_good",
        summary=f"{state.failed} changes failed for good: the remote store refused them ten times.",
        details={"failed": state.failed, "last_error": state.last_parked_error},
    )
