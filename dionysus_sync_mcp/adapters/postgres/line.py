"""A connection in use: each statement has a deadline, and a connection that hung once is not waited for again."""

import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import anyio
from asyncpg import exceptions as pg

from dionysus_sync_mcp.domain.errors import TimedOut, Unavailable

if TYPE_CHECKING:
    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    Driven = PoolConnectionProxy[asyncpg.Record]

WHERE = "PostgreSQL"
CHECK = "Check that PostgreSQL runs and that DATABASE_URL reaches it."
_SMALLER = "A smaller part of the work is tried next."
# A claim is idle while the remote store is written; halving a batch for a refused row is about this many writes.
IDLE_DEADLINES = 24

Result = TypeVar("Result")


@dataclass(slots=True)
class Pulse:
    """When any connection of a pool was last answered, on the clock of `time.monotonic`."""

    at: float = -math.inf


class Line:
    """One use of a pooled connection.

    The driver notices nothing of a peer that is lost: without a deadline a statement waits for ever, and after one the
    end of the transaction would wait as long again. So what ended a statement ends the statements after it at once.

    Attributes:
        seconds: Deadline of each statement.
        ended: What ended a statement before the server had answered: its deadline, or a cancellation.
        asked_at: When the last statement was sent, on the clock of `time.monotonic`.
    """

    def __init__(self, raw: "Driven", seconds: float, pulse: Pulse) -> None:
        self.raw = raw
        self.seconds = seconds
        self.asked_at = -math.inf
        self._pulse = pulse
        self.pid = raw.get_server_pid()
        self.ended: BaseException | None = None
        self._answered_at: float | None = None
        self._idle_seconds: float | None = None

    @contextmanager
    def patient(self, seconds: float) -> Iterator[None]:
        """For statements that read or write many rows, once another one has shown that the server is there."""
        usual, self.seconds = self.seconds, max(self.seconds, seconds)
        try:
            yield
        finally:
            self.seconds = usual

    def may_be_idle(self, seconds: float) -> str:
        """How long the transaction of a claim with this deadline may be idle, in ms, for the setting of PostgreSQL."""
        self._idle_seconds = IDLE_DEADLINES * seconds
        return str(round(1000 * self._idle_seconds))

    async def execute(self, query: str, *arguments: object) -> str:
        """Run one or, without arguments, several statements."""
        return await self._within(lambda: self.raw.execute(query, *arguments))

    async def fetch(self, query: str, *arguments: object) -> "list[asyncpg.Record]":
        """All rows."""
        return await self._within(lambda: self.raw.fetch(query, *arguments))

    async def fetchrow(self, query: str, *arguments: object) -> "asyncpg.Record | None":
        """The first row."""
        return await self._within(lambda: self.raw.fetchrow(query, *arguments))

    async def fetchval(self, query: str, *arguments: object) -> Any:  # noqa: ANN401 - what a statement returns
        """The first value of the first row."""
        return await self._within(lambda: self.raw.fetchval(query, *arguments))

    async def copy_records_to_table(
        self, table: str, *, records: Iterable[Sequence[object]], columns: Sequence[str]
    ) -> str:
        """Copy rows into a table."""
        return await self._within(lambda: self.raw.copy_records_to_table(table, records=records, columns=columns))

    @asynccontextmanager
    async def transaction(
        self, *, isolation: Literal["repeatable_read"] | None = None, readonly: bool = False
    ) -> AsyncIterator[None]:
        """A transaction, or within one a savepoint: kept on leaving, undone by an exception."""
        transaction = self.raw.transaction(isolation=isolation, readonly=readonly)
        await self._within(transaction.start)
        try:
            yield
        except BaseException:
            # The server undoes what a lost connection had begun, and what went wrong first is what counts.
            if not self.ended and not self.closed():
                with suppress(pg.InterfaceError, pg.PostgresConnectionError):
                    await self._within(transaction.rollback)
            raise
        await self._within(transaction.commit)

    def closed(self) -> bool:
        """Whether the connection has ended; the driver takes one that ends while it is used out of its hands."""
        try:
            return self.raw.is_closed()
        except pg.InterfaceError:
            return True

    def out_of_time(self) -> Unavailable:
        """The deadline in our words: of a server that has answered within this use, or of one that has not."""
        what = f"no answer within {self.seconds:g} s"
        if self._answered_at is None:
            return Unavailable(what, where=WHERE, hint=CHECK)
        return TimedOut(what, where=WHERE, hint=_SMALLER)

    async def _within(self, statement: Callable[[], Awaitable[Result]]) -> Result:
        if isinstance(self.ended, TimeoutError):
            raise self.ended
        if self.ended:
            # The cancellation is over: another task's, or a deadline's that was caught. It must not be raised again.
            raise Unavailable("the connection was given up when a statement was cancelled", where=WHERE)
        self._check_open()
        self.asked_at = time.monotonic()
        try:
            with anyio.fail_after(self.seconds):
                result = await statement()
        except (TimeoutError, anyio.get_cancelled_exc_class()) as error:
            self.ended = error
            raise
        self._answered_at = self._pulse.at = time.monotonic()
        return result

    def _check_open(self) -> None:
        """A transaction that the server has ended because it was idle for too long must not come back as long."""
        if not self.closed():
            return
        idle = time.monotonic() - self._answered_at if self._answered_at else 0.0
        if self._idle_seconds and idle > self._idle_seconds:
            raise TimedOut("the transaction was ended while the remote store was written", where=WHERE, hint=_SMALLER)
        raise Unavailable("the connection was closed", where=WHERE, hint=CHECK)
