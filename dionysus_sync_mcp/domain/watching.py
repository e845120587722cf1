"""Decides what lies between two looks at the local store: what was destroyed without the database telling of it."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from dionysus_sync_mcp.domain.destruction import (
    LONGEST_DETAIL,
    MOST_COUNTED,
    Incident,
    IncidentKind,
    Sight,
    Thresholds,
    free_key,
    incident_id,
    utc_text,
)
from dionysus_sync_mcp.domain.text import defused

# What the database does tell of when they are called something else.
READ_COLUMNS = frozenset(
    ["id", "content", "memory_type", "importance", "source_project", "session_id", "tags", "created_at", "updated_at"]
)


def compare(
    before: Sight | None,
    now: Sight,
    thresholds: Thresholds,
    expected: frozenset[str],
    known: Sequence[Incident] = (),
) -> list[Incident]:
    """The incidents that lie between two looks, and that the database has not told of itself.

    All was well at the look before: its time is the restore point. Inserts between the looks can only hide that rows
    are missing.

    Args:
        expected: Triggers that a capture by this program has; others that are gone were another version's.
        known: Incidents on record, so that what was told of already is no second one.
    """
    if before is None or before.store is None or now.recovering:
        return []
    watch = _Watch(before, now, before.store, [i for i in known if i.store == before.store])
    if now.store != before.store:
        return [watch.store_lost()]
    if None not in (before.database, now.database) and before.database != now.database:
        return []
    found = [*watch.bookkeeping_lost()]
    if before.table is None:
        return found
    if now.table != before.table:
        return [*found, watch.table_lost(before.table)]
    return [*found, *watch.reshaped(), *watch.uncaptured(expected), *watch.rows_lost(thresholds)]


def database_missing(before: Sight, store: str, now: datetime) -> Incident:
    """The incident of a database that is gone from its server; `before`: the last look at it."""
    watch = _Watch(before, Sight(now, None, None), store, ())
    held = f" It held {before.rows} memories." if before.rows else ""
    return watch.incident("database_missing", watch.store_key(), before.rows or 0, f"The database is gone.{held}")


# Columns of text, each of which becomes the other without any loss where that may be as long.
_TEXT = re.compile(r"(.*) (?:text|character varying(?:\((\d+)\))?)")


def _holds(column: str, before: str) -> bool:
    """Whether all that was in a column of text can be in this one, which has its name: `name type` of both."""
    now, was = _TEXT.fullmatch(column), _TEXT.fullmatch(before)
    if now is None or was is None or now[1] != was[1]:
        return False
    return now[2] is None or (was[2] is not None and int(now[2]) >= int(was[2]))


def _renamed(gone: Collection[str], made: Collection[str]) -> set[str]:
    """Columns of the user's own that others of their type stand for: the database says nothing of a new name."""
    free = Counter(column.partition(" ")[2] for column in made)
    renamed = set()
    for column in sorted(gone):
        name, _, kind = column.partition(" ")
        if name not in READ_COLUMNS and free[kind] > 0:
            free[kind] -= 1
            renamed.add(column)
    return renamed


@dataclass(frozen=True, slots=True)
class _Watch:
    """Two looks at one store, beside what is on record of it."""

    before: Sight
    now: Sight
    store: str
    known: Sequence[Incident]

    def store_key(self) -> str:
        """Of the loss of the store's identity, however it is seen; a table has another oid in a restored database."""
        return f"store:{self.before.table}"

    def store_lost(self) -> Incident:
        """The bookkeeping is gone or another one, perhaps with the table, perhaps with all of the database."""
        kind: IncidentKind = "bookkeeping_missing"
        if self.before.table is not None and self.now.table != self.before.table and not self._told("gone"):
            kind = "table_missing" if self.now.table is None else "table_recreated"
        rows = self.before.rows or 0 if kind != "bookkeeping_missing" else 0
        summary = {
            "table_missing": "The table memories is gone, and the bookkeeping with it.",
            "table_recreated": "Another table stands in the place of memories, and the bookkeeping was gone.",
        }.get(kind, "The bookkeeping was gone: changes were not captured until it was put back.")
        return self.incident(kind, self.store_key(), rows, summary)

    def bookkeeping_lost(self) -> Iterator[Incident]:
        """A part of it, such as the queue."""
        if self.before.whole and not self.now.whole and not self._told("drop"):
            summary = "A part of the bookkeeping is gone: changes were not captured until it was put back."
            yield self.incident("bookkeeping_missing", f"parts:{utc_text(self.before.seen_at)}", 0, summary)

    def table_lost(self, table: int) -> Incident:
        """It is gone, or another one stands at its name."""
        key = self._told(f"gone:{table}") or free_key(f"gone:{table}", self.before.seen_at, self.known)
        held = f"; it held {self.before.rows} memories" if self.before.rows else ""
        if self.now.table is None:
            return self.incident("table_missing", key, self.before.rows or 0, f"The table memories is gone{held}.")
        summary = f"Another table stands in the place of memories{held}."
        return self.incident("table_recreated", key, self.before.rows or 0, summary)

    def reshaped(self) -> Iterator[Incident]:
        """Columns that are gone or of another type; ones that were added, or hold more than before, are no loss.

        Also where the database tells of alterations itself: whoever made this one may have kept it from that. What it
        told of is on record by now.
        """
        gone, made = set(self.before.columns) - set(self.now.columns), set(self.now.columns) - set(self.before.columns)
        if self.before.event_triggers and self.now.event_triggers:
            gone -= _renamed(gone, made)
        lost = sorted(column for column in gone if not any(_holds(other, column) for other in made))
        if not lost or any(self._told(event) for event in ("alter", "drop", "gone")):
            return
        key = f"alter:{self.before.table}:{utc_text(self.before.seen_at)}"
        named = defused(", ".join(lost), LONGEST_DETAIL)
        summary = f"Columns of the table memories are gone or of another type: {named}."
        yield self.incident("alter", key, self.before.rows or 0, summary)

    def uncaptured(self, expected: frozenset[str]) -> Iterator[Incident]:
        """Triggers of the capture that are gone or disabled, or what tells of drops and alterations."""
        lost = (self.before.triggers & expected) - self.now.triggers
        key = self._told("capture_off") or f"capture_off:{self.before.table}:{utc_text(self.before.seen_at)}"
        if self._told("drop") or self._told("alter"):
            return
        if lost:
            named = ", ".join(sorted(lost))
            summary = (
                f"Changes were not all captured: triggers were disabled or gone until they were put back ({named})."
            )
            yield self.incident("capture_off", key, 0, summary)
        elif self.before.event_triggers and not self.now.event_triggers:
            summary = "The database does not tell of a lost or altered table any more: its event triggers are off."
            yield self.incident("capture_off", key, 0, summary)

    def rows_lost(self, thresholds: Thresholds) -> Iterator[Incident]:
        """Rows that went without being captured."""
        if self.now.rows is None:
            return
        held = MOST_COUNTED if self.before.rows is None else self.before.rows
        missing = held - self.now.rows - self.now.gone
        if missing > thresholds.deletes:
            key = f"rows_missing:{self.before.table}:{utc_text(self.before.seen_at)}"
            summary = f"{missing} memories or more are gone that nobody was seen to delete."
            yield self.incident("rows_missing", self._told("rows_missing") or key, missing, summary)

    def incident(self, kind: IncidentKind, key: str, rows: int, summary: str) -> Incident:
        """One that lies between the looks."""
        return Incident(
            id=incident_id(self.store, key),
            key=key,
            kind=kind,
            store=self.store,
            detected_at=self.now.seen_at,
            restore_point=self.before.seen_at,
            last_at=self.now.seen_at,
            rows=rows,
            summary=summary,
        )

    def _told(self, event: str) -> str | None:
        """Key of an open incident of this event that was not over before the first of the looks."""
        lately = (i for i in self.known if i.last_at >= self.before.seen_at)
        return next((i.key for i in lately if not i.closed_at and f"{i.key}:".startswith(f"{event}:")), None)
