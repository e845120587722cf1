"""Pure: what each scenario came to, and the two files that it is written to."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

# Where the results of a run go (without it there are none), and the numbers of the scenarios to run.
FILE_VARIABLE = "DIONYSUS_TEST_FAULT_RESULTS"
ONLY_VARIABLE = "DIONYSUS_TEST_FAULT_ONLY"

Outcome = Literal["passed", "failed", "skipped"]
WORST: tuple[Outcome, ...] = ("failed", "skipped", "passed")
HEAD = (
    "| scenario | fault | took hold | rows written | rows lost | rows wrong | rows restored | seconds until whole |"
    " runs | result |\n| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
)
# An entry of a run before this one may lack some.
NUMBERS = ("rows_written", "rows_lost", "rows_wrong", "rows_restored", "seconds_until_whole")
INTRODUCTION = """\
# Faults

Written by `make faults` (`make faults ONLY=5` runs one scenario again and replaces its rows); the same for programs is
in `results.json`. The program runs as a process on real servers while each fault is done to it or to them. Rows written
are writes that PostgreSQL had acknowledged to a plain client. Lost is what is afterwards neither in the remote store
nor queued nor parked; wrong is what a store holds and nobody wrote, or what went back; restored is what a recovery
brought back and verified. Seconds until whole count from the end of the fault (with a recovery: from its start, with
the plan) until both stores agree with what was acknowledged, the longest of all runs."""
SOAK = "## Soak\n\nWritten by `make soak`: load with a random fault every minute, and a full comparison after each."


@dataclass(frozen=True, slots=True)
class Run:
    """What one test of a scenario came to.

    Attributes:
        engaged: Whether the fault took hold, as the test saw it.
        rows_written: And the other numbers: `None` where the test did not get so far.
        reason: Why it was skipped.
    """

    scenario: int
    fault: str
    outcome: Outcome
    engaged: bool = False
    rows_written: int | None = None
    rows_lost: int | None = None
    rows_wrong: int | None = None
    seconds_until_whole: float | None = None
    rows_restored: int | None = None
    reason: str = ""


def entries_of(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """The entries of results.json: one for each fault of each scenario. Of one that failed no numbers are known."""
    grouped = groupby(sorted(runs, key=_key), key=_key)
    return [_entry(scenario, fault, list(same)) for (scenario, fault), same in grouped]


def merged(old: Iterable[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The old entries with those of the scenarios that were run replaced, sorted by scenario."""
    run = {entry["scenario"] for entry in new}
    kept = [dict(entry) for entry in old if entry["scenario"] not in run]
    return sorted([*kept, *map(dict, new)], key=lambda entry: (entry["scenario"], entry["fault"]))


def json_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """results.json, one entry a line."""
    lines = ",\n".join(f"  {json.dumps(entry, ensure_ascii=False)}" for entry in entries)
    return f"[\n{lines}\n]\n" if entries else "[]\n"


def markdown(entries: Sequence[Mapping[str, Any]], where: str, soak: Mapping[str, Any] | None) -> str:
    """RESULTS.md.

    Args:
        where: On what, with which versions, when and with which seed the last run was made, in a line.
        soak: What soak.json holds: a flat object, value by name.
    """
    rows = "\n".join(map(_row, entries))
    parts = [INTRODUCTION, f"{HEAD}\n{rows}", f"Last run {where}."]
    if soak is not None:
        parts += [SOAK, "| what | value |\n| --- | ---: |\n" + "\n".join(_pair(*pair) for pair in soak.items())]
    return "\n\n".join(parts) + "\n"


def _key(run: Run) -> tuple[int, str]:
    return run.scenario, run.fault


def _entry(scenario: int, fault: str, runs: Sequence[Run]) -> dict[str, Any]:
    outcome = min((run.outcome for run in runs), key=WORST.index)
    done = [run for run in runs if run.outcome == "passed"] if outcome == "passed" else []
    seconds = [run.seconds_until_whole for run in done if run.seconds_until_whole is not None]
    return {
        "scenario": scenario,
        "fault": fault,
        "engaged": bool(done) and all(run.engaged for run in done),
        "rows_written": _sum(run.rows_written for run in done),
        "rows_lost": _sum(run.rows_lost for run in done),
        "rows_wrong": _sum(run.rows_wrong for run in done),
        "rows_restored": _sum(run.rows_restored for run in done),
        "seconds_until_whole": round(max(seconds), 2) if seconds else None,
        "runs": len(runs),
        "outcome": outcome,
        "reason": next((run.reason for run in runs if run.reason), ""),
    }


def _sum(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _row(entry: Mapping[str, Any]) -> str:
    engaged = {"passed": "yes" if entry["engaged"] else "**no**"}.get(entry["outcome"], "")
    reason = f": {entry['reason']}" if entry["reason"] else ""
    numbers = (entry.get(name) for name in NUMBERS)
    result = f"**{entry['outcome']}**{reason}" if entry["outcome"] != "passed" else "passed"
    cells = (entry["scenario"], entry["fault"], engaged, *map(_shown, numbers), entry["runs"], result)
    return f"| {' | '.join(map(_cell, cells))} |"


def _pair(name: str, value: object) -> str:
    return f"| {_cell(name.replace('_', ' '))} | {_cell(_shown(value))} |"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
