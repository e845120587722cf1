"""Decides from the counts of both sides whether memories are missing on one of them."""

from typing import NamedTuple


class Counts(NamedTuple):
    """What both sides hold. Every change that waits, or is parked, explains one difference.

    Attributes:
        memories: Rows of the local table.
        waiting: Queue entries, parked ones too.
        live: Memories of the remote store, whoever wrote them.
        own: Those of them that this local store wrote.
    """

    memories: int
    waiting: int
    live: int
    own: int


def missing_here(counts: Counts) -> int:
    """How many memories that this store wrote are not in its table, and no waiting change explains it."""
    return max(0, counts.own - counts.memories - counts.waiting)


def missing_there(counts: Counts) -> int:
    """How many rows, at least, the remote store lacks although it has confirmed them."""
    return max(0, counts.memories - counts.waiting - counts.live)
