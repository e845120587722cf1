"""The remote store's behaviour: one suite for the in-memory twin and for Neo4j in both supported versions."""

from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import count
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from neo4j import AsyncGraphDatabase
from pydantic import SecretStr

from dionysus_sync_mcp.adapters.neo4j import RemoteStore
from dionysus_sync_mcp.domain.errors import LineageMoved
from dionysus_sync_mcp.domain.lineage import Lineage, RemoteLineage
from dionysus_sync_mcp.domain.memory import MemoryChange, Version
from dionysus_sync_mcp.engine.ports.embed import Text, Vector
from dionysus_sync_mcp.engine.ports.push import Move, RemoteBatch, Replaced
from dionysus_sync_mcp.engine.ports.recover import RemoteCounts
from dionysus_sync_mcp.engine.ports.shared import Scope, StoreIdentity
from tests.contract.remote_bench import (
    DESKTOP,
    EVERYTHING,
    LAPTOP,
    SESSION,
    Bench,
    Neo4jBench,
    TwinBench,
    change,
    minute,
    outcome_of,
    push,
    sha256,
    version,
)
from tests.engine.memory_remote import MemoryRemote

OTHER_SESSION = "0b9f0f6e-8b1a-4c57-8d5e-1d2c3b4a5f60"
HOSTILE = ('it\'s "quoted"', "two\nlines", "x'}) DETACH DELETE n //", "{id: $id}", "\\u0000", "名前 🗂")
FRESH_ID = map("memory-{:06}".format, count())
# Each example has memories of its own, so the shared store need not be emptied between examples.
ON_A_STORE = settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
)


Delivery = tuple[Version, tuple[Version, ...]]  # the newest version of a push, and the ones before it


class Plan(NamedTuple):
    """The same pushes twice."""

    in_order: list[Delivery]
    shuffled: list[Delivery]


class Case(NamedTuple):
    """What the remote has seen, what comes then, and what becomes of it."""

    before: list[tuple[StoreIdentity, MemoryChange]]
    then: MemoryChange
    outcome: str
    version: int
    content: str
    deleted: bool = False


LIVE_2 = (LAPTOP, change(version(2, "two")))
FOREIGN_2 = (DESKTOP, change(version(2, "theirs")))
GONE_2 = (LAPTOP, change(version(2, "two", operation="delete")))
FOREIGN_GONE_2 = (DESKTOP, change(version(2, "theirs", operation="delete")))

CASES = {
    "new": Case([], change(version(1, "one", operation="create")), "created", 1, "one"),
    "new and already deleted": Case([], change(version(3, "x", operation="delete")), "created", 3, "x", deleted=True),
    "same again": Case([LIVE_2], change(version(2, "two")), "unchanged", 2, "two"),
    "newer": Case([LIVE_2], change(version(3, "three"), base=2), "updated", 3, "three"),
    "newer after a gap": Case([LIVE_2], change(version(9, "nine"), base=2), "updated", 9, "nine"),
    "older": Case([LIVE_2], change(version(1, "one")), "stale", 2, "two"),
    "plain delete": Case(
        [LIVE_2], change(version(3, "two", operation="delete"), base=2), "updated", 3, "two", deleted=True
    ),
    "same delete again": Case(
        [GONE_2], change(version(2, "two", operation="delete")), "unchanged", 2, "two", deleted=True
    ),
    "inserted again after a delete": Case([GONE_2], change(version(3, "back"), base=2), "resurrected", 3, "back"),
    "inserted again with the version of the delete": Case(
        [GONE_2], change(version(2, "back")), "stale", 2, "two", deleted=True
    ),
    "older than the delete": Case([GONE_2], change(version(1, "back")), "stale", 2, "two", deleted=True),
    "foreign and seen": Case([FOREIGN_2], change(version(3, "mine"), base=2), "updated", 3, "mine"),
    "foreign and never seen": Case([FOREIGN_2], change(version(3, "mine"), base=1), "conflict_won", 3, "mine"),
    "foreign, this store has no base": Case([FOREIGN_2], change(version(3, "mine")), "conflict_won", 3, "mine"),
    "a delete never wins over foreign text": Case(
        [FOREIGN_2], change(version(3, "mine", operation="delete"), base=1), "conflict_lost", 2, "theirs"
    ),
    "a delete of foreign text that was seen": Case(
        [FOREIGN_2], change(version(3, "theirs", operation="delete"), base=2), "updated", 3, "theirs", deleted=True
    ),
    "both sides deleted": Case(
        [FOREIGN_GONE_2], change(version(3, "mine", operation="delete"), base=1), "updated", 3, "mine", deleted=True
    ),
    "live over a foreign tombstone": Case(
        [FOREIGN_GONE_2], change(version(3, "mine"), base=1), "resurrected", 3, "mine"
    ),
    "equal version of its own, changed later": Case([LIVE_2], change(version(2, "mine", at=9)), "updated", 2, "mine"),
    "equal version of its own, changed earlier": Case([LIVE_2], change(version(2, "mine", at=1)), "stale", 2, "two"),
    "equal version of its own, a delete": Case(
        [LIVE_2], change(version(2, "mine", at=9, operation="delete")), "stale", 2, "two"
    ),
    "equal version of its own, both deleted, the later one": Case(
        [GONE_2], change(version(2, "mine", at=9, operation="delete")), "updated", 2, "mine", deleted=True
    ),
    "equal version of its own, both deleted, the earlier one": Case(
        [GONE_2], change(version(2, "mine", at=1, operation="delete")), "unchanged", 2, "two", deleted=True
    ),
    "equal version, changed later": Case([FOREIGN_2], change(version(2, "mine", at=9)), "conflict_won", 2, "mine"),
    "equal version, changed earlier": Case([FOREIGN_2], change(version(2, "mine", at=1)), "conflict_lost", 2, "theirs"),
    "equal version, a delete": Case(
        [FOREIGN_2], change(version(2, "mine", at=9, operation="delete")), "conflict_lost", 2, "theirs"
    ),
}


@st.composite
def deliveries_in_two_orders(draw: st.DrawFn) -> Plan:
    """A memory's life on one store, cut into pushes: in order, and shuffled with repetitions."""
    state = st.tuples(st.sampled_from(["red", "green", None]), st.booleans(), st.booleans())
    in_order = _cut(draw(st.lists(state, min_size=1, max_size=8)))
    repeated = draw(st.lists(st.sampled_from(in_order), max_size=5))
    return Plan(in_order, draw(st.permutations([*in_order, *repeated])))


def _cut(states: list[tuple[str | None, bool, bool]]) -> list[Delivery]:
    deliveries: list[Delivery] = []
    waiting: list[Version] = []
    for number, (content, gone, pushed) in enumerate(states, start=1):
        waiting.append(version(number, content, operation="delete" if gone else "update"))
        if pushed or number == len(states):
            deliveries.append((waiting[-1], tuple(waiting[:-1])))
            waiting = []
    return deliveries


def any_change() -> st.SearchStrategy[MemoryChange]:
    """A change that need not fit to what was there before."""
    return st.builds(
        lambda number, content, gone, at, base: change(
            version(number, content, operation="delete" if gone else "update", at=at), base=base
        ),
        st.integers(1, 4),
        st.sampled_from(["red", "green", None]),
        st.booleans(),
        st.integers(1, 3),
        st.one_of(st.none(), st.integers(1, 3)),
    )


class RemoteContract:
    """The behaviour; each subclass gives a `bench`."""

    @pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
    async def test_each_change_has_its_outcome_and_every_version_stays(self, bench: Bench, case: Case) -> None:
        """The outcome follows DESIGN.md section 7, and the history has every version that was delivered."""
        for store, earlier in case.before:
            await push(bench, earlier, by=store)

        (outcome,) = await push(bench, case.then)

        assert (outcome.outcome, outcome.version) == (case.outcome, case.version)
        held = (await bench.held())["m1"]
        memory = held.memory
        assert (memory.version, memory.content, memory.deleted_at is not None) == (
            case.version,
            case.content,
            case.deleted,
        )
        delivered = [*(earlier.newest for _, earlier in case.before), case.then.newest]
        assert held.history == {(v.number, v.content_hash, v.operation, v.properties.content) for v in delivered}

    @pytest.mark.parametrize("number", [1, 5])
    async def test_a_delete_not_taken_says_whether_it_was_captured_later(self, bench: Bench, number: int) -> None:
        """By the same store, after what lives here: then its number says nothing, and it may be sent again."""
        await push(bench, change(version(5, "live", at=2)))
        told = {}
        for at in (1, 3):
            for store in (LAPTOP, DESKTOP):
                late = change(version(number, "live", operation="delete", at=at))
                (outcome,) = await push(bench, late, by=store)
                told[store.id, at] = (outcome.outcome in ("stale", "conflict_lost"), outcome.outlived)
        assert told == {
            ("laptop", 1): (True, False),
            ("desktop", 1): (True, False),
            ("laptop", 3): (True, True),
            ("desktop", 3): (True, False),
        }
        (tombstone,) = await push(bench, change(version(6, "live", operation="delete", at=3)))
        (again,) = await push(bench, change(version(number, "live", operation="delete", at=4)))
        assert (tombstone.outlived, again.outlived) == (False, False)

    async def test_the_greater_hash_wins_where_version_and_time_are_equal(self, bench: Bench) -> None:
        """Two stores that deliver in either order end with the same winner."""
        mine, theirs = version(2, "mine"), version(2, "theirs")
        winner = max(mine, theirs, key=lambda v: v.content_hash)
        for id_, first, second in (("m1", mine, theirs), ("m2", theirs, mine)):
            await push(bench, change(first, id_=id_))
            await push(bench, change(second, id_=id_), by=DESKTOP)

        held = await bench.held()
        assert {held[id_].memory.content for id_ in ("m1", "m2")} == {winner.properties.content}

    async def test_a_conflict_that_is_won_names_what_it_replaced(self, bench: Bench) -> None:
        """The audit needs both contents, and the write is the last that sees the other one."""
        await push(bench, change(version(2, "t" * 150)), by=DESKTOP)
        (won,) = await push(bench, change(version(3, "mine")))
        (plain,) = await push(bench, change(version(4, "more"), base=3))
        assert (won.replaced, plain.replaced) == ((Replaced("t" * 100, 2, by=3),), ())

    @pytest.mark.promise("P8")
    async def test_a_conflict_that_was_won_is_told_again(self, bench: Bench) -> None:
        """The first answer may be lost, and the winner changed since; another store has nothing to tell."""
        await push(bench, change(version(2, "theirs")), by=DESKTOP)
        await push(bench, change(version(3, "mine")))
        (again,) = await push(bench, change(version(3, "mine")))
        (foreign,) = await push(bench, change(version(3, "mine"), base=3), by=DESKTOP)
        (later,) = await push(bench, change(version(4, "more"), version(3, "mine")))
        expected = (Replaced("theirs", 2, by=3),)
        assert [(o.outcome, o.replaced) for o in (again, foreign, later)] == [
            ("unchanged", expected),
            ("unchanged", ()),
            ("updated", expected),
        ]

    @pytest.mark.promise("P8")
    async def test_every_conflict_that_was_won_is_told_again(self, bench: Bench) -> None:
        """The other store may have written once more before the first answer was found to be lost."""
        first, second = version(3, "mine"), version(5, "mine too")
        await push(bench, change(version(2, "theirs")), by=DESKTOP)
        await push(bench, change(first))
        await push(bench, change(version(4, "theirs again"), base=3), by=DESKTOP)
        (again,) = await push(bench, change(second, first))
        assert again.replaced == (Replaced("theirs", 2, by=3), Replaced("theirs again", 4, by=5))

    async def test_states_between_two_pushes_reach_the_history(self, bench: Bench) -> None:
        """A memory that changed three times since the last push has three versions in the remote."""
        states = [version(n, f"state {n}") for n in (1, 2, 3)]
        await push(bench, change(states[2], *states[:2]))
        held = (await bench.held())["m1"]
        assert {(number, content) for number, _, _, content in held.history} == {
            (1, "state 1"),
            (2, "state 2"),
            (3, "state 3"),
        }

    @pytest.mark.promise("P4")
    async def test_a_tombstone_keeps_all_but_the_vector(self, bench: Bench) -> None:
        """A delete sets `deleted_at` to the time of the change and leaves content, properties and links."""
        live = version(1, "kept")
        await push(bench, change(live))
        before = (await bench.held())["m1"]
        await bench.remote.store_vectors([Vector("m1", sha256("kept"), [1.0] * 768)], "model")
        await push(bench, change(version(2, "kept", operation="delete"), base=1))

        after = (await bench.held())["m1"]
        assert after.memory.deleted_at == minute(2)
        assert (after.memory.content, after.memory.tags, after.memory.extra) == (
            "kept",
            before.memory.tags,
            before.memory.extra,
        )
        assert (after.session, after.project, after.unembedded) == (SESSION, "atlas", False)
        assert await bench.remote.counts() == RemoteCounts(live=0, tombstones=1, versions=2)

    async def test_every_property_comes_back_as_it_was_sent(self, bench: Bench) -> None:
        """What a recovery reads is what a push wrote, times to the microsecond."""
        sent = version(1)
        await push(bench, change(sent))
        (memory,) = await bench.remote.memories(EVERYTHING, "", 10)
        assert memory == ("m1", 1, sent.content_hash, None, *sent.properties)
        assert await bench.remote.by_id(["m1", "unknown"]) == [memory]

    async def test_a_memory_may_lack_everything(self, bench: Bench) -> None:
        """Nulls stay nulls, are linked to nothing, and a text that is absent waits for no vector."""
        bare = version(1, None, project=None, session=None)
        bare_properties = bare.properties._replace(
            memory_type=None, importance=None, tags=None, created_at=None, updated_at=None, extra=None
        )
        await push(bench, change(Version(1, "create", "h", minute(1), bare_properties)))
        held = (await bench.held())["m1"]
        assert held.memory == ("m1", 1, "h", None, *bare_properties)
        assert (held.session, held.project, held.unembedded) == (None, None, False)

    async def test_links_follow_the_memory(self, bench: Bench) -> None:
        """A memory that changes session and project is linked to the new ones only, and to none when it has none."""
        await push(bench, change(version(1)))
        await push(bench, change(version(2, project="borealis", session=OTHER_SESSION), base=1))
        moved = (await bench.held())["m1"]
        await push(bench, change(version(3, project=None, session=None), base=2))
        freed = (await bench.held())["m1"]
        assert (moved.session, moved.project) == (OTHER_SESSION, "borealis")
        assert (freed.session, freed.project) == (None, None)

    async def test_a_lost_conflict_moves_no_link(self, bench: Bench) -> None:
        """Only the winner's session and project count."""
        await push(bench, change(version(2)), by=DESKTOP)
        await push(bench, change(version(2, "mine", at=1, project="borealis", session=OTHER_SESSION)))
        held = (await bench.held())["m1"]
        assert (held.session, held.project) == (SESSION, "atlas")

    async def test_names_are_data(self, bench: Bench) -> None:
        """Quotes, line ends and Cypher in a project's name are a name."""
        changes = [change(version(1, name, project=name), id_=f"m{i}") for i, name in enumerate(HOSTILE)]
        await push(bench, *changes)
        for i, name in enumerate(HOSTILE):
            (digest,) = await bench.remote.digests(Scope(projects=(name,)), "", 10)
            assert digest.id == f"m{i}"
        assert len(await bench.held()) == len(HOSTILE)

    async def test_any_text_is_carried(self, bench: Bench) -> None:
        """NUL, bidi controls, emoji, an empty text and ten megabytes come back unchanged."""
        texts = ["", "a\x00b", "\u202eright to left\u202c", "👩‍👩‍👧‍👦 🗂", "wide text " * 1_000_000]
        await push(bench, *(change(version(1, text), id_=f"m{i}") for i, text in enumerate(texts)))
        page = await bench.remote.memories(EVERYTHING, "", 10)
        assert [memory.content for memory in page] == texts

    async def test_pages_are_in_order_and_end(self, bench: Bench) -> None:
        """Keyset pages give every memory once, by id, within the scope only."""
        changes = [
            change(version(1, project="even" if i % 2 == 0 else "odd"), id_=f"m{i:03}") for i in reversed(range(25))
        ]
        await push(bench, *changes)

        seen, after = [], ""
        while page := await bench.remote.digests(Scope(projects=("even",)), after, 5):
            assert len(page) <= 5
            seen += [digest.id for digest in page]
            after = page[-1].id
        assert seen == [f"m{i:03}" for i in range(0, 25, 2)]

    async def test_scopes_narrow_each_other(self, bench: Bench) -> None:
        """Projects, sessions and ids each leave out what they do not name."""
        await push(
            bench,
            change(version(1), id_="a"),
            change(version(1, project="borealis"), id_="b"),
            change(version(1, session=OTHER_SESSION), id_="c"),
        )

        async def ids(scope: Scope) -> list[str]:
            return [memory.id for memory in await bench.remote.memories(scope, "", 10)]

        assert await ids(EVERYTHING) == ["a", "b", "c"]
        assert await ids(Scope(sessions=(SESSION,))) == ["a", "b"]
        assert await ids(Scope(sessions=(SESSION,), projects=("atlas",))) == ["a"]
        assert await ids(Scope(memory_ids=("c", "b"))) == ["b", "c"]

    async def test_digests_tell_tombstones(self, bench: Bench) -> None:
        """A digest has what a comparison and the rules of the data model need."""
        gone = version(2, operation="delete")
        await push(bench, change(gone))
        (digest,) = await bench.remote.digests(EVERYTHING, "", 10)
        assert digest == ("m1", 2, gone.content_hash, True, "semantic", 0.5, SESSION)

    async def test_a_batch_may_be_empty(self, bench: Bench) -> None:
        """Nothing to write is written without complaint."""
        assert await push(bench) == []

    async def test_outcomes_come_in_order_of_id(self, bench: Bench) -> None:
        """Whatever the order of the changes."""
        outcomes = await push(bench, *(change(version(1), id_=id_) for id_ in ("c", "a", "b")))
        assert [outcome.memory_id for outcome in outcomes] == ["a", "b", "c"]

    async def test_a_text_waits_until_its_vector_is_stored(self, bench: Bench) -> None:
        """A created memory waits; its vector takes it off the list."""
        await push(bench, change(version(1, "text")))
        assert await bench.remote.texts_without_vector(10) == [Text("m1", "text")]
        assert await bench.remote.store_vectors([Vector("m1", sha256("text"), [1.0] * 768)], "model") == 1
        assert await bench.remote.count_without_vector() == 0

    async def test_a_changed_text_waits_again_and_other_changes_do_not(self, bench: Bench) -> None:
        """Only the text decides whether a vector is current."""
        vector = Vector("m1", sha256("text"), [1.0] * 768)
        await push(bench, change(version(1, "text")))
        await bench.remote.store_vectors([vector], "model")
        await push(bench, change(version(2, "text", importance=0.9), base=1))
        unmoved = await bench.remote.count_without_vector()
        await push(bench, change(version(3, "other text"), base=2))
        assert (unmoved, await bench.remote.count_without_vector()) == (0, 1)
        assert await bench.remote.store_vectors([vector], "model") == 0, "the vector is of a text that is gone"
        assert await bench.remote.count_without_vector() == 1

    async def test_a_memory_that_comes_back_needs_a_new_vector(self, bench: Bench) -> None:
        """A tombstone has dropped it, and accepts none."""
        vector = Vector("m1", sha256("text"), [1.0] * 768)
        await push(bench, change(version(1, "text")))
        await push(bench, change(version(2, "text", operation="delete"), base=1))
        assert await bench.remote.store_vectors([vector], "model") == 0
        await push(bench, change(version(3, "text"), base=2))
        assert await bench.remote.count_without_vector() == 1

    async def test_a_refused_text_waits_no_more_until_it_changes(self, bench: Bench) -> None:
        """A reason for another text is ignored."""
        await push(bench, change(version(1, "text")))
        await bench.remote.refuse_text("m1", sha256("another"), "too long")
        assert await bench.remote.count_without_vector() == 1
        await bench.remote.refuse_text("m1", sha256("text"), "too long")
        assert await bench.remote.count_without_vector() == 0
        await push(bench, change(version(2, "shorter"), base=1))
        assert await bench.remote.count_without_vector() == 1

    async def test_sessions_keep_their_newest_state(self, bench: Bench) -> None:
        """An older state changes nothing, and an ended session stays ended."""
        started = {"id": SESSION, "project_id": "atlas", "started_at": minute(1), "last_activity_at": minute(1)}
        start = {**started, "ended_at": None, "summary": None}
        end = {**started, "last_activity_at": minute(9), "ended_at": minute(9), "summary": "done"}
        for row in (start, end, start):
            await bench.remote.write(RemoteBatch(LAPTOP, (), sessions=[row]))
        assert await bench.remote.sessions() == [end]

    async def test_a_session_that_only_a_memory_names_is_no_row(self, bench: Bench) -> None:
        """A recovery of the table `sessions` must not invent rows; the row fills the node when it comes."""
        await push(bench, change(version(1)))
        assert await bench.remote.sessions() == []
        assert await bench.remote.projects() == []
        row = {
            "id": SESSION, "project_id": "atlas", "started_at": minute(1), "last_activity_at": minute(2),
            "ended_at": None, "summary": "early",
        }  # fmt: skip
        await bench.remote.write(RemoteBatch(LAPTOP, (), sessions=[row]))
        assert await bench.remote.sessions() == [row]

    async def test_a_new_session_follows_the_previous_one_of_its_project(self, bench: Bench) -> None:
        """The journey of a project is a chain; writing it again adds no link."""
        rows = [
            {
                "id": f"s{i}", "project_id": project, "started_at": minute(i), "last_activity_at": minute(i),
                "ended_at": None, "summary": None,
            }
            for i, project in enumerate(["atlas", "borealis", "atlas", "atlas"])
        ]  # fmt: skip
        for _ in range(2):
            for row in rows:
                await bench.remote.write(RemoteBatch(LAPTOP, (), sessions=[row]))
        assert await bench.followed() == {("s0", "s2"), ("s2", "s3")}

    async def test_projects_keep_their_newest_state(self, bench: Bench) -> None:
        """`changed_at` says which state is newer."""
        row = {"id": "atlas", "name": "Atlas", "description": "maps", "created_at": minute(1)}
        renamed = {**row, "name": "Atlas 2", "changed_at": minute(5)}
        for state in (row, renamed, row):
            await bench.remote.write(RemoteBatch(LAPTOP, (), projects=[state]))
        (project,) = await bench.remote.projects()
        assert (project["name"], project["created_at"]) == ("Atlas 2", minute(1))

    async def test_references_link_memories_that_are_there(self, bench: Bench) -> None:
        """A removed reference is marked, comes back when it is made again, and no memory is invented for an end."""
        await push(bench, change(version(1), id_="a"), change(version(1), id_="b"))
        row = {"source_id": "a", "target_id": "b", "context": "see", "created_at": minute(1)}
        dangling = {**row, "target_id": "nowhere"}
        await bench.remote.write(RemoteBatch(LAPTOP, (), references=[row, dangling]))
        linked = await bench.referenced()
        for state in ({**row, "deleted": True}, row):
            await bench.remote.write(RemoteBatch(LAPTOP, (), references=[state]))
        removed = await bench.referenced()
        await bench.remote.write(RemoteBatch(LAPTOP, (), references=[{**row, "created_at": minute(2)}]))

        assert linked == {("a", "b", "see"): False}
        assert removed == {("a", "b", "see"): True}
        assert await bench.referenced() == linked
        assert sorted(await bench.held()) == ["a", "b"]

    async def test_holdings_are_of_one_store(self, bench: Bench) -> None:
        """What another store wrote does not count, and a store that never wrote is not known."""
        await push(bench, change(version(1)))
        assert await bench.remote.holdings(LAPTOP.id) == (True, 1, 0)
        assert (await bench.remote.holdings("another")).known is False
        await bench.remote.note_definition(StoreIdentity("another", "epoch"), "{}")
        assert await bench.remote.holdings(LAPTOP.id) == (True, 1, 0)
        assert await bench.remote.holdings("another") == (True, 0, 0)

    @pytest.mark.promise("P3")
    async def test_a_push_that_does_not_follow_the_last_one_writes_nothing(self, bench: Bench) -> None:
        """Neither for another lineage nor where none is remembered; what is remembered comes with the error."""
        await bench.remote.write(_moving("one", change(version(1, "first")), accepted=("",), last_entry="e1"))
        await bench.remote.write(_moving("one", change(version(1), id_="m2"), accepted=("",), last_entry="e1"))
        before = await bench.held()
        for accepted in ("", "another"):
            with pytest.raises(LineageMoved) as moved:
                await bench.remote.write(_moving("two", change(version(2, "late")), accepted=(accepted,)))
            assert moved.value.there == RemoteLineage(Lineage("1", 1, "one"), frozenset(), "e1")
        assert await bench.held() == before
        await bench.remote.write(_moving("two", change(version(2, "late")), accepted=("one",)))
        assert (await bench.held())["m1"].memory.content == "late"

    @pytest.mark.promise("P7")
    async def test_a_remote_that_remembers_nothing_says_so(self, bench: Bench) -> None:
        """It was wiped, or only a definition was noted."""
        for _ in range(2):
            with pytest.raises(LineageMoved) as moved:
                await bench.remote.write(_moving("two", change(version(2)), accepted=("one",)))
            assert (moved.value.there, await bench.remote.lineage(LAPTOP.id)) == (None, None)
            await bench.remote.note_definition(LAPTOP, "{}")
        assert await bench.held() == {}

    async def test_an_epoch_that_was_given_up_is_remembered(self, bench: Bench) -> None:
        """And a definition changes nothing of it."""
        await bench.remote.write(_moving("one"))
        await bench.remote.write(_moving("two", accepted=("one",), by=replace(LAPTOP, epoch="2", generation=7)))
        await bench.remote.note_definition(replace(LAPTOP, epoch="3"), "{}")
        assert await bench.remote.lineage(LAPTOP.id) == RemoteLineage(Lineage("2", 8, "two"), frozenset({"1"}))

    async def test_the_newest_definition_is_kept(self, bench: Bench) -> None:
        """What a recovery creates the local table from."""
        assert await bench.remote.definitions() == {}
        for text in ('{"columns": 1}', '{"columns": 2}'):
            await bench.remote.note_definition(LAPTOP, text)
        assert await bench.remote.definitions() == {LAPTOP.id: '{"columns": 2}'}

    @pytest.mark.promise("P4")
    async def test_every_definition_stays_known(self, bench: Bench) -> None:
        """In the order in which they were noted; the same once more is no other one."""
        for identity, text in ((LAPTOP, "1"), (LAPTOP, "2"), (LAPTOP, "2"), (DESKTOP, "other"), (LAPTOP, "1")):
            await bench.remote.note_definition(identity, text)
        history = await bench.remote.definition_history(LAPTOP.id)
        assert [text for _, text in history] == ["1", "2", "1"]
        assert sorted(at for at, _ in history) == [at for at, _ in history]
        assert await bench.remote.definition_history("another") == []

    async def test_references_are_read_in_pages_of_sources(self, bench: Bench) -> None:
        """Those of memories in scope, without those that were removed."""
        await push(bench, *(change(version(1), id_=id_) for id_ in "abcd"))
        ends = [("a", "b"), ("a", "c"), ("b", "a"), ("c", "d"), ("d", "a")]
        rows = [{"source_id": a, "target_id": b, "context": "see", "created_at": minute(1)} for a, b in ends]
        gone = {**rows[3], "deleted": True, "changed_at": minute(2)}
        await bench.remote.write(RemoteBatch(LAPTOP, (), references=[*rows, gone]))

        async def page(scope: Scope, after: str) -> list[tuple[str, str]]:
            found = await bench.remote.references(scope, after, 2)
            assert all((row["context"], row["created_at"]) == ("see", minute(1)) for row in found)
            return sorted((row["source_id"], row["target_id"]) for row in found)

        assert await page(EVERYTHING, "") == [("a", "b"), ("a", "c"), ("b", "a")]
        assert await page(EVERYTHING, "b") == [("d", "a")]
        assert await page(EVERYTHING, "d") == []
        assert await page(Scope(memory_ids=("b", "d")), "") == [("b", "a"), ("d", "a")]

    @pytest.mark.promise("P2")
    @ON_A_STORE
    @given(plan=deliveries_in_two_orders())
    async def test_order_and_repetition_of_deliveries_do_not_matter(self, bench: Bench, plan: Plan) -> None:
        """The changes of one store, delivered shuffled and more than once, end as when delivered once in order."""
        in_order, shuffled = next(FRESH_ID), next(FRESH_ID)
        for newest, older in plan.in_order:
            await push(bench, change(newest, *older, id_=in_order))
        for newest, older in plan.shuffled:
            await push(bench, change(newest, *older, id_=shuffled))

        held = await bench.held()
        expected = held[in_order]
        memory = held[shuffled].memory._replace(id=in_order)
        assert held[shuffled]._replace(memory=memory) == expected

    @pytest.mark.promise("P2")
    @pytest.mark.promise("P3")
    @pytest.mark.promise("P4")
    @ON_A_STORE
    @given(sendings=st.lists(st.tuples(st.sampled_from([LAPTOP, DESKTOP]), any_change()), min_size=1, max_size=6))
    async def test_whatever_two_stores_send_the_remote_only_gains(
        self, bench: Bench, sendings: list[tuple[StoreIdentity, MemoryChange]]
    ) -> None:
        """No version decreases, no version vanishes, sending again changes nothing, and the twin agrees with it all."""
        twin, id_ = TwinBench(MemoryRemote()), next(FRESH_ID)
        highest, delivered = 0, set()
        for store, sent in sendings:
            wanted = MemoryChange(id_, sent.base_version, sent.newest)
            assert await outcome_of(bench, wanted, store) == await outcome_of(twin, wanted, store)
            held = (await bench.held())[id_]
            delivered.add((sent.newest.number, sent.newest.content_hash))
            assert held.memory.version >= highest
            assert {(number, hash_) for number, hash_, *_ in held.history} == delivered
            highest = held.memory.version
            await push(bench, wanted, by=store)
            assert (await bench.held())[id_] == held
        assert (await twin.held())[id_] == held


def _moving(
    to: str, *changes: MemoryChange, accepted: tuple[str, ...] = ("",), last_entry: str = "", by: StoreIdentity = LAPTOP
) -> RemoteBatch:
    return RemoteBatch(by, changes, Move(accepted, to, last_entry))


class TestTwin(RemoteContract):
    """The in-memory store."""

    @pytest.fixture
    def bench(self) -> Bench:
        """A fresh one."""
        return TwinBench(MemoryRemote())


class TestNeo4j(RemoteContract):
    """Neo4j, in both supported versions."""

    @pytest.fixture
    async def bench(self, neo4j_both: str) -> AsyncIterator[Bench]:
        """An empty one, prepared."""

        async def address() -> str:
            return neo4j_both

        store = RemoteStore(address, "neo4j", SecretStr(""), "neo4j", 768, "english")
        await store.prepare()
        async with AsyncGraphDatabase.driver(neo4j_both) as driver:
            yield Neo4jBench(store, driver)
        await store.close()
