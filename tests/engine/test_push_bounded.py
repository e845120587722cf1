"""A push is bounded also where the remote store refuses many rows."""

from contextlib import suppress
from types import SimpleNamespace

import pytest

from dionysus_sync_mcp.domain.errors import Unavailable
from dionysus_sync_mcp.domain.pacing import FIRST_SECONDS, USUAL_SECONDS
from dionysus_sync_mcp.engine.ports.push import QueueEntry, RemoteBatch, RowOutcome
from tests.engine.memory_local import START, MemoryLocal
from tests.engine.memory_remote import MemoryRemote
from tests.engine.test_push import ChoosyRemote, pusher


class Deadlines(MemoryRemote):
    """Notes the deadline of each write, and fails as told."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Note, and hand on."""
        self.seconds.append(batch.seconds)
        return await super().write(batch)


@pytest.mark.promise("P9")
async def test_only_a_write_right_after_a_look_at_the_schema_gets_time_to_be_planned() -> None:
    """Any other one tells within the usual deadline that the link is lost."""
    local, remote = MemoryLocal(), Deadlines()
    engine = pusher(local, remote)

    async def push_another() -> None:
        local.write(str(len(remote.seconds)), "c")
        with suppress(Unavailable):
            await engine.push_once()

    await push_another()
    await push_another()
    remote.failure = Unavailable("away")
    await push_another()
    await engine.note_outage(Unavailable("away"))
    await push_another()
    await push_another()
    assert remote.seconds == [FIRST_SECONDS, USUAL_SECONDS, USUAL_SECONDS, FIRST_SECONDS, USUAL_SECONDS]


class Counting(ChoosyRemote):
    """Counts the writes of a push; each takes so long on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        super().__init__()
        self.writes = 0
        self.seconds = seconds
        self.now = 0.0
        monkeypatch.setattr("dionysus_sync_mcp.engine.push.time", SimpleNamespace(monotonic=lambda: self.now))

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Hand on, or refuse."""
        self.writes += 1
        self.now += self.seconds
        return await super().write(batch)


@pytest.mark.promise("P9")
@pytest.mark.parametrize(("seconds", "most"), [(0.0, 70), (4.0, 25)])
async def test_a_push_looks_for_refused_rows_only_so_long_and_the_next_one_goes_on(
    monkeypatch: pytest.MonkeyPatch, seconds: float, most: int
) -> None:
    """Else a claim with many of them would outlast what the server allows it, and be made again for ever."""
    local, remote = MemoryLocal(), Counting(monkeypatch, seconds)
    for number in range(100):
        local.write(f"{number:03}", "poison" if number % 10 else "good")
    link = {"source_id": "000", "target_id": "090", "context": "c", "created_at": START.isoformat()}
    local.enqueue(QueueEntry(0, "reference", "create", START, payload=link))
    engine, pushes = pusher(local, remote, 200), 0
    while len(local.parked) < len(local.entries):
        before, left = remote.writes, len(local.entries) - len(local.parked)
        await engine.push_once()
        assert remote.writes - before <= most
        assert len(local.entries) - len(local.parked) < left
        pushes += 1
    assert pushes > 2
    assert {i for i, row in local.table.items() if row.status == "failed"} == {f"{n:03}" for n in range(100) if n % 10}
    assert (len(remote.nodes), len(remote.links)) == (10, 1)
