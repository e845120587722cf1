"""In which class a memory is, what a recovery does with it, and what it is called then."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dionysus_sync_mcp.domain.destruction import Incident, IncidentKind
from dionysus_sync_mcp.domain.drift import Here
from dionysus_sync_mcp.domain.recovery_plan import (
    Action,
    KnownStore,
    Numbers,
    PlanClass,
    State,
    Window,
    Wishes,
    action_of,
    class_of,
    damage_unseen,
    fingerprint,
    lacking,
    numbers,
    shape_lost,
    shortfall,
    stores_before,
    windows,
    worst_loss,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
DEFAULT = Wishes()


def remote(
    version: int = 5, hash_: str = "e", *, deleted: bool = False, by_incident: bool = False, target: str | None = "same"
) -> State:
    """A memory at a version; `target`: another hash at version 3, `gone` for a tombstone of that, `None` for none."""
    if target is None:
        return State("a", version, hash_, deleted, by_incident, None, "", False)
    then = (version, hash_, deleted) if target == "same" else (3, "c" if target == "gone" else target, target == "gone")
    return State("a", version, hash_, deleted, by_incident, *then, "semantic", 0.5, None)


class Case(NamedTuple):
    """One combination, and what the default makes of it."""

    here: Here | None
    there: State
    plan_class: PlanClass | None
    action: Action | None


SYNCED = Here(5, "e", 5)
CASES = {
    "lost": Case(None, remote(), "missing_here", "insert"),
    "deleted on purpose": Case(None, remote(deleted=True), "deleted", None),
    "deleted by an incident": Case(
        None, remote(deleted=True, by_incident=True, target="c"), "deleted_by_incident", "insert"
    ),
    "deleted by one, and dead before it": Case(
        None, remote(deleted=True, by_incident=True, target="gone"), "deleted", None
    ),
    "deleted since then": Case(None, remote(deleted=True, target="c"), "missing_here", "insert"),
    "lost, and overwritten by an incident before": Case(
        None, remote(by_incident=True, target="c"), "missing_here", "insert"
    ),
    "not there yet": Case(None, remote(target=None), None, None),
    "dead then": Case(None, remote(target="gone"), "deleted", None),
    "made since then": Case(SYNCED, remote(target=None), "only_here", None),
    "the same": Case(SYNCED, remote(), "identical", None),
    "the same at another version": Case(Here(9, "e", 2), remote(), "identical", None),
    "older": Case(Here(3, "c", 3), remote(), "older_here", "overwrite"),
    "older, and changed here since": Case(Here(4, "x", 3), remote(), "conflicting", None),
    "made up at a low number": Case(Here(1, "x", 0), remote(), "conflicting", None),
    "changed here": Case(Here(6, "f", 5), remote(), "newer_here", None),
    "another at one version": Case(Here(5, "x", 5), remote(), "conflicting", None),
    "newer than then": Case(SYNCED, remote(target="c"), "newer_here", None),
    "back in time, older than then": Case(Here(2, "b", 2), remote(target="c"), "older_here", "overwrite"),
    "as it was then": Case(Here(3, "c", 3), remote(target="c"), "identical", None),
    "alive, dead then": Case(SYNCED, remote(target="gone"), "newer_here", None),
    "alive, dead there": Case(Here(6, "f", 4), remote(deleted=True), "newer_here", None),
    "as an incident left it": Case(
        SYNCED, remote(by_incident=True, target="c"), "overwritten_by_incident", "overwrite"
    ),
    "changed again after an incident": Case(Here(6, "f", 5), remote(by_incident=True, target="c"), "newer_here", None),
    "older than what an incident left": Case(
        Here(2, "b", 2), remote(by_incident=True, target="c"), "older_here", "overwrite"
    ),
    "unreadable": Case(Here(3, "", 3), remote(), "older_here", None),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_combination_has_its_class_and_its_action(case: Case) -> None:
    """Without any wish."""
    plan_class = class_of(case.here, case.there, DEFAULT)
    assert plan_class == case.plan_class
    assert (plan_class and action_of(plan_class, case.here, case.there, DEFAULT)) == case.action


@pytest.mark.parametrize(
    ("name", "wishes", "action"),
    [
        ("deleted on purpose", Wishes(include_deleted=True), "insert"),
        ("dead then", Wishes(include_deleted=True), "insert"),
        ("not there yet", Wishes(include_deleted=True, overwrite_newer=True), None),
        ("made since then", Wishes(include_deleted=True, overwrite_newer=True), None),
        ("alive, dead then", Wishes(include_deleted=True, overwrite_newer=True), None),
        ("changed here", Wishes(overwrite_newer=True), "overwrite"),
        ("newer than then", Wishes(overwrite_newer=True), "overwrite"),
        ("another at one version", Wishes(overwrite_newer=True), "overwrite"),
        ("another at one version", Wishes(damage_unseen=True), "overwrite"),
        ("changed here", Wishes(damage_unseen=True), None),
        ("unreadable", Wishes(overwrite_newer=True), None),
        ("older", Wishes(only_missing=True), None),
        ("as an incident left it", Wishes(only_missing=True), None),
        ("changed here", Wishes(overwrite_newer=True, only_missing=True), None),
        ("lost", Wishes(only_missing=True), "insert"),
    ],
)
def test_wishes_change_what_is_done(name: str, wishes: Wishes, action: Action | None) -> None:
    """Nothing is deleted, whatever is asked for; what cannot be kept for an undo is not overwritten."""
    case = CASES[name]
    plan_class = class_of(case.here, case.there, wishes)
    assert (plan_class and action_of(plan_class, case.here, case.there, wishes)) == action


def test_damage_that_no_trigger_saw_is_an_incidents() -> None:
    """At one version, another row; a column was cut."""
    case = CASES["another at one version"]
    assert class_of(case.here, case.there, Wishes(damage_unseen=True)) == "overwritten_by_incident"


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        (None, remote(), Numbers(5, 5, is_new=False)),
        (None, remote(deleted=True), Numbers(6, 5, is_new=True)),
        (None, remote(target="c"), Numbers(6, 5, is_new=True)),
        (Here(3, "c", 3), remote(), Numbers(5, 5, is_new=False)),
        (Here(5, "x", 5), remote(), Numbers(5, 5, is_new=False)),
        (Here(7, "x", 5), remote(), Numbers(8, 5, is_new=True)),
        (Here(7, "x", 5), remote(target="c"), Numbers(8, 5, is_new=True)),
        (SYNCED, remote(target="c"), Numbers(6, 5, is_new=True)),
    ],
)
def test_an_older_state_goes_forward(here: Here | None, there: State, expected: Numbers) -> None:
    """Above both sides; what the remote store holds now keeps its number, and is not sent again."""
    assert numbers(here, there) == expected


HASHES = st.sampled_from("abcdef")
VERSIONS = st.integers(1, 6)
ROWS = st.none() | st.builds(Here, VERSIONS, HASHES | st.just(""), st.integers(0, 6))
WISHES = st.builds(Wishes, st.booleans(), st.booleans(), st.booleans(), st.booleans())


@st.composite
def states(draw: st.DrawFn) -> State:
    """A memory whose target, if it has one, is not above what it is now."""
    version, hash_, deleted = draw(VERSIONS), draw(HASHES), draw(st.booleans())
    current = State("a", version, hash_, deleted, draw(st.booleans()), version, hash_, deleted)
    if draw(st.booleans()):
        return current
    older = draw(st.none() | st.integers(1, version))
    if older is None:
        return current._replace(target_version=None, target_hash="", target_deleted=False)
    return current._replace(target_version=older, target_hash=draw(HASHES), target_deleted=draw(st.booleans()))


@pytest.mark.promise("P6")
@given(ROWS, states())
def test_by_default_nothing_newer_here_is_touched(here: Here | None, there: State) -> None:
    """A row that counts more than what is to come back is left, unless an incident made it."""
    plan_class = class_of(here, there, DEFAULT)
    if here is None or plan_class is None or there.target_version is None or here.version <= there.target_version:
        return
    by_incident = there.by_incident and here.content_hash == there.content_hash
    assert by_incident or action_of(plan_class, here, there, DEFAULT) is None


@pytest.mark.promise("P6")
@given(ROWS, states())
def test_by_default_nothing_deleted_on_purpose_comes_back(here: Here | None, there: State) -> None:
    """What was dead at the moment in question stays as it is, here or gone."""
    if there.target_deleted:
        plan_class = class_of(here, there, DEFAULT)
        assert plan_class is not None
        assert action_of(plan_class, here, there, DEFAULT) is None


@pytest.mark.promise("P3")
@given(ROWS, states(), WISHES)
def test_an_action_never_lowers_a_version(here: Here | None, there: State, wishes: Wishes) -> None:
    """Of the row, or of what the remote store holds; another state than the remote's is above both, and queued."""
    plan_class = class_of(here, there, wishes)
    if plan_class is None or action_of(plan_class, here, there, wishes) is None:
        return
    found = numbers(here, there)
    assert found.number >= max(there.version, here.version if here else 0)
    assert found.confirmed == there.version
    assert found.is_new == (found.number > there.version)
    assert found.is_new or there.is_current


@given(ROWS, states(), WISHES)
def test_what_is_there_already_is_never_in_a_plan(here: Here | None, there: State, wishes: Wishes) -> None:
    """A second run has nothing to do."""
    if here is None or here.content_hash != there.target_hash or not here.content_hash or there.target_deleted:
        return
    assert class_of(here, there, wishes) == "identical"
    assert action_of("identical", here, there, wishes) is None


def test_a_fingerprint_is_of_all_that_is_done() -> None:
    """The memory, the action, the state that it gets, and the row that it replaces."""
    there = remote(target="c")
    found = {
        fingerprint("a", "overwrite", there, SYNCED),
        fingerprint("b", "overwrite", there, SYNCED),
        fingerprint("a", "insert", there, SYNCED),
        fingerprint("a", "overwrite", remote(target="d"), SYNCED),
        fingerprint("a", "overwrite", there, Here(5, "x", 5)),
        fingerprint("a", "overwrite", there, None),
    }
    assert len(found) == 6
    assert fingerprint("a", "overwrite", there, SYNCED) == fingerprint("a", "overwrite", there, SYNCED)


def incident(kind: IncidentKind, *, minute: int = 0, store: str = "store") -> Incident:
    """One that went on for a minute."""
    at = NOON + timedelta(minutes=minute)
    return Incident(
        id=kind,
        key=kind,
        kind=kind,
        store=store,
        detected_at=at,
        restore_point=at,
        last_at=at + timedelta(minutes=1),
        rows=1,
        summary="",
    )


def test_windows_are_of_what_is_in_the_history() -> None:
    """Of a truncation there is none; each incident counts once, though it is named and open."""
    deletes, updates = incident("rapid_deletes"), incident("bulk_update", minute=5)
    until = NOON + timedelta(minutes=1)
    assert windows([deletes, deletes, incident("truncate")], None, NOON) == (Window("store", NOON, until, "delete"),)
    assert {window.operation for window in windows([deletes, updates], None, NOON)} == {"delete", "update", "create"}


@pytest.mark.parametrize(("closed", "last"), [(None, 9), (3, 3)])
def test_rows_made_up_after_an_incident_are_its_damage_when_it_is_named(closed: int | None, last: int) -> None:
    """Until now, or until somebody closed it."""
    lost = incident("truncate")
    lost = replace(lost, closed_at=NOON + timedelta(minutes=closed)) if closed else lost
    until = NOON + timedelta(minutes=last)
    assert windows([lost], lost, NOON + timedelta(minutes=9)) == (Window("store", NOON, until, "create"),)
    named = incident("bulk_update")
    assert {window.operation for window in windows([named], named, NOON)} == {"update", "create"}


def test_some_incidents_change_rows_unseen() -> None:
    """Of others, all is captured."""
    assert damage_unseen([incident("truncate"), incident("alter")])
    assert not damage_unseen([incident("truncate"), incident("bulk_update")])


def test_the_shape_is_that_before_it_was_lost() -> None:
    """The incident that is named counts, else the first of those that took a shape."""
    altered, deletes = incident("alter", minute=3), incident("rapid_deletes")
    assert shape_lost([altered, deletes], None) == altered.restore_point
    assert shape_lost([altered], deletes) == NOON
    assert shape_lost([deletes], None) is None


def test_a_store_is_in_the_place_of_one_that_was_there_before_it() -> None:
    """Not of one elsewhere, nor of one that has pushed since, nor where it is not known since when this one is."""
    hour = timedelta(hours=1)
    own = KnownStore("own", NOON, NOON, place="here")
    old, alive = (
        KnownStore("old", None, NOON - hour, place="here"),
        KnownStore("alive", None, NOON + hour, place="here"),
    )
    elsewhere = KnownStore("elsewhere", None, NOON - hour, place="there")
    assert stores_before("own", [own, old, alive, elsewhere]) == {"old"}
    assert stores_before("own", [own._replace(begun_at=None), old]) == frozenset()
    assert stores_before("own", [own._replace(begun_at=None, last_push_at=None), old]) == {"old"}
    assert stores_before("own", [own._replace(place=None), old._replace(place=None)]) == frozenset()
    assert stores_before("own", [old]) == frozenset()
    assert stores_before(None, [old, elsewhere], old.place) == {"old"}
    assert stores_before("own", [own._replace(place=None), old], old.place) == {"old"}


def test_what_the_remote_store_lacks_is_known_by_the_greatest_loss() -> None:
    """Of two looks at one event, one may have counted less; an update takes nothing."""
    took = [replace(incident("truncate"), rows=7), replace(incident("drop"), rows=9)]
    loss = worst_loss(took)
    assert loss is not None
    assert [lacking(loss, known) for known in (4, 9, 12)] == [5, 0, 0]
    assert worst_loss([replace(incident("bulk_update"), rows=9)]) is None


def test_a_shortfall_is_what_is_neither_verified_nor_there() -> None:
    """It is never less than nothing."""
    assert [shortfall(10, 7, 1), shortfall(10, 10, 0), shortfall(10, 10, 2)] == [2, 0, 0]
