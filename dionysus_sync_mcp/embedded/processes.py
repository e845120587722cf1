"""Processes by pid and start time, so that a reused pid is never taken for the process that had it before."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import anyio
from pydantic import BaseModel, ConfigDict

POLL_SECONDS = 0.02
_STATE, _THREADS, _START = 0, 17, 19  # places in /proc/PID/stat, counted after the program's name: proc_pid_stat(5)


class Process(BaseModel):
    """One run of a program. `start` is opaque and only compared: it differs between boots of the machine."""

    model_config = ConfigDict(frozen=True)

    pid: int
    start: str

    @property
    def alive(self) -> bool:
        """Whether this very process still runs; one that ended and was not collected by its parent does not.

        One that is killed runs until the last of its threads is gone: until then it listens on its ports.
        """
        return _start_of(self.pid) == self.start


def this_process() -> Process:
    """The process that calls."""
    return process(os.getpid())


def process(pid: int) -> Process:
    """The process that has this pid now; one that is not alive if there is none."""
    return Process(pid=pid, start=_start_of(pid) or "")


def find(argument: str, owner: int) -> Process | None:
    """The running process of user `owner` that was given this argument; the parent, if its children were too."""
    import psutil

    fitting = {}
    for candidate in psutil.process_iter(["pid", "ppid", "cmdline", "uids"]):
        facts = candidate.info
        if argument in (facts["cmdline"] or ()) and facts["uids"] is not None and facts["uids"].real == owner:
            fitting[facts["pid"]] = facts["ppid"]
    roots = [found for pid, parent in fitting.items() if parent not in fitting and (found := process(pid)).alive]
    return roots[0] if roots else None


def listens(found: Process, port: int) -> bool:
    """Whether this process itself, not another one, listens on the TCP port."""
    import psutil

    try:
        connections = psutil.Process(found.pid).net_connections(kind="tcp")
    except psutil.Error:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


async def end(ending: Process, steps: Sequence[tuple[signal.Signals, float]]) -> None:
    """Send each signal in turn, waiting the seconds beside it, until the process is gone."""
    for number, seconds in steps:
        if not ending.alive:
            return
        _send(ending, number)
        with anyio.move_on_after(seconds):
            await gone(ending)


async def gone(ending: Process) -> None:
    """Wait until the process, which need not be our child, has ended."""
    while ending.alive:  # noqa: ASYNC110 - the end of another one's child is no event
        await anyio.sleep(POLL_SECONDS)


def _send(target: Process, number: signal.Signals) -> None:
    try:
        os.kill(target.pid, number)
    except ProcessLookupError:
        return


def _start_of(pid: int) -> str | None:
    """What tells this run of `pid` from others; None if it is not running."""
    if not Path("/proc/self/stat").exists():
        return _start_by_clock(pid)
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    has_ended = fields[_STATE] == "X" or (fields[_STATE] == "Z" and int(fields[_THREADS]) <= 1)
    return None if has_ended else f"{_boot()}-{fields[_START]}"


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")[:8]
    except OSError:
        return "boot"


def _start_by_clock(pid: int) -> str | None:
    import psutil

    try:
        found = psutil.Process(pid)
        return None if found.status() == psutil.STATUS_ZOMBIE else f"{found.create_time():.2f}"
    except psutil.Error:
        return None
