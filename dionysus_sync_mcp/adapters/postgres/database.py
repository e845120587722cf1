"""The connection pool of the local store: opened at first use, healed by itself, its errors in our words."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import anyio
import asyncpg
from asyncpg import exceptions as pg

from dionysus_sync_mcp.domain.errors import (
    AccessRefused,
    DionysusError,
    Refused,
    SchemaMismatch,
    TooLarge,
    Unavailable,
)
from dionysus_sync_mcp.engine.ports import Health

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Connection = PoolConnectionProxy[asyncpg.Record]

WHERE = "PostgreSQL"
APPLICATION_NAME = "dionysus-sync-mcp"
_ENCODE = "Write /, @, : and # in the password as %2F, %40, %3A and %23."
CHECK = "Check that PostgreSQL runs and that DATABASE_URL reaches it."
_SERVER_IS_AWAY = (
    pg.PostgresConnectionError,
    pg.OperatorInterventionError,
    pg.CannotConnectNowError,
    pg.InsufficientResourcesError,
    pg.TransactionRollbackError,
    pg.ObjectNotInPrerequisiteStateError,
    pg.LockNotAvailableError,
    pg.IdleInTransactionSessionTimeoutError,
    pg.PostgresSystemError,
    pg.ReadOnlySQLTransactionError,
)
_PERSON_HAS_TO_ACT = (
    pg.InvalidAuthorizationSpecificationError,
    pg.InsufficientPrivilegeError,
    pg.InvalidCatalogNameError,
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


def in_our_words(error: Exception) -> DionysusError | None:
    """The error of our tree that stands for a driver's or the system's; `None` for one that is neither's."""
    if isinstance(error, _PERSON_HAS_TO_ACT):
        return AccessRefused(_text(error), where=WHERE, hint="Check DATABASE_URL and the rights of its role.")
    if isinstance(error, _NOT_WHAT_WE_INSTALLED):
        return SchemaMismatch(_text(error), where=WHERE, hint="Run 'dionysus-sync-mcp init' to see what is missing.")
    if isinstance(error, (*_SERVER_IS_AWAY, OSError, TimeoutError)):
        return Unavailable(_text(error), where=WHERE, hint=CHECK)
    if isinstance(error, pg.ProgramLimitExceededError):
        return TooLarge(_text(error), where=WHERE)
    if isinstance(error, (pg.InterfaceError, pg.InternalClientError)) and not isinstance(error, ValueError):
        closed = "connection is closed" in str(error)
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
        self._address = address
        self._connect_timeout = connect_timeout
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._opening = anyio.Lock()

    @asynccontextmanager
    async def connection(self, timeout: float | None = None) -> "AsyncIterator[Connection]":
        """A connection out of the pool.

        Raises:
            Unavailable: After `timeout` seconds at most (default: the connect time-out).
        """
        limit = timeout or self._connect_timeout
        with our_errors():
            connection, pool = await self._connected(limit)
            try:
                yield connection
            finally:
                await self._release(pool, connection)

    @asynccontextmanager
    async def transaction(self, timeout: float | None = None) -> "AsyncIterator[Connection]":
        """A connection inside a transaction that is committed on leaving and undone by an exception."""
        async with self.connection(timeout) as connection, connection.transaction():
            yield connection

    async def health(self, timeout: float) -> Health:
        """One look; never raises one of our errors."""
        started = time.monotonic()
        try:
            with anyio.fail_after(timeout):
                async with self.connection(timeout) as connection:
                    version = await connection.fetchval(self.sql["server_version"])
        except TimeoutError:
            return Health("postgresql", error=f"no answer within {timeout:.1f} s", hint=CHECK)
        except DionysusError as error:
            return Health("postgresql", error=error.what, hint=error.hint)
        return Health("postgresql", version=version, latency_ms=round(1000 * (time.monotonic() - started), 1))

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
                    command_timeout=60,
                    server_settings=self._settings(),
                )
            return self._pool

    async def _connected(self, timeout: float) -> "tuple[Connection, asyncpg.Pool[asyncpg.Record]]":
        pool = await self._open()
        try:
            return await self._acquire(pool, timeout), pool
        except ValueError as error:
            # The driver quotes the part of the URL that it cannot read, which may be the password.
            raise AccessRefused("DATABASE_URL cannot be read", where=WHERE, hint=_ENCODE) from error

    async def _acquire(self, pool: "asyncpg.Pool[asyncpg.Record]", timeout: float) -> "Connection":
        try:
            with anyio.fail_after(timeout):
                return await pool.acquire(timeout=timeout)
        except TimeoutError:
            raise Unavailable(f"no connection within {timeout:g} s", where=WHERE, hint=CHECK) from None

    async def _release(self, pool: "asyncpg.Pool[asyncpg.Record]", connection: "Connection") -> None:
        """Gives a connection back; one that hangs (a half-open socket) is dropped after two seconds."""
        with anyio.CancelScope(shield=True):
            try:
                await pool.release(connection, timeout=2)
            except (TimeoutError, pg.InterfaceError, OSError):
                connection.terminate()

    def _settings(self) -> dict[str, str]:
        """Of each connection. A row's JSON, and so its hash, depends on the time zone and the forms of output."""
        return {
            "application_name": APPLICATION_NAME,
            "timezone": "UTC",
            "extra_float_digits": "1",
            "datestyle": "ISO",
            "intervalstyle": "iso_8601",
            "bytea_output": "hex",
            # Not the user's schema: whoever may create in it could put a function there that runs with our rights.
            "search_path": "pg_catalog, pg_temp",
            # Of ours, whatever the database or the role has been given.
            "statement_timeout": "0",
            "idle_in_transaction_session_timeout": "0",
            "idle_session_timeout": "0",
            "lock_timeout": "10s",
        }
