"""What the benchmarks make of the program's audit and of a plan."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.benchmarks.backlog import reads_by_index
from tests.benchmarks.program import pace

START = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_rate_leaves_out_the_first_push_and_pauses() -> None:
    """When the first push began is not known, so neither its rows nor its time count; nor does a time held back."""
    ends = [(START, 7), (START + timedelta(seconds=2), 1000), (START + timedelta(seconds=7), 1000)]
    found = pace(ends, paused=3.0)
    assert (found.rows, found.seconds, found.rate) == (2000, 4.0, 500.0)
    assert found.gaps == [2.0, 5.0]


def test_a_rate_needs_two_pushes() -> None:
    """One push alone has no rate, and is not taken for one."""
    with pytest.raises(AssertionError, match="1 pushes"):
        pace([(START, 1000)], paused=0.0)


@pytest.mark.parametrize(
    ("scans", "expected"),
    [
        ([("Index Scan", "sync_queue")], True),
        ([("Index Scan", "sync_queue"), ("Index Only Scan", "sync_queue"), ("Seq Scan", "other")], True),
        ([("Index Scan", "sync_queue"), ("Seq Scan", "sync_queue")], False),
        ([("Bitmap Heap Scan", "sync_queue")], False),
        ([("Index Scan", "other")], False),
    ],
)
def test_a_plan_reads_by_index_only_if_every_scan_does(scans: list[tuple[str, str]], expected: bool) -> None:
    """However deep a scan of the table stands in the plan, it has to be one of an index."""
    nodes = [{"Node Type": kind, "Relation Name": table} for kind, table in scans]
    assert (
        reads_by_index({"Node Type": "Sort", "Plans": [{"Node Type": "Limit", "Plans": nodes}]}, "sync_queue")
        == expected
    )
