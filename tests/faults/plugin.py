"""Keeps what the scenarios come to, and writes it when the run is over; see `tests/faults/results.py`.

A test of a scenario has the mark `scenario(number, fault)` and asks for the fixture `scenario` (conftest.py).
"""

import json
import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.faults.oracle import Comparison
from tests.faults.results import FILE_VARIABLE, ONLY_VARIABLE, Run, entries_of, json_text, markdown, merged

SOAK_FILE = "soak.json"
WHERE: pytest.StashKey[str] = pytest.StashKey()
SCENARIO: "pytest.StashKey[Scenario]" = pytest.StashKey()


@dataclass
class Scenario:
    """What a test says of its scenario, by `note`."""

    run: Run

    def note(
        self,
        *,
        engaged: bool,
        compared: Comparison | None = None,
        seconds: float | None = None,
        rows: int | None = None,
        restored: int | None = None,
    ) -> None:
        """Note what one fault did; may be called again, for a test that does several: numbers add up, seconds do not.

        Fails the test if the fault did not take hold, or if anything is lost, wrong or still waits.

        Args:
            engaged: Whether the fault took hold.
            compared: How the stores compare with the oracle after it.
            seconds: From the end of the fault until they were whole.
            rows: Rows written since the last note, where the oracle's count is not that.
            restored: Rows that a recovery has brought back and verified.
        """
        run = replace(self.run, engaged=engaged and (self.run.engaged or self.run.rows_written is None))
        if compared is not None:
            run = replace(
                run,
                rows_written=(run.rows_written or 0) + rows if rows is not None else compared.rows_written,
                rows_lost=(run.rows_lost or 0) + compared.rows_lost,
                rows_wrong=(run.rows_wrong or 0) + compared.rows_wrong,
            )
        if restored is not None:
            run = replace(run, rows_restored=(run.rows_restored or 0) + restored)
        if seconds is not None:
            run = replace(run, seconds_until_whole=max(seconds, run.seconds_until_whole or 0.0))
        self.run = run
        assert engaged, "the fault did not take hold"
        assert compared is None or compared.whole, compared


class FaultResults:
    """The plugin of a run that writes results.

    Args:
        file: Where to; RESULTS.md and soak.json stand beside it.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._runs: dict[str, Run] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Take down the worst that any phase of a scenario's test came to."""
        report = yield
        mark = item.get_closest_marker("scenario")
        if mark is not None:
            self._note(item, Run(mark.args[0], mark.args[1], report.outcome), report)
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write both files, whatever failed."""
        old = json.loads(_text(self._file) or "[]")
        entries = merged(old, entries_of(self._runs.values()))
        soak = json.loads(_text(self._file.with_name(SOAK_FILE)) or "null")
        where = session.config.stash.get(WHERE, "on a machine without servers")
        self._file.write_text(json_text(entries), encoding="utf-8")
        self._file.with_name("RESULTS.md").write_text(markdown(entries, where, soak), encoding="utf-8")

    def _note(self, item: pytest.Item, run: Run, report: pytest.TestReport) -> None:
        noted = item.stash.get(SCENARIO, None)
        run = replace(noted.run if noted else run, outcome=run.outcome, reason=_reason(report))
        before = self._runs.get(item.nodeid)
        if before is None or before.outcome == "passed":
            self._runs[item.nodeid] = run


def only(environment: Mapping[str, str]) -> frozenset[int]:
    """The scenarios to run; empty for all.

    Raises:
        ValueError: What was given is not a list of numbers.
    """
    return frozenset(int(number) for number in environment.get(ONLY_VARIABLE, "").replace(",", " ").split())


def number_of(item: pytest.Item) -> int | None:
    """The number of a test's scenario."""
    mark = item.get_closest_marker("scenario")
    return int(mark.args[0]) if mark is not None else None


def results_file() -> Path | None:
    """Where results are to be written, if they are."""
    given = os.environ.get(FILE_VARIABLE)
    return Path(given) if given else None


def _reason(report: pytest.TestReport) -> str:
    if report.outcome != "skipped" or not isinstance(report.longrepr, tuple):
        return ""
    return report.longrepr[2].removeprefix("Skipped: ")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
