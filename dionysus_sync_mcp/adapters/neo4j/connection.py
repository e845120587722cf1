"""One driver, made when it is first needed, and the two ways of using it: one value read, one transaction written."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
from neo4j import AsyncDriver, AsyncGraphDatabase, AsyncResult, AsyncTransaction, Query
from neo4j.exceptions import Neo4jError, ServiceUnavailable, SessionExpired
from pydantic import SecretStr

from dionysus_sync_mcp.adapters.neo4j.errors import WHERE, our_errors
from dionysus_sync_mcp.adapters.statements import load_cypher
from dionysus_sync_mcp.domain.errors import AccessRefused, OutcomeUnknown

CLOSE_SECONDS = 1.0
TRIES = 3
# Two stores at work on the same memories: sent again, the second finds what the first has done.
COLLISIONS = {
    "Neo.TransientError.Transaction.DeadlockDetected",
    "Neo.ClientError.Schema.ConstraintValidationFailed",
}


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
    read_seconds: float = 30.0
    write_seconds: float = 60.0


class Connection:
    """Runs named statements. Opens nothing until the first of them."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._driver: AsyncDriver | None = None
        self._statements = load_cypher()

    async def read(self, statement: str, seconds: float, **parameters: Any) -> Any:  # noqa: ANN401 - what a statement returns
        """The one value that a statement returns, `None` where it returns nothing.

        A connection that died in the pool is found out by using it, so one more try is made on a new one.
        """
        with our_errors():
            with anyio.fail_after(seconds):
                try:
                    return await self._run(statement, parameters)
                except (ServiceUnavailable, SessionExpired):
                    return await self._run(statement, parameters)

    async def write(self, calls: Sequence[Call], seconds: float) -> list[Any]:
        """Run statements in one transaction; the one value of each, `None` where it returns nothing.

        Raises:
            OutcomeUnknown: The deadline passed, or the connection was lost, while the commit was under way.
        """
        for tries_left in reversed(range(TRIES)):
            transaction = _Transaction(self._open, self._access.database, self._statements)
            with our_errors():
                try:
                    return await transaction.run(calls, seconds)
                except Neo4jError as error:
                    if error.code not in COLLISIONS or not tries_left:
                        raise
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        """Close the driver, within a second, even while being cancelled."""
        driver, self._driver = self._driver, None
        if driver is None:
            return
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await driver.close()

    async def _run(self, statement: str, parameters: Mapping[str, Any]) -> Any:  # noqa: ANN401 - what a statement returns
        driver = await self._open()
        async with driver.session(database=self._access.database) as session:
            text = Query(self._statements[statement])
            return await _value(await session.run(text, dict(parameters)))

    async def _open(self) -> AsyncDriver:
        uri = await self._access.address() if self._driver is None else ""
        if self._driver is None:
            self._driver = self._new_driver(uri)
        return self._driver

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
        self, driver: Callable[[], Awaitable[AsyncDriver]], database: str, statements: Mapping[str, str]
    ) -> None:
        self._driver = driver
        self._database = database
        self._statements = statements
        self._committing = False

    async def run(self, calls: Sequence[Call], seconds: float) -> list[Any]:
        try:
            with anyio.fail_after(seconds):
                return await self._all(calls, seconds)
        except TimeoutError as error:
            if not self._committing:
                raise
            raise OutcomeUnknown("no answer to a commit within the deadline", where=WHERE) from error

    async def _all(self, calls: Sequence[Call], seconds: float) -> list[Any]:
        driver = await self._driver()
        async with (
            driver.session(database=self._database) as session,
            await session.begin_transaction(timeout=seconds) as transaction,
        ):
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


async def _value(result: AsyncResult) -> Any:  # noqa: ANN401 - what a statement returns
    values = await result.value()
    return values[0] if values else None
