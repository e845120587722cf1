"""What the keeper needs of a server, and what the two of them share: to be spawned, found again and stopped."""

import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dionysus_sync_mcp.embedded.home import Phase
from dionysus_sync_mcp.embedded.processes import Process, process

_children: list[subprocess.Popen[bytes]] = []
Report = Callable[[Phase, int, int, str], None]  # phase, done, total (bytes while fetching, else 0), message


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    process: Process
    url: str


class Server(Protocol):
    """One server of one version with its own data folder."""

    name: str
    version: str
    folder: Path

    def find(self) -> Process | None:
        """The server's process, if it runs already: a keeper that was killed left it."""

    async def start(self, report: Report) -> Running:
        """Start the server, or take over the one that runs, and wait until it answers.

        Raises:
            EmbeddedError: It could not be fetched or started.
            OSError: A folder cannot be written.
        """

    async def stop(self, running: Process) -> None:
        """Stop the server in order; by force if it takes too long, which its log of changes bears."""


def spawn(command: Sequence[str], log: Path, folder: Path, account: Mapping[str, Any]) -> Process:
    """Start a program in its own session, its output in the log, working in `folder`."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}  # Java opens a path beyond ASCII only under a UTF-8 locale
    with log.open("ab") as output:
        started = subprocess.Popen(  # noqa: S603 - the command is ours, word by word
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
            **account,
        )
    _children.append(started)
    return process(started.pid)


def collect() -> None:
    """Take note of the spawned programs that ended, so that the system forgets them."""
    _children[:] = [child for child in _children if child.poll() is None]
