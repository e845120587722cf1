"""Decides from what both stores remember of their pushes whether one of them has gone back in time.

Each push moves both stores on to a new lineage (a random id) and counts one generation up, in the transactions that
carry the push. A store that was restored from a dump, or wiped, remembers an older one.
"""

from typing import Literal, NamedTuple

Standing = Literal["same", "unknown_there", "resent", "behind_there", "behind_here"]


class Lineage(NamedTuple):
    """What a store remembers of the last push.

    Attributes:
        epoch: Changes when somebody decided that what the local store holds now is what counts.
        generation: How many pushes there were.
        lineage: Id of the last one.
    """

    epoch: str
    generation: int
    lineage: str


class RemoteLineage(NamedTuple):
    """What the remote store remembers of a local store.

    Attributes:
        past_epochs: Those that were given up.
        last_entry: Id of the last queue entry of the last push.
    """

    last: Lineage
    past_epochs: frozenset[str] = frozenset()
    last_entry: str = ""


def standing(here: Lineage, there: RemoteLineage | None, *, last_push_waits: bool, repeated: str = "") -> Standing:
    """Where the local store stands beside what the remote remembers of it.

    * same: both remember the same push.
    * unknown_there: the remote has never seen this store, or this epoch of it: it is new, or the remote was wiped.
    * resent: the remote has one push more, of which the entries are still queued here: its acknowledgement was lost.
    * behind_there: the remote was restored from an older backup; it is filled again.
    * behind_here: this database is older than what it has pushed, or a copy of it has pushed: somebody has to decide.

    Args:
        last_push_waits: Whether the last entry of the push that the remote remembers is still queued here.
        repeated: What an earlier attempt of the last push had left remotely: a backup may have been made of that.
    """
    if there is None or not there.last.lineage:
        return "unknown_there"
    if there.last.epoch != here.epoch:
        return "behind_here" if here.epoch in there.past_epochs else "unknown_there"
    if there.last.lineage == here.lineage:
        return "same"
    if there.last.generation == here.generation + 1 and last_push_waits:
        return "resent"
    older = there.last.generation < here.generation or there.last.lineage == repeated
    return "behind_there" if older else "behind_here"
