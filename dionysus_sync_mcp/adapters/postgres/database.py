"""The connection pool of the local store: opened at first use, healed by itself, its errors in our words."""

import codecs
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from hashlib import md5
from secrets import token_hex
from typing import TYPE_CHECKING

import anyio
import asyncpg
from asyncpg import exceptions as pg

from dionysus_sync_mcp.adapters.postgres.line import CHECK, WHERE, Line, Pulse
from dionysus_sync_mcp.domain.errors import (
    AccessRefused,
    DatabaseMissing,
    DionysusError,
    Refused,
    SchemaMismatch,
    TooLarge,
    Unavailable,
)
from dionysus_sync_mcp.domain.text import storable_in
from dionysus_sync_mcp.engine.ports.shared import Health

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Driven = PoolConnectionProxy[asyncpg.Record]

logger = logging.getLogger(__name__)

Connection = Line

# A statement on the way of a push, a poll or a status.
PATIENCE = 5.0
# One that reads or writes pages, or changes the schema.
LONG_PATIENCE = 60.0
# Of a reset, which is one round trip: where those take long, a connection is worth even more.
RELEASE_SECONDS = 3.0
# Shorter than any patience: a row that somebody holds is no reason to give up a connection.
LOCK_SECONDS = 4
# Between two looks at what the role may do, and the share of a look's time after which the line counts as slow.
RIGHTS_SECONDS = 10.0
# Of a process that was stopped in the middle of a transaction: no longer does it keep users from changing the table. A
# push, which may wait longer for the remote store, says so itself.
IDLE_SECONDS = 120
SLOW_SHARE = 0.25
TRANSACTION_TIMEOUT_SINCE = 17
APPLICATION_NAME = "dionysus-sync-mcp"
WATCHING_ONLY = (
    "detection of dropped and altered tables is by watching only, since this role may not create event triggers"
)
WATCHING_ONLY_BESIDE = (
    "detection of dropped and altered tables is by watching only, since the bookkeeping belongs to {}, "
    "whose own code could run in event triggers of a superuser"
)
CAPTURE_ABOVE_OWNER = (
    "the capture runs with the rights of {capture}, and so can what {owner}, the owner of memories, "
    "makes its columns of: give one of them the table and the schema dionysus_sync"
)
POOLED = "DATABASE_URL leads to a connection pooler"
_DIRECT = (
    "The program keeps settings and prepared statements with its connections: give it a direct connection to the "
    "server. Your other programs may go on using the pooler; their changes are captured all the same."
)
_WITHOUT_DATABASE = (
    "Check DATABASE_URL. If the database was there before, create it again and call recover_from_remote: the remote "
    "store keeps what was in it."
)
_ENCODE = "Write /, @, : and # in the password as %2F, %40, %3A and %23."
_SERVER_IS_AWAY = (
    pg.PostgresConnectionError,
    pg.OperatorInterventionError,
    pg.CannotConnectNowError,
    pg.InsufficientResourcesError,
    pg.TransactionRollbackError,
    pg.ObjectNotInPrerequisiteStateError,
    pg.LockNotAvailableError,
    pg.IdleInTransactionSessionTimeoutError,
    pg.TransactionTimeoutError,
    pg.PostgresSystemError,
    pg.ReadOnlySQLTransactionError,
)
# The driver has dropped what it had prepared by the time that it says so; the same statement works on the next try.
_CHANGED_MEANWHILE = (pg.InvalidCachedStatementError, pg.OutdatedSchemaCacheError)
# What a pooler says to parameters that it does not know; or what comes of statements that others prepared.
_OF_A_POOLER = (pg.DuplicatePreparedStatementError, pg.InvalidSQLStatementNameError)
_FUNCTION = re.compile(r"^CREATE OR REPLACE FUNCTION dionysus_sync\.(\w+)\(.*?^AS \$\$(.*?)\$\$;$", re.M | re.S)
_UNSUPPORTED = "unsupported startup parameter"
_PERSON_HAS_TO_ACT = (
    pg.InvalidAuthorizationSpecificationError,
    pg.InsufficientPrivilegeError,
    pg.ClientConfigurationError,
)
_NOT_WHAT_WE_INSTALLED = (
    pg.UndefinedTableError,
    pg.UndefinedColumnError,
    pg.UndefinedFunctionError,
    pg.UndefinedObjectError,
    pg.InvalidSchemaNameError,
)


def for_schema(statement: str, schema: str) -> str:
    """A statement with the full name of `memories`, bare and as a literal, and with the user's path."""
    path = '"' + schema.replace('"', '""') + '"'
    memories = f"{path}.memories"
    for name, value in (("path", path), ("memories", memories)):
        statement = statement.replace(f":'{name}'", "'" + value.replace("'", "''") + "'")
    return statement.replace(":memories", memories)


def charset_of(encoding: str) -> str | None:
    """The Python codec of an encoding of PostgreSQL's; `None` for one that takes every character of UTF-8."""
    if encoding in ("UTF8", "SQL_ASCII"):
        return None
    try:
        return codecs.lookup(encoding.replace("WIN", "cp").replace("KOI8", "koi8_")).name
    except LookupError:
        return "ascii"


def functions_in(statements: str) -> str:
    """JSON: the functions that these make, and the MD5 of each one's text as PostgreSQL keeps it; the last counts."""
    made = _FUNCTION.findall(statements)
    return json.dumps({name: md5(body.encode(), usedforsecurity=False).hexdigest() for name, body in made})


def in_our_words(error: Exception) -> DionysusError | None:
    """The error of our tree that stands for a driver's or the system's; `None` for one that is neither's."""
    if isinstance(error, _OF_A_POOLER) or (isinstance(error, pg.ProtocolViolationError) and _UNSUPPORTED in str(error)):
        return AccessRefused(f"{POOLED} ({_text(error)})", where=WHERE, hint=_DIRECT)
    if isinstance(error, pg.InvalidCatalogNameError):
        return DatabaseMissing(_text(error), where=WHERE, hint=_WITHOUT_DATABASE)
    if isinstance(error, _PERSON_HAS_TO_ACT):
        return AccessRefused(_text(error), where=WHERE, hint="Check DATABASE_URL and the rights of its role.")
    if isinstance(error, _NOT_WHAT_WE_INSTALLED):
        return SchemaMismatch(_text(error), where=WHERE, hint="Run 'dionysus-sync-mcp init' to see what is missing.")
    if isinstance(error, _CHANGED_MEANWHILE):
        return Unavailable(_text(error), where=WHERE, hint="It is tried again.")
    if isinstance(error, (*_SERVER_IS_AWAY, OSError, TimeoutError)):
        return Unavailable(_text(error), where=WHERE, hint=CHECK)
    if isinstance(error, pg.ProgramLimitExceededError):
        return TooLarge(_text(error), where=WHERE)
    if isinstance(error, (pg.InterfaceError, pg.InternalClientError)) and not isinstance(error, ValueError):
        # The driver has lost its footing: the server has said that it ends the connection, and has not ended it yet.
        closed = any(words in str(error) for words in ("connection is closed", "cannot switch to state"))
        return Unavailable("the connection was closed" if closed else _text(error), where=WHERE, hint=CHECK)
    if isinstance(error, (pg.PostgresError, pg.InterfaceError)):
        return Refused(_text(error), where=WHERE)
    return None


def _text(error: Exception) -> str:
    """One line without the connection's parameters: asyncpg puts neither URL nor password into its messages."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def our_errors() -> Iterator[None]:
    """Raises our errors in the place of the driver's."""
    try:
        yield
    except (pg.PostgresError, pg.InterfaceError, pg.InternalClientError, OSError) as error:
        raise in_our_words(error) or error from error


@asynccontextmanager
async def users_path(connection: "Connection", sql: Mapping[str, str]) -> AsyncIterator[None]:
    """For statements that fire the user's triggers; an error ends the transaction, and the path with it."""
    await connection.execute(sql["users_path"])
    yield
    await connection.execute(sql["own_path"])


class _Mortal(asyncpg.Connection):
    """A connection that can be closed when it is dead already: the pool does that in a task that nobody looks after."""

    async def close(self, *, timeout: float | None = None) -> None:
        with suppress(OSError):
            await super().close(timeout=timeout)


class Database:
    """A lazily opened pool of the local store.

    Args:
        address: Gives the URL; may raise `Unavailable` while an embedded server is being started.
        schema: Where `memories` stands.
        statements: The named SQL; `:memories` in it becomes the table's full name.
        connect_timeout: Seconds until a server that does not answer counts as away.
    """

    def __init__(
        self,
        address: Callable[[], Awaitable[str]],
        schema: str,
        statements: Mapping[str, str],
        connect_timeout: float = 5.0,
    ) -> None:
        self.schema = schema
        self.sql = {name: for_schema(statement, schema) for name, statement in statements.items()}
        # Its own: the server may give the number of a process that has ended to somebody else's.
        self._name = f"{APPLICATION_NAME} {token_hex(4)}"
        self._address = address
        self._connect_timeout = connect_timeout
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = anyio.Lock()
        self._left_behind: set[int] = set()
        self._degraded: tuple[str, ...] = ()
        self._look_again_at = 0.0
        self._pulse = Pulse()
        self._charset: str | None = None

    def ddl_functions(self) -> str:
        """JSON: the functions of our event triggers, and the MD5 of each one's text as PostgreSQL keeps it."""
        return functions_in(self.sql["install_event_triggers"])

    def fit(self, text: str) -> str:
        """A text of ours, such as a message, as this database's encoding can hold it; not for what is the user's."""
        return storable_in(text, self._charset)

    def json_of(self, value: object) -> str:
        """JSON of a record of ours that this database can hold: not every encoding takes JSON's escapes."""
        return json.dumps(self._fit_parts(value), ensure_ascii=False)

    def _fit_parts(self, value: object) -> object:
        if isinstance(value, str):
            return self.fit(value)
        if isinstance(value, dict):
            return {self.fit(str(name)): self._fit_parts(part) for name, part in value.items()}
        return [self._fit_parts(part) for part in value] if isinstance(value, (list, tuple)) else value

    @asynccontextmanager
    async def connection(self, timeout: float | None = None, patience: float = PATIENCE) -> AsyncIterator[Connection]:
        """A connection out of the pool.

        One that breaks takes all others out of the pool with it, and so does one that hangs while none is answered.

        Args:
            timeout: Seconds until there has to be one (default: the connect time-out).
            patience: Seconds in which each statement has to be answered.

        Raises:
            Unavailable: There was none, or no answer, in time; `TimedOut` if only the later statements took too long.
        """
        with our_errors():
            raw, pool = await self._connected(timeout or self._connect_timeout)
            line = Line(raw, patience, self._pulse)
            try:
                yield line
            except TimeoutError as error:
                if error is not line.ended:
                    raise
                raise line.out_of_time() from error
            finally:
                await self._give_back(pool, line)

    @asynccontextmanager
    async def transaction(self, timeout: float | None = None, patience: float = PATIENCE) -> AsyncIterator[Connection]:
        """A connection inside a transaction that is committed on leaving and undone by an exception."""
        async with self.connection(timeout, patience) as connection, connection.transaction():
            yield connection

    async def health(self, timeout: float) -> Health:
        """One look over a connection of its own, since a pooled one may be dead; never raises one of our errors."""
        started = time.monotonic()
        try:
            with our_errors(), anyio.fail_after(timeout):
                version, degraded = await self._version(timeout)
        except AccessRefused as error:
            return Health("postgresql", error=error.what, hint=error.hint, refused=True)
        except DionysusError as error:
            away = isinstance(error.__cause__, TimeoutError)
            what = f"no answer within {timeout:.1f} s" if away else error.what
            return Health("postgresql", error=what, hint=error.hint)
        latency_ms = round(1000 * (time.monotonic() - started), 1)
        return Health("postgresql", version=version, latency_ms=latency_ms, degraded=degraded)

    async def close(self) -> None:
        """Ends every connection at once; a pool that is closed politely waits for the queries that are under way."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool = None

    async def _open(self) -> "asyncpg.Pool[asyncpg.Record]":
        async with self._opening:
            if self._pool is None:
                url = await self._address()
                self._pool = await asyncpg.create_pool(
                    url,
                    min_size=0,
                    max_size=6,
                    timeout=self._connect_timeout,
                    server_settings=self._settings(),
                    init=self._greet,
                    reset=self._reset,
                    connection_class=_Mortal,
                )
            return self._pool

    async def _version(self, timeout: float) -> tuple[str, tuple[str, ...]]:
        """The server's version, and what works less well than it could."""
        started = time.monotonic()
        url = await self._address()
        with _readable():
            connection = await asyncpg.connect(url, timeout=timeout, server_settings=self._settings())
        try:
            version = await self._greeted(connection)
            await self._look_at_rights(connection, time.monotonic() - started, timeout)
        finally:
            connection.terminate()
        return version, self._degraded

    async def _look_at_rights(
        self, connection: "asyncpg.Connection[asyncpg.Record]", took: float, timeout: float
    ) -> None:
        """Now and then, and not over a slow line: whether the server is there must not be found out too late for it."""
        now = time.monotonic()
        if now < self._look_again_at or took > timeout * SLOW_SHARE:
            return
        with anyio.move_on_after((timeout - took) / 2):
            self._degraded = await self._shortcomings(connection)
            self._look_again_at = now + RIGHTS_SECONDS

    async def _shortcomings(self, connection: "asyncpg.Connection[asyncpg.Record]") -> tuple[str, ...]:
        if not await connection.fetchval(self.sql["has_migrations"]):
            return ()
        watch = await connection.fetchrow(self.sql["event_triggers"], self.ddl_functions())
        above = await connection.fetchrow(self.sql["capture_above_owner"])
        return (*_watching(watch), *([CAPTURE_ABOVE_OWNER.format(**above)] if above else []))

    async def _connected(self, timeout: float) -> "tuple[Driven, asyncpg.Pool[asyncpg.Record]]":
        pool = await self._open()
        with _readable():
            raw = await self._acquire(pool, timeout)
        if self._left_behind:
            await self._end_left_behind(pool, raw)
        return raw, pool

    async def _acquire(self, pool: "asyncpg.Pool[asyncpg.Record]", timeout: float) -> "Driven":
        try:
            with anyio.fail_after(timeout):
                return await pool.acquire(timeout=timeout)
        except TimeoutError:
            raise Unavailable(f"no connection within {timeout:g} s", where=WHERE, hint=CHECK) from None

    async def _end_left_behind(self, pool: "asyncpg.Pool[asyncpg.Record]", raw: "Driven") -> None:
        """The server may not know that a connection is lost, and keep its transaction, and the push lock, for hours."""
        pids, self._left_behind = sorted(self._left_behind), set()
        line = Line(raw, PATIENCE, self._pulse)
        try:
            await line.execute(self.sql["end_left_behind"], " ".join(map(str, pids)), self._name)
        except pg.InsufficientPrivilegeError:
            logger.info("this role may not end its own lost connections; they end when the server notices")
        except BaseException:
            self._left_behind.update(pids)
            await self._give_back(pool, line)
            raise

    async def _give_back(self, pool: "asyncpg.Pool[asyncpg.Record]", line: Line) -> None:
        """Without waiting for a connection that hangs, and without an error in the place of the one that led here."""
        if line.ended or line.closed():
            self._left_behind.add(line.pid)
            await self._end(pool, line)
            return
        with anyio.CancelScope(shield=True):
            try:
                await pool.release(line.raw, timeout=RELEASE_SECONDS)
            except (TimeoutError, pg.InterfaceError, pg.InternalClientError, pg.PostgresError, OSError):
                await self._end(pool, line)

    async def _end(self, pool: "asyncpg.Pool[asyncpg.Record]", line: Line) -> None:
        """Where one connection has ended, the others may be dead too, unless one was answered meanwhile."""
        with suppress(pg.InterfaceError):
            line.raw.terminate()
        if not (line.ended and self._pulse.at > line.asked_at):
            await pool.expire_connections()

    async def _greet(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._left_behind.discard(connection.get_server_pid())
        await self._greeted(connection)

    async def _greeted(self, connection: "asyncpg.Connection[asyncpg.Record]") -> str:
        """The server's version.

        A pooler greets its clients itself, so the process that it names is not the one that answers.

        Raises:
            AccessRefused: There is one, which may have passed over our settings, and may give each transaction to
                another process.
        """
        greeted = connection.get_server_pid()
        answer = await connection.fetchrow(self.sql["greet"], greeted)
        if answer is None or answer["process"] != greeted:
            raise AccessRefused(POOLED, where=WHERE, hint=_DIRECT)
        self._charset = charset_of(connection.get_settings().server_encoding)
        return str(answer["version"])

    async def _reset(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        """What the driver does, which undoes that setting, and the setting again, in one round trip."""
        query = connection.get_reset_query()
        if connection.get_server_version().major >= TRANSACTION_TIMEOUT_SINCE:
            query = f"{query}\n{self.sql['no_transaction_timeout']}"
        await connection.execute(query)

    def _settings(self) -> dict[str, str]:
        """Of each connection. A row's JSON, and so its hash, depends on the time zone and the forms of output."""
        return {
            "application_name": self._name,
            "timezone": "UTC",
            "extra_float_digits": "1",
            "datestyle": "ISO",
            "intervalstyle": "iso_8601",
            "bytea_output": "hex",
            # Not the user's schema: whoever may create in it could put a function there that runs with our rights.
            "search_path": "pg_catalog, pg_temp",
            # Our statements are not worth compiling, and the driver would switch it off and on around each question of
            # its own.
            "jit": "off",
            # Of ours, whatever the database or the role has been given.
            "statement_timeout": "0",
            "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
            "idle_session_timeout": "0",
            "lock_timeout": f"{LOCK_SECONDS}s",
        }


def _watching(watch: "asyncpg.Record | None") -> Iterator[str]:
    """Why nothing but watching tells of what happens to the table, where that is so."""
    if watch is None or watch["present"]:
        return
    if watch["lesser"] and watch["superuser"]:
        yield WATCHING_ONLY_BESIDE.format(watch["lesser"])
    elif not watch["superuser"]:
        yield WATCHING_ONLY


@contextmanager
def _readable() -> Iterator[None]:
    """The driver quotes the part of the URL that it cannot read, which may be the password."""
    try:
        yield
    except ValueError as error:
        raise AccessRefused("DATABASE_URL cannot be read", where=WHERE, hint=_ENCODE) from error
