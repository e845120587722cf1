"""Decides what follows for the local store from what became of a memory in the remote."""

from typing import Literal

Outcome = Literal["created", "updated", "unchanged", "stale", "conflict_won", "conflict_lost", "resurrected"]
Consequence = Literal["confirm", "rebase", "pull", "nothing"]


def decide_consequence(
    outcome: Outcome,
    sent_version: int,
    remote_version: int,
    local_version: int | None,
    *,
    sent_delete: bool,
    confirmed: int | None = None,
) -> Consequence:
    """What the local store does after a push of one memory.

    * confirm: the remote holds what was sent; the row is stamped.
    * rebase: the live row stands at or below a version of the remote that this store never saw (it was inserted again
      after a delete, or its table was recreated): it goes above the remote's version and is pushed again.
    * pull: the remote won a conflict; the row becomes what the remote holds.
    * nothing: a newer change of the memory is queued or went through before, or there is no row to do anything to.

    Args:
        local_version: Where the live row stands now, `None` when there is none.
        confirmed: The version of it that the remote has confirmed, if any.
    """
    if outcome not in ("stale", "conflict_lost"):
        return "confirm"
    if local_version is None:
        return "nothing"
    if outcome == "conflict_lost" and not sent_delete:
        return "pull" if local_version <= max(sent_version, remote_version) else "nothing"
    seen = confirmed is not None and sent_version < remote_version <= confirmed
    return "rebase" if local_version <= remote_version and not seen else "nothing"
