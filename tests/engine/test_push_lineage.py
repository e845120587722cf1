"""Push when one of the stores has gone back in time, or another process has pushed meanwhile."""

import copy
from dataclasses import replace

import pytest

from dionysus_sync_mcp.domain.errors import LineageMoved, OutcomeUnknown, Refused, StoreRolledBack
from dionysus_sync_mcp.engine.ports.push import RemoteBatch, RowOutcome
from tests.engine.memory_local import MemoryLocal
from tests.engine.memory_remote import MemoryRemote
from tests.engine.test_push import drain, is_whole, pusher


class Losing(MemoryRemote):
    """Loses the answer to the next write."""

    losing = False

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Write, and say nothing."""
        outcomes = await super().write(batch)
        if self.losing:
            self.losing = False
            raise OutcomeUnknown("lost")
        return outcomes


class Refusing(MemoryRemote):
    """Refuses batches of more than one memory."""

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """One at a time."""
        if len(batch.changes) > 1:
            raise Refused("too many")
        return await super().write(batch)


async def pushed(*contents: str) -> tuple[MemoryLocal, MemoryRemote]:
    """A memory that was changed and pushed so often, on both stores."""
    local, remote = MemoryLocal(), MemoryRemote()
    for content in contents:
        local.write("a", content)
        await drain(local, remote)
    return local, remote


@pytest.mark.promise("P3")
async def test_each_push_moves_both_stores_on_together() -> None:
    """However often a batch is halved, it is one push."""
    local, remote = MemoryLocal(), Refusing()
    for generation in (1, 2):
        for name in "abcde":
            local.write(name, f"{generation}")
        await drain(local, remote)
        there = remote.stores["store"].last
        assert (there.generation, there.lineage) == (generation, local.identity_.lineage)
        assert local.identity_.generation == generation
    assert is_whole(local, remote)


@pytest.mark.promise("P2")
async def test_a_push_of_which_the_answer_was_lost_is_made_again() -> None:
    """As often as it takes, and nobody is asked anything."""
    local, remote = MemoryLocal(), Losing()
    local.write("a", "1")
    for _ in range(3):
        remote.losing = True
        with pytest.raises(OutcomeUnknown):
            await pusher(local, remote).push_once()
        assert (local.identity_.generation, remote.stores["store"].last.generation) == (0, 1)
        local.write("a", "more")
    await drain(local, remote)
    assert is_whole(local, remote)
    assert not local.compare_due


@pytest.mark.promise("P7")
async def test_a_backup_between_a_lost_answer_and_the_repetition_is_written_to() -> None:
    """The remote is older than this database, not the other way round: nobody is asked, and a comparison is due."""
    local, remote = MemoryLocal(), Losing()
    local.write("a", "1")
    remote.losing = True
    with pytest.raises(OutcomeUnknown):
        await pusher(local, remote).push_once()
    backup = copy.deepcopy(remote)
    await drain(local, remote)
    local.write("a", "2")
    assert (await pusher(local, backup).push_once()).pushed == 1
    assert local.compare_due
    assert is_whole(local, backup)


@pytest.mark.promise("P7")
@pytest.mark.parametrize("wiped", [True, False])
async def test_a_remote_that_has_forgotten_pushes_is_written_to_and_a_comparison_is_due(wiped: bool) -> None:
    """It was wiped, or restored from an older backup: the local store stays as it is."""
    local, remote = await pushed("1")
    backup = MemoryRemote() if wiped else copy.deepcopy(remote)
    local.write("a", "2")
    await drain(local, remote)
    local.write("a", "3")
    result = await pusher(local, backup).push_once()
    assert (result.pushed, local.compare_due) == (1, True)
    assert backup.stores["store"].last[1:] == (3, local.identity_.lineage)
    assert is_whole(local, backup)


@pytest.mark.promise("P7")
async def test_a_database_from_an_old_dump_pushes_nothing_until_somebody_decides() -> None:
    """What the remote holds is newer; the entries stay, and nothing is written."""
    old, remote = await pushed("1")
    newer = copy.deepcopy(old)
    for content in ("2", "3"):
        newer.write("a", content)
        await drain(newer, remote)
    before = copy.deepcopy((remote.nodes, remote.history, remote.stores))
    old.write("a", "written after the restore")
    for _ in range(2):
        with pytest.raises(StoreRolledBack, match="older than what it has pushed") as error:
            await pusher(old, remote).push_once()
    assert "verify --repair" in error.value.hint
    assert (remote.nodes, remote.history, remote.stores) == before
    assert (len(old.entries), old.parked, old.identity_.generation) == (1, {}, 1)


@pytest.mark.promise("P7")
async def test_an_epoch_of_somebodys_choice_is_accepted_and_the_old_one_given_up() -> None:
    """From then on it is the database that kept the old epoch that may not push."""
    old, remote = await pushed("1")
    newer = copy.deepcopy(old)
    newer.write("a", "2")
    await drain(newer, remote)
    old.identity_ = replace(old.identity_, epoch="chosen", lineage="chosen")
    old.write("a", "what counts now")
    assert (await pusher(old, remote).push_once()).pushed == 1
    assert old.compare_due
    newer.write("a", "3")
    with pytest.raises(StoreRolledBack):
        await pusher(newer, remote).push_once()


class Overtaken(MemoryRemote):
    """While the first write is on its way, another process pushes the same entries and settles them."""

    def __init__(self, local: MemoryLocal, *, after: bool) -> None:
        super().__init__()
        self.local = local
        self.after = after
        self.overtaken = False

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Before or after this write has arrived."""
        if self.after and not self.overtaken:
            await super().write(batch)
        if not self.overtaken:
            self.overtaken = True
            self.local.pushing = False
            await drain(self.local, self)
        return await super().write(batch)


@pytest.mark.promise("P2")
@pytest.mark.promise("P3")
@pytest.mark.parametrize("after", [False, True])
async def test_a_process_that_was_paused_and_overtaken_changes_nothing(after: bool) -> None:
    """It is told so and finds out on the next try what is left to do."""
    local = MemoryLocal()
    remote = Overtaken(local, after=after)
    local.write("a", "1")
    with pytest.raises(LineageMoved, match="another process has pushed meanwhile"):
        await pusher(local, remote).push_once()
    assert remote.overtaken
    before = copy.deepcopy((remote.nodes, remote.history))
    assert is_whole(local, remote)
    local.write("b", "2")
    await drain(local, remote)
    assert is_whole(local, remote)
    assert remote.nodes["a"] == before[0]["a"]
