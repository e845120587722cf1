"""What a plan needs: the remote store as it was at a time, beside the rows that are here."""

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol

from dionysus_sync_mcp.domain.destruction import Incident
from dionysus_sync_mcp.domain.drift import Here
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.domain.recovery_plan import KnownStore, Moment, State
from dionysus_sync_mcp.engine.ports.shared import Scope


class Span(NamedTuple):
    """Ids from `first` on and before `end`, each some first hexadecimal digits of an id; `""` is no bound."""

    first: str = ""
    end: str = ""


EVERY_ID = Span()


class Concern(NamedTuple):
    """What a plan is about.

    Attributes:
        stores: Only memories that one of these local stores has written a version of; none mean all.
    """

    scope: Scope
    moment: Moment
    stores: tuple[str, ...] = ()


class StateOf(NamedTuple):
    """One state of a memory, the current one or one of its history."""

    memory_id: str
    version: int
    content_hash: str


class RemoteHistory(Protocol):
    """The remote store as it was at a time, or would be without what an incident did."""

    async def states(self, concern: Concern, span: Span, after: str, limit: int) -> list[State]:
        """A keyset page of a span: ids above `after`, in order, at most `limit`; empty when there are no more."""
        ...

    async def whole_states(self, wanted: Sequence[StateOf]) -> list[RemoteMemory]:
        """Those that are there, each as a live memory, sorted by id."""
        ...

    async def states_before(self, memory_ids: Sequence[str], moment: datetime) -> list[RemoteMemory]:
        """Of those that have changed since that time: the newest state from before it, where they were there then."""
        ...

    async def deleted_before(self, moment: datetime, stores: Sequence[str]) -> int:
        """How many memories were deleted before that time, and are; of these stores, of all where none is named."""
        ...

    async def history_begins(self) -> datetime | None:
        """When the oldest version was captured; `None` where there is none."""
        ...

    async def known_stores(self) -> list[KnownStore]:
        """The local stores that have written here."""
        ...

    async def unknown(self, scope: Scope) -> Scope:
        """What of a scope no memory, project or session has."""
        ...

    async def project_names(self) -> list[str]:
        """All of them, sorted."""
        ...


class LocalRows(Protocol):
    """The rows that are here, as a plan looks at them."""

    def rows(self, scope: Scope, span: Span) -> AsyncGenerator[Sequence[tuple[str, Here]], None]:
        """In pages, ordered by id; an absent table has none. A row that PostgreSQL cannot make JSON of has no hash."""
        ...

    async def as_captured(self, memories: Sequence[RemoteMemory]) -> frozenset[str]:
        """Ids of those whose row holds all that was captured of them, whatever columns it has besides."""
        ...


class KnownIncidents(Protocol):
    """What is on record of destruction."""

    async def open(self) -> list[Incident]:
        """Those that nobody has closed."""
        ...

    async def find(self, incident_id: str) -> Incident:
        """One of them, open or closed.

        Raises:
            InputError: There is none with this id.
        """
        ...
