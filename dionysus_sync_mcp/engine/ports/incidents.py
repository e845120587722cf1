"""What the detection of destruction needs, and the record of incidents on both sides."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from dionysus_sync_mcp.domain.destruction import Incident, Observation, Rows, Sight


class Observing(Protocol):
    """What the local store tells of statements that destroy."""

    async def unjudged(self, limit: int) -> list[Observation]:
        """Those that were not judged yet, by `seq`; one that commits late has an earlier `at` than others."""
        ...

    async def between(self, first: datetime, last: datetime) -> list[Observation]:
        """Deletes and updates with `at` in this span, both ends included, judged or not, by `at`."""
        ...

    async def rows_between(self, first: datetime, last: datetime) -> Rows:
        """What deletes and updates with `at` in this span, both ends included, have hit; cheaper than `between`."""
        ...

    async def live(self, memory_ids: Sequence[str]) -> frozenset[str]:
        """Those of these that are in the table now."""
        ...

    async def recovered_at(self) -> datetime | None:
        """When the newest recovery was finished, by the database's clock; `None` for none."""
        ...

    async def replaced(self, contents: Mapping[str, int | None]) -> dict[str, datetime | None]:
        """Those of these memories that are in the table now with another content than the one with this hash.

        And when they were put there, `None` where that is not known any more.
        """
        ...

    async def population(self) -> int:
        """Memories in the table."""
        ...

    async def sight(self, after_seq: int) -> Sight:
        """How the store is now, at one moment.

        Raises:
            DatabaseMissing: The server is there, and the database is not.
        """
        ...

    async def remembered(self) -> Sight | None:
        """The last look on record, by whatever process; `None` for none."""
        ...

    async def remember(self, sight: Sight) -> None: ...

    async def prune_observations(self) -> int:
        """Remove a page of those that were judged long ago; how many were."""
        ...


class IncidentBook(Protocol):
    """The incidents on record in the local store."""

    async def record(
        self, incidents: Sequence[Incident], judged: Sequence[int], told: Collection[str] = ()
    ) -> list[Incident]:
        """Put them on record with an alert each, and mark these observations as judged, all or nothing; the new ones.

        One that is on record already is widened: see `domain.destruction.widened`. Where somebody else has judged one
        of the observations meanwhile nothing is done: what is left is judged again, beside what they have recorded.

        Args:
            told: Ids of incidents of which the alert was delivered before.
        """
        ...

    async def incidents(self, *, open_only: bool, limit: int) -> list[Incident]:
        """Newest first."""
        ...

    async def incident(self, incident_id: str) -> Incident | None: ...

    async def close(self, incident_id: str, reason: str) -> bool:
        """Whether it was open until now."""
        ...

    async def unpublished(self, limit: int) -> list[Incident]:
        """Those whose present state the remote store does not have."""
        ...

    async def note_published(self, incidents: Sequence[Incident]) -> None:
        """The remote store has these states; one that has changed since stays unpublished."""
        ...

    async def note_there(self, stores: Collection[str], there: Sequence[Incident]) -> None:
        """This is all that the remote store has of these local stores: what it lacks is to be published again.

        As is what it has an older state of.
        """
        ...

    async def adopt(self, incidents: Sequence[Incident]) -> int:
        """Put those on record that only the remote store knew, and close those that were closed there; how many were.

        An open one that is new here has its alert again, under the same id.
        """
        ...


class RemoteIncidents(Protocol):
    """The incidents on record in the remote store."""

    async def save_incidents(self, incidents: Sequence[Incident]) -> None:
        """Idempotent; widens like `IncidentBook.record`, whatever the order in which the states come."""
        ...

    async def remote_incidents(
        self, *, open_only: bool, limit: int, stores: Collection[str] | None = None, after: Incident | None = None
    ) -> list[Incident]:
        """Of these local stores, `None` for all: a page, newest first.

        Args:
            after: The last one of the page before.
        """
        ...

    async def note_place(self, place: str, sight: Sight) -> bool:
        """Remember that the local store of this look is at this place; not of one that has pushed nothing yet."""
        ...

    async def seen_at(self, place: str) -> list[Sight]:
        """The local stores that were at this place, the newest first: which, the table's oid, when at the latest."""
        ...
