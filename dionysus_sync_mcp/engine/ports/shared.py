"""What several use-cases need of the outside; `adapters/` implement the Protocols of this package.

In-memory twins pass the same behavioural suite. Every method may raise `Unavailable`, `AccessRefused` or `Refused` of
`domain.errors`; nothing of a driver crosses this line.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Entity = Literal["memory", "session", "project", "reference"]


# Told how much is done, of how much where that is known, and in words.
OnProgress = Callable[[int, int | None, str], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Health:
    """One look at a service. `error` is one line for people, `None` when it answered."""

    service: Literal["postgresql", "neo4j", "ollama"]
    error: str | None = None
    hint: str = ""
    version: str | None = None
    latency_ms: float | None = None
    degraded: tuple[str, ...] = ()
    refused: bool = False  # a person has to act: wrong password, missing right

    @property
    def up(self) -> bool:
        """Whether it answered."""
        return self.error is None


class Service(Protocol):
    """Anything with a health."""

    async def health(self, timeout: float) -> Health:
        """One look, never raising, within `timeout` seconds."""
        ...


@dataclass(frozen=True, slots=True)
class StoreIdentity:
    """Which local store this is, and which push it remembers: see `domain.lineage.Lineage`.

    `repeated` is the lineage that an earlier attempt of that push had left remotely, `""` for none that is known.
    """

    id: str
    epoch: str
    generation: int = 0
    lineage: str = ""
    repeated: str = ""


@dataclass(frozen=True, slots=True)
class SyncEvent:
    """An audit row (data model, SyncEvent)."""

    direction: Literal["local_to_remote", "remote_to_local"]
    result: Literal["success", "failed", "partial", "queued"]
    record_count: int
    memory_ids: Sequence[str] = ()
    error_message: str | None = None
    duration_ms: int | None = None
    retry_count: int = 0


@dataclass(frozen=True, slots=True)
class Scope:
    """Which memories are meant; empty tuples mean all."""

    projects: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    memory_ids: tuple[str, ...] = ()
