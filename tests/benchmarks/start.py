"""How soon the real program answers `initialize`, and how much memory it holds when it is idle."""

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping

import anyio
import psutil

from tests.benchmarks.results import Figure, Goal, Section
from tests.benchmarks.stores import Stores
from tests.server.wire import REAL, server_process
from tests.services.local_store import NOBODY

ROUNDS = 7
IDLE_SECONDS = 5.0
EMPTY = (sys.executable, "-c", "from mcp.server.mcpserver import MCPServer; MCPServer('empty').run()")
MEGABYTE = 1024**2
ABOUT = f"""The program is started over stdio as Claude Code starts it, with a local and a remote store that are there.
Milliseconds from the start of the process to its answer to `initialize`: median of {ROUNDS} alternating starts after
one of each. Memory: resident set {IDLE_SECONDS:g} s after the handshake, with the worker running and connected.
Baseline: an MCP server of the same SDK with no tools and nothing behind it."""


async def benchmark(stores: Stores) -> Section:
    """Milliseconds, and megabytes."""
    ours, empty = [], []
    with tempfile.TemporaryDirectory(prefix="dionysus-bench-") as folder:
        async with stores.local() as url:
            settings = _settings(stores, url, folder)
            for number in range(1 + ROUNDS):
                stores.say(f"start: {number + 1} of {1 + ROUNDS}")
                ours.append(await _answered(REAL, settings))
                empty.append(await _answered(EMPTY, {}))
            memory = await _resident(REAL, settings)
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


def _settings(stores: Stores, database_url: str, folder: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "NEO4J_URI": stores.neo4j_uri,
        "OLLAMA_URL": NOBODY,
        "CLAUDE_PROJECT_DIR": folder,
    }


async def _answered(command: tuple[str, ...], settings: Mapping[str, str]) -> float:
    started = time.perf_counter()
    async with server_process(*command, env=settings) as wire:
        await wire.greet()
        return 1000 * (time.perf_counter() - started)


async def _resident(command: tuple[str, ...], settings: Mapping[str, str]) -> float:
    async with server_process(*command, env=settings) as wire:
        await wire.greet()
        await anyio.sleep(IDLE_SECONDS)
        return float(psutil.Process(wire.process.pid).memory_info().rss / MEGABYTE)
