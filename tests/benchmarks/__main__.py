"""`python -m tests.benchmarks [NAME]`: measures, and writes RESULTS.md and results.json beside this file."""

import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import anyio
from rich.console import Console
from rich.markdown import Markdown

from dionysus_sync_mcp.settings import Neo4jVersion
from tests.benchmarks import backlog, capture, detection, drain, in_time, latency, recover, start, together, verify
from tests.benchmarks.machine import machine
from tests.benchmarks.results import Section, json_text, merged_entries, merged_markdown
from tests.benchmarks.stores import Stores
from tests.services import postgres
from tests.services.servers import open_servers

BENCHMARKS: Mapping[str, Callable[[Stores], Awaitable[Section]]] = {
    "start": start.benchmark,
    "capture": capture.benchmark,
    "latency": latency.benchmark,
    "drain": drain.benchmark,
    "detection": detection.benchmark,
    "recover": recover.benchmark,
    "in_time": in_time.benchmark,
    "verify": verify.benchmark,
    "together": together.benchmark,
    "backlog": backlog.benchmark,
}
NEO4J: Neo4jVersion = "5.26.31"
FOLDER = Path(__file__).parent
CONSOLE = Console(stderr=True)


def main(arguments: Sequence[str]) -> int:
    """The exit code: 0 measured, whether the goals are met or not; 2 no such benchmark."""
    unknown = set(arguments).difference(BENCHMARKS)
    if unknown:
        CONSOLE.print(f"There is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}.")
        return 2
    anyio.run(_measure_and_write, arguments or list(BENCHMARKS))
    return 0


async def _measure_and_write(names: Sequence[str]) -> None:
    async with open_servers(os.environ, CONSOLE.print) as servers:
        server_url, neo4j_uri = await servers.postgres(), await servers.neo4j(NEO4J)
        where = await machine(server_url, neo4j_uri)
        async with postgres.template_database(server_url, postgres.install_local_store) as template:
            stores = Stores(template, neo4j_uri, CONSOLE.print, partial(servers.throwaway_neo4j, NEO4J))
            for name in names:
                section = await BENCHMARKS[name](stores)
                _write(section, where)


def _write(section: Section, where: str) -> None:
    """After each benchmark, so that one that fails does not cost the figures of the others."""
    entries, chapters = FOLDER / "results.json", FOLDER / "RESULTS.md"
    old = json.loads(_text(entries) or "[]")
    entries.write_text(json_text(merged_entries(old, [section])), encoding="utf-8")
    chapters.write_text(merged_markdown(_text(chapters), [section], where), encoding="utf-8")
    CONSOLE.print(Markdown(merged_markdown("", [section], where).partition("\n## ")[2]))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


sys.exit(main(sys.argv[1:]))
