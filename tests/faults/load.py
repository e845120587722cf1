"""Steady random load on the local store, each acknowledged write noted with the oracle."""

import random
from uuid import UUID

import anyio

from tests.faults.oracle import AWAY, Oracle
from tests.integration.stores import uid

PER_SECOND = 75
PROJECTS = ("one", "another")
MOST_LIVE = 2000
RETRY_SECONDS = 0.5


class Load:
    """Writes until it is cancelled; stands still at first, and while it is paused.

    A memory of which a write was not acknowledged is left alone from then on: nobody can know what it should be.
    """

    def __init__(self, oracle: Oracle, chance: random.Random) -> None:
        self._oracle = oracle
        self._random = chance
        self._live: list[UUID] = []
        self._made = 0
        self._going = anyio.Event()
        self._writing = anyio.Lock()

    async def run(self) -> None:
        """Write at the pace."""
        while True:
            await self._going.wait()
            try:
                async with self._writing:
                    await self._write()
            except AWAY:
                await anyio.sleep(RETRY_SECONDS)
            await anyio.sleep(1 / PER_SECOND)

    def resume(self) -> None:
        """Go on."""
        self._going.set()

    async def pause(self) -> None:
        """Stand still; returns when nothing is under way."""
        self._going = anyio.Event()
        async with self._writing:
            return

    def taken(self, most: int) -> list[UUID]:
        """Live memories that the load leaves alone from now on, for somebody else to do something to."""
        taken = self._random.sample(self._live, min(most, len(self._live)))
        self._live = [id_ for id_ in self._live if id_ not in set(taken)]
        return taken

    def fresh(self) -> UUID:
        """An id that nobody has used."""
        self._made += 1
        return uid(self._made)

    def content(self) -> str:
        """A text that nobody has written."""
        return f"{self._random.randbytes(self._random.randrange(1, 200)).hex()} {self._made}-{self._random.random()}"

    async def _write(self) -> None:
        dice = self._random.random()
        if not self._live or dice < self._share_of_inserts():
            id_ = self.fresh()
            await self._oracle.insert(id_, self.content(), self._random.choice(PROJECTS))
            self._live.append(id_)
            return
        id_ = self._live.pop(self._random.randrange(len(self._live)))
        if dice > 0.9:
            await self._oracle.delete(id_)
            return
        await self._oracle.update(id_, self.content())
        self._live.append(id_)

    def _share_of_inserts(self) -> float:
        return 0.3 if len(self._live) < MOST_LIVE else 0.1
