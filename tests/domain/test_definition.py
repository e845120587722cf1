"""Merging noted definitions of the local table."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dionysus_sync_mcp.domain.definition import is_definition, lacks, reshaped, retyped, same, valid_at, widened


def definition(*names: str, **more: object) -> str:
    """Of columns that must not be null."""
    return json.dumps({"columns": [{"name": name, "not_null": True} for name in names], **more})


@pytest.mark.promise("P4")
def test_a_column_is_never_lost() -> None:
    """It is added at the end and may be null; the rest is the current table's, and merging again changes nothing."""
    merged = widened(definition("id", "new", indexes=["theirs"]), definition("id", "price", indexes=["ours"]))
    assert json.loads(merged) == {
        "columns": [
            {"name": "id", "not_null": True}, {"name": "new", "not_null": True},
            {"name": "price", "not_null": False, "gone": True},
        ],
        "indexes": ["theirs"],
    }  # fmt: skip
    assert widened(definition("id", "new", indexes=["theirs"]), merged) == merged


@pytest.mark.parametrize("noted", [None, "", "no json", "[1]", '{"columns": 1}', '{"columns": [1]}', definition("id")])
def test_what_adds_nothing_changes_nothing(noted: str | None) -> None:
    """Junk that somebody wrote by hand included."""
    current = definition("id", "price")
    assert widened(current, noted) is current


OLD = {"name": "price", "type": "integer", "generated": "", "default": "1", "not_null": True}


@pytest.mark.parametrize(
    ("column", "changed"),
    [
        (OLD, False),
        (OLD | {"default": "2", "not_null": False}, False),
        (OLD | {"type": "numeric"}, True),
        (OLD | {"name": "cost"}, True),
        (OLD | {"generated": "s"}, True),
    ],
)
def test_what_rows_have_is_what_counts(column: dict[str, object], changed: bool) -> None:
    """Other names, types and ways to compute a value change rows that nobody writes; rules for new ones do not."""
    stamp = {"name": "sync_status", "type": "text"}
    noted, current = json.dumps({"columns": [OLD]}), json.dumps({"columns": [column, stamp]})
    assert reshaped(current, noted) is changed
    assert not reshaped(current, widened(current, noted))


def test_a_column_that_comes_back_is_another_one() -> None:
    """It is noted as gone meanwhile."""
    gone = widened(definition("id"), definition("id", "price"))
    assert not reshaped(definition("id"), gone)
    assert reshaped(definition("id", "price"), gone)


def test_the_rest_of_a_definition_does_not_count_as_another_shape() -> None:
    """Triggers, rights, when it was looked at: rows are what they were."""
    one = definition("id", triggers=[], seen_at="2026-01-01T00:00:00+00:00")
    other = definition("id", triggers=[{"name": "t"}], owner="somebody", seen_at="2026-01-02T00:00:00+00:00")
    assert not reshaped(other, one)
    assert json.loads(widened(other, definition("id", "price")))["owner"] == "somebody"


def test_when_a_table_was_looked_at_makes_no_other_definition() -> None:
    """Else each look would be noted."""
    one, later = (definition("id", seen_at=f"2026-01-0{day}T00:00:00+00:00") for day in (1, 2))
    assert same(one, later)
    assert same("no json", "no json")
    assert not same(one, definition("id", "price", seen_at="2026-01-01T00:00:00+00:00"))
    assert not same(one, None)
    assert not same(one, "no json")


NOW = datetime(2026, 1, 10, tzinfo=UTC)


def noted(days: int, name: str, seen: str | None = None) -> tuple[datetime, str]:
    """A definition that was noted some days ago."""
    return NOW - timedelta(days=days), definition(name, **({"seen_at": seen} if seen else {}))


def test_the_definition_of_a_time_is_the_last_one_seen_by_then() -> None:
    """Before all of them, it is the first; without any, there is none."""
    history = [noted(9, "first"), noted(5, "second"), noted(1, "third")]
    for days, name in ((20, "first"), (9, "first"), (6, "first"), (5, "second"), (2, "second"), (0, "third")):
        assert valid_at(history, NOW - timedelta(days=days)) == definition(name)
    assert valid_at([], NOW) is None


def test_the_local_clock_counts_more_than_the_remote_one() -> None:
    """A remote store whose clock is behind seems to have noted before an incident what was altered in it."""
    good = noted(9, "good", "2026-01-01T00:00:00+00:00")
    cut = noted(3, "cut", "2026-01-08T00:00:01+00:00")
    assert valid_at([good, cut], datetime(2026, 1, 8, tzinfo=UTC)) == good[1]
    assert valid_at([good, noted(3, "cut", "no time")], datetime(2026, 1, 8, tzinfo=UTC)) != good[1]
    assert valid_at([good, noted(3, "cut", "2026-01-08T00:00:01")], datetime(2026, 1, 8, tzinfo=UTC)) != good[1]


@pytest.mark.parametrize(
    ("present", "before", "lost"),
    [
        ("text", "text", False),
        ("character varying(10)", "text", True),
        ("character varying(10)", "character varying(20)", True),
        ("character varying(20)", "character varying(10)", False),
        ("character varying", "text", False),
        ("text", "character varying(10)", False),
        ("integer", "bigint", True),
        ("numeric", "bigint", False),
        ("numeric", "numeric(10,2)", False),
        ("numeric(10,2)", "numeric", True),
        ("numeric(12,2)", "numeric(10,2)", True),
        ("integer", "text", True),
        ("text", "integer", True),
        ("real", "double precision", True),
    ],
)
def test_a_type_that_cannot_hold_what_the_noted_one_could_is_found(present: str, before: str, lost: bool) -> None:
    """One that only is wider, and looks the same as JSON, is left alone; so are columns that are gone, and ours."""
    columns = [{"name": "id", "type": "uuid"}, {"name": "c", "type": before}, {"name": "gone", "type": "text"}]
    columns += [{"name": "sync_version", "type": "bigint"}]
    now = [{"name": "c", "type": present}, {"name": "id", "type": "uuid"}, {"name": "sync_version", "type": "integer"}]
    found = retyped(json.dumps({"columns": now}), json.dumps({"columns": columns}))
    assert found == (["c"] if lost else [])
    assert retyped("no json", json.dumps({"columns": columns})) == []


WHOLE: dict[str, Any] = {
    "columns": [{"name": "id", "type": "uuid", "not_null": True}],
    "constraints": [],
    "indexes": [],
}


@pytest.mark.parametrize(
    "text",
    [
        "nope",
        "[]",
        '{"columns": 5}',
        '{"columns": [5]}',
        '{"columns": [{"type": "text"}]}',
        json.dumps(WHOLE | {"constraints": 5}),
        json.dumps(WHOLE | {"indexes": [5]}),
        json.dumps(WHOLE | {"columns": [{"name": "id", "type": 5}]}),
        json.dumps(WHOLE | {"columns": [{"name": "id", "not_null": "maybe"}]}),
    ],
)
def test_what_no_table_can_be_made_by_is_no_definition(text: str) -> None:
    """Whoever wrote it; one that PostgreSQL made is."""
    assert not is_definition(text)
    assert is_definition(json.dumps(WHOLE))


def test_what_a_table_lacks_is_named() -> None:
    """Columns, types, constraints and indexes; one under another name, or in other words, is there."""
    column = {"name": "note", "type": "text"}
    index, unique = (
        "CREATE INDEX ni ON public.memories USING btree (note)",
        {"name": "u", "definition": "UNIQUE (note)"},
    )
    noted = json.dumps(
        {"columns": [column, column | {"name": "old", "gone": True}], "constraints": [unique], "indexes": [index]}
    )
    assert lacks(json.dumps({"columns": []}), noted) == ["column note", "constraint u", "index ni"]
    short = json.dumps({"columns": [column | {"type": "character varying(3)"}]})
    assert lacks(short, noted)[0] == "the type of column note"
    there = {"columns": [column], "constraints": [unique | {"name": "v"}], "indexes": [index.replace("ni", "nj")]}
    assert lacks(json.dumps(there), noted) == []
    said_otherwise = {
        "columns": [column],
        "constraints": [unique | {"definition": "UNIQUE (note, id)"}],
        "indexes": [f"{index} WHERE true"],
    }
    assert lacks(json.dumps(said_otherwise), noted) == []
