"""Folds queue entries to what a batch brings to the remote for each memory."""

from collections.abc import Iterable
from dataclasses import replace

from dionysus_sync_mcp.domain.memory import MemoryChange, Version


def fold(captured: Iterable[tuple[str, int | None, Version]]) -> list[MemoryChange]:
    """One change for each memory, sorted by id: its newest state, and the states that came before it.

    Versions of one memory rise strictly in the order of capture. Where they do not (a row was deleted and inserted
    again, and the table counts from 1), the later state gets the number after the earlier one's.

    Args:
        captured: Memory id, base version and state, in the order of capture.
    """
    states: dict[str, list[Version]] = {}
    bases: dict[str, int | None] = {}
    for memory_id, base_version, version in captured:
        seen = states.setdefault(memory_id, [])
        bases.setdefault(memory_id, base_version)
        seen.append(_after(seen[-1], version) if seen else version)
    return [
        MemoryChange(memory_id, bases[memory_id], newest=seen[-1], older=tuple(seen[:-1]))
        for memory_id, seen in sorted(states.items())
    ]


def _after(earlier: Version, later: Version) -> Version:
    return later if later.number > earlier.number else replace(later, number=earlier.number + 1)
