"""What memories had in columns that an incident took away, so that it comes back beside what they hold now."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from dionysus_sync_mcp.domain.memory import RemoteMemory

# Those that every memory has, and that a table can lose.
_COMMON = ("content", "memory_type", "importance", "source_project", "session_id", "tags", "created_at", "updated_at")
_NULL = "null"


@dataclass(frozen=True, slots=True)
class LostColumns:
    """What the table had before an incident changed its shape.

    Attributes:
        moment: When it had them last, by the local store's clock.
        columns: Those that rows filled, by name; `None` where that was never noted, which means all that they have.
        filled_anyway: Those of them that are not null in a row that says nothing of them.
        absent: Those that the table lacks now.
    """

    moment: datetime
    columns: frozenset[str] | None = None
    filled_anyway: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()


def lost_values(target: RemoteMemory, before: RemoteMemory, lost: LostColumns) -> dict[str, str]:
    """JSON text of each value that a memory had and the state that is to come back says nothing of, by column.

    A state that was captured while the table lacked a column has no such key; one that was captured with the column
    has it, be it null.
    """
    had, has = parts(before.extra), parts(target.extra)
    found = {
        name: value
        for name, value in had.items()
        if name not in has
        and (lost.columns is None or name in lost.columns)
        and (value != _NULL or name in lost.filled_anyway)
    }
    for name in lost.absent.intersection(_COMMON):
        value = getattr(before, name)
        if value is not None and getattr(target, name) is None:
            found[name] = json.dumps(value)
    return found


def with_values(extra: str | None, values: Mapping[str, str]) -> str:
    """The further columns of a state, as JSON text, with these too."""
    both = parts(extra) | dict(values)
    return "{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in both.items()) + "}"


def names_of(values: Iterable[str]) -> str:
    """Names of columns, in order."""
    return ", ".join(sorted(values))


def parts(text: str | None) -> dict[str, str]:
    """The values of a JSON object, each as it is written: a number keeps all its digits. None of what is no object."""
    try:
        return dict(_pairs(text or "{}"))
    except ValueError:
        return {}


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Raises `ValueError` where the text is no JSON object."""
    if not isinstance(json.loads(text), dict):
        raise ValueError("no object")
    decoder, at = json.JSONDecoder(), _after(text, 0)
    # On an opening brace or a comma here.
    while text[at] != "}" and text[at := _after(text, at + 1)] != "}":
        name, at = decoder.raw_decode(text, at)
        begin = _after(text, _after(text, at) + 1)
        _, at = decoder.raw_decode(text, begin)
        yield name, text[begin:at]
        at = _after(text, at)


def _after(text: str, at: int) -> int:
    """The first index from there on that is no white space."""
    while text[at] in " \t\r\n":
        at += 1
    return at
