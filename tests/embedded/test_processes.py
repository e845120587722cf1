"""Telling processes apart, and ending them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import psutil
import pytest

from dionysus_sync_mcp.embedded.processes import Process, end, find, process, this_process

STUBBORN = (
    "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); sys.stdin.read()"
)

# Its first thread has ended, as that of a killed process does before the others have let go of what they share.
WITHOUT_ITS_FIRST_THREAD = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print("on", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_is_known_by_its_start_too() -> None:
    """The same pid with another start is another process, which is not alive."""
    own = this_process()
    assert own.alive
    assert own.pid == os.getpid()
    assert not Process(pid=own.pid, start="of a process before it").alive


def test_a_process_that_ended_is_not_alive_before_it_is_collected() -> None:
    """A zombie runs no more."""
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as child:
        seen = process(child.pid)
        assert seen.alive
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not seen.alive


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells of threads that are left")
def test_a_process_is_alive_until_its_last_thread_is_gone() -> None:
    """Until then it holds its ports, whatever became of the first one."""
    command = [sys.executable, "-c", WITHOUT_ITS_FIRST_THREAD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        seen, deadline = psutil.Process(child.pid), time.monotonic() + 10
        while seen.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen.status() == psutil.STATUS_ZOMBIE
        assert process(child.pid).alive
        ending = process(child.pid)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not ending.alive


async def test_a_process_that_ignores_the_first_signal_gets_the_next() -> None:
    """SIGTERM is waited for, then SIGKILL ends it."""
    async with await anyio.open_process([sys.executable, "-c", STUBBORN]) as child:
        assert child.stdout is not None
        with anyio.fail_after(10):
            assert await child.stdout.receive()
            await end(process(child.pid), ((signal.SIGTERM, 0.2), (signal.SIGKILL, 5.0)))
        assert await child.wait() == -signal.SIGKILL


def test_a_process_is_found_by_an_argument_and_its_user() -> None:
    """Another user's process with the same argument is not ours."""
    argument = f"--mark={os.getpid()}"
    command = [sys.executable, "-c", "print('on', flush=True); input()", argument]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert find(argument, os.geteuid()) == process(child.pid)
        assert find(argument, os.geteuid() + 1) is None
        child.communicate(b"\n")
    assert find(argument, os.geteuid()) is None
