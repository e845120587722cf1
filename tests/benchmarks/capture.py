"""What capture and detection add to the user's statements, beside the same ones on a twin of the table without them."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.benchmarks.results import Figure, Goal, Section
from tests.benchmarks.rows import Row, rows
from tests.benchmarks.stores import INSERT, TWIN, Stores, bare_postgres, copy_rows, percentile, seconds
from tests.services import postgres

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

ROWS = 2000
WARM_UPS = 200
BULK_ROWS = 10_000
BULK_ROUNDS = 5
BULK_WARM_UPS = 1
STAGING = "CREATE TABLE staging (LIKE memories INCLUDING DEFAULTS)"
BULK = {
    "INSERT": "INSERT INTO memories SELECT * FROM public.staging",
    "UPDATE": "UPDATE memories SET content = content || ' more'",
    "DELETE": "DELETE FROM memories",
}
ABOUT = f"""Each statement is its own transaction, committed to the disk. One row: {ROWS:,} times each after {WARM_UPS}
warm-ups, every other one on the twin. {BULK_ROWS:,} rows of 60 words in one statement: medians of {BULK_ROUNDS}
alternating runs after a warm-up. Baseline: a twin of the table, with the same columns, defaults and indexes, without
triggers. What the detection of destruction notes of a statement is written by the capture, and is in its time. Nothing
drains the queue meanwhile."""


class _Statement(NamedTuple):
    name: str
    text: str
    arguments: Callable[[Row], Sequence[Any]]


STATEMENTS = (
    _Statement("INSERT", INSERT, tuple),
    _Statement("UPDATE", "UPDATE memories SET content = content || ' more' WHERE id = $1", lambda row: (row.id,)),
    _Statement("DELETE", "DELETE FROM memories WHERE id = $1", lambda row: (row.id,)),
)


async def benchmark(stores: Stores) -> Section:
    """Milliseconds."""
    async with stores.local() as url:
        await postgres.execute(url, TWIN)
        await postgres.execute(url, STAGING)
        await copy_rows(url, "staging", rows(BULK_ROWS, seed=2))
        async with bare_postgres(url) as captured, bare_postgres(url, "twin") as twin:
            stores.say("capture: one row a statement")
            single = [figure for one in STATEMENTS for figure in await _single(one, captured, twin)]
            stores.say(f"capture: {BULK_ROWS:,} rows a statement")
            return Section("capture", ABOUT, [*single, *await _bulk(captured, twin)])


async def _single(statement: _Statement, captured: "Connection", twin: "Connection") -> list[Figure]:
    pair = [await connection.prepare(statement.text) for connection in (captured, twin)]
    taken: list[list[float]] = [[], []]
    for row, side in itertools.product(rows(WARM_UPS + ROWS), (0, 1)):
        started = time.perf_counter()
        await pair[side].fetch(*statement.arguments(row))
        taken[side].append(1000 * (time.perf_counter() - started))
    ours, plain = (times[WARM_UPS:] for times in taken)
    name, less_than_a_millisecond = f"{statement.name} of 1 row", Goal("difference", "<", 1)
    return [
        Figure(f"{name}, median", percentile(ours, 50), "ms", percentile(plain, 50)),
        Figure(f"{name}, p99", percentile(ours, 99), "ms", percentile(plain, 99), less_than_a_millisecond),
    ]


async def _bulk(captured: "Connection", twin: "Connection") -> list[Figure]:
    taken: dict[tuple[str, Connection], list[float]] = {}
    for _, name, connection in itertools.product(range(BULK_WARM_UPS + BULK_ROUNDS), BULK, (captured, twin)):
        milliseconds = 1000 * await seconds(partial(connection.execute, BULK[name]))
        taken.setdefault((name, connection), []).append(milliseconds)
    medians = {key: statistics.median(values[BULK_WARM_UPS:]) for key, values in taken.items()}
    return [
        Figure(f"{name} of {BULK_ROWS:,} rows", medians[name, captured], "ms", medians[name, twin]) for name in BULK
    ]
