"""What a run of the fault tests writes down: everything, and the failures above all."""

import json
from pathlib import Path

import pytest

from tests.faults.failpoints import Step, reached, steps_of
from tests.faults.oracle import Comparison
from tests.faults.plugin import FaultResults, Scenario, only
from tests.faults.results import ONLY_VARIABLE, Run, entries_of, json_text, markdown, merged

PASSED = Run(1, "killed", "passed", engaged=True, rows_written=10, rows_lost=0, rows_wrong=0, seconds_until_whole=1.5)
TRACE = "before:claim\nafter:claim\nbefore:COMMIT(lock,claim)\nafter:COMMIT(lock,claim)\nbefore:claim\n"


def test_the_runs_of_one_fault_are_one_entry() -> None:
    """Numbers add up, and the longest time counts."""
    (entry,) = entries_of([PASSED, Run(1, "killed", "passed", True, 5, 0, 0, 2.25)])
    assert (entry["rows_written"], entry["rows_lost"], entry["rows_wrong"]) == (15, 0, 0)
    assert (entry["engaged"], entry["seconds_until_whole"], entry["runs"]) == (True, 2.25, 2)


def test_a_failed_run_is_in_the_table_as_failed() -> None:
    """One of several is enough, and then no number is claimed."""
    entries = entries_of([PASSED, Run(1, "killed", "failed", True, 5, 1, 0, None)])
    assert [(e["outcome"], e["engaged"], e["rows_lost"]) for e in entries] == [("failed", False, None)]
    assert "| 1 | killed |  |  |  |  |  |  | 2 | **failed** |" in markdown(entries, "here", None)


def test_a_skipped_scenario_says_why() -> None:
    """It is not left out, nor taken for a success."""
    entries = entries_of([Run(39, "full disk", "skipped", reason="not root")])
    assert "**skipped**: not root" in markdown(entries, "here", None)


def test_a_run_of_one_scenario_keeps_the_others() -> None:
    """Those that were run are replaced as a whole."""
    old = entries_of([PASSED, Run(1, "renamed since", "passed"), Run(2, "other", "passed")])
    new = merged(old, entries_of([PASSED]))
    assert [(e["scenario"], e["fault"]) for e in new] == [(1, "killed"), (2, "other")]
    assert json.loads(json_text(new)) == new


def test_the_soak_has_a_table_of_its_own() -> None:
    """Value by name."""
    assert "| rows written | 12,345 |" in markdown([], "here", {"rows_written": 12345})


def test_an_entry_of_an_older_run_has_an_empty_cell_for_what_it_lacks() -> None:
    """A run of one scenario keeps the others, whatever was counted then."""
    (entry,) = entries_of([PASSED])
    del entry["rows_restored"]
    assert "| 1 | killed | yes | 10 | 0 | 0 |  | 1.5 | 1 | passed |" in markdown([entry], "here", None)


def test_what_recoveries_brought_back_adds_up() -> None:
    """Over the faults of a scenario, and over the runs of one fault."""
    scenario = Scenario(Run(28, "dropped", "passed"))
    for restored in (10, 5):
        scenario.note(engaged=True, restored=restored)
    (entry,) = entries_of([scenario.run, scenario.run])
    assert entry["rows_restored"] == 30


def test_a_scenario_adds_up_what_its_faults_did() -> None:
    """By the oracle's count, which goes on from fault to fault."""
    scenario = Scenario(Run(1, "killed", "passed"))
    for rows, seconds in ((4, 0.5), (8, 0.25)):
        scenario.note(engaged=True, compared=Comparison(rows), seconds=seconds)
    run = scenario.run
    assert (run.engaged, run.rows_written, run.rows_lost, run.seconds_until_whole) == (True, 8, 0, 0.5)


@pytest.mark.parametrize(
    ("engaged", "compared"),
    [
        (False, Comparison(1)),
        (True, Comparison(1, lost=["x"])),
        (True, Comparison(1, wrong=["x"])),
        (True, Comparison(1, waiting=1)),
    ],
)
def test_a_scenario_fails_where_a_fault_missed_or_something_is_amiss(engaged: bool, compared: Comparison) -> None:
    """No test has to remember to look."""
    scenario = Scenario(Run(1, "killed", "passed"))
    with pytest.raises(AssertionError):
        scenario.note(engaged=engaged, compared=compared)


def test_scenarios_are_chosen_by_number() -> None:
    """None chosen means all."""
    assert only({ONLY_VARIABLE: "1, 5"}) == {1, 5}
    assert only({ONLY_VARIABLE: ""}) == only({}) == frozenset()


def test_steps_are_numbered_and_a_commit_is_named_by_its_last_statement() -> None:
    """So that a later run can be told to end at just that one."""
    steps = [str(step) for step in steps_of(TRACE)]
    assert steps[:3] == ["before:claim#1", "after:claim#1", "before:COMMIT(claim)#1"]
    assert steps[3:] == ["after:COMMIT(claim)#1", "before:claim#2"]


@pytest.mark.parametrize(
    ("at", "there"),
    [
        ("before:claim#2", True),
        ("before:claim", False),
        ("after:claim", False),
        ("after:COMMIT(lock)", False),
    ],
)
def test_a_failpoint_was_reached_if_nothing_follows_it(at: str, there: bool) -> None:
    """A process that went on was not ended there."""
    assert reached(TRACE, at) is there
    assert not reached("", at)


def test_what_is_no_step_is_refused() -> None:
    """A misspelt one would never be reached."""
    with pytest.raises(ValueError, match="no step"):
        Step.parse("between:claim")


def test_a_run_without_scenarios_keeps_what_is_there(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """The files are written at the end of each run that asks for them."""
    file = tmp_path / "results.json"
    file.write_text(json_text(entries_of([PASSED])), encoding="utf-8")
    FaultResults(file).pytest_sessionfinish(request.session)
    assert json.loads(file.read_text(encoding="utf-8")) == entries_of([PASSED])
    assert "| 1 | killed | yes | 10 | 0 | 0 |  | 1.5 | 1 | passed |" in (tmp_path / "RESULTS.md").read_text("utf-8")
