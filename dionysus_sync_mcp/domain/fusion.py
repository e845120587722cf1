"""Two ranked lists made one: by their scaled scores, each hit lifted by the other hits of its session.

Reciprocal rank fusion loses to words alone on short memories: rank 40 in both lists would beat rank 1 in one.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

Match = Literal["words", "meaning"]

# Each list is asked for so many hits: the answer to a question is among them in seven of eight cases.
DEPTH = 100
SESSION_SHARE = 0.4
# A long session with dozens of middling hits must not bury a single good one.
SESSION_BOUND = 1.5


class Ranked(NamedTuple):
    """A hit of one search, with that search's own score: higher is better."""

    memory_id: str
    score: float
    session_id: str | None


class Fused(NamedTuple):
    """A hit of the two searches together."""

    memory_id: str
    score: float
    matched: tuple[Match, ...]


def fuse(words: Sequence[Ranked], meaning: Sequence[Ranked], words_weight: float) -> list[Fused]:
    """The hits of both lists, best first, ties by id.

    Args:
        words: Full-text hits, at most `DEPTH`.
        meaning: Vector hits, at most `DEPTH`; empty where that search was not made.
        words_weight: Share of the words in a score, 0 to 1.
    """
    by_words = _scaled(words, _floor_of_words(words))
    by_meaning = _scaled(meaning, min((hit.score for hit in meaning), default=0.0))
    found = {hit.memory_id: hit for hit in (*meaning, *words)}
    base = {key: words_weight * by_words.get(key, 0.0) + (1 - words_weight) * by_meaning.get(key, 0.0) for key in found}
    lifts = _session_lifts(base, found)
    fused = [
        Fused(key, base[key] + lifts[_session_key(hit)], _matched(key, by_words, by_meaning))
        for key, hit in found.items()
    ]
    return sorted(fused, key=lambda hit: (-hit.score, hit.memory_id))


def _floor_of_words(words: Sequence[Ranked]) -> float:
    # What a full-text search does not return scores 0, unless the list was cut: then it scores less than the last hit.
    return min(hit.score for hit in words) if len(words) >= DEPTH else 0.0


def _scaled(hits: Sequence[Ranked], floor: float) -> dict[str, float]:
    best = max((hit.score for hit in hits), default=0.0)
    if best <= floor:
        return {hit.memory_id: 1.0 for hit in hits}
    return {hit.memory_id: max(0.0, (hit.score - floor) / (best - floor)) for hit in hits}


def _session_key(hit: Ranked) -> str:
    # A memory without a session is a session of its own: it is lifted by itself like every other.
    return hit.session_id or hit.memory_id


def _session_lifts(base: Mapping[str, float], found: Mapping[str, Ranked]) -> dict[str, float]:
    scores: dict[str, list[float]] = {}
    for key, hit in found.items():
        scores.setdefault(_session_key(hit), []).append(base[key])
    return {session: SESSION_SHARE * min(SESSION_BOUND, math.hypot(*members)) for session, members in scores.items()}


def _matched(key: str, words: Mapping[str, float], meaning: Mapping[str, float]) -> tuple[Match, ...]:
    by_words: tuple[Match, ...] = ("words",) if key in words else ()
    by_meaning: tuple[Match, ...] = ("meaning",) if key in meaning else ()
    return by_words + by_meaning
