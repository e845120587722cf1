"""A million queue entries drained by the real worker: its memory, its pace, the claim's plan and the status's time."""

import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import anyio

from dionysus_sync_mcp.adapters.statements import load_sql
from dionysus_sync_mcp.settings import Settings
from tests.benchmarks.program import (
    Memory,
    Pushes,
    drained,
    fill,
    now,
    pushes_since,
    queue_held,
    server,
    status,
    warm_up,
    worker,
)
from tests.benchmarks.results import Figure, Goal, Section
from tests.benchmarks.stores import Stores, bare_postgres, one_value
from tests.services import neo4j
from tests.services.waiting import until

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

FEW = 10_000
MANY = 1_000_000
FEW_ROUNDS = 3
WARM_UPS = 1
# A drain that is slower than this is stopped, and its rate is of what was drained: a run must end.
AT_MOST = 480.0
CLAIMS = 5
STATUSES = 5
LENGTH = "SELECT count(*) FROM dionysus_sync.sync_queue WHERE parked_at IS NULL"
SCANNED = "SELECT coalesce(seq_tup_read, 0) FROM pg_stat_user_tables WHERE relid = 'dionysus_sync.sync_queue'::regclass"
PUSHED = "SELECT coalesce(sum(record_count), 0) FROM dionysus_sync.sync_events WHERE timestamp > $1"
MEMORIES = "RETURN COUNT { MATCH (:Memory) }"
ABOUT = f"""`dionysus-sync-mcp worker` runs in its own process with its default settings while {MANY:,} rows of 60
words are written through the capture; then it drains them, history and links included. Rates are of the program's own
audit, from the end of the first push to the end of the last one. Baseline: {FEW:,} rows drained in the same way, median
of {FEW_ROUNDS} runs after a warm-up. Memory is the most that the process and its children held resident, looked at five
times a second. The claim is the program's own statement, asked by another connection while the worker is held back:
median of {CLAIMS}; baseline: before the drain. The status is `get_sync_status` of a second, real MCP server: median of
{STATUSES}; baseline: an empty queue."""


@dataclass(slots=True)
class _Drain:
    """What was found of one drain.

    Attributes:
        claims: Seconds that a claim takes, where it was looked at: the first one there, and the median.
        statuses: Seconds that a status takes with nothing queued, and with everything queued.
        indexed: Of each look, whether the claim reads the queue by an index only.
        scanned: Rows of the queue that anybody read by sequential scans, by share of the queue's length.
    """

    count: int
    memory: Memory = field(default_factory=Memory)
    claims: list[tuple[float, float]] = field(default_factory=list)
    statuses: list[float] = field(default_factory=list)
    indexed: list[bool] = field(default_factory=list)
    scanned: float = 0.0
    paused: float = 0.0
    left: int = 0
    pushes: Pushes | None = None

    @property
    def rate(self) -> float:
        """Rows a second over the whole drain."""
        return self.pushes.rate if self.pushes else 0.0


async def benchmark(stores: Stores, many: int = MANY) -> Section:
    """Megabytes, rows a second, milliseconds."""
    few = []
    async with stores.throwaway_neo4j() as uri:
        there = replace(stores, neo4j_uri=uri)
        for number in range(WARM_UPS + FEW_ROUNDS):
            stores.say(f"backlog: {FEW:,} rows, run {number + 1} of {WARM_UPS + FEW_ROUNDS}")
            few.append(await _drained(there, _Drain(FEW)))
        stores.say(f"backlog: {many:,} rows")
        large = await _drained(there, _Drain(many), look=True)
    return Section("backlog", ABOUT, _figures(large, few[WARM_UPS:]), _notes(large))


def _figures(large: _Drain, few: Sequence[_Drain]) -> list[Figure]:
    (_, head), (_, middle) = large.claims
    empty, full = large.statuses
    few_memory = statistics.median(drain.memory.peak for drain in few)
    few_rate = statistics.median(drain.rate for drain in few)
    size = f"{large.count:,} entries"
    return [
        Figure(f"memory of the worker, {size}", large.memory.peak, "MB", few_memory, Goal("value", "<", 200)),
        Figure(f"drain of {size}", large.rate, "rows/s", few_rate, Goal("ratio", ">=", 0.8)),
        Figure("claim plan is an index scan", float(all(large.indexed)), "of 1", None, Goal("value", ">=", 1)),
        Figure("claim after half of the drain", 1000 * middle, "ms", 1000 * head),
        Figure(f"status, {size}", 1000 * full, "ms", 1000 * empty, Goal("value", "<", 1500)),
    ]


def _notes(drain: _Drain) -> list[str]:
    pushes = drain.pushes
    if pushes is None:
        return []
    tenth = max(1, len(pushes.gaps) // 10)
    first, last = (tenth / sum(gaps) for gaps in (pushes.gaps[:tenth], pushes.gaps[-tenth:]))
    notes = [
        f"The first tenth went at {first:.2f} pushes a second, the last at {last:.2f}; the longest time between two "
        f"pushes was {1000 * max(pushes.gaps):,.0f} ms (held back once for the look at the claim: "
        f"{1000 * drain.paused:,.0f} ms).",
        f"The first claim after half of the drain, which finds the deleted entries before it, took "
        f"{1000 * drain.claims[1][0]:.1f} ms, the first at the head {1000 * drain.claims[0][0]:.1f} ms.",
        f"During the drain the queue was read whole {drain.scanned:.1f} times, by everybody together.",
    ]
    if drain.left:
        notes.append(f"The drain was stopped after {AT_MOST:.0f} s with {drain.left:,} entries left.")
    return notes


async def _drained(stores: Stores, drain: _Drain, *, look: bool = False) -> _Drain:
    await neo4j.empty(stores.neo4j_uri)
    async with (
        stores.local() as url,
        bare_postgres(url) as connection,
        worker(url, stores.neo4j_uri) as process,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(drain.memory.watch, process)
        await warm_up(url)
        async with queue_held(url):
            if look:
                drain.statuses.append(await _status_seconds(stores, url, 0))
            await fill(url, drain.count)
            if look:
                drain.statuses.append(await _status_seconds(stores, url, drain.count))
                await _look_at_claim(connection, drain)
            began, scanned = await now(connection), await connection.fetchval(SCANNED)
        await _wait(stores, url, connection, drain, began)
        drain.pushes = await pushes_since(connection, began, drain.paused)
        drain.scanned = (await connection.fetchval(SCANNED) - scanned) / drain.count
        await _check(stores, drain)
        tasks.cancel_scope.cancel()
    return drain


async def _wait(stores: Stores, url: str, connection: "Connection", drain: _Drain, began: datetime) -> None:
    """Until all is drained, or for too long; half-way through a drain that is looked at, the claim is looked at."""

    async def half_done() -> bool:
        return bool(await connection.fetchval(PUSHED, began) >= drain.count / 2)

    with suppress(TimeoutError), anyio.fail_after(AT_MOST):
        if drain.claims:
            await until(half_done, what="half is drained", seconds=AT_MOST)
            stores.say("backlog: half is drained")
            async with _pause(url, drain):
                await _look_at_claim(connection, drain)
        await until(lambda: drained(connection), what="all is drained", seconds=AT_MOST)
    drain.left = await connection.fetchval(LENGTH)


@asynccontextmanager
async def _pause(url: str, drain: _Drain) -> AsyncIterator[None]:
    """The worker waits meanwhile."""
    async with queue_held(url):
        started = time.perf_counter()
        yield
    drain.paused += time.perf_counter() - started


async def _look_at_claim(connection: "Connection", drain: _Drain) -> None:
    limits = [Settings.model_fields[name].default for name in ("dionysus_batch_rows", "dionysus_batch_bytes")]
    claim = load_sql()["claim_entries"]
    taken = []
    for _ in range(1 + CLAIMS):
        started = time.perf_counter()
        await connection.fetch(claim, *limits)
        taken.append(time.perf_counter() - started)
    drain.claims.append((taken[0], statistics.median(taken[1:])))
    plan = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {claim}", *limits))
    drain.indexed.append(reads_by_index(plan[0]["Plan"], "sync_queue"))


def reads_by_index(plan: Mapping[str, Any], table: str) -> bool:
    """Whether every scan of the table in this plan (of EXPLAIN as JSON) is one of an index, and there is one."""
    kinds = {node["Node Type"] for node in _nodes(plan) if node.get("Relation Name") == table}
    return bool(kinds) and kinds <= {"Index Scan", "Index Only Scan"}


def _nodes(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


async def _status_seconds(stores: Stores, url: str, queued: int) -> float:
    taken = []
    with tempfile.TemporaryDirectory(prefix="dionysus-bench-") as folder:
        async with server(url, stores.neo4j_uri, folder) as wire:
            for number in range(1 + STATUSES):
                started = time.perf_counter()
                answer = await status(wire, 1 + number)
                taken.append(time.perf_counter() - started)
                _check_status(answer, queued)
    return statistics.median(taken[1:])


def _check_status(answer: Mapping[str, Any], queued: int) -> None:
    """A status that gave up on a store is fast, and worth nothing."""
    if not (answer["local"] and answer["remote"]) or answer["local"]["queue"]["queued"] < queued:
        raise AssertionError(f"the status does not know it all: {answer}")


async def _check(stores: Stores, drain: _Drain) -> None:
    async with stores.bare_neo4j() as driver:
        (there,) = await one_value(driver, MEMORIES)
    if there < drain.count - drain.left:
        raise AssertionError(f"{there} memories are in the remote store, {drain.count} were written")
