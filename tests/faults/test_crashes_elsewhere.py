"""The program is killed with -9 while it embeds, pulls what won a conflict, or repairs; the next one finishes it."""

from dataclasses import replace

import pytest

from tests.faults.contest import CONFLICTS, SHARED, another_store, contest
from tests.faults.crashes import PUSH, at_steps, distinct, finished, killed_at, recorded
from tests.faults.oracle import Oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Stores
from tests.integration.stores import graph, plain_client, uid
from tests.services.local_store import running

EMBED = ("sync",)
REPAIR = ("verify", "--deep", "--repair", "--yes", "--json")
SOME_OF_EMBEDDING = ["before:COMMIT(store_vectors)"]
SOME_OF_A_PULL = ["before:COMMIT(write_restored)"]
SOME_OF_A_REPAIR = ["before:COMMIT(enqueue_rows)", "after:COMMIT(enqueue_rows)"]
WITHOUT_VECTOR = (
    "MATCH (m:Memory) WHERE m.deleted_at IS NULL"
    " AND (m:Unembedded OR m.embedding IS NULL OR m.embedding_hash <> m.text_hash) RETURN count(m)"
)
VECTORS = "MATCH (m:Memory) WHERE m.embedding IS NOT NULL RETURN [m.id, m.embedding] ORDER BY m.id"
GARBLE = "MATCH (m:Memory {id: $id}) SET m.content = 'garbled'"
FORGET = "MATCH (m:Memory {id: $id}) DETACH DELETE m"


@at_steps(2, "an embedding")
@pytest.mark.promise("P1")
@pytest.mark.promise("P2")
async def test_02_killed_while_embedding(
    stores: Stores, ollama_url: str, oracle: Oracle, scenario: Scenario, *, every: bool
) -> None:
    """A memory has no vector or its own; the next run gives the rest theirs, and the ones that were there stay."""
    stores = replace(stores, ollama_url=ollama_url)
    steps = SOME_OF_EMBEDDING
    if every:
        # What is put on record once only, such as where the store is, is no step of every run.
        for text in ("before", "recorded"):
            await oracle.insert(uid(oracle.rows_written + 1), text)
            steps = distinct(await recorded(stores, *EMBED), since="texts_without_vector")
        assert "before:embed#1" in steps
    for step in steps:
        await oracle.insert(uid(oracle.rows_written + 1), f"{step}: embedded")
        engaged = await killed_at(step, stores, *EMBED)
        made = await graph(stores.neo4j_uri, VECTORS)
        await recorded(stores, *EMBED)
        assert await graph(stores.neo4j_uri, WITHOUT_VECTOR) == [0], step
        now = await graph(stores.neo4j_uri, VECTORS)
        assert len(now) == oracle.rows_written
        assert [pair for pair in now if pair in made] == made, step
        compared, seconds = await oracle.until_whole()
        scenario.note(engaged=engaged, compared=compared, seconds=seconds)


@at_steps(2, "a push that loses a conflict, so that the winner is pulled")
@pytest.mark.promise("P4")
@pytest.mark.promise("P8")
async def test_02_killed_while_pulling(
    stores: Stores, oracle: Oracle, migrated_template: str, scenario: Scenario, *, every: bool
) -> None:
    """The row is the loser or the winner; the next run makes it the winner, both are kept, and it is told once."""
    await oracle.insert(SHARED, "shared")
    assert (await finished(stores, oracle))[0].whole
    async with another_store(migrated_template, stores.neo4j_uri) as other, plain_client(stores.database_url) as user:
        steps, told = SOME_OF_A_PULL, 0
        if every:
            await contest(oracle, other, "recorded")
            steps, told = distinct(await recorded(stores, *PUSH), since="write_memories"), 1
            assert "before:write_restored#1" in steps
        for step in steps:
            theirs = await contest(oracle, other, step)
            engaged = await killed_at(step, stores, *PUSH)
            left = await user.fetchval("SELECT content FROM memories WHERE id = $1", SHARED)
            assert left in (f"ours: {step}", theirs)
            compared, seconds = await finished(stores, oracle)
            conflicts = [tuple(row) for row in await user.fetch(CONFLICTS)]
            told += 1
            assert len(conflicts) == told, (step, conflicts)
            assert conflicts[-1] == ("remote", f"ours: {step}", theirs)
            scenario.note(engaged=engaged, compared=compared, seconds=seconds)


async def damage(uri: str, oracle: Oracle) -> None:
    """One memory's node is edited by hand, and another's removed."""
    for id_, statement in zip(oracle.live[-2:], (GARBLE, FORGET), strict=True):
        await graph(uri, statement, id=str(id_))


async def two_more(stores: Stores, oracle: Oracle) -> None:
    """Memories in both stores."""
    for _ in range(2):
        await oracle.insert(uid(oracle.rows_written + 1), f"row {oracle.rows_written}")
    assert (await finished(stores, oracle))[0].whole


@at_steps(37, "a repair of the remote store")
@pytest.mark.promise("P1")
@pytest.mark.promise("P2")
async def test_37_killed_while_repairing(stores: Stores, oracle: Oracle, scenario: Scenario, *, every: bool) -> None:
    """The next repair finds what is left, and after its push a check is clean."""
    steps = SOME_OF_A_REPAIR
    if every:
        await two_more(stores, oracle)
        await damage(stores.neo4j_uri, oracle)
        steps = distinct(await recorded(stores, *REPAIR), since="one_moment")
        assert "before:enqueue_rows#1" in steps
    for step in steps:
        await two_more(stores, oracle)
        await damage(stores.neo4j_uri, oracle)
        engaged = await killed_at(step, stores, *REPAIR)
        async with running(stores.database_url, stores.neo4j_uri) as program:
            await program.verify("deep", repair=True, dry_run=False)
            await program.sync(timeout=60, embed=False)
            again = await program.verify("deep")
            assert (again.result, again.counts) == ("clean", {}), step
            compared, seconds = await oracle.until_whole()
        scenario.note(engaged=engaged, compared=compared, seconds=seconds)
