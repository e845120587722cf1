"""The files under the home folder by which processes and the keeper know of each other; each is replaced as a whole."""

import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dionysus_sync_mcp.domain.errors import EmbeddedError
from dionysus_sync_mcp.embedded.processes import Process, this_process

Phase = Literal["waiting", "fetching", "starting", "ready", "stopping", "stopped", "failed"]
PERSISTENT = "persistent"
POSTGRES = "postgres"
_count = itertools.count()


class Failure(BaseModel):
    """Why a server did not start, in the parts of an error, and which holders have waited for it."""

    model_config = ConfigDict(frozen=True)

    what: str
    where: str
    hint: str
    holders: frozenset[str]

    def error(self) -> EmbeddedError:
        """The error to raise to the holder that waited."""
        return EmbeddedError(self.what, where=self.where, hint=self.hint)


class Instance(BaseModel):
    """One server, as the keeper last saw it. `done` and `total` are bytes while `phase` is fetching."""

    model_config = ConfigDict(frozen=True)

    phase: Phase
    version: str
    message: str = ""
    done: int = 0
    total: int = 0
    url: str | None = None
    process: Process | None = None
    failure: Failure | None = None

    @property
    def running(self) -> bool:
        """Whether the server's process is there, whatever became of the keeper."""
        return self.process is not None and self.process.alive


class State(BaseModel):
    """What the keeper says of itself and of the servers, by instance name (`postgres`, `neo4j-VERSION`)."""

    model_config = ConfigDict(frozen=True)

    keeper: Process | None = None
    instances: dict[str, Instance] = Field(default_factory=dict)

    @property
    def kept(self) -> bool:
        """Whether a keeper is at work."""
        return self.keeper is not None and self.keeper.alive


class Hold(BaseModel):
    """One holder file: who wants which instances. Without a process it stays until `down`."""

    model_config = ConfigDict(frozen=True)

    process: Process | None
    instances: frozenset[str]

    @property
    def live(self) -> bool:
        """Whether the holder still counts: its process lives, or it needs none."""
        return self.process is None or self.process.alive


@dataclass(frozen=True)
class Home:
    """The home folder: programs can be fetched again, `data` is what must be kept."""

    root: Path

    @classmethod
    def at(cls, folder: Path) -> "Home":
        """The home at this folder, whatever the working folder will be."""
        return cls(folder.absolute())

    @property
    def holders(self) -> Path:
        """One file for each holder."""
        return self.root / "holders"

    @property
    def programs(self) -> Path:
        """What was fetched."""
        return self.root / "programs"

    @property
    def data(self) -> Path:
        """A folder for each version of each server."""
        return self.root / "data"

    @property
    def keeper_lock(self) -> Path:
        """Held by the keeper as long as it lives."""
        return self.root / "keeper.lock"

    @property
    def keeper_log(self) -> Path:
        """What the keeper had to say in this run of it."""
        return self.root / "keeper.log"

    def exists(self) -> bool:
        """Whether anything was ever put there."""
        return self.holders.is_dir()

    def make(self) -> None:
        """Create what is missing. As root, other users may pass through: PostgreSQL runs as one of them."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o711 if os.geteuid() == 0 else 0o700)
            for folder in (self.holders, self.programs, self.data):
                folder.mkdir(exist_ok=True, mode=0o711)
        except OSError as error:
            raise not_writable(self.root, error) from error

    def state(self) -> State:
        """What the keeper wrote last; an empty state if there is none that can be read."""
        try:
            return State.model_validate_json((self.root / "state.json").read_bytes())
        except (OSError, ValidationError):
            return State()

    def write_state(self, state: State) -> None:
        """Replace the state."""
        write_whole(self.root / "state.json", state.model_dump_json(indent=1))

    def add_hold(self, instances: frozenset[str]) -> Path:
        """Register this process as a holder; several holds of one process are told apart.

        Raises:
            EmbeddedError: If the home folder cannot be written.
        """
        own = this_process()
        path = self.holders / f"{own.pid}-{own.start}-{next(_count)}.json"
        return self._write_hold(path, Hold(process=own, instances=instances))

    def add_persistent_hold(self, instances: frozenset[str]) -> Path:
        """Hold these instances, and those held so before, until `down`."""
        path = self.holders / f"{PERSISTENT}.json"
        earlier = dict(self.holds()).get(PERSISTENT)
        wanted = instances | (earlier.instances if earlier else frozenset())
        return self._write_hold(path, Hold(process=None, instances=wanted))

    def _write_hold(self, path: Path, hold: Hold) -> Path:
        try:
            write_whole(path, hold.model_dump_json())
        except OSError as error:
            raise not_writable(self.root, error) from error
        return path

    def holds(self) -> Iterator[tuple[str, Hold]]:
        """The name and the content of each holder file that can be read, live or not."""
        for path in sorted(self.holders.glob("*.json")):
            with suppress(OSError, ValidationError):
                yield path.stem, Hold.model_validate_json(path.read_bytes())

    def live_holds(self) -> dict[str, Hold]:
        """The holders that count."""
        return {name: hold for name, hold in self.holds() if hold.live}

    def drop_holds(self, names: frozenset[str]) -> None:
        """Remove holder files."""
        for name in names:
            (self.holders / f"{name}.json").unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Replace a file so that a reader sees the old or the new one whole, even if this process is killed meanwhile."""
    number, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def fresh_log(path: Path) -> Path:
    """Put the log of the run before aside (one is kept), so that the file shows only what comes now."""
    if path.exists():
        path.replace(path.with_name(f"{path.name}.1"))
    path.touch(mode=0o600)
    return path


def last_lines(path: Path, lines: int = 15) -> str:
    """The end of a log, `""` if there is nothing."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])


def failed(what: str, log: Path, *, where: str, hint: str) -> EmbeddedError:
    """An error that ends with what the log says last."""
    said = last_lines(log)
    return EmbeddedError(f"{what}; its log ends with:\n{said}" if said else what, where=where, hint=hint)


def not_writable(path: Path, error: OSError) -> EmbeddedError:
    """The error for a folder that cannot be made or written."""
    reason = error.strerror or type(error).__name__
    return EmbeddedError(
        f"cannot write in {path} ({reason})",
        where="embedded services",
        hint="Set DIONYSUS_HOME to a folder that this user can write.",
    )
