"""What a question needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Filters:
    """What a hit must match; empty tuples and `None` mean anything. Times are aware."""

    projects: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    memory_types: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()  # any of them
    created_after: datetime | None = None
    created_before: datetime | None = None


class FoundMemory(NamedTuple):
    """A memory that one of the searches found, with that search's own score (higher is better)."""

    memory_id: str
    score: float
    content: str
    memory_type: str | None
    importance: float | None
    source_project: str | None
    session_id: str | None
    tags: list[str]
    created_at: str | None
    session_started_at: str | None
    session_summary: str | None


class WordSearch(Protocol):
    """Full-text search; `text` is data, never syntax."""

    async def search_words(self, text: str, filters: Filters, limit: int) -> list[FoundMemory]: ...


class VectorSearch(Protocol):
    """Nearest vectors first."""

    async def search_vector(self, vector: Sequence[float], filters: Filters, limit: int) -> list[FoundMemory]: ...
