"""Purges on in-memory stores: what is refused, how much one transaction removes, what is said and put on record."""

from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import anyio
import pytest

from dionysus_sync_mcp.domain.destruction import Incident
from dionysus_sync_mcp.domain.errors import InputError, Unavailable
from dionysus_sync_mcp.domain.lineage import Standing
from dionysus_sync_mcp.engine import purge
from dionysus_sync_mcp.engine.purge import FOR_GOOD, MOST, Purger
from dionysus_sync_mcp.engine.reports import PurgeReport
from tests.engine.memory_local import START, MemoryLocal
from tests.engine.memory_purge import MemoryPurging

MONTH = timedelta(days=30)
INCIDENT = Incident("id", "key", "truncate", "store", START, START, START, 3, "The table was emptied.")


def uid(number: int) -> str:
    """The id of a test's memory."""
    return str(UUID(int=number))


@dataclass
class Bench:
    """The stores and the use-case."""

    stores: MemoryPurging = field(default_factory=MemoryPurging)
    incidents: list[Incident] = field(default_factory=list)
    elsewhere: list[Incident] = field(default_factory=list)
    judged: bool = True
    standing: Standing | None = "same"

    def __post_init__(self) -> None:
        self.purger = Purger(
            self.stores,
            self.stores,
            MemoryLocal(),
            all_judged=self._judges,
            open_incidents=self._open,
            standing=self._stands,
        )

    async def _judges(self) -> bool:
        return self.judged

    async def _open(self, any_store: bool) -> list[Incident]:
        return [*self.incidents, *(self.elsewhere if any_store else [])]

    async def _stands(self) -> Standing | None:
        return self.standing

    async def old(self, *, dry_run: bool = False) -> PurgeReport:
        """What is older than a month."""
        return await self.purger.purge(MONTH, (), dry_run=dry_run, now=START)

    async def named(self, *memory_ids: str, dry_run: bool = False) -> PurgeReport:
        """These memories."""
        return await self.purger.purge(None, memory_ids, dry_run=dry_run, now=START)


def bench(memories: dict[int, int], deleted: set[int] | None = None) -> Bench:
    """So many versions of each that can be removed."""
    versions = {uid(i): [f"{i}:{n}" for n in range(number)] for i, number in memories.items()}
    return Bench(MemoryPurging(versions, {uid(i) for i in deleted or ()}))


@pytest.mark.promise("P4")
async def test_a_dry_run_counts_what_the_run_then_removes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over several pages; a tombstone counts as one, with all its versions; a second run finds nothing."""
    monkeypatch.setattr(purge, "PAGE", 2)
    made = bench({1: 3, 2: 0, 3: 2, 4: 1, 5: 4}, deleted={3, 5})
    made.stores.images = MOST + 5
    said = await made.old(dry_run=True)
    assert (said.dry_run, said.versions, said.tombstones, said.undo_images) == (True, 4, 2, MOST + 5)
    assert (made.stores.transactions, made.stores.events, said.warnings) == ([], [], [FOR_GOOD])
    assert "--yes" in said.next_step
    done = await made.old()
    assert (done.dry_run, done.versions, done.tombstones, done.undo_images) == (False, 4, 2, MOST + 5)
    assert set(made.stores.asked) == {("store", START - MONTH)}
    (event,) = made.stores.events
    assert (event.direction, event.result, event.record_count) == ("remote_to_local", "success", 4 + 2 + MOST + 5)
    assert list(event.memory_ids) == [uid(3), uid(5)]
    assert made.stores.noted == [START - MONTH]
    again = await made.old()
    assert (again.versions, again.tombstones, len(made.stores.events)) == (0, 0, 1)
    assert len(made.stores.noted) == 1


async def test_no_transaction_removes_more_than_a_thousand_nodes() -> None:
    """However long the history of one memory is, deleted or not."""
    made = bench({1: 2 * MOST + 1, 2: 600, 3: 600, 4: MOST, 5: 600, 6: 600}, deleted={4, 5, 6})
    report = await made.old()
    assert (report.versions, report.tombstones) == (2 * MOST + 1201, 3)
    assert max(made.stores.transactions) <= MOST
    assert sum(made.stores.transactions) == 2 * MOST + 1201 + MOST + 1 + 1202


async def test_what_is_named_is_reported_one_by_one() -> None:
    """Each id once, however it is written."""
    made = bench({1: 3, 2: 0, 3: 2}, deleted={3})
    report = await made.named(uid(3), uid(1).upper(), uid(1), uid(2), uid(9))
    assert (report.versions, report.tombstones) == (3, 1)
    assert [(example.memory_id, example.reason) for example in report.memories] == [
        (uid(1), "it is not deleted, and stays: only its 3 old versions"),
        (uid(2), "it is not deleted, and stays; it has no old versions"),
        (uid(3), "it was deleted here: all of it, 2 versions"),
        (uid(9), "it is not in the remote store"),
    ]
    assert list(made.stores.events[0].memory_ids) == [uid(1), uid(2), uid(3), uid(9)]


@pytest.mark.parametrize(
    ("older_than", "memory_ids", "said"),
    [
        (None, (), "say either"),
        (MONTH, (uid(1),), "say either"),
        (timedelta(hours=23), (), "last day"),
        (timedelta(days=-1), (), "last day"),
        (timedelta.max, (), "longer than there are dates"),
        (None, ("' OR true",), "is no id"),
    ],
)
async def test_what_cannot_be_meant_is_refused(
    older_than: timedelta | None, memory_ids: tuple[str, ...], said: str
) -> None:
    """Before anything is looked at."""
    made = bench({1: 3})
    with pytest.raises(InputError, match=said):
        await made.purger.purge(older_than, memory_ids, dry_run=False, now=START)
    assert made.stores.transactions == []


@pytest.mark.promise("P4")
async def test_another_stores_incident_is_in_the_way_of_what_is_named_only() -> None:
    """By age, this store's own memories go; what is named may be any store's."""
    made = bench({1: 3})
    made.elsewhere = [INCIDENT]
    with pytest.raises(InputError, match="1 incidents are open"):
        await made.named(uid(1))
    assert (await made.old()).versions == 3


@pytest.mark.promise("P4")
@pytest.mark.parametrize("dry_run", [True, False])
async def test_nothing_is_removed_while_the_history_may_be_needed(dry_run: bool) -> None:
    """An incident that is open, a recovery that is under way, a database that went back in time."""
    made = bench({1: 3})
    made.incidents = [INCIDENT]
    with pytest.raises(InputError, match="1 incidents are open") as refused:
        await made.old(dry_run=dry_run)
    assert "incidents" in refused.value.hint
    assert INCIDENT.id in refused.value.hint
    made.incidents, made.judged = [], False
    with pytest.raises(InputError, match="not all of what was deleted or changed here is judged"):
        await made.old(dry_run=dry_run)
    made.judged, made.stores.recovering = True, True
    with pytest.raises(InputError, match="a recovery is under way"):
        await made.old(dry_run=dry_run)
    made.stores.recovering, made.standing = False, "behind_here"
    with pytest.raises(InputError, match="older than what it has pushed"):
        await made.named(uid(1), dry_run=dry_run)
    assert made.stores.transactions == []


async def test_a_tombstone_that_lives_again_meanwhile_is_not_counted() -> None:
    """The remote store looks again before it removes."""
    made = bench({1: 2, 2: 2}, deleted={1, 2})

    async def resurrected() -> None:
        made.stores.deleted.discard(uid(2))

    made.stores.before_write = resurrected
    assert (await made.old()).tombstones == 1
    assert uid(2) in made.stores.versions


@pytest.mark.parametrize("failure", [Unavailable("away"), None])
async def test_what_was_removed_before_a_purge_was_cut_off_is_on_record(
    monkeypatch: pytest.MonkeyPatch, failure: Unavailable | None
) -> None:
    """And the rest goes the next time."""
    monkeypatch.setattr(purge, "PAGE", 1)
    made = bench({1: 3, 2: 2})
    with anyio.CancelScope() as scope:

        async def second() -> None:
            if not made.stores.transactions:
                return
            if failure:
                raise failure
            scope.cancel()
            await anyio.lowlevel.checkpoint()

        made.stores.before_write = second
        if failure:
            with pytest.raises(Unavailable):
                await made.old()
        else:
            await made.old()
    assert [(e.result, e.record_count) for e in made.stores.events] == [("partial", 3)]
    made.stores.before_write = None
    assert (await made.old()).versions == 2


async def test_other_stores_are_spoken_of() -> None:
    """What they wrote is left alone by age."""
    made = bench({1: 1})
    made.stores.stores = 2
    assert "2 other local stores" in (await made.old()).warnings[0]
    assert (await made.named(uid(1))).warnings == []
