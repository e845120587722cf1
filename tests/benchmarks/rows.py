"""The memories that are written: 60 words each, with projects, sessions and tags, the same in every run."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

WORDS = 60
VOCABULARY = 5000
PROJECTS = 20
SESSIONS = 200
TAGS = 50
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
TYPES = ("episodic", "semantic", "procedural", "strategic")
SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


class Row(NamedTuple):
    """The user's columns of `memories`, in the order of its definition."""

    id: UUID
    content: str
    memory_type: str
    importance: float
    source_project: str
    session_id: UUID
    tags: list[str]
    created_at: datetime
    updated_at: datetime


def rows(count: int, seed: int = 1) -> list[Row]:
    """As many memories; another seed gives others."""
    chance = random.Random(seed)  # noqa: S311 - the same texts in every run are wanted
    vocabulary = ["".join(chance.choices(SYLLABLES, k=chance.randint(1, 4))) for _ in range(VOCABULARY)]
    return [_row(chance, vocabulary, number) for number in range(count)]


def native(row: Row) -> dict[str, Any]:
    """The row as a client sends it to Neo4j that thinks no more of it: only UUIDs have to be text."""
    return {**row._asdict(), "id": str(row.id), "session_id": str(row.session_id)}


def plain(row: Row) -> dict[str, Any]:
    """The row with its times as ISO 8601 text, which is faster on the wire."""
    return {**native(row), "created_at": row.created_at.isoformat(), "updated_at": row.updated_at.isoformat()}


def _row(chance: random.Random, vocabulary: list[str], number: int) -> Row:
    session = chance.randrange(SESSIONS)
    written = FIRST + timedelta(seconds=number, microseconds=chance.randrange(1_000_000))
    return Row(
        id=UUID(int=chance.getrandbits(128), version=4),
        content=" ".join(chance.choices(vocabulary, k=WORDS)),
        memory_type=chance.choice(TYPES),
        importance=chance.randrange(9) / 8,
        source_project=f"project-{session % PROJECTS}",
        session_id=UUID(int=session + 1, version=4),
        tags=[f"tag-{chance.randrange(TAGS)}" for _ in range(3)],
        created_at=written,
        updated_at=written,
    )
