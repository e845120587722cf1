"""Rows are deleted, or their contents overwritten, statement by statement: what is a burst, what is a user's work."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import asyncpg
import pytest

from tests.faults.destruction import (
    AGENT,
    INCIDENTS,
    Blow,
    Field,
    Recorded,
    blows,
    command,
    held,
    images_here,
    now_there,
    recover,
    until_drained,
    until_watched,
    watching,
)
from tests.faults.plugin import Scenario
from tests.faults.program import SOON
from tests.integration.stores import Client, plain_client
from tests.services.waiting import until

DELETE = "DELETE FROM memories WHERE id = $1"
BLANK = "UPDATE memories SET content = '' WHERE id = $1"
HAVE_PASSED = "SELECT clock_timestamp() - $1 > make_interval(secs => $2)"
FEW, MANY = 10, 11
SPAN = 60.0


class Pace(NamedTuple):
    """Eleven deletes, the last one some time after the others, and whether that is a burst.

    Attributes:
        setting: DIONYSUS_INCIDENT_SECONDS.
        pause: Seconds before the last one.
    """

    setting: str
    pause: float
    is_burst: bool


async def agent_does(field: Field, sql: str, ids: Sequence[UUID], *, at_once: bool) -> None:
    """Statement by statement, or in one."""
    async with plain_client(field.stores.database_url, application_name=AGENT) as client:
        if at_once:
            await client.execute(sql.replace("= $1", "= ANY ($1)"), ids)
        else:
            statement = await client.prepare(sql)
            for id_ in ids:
                await statement.fetch(id_)


async def judged(field: Field) -> list[Recorded]:
    """The incidents on record when everything that was seen has been judged."""
    url = field.stores.database_url
    await until_watched(url, await now_there(url))
    async with plain_client(url) as client:
        return [Recorded(*row) for row in await client.fetch(INCIDENTS)]


@pytest.mark.promise("P4")
@pytest.mark.promise("P6")
@pytest.mark.promise("P8")
@pytest.mark.parametrize(
    "at_once",
    [
        pytest.param(True, marks=pytest.mark.scenario(23, "11 deletes in one statement")),
        pytest.param(False, marks=[pytest.mark.scenario(23, "11 deletes one by one"), pytest.mark.slow]),
    ],
)
async def test_23_eleven_deletes_are_an_incident(field: Field, scenario: Scenario, *, at_once: bool) -> None:
    """They become tombstones and come back; it is known who deleted them, and it is one incident however many."""
    victims = field.ids[:MANY]
    live = await field.live()
    async with watching(field.stores):
        await agent_does(field, DELETE, victims, at_once=at_once)
        incident = await field.incident("rapid_deletes", MANY)
        assert (incident.role, incident.application_name) == ("postgres", AGENT)
        await until_drained(field.stores.database_url)
        assert await field.live() == live - MANY
        engaged = not field.expected.keys() <= (await images_here(field)).keys()
        recovery = await field.recovered(incident)
        assert recovery.restored == MANY
    scenario.note(engaged=engaged, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


@pytest.mark.slow
@pytest.mark.scenario(23, "11 deletes, then 30 more while they are looked at; one is written anew under its id")
@pytest.mark.promise("P6")
@pytest.mark.promise("P8")
async def test_23_a_burst_that_goes_on_is_one_incident(field: Field, scenario: Scenario) -> None:
    """It grows. A row under the id of a memory that it deleted may be made up: that comes back, and the row is kept."""
    victims = field.ids[: MANY + 30]
    async with watching(field.stores), plain_client(field.stores.database_url) as client:
        await agent_does(field, DELETE, victims[:MANY], at_once=False)
        first = await field.incident("rapid_deletes", MANY)
        await agent_does(field, DELETE, victims[MANY:], at_once=False)
        incident = await field.incident("rapid_deletes", len(victims))
        assert (incident.id, incident.restore_point) == (first.id, first.restore_point)
        await client.execute("INSERT INTO memories (id, content) VALUES ($1, 'from what was left of it')", victims[0])
        recovery = await field.recovered(incident)
        kept = await client.fetch("SELECT memory_id, image ->> 'content' FROM dionysus_sync.recovery_undo")
    assert (recovery.restored, recovery.report["overwritten"]) == (len(victims), 1)
    assert [tuple(row) for row in kept] == [(victims[0], "from what was left of it")]
    scenario.note(engaged=True, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


@pytest.mark.slow
@pytest.mark.scenario(23, "11 deletes, which a person says were meant; then 11 more at once")
@pytest.mark.promise("P6")
@pytest.mark.promise("P8")
async def test_23_after_a_closed_incident_comes_another_one(field: Field, scenario: Scenario) -> None:
    """What was meant stays deleted; what follows in the same span is not swallowed by what was closed."""
    meant, not_meant = field.ids[:MANY], field.ids[MANY : 2 * MANY]
    async with watching(field.stores):
        await agent_does(field, DELETE, meant, at_once=True)
        first = await field.incident("rapid_deletes", MANY)
        closed = await command(field.stores, "incidents", "--close", first.id, "--reason", "old ones", "--json")
        assert closed.status == 0, closed
        field.forget(meant)
        await agent_does(field, DELETE, not_meant, at_once=True)

        async def another() -> bool:
            return [i.rows for i in await field.local_incidents() if i.is_open] == [MANY]

        await until(another, what="another incident", seconds=SOON)
        recovery = await field.recovered(None)
    assert recovery.restored == MANY
    scenario.note(engaged=True, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


@pytest.mark.scenario(23, "10 deletes within 60 s")
@pytest.mark.promise("P6")
async def test_23_ten_deletes_are_a_users_work(field: Field, scenario: Scenario) -> None:
    """No incident; a recovery leaves them deleted."""
    victims = field.ids[:FEW]
    async with watching(field.stores):
        await agent_does(field, DELETE, victims, at_once=False)
        assert await judged(field) == []
        assert await field.remote_incidents() == []
        engaged = not (await images_here(field)).keys() & set(map(str, victims))
        field.forget(victims)
        answer = await recover(field.stores)
        assert (answer.status, answer.report["will_restore"]) == (0, 0), answer
        compared = await field.compared()
    scenario.note(engaged=engaged, compared=compared, restored=0)


@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    "pace",
    [
        pytest.param(
            Pace("1", 1.1, is_burst=False), marks=pytest.mark.scenario(23, "11 deletes over more than a span")
        ),
        pytest.param(
            Pace("60", 1.1, is_burst=True),
            marks=[pytest.mark.scenario(23, "11 deletes at the same pace within a span"), pytest.mark.slow],
        ),
        pytest.param(
            Pace("60", 61.0, is_burst=False), marks=[pytest.mark.scenario(23, "11 deletes over 61 s"), pytest.mark.slow]
        ),
    ],
)
async def test_23_eleven_deletes_over_more_than_the_span(field: Field, scenario: Scenario, pace: Pace) -> None:
    """The span is what counts: the same deletes are an incident where it is longer."""
    victims = field.ids[:MANY]
    async with (
        watching(field.stores, DIONYSUS_INCIDENT_SECONDS=pace.setting),
        plain_client(field.stores.database_url) as client,
    ):
        begun = await client.fetchval("SELECT clock_timestamp()")
        await agent_does(field, DELETE, victims[:FEW], at_once=True)
        await until_passed(client, begun, pace)
        await agent_does(field, DELETE, victims[FEW:], at_once=True)
        found = [(i.kind, i.rows) for i in await judged(field)]
        assert found == ([("rapid_deletes", MANY)] if pace.is_burst else [])
        if not pace.is_burst:
            field.forget(victims)
        restored = (await field.recovered(None)).restored if pace.is_burst else 0
        compared = await field.compared()
    scenario.note(engaged=True, compared=compared, restored=restored)


async def until_passed(client: Client, begun: datetime, pace: Pace) -> None:
    """Wait until the database's clock says that the pause is over since the first delete, which was after `begun`."""
    first_at = await client.fetchval("SELECT max(at) FROM dionysus_sync.observations WHERE at >= $1", begun)

    async def passed() -> bool:
        return bool(await client.fetchval(HAVE_PASSED, first_at, pace.pause))

    await until(passed, what="the pause is over", seconds=pace.pause + SOON)


ALL_BLANK = "UPDATE memories SET content = ''"
EACH_ITS_OWN = "UPDATE memories SET content = 'overwritten ' || id"
WHOLESALE = {
    "UPDATE of all contents to ''": Blow(ALL_BLANK, "bulk_update"),
    "UPDATE of all contents, with memories that are new then": Blow(EACH_ITS_OWN, "bulk_update", newer=True),
    "UPDATE of all that moves them to another project, too": Blow(
        "UPDATE memories SET content = 'x', source_project = 'taken', tags = '{}', importance = 0", "bulk_update"
    ),
}


@pytest.mark.promise("P4")
@pytest.mark.promise("P6")
@pytest.mark.promise("P7")
@pytest.mark.parametrize("blow", blows(29, WHOLESALE, fast=["UPDATE of all contents to ''"]))
async def test_29_all_contents_are_overwritten(field: Field, scenario: Scenario, blow: Blow) -> None:
    """Each memory comes back as it was before; what was overwritten goes forward in the remote store, not back."""
    async with watching(field.stores):
        incident, engaged = await field.strike(blow)
        recovery = await field.recovered(incident)
        assert recovery.report["overwritten"] == incident.rows
    scenario.note(engaged=engaged, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


@pytest.mark.promise("P6")
@pytest.mark.parametrize(
    "at_once",
    [
        pytest.param(True, marks=[pytest.mark.scenario(29, "UPDATE of 51 % of the contents"), pytest.mark.slow]),
        pytest.param(
            False, marks=[pytest.mark.scenario(29, "UPDATEs of single rows, up to 51 % in 60 s"), pytest.mark.slow]
        ),
    ],
)
async def test_29_more_than_half_of_the_contents(field: Field, scenario: Scenario, *, at_once: bool) -> None:
    """In one statement or row by row it is one incident of as many rows; the others are not touched by the recovery."""
    victims = field.ids[: len(field.ids) * 51 // 100]
    async with watching(field.stores):
        await agent_does(field, BLANK, victims, at_once=at_once)
        incident = await field.incident("bulk_update", len(victims))
        assert incident.application_name == AGENT
        recovery = await field.recovered(incident)
        assert recovery.report["overwritten"] == len(victims)
    scenario.note(engaged=True, compared=recovery.compared, seconds=recovery.seconds, restored=recovery.restored)


@pytest.mark.slow
@pytest.mark.scenario(29, "UPDATE of 49 % of the contents, taken back to a time")
@pytest.mark.promise("P6")
async def test_29_less_than_half_of_the_contents(field: Field, scenario: Scenario) -> None:
    """No incident, and nothing that a recovery undoes unasked; the contents of a time before come back when asked."""
    victims = field.ids[: len(field.ids) * 49 // 100]
    before = dict(field.expected)
    async with watching(field.stores), plain_client(field.stores.database_url, timezone="UTC") as client:
        moment = await client.fetchval("SELECT clock_timestamp()")
        await client.execute("UPDATE memories SET content = 'worked over ' || id WHERE id = ANY ($1)", victims)
        assert await judged(field) == []
        worked_over = (await held(client)).images
        field.keep(worked_over)
        unasked = await recover(field.stores)
        assert (unasked.status, unasked.report["will_restore"]) == (0, 0), unasked
        assert not (await field.compared()).wrong
        field.keep(before)
        recovery = await field.recovered(None, "--as-of", moment.isoformat(), "--overwrite-newer")
    assert recovery.restored == len(victims)
    scenario.note(
        engaged=worked_over != before,
        compared=recovery.compared,
        seconds=recovery.seconds,
        restored=recovery.restored,
    )


@pytest.mark.slow
@pytest.mark.scenario(29, "UPDATE of all contents to NULL, which the table refuses")
@pytest.mark.promise("P5")
async def test_29_what_the_table_refuses_is_no_incident(field: Field, scenario: Scenario) -> None:
    """Nothing has happened, and nothing is told of."""
    async with watching(field.stores):
        with pytest.raises(asyncpg.NotNullViolationError):
            async with plain_client(field.stores.database_url) as client:
                await client.execute("UPDATE memories SET content = NULL")
        assert await judged(field) == []
        compared = await field.compared()
    scenario.note(engaged=True, compared=compared, restored=0)


@pytest.mark.slow
@pytest.mark.scenario(29, "UPDATE of all contents, recovered, undone, taken back to a time")
@pytest.mark.promise("P6")
async def test_29_an_undo_and_another_recovery(field: Field, scenario: Scenario) -> None:
    """What the recovery overwrote comes back, row by row as it was; what a person has undone, a time still names."""
    async with watching(field.stores):
        incident, engaged = await field.strike(Blow(EACH_ITS_OWN, "bulk_update", last_words=False))
        overwritten, good = await images_here(field), dict(field.expected)
        first = await field.recovered(incident)
        undone = await command(field.stores, "undo", "--yes", "--json")
        assert (undone.status, undone.report["complete"]) == (0, True), undone
        assert undone.report["restored"] == len(overwritten)
        assert await images_here(field) == overwritten
        field.keep(overwritten)
        assert (await field.compared()).whole
        field.keep(good)
        again = await field.recovered(None, "--as-of", incident.restore_point.isoformat(), "--overwrite-newer")
    scenario.note(
        engaged=engaged, compared=again.compared, seconds=again.seconds, restored=first.restored + again.restored
    )
