"""The real program in processes of its own, as people run it, and what it did, as its own audit says."""

import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from subprocess import DEVNULL
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import psutil
from anyio.abc import Process

from dionysus_sync_mcp.adapters.statements import load_sql
from tests.benchmarks.rows import rows
from tests.benchmarks.stores import bare_postgres, copy_rows
from tests.server.wire import REAL, Wire, server_process
from tests.services import postgres
from tests.services.local_store import NOBODY
from tests.services.waiting import until

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

MEGABYTE = 1024**2
SAMPLE_EVERY = 0.2
READY_WITHIN = 60.0
SOURCE_ROWS = 10_000
COPIES_IN_A_STATEMENT = 10
STAGING = "CREATE TABLE staging AS SELECT * FROM memories WHERE false"
# Ids as random as those that a client makes, so that indexes are hit everywhere; the same in every run.
COPIES = """
INSERT INTO memories
    (id, content, memory_type, importance, source_project, session_id, tags, created_at, updated_at)
SELECT md5(id::text || copy)::uuid, content, memory_type, importance, source_project, session_id, tags,
       created_at + copy * interval '1 day', updated_at + copy * interval '1 day'
FROM staging CROSS JOIN generate_series($1::integer, $2::integer) AS copy
"""
PUSHES = """
SELECT timestamp, record_count FROM dionysus_sync.sync_events
WHERE direction = 'local_to_remote' AND result = 'success' AND timestamp > $1 ORDER BY timestamp
"""
WAIT_FOR_LOCK = "SELECT pg_advisory_xact_lock($1)"
NOW = "SELECT clock_timestamp()"


class Pushes(NamedTuple):
    """What was pushed.

    Attributes:
        seconds: From the end of the first push to the end of the last one, without pauses.
        rows: Queue entries that were acknowledged in that time: not those of the first push.
        gaps: Seconds between two pushes, each.
    """

    seconds: float
    rows: int
    gaps: Sequence[float]

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds


@dataclass(slots=True)
class Memory:
    """The most that a process and its children held, in megabytes."""

    peak: float = 0.0

    async def watch(self, process: Process) -> None:
        """Looks again and again, until cancelled or until the process is gone."""
        root = psutil.Process(process.pid)
        while True:
            try:
                held = sum(one.memory_info().rss for one in (root, *root.children(recursive=True)))
            except psutil.NoSuchProcess:
                return
            self.peak = max(self.peak, held / MEGABYTE)
            await anyio.sleep(SAMPLE_EVERY)


def settings(database_url: str, neo4j_uri: str) -> dict[str, str]:
    """The program's environment: both stores, and no Ollama."""
    return {"DATABASE_URL": database_url, "NEO4J_URI": neo4j_uri, "OLLAMA_URL": NOBODY}


@asynccontextmanager
async def worker(database_url: str, neo4j_uri: str) -> AsyncIterator[Process]:
    """The program's worker with its default settings, while the context lasts; it may be killed meanwhile."""
    async with await anyio.open_process(
        [*REAL, "worker"],
        env={**os.environ, **settings(database_url, neo4j_uri)},
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=DEVNULL,
    ) as process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@asynccontextmanager
async def server(database_url: str, neo4j_uri: str, folder: str) -> AsyncIterator[Wire]:
    """The MCP server of a project in that folder, greeted; it drains too."""
    given = {**settings(database_url, neo4j_uri), "CLAUDE_PROJECT_DIR": folder}
    async with server_process(*REAL, env=given) as wire:
        await wire.greet()
        yield wire


async def status(wire: Wire, number: int) -> dict[str, Any]:
    """The structured answer of `get_sync_status`."""
    await wire.call(number, "get_sync_status")
    answer = await wire.receive()
    content = answer["result"]["structuredContent"]
    if not isinstance(content, dict):
        raise TypeError(f"no structured answer: {answer}")
    return content


@asynccontextmanager
async def queue_held(database_url: str) -> AsyncIterator[None]:
    """Nobody pushes meanwhile: the lock of those who push is waited for, where the program only tries, and kept."""
    async with bare_postgres(database_url) as connection, connection.transaction():
        await connection.execute(WAIT_FOR_LOCK, push_lock())
        yield


def push_lock() -> int:
    """The key of the advisory lock that whoever pushes holds."""
    key = re.search(r"pg_try_advisory_xact_lock\((\d+)\)", load_sql()["try_push_lock"])
    if key is None:
        raise AssertionError("no advisory lock is taken to push")
    return int(key[1])


async def fill(database_url: str, count: int) -> None:
    """Write memories in statements of 100,000 rows, through the capture; `count` is a multiple of 10,000."""
    await postgres.execute(database_url, STAGING)
    await copy_rows(database_url, "staging", rows(SOURCE_ROWS))
    async with bare_postgres(database_url) as connection:
        copies = count // SOURCE_ROWS
        for first in range(1, copies + 1, COPIES_IN_A_STATEMENT):
            await connection.execute(COPIES, first, min(first + COPIES_IN_A_STATEMENT - 1, copies))


async def drained(connection: "Connection") -> bool:
    """Whether nothing waits any more."""
    return not await connection.fetchval(load_sql()["anything_queued"])


async def warm_up(database_url: str, count: int = 100) -> None:
    """Wait until those who push have pushed rows: they are connected then, and know both stores' schemas."""
    await copy_rows(database_url, "memories", rows(count, seed=2))
    async with bare_postgres(database_url) as connection:
        await until(lambda: drained(connection), what="the first rows are pushed", seconds=READY_WITHIN)


async def now(connection: "Connection") -> datetime:
    """The time of the local store's server, which stamps the audit."""
    moment = await connection.fetchval(NOW)
    if not isinstance(moment, datetime):
        raise TypeError("no time")
    return moment


async def pushes_since(connection: "Connection", moment: datetime, paused: float = 0.0) -> Pushes:
    """What the audit says was pushed since then.

    Args:
        paused: Seconds in which nobody could push.
    """
    return pace([(r["timestamp"], r["record_count"]) for r in await connection.fetch(PUSHES, moment)], paused)


def pace(events: Sequence[tuple[datetime, int]], paused: float) -> Pushes:
    """What pushes came to, given when each ended and how many entries it acknowledged."""
    if len(events) < 2:
        raise AssertionError(f"{len(events)} pushes are too few to tell a rate")
    gaps = [(later[0] - earlier[0]).total_seconds() for earlier, later in pairwise(events)]
    return Pushes(sum(gaps) - paused, sum(count for _, count in events[1:]), gaps)
