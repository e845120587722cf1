"""Two local stores change one memory, or one store changes what the remote holds otherwise: one wins, none is lost."""

import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

import pytest

from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.runtime import Runtime
from tests.faults.oracle import Comparison
from tests.faults.plugin import Scenario
from tests.faults.program import Failpoint, Stores, run
from tests.integration.stores import Client, graph, history, node, plain_client, queue, uid
from tests.services import postgres
from tests.services.local_store import running

MEMORY = uid(1)
INSERT = (
    "INSERT INTO memories (id, content, created_at, updated_at)"
    " VALUES ($1, $2, $3::text::timestamptz, $3::text::timestamptz)"
)
UPDATE = "UPDATE memories SET content = $2 WHERE id = $1"
ONE_TIME = "2026-01-01T00:00:00Z"
CONFLICTS = (
    "SELECT winner, local_version, remote_version, local_content, remote_content FROM dionysus_sync.conflicts"
    " ORDER BY local_version, remote_version"
)
ROUNDS = 12
MEMORIES = 3

Which = Literal["first", "second"]


@dataclass
class Local:
    """One of two local stores.

    Attributes:
        program: Without its background loops.
    """

    stores: Stores
    client: Client
    program: Runtime

    async def push(self) -> dict[str, int]:
        """Push until nothing is due; what became of the memories."""
        outcomes: dict[str, int] = {}
        while (result := await self.program.pusher.push_once()).pushed:
            for name, number in result.outcomes.items():
                outcomes[name] = outcomes.get(name, 0) + number
        assert result.parked == 0
        return outcomes

    async def content(self) -> str | None:
        """Of the memory here."""
        found: str | None = await self.client.fetchval("SELECT content FROM memories WHERE id = $1", MEMORY)
        return found

    async def conflicts(self) -> list[tuple[object, ...]]:
        """On record here: who won, the versions and the contents."""
        return [tuple(row) for row in await self.client.fetch(CONFLICTS)]


@dataclass
class Pair:
    """Two local stores that write into one remote store, and what both have committed.

    Attributes:
        written: Id and content of each write.
        versions: What the remote store was last seen to hold.
    """

    first: Local
    second: Local
    uri: str
    written: list[tuple[str, str]] = field(default_factory=list)
    versions: dict[str, int] = field(default_factory=dict)

    def of(self, which: Which) -> Local:
        """One of both."""
        return self.first if which == "first" else self.second

    async def write(self, store: Local, statement: str, content: str, *arguments: object, number: int = 1) -> None:
        """A user's write of a memory."""
        await store.client.execute(statement, uid(number), content, *arguments)
        self.written.append((str(uid(number)), content))

    async def share(self) -> None:
        """Both have the memory at version 1, since one of them has recovered it."""
        await self.write(self.first, INSERT, "base", ONE_TIME)
        await self.first.push()
        plan = await self.second.program.plan_recovery(Scope())
        await self.second.program.run_recovery(plan.plan_id)
        assert await self.second.content() == "base"

    async def push(self, order: Sequence[Which]) -> dict[str, int]:
        """Push in this order; what became of the memory in the last of these pushes. No version goes back (P3)."""
        outcomes: dict[str, int] = {}
        for which in order:
            outcomes = await self.of(which).push()
            now = dict(await graph(self.uri, "MATCH (m:Memory) RETURN [m.id, m.sync_version]"))
            assert not [i for i, version in self.versions.items() if now[i] < version], (self.versions, now)
            self.versions = now
        return outcomes

    async def settle(self) -> None:
        """What a person or the background loop does about a store that has not heard of the other one's win."""
        for store in (self.first, self.second):
            await store.program.verify(repair=True, dry_run=False)
            await store.push()

    async def compare(self, wins: str | None) -> Comparison:
        """Nothing may wait, each content must be in the history, and the winner on all sides."""
        held = await graph(self.uri, "MATCH (m:Memory)-[:HAS_VERSION]->(v) RETURN [m.id, v.content]")
        lost = [f"no version has {one}" for one in self.written if list(one) not in held]
        found = {"remote": (await node(self.uri, MEMORY))["content"]}
        for name, store in (("first", self.first), ("second", self.second)):
            found[name] = await store.content()
            lost += [f"{name}: {entry} is left" for entry in await queue(store.client)]
        wrong = [f"{name} has {content!r}" for name, content in found.items() if wins and content != wins]
        return Comparison(len(self.written), lost, wrong)


@pytest.fixture
async def pair(migrated_template: str, empty_neo4j: str, tmp_path: Path) -> AsyncIterator[Pair]:
    """Two local stores, empty."""
    async with AsyncExitStack() as stack:
        opened = []
        for name in ("first", "second"):
            url = await stack.enter_async_context(postgres.copy_of(migrated_template))
            await postgres.execute(url, postgres.NEW_IDENTITY)
            home = tmp_path / name
            home.mkdir()
            client = await stack.enter_async_context(plain_client(url))
            program = await stack.enter_async_context(running(url, empty_neo4j))
            opened.append(Local(Stores(url, empty_neo4j, home), client, program))
        yield Pair(opened[0], opened[1], empty_neo4j)


BOTH_ORDERS: list[list[Which]] = [["first", "second"], ["second", "first"]]


@pytest.mark.scenario(19, "one memory changed on both sides, equal version, whichever is pushed first")
@pytest.mark.promise("P4")
@pytest.mark.promise("P8")
@pytest.mark.parametrize("order", BOTH_ORDERS, ids=["earlier first", "later first"])
async def test_19_equal_versions_the_later_one_wins(pair: Pair, scenario: Scenario, order: list[Which]) -> None:
    """The loser is kept as a version, and the conflict is on record once, with both contents."""
    await pair.share()
    await pair.write(pair.first, UPDATE, "earlier")
    await pair.write(pair.second, UPDATE, "later")
    outcomes = await pair.push(order)
    assert outcomes in ({"conflict_won": 1}, {"conflict_lost": 1})
    assert (await node(pair.uri, MEMORY))["sync_version"] == 2
    on_record = [*await pair.first.conflicts(), *await pair.second.conflicts()]
    here, there = ("later", "earlier") if order[-1] == "second" else ("earlier", "later")
    assert on_record == [("local" if here == "later" else "remote", 2, 2, here, there)]
    await pair.settle()
    scenario.note(engaged=len(on_record) == 1, compared=await pair.compare("later"))
    assert {(2, "earlier"), (2, "later")} <= {(n, content) for n, _, content in await history(pair.uri, MEMORY)}


@pytest.mark.scenario(19, "one memory made on both sides, equal version and time, whichever is pushed first")
@pytest.mark.promise("P4")
@pytest.mark.parametrize("order", BOTH_ORDERS, ids=["first first", "second first"])
async def test_19_equal_versions_and_times_the_greater_hash_wins(
    pair: Pair, scenario: Scenario, order: list[Which]
) -> None:
    """The same one wins in either order."""
    await pair.write(pair.first, INSERT, "one", ONE_TIME)
    await pair.write(pair.second, INSERT, "two", ONE_TIME)
    hashes = {}
    for store in (pair.first, pair.second):
        image = "to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns()"
        statement = f"SELECT dionysus_sync.content_hash({image}) FROM memories AS dionysus_row"  # noqa: S608 - constants
        hashes[await store.client.fetchval(statement)] = await store.content()
    await pair.push(order)
    on_record = [*await pair.first.conflicts(), *await pair.second.conflicts()]
    await pair.settle()
    scenario.note(engaged=len(on_record) == 1, compared=await pair.compare(hashes[max(hashes)]))


@pytest.mark.scenario(19, "a conflict of which the acknowledgement is lost, twice")
@pytest.mark.promise("P2")
@pytest.mark.promise("P8")
@pytest.mark.parametrize("order", BOTH_ORDERS, ids=["won", "lost"])
async def test_19_a_conflict_is_audited_once(pair: Pair, scenario: Scenario, order: list[Which]) -> None:
    """The process is killed after the remote store has decided, at two steps; then it is told again."""
    await pair.share()
    await pair.write(pair.first, UPDATE, "earlier")
    await pair.write(pair.second, UPDATE, "later")
    await pair.push(order[:1])
    loser = pair.of(order[-1])
    killed = []
    for at in ("before:acknowledge", "before:COMMIT(acknowledge)"):
        ended = await run(loser.stores, "sync", "--no-embed", failpoint=Failpoint(at))
        assert ended.reached, ended.output
        killed.append(ended.status == -signal.SIGKILL)
        assert await loser.conflicts() == []
    await pair.push(order[-1:])
    assert len(await loser.conflicts()) == 1
    await pair.settle()
    scenario.note(engaged=all(killed), compared=await pair.compare("later"))
    assert len([*await pair.first.conflicts(), *await pair.second.conflicts()]) == 1


@pytest.mark.scenario(19, "the remote store is several versions ahead of a change")
@pytest.mark.promise("P3")
async def test_19_the_remote_is_newer(pair: Pair, scenario: Scenario) -> None:
    """The live row goes above what the remote held, which stays in the history."""
    await pair.share()
    for number in (2, 3, 4):
        await pair.write(pair.first, UPDATE, f"ahead {number}")
    await pair.push(["first"])
    await pair.write(pair.second, UPDATE, "behind")
    outcomes = await pair.push(["second"])
    assert (await node(pair.uri, MEMORY))["sync_version"] == 5
    await pair.settle()
    scenario.note(engaged=outcomes.get("stale") == 1, compared=await pair.compare("behind"))


@pytest.mark.scenario(19, "one side deletes what the other one changes")
@pytest.mark.promise("P4")
@pytest.mark.parametrize("order", BOTH_ORDERS, ids=["delete first", "change first"])
async def test_19_a_tombstone_wins_nothing(pair: Pair, scenario: Scenario, order: list[Which]) -> None:
    """The memory lives on with what was written, whichever is pushed first."""
    await pair.share()
    await pair.first.client.execute("DELETE FROM memories")
    await pair.write(pair.second, UPDATE, "still wanted")
    outcomes = await pair.push(order)
    held = await node(pair.uri, MEMORY)
    assert (held["content"], held.get("deleted_at")) == ("still wanted", None)
    compared = await pair.compare(None)
    scenario.note(engaged=bool(outcomes), compared=compared)
    assert await pair.second.content() == "still wanted"


@pytest.mark.scenario(19, "a row is inserted again after a delete, and its table is made again with versions from 1")
@pytest.mark.promise("P3")
@pytest.mark.promise("P7")
async def test_19_inserted_again_and_made_again(pair: Pair, scenario: Scenario) -> None:
    """Each time the live row is what stands, above all that the remote has seen."""
    store = pair.first
    await pair.write(store, INSERT, "base", ONE_TIME)
    for number in (2, 3):
        await pair.write(store, UPDATE, f"version {number}")
    await store.push()
    await store.client.execute("DELETE FROM memories")
    await pair.push(["first"])
    await pair.write(store, INSERT, "inserted again", ONE_TIME)
    again = await pair.push(["first"])
    await store.client.execute("DROP TABLE memories")
    await store.program.init(dry_run=False)
    await pair.write(store, INSERT, "of a new table", ONE_TIME)
    version = await store.client.fetchval("SELECT sync_version FROM memories")
    made = await pair.push(["first"])
    held = await node(pair.uri, MEMORY)
    assert (held["content"], held.get("deleted_at"), held["sync_version"]) == ("of a new table", None, 6)
    await pair.second.program.run_recovery((await pair.second.program.plan_recovery(Scope())).plan_id)
    engaged = version == 1 and again.get("stale") == 1 and made.get("stale") == 1
    scenario.note(engaged=engaged, compared=await pair.compare("of a new table"))


@pytest.mark.scenario(19, "two local stores write the same memories, over and over")
@pytest.mark.promise("P3")
@pytest.mark.promise("P4")
async def test_19_two_stores_write_one_memory(pair: Pair, scenario: Scenario, seed: int) -> None:
    """No version goes back, nobody's content leaves the history, and both end up with the same."""
    random = Random(seed)  # noqa: S311 - not a secret
    upsert = f"{INSERT} ON CONFLICT (id) DO UPDATE SET content = excluded.content"
    for number in range(ROUNDS):
        for which in random.choices(("first", "second"), k=4):
            store = pair.of(which)
            content = f"{which} {number}: {len(pair.written)}"
            await pair.write(store, upsert, content, ONE_TIME, number=random.randint(1, MEMORIES))
        order: list[Which] = ["first", "second"] if random.random() < 0.5 else ["second", "first"]
        await pair.push(order[: random.randint(1, 2)])
    await pair.push(["first", "second"])
    await pair.settle()
    on_record = [*await pair.first.conflicts(), *await pair.second.conflicts()]
    compared = await pair.compare((await node(pair.uri, MEMORY))["content"])
    scenario.note(engaged=len(on_record) > 0, compared=compared)
