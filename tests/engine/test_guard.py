"""Guard on an in-memory local store."""

import json

import pytest

from dionysus_sync_mcp.domain.errors import Unavailable
from dionysus_sync_mcp.engine.guard import BACKFILL_PAGE, Guard, GuardResult
from dionysus_sync_mcp.engine.ports.install import InstallStep
from tests.engine.memory_local import MemoryLocal
from tests.engine.memory_remote import MemoryRemote

PROTECTED = GuardResult(protected=True)


def guard(local: MemoryLocal, *, may_initialise: bool = False) -> Guard:
    """Of that store."""
    return Guard(local, MemoryRemote(), MemoryRemote(), may_initialise=may_initialise)


async def test_a_database_of_the_users_is_not_touched_unasked() -> None:
    """Without our bookkeeping it is left alone, unless it is our own."""
    local = MemoryLocal(bookkeeping=False, captured=False)
    assert await guard(local).guard_once() == GuardResult(protected=False)
    assert not local.bookkeeping
    assert (await guard(local, may_initialise=True).guard_once()).installed
    assert local.bookkeeping


@pytest.mark.promise("P1")
async def test_bookkeeping_that_is_removed_while_we_look_is_put_back() -> None:
    """Who was protected stays protected."""
    local = MemoryLocal()
    keeper = guard(local)
    assert await keeper.guard_once() == PROTECTED
    local.bookkeeping = local.captured = False
    local.write("a", "written meanwhile")
    assert await keeper.guard_once() == GuardResult(protected=True, installed=True, backfilled=1)


@pytest.mark.promise("P7")
async def test_a_lost_table_is_left_for_a_recovery() -> None:
    """An empty one made unasked would look like a healthy store."""
    local = MemoryLocal(rows=None)
    assert await guard(local).guard_once() == GuardResult(protected=False)
    assert local.rows is None


@pytest.mark.promise("P1")
async def test_rows_that_were_missed_are_queued_in_pages() -> None:
    """At the first look, and after each time that capture had to be put back; not at every look."""
    local = MemoryLocal(captured=False)
    for number in range(BACKFILL_PAGE + 5):
        local.write(str(number), "c")
    keeper = guard(local)
    assert await keeper.guard_once() == GuardResult(protected=True, installed=True, backfilled=BACKFILL_PAGE + 5)
    assert await keeper.guard_once() == PROTECTED
    local.captured = False
    local.write("missed", "c")
    assert (await keeper.guard_once()).backfilled == 1


@pytest.mark.promise("P1")
async def test_rows_that_were_missed_are_queued_whoever_put_the_capture_back() -> None:
    """A recovery, or another process, which says that there was a gap; once for each."""
    local = MemoryLocal()
    keeper = guard(local)
    assert await keeper.guard_once() == PROTECTED
    for number in (1, 2):
        local.captured = False
        local.write(f"missed {number}", "c")
        local.captured = True
        await local.note_gap()
        assert await keeper.guard_once() == GuardResult(protected=True, backfilled=1)
        assert await keeper.guard_once() == PROTECTED


@pytest.mark.promise("P1")
async def test_rows_are_queued_after_an_installation_whose_answer_was_lost() -> None:
    """It may have been carried out."""

    class Lost(MemoryLocal):
        async def install(self) -> tuple[list[InstallStep], bool]:
            await super().install()
            raise Unavailable("the connection was lost")

    local = Lost()
    keeper = guard(local)
    assert await keeper.guard_once() == PROTECTED
    local.captured = False
    local.write("missed", "c")
    with pytest.raises(Unavailable):
        await keeper.guard_once()
    assert await keeper.guard_once() == GuardResult(protected=True, backfilled=1)


async def test_the_definition_is_noted_when_it_changes() -> None:
    """Not while there is no table, not again while it is the same, not of a table that is not captured."""
    local, remote = MemoryLocal(), MemoryRemote()
    keeper = Guard(local, remote, remote, may_initialise=False)
    assert [await keeper.note_definition_once() for _ in range(2)] == [True, False]
    local.shape = "another shape"
    local.captured = False
    assert not await keeper.note_definition_once()
    local.captured = True
    assert await keeper.note_definition_once()
    local.rows = None
    assert not await keeper.note_definition_once()
    assert remote.noted == {"store": "another shape"}


async def test_a_definition_is_noted_only_where_a_store_has_one_node() -> None:
    """Several processes that start at once on a new remote store would make one each."""
    remote = MemoryRemote()
    assert await Guard(MemoryLocal(), remote, remote, may_initialise=False).note_definition_once()
    assert remote.prepared


def shape(**types: str) -> str:
    """A definition of columns."""
    return json.dumps({"columns": [{"name": name, "type": type_} for name, type_ in types.items()]})


@pytest.mark.promise("P1")
async def test_rows_of_a_table_that_was_altered_are_compared() -> None:
    """Once for each change, also where the remote store cannot note it at first; not at the first look at a table."""
    local, remote = MemoryLocal(shape=shape(id="uuid")), MemoryRemote()
    keeper = Guard(local, remote, remote, may_initialise=False)
    for number, changed in enumerate(
        [shape(id="uuid"), shape(id="uuid", mood="text"), shape(id="uuid", mood="jsonb"), shape(id="uuid")]
    ):
        local.shape = changed
        await keeper.note_definition_once()
        await keeper.note_definition_once()
        assert local.gaps == number


async def test_a_definition_that_could_not_be_noted_is_noted_later() -> None:
    """The remote store was away."""

    class Away(MemoryRemote):
        async def note_definition(self, *_: object) -> None:
            raise Unavailable("away")

    keeper = Guard(MemoryLocal(), Away(), MemoryRemote(), may_initialise=False)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await keeper.note_definition_once()
