"""Decides when a drill is due, and after which definition its scratch table is made."""

import json

HOUR = 3600.0


def is_due(since_done: float | None, since_tried: float | None, hours: float) -> bool:
    """Whether it is time for a drill by the clock; one that could not be carried out is tried again an hour later.

    Args:
        since_done: Seconds since the last one that was carried out, of whatever process; `None` for none on record.
        since_tried: Seconds since the last one that was tried.
        hours: Between two drills; 0: none by itself.
    """
    if not hours:
        return False
    if since_done is not None and since_done < hours * HOUR:
        return False
    return since_tried is None or since_tried >= min(hours * HOUR, HOUR)


def scratch_definition(definition: str) -> str:
    """A definition of `memories`, for a table that touches nothing else of the database.

    Without indexes, grants and triggers, which no drill needs; without foreign keys, which would lock the tables that
    they refer to; and without defaults that take a number from a sequence of the user's. Both are JSON text, as
    `dionysus_sync.definition_of` makes it.
    """
    noted = json.loads(definition)
    columns = [
        {**column, "default": None} if "nextval(" in str(column.get("default")) else column
        for column in noted.get("columns", ())
    ]
    constraints = [
        one for one in noted.get("constraints", ()) if not str(one.get("definition")).startswith("FOREIGN KEY")
    ]
    return json.dumps({"columns": columns, "constraints": constraints, "indexes": []})
