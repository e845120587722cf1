"""Options that several commands have, and how their values are read."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

import typer

UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
SPAN = re.compile(r"(?P<number>[0-9]{1,6})(?P<unit>[mhdw])")


def moment(text: str) -> datetime:
    """The time that an ISO 8601 text names, in UTC; one without an offset could be anybody's.

    Raises:
        typer.BadParameter: It names none, or has no offset.
    """
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise typer.BadParameter("give a time such as 2026-08-01T12:00:00Z") from None
    if time.tzinfo is None:
        raise typer.BadParameter("add Z for UTC, or an offset such as +02:00: this time has neither")
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise typer.BadParameter("this time is out of range") from None


def span(text: str) -> timedelta:
    """The duration that a number with a unit names: `30m`, `12h`, `90d` or `2w`.

    Raises:
        typer.BadParameter: It names none, or is zero.
    """
    read = SPAN.fullmatch(text.strip().lower())
    if read is None or not int(read["number"]):
        raise typer.BadParameter("give a number and a unit, such as 12h, 90d or 2w")
    return int(read["number"]) * UNITS[read["unit"]]


Json = Annotated[bool, typer.Option("--json", help="Print the report as JSON, alone on stdout.")]
Projects = Annotated[list[str] | None, typer.Option("--project", help="Only this project; can be repeated.")]
Sessions = Annotated[list[UUID] | None, typer.Option("--session", help="Only this session; can be repeated.")]
Memories = Annotated[list[UUID] | None, typer.Option("--memory", help="Only this memory; can be repeated.")]


def texts(ids: list[UUID] | None) -> tuple[str, ...]:
    """Ids as the engine takes them."""
    return tuple(str(one) for one in ids or ())


def exit_unless(done: bool) -> None:
    """End the command with 1 where not all of it could be done."""
    if not done:
        raise typer.Exit(1)
