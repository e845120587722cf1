"""What the scenarios of outages share: a user who goes on writing, and what the program says of it meanwhile."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio

from dionysus_sync_mcp.engine.reports import OutageReport, StatusReport
from dionysus_sync_mcp.engine.tasks import first_error
from tests.faults.oracle import AWAY, Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Failpoint, Program, Stores, mcp_server
from tests.integration.stores import Client, uid
from tests.services.waiting import until

# For what takes an instant on a machine with nothing else to do, and for what a healthy server does at once.
SOON = 60.0
WRITE_SECONDS = 10.0
# Issue: 5 s; on a busy machine, looks at both stores included.
WHOLE_AGAIN = 15.0
BETWEEN_WRITES = 0.05
LONGEST_WAIT = timedelta(seconds=61)
QUEUE = "SELECT seq FROM dionysus_sync.sync_queue WHERE parked_at IS NULL ORDER BY seq"


class Writer:
    """A user who goes on writing: inserts, and now and then an update or a delete.

    Args:
        may_fail: Whether the server that takes the writes is the one that is away.
        length: Of each content, at least.

    Attributes:
        acknowledged: Writes that succeeded so far.
        refused: What the others met with.
        slowest: Seconds that the slowest acknowledged write took.
    """

    def __init__(self, oracle: Oracle, *, pause: float, may_fail: bool, length: int) -> None:
        self.acknowledged = 0
        self.refused: list[Exception] = []
        self.slowest = 0.0
        self._oracle = oracle
        self._pause = pause
        self._may_fail = may_fail
        self._length = length
        self._number = oracle.rows_written
        self._ending = False

    async def run(self) -> None:
        """Write until told to end."""
        while not self._ending:
            await self._write_once()
            await anyio.sleep(self._pause)

    def end(self) -> None:
        """The write that is under way is the last one."""
        self._ending = True

    async def wrote(self, count: int) -> None:
        """Wait until so many further writes are acknowledged."""
        wanted = self.acknowledged + count

        async def enough() -> bool:
            return self.acknowledged >= wanted

        await until(enough, what=f"{count} writes are acknowledged", seconds=SOON)

    async def _write_once(self) -> None:
        self._number += 1
        started = time.monotonic()
        try:
            await self._write(self._number)
        except AWAY as error:
            if not self._may_fail:
                raise
            self.refused.append(error)
            return
        self.acknowledged += 1
        self.slowest = max(self.slowest, time.monotonic() - started)

    async def _write(self, number: int) -> None:
        live = self._oracle.live
        content = f"written {number}: ".ljust(self._length, "x")
        if number % 5 == 3 and live:
            await self._oracle.update(live[-1], content)
        elif number % 7 == 5 and live:
            await self._oracle.delete(live[-1])
        else:
            await self._oracle.insert(uid(number), content)


@asynccontextmanager
async def writing(
    oracle: Oracle, *, pause: float = BETWEEN_WRITES, may_fail: bool = False, length: int = 0
) -> AsyncIterator[Writer]:
    """A user who writes until the end of the context; each write succeeds and is quick unless it may fail.

    Nothing else may use the oracle meanwhile.
    """
    writer = Writer(oracle, pause=pause, may_fail=may_fail, length=length)
    with first_error():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(writer.run)
            yield writer
            writer.end()
    assert may_fail or writer.slowest < WRITE_SECONDS


class Watched:
    """An MCP server that is asked for its status."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.said: list[str] = []
        self._asked = 0

    async def status(self) -> StatusReport:
        """What `get_sync_status` answers; kept in `said`, too."""
        self._asked += 1
        await self.program.wire.call(self._asked, "get_sync_status")
        answer = await self.program.wire.receive()
        while answer.get("id") != self._asked:
            answer = await self.program.wire.receive()
        self.said.append(str(answer))
        return StatusReport.model_validate(answer["result"]["structuredContent"])

    async def until_away(self, service: str, *, seconds: float = SOON) -> OutageReport:
        """Wait until the status says of a service since when it is away, why, and when it is tried again."""
        found: list[OutageReport] = []

        async def away() -> bool:
            worker = (await self.status()).worker
            found.extend(o for o in (worker.outages if worker else []) if o.service == service)
            return bool(found)

        await until(away, what=f"the status says that {service} is away", seconds=seconds)
        outage, now = found[0], datetime.now(UTC)
        assert outage.since <= now
        assert outage.error
        assert outage.next_try_at is not None
        assert outage.next_try_at - now < LONGEST_WAIT
        return outage

    async def until_back(self, service: str) -> None:
        """Wait until the status does not say any more that a service is away."""

        async def back() -> bool:
            worker = (await self.status()).worker
            return worker is not None and all(outage.service != service for outage in worker.outages)

        await until(back, what=f"the status does not call {service} away", seconds=SOON)

    async def until_embedded(self, live: int) -> None:
        """Wait until there are so many memories at least, and each of them has its vector."""

        async def embedded() -> bool:
            remote = (await self.status()).remote
            return remote is not None and remote.live >= live and remote.without_vector == 0

        await until(embedded, what=f"{live} memories have vectors", seconds=2 * SOON)


@asynccontextmanager
async def watched_server(stores: Stores, *, failpoint: Failpoint | None = None) -> AsyncIterator[Watched]:
    """The MCP server over stdio, which must still run at the end."""
    async with mcp_server(stores, failpoint=failpoint) as program:
        yield Watched(program)
        assert program.running, program.log


async def whole_again(oracle: Oracle, scenario: Scenario, *, engaged: bool, seconds: float = 2 * SOON) -> float:
    """Compare until everything is whole, and note it; the seconds that it took, counted from now."""
    compared, took = await oracle.until_whole(seconds)
    scenario.note(engaged=engaged, compared=compared, seconds=took)
    return took


async def drained_in_order(client: Client, seconds: float = 2 * SOON) -> int:
    """Wait until all that is queued now is gone; what is left of it is always its end. How many entries there were."""
    queued = [row["seq"] for row in await client.fetch(QUEUE)]

    async def gone() -> bool:
        left = {row["seq"] for row in await client.fetch(QUEUE)}.intersection(queued)
        assert sorted(left) == queued[len(queued) - len(left) :], "a later entry went before an earlier one"
        return not left

    await until(gone, what=f"{len(queued)} entries are pushed", seconds=seconds)
    return len(queued)
