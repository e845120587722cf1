"""What is an incident, by the observations of statements and by looks: exact thresholds, no false alarm."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dionysus_sync_mcp.domain.destruction import (
    MOST_COUNTED,
    NOBODY_KNOWN,
    Evidence,
    Incident,
    Observation,
    ObservationKind,
    Rows,
    Sight,
    Thresholds,
    Who,
    could_be_burst,
    details_of,
    incident_id,
    judge,
    questions,
    widened,
)
from dionysus_sync_mcp.domain.watching import compare, database_missing

NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
STORE = "0b7a5f0e-8f1d-4f0e-9a37-1a6f3f7f9a11"
AGENT = Who("app", "psql", "127.0.0.1", 4711, "DROP TABLE memories")
LIMITS = Thresholds()
TRIGGERS = frozenset({"capture_insert", "capture_update", "capture_delete"})


def at(seconds: float) -> datetime:
    """A time."""
    return NOW + timedelta(seconds=seconds)


def seen(
    seq: int,
    kind: ObservationKind,
    seconds: float,
    ids: Iterable[int] = (),
    *,
    rows: int = 0,
    table: int | None = 1,
    detail: str = "",
    who: Who = AGENT,
    judged: bool = False,
) -> Observation:
    """An observation; each statement takes a millisecond."""
    memory_ids = tuple(map(str, ids))
    until = at(seconds + 0.001)
    return Observation(seq, kind, at(seconds), until, rows or len(memory_ids), memory_ids, table, detail, who, judged)


def judged(
    observations: Sequence[Observation],
    *,
    live: Iterable[int] = (),
    population: int = 0,
    known: Sequence[Incident] = (),
    thresholds: Thresholds = LIMITS,
) -> list[Incident]:
    """The incidents of these, of which those that are marked so were judged before."""
    new = [o for o in observations if not o.judged]
    around = [o for o in observations if o.kind in ("delete", "update")]
    evidence = Evidence(new, around, frozenset(map(str, live)), population, known)
    return judge(evidence, thresholds, STORE, at(100))


def one_by_one(count: int, *, over: float, kind: ObservationKind = "delete", first: int = 0) -> list[Observation]:
    """So many statements of one memory each, evenly over so many seconds."""
    return [seen(first + n, kind, over * n / (count - 1), [first + n]) for n in range(count)]


def marked(observations: Iterable[Observation]) -> list[Observation]:
    """The same, judged."""
    return [o._replace(judged=True) for o in observations]


@pytest.mark.parametrize(
    ("observations", "rows"),
    [
        ([seen(1, "delete", 0, range(10))], None),
        ([seen(1, "delete", 0, range(11))], 11),
        (one_by_one(10, over=1), None),
        (one_by_one(11, over=1), 11),
        (one_by_one(11, over=60), 11),
        (one_by_one(11, over=60.001), None),
        (one_by_one(11, over=61), None),
        ([seen(1, "delete", 0, range(6)), seen(2, "delete", 60, range(6, 11))], 11),
        ([seen(1, "delete", 0, range(6)), seen(2, "delete", 61, range(6, 11))], None),
        ([seen(n, "delete", n / 10, [7]) for n in range(100)], None),
    ],
    ids=[
        "10 in one statement", "11 in one statement", "10 one by one", "11 one by one", "11 within 60.0 s",
        "11 within 60.001 s", "11 within 61 s", "two statements within 60 s", "two statements within 61 s",
        "the same memory 100 times",
    ],
)  # fmt: skip
def test_rapid_deletes(observations: list[Observation], rows: int | None) -> None:
    """More than ten memories within 60 seconds, both ends included, however many statements it takes."""
    assert [(i.kind, i.rows) for i in judged(observations)] == ([("rapid_deletes", rows)] if rows else [])


def test_a_burst_begins_before_its_first_row_and_ends_after_its_last() -> None:
    """What was deleted a while before it is none of it; who deleted most is named."""
    other = AGENT._replace(pid=1)
    (found,) = judged(
        [
            seen(1, "delete", -100, range(5)),
            seen(2, "delete", 0, [5], who=other),
            seen(3, "delete", 30, range(10, 20)),
            seen(4, "delete", 91, [6]),
        ]
    )
    assert (found.restore_point, found.last_at, found.rows) == (at(0), at(30.001), 11)
    assert (found.who, found.detected_at, found.store) == (AGENT, at(100), STORE)
    assert found.summary == "11 memories were deleted within 60 s."
    assert found.id == incident_id(STORE, found.key)


def test_two_bursts_are_two_incidents() -> None:
    """With more than the span between them."""
    found = judged([seen(1, "delete", 0, range(11)), seen(2, "delete", 61, range(20, 40))])
    assert [(i.restore_point, i.rows) for i in found] == [(at(0), 11), (at(61), 20)]
    assert len({i.id for i in found}) == 2


def test_a_long_burst_is_one_incident() -> None:
    """However long, as long as every part of it is too fast."""
    (found,) = judged(one_by_one(100, over=400))
    assert (found.rows, found.summary) == (100, "100 memories were deleted within 400 s.")


def test_what_is_in_the_table_when_it_is_judged_was_not_deleted() -> None:
    """Deleted and inserted again, in one transaction or soon after."""
    observations = [seen(1, "delete", 0, range(11))]
    assert judged(observations, live=[3]) == []
    assert judged(observations, live=range(11)) == []
    (found,) = judged([*observations, seen(2, "delete", 5, [20])], live=[3])
    assert found.rows == 11


@pytest.mark.parametrize(
    ("changed", "population", "found"),
    [
        (49, 100, False),
        (50, 100, False),
        (51, 100, True),
        (100, 100, True),
        (5, 9, True),
        (4, 4, False),
        (5, 10, False),
    ],
)
@pytest.mark.parametrize("one_statement", [True, False])
def test_bulk_update(changed: int, population: int, found: bool, one_statement: bool) -> None:
    """The content of more than half of the memories within 60 seconds, and of five at least."""
    loop = one_by_one(changed, over=60, kind="update")
    observations = [seen(1, "update", 0, range(changed))] if one_statement else loop
    incidents = judged(observations, population=population)
    assert [(i.kind, i.rows) for i in incidents] == ([("bulk_update", changed)] if found else [])
    if found:
        text = f"{changed} of {population} memories were given another content within 60 s."
        assert incidents[0].summary == text


def test_a_loop_that_takes_longer_than_the_span_is_none() -> None:
    """51 of 100 memories over 61 seconds."""
    assert judged(one_by_one(51, over=61, kind="update"), population=100) == []


def test_one_memory_changed_a_hundred_times_is_one_memory() -> None:
    """An agent that works on a few of its memories is no incident."""
    loop = [seen(n, "update", n / 10, [n % 4]) for n in range(100)]
    assert judged(loop, population=5) == []


def test_what_was_deleted_meanwhile_still_counts_as_there_before() -> None:
    """Five changed contents are not all of a table that was emptied right after them."""
    changes = seen(1, "update", 0, range(5))
    assert [i.kind for i in judged([changes, seen(2, "truncate", 1, rows=100)])] == ["truncate"]
    assert judged([changes, seen(2, "delete", 1, range(5, 10))], population=5) == []


def test_thresholds_are_settings() -> None:
    """Each of them."""
    stricter = Thresholds(deletes=1, updates=2, share=0.1, seconds=1)
    assert [i.rows for i in judged([seen(1, "delete", 0, [1, 2])], thresholds=stricter)] == [2]
    assert [i.rows for i in judged([seen(1, "update", 0, [1, 2])], population=10, thresholds=stricter)] == [2]
    apart = [seen(1, "delete", 0, [1]), seen(2, "delete", 1.1, [2])]
    assert judged(apart, thresholds=stricter) == []


def test_a_burst_that_goes_on_widens_its_incident() -> None:
    """Also where it goes on before its beginning, since a transaction committed late; a memory is counted once."""
    before = [seen(2, "delete", 0, range(11))]
    (first,) = judged(before)
    later = [seen(3, "delete", 50, [10, 11, 12]), seen(1, "delete", -5, [20])]
    (wider,) = judged([*marked(before), *later], known=[first])
    assert (wider.id, wider.key, wider.rows) == (first.id, first.key, 14)
    assert (wider.restore_point, wider.last_at) == (at(-5), at(50.001))
    assert wider.summary == "14 memories were deleted within 60 s."


def test_the_first_hits_of_a_client_count_once_it_has_enough() -> None:
    """They had been judged before as none of the other client's burst."""
    other = AGENT._replace(pid=4712)
    before = [seen(1, "delete", 0, range(11))]
    (first,) = judged(before)
    lone = seen(2, "delete", 5, [20], who=other)
    assert judged([*marked(before), lone], known=[first]) == []
    later = [seen(3 + n, "delete", 6 + n / 10, [21 + n], who=other) for n in range(29)]
    (wider,) = judged([*marked([*before, lone]), *later], known=[first])
    assert (wider.id, wider.rows) == (first.id, 41)


def test_a_single_delete_some_time_after_a_burst_is_none_of_it() -> None:
    """Otherwise whoever works on would make an incident longer and longer."""
    before = [seen(1, "delete", 0, range(11))]
    known = judged(before)
    assert judged([*marked(before), seen(2, "delete", 60.5, [20])], known=known) == []


def test_what_a_person_has_closed_is_not_counted_again() -> None:
    """Of the same burst, only what came after it counts."""
    before = [seen(1, "delete", 0, range(11))]
    closed = [replace(i, closed_at=at(10), closed_reason="on purpose") for i in judged(before)]
    assert judged([*marked(before), seen(2, "delete", 20, range(20, 30))], known=closed) == []
    (second,) = judged([*marked(before), seen(2, "delete", 20, range(20, 31))], known=closed)
    assert (second.rows, second.restore_point) == (11, at(20))
    assert second.id != closed[0].id


def test_what_nobody_had_judged_when_an_incident_was_closed_counts() -> None:
    """It happened in the incident's time, and is none of what a person has seen."""
    before = [seen(1, "delete", 0, range(11)), seen(2, "delete", 50, range(11, 22))]
    closed = [replace(i, closed_at=at(55), closed_reason="on purpose") for i in judged(before)]
    (second,) = judged([*marked(before), seen(3, "delete", 20, range(30, 41))], known=closed)
    assert (second.rows, second.restore_point) == (11, at(20))
    assert judged([*marked(before), seen(3, "delete", 20, range(30, 40))], known=closed) == []


def test_rows_that_were_deleted_and_came_back_as_others_are_changed_contents() -> None:
    """Together with those that were updated; those that came back as they were are none."""
    both = [seen(1, "delete", 0, range(40)), seen(2, "update", 1, range(40, 55))]
    evidence = Evidence(both, both, frozenset(map(str, range(40))), 100, replaced=dict.fromkeys(map(str, range(36))))
    (found,) = judge(evidence, LIMITS, STORE, at(100))
    assert (found.kind, found.rows, found.restore_point, found.last_at) == ("bulk_update", 51, NOW, at(60.001))
    known = replace(evidence, replaced=dict.fromkeys(map(str, range(36)), at(7)))
    assert [i.last_at for i in judge(known, LIMITS, STORE, at(100))] == [at(7)]
    assert judge(replace(evidence, replaced={"1": None}), LIMITS, STORE, at(100)) == []


def test_what_is_not_new_makes_nothing() -> None:
    """It was judged when it was."""
    assert judged(marked([seen(1, "delete", 0, range(50))])) == []


def test_nothing_is_asked_where_no_answer_matters() -> None:
    """A few deletes and updates, as there are every day."""
    few = [seen(1, "delete", 0, range(10)), seen(2, "update", 0, range(4))]
    assert questions(few, few, LIMITS, 100) == (frozenset(), False)
    assert questions(few, few, LIMITS) == (frozenset(map(str, range(10))), True)
    many = [seen(1, "delete", 0, range(11)), seen(2, "update", 0, range(5))]
    assert questions(many, many, LIMITS) == (frozenset(map(str, range(11))), True)
    assert questions(many[:1], many, LIMITS, 100).population is False


def test_few_rows_are_no_burst() -> None:
    """They need not be looked at one by one; where they could be one, they are."""
    assert not could_be_burst(Rows(10, 4), LIMITS, 100)
    assert [could_be_burst(Rows(deleted, 3), LIMITS) for deleted in (1, 2)] == [False, True]
    assert could_be_burst(Rows(11, 0), LIMITS)
    assert could_be_burst(Rows(0, 5), LIMITS)
    assert [could_be_burst(Rows(0, rows), LIMITS, 100) for rows in (50, 51)] == [False, True]


def test_an_emptied_table_is_an_incident_by_itself() -> None:
    """However few rows it held; each time."""
    found = judged([seen(1, "truncate", 0, rows=3), seen(2, "truncate", 30)])
    assert [(i.kind, i.rows, i.summary) for i in found] == [
        ("truncate", 3, "The table memories was emptied; it held 3 memories."),
        ("truncate", 0, "The table memories was emptied."),
    ]
    assert len({i.id for i in found}) == 2


def test_all_that_one_statement_hits_is_one_event() -> None:
    """A schema with the table and the bookkeeping in it, observed one by one."""
    (found,) = judged(
        [
            seen(1, "drop", 0, table=None, detail="sync_queue of the bookkeeping dropped", rows=0),
            seen(2, "drop", 0.2, table=16403, detail="schema public dropped with table memories", rows=7),
        ]
    )
    assert (found.kind, found.key, found.rows) == ("drop", "gone:16403", 7)
    assert (found.restore_point, found.summary) == (at(0), "The table memories is gone; it held 7 memories.")


def test_events_of_others_or_later_ones_are_their_own() -> None:
    """Another client's, or one of more than a second later."""
    two = [seen(1, "alter", 0, detail="column a dropped"), seen(2, "alter", 1.5, detail="column b dropped")]
    assert [i.summary for i in judged(two)] == [
        "The table memories was changed: column a dropped.",
        "The table memories was changed: column b dropped.",
    ]
    other = AGENT._replace(pid=1)
    assert len(judged([seen(1, "alter", 0), seen(2, "alter", 0.1, who=other)])) == 2
    assert len(judged([seen(1, "alter", 0), seen(2, "alter", 0.1)])) == 1


def test_an_event_that_was_judged_in_part_goes_on() -> None:
    """The second half came with the next look."""
    (first,) = judged([seen(1, "alter", 0, detail="column a dropped")])
    (second,) = judged([seen(2, "alter", 0.5, detail="column b dropped")], known=[first])
    assert second.id == first.id


def test_triggers_that_are_switched_off_are_no_change_of_the_table() -> None:
    """They are told as what they are."""
    (found,) = judged([seen(1, "alter", 0, detail="trigger dionysus_capture_delete switched off")])
    assert found.kind == "capture_off"


@pytest.mark.parametrize("detail", ["table memories renamed to public.old", "table memories renamed to other.memories"])
def test_a_table_that_is_told_and_seen_to_be_gone_is_one_event(detail: str) -> None:
    """Whichever comes first."""
    observation = seen(1, "alter", 1, table=7, detail=detail)
    before, after = sight(0, table=7), sight(2, table=None)
    (told,) = judged([observation])
    assert [i.id for i in compare(before, after, LIMITS, TRIGGERS, [told])] == [told.id]
    (looked,) = compare(before, after, LIMITS, TRIGGERS)
    assert [i.id for i in judged([observation], known=[looked])] == [looked.id]
    assert widened(looked, told).kind == widened(told, looked).kind == "alter"
    assert widened(looked, told).who == AGENT


def test_a_table_can_be_renamed_twice() -> None:
    """After a person has closed the first incident."""
    (first,) = judged([seen(1, "alter", 0, table=7, detail="table memories renamed to public.old")])
    closed = replace(first, closed_at=at(10))
    (second,) = judged([seen(2, "alter", 50, table=7, detail="table memories renamed to public.old")], known=[closed])
    assert second.id != first.id


def test_no_message_holds_what_a_user_called_a_column() -> None:
    """As it is."""
    (found,) = judged([seen(1, "alter", 0, detail='column DROP TABLE memories"; \x1b[31m dropped')])
    assert found.summary == 'The table memories was changed: column D·ROP T·ABLE memories"; dropped.'
    details = details_of(replace(found, who=Who("r", "TRUNCATE memories", "::1", 7, "drop\u200b table memories")))
    assert (details["application_name"], details["statement"]) == ("T·RUNCATE memories", "d·rop t·able memories")


def test_widening_is_idempotent_and_in_any_order_the_same() -> None:
    """What is seen earliest, latest, and most of it."""
    (base,) = judged([seen(1, "delete", 0, range(11))])
    parts = [
        replace(base, who=NOBODY_KNOWN),
        replace(base, rows=20, summary="twenty", last_at=at(5)),
        replace(base, restore_point=at(-3)),
    ]
    results = set()
    for first, *others in permutations(parts):
        merged = first
        for other in others:
            merged = widened(merged, other)
        assert widened(merged, merged) is merged
        results.add((merged.rows, merged.summary, merged.restore_point, merged.last_at, merged.who))
    assert results == {(20, "twenty", at(-3), at(5), AGENT)}


def test_a_look_does_not_make_a_restore_point_less_exact() -> None:
    """The database has told when the table went; a look knows only when it was there last."""
    (told,) = judged([seen(1, "drop", 0, table=7, rows=20)])
    looked = replace(told, kind="table_missing", restore_point=at(-2), who=NOBODY_KNOWN)
    assert widened(told, looked).restore_point == told.restore_point
    assert widened(looked, told).restore_point == told.restore_point


def test_a_closed_incident_stays_closed() -> None:
    """And what is closed elsewhere is closed here."""
    (base,) = judged([seen(1, "delete", 0, range(11))])
    closed = replace(base, closed_at=at(10), closed_reason="on purpose")
    assert widened(closed, replace(base, rows=20)).closed_reason == "on purpose"
    assert widened(base, closed).closed_at == at(10)
    assert widened(closed, replace(closed, closed_at=at(20), closed_reason="later")) is closed


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.sets(st.integers(0, 40), min_size=1, max_size=8)), max_size=40),
    st.integers(1, 12),
)
def test_a_burst_is_found_exactly_where_some_span_is_too_full(
    statements: list[tuple[int, set[int]]], deletes: int
) -> None:
    """Compared with counting every span by itself."""
    observations = [seen(n, "delete", time / 10, ids) for n, (time, ids) in enumerate(statements)]
    thresholds = Thresholds(deletes=deletes)
    full = [
        {o.seq for o in inside}
        for first in observations
        for inside in [[o for o in observations if timedelta() <= o.at - first.at <= timedelta(seconds=60)]]
        if len({id_ for o in inside for id_ in o.memory_ids}) > deletes
    ]
    found = judged(observations, thresholds=thresholds)
    covered = {o.seq for o in observations for i in found if i.restore_point <= o.at < i.last_at}
    assert covered == set().union(*full)


def sight(
    seconds: float,
    *,
    store: str | None = STORE,
    table: int | None = 1,
    columns: tuple[str, ...] = ("content text", "tags text[]"),
    triggers: frozenset[str] = TRIGGERS,
    event_triggers: bool = False,
    rows: int | None = 100,
    gone: int = 0,
    whole: bool = True,
    recovering: bool = False,
    database: int | None = 5,
) -> Sight:
    """A look at a store that is well, but for what is said."""
    return Sight(
        at(seconds), store, table, columns, triggers, event_triggers, rows, 1, gone, whole, recovering, database
    )


BEFORE = sight(0)
NO_TABLE = sight(2, table=None, columns=(), triggers=frozenset(), rows=None)


@pytest.mark.parametrize(
    ("now", "kind", "key", "rows"),
    [
        (NO_TABLE, "table_missing", "gone:1", 100),
        (sight(2, table=2, rows=0), "table_recreated", "gone:1", 100),
        (sight(2, triggers=frozenset()), "capture_off", f"capture_off:1:{NOW.isoformat()}", 0),
        (sight(2, columns=("content text",)), "alter", f"alter:1:{NOW.isoformat()}", 100),
        (sight(2, columns=("content varchar(3)", "tags text[]")), "alter", f"alter:1:{NOW.isoformat()}", 100),
        (sight(2, rows=89), "rows_missing", f"rows_missing:1:{NOW.isoformat()}", 11),
        (sight(2, rows=0), "rows_missing", f"rows_missing:1:{NOW.isoformat()}", 100),
        (sight(2, rows=69, gone=20), "rows_missing", f"rows_missing:1:{NOW.isoformat()}", 11),
        (sight(2, whole=False), "bookkeeping_missing", f"parts:{NOW.isoformat()}", 0),
        (sight(2, store=None), "bookkeeping_missing", "store:1", 0),
        (sight(2, store="0b7a5f0e-8f1d-4f0e-9a37-1a6f3f7f9a12"), "bookkeeping_missing", "store:1", 0),
        (replace(NO_TABLE, store=None), "table_missing", "store:1", 100),
    ],
)
def test_what_looks_find(now: Sight, kind: str, key: str, rows: int) -> None:
    """One incident, of which the look before is the restore point; from the second look on there is nothing new."""
    (found,) = compare(BEFORE, now, LIMITS, TRIGGERS)
    assert (found.kind, found.key, found.rows, found.store) == (kind, key, rows, STORE)
    assert (found.restore_point, found.last_at, found.detected_at) == (NOW, at(2), at(2))
    assert compare(now, replace(now, seen_at=at(4), gone=0), LIMITS, TRIGGERS) == []


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (None, BEFORE),
        (None, NO_TABLE),
        (BEFORE, sight(2)),
        (BEFORE, sight(2, rows=90)),
        (BEFORE, sight(2, rows=0, gone=100)),
        (BEFORE, sight(2, rows=0, gone=95)),
        (BEFORE, sight(2, rows=100_000)),
        (BEFORE, sight(2, rows=None)),
        (BEFORE, sight(2, columns=("content text", "mood text", "tags text[]"))),
        (replace(BEFORE, triggers=frozenset()), sight(2)),
        (replace(BEFORE, triggers=TRIGGERS | {"of_an_older_version"}), sight(2)),
        (
            replace(BEFORE, event_triggers=True, columns=("content text", "mood text", "note character varying(9)")),
            sight(2, event_triggers=True, columns=("content text", "feeling text", "note character varying(10)")),
        ),
        (
            replace(BEFORE, columns=("content character varying(9)", "tags text[]")),
            sight(2, columns=("content text", "tags text[]")),
        ),
        (replace(BEFORE, table=None), sight(2, table=2, rows=0)),
        (replace(BEFORE, store=None), sight(2)),
        (BEFORE, sight(2, table=2, rows=0, recovering=True)),
        (BEFORE, sight(2, columns=("content text",), recovering=True)),
        (replace(BEFORE, rows=None), sight(2, rows=MOST_COUNTED - 10)),
        (BEFORE, sight(2, database=6, table=2, rows=10, columns=("content text",))),
    ],
    ids=[
        "the first look ever", "the first look, at nothing", "nothing has changed", "10 rows went", "all went as told",
        "5 more than told went", "rows came", "more came than are counted", "a column was added",
        "an upgrade added triggers", "an upgrade removed a trigger", "a column has another name", "a column holds more",
        "a table was made where there was none", "a store was made", "a recovery made the table anew",
        "a recovery changes columns", "hardly less than are counted", "a dump was restored into another database",
    ],
)  # fmt: skip
def test_no_false_alarm(before: Sight | None, now: Sight) -> None:
    """What was meant, what the database tells by itself, and what is our own doing."""
    assert compare(before, now, LIMITS, TRIGGERS) == []


def test_more_rows_than_are_counted_can_be_missing() -> None:
    """All of a big table."""
    (found,) = compare(replace(BEFORE, rows=None), sight(2, rows=0), LIMITS, TRIGGERS)
    assert (found.kind, found.rows) == ("rows_missing", MOST_COUNTED)


def test_event_triggers_that_are_gone_are_told() -> None:
    """From then on only looks show what is lost."""
    (found,) = compare(replace(BEFORE, event_triggers=True), sight(2), LIMITS, TRIGGERS)
    assert found.kind == "capture_off"


@pytest.mark.parametrize(
    "columns",
    [
        ("content text",),
        ("content text", "tags text"),
        ("content text", "labels text[]"),
        ("content character varying(3)", "tags text[]"),
    ],
)
def test_an_alteration_that_the_database_was_kept_from_telling_of_is_found(columns: tuple[str, ...]) -> None:
    """Its event triggers fire at both looks, and did not between them."""
    now = sight(2, event_triggers=True, columns=columns)
    (found,) = compare(replace(BEFORE, event_triggers=True), now, LIMITS, TRIGGERS)
    assert (found.kind, found.rows) == ("alter", 100)


@pytest.mark.parametrize(
    ("observation", "now"),
    [
        (seen(1, "alter", 1, detail="trigger capture_update switched off"), sight(2, triggers=frozenset())),
        (seen(1, "drop", 1, table=None, detail="trigger x of the bookkeeping dropped"), sight(2, triggers=frozenset())),
        (seen(1, "drop", 1, table=None, detail="sync_queue of the bookkeeping dropped"), sight(2, whole=False)),
        (seen(1, "alter", 1, detail="column tags dropped"), sight(2, columns=("content text",))),
        (seen(1, "drop", 1, detail="table memories dropped"), NO_TABLE),
        (seen(1, "drop", 1, detail="table memories dropped"), sight(2, table=2, rows=0)),
    ],
)
def test_what_the_database_tells_and_a_look_finds_is_one_incident(observation: Observation, now: Sight) -> None:
    """Whichever comes first."""
    (told,) = judged([observation])
    assert {i.id for i in compare(BEFORE, now, LIMITS, TRIGGERS, [told])} <= {told.id}
    (looked,) = compare(BEFORE, now, LIMITS, TRIGGERS)
    assert [i.id for i in judged([observation], known=[looked])] == [looked.id]
    assert widened(looked, told).who == AGENT


def test_what_other_processes_have_recorded_is_not_recorded_again() -> None:
    """Though they looked at other times."""
    (theirs,) = compare(BEFORE, sight(2, triggers=frozenset()), LIMITS, TRIGGERS)
    (ours,) = compare(sight(1), sight(3, triggers=frozenset()), LIMITS, TRIGGERS, [theirs])
    assert ours.id == theirs.id
    later = compare(sight(5), sight(7, triggers=frozenset()), LIMITS, TRIGGERS, [theirs])
    assert [i.id == theirs.id for i in later] == [False]


def test_a_database_that_is_gone_is_the_same_event_as_all_that_was_in_it() -> None:
    """One process finds no database, another one finds a new one in its place."""
    gone = database_missing(BEFORE, STORE, at(5))
    assert (gone.kind, gone.rows, gone.summary) == (
        "database_missing",
        100,
        "The database is gone. It held 100 memories.",
    )
    (empty,) = compare(BEFORE, replace(NO_TABLE, store=None), LIMITS, TRIGGERS)
    assert empty.id == gone.id
    assert widened(empty, gone).kind == widened(gone, empty).kind == "database_missing"
