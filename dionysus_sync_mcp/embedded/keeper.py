"""The keeper: a detached process, one for each home folder, that runs the servers as long as somebody holds them.

No holder is the parent of a server, so holders may end at any moment in any way. All that is said between them and the
keeper are the files of `home.py`. A keeper that is killed leaves the servers running; the next one finds them.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import anyio
from anyio.abc import TaskGroup

from dionysus_sync_mcp.domain.errors import EmbeddedError
from dionysus_sync_mcp.embedded.home import POSTGRES, Failure, Hold, Home, Instance, Phase, State, fresh_log
from dionysus_sync_mcp.embedded.neo4j_server import Neo4jServer
from dionysus_sync_mcp.embedded.postgres_server import PostgresServer
from dionysus_sync_mcp.embedded.processes import Process, this_process
from dionysus_sync_mcp.embedded.servers import Server

GRACE_SECONDS = 5.0  # the next command of a script finds the servers still running
TICK_SECONDS = 0.2
LOCK_SECONDS = 3.0  # a keeper that is about to end may still have the lock
RETRY_SECONDS = 60.0
SETTLED_SECONDS = 60.0  # a server that ran this long may be started again at once if it ends
NEO4J_PREFIX = "neo4j-"

Action = Literal["leave", "start", "stop", "abandon"]
_log = logging.getLogger("keeper")


def decide(phase: Phase, *, wanted: bool, unwanted_for: float, wait: float) -> Action:
    """What to do with a server.

    Args:
        phase: What it is doing now.
        wanted: Whether somebody holds it.
        unwanted_for: Seconds for which nobody has.
        wait: Seconds until it may be tried again after a failure.
    """
    over = not wanted and unwanted_for >= GRACE_SECONDS
    if phase in {"stopped", "failed"}:
        return "start" if wanted and wait <= 0 else "leave"
    if phase == "ready":
        return "stop" if over else "leave"
    return "abandon" if over and phase != "stopping" else "leave"


@dataclass
class Slot:
    """One server and what the keeper remembers of it."""

    server: Server
    instance: Instance
    unwanted_since: float
    tries: int = 0
    retry_at: float = 0.0
    ready_since: float = 0.0
    starting: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    def turn(self, phase: Phase, done: int = 0, total: int = 0, message: str = "") -> None:
        """Enter a phase, keeping what is known of the process."""
        changes = {"phase": phase, "done": done, "total": total, "message": message, "failure": None}
        self.instance = self.instance.model_copy(update=changes)

    def wait(self, holders: Iterable[str], now: float) -> float:
        """Seconds until a start may be tried; none for a holder that has not seen the failure."""
        failure = self.instance.failure
        if failure is not None and not failure.holders.issuperset(holders):
            return 0.0
        return self.retry_at - now


class Keeper:
    """Brings the servers to what the holder files ask for, once in every tick."""

    def __init__(self, home: Home, server_of: Callable[[Home, str], Server]) -> None:
        self._home = home
        self._server_of = server_of
        self._slots: dict[str, Slot] = {}
        self._written: State | None = None
        self._closing = False
        self._idle_since = 0.0

    async def run(self) -> None:
        """Work until nobody has held anything for the grace period, or until a signal."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._heed_signals)
            self._idle_since = anyio.current_time()
            self._adopt(tasks)
            while not self._over(anyio.current_time()):
                self._tick(tasks, anyio.current_time())
                await anyio.sleep(TICK_SECONDS)
            tasks.cancel_scope.cancel()

    async def _heed_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                _log.info("%s: stopping everything", number.name)
                self._closing = True

    def _adopt(self, tasks: TaskGroup) -> None:
        """Take over what a keeper before this one left running."""
        for name in known_instances(self._home):
            slot = self._slot(name, anyio.current_time())
            if (found := slot.server.find()) is not None:
                _log.info("%s: taking over process %d", name, found.pid)
                self._begin(tasks, slot, frozenset())

    def _tick(self, tasks: TaskGroup, now: float) -> None:
        holds = self._holds()
        if holds:
            self._idle_since = now
        for name in {name for hold in holds.values() for name in hold.instances}:
            self._slot(name, now)
        for name, slot in self._slots.items():
            self._tend(tasks, slot, holders_of(name, holds), now)
        self._write(this_process())

    def _holds(self) -> dict[str, Hold]:
        """Those that count; the files of dead holders are removed."""
        holds = dict(self._home.holds())
        live = {name: hold for name, hold in holds.items() if hold.live}
        with suppress(OSError):
            self._home.drop_holds(frozenset(holds.keys() - live.keys()))
        return {} if self._closing else live

    def _slot(self, name: str, now: float) -> Slot:
        if name not in self._slots:
            server = self._server_of(self._home, name)
            self._slots[name] = Slot(server, Instance(phase="stopped", version=server.version), unwanted_since=now)
        return self._slots[name]

    def _tend(self, tasks: TaskGroup, slot: Slot, holders: frozenset[str], now: float) -> None:
        if slot.instance.phase == "ready" and not slot.instance.running:
            self._note_end(slot, now)
        if holders:
            slot.unwanted_since = now
        unwanted_for = GRACE_SECONDS if self._closing else now - slot.unwanted_since
        action = decide(
            slot.instance.phase, wanted=bool(holders), unwanted_for=unwanted_for, wait=slot.wait(holders, now)
        )
        if action == "start":
            self._begin(tasks, slot, holders)
        elif action == "stop":
            self._finish(tasks, slot)
        elif action == "abandon":
            slot.starting.cancel()

    def _note_end(self, slot: Slot, now: float) -> None:
        _log.warning("%s: ended by itself", slot.server.name)
        if now - slot.ready_since >= SETTLED_SECONDS:
            slot.tries = 0
        slot.retry_at = now + pause_after(slot.tries)
        slot.instance = Instance(phase="stopped", version=slot.server.version, message="it ended by itself")

    def _begin(self, tasks: TaskGroup, slot: Slot, holders: frozenset[str]) -> None:
        slot.tries += 1
        slot.starting = anyio.CancelScope()
        slot.turn("starting", message="being started")
        tasks.start_soon(self._start, slot, holders)

    async def _start(self, slot: Slot, holders: frozenset[str]) -> None:
        name = slot.server.name
        started = None
        with slot.starting:
            try:
                running = await slot.server.start(slot.turn)
                started = Instance(phase="ready", version=slot.server.version, url=running.url, process=running.process)
            except EmbeddedError as error:
                started = self._failed(slot, error, holders)
            except OSError as error:
                what = f"{error.filename or slot.server.folder}: {error.strerror or error}"
                hint = "Set DIONYSUS_HOME to a folder that this user can write."
                started = self._failed(slot, EmbeddedError(what, where=f"embedded {name}", hint=hint), holders)
        slot.instance = started or Instance(phase="stopped", version=slot.server.version)
        slot.ready_since = anyio.current_time()
        self._write(this_process())
        _log.info("%s: %s", name, slot.instance.phase)

    def _failed(self, slot: Slot, error: EmbeddedError, holders: frozenset[str]) -> Instance:
        _log.error("%s: %s", slot.server.name, error)
        slot.retry_at = anyio.current_time() + pause_after(slot.tries)
        waited = holders | holders_of(slot.server.name, self._holds())
        failure = Failure(what=error.what, where=error.where, hint=error.hint, holders=waited)
        return Instance(phase="failed", version=slot.server.version, message=error.what, failure=failure)

    def _finish(self, tasks: TaskGroup, slot: Slot) -> None:
        """Say so first and look once more: who saw the server ready had its holder file there before."""
        ready = slot.instance
        slot.turn("stopping", message="nobody holds it")
        self._write(this_process())
        if holders_of(slot.server.name, self._holds()):
            slot.instance = ready
            return
        tasks.start_soon(self._stop, slot)

    async def _stop(self, slot: Slot) -> None:
        if slot.instance.process is not None:
            await slot.server.stop(slot.instance.process)
        slot.instance = Instance(phase="stopped", version=slot.server.version)
        slot.tries = 0
        _log.info("%s: stopped", slot.server.name)

    def _over(self, now: float) -> bool:
        """Whether to end; as in `_finish`, said first and looked at once more."""
        busy = any(slot.instance.phase not in {"stopped", "failed"} for slot in self._slots.values())
        if busy or not (self._closing or now - self._idle_since >= GRACE_SECONDS):
            return False
        self._write(None)
        return self._closing or not self._holds()

    def _write(self, keeper: Process | None) -> None:
        state = State(keeper=keeper, instances={name: slot.instance for name, slot in self._slots.items()})
        if state == self._written:
            return
        try:
            self._home.write_state(state)
        except OSError as error:  # a full disk: the servers go on, and the next tick tries again
            _log.warning("the state could not be written: %s", error)
            return
        self._written = state


def pause_after(tries: int) -> float:
    """Seconds to wait before the next try, doubling."""
    return float(min(RETRY_SECONDS, 2**tries))


def holders_of(name: str, holds: dict[str, Hold]) -> frozenset[str]:
    """Which holders want this instance."""
    return frozenset(holder for holder, hold in holds.items() if name in hold.instances)


def known_instances(home: Home) -> list[str]:
    """The instances that have a data folder, and so may be running."""
    folders = [path.name for path in sorted(home.data.glob("*-*"))]
    return [POSTGRES if name.startswith(f"{POSTGRES}-") else name for name in folders]


def server_of(home: Home, name: str) -> Server:
    """The server that an instance name stands for."""
    return PostgresServer(home) if name == POSTGRES else Neo4jServer(home, name.removeprefix(NEO4J_PREFIX))


def _detach() -> None:
    """Become nobody's child, so that no holder has to collect this process when it ends."""
    if os.fork():
        os._exit(0)
    os.chdir("/")
    os.umask(0o022)


def _log_to(path: Path) -> None:
    with fresh_log(path).open("ab") as file:
        os.dup2(file.fileno(), 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    for noisy in ("httpx", "neo4j"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)


def main() -> None:
    """Be the keeper of the home folder named on the command line, unless there is one."""
    from fasteners import InterProcessLock

    home = Home(Path(sys.argv[1]))
    _detach()
    lock = InterProcessLock(home.keeper_lock)
    if not lock.acquire(timeout=LOCK_SECONDS, delay=0.02, max_delay=0.05):
        return
    _log_to(home.keeper_log)
    anyio.run(partial(Keeper(home, server_of).run))


if __name__ == "__main__":
    main()
