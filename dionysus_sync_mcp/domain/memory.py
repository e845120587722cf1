"""A memory in the shapes that it travels in, and the rules of the data model that it must keep.

The hash of a row is made in one place only, by `dionysus_sync.content_hash` in PostgreSQL, over the whole row without
our sync columns; everything else carries it along and compares it.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple
from uuid import UUID

MemoryType = Literal["episodic", "semantic", "procedural", "strategic"]
MEMORY_TYPES: frozenset[str] = frozenset({"episodic", "semantic", "procedural", "strategic"})
KNOWN_COLUMNS = (
    "id", "content", "memory_type", "importance", "source_project", "session_id", "tags", "created_at", "updated_at",
)  # fmt: skip
SYNC_COLUMNS = ("sync_status", "synced_at", "sync_version", "remote_id", "synced_version")

Operation = Literal["create", "update", "delete"]

# What Cypher's datetime() takes and PostgreSQL's timestamptz gives back unchanged: years 0001 to 9999, no infinity.
_PLAIN_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})?"
)


class Properties(NamedTuple):
    """The known columns of a memory as the remote store can hold and search them.

    A value that the remote's types cannot carry exactly (an infinite time, a null inside `tags`) is `None` or rounded
    here, and stands exactly in `extra`, which wins when the row is rebuilt.
    """

    content: str | None
    memory_type: str | None
    importance: float | None
    source_project: str | None
    session_id: str | None
    tags: list[str] | None
    created_at: str | None  # ISO 8601
    updated_at: str | None  # ISO 8601
    extra: str | None  # JSON object text: the columns that we do not know, and exact values of those that we do


@dataclass(frozen=True, slots=True)
class Version:
    """One state of a memory, at one version.

    Attributes:
        number: `sync_version`; a tombstone has a number of its own.
        content_hash: Of the whole row, hex SHA-256.
        changed_at: When the local store captured it, ISO 8601 with offset.
    """

    number: int
    operation: Operation
    content_hash: str
    changed_at: str
    properties: Properties


@dataclass(frozen=True, slots=True)
class MemoryChange:
    """What a batch brings to the remote for one memory: its newest state, and the states that came before it.

    Attributes:
        base_version: The version that the remote last confirmed to this store, `None` if it never did.
        older: States captured since then and not sent yet, oldest first, without `newest`.
    """

    memory_id: str
    base_version: int | None
    newest: Version
    older: tuple[Version, ...] = ()


class RemoteMemory(NamedTuple):
    """A memory as it stands in the remote store. Field order is that of the statements that read it."""

    id: str
    version: int
    content_hash: str
    deleted_at: str | None
    content: str | None
    memory_type: str | None
    importance: float | None
    source_project: str | None
    session_id: str | None
    tags: list[str] | None
    created_at: str | None
    updated_at: str | None
    extra: str | None


class Digest(NamedTuple):
    """What a comparison needs of a memory. What the rules are about is given for a remote one only.

    The hash is empty for a local row that PostgreSQL cannot make JSON of.
    """

    id: str
    version: int
    content_hash: str
    deleted: bool
    memory_type: str | None = None
    importance: float | None = None
    session_id: str | None = None


def properties_of(columns: Mapping[str, str | None], extra: str | None) -> Properties:
    """The remote's properties of a row.

    Args:
        columns: Each known column as PostgreSQL's JSON gives it in text (`->>`), `tags` as JSON array text.
        extra: JSON object text of the row's other columns, `None` or `"{}"` where it has none.
    """
    exact: dict[str, str] = {}
    importance = _number(columns, "importance", exact)
    tags = _strings(columns, "tags", exact)
    created_at = _time(columns, "created_at", exact)
    updated_at = _time(columns, "updated_at", exact)
    return Properties(
        content=columns["content"],
        memory_type=columns["memory_type"],
        importance=importance,
        source_project=columns["source_project"],
        session_id=columns["session_id"],
        tags=tags,
        created_at=created_at,
        updated_at=updated_at,
        extra=_with_exact(extra, exact),
    )


def _number(columns: Mapping[str, str | None], name: str, exact: dict[str, str]) -> float | None:
    text = columns[name]
    if text is None:
        return None
    value = float(text)
    if not math.isfinite(value):
        exact[name] = json.dumps(text)
        return None
    if text not in {repr(value), f"{value:.0f}"}:
        exact[name] = text
    return value


def _strings(columns: Mapping[str, str | None], name: str, exact: dict[str, str]) -> list[str] | None:
    text = columns[name]
    if text is None:
        return None
    values = json.loads(text)
    plain = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    if plain != values:
        exact[name] = text
    return plain


def _time(columns: Mapping[str, str | None], name: str, exact: dict[str, str]) -> str | None:
    text = columns[name]
    if text is None or is_plain_time(text):
        return text
    exact[name] = json.dumps(text)
    return None


def is_plain_time(text: str) -> bool:
    """Whether it is a time that both stores take and give back unchanged."""
    if not _PLAIN_TIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _with_exact(extra: str | None, exact: Mapping[str, str]) -> str | None:
    rest = (extra or "{}").strip()[1:-1].strip()
    fields = [f"{json.dumps(name)}: {value}" for name, value in exact.items()]
    body = ", ".join([*fields, *([rest] if rest else [])])
    return f"{{{body}}}" if body else None


def broken_rules(memory: RemoteMemory | Digest) -> list[str]:
    """The data model's rules that a memory breaks, in its words ("Validation Rules"); empty for a valid one."""
    found = []
    if memory.version < 1:
        found.append("sync_version must be >= 1")
    if memory.memory_type not in MEMORY_TYPES:
        found.append(f"Invalid memory_type: {memory.memory_type}")
    if not _is_share(memory.importance):
        found.append("Importance must be between 0 and 1")
    if memory.session_id is not None and not _is_uuid(memory.session_id):
        found.append("Invalid session_id format")
    return found


def broken_vector_rule(vector: list[float], dimensions: int) -> str | None:
    """Why a vector cannot be stored, in the data model's words; `None` for a good one."""
    if len(vector) != dimensions:
        return f"Embedding dimension mismatch: expected {dimensions}, got {len(vector)}"
    if not all(map(math.isfinite, vector)):
        return "Embedding has a value that is not finite"
    if not any(vector):
        return "Embedding is all zeros"
    return None


def _is_share(value: object) -> bool:
    """Whether it is a number from 0 to 1; what somebody wrote into the remote by hand may be no number at all."""
    return isinstance(value, int | float) and 0 <= value <= 1


def _is_uuid(text: str) -> bool:
    try:
        UUID(str(text))
    except ValueError:
        return False
    return True
