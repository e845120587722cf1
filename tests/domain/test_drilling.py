"""When a drill is due, and what its table is made after."""

import json
from typing import Any

import pytest

from dionysus_sync_mcp.domain.drilling import HOUR, is_due, scratch_definition


@pytest.mark.parametrize(
    ("since_done", "since_tried", "hours", "due"),
    [
        (None, None, 24, True),
        (23.9 * HOUR, 23.9 * HOUR, 24, False),
        (24 * HOUR, 24 * HOUR, 24, True),
        (None, HOUR / 2, 24, False),
        (None, HOUR, 24, True),
        (30 * HOUR, HOUR / 2, 24, False),
        (30 * HOUR, 2 * HOUR, 24, True),
        (None, None, 0, False),
        (700.0, 700.0, 0.1, True),
        (None, 100.0, 0.1, False),
    ],
)
def test_a_drill_is_due_by_the_age_of_the_last_one(
    since_done: float | None, since_tried: float | None, hours: float, due: bool
) -> None:
    """One that could not be carried out is tried again, and not at once."""
    assert is_due(since_done, since_tried, hours) is due


def test_the_scratch_table_touches_nothing_else() -> None:
    """No index, no foreign key, no number of somebody's sequence, no grant; the rest as it is."""
    noted: dict[str, list[Any]] = {
        "columns": [
            {"name": "id", "type": "uuid", "default": "gen_random_uuid()"},
            {"name": "n", "type": "integer", "default": "nextval('public.memories_n_seq'::regclass)"},
        ],
        "constraints": [
            {"name": "p", "definition": "PRIMARY KEY (id)"},
            {"name": "f", "definition": "FOREIGN KEY (n) REFERENCES public.other(n)"},
        ],
        "indexes": ["CREATE INDEX i ON public.memories USING btree (n)"],
        "grants": [{"role": "agent", "privilege": "SELECT"}],
    }
    assert json.loads(scratch_definition(json.dumps(noted))) == {
        "columns": [noted["columns"][0], {"name": "n", "type": "integer", "default": None}],
        "constraints": [noted["constraints"][0]],
        "indexes": [],
    }
