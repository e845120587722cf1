"""The two files that the benchmarks write: every field, goals judged, and only what was measured again replaced."""

import json

import pytest

from tests.benchmarks.results import FIELDS, Figure, Goal, Section, json_text, merged_entries, merged_markdown

LATENCY = Section("latency", "How soon.", [Figure("median", 90.0, "ms", 6.0, Goal("value", "<", 250))])
DRAIN = Section(
    "drain",
    "How fast.",
    [Figure("beside bare", 4000.4, "rows/s", 10_000.0, Goal("ratio", ">=", 0.5)), Figure("alone", 1.23456, "s")],
    ["A note."],
)


@pytest.mark.parametrize(
    ("goal", "met", "text"),
    [
        (Goal("value", "<", 250), True, "< 250 ms"),
        (Goal("value", "<", 90), False, "< 90 ms"),
        (Goal("ratio", "<=", 15), True, "ratio <= 15"),
        (Goal("ratio", ">=", 60), False, "ratio >= 60"),
        (Goal("difference", "<", 1), False, "< 1 ms more"),
        (None, None, None),
    ],
)
def test_a_goal_is_judged_and_named(goal: Goal | None, met: bool | None, text: str | None) -> None:
    """A goal bounds the value, its ratio to the baseline or what it is more; without one a figure is only reported."""
    figure = Figure("median", 90.0, "ms", 6.0, goal)
    assert (figure.met, figure.goal_text) == (met, text)


def test_a_ratio_needs_a_baseline() -> None:
    """A goal for the ratio of a figure without a baseline is a mistake, not a goal that is met."""
    with pytest.raises(ValueError, match="needs a baseline"):
        _ = Figure("median", 90.0, "ms", None, Goal("ratio", "<", 2)).met


def test_each_entry_has_all_fields() -> None:
    """results.json is a list of objects with the fields of the design, rounded to what was measured."""
    entries = json.loads(json_text(merged_entries([], [DRAIN])))
    assert [list(entry) for entry in entries] == [list(FIELDS)] * 2
    assert list(entries[0].values()) == ["drain: beside bare", 4000, "rows/s", 10_000, 0.4, "ratio >= 0.5", False]
    assert list(entries[1].values()) == ["drain: alone", 1.23, "s", None, None, None, None]


def test_one_benchmark_alone_replaces_its_own_figures() -> None:
    """A run of one benchmark keeps the other's entries and chapter, and leaves nothing of its own old ones."""
    old_entries = merged_entries([], [DRAIN, LATENCY])
    old_chapters = merged_markdown("", [DRAIN, LATENCY], "long ago")
    again = Section("drain", "How fast now.", [Figure("beside nothing", 5.0, "rows/s")])

    entries = merged_entries(old_entries, [again])
    chapters = merged_markdown(old_chapters, [again], "today")

    assert [entry["name"] for entry in entries] == ["drain: beside nothing", "latency: median"]
    assert chapters.count("## drain") == chapters.count("## latency") == chapters.count("# Benchmarks\n") == 1
    assert "How fast now." in chapters
    assert "A note." not in chapters
    assert chapters.count("Measured today.") == chapters.count("Measured long ago.") == 1


def test_a_missed_goal_stands_out() -> None:
    """The table says of each figure whether its goal is met, and prints a missed one bold."""
    table = merged_markdown("", [DRAIN, LATENCY], "today").splitlines()
    assert "| beside bare | 4,000 rows/s | 10,000 rows/s | 0.4 | ratio >= 0.5 | **no** |" in table
    assert "| median | 90 ms | 6 ms | 15 | < 250 ms | yes |" in table
