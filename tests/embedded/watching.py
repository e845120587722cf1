"""What tests see of the embedded services from outside: their processes, and holders that can be killed."""

import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import psutil
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from dionysus_sync_mcp.embedded.services import EmbeddedStatus, ServiceStatus, status

HOLDER = "tests.embedded.holder"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Holder:
    """A process of its own that holds services and says where they are."""

    process: Process
    database_url: str | None
    neo4j_uri: str | None
    uid: int


def processes_of(home: Path) -> list[str]:
    """The command lines of all processes that serve this home folder; holders are not among them."""
    lines = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(home) in line and HOLDER not in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            lines.append(line)
    return lines


async def until(condition: Callable[[], bool], *, seconds: float = 20.0) -> None:
    """Wait until it holds; fails if it does not in time."""
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - what other processes do is no event
            await anyio.sleep(0.05)


async def service(home: Path, name: str) -> ServiceStatus:
    """The status of the one service of that name."""
    return of(await status(home), name)


def of(seen: EmbeddedStatus, name: str) -> ServiceStatus:
    """The same, from a status."""
    (found,) = (each for each in seen.services if each.service == name)
    return found


@asynccontextmanager
async def holding(
    home: Path, *services: str, python: Sequence[str] = (sys.executable,), version: str = "5.26.31"
) -> AsyncIterator[Holder]:
    """A holder for as long as the context lasts, unless it is killed."""
    command = [*python, "-m", HOLDER, str(home), version, *services]
    async with await anyio.open_process(command, stderr=None, cwd=ROOT) as process:
        assert process.stdout is not None
        with anyio.fail_after(60):
            line = await BufferedByteReceiveStream(process.stdout).receive_until(b"\n", 65536)
        yield Holder(process, **json.loads(line))
        with anyio.CancelScope(shield=True):
            assert process.stdin is not None
            await process.stdin.aclose()
            await process.wait()
