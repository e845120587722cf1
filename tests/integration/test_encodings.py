"""A local store in another encoding than UTF-8: what happens to it is judged and told of all the same."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from dionysus_sync_mcp.adapters.postgres.alerts import PostgresAlerts
from dionysus_sync_mcp.adapters.postgres.database import Database, charset_of
from dionysus_sync_mcp.adapters.postgres.incidents import PostgresIncidents
from dionysus_sync_mcp.adapters.postgres.observing import PostgresObserving
from dionysus_sync_mcp.domain.destruction import Incident, Who
from dionysus_sync_mcp.engine.ports.alerts import NewAlert
from tests.integration.stores import INSERT, Client, plain_client, uid
from tests.services import postgres
from tests.services.local_store import opened

WIDE = "D·ROP T·ABLE “ł” …"
FORGET = "DELETE FROM memories WHERE id = '{}' -- {}"
AS_HELD = {
    "SQL_ASCII": WIDE,
    "LATIN1": "D·ROP T·ABLE ??? ...",
    "WIN1252": "D·ROP T·ABLE “?” ...",
    "KOI8R": "D·ROP T·ABLE ??? ...",
}


@pytest.fixture(params=AS_HELD)
async def foreign_url(request: pytest.FixtureRequest, plain_template: str) -> AsyncIterator[str]:
    """A local store in this encoding."""
    server = postgres.with_database(plain_template, "postgres")
    name = postgres.PREFIX + uuid4().hex[:12]
    as_text = f"ENCODING '{request.param}' LOCALE_PROVIDER libc LC_COLLATE 'C' LC_CTYPE 'C'"
    await postgres.execute(server, f"CREATE DATABASE {name} TEMPLATE template0 {as_text}")
    url = postgres.with_database(server, name)
    try:
        await postgres.install_local_store(url)
        yield url
    finally:
        await postgres.execute(server, f"DROP DATABASE {urlsplit(url).path[1:]} WITH (FORCE)")


@pytest.fixture
async def foreign(foreign_url: str) -> AsyncIterator[Database]:
    """The program's access to it."""
    async with opened(foreign_url) as access:
        yield access


@pytest.fixture
async def user(foreign_url: str) -> AsyncIterator[Client]:
    """A client of it."""
    async with plain_client(foreign_url) as connected:
        yield connected


async def test_an_incident_is_recorded_with_what_the_encoding_can_hold(foreign: Database, user: Client) -> None:
    """Also one that came from another store, and its alert."""
    held = AS_HELD[await user.fetchval("SHOW server_encoding")]
    now = datetime.now(UTC)
    store = await user.fetchval("SELECT id::text FROM dionysus_sync.store_identity")
    who = Who(role="ł", statement=WIDE)
    made = Incident(str(uuid4()), "k", "drop", store, now, now, now, rows=1, summary=WIDE, who=who)
    book, alerts = PostgresIncidents(foreign), PostgresAlerts(foreign)
    assert [one.id for one in await book.record([made], [])] == [made.id]
    found = await book.incident(made.id)
    assert found is not None
    assert (found.summary, found.who.statement) == (held, held)
    assert await book.close(made.id, WIDE)
    await alerts.raise_alert(NewAlert("key", "drift", WIDE, {WIDE: [WIDE]}))
    told = [await alerts.take_due(60.0), await alerts.take_due(60.0)]
    assert {alert.summary for alert in told if alert} == {held}
    assert [alert.details for alert in told if alert and alert.kind == "drift"] == [{held: [held]}]


async def test_a_statement_that_is_cut_can_be_read(foreign: Database, user: Client) -> None:
    """Also where that falls within a character."""
    await user.execute(INSERT, uid(1), "text")
    await user.execute(FORGET.format(uid(1), "x" + "·" * 2000))
    (found,) = await PostgresObserving(foreign).unjudged(9)
    assert found.who.statement is not None
    assert found.who.statement.endswith("··")


async def test_a_byte_without_a_character_is_left_out(user: Client) -> None:
    """The encoding allows it, and no client could read it."""
    encoding = await user.fetchval("SHOW server_encoding")
    unread = {"SQL_ASCII": b"\xff", "WIN1252": b"\x81"}.get(encoding, b"a")
    with_it = "SELECT dionysus_sync.legible(convert_from($1, getdatabaseencoding()))"
    assert await user.fetchval(with_it, b"DROP " + unread) in ("DROP ?", "DROP a")
    if unread != b"a":
        with pytest.raises((asyncpg.UntranslatableCharacterError, asyncpg.CharacterNotInRepertoireError)):
            await user.fetchval("SELECT convert_from($1, getdatabaseencoding())", unread)


@pytest.mark.parametrize(
    ("encoding", "charset"),
    [("UTF8", None), ("SQL_ASCII", None), ("WIN1251", "cp1251"), ("KOI8U", "koi8-u"), ("LATIN9", "iso8859-15"),
     ("EUC_JP", "euc_jp"), ("MULE_INTERNAL", "ascii")],
)  # fmt: skip
def test_encodings_of_the_server_are_known(encoding: str, charset: str | None) -> None:
    """One that Python does not know holds what all do."""
    assert charset_of(encoding) == charset
