"""What becomes of parked entries: tried again, given up, superseded; and what is noted of deletes and conflicts."""

from contextlib import suppress
from dataclasses import replace

import pytest

from dionysus_sync_mcp.domain.backoff import MOST_REFUSALS
from dionysus_sync_mcp.domain.errors import OutcomeUnknown
from dionysus_sync_mcp.engine.ports.push import QueueEntry
from tests.engine.memory_local import START, MemoryLocal
from tests.engine.memory_remote import MemoryRemote
from tests.engine.test_push import ChoosyRemote, Meanwhile, drain, is_whole, lose, pusher


@pytest.mark.promise("P1")
async def test_a_parked_entry_is_tried_again_and_goes_through_once_it_can() -> None:
    """By itself when its time has come, and not before."""
    local, choosy = MemoryLocal(), ChoosyRemote()
    local.write("a", "poison")
    await drain(local, choosy)
    engine = pusher(local, remote := MemoryRemote())
    await engine.retry_due_once()
    assert len(local.parked) == 1
    local.wait()
    await engine.retry_due_once()
    assert local.parked == {}
    await drain(local, remote)
    assert is_whole(local, remote)
    assert not local.entries


@pytest.mark.promise("P1")
async def test_after_ten_refusals_only_a_command_tries_again() -> None:
    """And the memory goes through then, if nothing refuses it any more."""
    local, choosy = MemoryLocal(), ChoosyRemote()
    local.write("a", "poison")
    engine = pusher(local, choosy)
    for refusals in range(1, MOST_REFUSALS + 1):
        await engine.push_once()
        assert local.entries[1].refusals == refusals
        local.wait()
        await engine.retry_due_once()
        assert bool(local.parked) == (refusals == MOST_REFUSALS)
    remote = MemoryRemote()
    assert await pusher(local, remote).retry_parked() == 1
    await drain(local, remote)
    assert is_whole(local, remote)


@pytest.mark.promise("P1")
async def test_a_later_version_supersedes_what_is_parked() -> None:
    """It is whole again, and what is superseded counts no more and is never tried again."""
    local, remote = MemoryLocal(), ChoosyRemote()
    local.write("a", "poison")
    local.write("b", "poison")
    await drain(local, remote)
    assert local.table["a"].status == "failed"
    local.write("a", "mended")
    await drain(local, remote)
    assert (local.superseded, local.table["a"].status, (await local.state()).parked) == ({1}, "synced", 1)
    assert await pusher(local, remote).retry_parked() == 1
    assert local.parked.keys() == {1}


@pytest.mark.promise("P3")
async def test_an_older_entry_that_is_tried_again_after_a_newer_one_changes_nothing() -> None:
    """It becomes a version in the history, and the row is not counted on."""
    local, remote = MemoryLocal(), ChoosyRemote()
    local.write("a", "old")
    old = local.entries.pop(1)
    local.write("a", "new")
    await drain(local, remote)
    local.enqueue(replace(old))
    assert (await drain(local, remote)).outcomes == {"stale": 1}
    assert (local.table["a"].version, local.table["a"].status, local.entries) == (2, "synced", {})
    assert {v.properties.content for v in remote.history.values()} == {"old", "new"}


async def test_what_the_capture_parked_is_never_sent() -> None:
    """It has no image of the row: sent, it would empty the memory."""
    local, remote = MemoryLocal(), MemoryRemote()
    local.enqueue(QueueEntry(0, "memory", "update", START, "a"))
    local.parked[1] = "cannot be made JSON"
    assert await pusher(local, remote).retry_parked() == 0


@pytest.mark.promise("P7")
async def test_deletes_that_the_remote_has_are_noted_until_the_memory_lives_again() -> None:
    """That is what tells them from memories that were lost here."""
    local, remote = MemoryLocal(), MemoryRemote()
    for name in ("a", "b"):
        local.write(name, "1")
    local.delete("a")
    assert not local.deletions
    await drain(local, remote)
    assert local.deletions == {"a": 2}
    local.write("a", "again")
    await drain(local, remote)
    assert local.deletions == {}


@pytest.mark.promise("P8")
@pytest.mark.parametrize("further", [False, True])
async def test_a_conflict_is_audited_once_however_often_it_is_delivered(further: bool) -> None:
    """The first answer was lost; what is sent again may have a newer change on top."""
    local, remote = MemoryLocal(), Meanwhile().during()
    other = MemoryLocal(identity_=replace(local.identity_, id="other"))
    other.write("a", "theirs")
    await drain(other, remote)
    local.write("a", "ours once")
    local.write("a", "ours")
    for _ in range(2):
        with suppress(OutcomeUnknown):
            await pusher(local, remote.during(lose)).push_once()
        remote.during()
    assert not local.conflicts
    if further:
        local.write("a", "ours, later")
    await drain(local, remote)
    assert is_whole(local, remote)
    assert [
        (c.winner, c.local_version, c.remote_version, c.local_content, c.remote_content) for c in local.conflicts
    ] == [("local", 2, 1, "ours", "theirs")]
