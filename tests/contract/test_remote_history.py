"""Reading the remote store in time: one suite for the in-memory twin and for Neo4j in both supported versions."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

import pytest
from neo4j import AsyncDriver, AsyncGraphDatabase
from pydantic import SecretStr

from dionysus_sync_mcp.adapters.neo4j import RemoteStore
from dionysus_sync_mcp.domain.memory import MemoryChange, Version
from dionysus_sync_mcp.domain.recovery_plan import Means, Moment, State, Window
from dionysus_sync_mcp.engine.ports.history import EVERY_ID, Concern, RemoteHistory, Span, StateOf
from dionysus_sync_mcp.engine.ports.push import Move, RemoteBatch, RemoteWriter
from dionysus_sync_mcp.engine.ports.shared import Scope, StoreIdentity
from tests.contract.remote_bench import DESKTOP, EVERYTHING, LAPTOP, SESSION, change, minute, version
from tests.engine.memory_history import MemoryHistory
from tests.engine.memory_remote import MemoryRemote

OTHER = "00000000-0000-4000-8000-000000000001"


@dataclass
class Bench:
    """A remote store under test."""

    writer: RemoteWriter
    history: RemoteHistory
    driver: AsyncDriver | None = None

    async def push(self, *changes: MemoryChange, by: StoreIdentity = LAPTOP) -> None:
        """Write these as one batch."""
        await self.writer.write(RemoteBatch(by, changes))

    async def push_versions(self, *versions: Version, id_: str = "m1", by: StoreIdentity = LAPTOP) -> None:
        """Write these one after the other, each known to be on what the remote store holds."""
        for one in versions:
            await self.push(change(one, id_=id_, base=one.number - 1), by=by)

    async def states(
        self, *, as_of: int | None = None, without: tuple[Window, ...] = (), stores: tuple[str, ...] = ()
    ) -> list[State]:
        """All of them."""
        moment = Moment(None if as_of is None else at(as_of), without)
        return await self.history.states(Concern(EVERYTHING, moment, stores), EVERY_ID, "", 100)

    async def target(self, *, as_of: int | None = None, without: tuple[Window, ...] = ()) -> int | None:
        """Which version of the only memory is meant."""
        (state,) = await self.states(as_of=as_of, without=without)
        return state.target_version


def at(number: int) -> datetime:
    """A minute of `remote_bench`."""
    return datetime.fromisoformat(minute(number))


def window(first: int, last: int, operation: Means, store: str = "laptop") -> tuple[Window, ...]:
    """What one incident did between two minutes."""
    return (Window(store, at(first), at(last), operation),)


CREATED = version(1, "a", operation="create")


class HistoryContract:
    """What every remote store answers; `bench` is given by the subclasses."""

    @pytest.mark.parametrize(("as_of", "target"), [(0, None), (1, 1), (2, 2), (3, 2), (4, 3), (9, 3), (None, 3)])
    async def test_the_state_of_a_time_is_the_newest_before_it(
        self, bench: Bench, as_of: int | None, target: int | None
    ) -> None:
        """The moment itself belongs to it; before the first one there is none."""
        await bench.push_versions(CREATED, version(2, "b"), version(3, "c", at=4))
        assert await bench.target(as_of=as_of) == target

    async def test_versions_order_the_states_and_not_times(self, bench: Bench) -> None:
        """One of two clocks may be wrong."""
        await bench.push_versions(version(1, "a", operation="create", at=3), version(2, "b", at=9))
        await bench.push_versions(version(3, "c", at=5), version(4, "d", at=20))
        assert [await bench.target(as_of=moment) for moment in (4, 6, 10)] == [1, 3, 3]

    async def test_the_state_before_a_moment_is_told_of_what_has_changed_since(self, bench: Bench) -> None:
        """With its further columns; of what was not there then, or has not changed since, nothing."""
        await bench.push_versions(CREATED, version(2, "b"), version(3, "c", at=9))
        await bench.push_versions(version(1, "new", operation="create", at=9), id_="m2")
        await bench.push_versions(CREATED, id_="m3")
        await bench.push_versions(CREATED, version(2, "a", operation="delete"), version(3, "again", at=9), id_="m4")
        (found,) = await bench.history.states_before(["m1", "m2", "m3", "m4"], at(5))
        assert (found.id, found.version, found.content_hash, found.extra) == (
            "m1", 2, version(2, "b").content_hash, version(2, "b").properties.extra,
        )  # fmt: skip
        assert await bench.history.states_before([], at(5)) == []

    async def test_a_state_is_told_beside_the_one_meant(self, bench: Bench) -> None:
        """Version, hash and death of both, and what the rules are about of the one meant."""
        await bench.push_versions(CREATED, version(2, "b", operation="delete"))
        (state,) = await bench.states(as_of=1)
        assert state == State(
            "m1", 2, version(2, "b", operation="delete").content_hash, True, False,
            1, CREATED.content_hash, False, "semantic", 0.5, SESSION,
        )  # fmt: skip
        (state,) = await bench.states(as_of=2)
        assert (state.is_current, state.target_deleted) == (True, True)

    async def test_what_an_incident_deleted_is_meant_as_it_was(self, bench: Bench) -> None:
        """Its own last state; a delete before it, or by another store, is none of the incident's."""
        await bench.push_versions(CREATED, version(2, "b"), version(3, "b", operation="delete"))
        (state,) = await bench.states(without=window(3, 4, "delete"))
        assert (state.by_incident, state.deleted, state.target_version, state.target_deleted) == (True, True, 2, False)
        for other in (window(4, 5, "delete"), window(1, 2, "delete"), window(3, 4, "delete", "desktop")):
            (state,) = await bench.states(without=other)
            assert (state.by_incident, state.is_current) == (False, True)

    async def test_what_an_incident_overwrote_is_meant_as_it_was(self, bench: Bench) -> None:
        """However often it did; what was inserted meanwhile is good, and so is what came after."""
        await bench.push_versions(CREATED, version(2, ""), version(3, " "))
        await bench.push_versions(version(1, "new", operation="create", at=2), id_="m2")
        await bench.push_versions(version(1, "b", operation="create", at=0), version(2, "", at=2), id_="m3")
        await bench.push_versions(version(3, "mended", at=9), id_="m3")
        found = await bench.states(without=window(2, 3, "update"))
        assert [(s.memory_id, s.by_incident, s.target_version) for s in found] == [
            ("m1", True, 1),
            ("m2", False, 1),
            ("m3", False, 3),
        ]

    async def test_of_a_time_an_incident_is_told_of_all_the_same(self, bench: Bench) -> None:
        """The state meant is that of the time, whoever made it."""
        await bench.push_versions(CREATED, version(2, ""), version(3, "later", at=9))
        await bench.push_versions(version(1, "b", operation="create", at=0), version(2, "", at=2), id_="m2")
        found = await bench.states(as_of=2, without=window(2, 3, "update"))
        assert [(s.by_incident, s.target_version) for s in found] == [(False, 2), (True, 2)]

    async def test_rows_made_up_under_old_ids_are_an_incidents(self, bench: Bench) -> None:
        """With all that was made of them since; a row whose memory was not there before is new."""
        await bench.push_versions(CREATED, version(2, "b"))
        # The row was inserted again at 1, which is stale, and went above what the remote store held.
        await bench.push(change(version(1, "made up", operation="create", at=6)))
        await bench.push_versions(version(3, "made up", at=6), version(4, "made up more", at=8))
        await bench.push_versions(version(1, "new", operation="create", at=7), id_="m2")
        found = await bench.states(without=window(5, 9, "create"))
        assert [(s.by_incident, s.target_version) for s in found] == [(True, 2), (False, 1)]

    async def test_a_delete_that_lost_a_conflict_was_never_a_state(self, bench: Bench) -> None:
        """It is in the history only, above what stands."""
        await bench.push_versions(CREATED)
        await bench.push(change(version(2, "b", at=2), base=1), by=DESKTOP)
        await bench.push(change(version(3, "a", operation="delete"), base=1))
        (state,) = await bench.states(as_of=9, without=window(2, 2, "update", "nobody"))
        assert (state.version, state.target_version, state.target_deleted) == (2, 2, False)

    async def test_memories_are_of_the_stores_that_wrote_them(self, bench: Bench) -> None:
        """Any version of theirs counts."""
        await bench.push_versions(CREATED)
        await bench.push_versions(version(2, "b"), by=DESKTOP)
        await bench.push_versions(CREATED, id_="m2", by=DESKTOP)
        for as_of in (None, 9):
            found = {
                stores: [state.memory_id for state in await bench.states(stores=stores, as_of=as_of)]
                for stores in ((), ("laptop",), ("desktop",), ("laptop", "desktop"), ("nobody",))
            }
            assert list(found.values()) == [["m1", "m2"], ["m1"], ["m1", "m2"], ["m1", "m2"], []]

    async def test_pages_are_in_order_and_keep_to_their_span(self, bench: Bench) -> None:
        """Together they have each memory of the scope once."""
        ids = [f"{number:02x}" for number in range(0, 256, 16)]
        await bench.push(*(change(version(1, "a", project="even" if id_ < "80" else "odd"), id_=id_) for id_ in ids))
        for moment in (Moment(), Moment(at(9)), Moment(None, window(5, 6, "update"))):
            concern = Concern(Scope(projects=("even",)), moment)
            found: list[str] = []
            after = ""
            while page := await bench.history.states(concern, Span("2", "a"), after, 4):
                assert len(page) <= 4
                found += [state.memory_id for state in page]
                after = found[-1]
            assert found == [id_ for id_ in ids if "2" <= id_ < "8"]

    async def test_whole_states_are_of_any_time(self, bench: Bench) -> None:
        """A tombstone's is alive; what is not there is left out."""
        gone = version(3, "c", operation="delete")
        await bench.push_versions(CREATED, version(2, "b"), gone)
        wanted = [
            StateOf("m1", 1, CREATED.content_hash),
            StateOf("m1", 2, "another hash"),
            StateOf("m2", 1, CREATED.content_hash),
        ]
        (memory,) = await bench.history.whole_states(wanted)
        assert memory == ("m1", 1, CREATED.content_hash, None, *CREATED.properties)
        (memory,) = await bench.history.whole_states([StateOf("m1", 3, gone.content_hash)])
        assert (memory.content, memory.deleted_at) == ("c", None)

    async def test_where_history_begins(self, bench: Bench) -> None:
        """Nowhere, as long as there is none."""
        assert await bench.history.history_begins() is None
        await bench.push_versions(version(1, "a", at=7), version(2, "b", at=4))
        assert await bench.history.history_begins() == at(4)

    async def test_what_was_deleted_before_a_time_is_counted(self, bench: Bench) -> None:
        """Of some stores, or of all; a memory that is there counts for nothing."""
        await bench.push_versions(version(1, "a", at=4), version(2, "a", at=7, operation="delete"))
        counted = [
            await bench.history.deleted_before(at(hour), stores)
            for hour, stores in ((7, ()), (8, ()), (8, ("nobody",)))
        ]
        assert counted == [0, 1, 0]

    async def test_names_that_nobody_has_are_told(self, bench: Bench) -> None:
        """Of each kind; a project is known by its memories."""
        await bench.push_versions(CREATED)
        scope = Scope(("atlas", "Atlas"), (SESSION, OTHER), ("m1", "m2"))
        assert await bench.history.unknown(scope) == Scope(("Atlas",), (OTHER,), ("m2",))
        assert await bench.history.project_names() == ["atlas"]

    async def test_stores_are_known(self, bench: Bench) -> None:
        """Those that have pushed."""
        assert await bench.history.known_stores() == []
        await bench.push_versions(CREATED)
        await bench.push_versions(CREATED, by=DESKTOP)
        assert {store.id for store in await bench.history.known_stores()} == {"laptop", "desktop"}


class TestTwin(HistoryContract):
    """The in-memory store."""

    @pytest.fixture
    def bench(self) -> Bench:
        """A fresh one."""
        remote = MemoryRemote()
        return Bench(remote, MemoryHistory(remote))


class TestNeo4j(HistoryContract):
    """Neo4j, in both supported versions."""

    @pytest.fixture
    async def bench(self, neo4j_both: str) -> AsyncIterator[Bench]:
        """An empty one, prepared."""

        async def address() -> str:
            return neo4j_both

        store = RemoteStore(address, "neo4j", SecretStr(""), "neo4j", 768, "english")
        await store.prepare()
        async with AsyncGraphDatabase.driver(neo4j_both) as driver:
            yield Bench(store, store, driver)
        await store.close()

    async def test_memories_written_before_states_had_a_time_are_found_by_their_history(self, bench: Bench) -> None:
        """An older version of this program has not noted it."""
        await bench.push_versions(CREATED, version(2, "b"), version(3, "b", operation="delete"))
        await bench.push_versions(CREATED, id_="m2")
        assert bench.driver
        await bench.driver.execute_query("MATCH (m:Memory) REMOVE m.changed_at", database_="neo4j")
        assert [state.target_version for state in await bench.states(as_of=2)] == [2, 1]
        found = await bench.states(without=window(3, 3, "delete"))
        assert [(state.by_incident, state.target_version) for state in found] == [(True, 2), (False, 1)]

    async def test_a_store_is_known_since_its_first_push(self, bench: Bench) -> None:
        """And the last one is told too."""
        for move in (Move(("",), "one"), Move(("one",), "two")):
            await bench.writer.write(RemoteBatch(LAPTOP, (), move=move))
        (store,) = await bench.history.known_stores()
        assert store.begun_at
        assert store.last_push_at
        assert store.begun_at < store.last_push_at

    async def test_what_somebody_made_of_a_memory_by_hand_is_no_obstacle(self, bench: Bench) -> None:
        """It differs from every row; a memory that lacks everything is one of no version."""
        await bench.push_versions(CREATED)
        assert bench.driver
        await bench.driver.execute_query(
            "MATCH (m:Memory) SET m.sync_version = 'three', m.content_hash = 7 CREATE (:Memory {id: 'm0'})",
            database_="neo4j",
        )
        found = await bench.states()
        assert [(state.memory_id, state.version, state.content_hash) for state in found] == [
            ("m0", 0, ""),
            ("m1", 0, ""),
        ]
        assert [state.target_version for state in found] == [None, 0]
