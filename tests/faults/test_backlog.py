"""A long queue costs no more memory than a short one, and a queue that cannot be vacuumed goes on at its pace."""

import json
import time
from collections.abc import Iterator
from typing import Any

import anyio
import pytest

from dionysus_sync_mcp.adapters.postgres.database import for_schema
from dionysus_sync_mcp.adapters.statements import load_sql
from tests.faults.oracle import Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Program, Stores, drained, waiting, worker
from tests.integration.stores import Client, plain_client, uid

LONG = 900.0
MOST_MEGABYTES = 200
LOOK_SECONDS = 0.2
BULK = (
    "INSERT INTO memories (id, content)"
    " SELECT lpad(to_hex(i), 32, '0')::uuid, 'row ' || i FROM generate_series(1, $1) AS i"
)
CHURNED = 500
CHURN_SECONDS = 180.0
WINDOW_SECONDS = 30.0
CHURN = "UPDATE memories SET content = $1 || id::text"
DEAD = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relid = 'dionysus_sync.sync_queue'::regclass"
VACUUM = "VACUUM dionysus_sync.sync_queue"


@pytest.mark.scenario(40, "a backlog of many entries, drained by the real worker within 200 MB (1,000,000: make bench)")
@pytest.mark.promise("P1")
@pytest.mark.promise("P10")
@pytest.mark.parametrize("rows", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_40_a_backlog(stores: Stores, oracle: Oracle, scenario: Scenario, rows: int) -> None:
    """The claim is an index scan however long the queue is; the worker's memory is bounded; all of it arrives."""
    async with plain_client(stores.database_url) as client:
        await client.execute(BULK, rows, timeout=LONG)
        for number in range(1, rows + 1):
            oracle.expect(uid(number), f"row {number}")
        engaged = await waiting(stores.database_url) == (rows, 0)
        assert "Seq Scan" not in await scans_of_a_claim(client)
        begun = time.monotonic()
        async with worker(stores) as program:
            peak = await most_memory_until_drained(program, stores.database_url)
        seconds = time.monotonic() - begun
        assert peak < MOST_MEGABYTES, f"{peak:.0f} MB for {rows} entries"
    compared, _ = await oracle.until_whole(LONG)
    scenario.note(engaged=engaged, compared=compared, seconds=seconds)


async def scans_of_a_claim(client: Client) -> set[str]:
    """How the program's own claim reads the queue."""
    statement = for_schema(load_sql()["claim_entries"], "public")
    (plan,) = json.loads(await client.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", 1000, 4_000_000))
    found = {node["Node Type"] for node in nodes(plan["Plan"]) if node.get("Relation Name") == "sync_queue"}
    assert any("Index" in name for name in found)
    return found


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every node of a plan."""
    yield plan
    for part in plan.get("Plans", []):
        yield from nodes(part)


async def most_memory_until_drained(program: Program, url: str) -> float:
    """The most that the process held resident, in MB, looked at several times a second."""
    peak = 0

    async def look() -> None:
        nonlocal peak
        while True:
            peak = max(peak, program.memory)
            await anyio.sleep(LOOK_SECONDS)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(look)
        await drained(url, LONG)
        tasks.cancel_scope.cancel()
    return peak / 1e6


@pytest.mark.slow
@pytest.mark.scenario(41, "churn for 3 minutes (not an hour) while an idle transaction keeps vacuum from the queue")
@pytest.mark.promise("P1")
async def test_41_churn_that_cannot_be_vacuumed(stores: Stores, oracle: Oracle, scenario: Scenario) -> None:
    """The pace of the last half minute is more than half of that of the first; afterwards vacuum clears all of it."""
    async with (
        plain_client(stores.database_url) as client,
        plain_client(stores.database_url) as idle,
        worker(stores),
    ):
        await client.execute(BULK, CHURNED)
        await drained(stores.database_url, LONG)
        async with idle.transaction(isolation="repeatable_read"):
            await idle.fetchval("SELECT count(*) FROM memories")
            rounds = await churn(client, stores.database_url)
            await client.execute(VACUUM)
            await client.execute("SELECT pg_stat_force_next_flush()")
            held_back = await client.fetchval(DEAD)
        first, last = pace(rounds)
        await client.execute(VACUUM)
        cleared = await client.fetchval(DEAD)
        for number in range(1, CHURNED + 1):
            for turn in range(len(rounds)):
                oracle.expect(uid(number), f"turn {turn}: {uid(number)}")
        compared, seconds = await oracle.until_whole(LONG)
    assert last > first / 2, f"{first:.1f} rounds in the first {WINDOW_SECONDS:g} s, {last:.1f} in the last"
    assert cleared < CHURNED
    scenario.note(engaged=held_back > CHURNED * len(rounds) / 2, compared=compared, seconds=seconds)


async def churn(client: Client, url: str) -> list[float]:
    """Change every row and wait until that is pushed, again and again; when each round ended, from the beginning."""
    begun, ended = time.monotonic(), list[float]()
    while time.monotonic() - begun < CHURN_SECONDS:
        await client.execute(CHURN, f"turn {len(ended)}: ")
        await drained(url, LONG)
        ended.append(time.monotonic() - begun)
    return ended


def pace(rounds: list[float]) -> tuple[int, int]:
    """How many rounds ended in the first and in the last window."""
    first = sum(ended <= WINDOW_SECONDS for ended in rounds)
    return first, sum(ended > CHURN_SECONDS - WINDOW_SECONDS for ended in rounds)
