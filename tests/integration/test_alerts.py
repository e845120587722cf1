"""Alerts on a real database: on record once, taken by one process, delivered in the end whatever the receiver does."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from anyio.abc import SocketStream
from pydantic import SecretStr

from dionysus_sync_mcp.adapters.postgres.alerts import PAGE, PostgresAlerts
from dionysus_sync_mcp.adapters.postgres.database import Database
from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.adapters.postgres.reading import PostgresReading
from dionysus_sync_mcp.adapters.postgres.restorer import PostgresRestorer
from dionysus_sync_mcp.adapters.postgres.verifying import PostgresVerifying
from dionysus_sync_mcp.adapters.statements import load_migrations
from dionysus_sync_mcp.adapters.webhook import Webhook, signature
from dionysus_sync_mcp.domain.errors import SchemaMismatch
from dionysus_sync_mcp.engine import alerts as engine
from dionysus_sync_mcp.engine.alerts import Alerter
from dionysus_sync_mcp.engine.ports.alerts import DueAlert, NewAlert
from dionysus_sync_mcp.runtime import Runtime, open_runtime
from dionysus_sync_mcp.settings import Settings
from tests.integration.stores import INSERT, Client, graph, plain_client, uid
from tests.services.local_store import NOBODY, opened
from tests.services.receiver import Receiver, hanging, receiver, with_status
from tests.services.waiting import until

SOON = 30.0
TOKEN = "correct-horse-battery"  # noqa: S105 - the test's own key
DRIFT = NewAlert("drift:1", "drift", "The stores differ \x00 here.", {"missing_there": 2, "note": "a\x00b"})
EVENTS = (
    "INSERT INTO dionysus_sync.sync_events (timestamp, direction, result, record_count)"
    " SELECT now() - $1::interval, 'local_to_remote', $2, 1 FROM generate_series(1, $3)"
)


@pytest.fixture
async def database(migrated_database_url: str) -> AsyncIterator[Database]:
    """The program's own access."""
    async with opened(migrated_database_url) as made:
        yield made


@pytest.fixture
async def sink() -> AsyncIterator[Receiver]:
    """A receiver on this machine."""
    async with receiver() as made:
        yield made


async def due_now(client: Client) -> None:
    """As if the waits were over."""
    await client.execute("UPDATE dionysus_sync.alerts SET next_try_at = now() WHERE next_try_at IS NOT NULL")


async def test_an_alert_is_on_record_once_and_taken_by_one(database: Database, client: Client) -> None:
    """Four processes look at once; who takes it has it for a while, and then it is anybody's again."""
    book = PostgresAlerts(database)
    assert [await book.raise_alert(DRIFT) for _ in range(2)] == [True, False]
    taken: list[DueAlert | None] = []

    async def take() -> None:
        taken.append(await book.take_due(60))

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(take)
    (alert,) = [one for one in taken if one]
    store = await client.fetchval("SELECT id::text FROM dionysus_sync.store_identity")
    assert (alert.kind, alert.summary, alert.attempts, alert.store_id) == (
        "drift",
        "The stores differ   here.",
        0,
        store,
    )
    assert alert.details["missing_there"] == 2
    assert await book.take_due(60) is None
    await due_now(client)
    again = await book.take_due(60)
    assert again is not None
    assert (again.id, again.attempts) == (alert.id, 1)
    await book.postpone(alert.id, 60, "answer 500")
    assert await book.take_due(60) is None
    await due_now(client)
    await book.note_delivered(alert.id)
    assert await book.take_due(60) is None


@pytest.mark.promise("P8")
async def test_a_post_holds_no_transaction(database: Database, sink: Receiver, client: Client) -> None:
    """While the receiver hangs, the alert's row can be written by others."""
    began = anyio.Event()

    async def hang(stream: SocketStream) -> None:
        began.set()
        await hanging(stream)

    sink.answer = hang
    alerter = Alerter(PostgresAlerts(database), Webhook(SecretStr(sink.url), SecretStr(TOKEN)))
    await alerter.raise_alerts([DRIFT])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(alerter.deliver_once)
        with anyio.fail_after(SOON):
            await began.wait()
        open_ = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start IS NOT NULL"
        assert await client.fetchval(open_ + " AND pid <> pg_backend_pid()") == 0
        await client.execute("UPDATE dionysus_sync.alerts SET summary = summary", timeout=5)
        tasks.cancel_scope.cancel()
    assert len(sink.requests) == 1


@asynccontextmanager
async def watched(database_url: str, neo4j_uri: str, url: str | None) -> AsyncIterator[Runtime]:
    """The whole program with its background loops, and a webhook."""
    settings = Settings(
        database_url=SecretStr(database_url),
        neo4j_uri=neo4j_uri,
        ollama_url=NOBODY,
        dionysus_poll_ms=20,
        dionysus_project="atlas",
        dionysus_alert_webhook_url=SecretStr(url) if url else None,
        memory_webhook_token=SecretStr(TOKEN),
    )
    async with open_runtime(settings, worker=True, start_session=False) as runtime:
        yield runtime


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and tries again sooner than it does for users."""
    monkeypatch.setattr(engine, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(engine, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(engine, "LONGEST_DELAY_SECONDS", 0.2)


def arrived(uri: str, content: str) -> Callable[[], Awaitable[bool]]:
    """Asks whether a memory with that content is in the remote store."""

    async def ask() -> bool:
        return bool(await graph(uri, "MATCH (m:Memory {content: $c}) RETURN m.id", c=content))

    return ask


@pytest.mark.usefixtures("quick")
async def test_a_sick_receiver_affects_nothing_and_gets_the_alert_once_it_is_well(
    migrated_database_url: str, empty_neo4j: str, sink: Receiver, client: Client
) -> None:
    """It answers 500 and memories go on arriving; then it takes the alert, signed, and gets no second one."""
    sink.answer = with_status("500 Internal Server Error")
    async with watched(migrated_database_url, empty_neo4j, sink.url) as program:
        assert await program.alerts.raise_alert(DRIFT)

        async def tried() -> bool:
            return len(sink.requests) >= 3

        await until(tried, what="it is tried three times", seconds=SOON)
        await client.execute(INSERT, uid(1), "meanwhile")
        await until(arrived(empty_neo4j, "meanwhile"), what="the row arrives", seconds=SOON)
        assert any("could not be delivered yet: answer 500" in w for w in (await program.status()).warnings)
        sink.answer = with_status("204 No Content")

        async def delivered() -> bool:
            return bool(await client.fetchval("SELECT delivered_at IS NOT NULL FROM dionysus_sync.alerts"))

        await until(delivered, what="it is delivered", seconds=SOON)
        count = len(sink.requests)
        await client.execute(INSERT, uid(2), "after")
        await until(arrived(empty_neo4j, "after"), what="the next row arrives", seconds=SOON)
        (shown,) = (await program.status()).alerts
        assert shown.delivered_at is not None
    assert len(sink.requests) == count
    assert len({got.headers["x-delivery-id"] for got in sink.requests}) == 1
    last = sink.requests[-1]
    assert last.headers["x-signature"] == signature(last.body, TOKEN)
    assert last.fields["id"] == last.headers["x-delivery-id"]
    assert (last.fields["kind"], last.fields["project"]) == ("drift", "atlas")


@pytest.mark.usefixtures("quick")
async def test_what_fails_for_good_is_told_without_anybody_asking(
    migrated_database_url: str, empty_neo4j: str, sink: Receiver, client: Client
) -> None:
    """A parked entry that was refused ten times: one alert, in the status with its reason, and what to do about it."""
    await client.execute(
        "INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version, retry_count, parked_at,"
        " last_error) VALUES ($1, 'update', $2, 1, 10, now(), 'it is poison')",
        uid(1),
        json.dumps({"id": str(uid(1))}),
    )
    async with watched(migrated_database_url, empty_neo4j, sink.url) as program:

        async def told() -> bool:
            return bool(sink.requests)

        await until(told, what="it is told", seconds=SOON)
        status = await program.status()
    assert [got.fields["kind"] for got in sink.requests] == ["failed_for_good"]
    assert sink.requests[0].fields["details"] == {"failed": 1, "last_error": "it is poison"}
    assert status.local is not None
    assert (status.local.queue.parked, status.local.queue.failed) == (1, 1)
    assert any("1 of them failed for good" in warning for warning in status.warnings)


@pytest.mark.promise("P7")
@pytest.mark.usefixtures("quick")
async def test_a_database_that_went_back_is_told_and_asked_about(
    migrated_database_url: str, empty_neo4j: str, client: Client
) -> None:
    """Its lineage is set back to what an old dump would hold: the first warning, an alert on record, nothing pushed."""
    identity = "SELECT generation, lineage FROM dionysus_sync.store_identity"
    async with watched(migrated_database_url, empty_neo4j, None) as program:
        await client.execute(INSERT, uid(1), "first")
        await until(arrived(empty_neo4j, "first"), what="the row arrives", seconds=SOON)
        old = await client.fetchrow(identity)
        assert old is not None
        for number in (2, 3, 4):
            await client.execute(INSERT, uid(number), f"row {number}")
            await until(arrived(empty_neo4j, f"row {number}"), what="the row arrives", seconds=SOON)

        async def idle() -> bool:
            return (await program.status()).exposure.unsynced == 0

        await until(idle, what="all is acknowledged", seconds=SOON)
        assert not any("older than what it has pushed" in w for w in (await program.status()).warnings)
        await client.execute(
            "UPDATE dionysus_sync.store_identity SET generation = $1, lineage = $2", old["generation"], old["lineage"]
        )

        async def on_record() -> bool:
            return bool(await client.fetchval("SELECT 1 FROM dionysus_sync.alerts WHERE kind = 'rolled_back'"))

        await until(on_record, what="the alert is on record", seconds=SOON)
        status = await program.status()
        assert "older than what it has pushed" in status.warnings[0]
        assert "--prefer remote" in status.next_step
        await client.execute(INSERT, uid(5), "after the dump")
        report = await program.sync(timeout=SOON, embed=False)
        assert (report.result, report.pushed, report.remaining) == ("failed", 0, 1)
        assert not await arrived(empty_neo4j, "after the dump")()
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.alerts WHERE kind = 'rolled_back'") == 1
    assert await client.fetchval("SELECT count(*) FROM dionysus_sync.alerts WHERE attempts > 0") == 0


async def test_the_audit_is_pruned_by_age_and_by_result(database: Database, client: Client) -> None:
    """What went well goes after 30 days, the rest after a year; the last success stays: the status names it."""
    await client.execute(EVENTS, timedelta(days=60), "success", 1)
    newest = await client.fetchval("SELECT id FROM dionysus_sync.sync_events")
    await client.execute(EVENTS, timedelta(days=61), "success", PAGE + 5)
    await client.execute(EVENTS, timedelta(days=31), "queued", 1)
    await client.execute(EVENTS, timedelta(days=29), "queued", 2)
    await client.execute(EVENTS, timedelta(days=300), "failed", 3)
    await client.execute(EVENTS, timedelta(days=300), "partial", 4)
    await client.execute(EVENTS, timedelta(days=366), "failed", 1)
    await client.execute(EVENTS, timedelta(days=366), "partial", 1)
    book = PostgresAlerts(database)
    assert [await book.prune_events() for _ in range(3)] == [PAGE, 5 + 1 + 2, 0]
    left = await client.fetch("SELECT result, count(*) FROM dionysus_sync.sync_events GROUP BY result ORDER BY result")
    assert [(r[0], r[1]) for r in left] == [("failed", 3), ("partial", 4), ("queued", 2), ("success", 1)]
    assert await client.fetchval("SELECT id FROM dionysus_sync.sync_events WHERE result = 'success'") == newest


async def test_alerts_are_pruned_by_age_once_they_are_delivered(database: Database, client: Client) -> None:
    """What was delivered goes after 30 days, what was not after a year."""
    for key, days, delivered in (("a", 31, True), ("b", 29, True), ("c", 300, False), ("d", 366, False)):
        await client.execute(
            "INSERT INTO dionysus_sync.alerts (key, kind, summary, raised_at, delivered_at)"
            " VALUES ($1, 'drift', 's', now() - $2::interval, CASE WHEN $3 THEN now() END)",
            key, timedelta(days=days), delivered,
        )  # fmt: skip
    book = PostgresAlerts(database)
    assert [await book.prune_events() for _ in range(2)] == [2, 0]
    left = await client.fetch("SELECT key FROM dionysus_sync.alerts ORDER BY key")
    assert [r[0] for r in left] == ["b", "c"]


async def test_an_alert_that_was_put_off_before_the_clock_jumped_back_is_due(
    database: Database, client: Client
) -> None:
    """Nothing waits for longer than five minutes, so what seems to is taken at once."""
    book = PostgresAlerts(database)
    await book.raise_alert(DRIFT)
    await client.execute("UPDATE dionysus_sync.alerts SET next_try_at = now() + interval '5 minutes'")
    assert await book.take_due(60) is None
    await client.execute("UPDATE dionysus_sync.alerts SET next_try_at = now() + interval '1 day'")
    assert await book.take_due(60) is not None


def reading(database: Database) -> PostgresReading:
    """What the status reads by."""
    return PostgresReading(database, Installer(database, load_migrations()))


CHECKS: list[tuple[list[str], str | None]] = [
    (["full drift", "quick clean"], "full"),
    (["full drift", "full skipped", "deep skipped"], "full"),
    (["full drift", "full clean"], None),
    (["full drift", "deep clean"], None),
    (["deep drift", "full clean"], "deep"),
    (["quick drift", "quick clean"], None),
    (["deep drift", "full clean", "quick drift"], "quick"),
    (["deep drift", "quick drift", "quick clean"], "deep"),
]


@pytest.mark.parametrize(("checks", "open_"), CHECKS)
async def test_drift_is_remembered_until_a_look_as_close_is_clean(
    database: Database, client: Client, checks: list[str], open_: str | None
) -> None:
    """The newest check is shown as it is, and does not hide what an earlier one found."""
    for age, check in enumerate(reversed(checks)):
        await client.execute(
            "INSERT INTO dionysus_sync.verifications (kind, result, report, finished_at)"
            """ VALUES ($1, $2, '{"counts": {"different": 4}}', now() - $3::interval)""",
            *check.split(), timedelta(minutes=1 + age),
        )  # fmt: skip
    found = await reading(database).activity(datetime.now(UTC))
    assert found.last_check is not None
    assert f"{found.last_check.kind} {found.last_check.result}" == checks[-1]
    assert (found.drift and found.drift.kind) == open_
    assert found.drift is None or found.drift.differences == 4
    await client.execute(database.sql["prune_verifications"].replace("$1", "0"))
    assert ((await reading(database).activity(datetime.now(UTC))).drift is None) is (open_ is None)


async def test_a_check_that_was_skipped_is_no_look_at_all_ids(database: Database, client: Client) -> None:
    """It is a look, so that the next one waits; but a full one is as due as before."""
    await client.execute(
        "INSERT INTO dionysus_sync.verifications (kind, result, report) VALUES ('full', 'skipped', '{}')"
    )
    since_any, since_full = await PostgresVerifying(database, Installer(database, load_migrations())).ages()
    assert since_any is not None
    assert since_full is None


async def test_nothing_is_compared_while_a_recovery_is_under_way(
    database: Database, migrated_database_url: str
) -> None:
    """Whichever process carries it out; of one that was killed nothing is left."""
    installer = Installer(database, load_migrations())
    verifying, restorer = PostgresVerifying(database, installer), PostgresRestorer(database, installer)
    async with restorer.recovering(), restorer.recovering():
        assert await verifying.obstacle() == "a recovery is under way"
    assert await verifying.obstacle() is None
    async with plain_client(migrated_database_url) as killed:
        await killed.execute(database.sql["mark_recovery"])
        assert await verifying.obstacle() is not None
        killed.terminate()

    async def over() -> bool:
        return await verifying.obstacle() is None

    await until(over, what="the server has noticed", seconds=SOON)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("INSERT INTO dionysus_sync.schema_migrations VALUES ('0099_x', 'y')", "does not know: 0099_x"),
        ("UPDATE dionysus_sync.schema_migrations SET checksum = 'z' WHERE name LIKE '0002%'", "in another form"),
        ("DELETE FROM dionysus_sync.schema_migrations WHERE name LIKE '0004%'", "older than this program"),
    ],
)
async def test_the_state_of_another_versions_bookkeeping_is_not_guessed(
    database: Database, client: Client, statement: str, said: str
) -> None:
    """Whatever its tables look like: it is told as what it is, with what to do."""
    await reading(database).state()
    await client.execute(statement)
    with pytest.raises(SchemaMismatch, match=said) as caught:
        await reading(database).state()
    assert caught.value.hint


async def test_rows_that_were_never_sent_are_counted(database: Database, client: Client) -> None:
    """PostgreSQL cannot make JSON of them: nothing but a change of the row helps."""
    await client.execute("ALTER TABLE memories ADD COLUMN j json")
    await client.execute("INSERT INTO memories (content, j) VALUES ('x', $1::text::json)", r'{"nul": "\u0000"}')
    state = await reading(database).state()
    assert (state.parked, state.unsent, state.failed) == (1, 1, 0)


async def test_alerts_that_were_sent_in_vain_are_all_counted(database: Database, client: Client) -> None:
    """More than are shown; those that nobody tried to send are none of them."""
    statement = "INSERT INTO dionysus_sync.alerts (key, kind, summary, last_error) SELECT $1 || i, 'drift', 's', $2"
    await client.execute(f"{statement} FROM generate_series(1, 9) AS i", "tried", "answer 500")
    await client.execute(f"{statement} FROM generate_series(1, 2) AS i", "untried", None)
    found = await reading(database).activity(datetime.now(UTC))
    assert (found.undelivered, found.undelivered_error) == (9, "answer 500")


async def test_the_statistics_count_pushes_and_outages_of_the_last_day(program: Runtime, client: Client) -> None:
    """What a repair did, what was put back into the queue, and what is older is none of them."""
    await client.execute(INSERT, uid(1), "first")
    assert (await program.sync(embed=False)).result == "success"
    note = (
        "INSERT INTO dionysus_sync.sync_events (direction, result, record_count, error_message, duration_ms, timestamp)"
        " VALUES ('local_to_remote', $1, $2, $3, $4, now() - $5::interval)"
    )
    minute, day = timedelta(minutes=1), timedelta(hours=25)
    await client.execute(note, "partial", 2, "poison", 1000, minute)
    await client.execute(note, "queued", 7, "Neo4j: refused.", None, minute)
    await client.execute(note, "queued", 7, "parked entries are tried again", None, minute)
    await client.execute(note, "success", 7, "repair: 7 missing_there", 9000, minute)
    await client.execute(note, "success", 7, None, 9000, day)
    counts = {"missing_there": 7, "older_here": 3}
    report = {"counts": counts, "repaired": {"missing_there": 5}}
    await client.execute(
        "INSERT INTO dionysus_sync.verifications (kind, result, report) VALUES ('full', 'drift', $1)",
        json.dumps(report),
    )
    status = await program.status()
    done = status.statistics
    assert done is not None
    assert (done.pushes, done.pushed, done.failed_pushes, done.outages) == (2, 3, 1, 1)
    assert (done.slowest_ms, done.repaired, done.conflicts) == (1000, 5, 0)
    assert done.since < datetime.now(UTC) - timedelta(hours=23)
    assert status.last_check is not None
    assert (status.last_check.result, status.last_check.differences) == ("drift", 2 + 3)
    assert "The stores differ in 5 memories" in " ".join(status.warnings)


async def test_a_long_queue_is_bounded_instead_of_counted(program: Runtime, client: Client) -> None:
    """Up to 100,000 entries the number is exact; beyond, it is made of the entries' own numbers and never too low."""
    fill = (
        "INSERT INTO dionysus_sync.sync_queue (memory_id, operation, payload, sync_version)"
        " SELECT gen_random_uuid(), 'update', '{}', 1 FROM generate_series(1, $1)"
    )
    await client.execute(fill, 100_000, timeout=SOON)
    assert (await program.reading.state()).queued == await program.outbox.queue_length() == 100_000
    await client.execute(fill, 20_000, timeout=SOON)
    await client.execute("SELECT nextval('dionysus_sync.sync_queue_seq_seq') FROM generate_series(1, 10)")
    await client.execute(fill, 30_000, timeout=SOON)
    assert (await program.reading.state()).queued == await program.outbox.queue_length() == 150_010
