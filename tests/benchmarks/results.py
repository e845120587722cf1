"""Pure: figures with their goals, and the two files that they are written to."""

import json
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

FIELDS = ("name", "value", "unit", "baseline", "ratio", "goal", "met")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">=": operator.ge}
_HEADING = re.compile(r"^## (\w+)$", re.M)


class Goal(NamedTuple):
    """A bound on the value itself, on its ratio to the baseline, or on how much it is more than the baseline."""

    of: Literal["value", "ratio", "difference"]
    sign: Literal["<", "<=", ">="]
    bound: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    Attributes:
        what: Without the benchmark's name, which goes before it.
        baseline: What the same unit came to for the baseline, in the same run.
    """

    what: str
    value: float
    unit: str
    baseline: float | None = None
    goal: Goal | None = None

    @property
    def ratio(self) -> float | None:
        """Value to baseline."""
        return self.value / self.baseline if self.baseline else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; `None` for a figure that is only reported."""
        if self.goal is None:
            return None
        return bool(_COMPARE[self.goal.sign](self._judged(self.goal), self.goal.bound))

    @property
    def goal_text(self) -> str | None:
        """The goal in words."""
        if self.goal is None:
            return None
        bound = f"{self.goal.sign} {self.goal.bound:g}"
        words = {"value": f"{bound} {self.unit}", "ratio": f"ratio {bound}", "difference": f"{bound} {self.unit} more"}
        return words[self.goal.of]

    def entry(self, benchmark: str) -> dict[str, Any]:
        """What stands in results.json."""
        ratio = None if self.ratio is None else _rounded(self.ratio)
        baseline = None if self.baseline is None else _rounded(self.baseline)
        values = (
            f"{benchmark}: {self.what}",
            _rounded(self.value),
            self.unit,
            baseline,
            ratio,
            self.goal_text,
            self.met,
        )
        return dict(zip(FIELDS, values, strict=True))

    def _judged(self, goal: Goal) -> float:
        judged = {"value": self.value, "ratio": self.ratio, "difference": self.value - (self.baseline or 0.0)}[goal.of]
        if judged is None:
            raise ValueError(f"{self.what}: a goal for the ratio needs a baseline")
        return judged


@dataclass(frozen=True, slots=True)
class Section:
    """What one benchmark found.

    Attributes:
        about: What was measured and what the baseline is, in a paragraph.
        notes: What a reader should know beside the figures.
    """

    benchmark: str
    about: str
    figures: Sequence[Figure]
    notes: Sequence[str] = field(default=())


def merged_entries(old: Iterable[Mapping[str, Any]], sections: Sequence[Section]) -> list[dict[str, Any]]:
    """The entries of results.json, those of benchmarks that were run replaced; sorted by benchmark."""
    run = {section.benchmark for section in sections}
    kept = [dict(entry) for entry in old if _benchmark_of(entry) not in run]
    new = [figure.entry(section.benchmark) for section in sections for figure in section.figures]
    return sorted([*kept, *new], key=_benchmark_of)


def json_text(entries: Sequence[Mapping[str, Any]]) -> str:
    """results.json, one entry a line."""
    lines = ",\n".join(f"  {json.dumps(entry, ensure_ascii=False)}" for entry in entries)
    return f"[\n{lines}\n]\n"


def merged_markdown(old: str, sections: Sequence[Section], machine: str) -> str:
    """RESULTS.md, the chapters of benchmarks that were run replaced; sorted by benchmark.

    Args:
        machine: On what, with which versions and when these sections were measured, in a line.
    """
    parts = _HEADING.split(old)
    chapters = dict(zip(parts[1::2], (text.strip() for text in parts[2::2]), strict=True))
    chapters.update({section.benchmark: _chapter(section, machine) for section in sections})
    text = "\n\n".join(f"## {name}\n\n{chapters[name]}" for name in sorted(chapters))
    return f"{INTRODUCTION}\n\n{text}\n"


INTRODUCTION = """# Benchmarks

Written by `make bench` (`make bench ONLY=drain` measures one again and replaces its chapter); the same figures for
programs are in `results.json`. Each figure stands beside a baseline that was measured in the same run, in alternation.
The ratios are what counts: absolute times only describe the machine."""


def _chapter(section: Section, machine: str) -> str:
    head = "| what | here | baseline | ratio | goal | met |\n| --- | ---: | ---: | ---: | --- | --- |"
    rows = "\n".join(_row(figure) for figure in section.figures)
    notes = "".join(f"\n- {note}" for note in section.notes)
    return "\n\n".join(filter(None, (section.about, f"{head}\n{rows}", notes.strip(), f"Measured {machine}.")))


def _row(figure: Figure) -> str:
    cells = (
        figure.what,
        f"{_shown(figure.value)} {figure.unit}",
        "" if figure.baseline is None else f"{_shown(figure.baseline)} {figure.unit}",
        "" if figure.ratio is None else _shown(figure.ratio),
        figure.goal_text or "reported",
        {True: "yes", False: "**no**", None: ""}[figure.met],
    )
    return f"| {' | '.join(cells)} |"


def _benchmark_of(entry: Mapping[str, Any]) -> str:
    return str(entry["name"]).partition(":")[0]


def _rounded(value: float) -> float:
    """To three significant digits, whole numbers whole."""
    return float(f"{value:.3g}") if abs(value) < 1000 else float(round(value))


def _shown(value: float) -> str:
    return f"{_rounded(value):,.10g}"
