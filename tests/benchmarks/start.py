"""How soon the real program answers `initialize`, and how much memory it holds when it is idle."""

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping

import anyio
import psutil

from tests.benchmarks.program import MEGABYTE, settings
from tests.benchmarks.results import Figure, Goal, Section
from tests.benchmarks.stores import Stores
from tests.server.wire import REAL, server_process

ROUNDS = 7
IDLE_SECONDS = 5.0
EMPTY = (sys.executable, "-c", "from mcp.server.mcpserver import MCPServer; MCPServer('empty').run()")
ABOUT = f"""The program is started over stdio as Claude Code starts it, with a local and a remote store that are there.
Milliseconds from the start of the process to its answer to `initialize`: median of {ROUNDS} alternating starts after
one of each. Memory: resident set {IDLE_SECONDS:g} s after the handshake, with the worker running and connected.
Baseline: an MCP server of the same SDK with no tools and nothing behind it."""


async def benchmark(stores: Stores) -> Section:
    """Milliseconds, and megabytes."""
    ours, empty = [], []
    with tempfile.TemporaryDirectory(prefix="dionysus-bench-") as folder:
        async with stores.local() as url:
            given = {**settings(url, stores.neo4j_uri), "CLAUDE_PROJECT_DIR": folder}
            for number in range(1 + ROUNDS):
                stores.say(f"start: {number + 1} of {1 + ROUNDS}")
                ours.append(await _answered(REAL, given))
                empty.append(await _answered(EMPTY, {}))
            memory = await _resident(REAL, given)
    figures = [
        Figure(
            "`initialize` answered",
            statistics.median(ours[1:]),
            "ms",
            statistics.median(empty[1:]),
            Goal("value", "<", 1000),
        ),
        Figure("memory when idle", memory, "MB", await _resident(EMPTY, {}), Goal("value", "<", 120)),
    ]
    return Section("start", ABOUT, figures)


async def _answered(command: tuple[str, ...], given: Mapping[str, str]) -> float:
    started = time.perf_counter()
    async with server_process(*command, env=given) as wire:
        await wire.greet()
        return 1000 * (time.perf_counter() - started)


async def _resident(command: tuple[str, ...], given: Mapping[str, str]) -> float:
    async with server_process(*command, env=given) as wire:
        await wire.greet()
        await anyio.sleep(IDLE_SECONDS)
        return float(psutil.Process(wire.process.pid).memory_info().rss / MEGABYTE)
