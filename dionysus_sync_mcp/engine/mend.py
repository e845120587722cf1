"""Mend: what a repair does to memories that differ; each step leaves alone what is not as it was seen any more."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple
from uuid import uuid4

from dionysus_sync_mcp.domain.drift import Action, There, winner
from dionysus_sync_mcp.domain.errors import Refused
from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.engine.ports.push import RemoteWriter
from dionysus_sync_mcp.engine.ports.recover import RemoteReader, Restorer, as_it_stands
from dionysus_sync_mcp.engine.ports.verify import LocalMending, RemoteMending, Seen

PAGE = 500

BY_CONTENT: frozenset[Action] = frozenset({"delete_again", "restore", "pull", "decide", "keep_here"})
NO_HASH = "somebody has taken its hash or its version away in the remote store"
NOT_HERE = "it is not in this database, from which it could be sent"
MISMATCHED = "it does not become the row that the remote store holds"
LATER_THERE = "the remote store's content is the later one"


class Mended(NamedTuple):
    """What became of memories that were to be mended; those in neither had moved, or are held by somebody.

    Attributes:
        left: Those that would be left again, with the reason.
    """

    number: int = 0
    left: Mapping[str, str] = MappingProxyType({})

    def and_(self, other: "Mended") -> "Mended":
        """Both together."""
        return Mended(self.number + other.number, {**self.left, **other.left})


Step = Callable[[Sequence[Seen], str], Awaitable[Mended]]


class Mender:
    """Carries out the actions of a repair. Whatever it overwrites is in the remote's history before (P4)."""

    def __init__(
        self,
        local: LocalMending,
        remote: RemoteMending,
        reader: RemoteReader,
        writer: RemoteWriter,
        restorer: Restorer,
    ) -> None:
        self._local = local
        self._remote = remote
        self._reader = reader
        self._writer = writer
        self._restorer = restorer
        self._steps: dict[Action, Step] = {
            "send": self._send,
            "send_above": self._send_above,
            "delete_again": self._delete_again,
            "restore": self._restore,
            "pull": self._pull,
            "decide": self._decide,
            "keep_here": self._keep_here,
            "merge": self._merge,
            "version": self._version,
        }

    async def mend(self, action: Action, seen: Sequence[Seen], store: str, limit: int) -> Mended:
        """Mend these memories in pages, until `limit` are. One that a store refuses does not keep others from it."""
        mended, start = Mended(0, _unreadable(action, seen)), 0
        seen = [one for one in seen if one.memory_id not in mended.left]
        while start < len(seen) and (wanted := min(PAGE, limit - mended.number)) > 0:
            mended = mended.and_(await _halving(self._steps[action], seen[start : start + wanted], store))
            start += wanted
        return mended

    async def make_schema(self) -> bool:
        """Make the remote's constraints and indexes that are missing; whether all could be."""
        try:
            await self._writer.prepare()
        except Refused:
            return False
        return True

    async def _send(self, seen: Sequence[Seen], _store: str) -> Mended:
        # What somebody has made older by hand is in no history yet, and would be overwritten.
        if older := [one for one in seen if one.facts.there and not one.facts.there.deleted]:
            await self._remote.keep_found(older)
        return Mended(await self._local.send(seen))

    async def _send_above(self, seen: Sequence[Seen], _store: str) -> Mended:
        here = [one for one in seen if one.facts.here]
        if held := [one for one in here if one.facts.there]:
            await self._remote.keep_found(held)
        absent = {one.memory_id: NOT_HERE for one in seen if not one.facts.here}
        return Mended(await self._local.send_above(here) if here else 0, absent)

    async def _delete_again(self, seen: Sequence[Seen], _store: str) -> Mended:
        return Mended(await self._local.delete_again(await self._as_seen(seen)))

    async def _restore(self, seen: Sequence[Seen], _store: str) -> Mended:
        rows = [as_it_stands(memory) for memory in await self._as_seen(seen)]
        page = await self._restorer.restore(str(uuid4()), rows)
        return Mended(page.verified, {**dict(page.refused), **dict.fromkeys(page.mismatched, MISMATCHED)})

    async def _pull(self, seen: Sequence[Seen], store: str) -> Mended:
        states = await self._local.states(seen)
        there = await self._remote.keep_states(states, store)
        # The newest state is the row's own, unless that cannot be read: what is not in the history is not overwritten.
        rows = {one.memory_id: one.facts.here.content_hash for one in seen if one.facts.here}
        kept = [c for c in states if c.memory_id in there and c.newest.content_hash == rows.get(c.memory_id)]
        return Mended(await self._local.pull(seen, await self._as_seen(seen), kept))

    async def _decide(self, seen: Sequence[Seen], store: str) -> Mended:
        sent, pulled = await self._winners(seen, store)
        mended = await self._pull(pulled, store) if pulled else Mended()
        return mended.and_(await self._send_above(sent, store)) if sent else mended

    async def _keep_here(self, seen: Sequence[Seen], store: str) -> Mended:
        sent, pulled = await self._winners(seen, None)
        left = Mended(0, {one.memory_id: LATER_THERE for one in pulled})
        return left.and_(await self._send_above(sent, store)) if sent else left

    async def _winners(self, seen: Sequence[Seen], store: str | None) -> tuple[list[Seen], list[Seen]]:
        """Those of which this side wins, and those of which the remote does."""
        there = {memory.id: memory.updated_at for memory in await self._as_seen(seen)}
        here = {c.memory_id: c.newest.properties.updated_at for c in await self._local.states(seen)}
        both = [one for one in seen if one.memory_id in there and one.memory_id in here]
        wins = {s.memory_id: winner(here[s.memory_id], there[s.memory_id], s.facts, store) for s in both}
        sent = [one for one in both if wins[one.memory_id] == "local"]
        return sent, [one for one in both if wins[one.memory_id] == "remote"]

    async def _merge(self, seen: Sequence[Seen], _store: str) -> Mended:
        merged = await self._remote.merge_duplicates([one.memory_id for one in seen])
        await self._writer.prepare()
        return Mended(merged)

    async def _version(self, seen: Sequence[Seen], _store: str) -> Mended:
        return Mended(await self._remote.keep_found(seen))

    async def _as_seen(self, seen: Sequence[Seen]) -> list[RemoteMemory]:
        """The remote's memories, those that still stand where they stood."""
        held = {one.memory_id: one.facts.there for one in seen if one.facts.there}
        return [memory for memory in await self._reader.by_id(list(held)) if _is(memory, held[memory.id])]


def _unreadable(action: Action, seen: Sequence[Seen]) -> dict[str, str]:
    """Memories of the remote store whose content an action needs, and which say neither version nor hash of it."""
    if action not in BY_CONTENT:
        return {}
    held = {one.memory_id: one.facts.there for one in seen if one.facts.there}
    return {memory_id: NO_HASH for memory_id, there in held.items() if not there.content_hash or there.version < 1}


def _is(memory: RemoteMemory, there: There) -> bool:
    deleted = memory.deleted_at is not None
    return (memory.version, memory.content_hash, deleted) == (there.version, there.content_hash, there.deleted)


async def _halving(step: Step, seen: Sequence[Seen], store: str) -> Mended:
    """A page of which a memory is refused is halved until that stands alone, and is left as it was."""
    try:
        return await step(seen, store)
    except Refused as error:
        if len(seen) == 1:
            return Mended(0, {seen[0].memory_id: " ".join(filter(None, (error.what, error.hint)))})
    middle = len(seen) // 2
    return (await _halving(step, seen[:middle], store)).and_(await _halving(step, seen[middle:], store))
