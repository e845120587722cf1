"""One driver, made when it is first needed, and the two ways of using it: one value read, one transaction written."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import anyio
from neo4j import AsyncDriver, AsyncGraphDatabase, AsyncResult, AsyncTransaction, Query
from neo4j.exceptions import AuthError, ConnectionPoolError, Neo4jError, ServiceUnavailable, SessionExpired
from pydantic import SecretStr

from dionysus_sync_mcp.adapters.neo4j.errors import SMALLER, UNREADABLE, WHERE, our_errors
from dionysus_sync_mcp.adapters.statements import load_cypher
from dionysus_sync_mcp.domain.errors import AccessRefused, OutcomeUnknown, TimedOut

CLOSE_SECONDS = 1.0
# Saying good-bye to connections that may be dead.
RETIRE_SECONDS = 0.3
# A server locks a user out for 5 s after three wrong passwords: this process as a whole tries once in this time.
REFUSAL_SECONDS = 10.0
LOCKED_OUT = "Neo.ClientError.Security.AuthenticationRateLimit"
TRIES = 3
# Two stores at work on the same memories: sent again, the second finds what the first has done.
COLLISIONS = {
    "Neo.TransientError.Transaction.DeadlockDetected",
    "Neo.ClientError.Schema.ConstraintValidationFailed",
}

# The driver's, of a connection that broke. IncompleteCommit is a ServiceUnavailable.
_LOST = (ServiceUnavailable, SessionExpired, ConnectionPoolError, OSError)


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach the server. An empty password means that the server asks for none."""

    address: Callable[[], Awaitable[str]]
    user: str
    password: SecretStr
    database: str
    connect_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Call:
    """A named statement with its parameters.

    Attributes:
        check: Looks at the value before the next statement runs; what it raises undoes the transaction.
    """

    statement: str
    parameters: Mapping[str, Any]
    check: Callable[[Any], None] | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Lengths and deadlines, and the analyzer that a new full-text index gets."""

    dimensions: int
    analyzer: str
    look_seconds: float = 5.0
    read_seconds: float = 60.0
    write_seconds: float = 60.0


@dataclass(slots=True)
class _Pool:
    """A driver, how many use it now, and whether new uses get another one."""

    driver: AsyncDriver
    users: int = 0
    retired: bool = False


class Connection:
    """Runs named statements. Opens nothing until the first of them."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._pool: _Pool | None = None
        self._statements = load_cypher()
        self._refusal: tuple[AccessRefused, float] | None = None

    async def read(self, statement: str, seconds: float, **parameters: Any) -> Any:  # noqa: ANN401 - what a statement returns
        """The one value that a statement returns, `None` where it returns nothing.

        A connection that died in the pool is found out by using it, so one more try is made on a new one.
        """
        self._heed_refusal()
        with self._noting_refusal(), our_errors(), anyio.fail_after(seconds):
            try:
                return await self._run(statement, parameters)
            except (ServiceUnavailable, SessionExpired):
                return await self._run(statement, parameters)

    async def look(self, statements: Sequence[str], seconds: float) -> list[Any]:
        """The value of each statement, over a connection of its own: one of the pool may be dead without knowing."""
        self._heed_refusal()
        with self._noting_refusal(), our_errors(), anyio.fail_after(seconds):
            async with self._new_driver(await self._access.address()) as driver:
                return [await self._value_of(driver, statement, {}) for statement in statements]

    async def write(self, calls: Sequence[Call], seconds: float) -> list[Any]:
        """Run statements in one transaction; the one value of each, `None` where it returns nothing.

        Raises:
            OutcomeUnknown: The deadline passed, or the connection was lost, while the commit was under way.
            TimedOut: The deadline passed while the server was at work; nothing was written.
        """
        self._heed_refusal()
        for tries_left in reversed(range(TRIES)):
            transaction = _Transaction(self._using, self._access.database, self._statements)
            with self._noting_refusal(), our_errors():
                try:
                    return await transaction.run(calls, seconds)
                except Neo4jError as error:
                    if error.code not in COLLISIONS or not tries_left:
                        raise
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        """Close the driver, within a second, even while being cancelled."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await _close(pool.driver, CLOSE_SECONDS)

    async def _run(self, statement: str, parameters: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what a statement returns
        async with self._using() as driver:
            return await self._value_of(driver, statement, parameters)

    async def _value_of(self, driver: AsyncDriver, statement: str, parameters: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what a statement returns
        async with driver.session(database=self._access.database) as session:
            text = Query(self._statements[statement])
            return await _value(await session.run(text, dict(parameters)))

    @asynccontextmanager
    async def _using(self) -> AsyncIterator[AsyncDriver]:
        """The driver. One whose server hung or went away is not used again: its idle connections may be dead too.

        Others that use it at that time go on; the last of them closes it.
        """
        pool = await self._open()
        pool.users += 1
        try:
            yield pool.driver
        except (*_LOST, *UNREADABLE, anyio.get_cancelled_exc_class()):
            self._retire(pool)
            raise
        finally:
            pool.users -= 1
            if pool.retired and not pool.users:
                await _close(pool.driver, RETIRE_SECONDS)

    def _retire(self, pool: _Pool) -> None:
        pool.retired = True
        if self._pool is pool:
            self._pool = None

    async def _open(self) -> _Pool:
        uri = await self._access.address() if self._pool is None else ""
        if self._pool is None:
            self._pool = _Pool(self._new_driver(uri))
        return self._pool

    def _heed_refusal(self) -> None:
        if self._refusal and time.monotonic() < self._refusal[1]:
            refusal = self._refusal[0]
            raise AccessRefused(refusal.what, where=refusal.where, hint=refusal.hint)

    @contextmanager
    def _noting_refusal(self) -> Iterator[None]:
        try:
            yield
        except AccessRefused as error:
            if _is_about_the_login(error.__cause__):
                self._refusal = error, time.monotonic() + REFUSAL_SECONDS
            raise
        self._refusal = None

    def _new_driver(self, uri: str) -> AsyncDriver:
        password = self._access.password.get_secret_value()
        with our_errors():
            try:
                return AsyncGraphDatabase.driver(
                    uri,
                    auth=(self._access.user, password) if password else None,
                    max_connection_pool_size=8,
                    max_connection_lifetime=900,
                    liveness_check_timeout=30,
                    connection_timeout=self._access.connect_seconds,
                    connection_acquisition_timeout=2 * self._access.connect_seconds,
                    notifications_min_severity="OFF",
                    telemetry_disabled=True,
                    user_agent="dionysus-sync-mcp",
                )
            except ValueError as error:
                raise AccessRefused("the address cannot be used", where=WHERE, hint="Check NEO4J_URI.") from error


class Part:
    """What the parts of the remote store share."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits


class _Transaction:
    """One attempt at a transaction."""

    def __init__(
        self,
        using: Callable[[], AbstractAsyncContextManager[AsyncDriver]],
        database: str,
        statements: Mapping[str, str],
    ) -> None:
        self._using = using
        self._database = database
        self._statements = statements
        self._begun = False
        self._committing = False

    async def run(self, calls: Sequence[Call], seconds: float) -> list[Any]:
        try:
            with anyio.fail_after(seconds):
                return await self._all(calls, seconds)
        except TimeoutError as error:
            if self._committing:
                raise OutcomeUnknown("no answer to a commit within the deadline", where=WHERE) from error
            if self._begun:
                raise TimedOut(f"not done within {seconds:g} s", where=WHERE, hint=SMALLER) from error
            raise

    async def _all(self, calls: Sequence[Call], seconds: float) -> list[Any]:
        async with (
            self._using() as driver,
            driver.session(database=self._database) as session,
            await session.begin_transaction(timeout=seconds) as transaction,
        ):
            self._begun = True
            values = [await self._one(transaction, call) for call in calls]
            self._committing = True
            await transaction.commit()
            return values

    async def _one(self, transaction: AsyncTransaction, call: Call) -> Any:  # noqa: ANN401 - what a statement returns
        text = self._statements[call.statement]
        value = await _value(await transaction.run(text, dict(call.parameters)))
        if call.check:
            call.check(value)
        return value


def _is_about_the_login(error: BaseException | None) -> bool:
    return isinstance(error, AuthError) or (isinstance(error, Neo4jError) and error.code == LOCKED_OUT)


async def _close(driver: AsyncDriver, seconds: float) -> None:
    with anyio.move_on_after(seconds, shield=True):
        await driver.close()


async def _value(result: AsyncResult) -> Any:  # noqa: ANN401 - what a statement returns
    values = await result.value()
    return values[0] if values else None
