"""Whoever is to be told of alerts is away, slow, hangs or fails: nothing waits for it, and it is told in the end."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.abc import SocketStream
from pydantic import SecretStr

from dionysus_sync_mcp.adapters.webhook import signature
from dionysus_sync_mcp.engine import alerts
from dionysus_sync_mcp.engine.ports.alerts import NewAlert
from dionysus_sync_mcp.runtime import Runtime, open_runtime
from dionysus_sync_mcp.settings import Settings
from tests.faults.oracle import Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Stores
from tests.faults.proxy import open_proxy
from tests.integration.stores import Client, plain_client, uid
from tests.services.local_store import NOBODY
from tests.services.receiver import OK, Answer, Receiver, hanging, receiver, saying, with_status
from tests.services.waiting import until

ROWS = 20
SOON = 60.0
# Less than the program's deadline for a post: a receiver that is slow and no more.
SLOW_SECONDS = 2.0
TOKEN = "correct-horse-battery"  # noqa: S105 - the test's own key
ALERTS = [NewAlert(f"drift:{n}", "drift", f"The stores differ, {n}.", {"memories": n}) for n in range(1, 4)]
UNDELIVERED = "SELECT count(*) FROM dionysus_sync.alerts WHERE delivered_at IS NULL"
ATTEMPTS = "SELECT coalesce(sum(attempts), 0) FROM dionysus_sync.alerts"
DELIVERED = "SELECT id::text FROM dionysus_sync.alerts WHERE delivered_at IS NOT NULL ORDER BY id"


async def slow(stream: SocketStream) -> None:
    """Takes it after a while."""
    await anyio.sleep(SLOW_SECONDS)
    await stream.send(OK)


async def silent(_stream: SocketStream) -> None:
    """Has it, and closes the connection without a word."""


FAULTS: dict[str, Answer] = {
    "answers 500": with_status("500 Internal Server Error"),
    "hangs": hanging,
    "is slow": slow,
    "takes it, but its answer is lost": silent,
    "talks nonsense": saying(b"\x00\xff nonsense\r\n\r\n"),
}


@pytest.fixture
async def sink() -> AsyncIterator[Receiver]:
    """A receiver on this machine."""
    async with receiver() as made:
        yield made


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again sooner than it is for users."""
    monkeypatch.setattr(alerts, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(alerts, "LONGEST_DELAY_SECONDS", 1.0)


@asynccontextmanager
async def telling(stores: Stores, url: str) -> AsyncIterator[Runtime]:
    """The whole program with its background loops, and a webhook."""
    settings = Settings(
        database_url=SecretStr(stores.database_url),
        neo4j_uri=stores.neo4j_uri,
        ollama_url=NOBODY,
        dionysus_poll_ms=20,
        dionysus_alert_webhook_url=SecretStr(url),
        memory_webhook_token=SecretStr(TOKEN),
    )
    async with open_runtime(settings, worker=True, start_session=False) as runtime:
        yield runtime


def is_zero(client: Client, count: str, *, wanted: bool = True) -> Callable[[], Awaitable[bool]]:
    """Whether a count is zero, or is not."""

    async def ask() -> bool:
        return (await client.fetchval(count) == 0) is wanted

    return ask


async def write_meanwhile(oracle: Oracle) -> float:
    """Memories, which must all arrive while nobody takes an alert; the seconds until they have."""
    for number in range(1, ROWS + 1):
        await oracle.insert(uid(number), f"meanwhile {number}")
    begun = time.monotonic()
    compared, _ = await oracle.until_whole(SOON)
    assert compared.whole, compared
    return time.monotonic() - begun


async def delivered_once(sink: Receiver, client: Client, oracle: Oracle) -> None:
    """Each alert is taken once after all, signed, under its id; whatever was sent before bore the same id."""
    await until(is_zero(client, UNDELIVERED), what="all alerts are delivered", seconds=SOON)
    count, ids = len(sink.requests), [r[0] for r in await client.fetch(DELIVERED)]
    await oracle.insert(uid(100), "after")
    compared, _ = await oracle.until_whole(SOON)
    assert compared.whole, compared
    assert len(sink.requests) == count, "an alert that was delivered is not sent again"
    assert len(ids) == len(ALERTS)
    assert sorted({got.headers["x-delivery-id"] for got in sink.requests}) == ids
    for got in sink.requests:
        assert got.headers["x-signature"] == signature(got.body, TOKEN)
        assert got.fields["id"] == got.headers["x-delivery-id"]
    bodies = {(got.headers["x-delivery-id"], got.body) for got in sink.requests}
    assert len(bodies) == len(ids), "what is sent again is the same"


@pytest.mark.scenario(44, "whoever is to be told of alerts is slow, hangs, fails, or its answer is lost")
@pytest.mark.promise("P5")
@pytest.mark.promise("P9")
@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("fault", FAULTS)
async def test_44_a_sick_receiver(
    stores: Stores, oracle: Oracle, scenario: Scenario, sink: Receiver, fault: str
) -> None:
    """Memories are captured and pushed meanwhile; once it is well, each alert is delivered once."""
    sink.answer = FAULTS[fault]
    async with telling(stores, sink.url) as program, plain_client(stores.database_url) as client:
        assert await program.alerter.raise_alerts(ALERTS) == len(ALERTS)

        async def asked() -> bool:
            return bool(sink.requests)

        await until(asked, what="it is told", seconds=SOON)
        seconds = await write_meanwhile(oracle)
        if fault != "is slow":
            await until(is_zero(client, ATTEMPTS, wanted=False), what="a post has failed", seconds=SOON)
            assert await client.fetchval(UNDELIVERED) == len(ALERTS)
            sink.answer = saying(OK)
        await delivered_once(sink, client, oracle)
        assert len(sink.requests) > len(ALERTS) or fault == "is slow"
        compared = await oracle.compare()
    scenario.note(engaged=bool(sink.requests), compared=compared, seconds=seconds)


@pytest.mark.scenario(44, "whoever is to be told of alerts cannot be reached, across a restart of the program")
@pytest.mark.promise("P5")
@pytest.mark.promise("P9")
@pytest.mark.usefixtures("soon")
async def test_44_a_receiver_that_is_down(stores: Stores, oracle: Oracle, scenario: Scenario, sink: Receiver) -> None:
    """What could not be delivered is on record: the next program delivers it."""
    async with open_proxy(sink.url) as proxy, plain_client(stores.database_url) as client:
        await proxy.refuse()
        url = proxy.through(sink.url)
        async with telling(stores, url) as program:
            await program.alerter.raise_alerts(ALERTS)
            seconds = await write_meanwhile(oracle)
            await until(is_zero(client, ATTEMPTS, wanted=False), what="a post has failed", seconds=SOON)
            status = await program.status()
            assert any("could not be delivered yet" in warning for warning in status.warnings)
        refused = proxy.engaged["refuse"] > 0 and not sink.requests
        await proxy.heal()
        async with telling(stores, url):
            await delivered_once(sink, client, oracle)
        assert len(sink.requests) == len(ALERTS)
        compared = await oracle.compare()
    scenario.note(engaged=refused, compared=compared, seconds=seconds)
