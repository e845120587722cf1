"""What can be adopted, and which steps are left."""

from dataclasses import replace

import pytest

from dionysus_sync_mcp.domain.adoption import (
    CAPTURE_TRIGGERS,
    SYNC_INDEXES,
    Column,
    DdlWatch,
    FoundTable,
    Rights,
    decide_migrations,
    decide_steps,
    refuse_newer,
    refuse_without_rights,
)
from dionysus_sync_mcp.domain.errors import NotAdoptable, SchemaMismatch

ALL = Rights(schema_present=True, may_create_table=True, may_create_schema=True)
NEEDED = (
    Column("id", "uuid", "U"), Column("content", "text", "S"), Column("memory_type", "character varying", "S"),
    Column("importance", "real", "N"), Column("source_project", "text", "S"), Column("session_id", "uuid", "U"),
    Column("tags", "text[]", "A"), Column("created_at", "timestamp with time zone", "D"),
    Column("updated_at", "timestamp with time zone", "D"),
)  # fmt: skip
SYNC = (
    Column("sync_status", "character varying", "S"), Column("synced_at", "timestamp with time zone", "D"),
    Column("sync_version", "integer", "N"), Column("remote_id", "character varying", "S"),
    Column("synced_version", "integer", "N"),
)  # fmt: skip
BARE = FoundTable("memories", "r", True, ["id"], NEEDED, frozenset(), frozenset())
WHOLE = replace(BARE, columns=[*NEEDED, *SYNC], triggers=CAPTURE_TRIGGERS, indexes=SYNC_INDEXES)


def test_nothing_there_means_all_steps() -> None:
    """The table is created, then treated like one that was found."""
    assert decide_steps(None, ALL, "public") == [
        "create_memories", "add_sync_columns", "add_sync_indexes", "install_capture",
    ]  # fmt: skip


def test_each_step_is_left_until_it_is_done() -> None:
    """Only what is missing is done, and nothing when all is there, even by somebody who may do nothing."""
    assert decide_steps(BARE, ALL, "public") == ["add_sync_columns", "add_sync_indexes", "install_capture"]
    assert decide_steps(replace(WHOLE, triggers=frozenset()), ALL, "public") == ["install_capture"]
    assert decide_steps(replace(WHOLE, owned=False), replace(ALL, may_create_table=False), "public") == []


def test_one_trigger_that_is_missing_is_enough_to_install_them_again() -> None:
    """All or nothing: capture with a hole is no capture."""
    for trigger in CAPTURE_TRIGGERS:
        table = replace(WHOLE, triggers=CAPTURE_TRIGGERS - {trigger})
        assert decide_steps(table, ALL, "public") == ["install_capture"]


@pytest.mark.parametrize(
    ("table", "rights", "message"),
    [
        (None, replace(ALL, may_create_table=False), "may not create"),
        (None, replace(ALL, schema_present=False), "no schema 'public'"),
        (replace(BARE, owned=False), ALL, "does not own"),
        (replace(BARE, kind="v"), ALL, "a view"),
        (replace(BARE, kind="p"), ALL, "a partitioned table"),
        (replace(BARE, kind="S"), ALL, "not a plain table"),
        (replace(BARE, primary_key=[]), ALL, "primary key"),
        (replace(BARE, primary_key=["id", "content"]), ALL, "primary key"),
        (replace(BARE, columns=NEEDED[:2]), ALL, "lacks.*memory_type text, importance real, .*updated_at timestamptz"),
        (replace(BARE, columns=[*NEEDED[1:], Column("id", "text", "S")]), ALL, "id is text, not uuid"),
        (replace(BARE, columns=[*NEEDED, Column("sync_version", "text", "S")]), ALL, "sync_version is text"),
    ],
)
def test_what_stands_in_the_way_is_named(table: FoundTable | None, rights: Rights, message: str) -> None:
    """One error, with everything in it."""
    with pytest.raises(NotAdoptable, match=message):
        decide_steps(table, rights, "public")


def test_all_faults_are_named_at_once() -> None:
    """A person mends a table once, not once for each fault."""
    table = replace(BARE, primary_key=[], columns=[Column("content", "bytea", "U")])
    with pytest.raises(NotAdoptable) as caught:
        decide_steps(table, ALL, "public")
    assert all(part in str(caught.value) for part in ("id uuid", "tags text[]", "content is bytea", "primary key"))


def test_the_bookkeeping_needs_a_right_of_its_own_only_while_it_is_missing() -> None:
    """Once it is there, nobody asks for the right to make it."""
    without = replace(ALL, may_create_schema=False)
    refuse_without_rights(without, bookkeeping_left=False)
    refuse_without_rights(ALL, bookkeeping_left=True)
    with pytest.raises(NotAdoptable, match="schema dionysus_sync"):
        refuse_without_rights(without, bookkeeping_left=True)


@pytest.mark.parametrize(
    ("present", "superuser", "left"),
    [(False, True, True), (True, True, False), (False, False, False), (True, False, False)],
)
def test_event_triggers_are_left_to_do_for_a_superuser(present: bool, superuser: bool, left: bool) -> None:
    """Another role is not told again and again that it lacks what it may not make."""
    assert DdlWatch(present, superuser).left is left


SHIPPED = [("0001_a", "x"), ("0002_b", "y")]


def test_migrations_are_run_once_in_order() -> None:
    """What is applied is left out; when something that they made is gone, all are run again."""
    assert decide_migrations({}, SHIPPED, whole=False) == ["0001_a", "0002_b"]
    assert decide_migrations({"0001_a": "x"}, SHIPPED) == ["0002_b"]
    assert decide_migrations(dict(SHIPPED), SHIPPED) == []
    assert decide_migrations(dict(SHIPPED), SHIPPED, whole=False) == ["0001_a", "0002_b"]


@pytest.mark.parametrize("applied", [{"0003_c": "z"}, {"0001_a": "changed"}])
def test_an_unknown_or_changed_migration_is_refused(applied: dict[str, str]) -> None:
    """The program does not work on what it does not know, and says which migration it is."""
    with pytest.raises(SchemaMismatch, match=next(iter(applied))):
        decide_migrations(applied, SHIPPED)


@pytest.mark.parametrize("newest", [None, "0001_a", "0002_b"])
def test_bookkeeping_that_is_not_newer_is_used(newest: str | None) -> None:
    """None at all is found out in another way."""
    refuse_newer(newest, "0002_b")


def test_newer_bookkeeping_is_refused_by_name() -> None:
    """The message says which migration this version does not know."""
    with pytest.raises(SchemaMismatch, match="0003_c"):
        refuse_newer("0003_c", "0002_b")
