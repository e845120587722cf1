"""The engine in the test's own process, between proxies to both stores, with a place to do something in mid-push."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

import anyio
from neo4j import AsyncDriver, AsyncGraphDatabase

from dionysus_sync_mcp.domain.errors import Unavailable
from dionysus_sync_mcp.engine.ports.push import Move, RemoteBatch, RemoteWriter, RowOutcome
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity
from dionysus_sync_mcp.engine.push import Pusher
from dionysus_sync_mcp.runtime import Runtime
from tests.faults.oracle import Oracle, open_oracle
from tests.faults.program import waiting
from tests.faults.proxy import BOLT_COMMIT, POSTGRES_COMMIT, Proxy, open_proxy
from tests.faults.writes import User, end_connections
from tests.integration.stores import Client, plain_client
from tests.services import neo4j, postgres
from tests.services.waiting import until

Point = Literal["before", "after"]
RemoteFault = Literal["remote refuses", "remote cut", "remote lost", "remote's reply to a commit lost"]
LocalFault = Literal[
    "local refuses", "local cut", "local lost", "local reply to a commit lost", "local connections ended"
]
Fault = RemoteFault | LocalFault | Literal["killed"]
ROWS = 8  # so that a few writes are several batches
SECONDS = 5.0
PATIENT_SECONDS = 20.0  # planning the statements takes long on a busy machine
SHORT_SECONDS = 1.0  # until a lost peer is given up
DRAIN_SECONDS = 120.0
REMOTE = (
    "CALL () { MATCH (m:Memory) RETURN collect([m.id, m.sync_version]) AS memories }"
    " CALL () { MATCH (v:MemoryVersion) RETURN collect(v.key) AS versions } RETURN memories, versions"
)
STORE = (
    "MATCH (s:Store) RETURN s.id AS id, s.epoch AS epoch, s.generation AS generation, s.lineage AS lineage,"
    " s.last_entry AS entry"
)

Act = Callable[[], Awaitable[None]]


class Interposed:
    """A remote writer which keeps what went through it, and calls `at` once around the next write."""

    def __init__(self, writer: RemoteWriter) -> None:
        self.sent: list[RemoteBatch] = []
        self.at: dict[Point, Act] = {}
        self._writer = writer

    async def prepare(self) -> None:
        """As the remote store does."""
        await self._writer.prepare()

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """As the remote store does."""
        await self._act("before")
        outcomes = await self._writer.write(batch)
        self.sent.append(batch)
        await self._act("after")
        return outcomes

    async def note_definition(self, identity: StoreIdentity, definition: str) -> None:
        """As the remote store does."""
        await self._writer.note_definition(identity, definition)

    async def _act(self, point: Point) -> None:
        act = self.at.pop(point, None)
        if act is not None:
            await act()


class Engine:
    """A runtime of which the pushes are asked for one by one."""

    def __init__(self, runtime: Runtime) -> None:
        self.writer = Interposed(runtime.remote)
        self._remote = runtime.remote
        self._pusher = Pusher(runtime.outbox, self.writer, runtime.remote, rows=ROWS)

    async def push(self, seconds: float = SECONDS) -> bool:
        """Push one batch, with that deadline; whether it went through, which it need not while a store is away."""
        self._pusher._pace = replace(self._pusher._pace, seconds=seconds)
        try:
            await self._pusher.push_once()
        except Unavailable:
            return False
        return True

    async def deliver(self, batch: RemoteBatch) -> None:
        """Give a batch to the remote store, which may not take it: it is late, or a connection is dead."""
        with suppress(Unavailable):
            await self._remote.write(replace(batch, seconds=SHORT_SECONDS))


@dataclass(frozen=True, slots=True)
class Seen:
    """What the remote store held at one moment: versions by memory, and keys of the history."""

    memories: dict[str, int]
    versions: frozenset[str]


class Ground:
    """See `open_ground`.

    Attributes:
        sent: Batches that the remote store has taken, in order.
        engaged: How often each fault took hold.
        void: How often one did not, since there was nothing to push or somebody else was at it.
    """

    def __init__(
        self, oracle: Oracle, user: User, client: Client, proxies: tuple[Proxy, Proxy], watch: AsyncDriver, url: str
    ) -> None:
        self.oracle = oracle
        self.user = user
        self.local, self.remote = proxies
        self.database_url = url
        self.sent: list[RemoteBatch] = []
        self.engaged: Counter[str] = Counter()
        self.void: Counter[str] = Counter()
        self._client = client
        self._watch = watch

    async def push(self, engine: Engine, seconds: float = SECONDS) -> None:
        """Push one batch."""
        await engine.push(seconds)
        self._keep(engine)

    async def push_meanwhile(self, engine: Engine, point: Point, act: Act) -> None:
        """Push one batch, and do something just before or after the remote store has it."""
        engine.writer.at[point] = act
        await self.push(engine)
        engine.writer.at.clear()

    async def push_under(self, engine: Engine, fault: Fault, point: Point) -> None:
        """Push one batch while a fault is done to it. Afterwards the fault is over."""
        scope, happened = anyio.CancelScope(), []

        async def act() -> None:
            happened.append(await self._do(fault, scope))

        if fault.endswith("reply to a commit lost"):
            proxy, words = (self.remote, BOLT_COMMIT) if fault.startswith("remote") else (self.local, POSTGRES_COMMIT)
            before = proxy.engaged["drop_reply"]
            await proxy.drop_reply_once(words)
            await engine.push()
            happened.append(proxy.engaged["drop_reply"] > before)
        else:
            engine.writer.at[point] = act
            with scope:
                await engine.push(SHORT_SECONDS if fault.endswith("lost") else SECONDS)
        engine.writer.at.clear()
        self._keep(engine)
        (self.engaged if any(happened) else self.void)[fault] += 1
        await self.heal()

    async def heal(self) -> None:
        """Both stores can be reached again."""
        for proxy in (self.local, self.remote):
            await proxy.heal()

    async def servers_give_up(self) -> None:
        """Both servers find dead connections dead."""
        for proxy in (self.local, self.remote):
            await proxy.server_gives_up()

    async def deliver_again(self, engine: Engine, number: int, part: tuple[int, int], *, fenced: bool) -> None:
        """A batch that the remote store took already arrives once more: whole as it was, or in part and past the fence.

        Args:
            number: Of the batch, counted from the last one.
            part: Of its rows, every how many-th, and from which on.
        """
        if not self.sent:
            return
        batch = self.sent[-1 - number % len(self.sent)]
        if not fenced:
            batch = await self._past_the_fence(batch, part)
        before = await self._digest()
        await engine.deliver(batch)
        assert await self._digest() == before, "a batch that had arrived before changed something"

    async def seen(self) -> Seen:
        """The remote store now."""
        records, _, _ = await self._watch.execute_query(REMOTE, database_="neo4j")
        return Seen(dict(records[0]["memories"]), frozenset(records[0]["versions"]))

    async def conflicts(self) -> list[str]:
        """Those on record, in words."""
        return [str(row) for row in await self._client.fetch("SELECT * FROM dionysus_sync.conflicts")]

    async def drain(self, engine: Engine) -> None:
        """Push until nothing waits, with both stores reachable; nothing may be parked.

        Raises:
            TimeoutError: Something still waits.
        """

        async def empty() -> bool:
            await self.push(engine, PATIENT_SECONDS)
            return await waiting(self.database_url) == (0, 0)

        await until(empty, what="the queue is empty", seconds=DRAIN_SECONDS, pause=0)

    def _keep(self, engine: Engine) -> None:
        self.sent.extend(engine.writer.sent)
        engine.writer.sent.clear()

    async def _do(self, fault: Fault, scope: anyio.CancelScope) -> bool:
        proxy = self.remote if fault.startswith("remote") else self.local
        match fault:
            case "killed":
                scope.cancel()
                return True
            case "local connections ended":
                return await end_connections(self._client) > 0
            case "remote refuses" | "local refuses":
                await proxy.refuse()
                return True
            case "remote cut" | "local cut":
                return await proxy.cut() > 0
            case _:
                await proxy.blackhole()
                return True

    async def _past_the_fence(self, batch: RemoteBatch, part: tuple[int, int]) -> RemoteBatch:
        """Some of its rows, as a part of the push that the remote store remembers as the last one."""
        records, _, _ = await self._watch.execute_query(STORE, database_="neo4j")
        held = records[0]
        identity = StoreIdentity(held["id"], held["epoch"], held["generation"] - 1, held["lineage"])
        every, first = part
        changes = list(batch.changes)[first % every :: every]
        return replace(batch, identity=identity, changes=changes, move=Move((), held["lineage"], held["entry"]))

    async def _digest(self) -> list[dict[str, Any]]:
        records, _, _ = await self._watch.execute_query(
            "MATCH (m) WHERE m:Memory OR m:MemoryVersion RETURN properties(m) AS held ORDER BY coalesce(m.key, m.id)",
            database_="neo4j",
        )
        return [record["held"] for record in records]


@asynccontextmanager
async def open_ground(template_url: str, neo4j_uri: str) -> AsyncIterator[Ground]:
    """A local store of its own, the remote store emptied, proxies before both, a user, and an oracle."""
    await neo4j.empty(neo4j_uri)
    async with (
        postgres.copy_of(template_url) as url,
        open_proxy(url) as local,
        open_proxy(neo4j_uri) as remote,
        open_oracle(url, neo4j_uri) as oracle,
        AsyncGraphDatabase.driver(neo4j_uri) as watch,
    ):
        await postgres.execute(url, postgres.NEW_IDENTITY)
        async with plain_client(url) as client, plain_client(url) as holder:
            yield Ground(oracle, User(client, holder, oracle), client, (local, remote), watch, url)


def lost_since(before: Seen, now: Seen) -> Sequence[str]:
    """What left the remote store (P4), or went back in it (P3)."""
    gone = [f"{id_} is gone" for id_ in before.memories.keys() - now.memories.keys()]
    gone_versions = [f"version {key} is gone" for key in before.versions - now.versions]
    back = [
        f"{id_} went back from {version} to {now.memories[id_]}"
        for id_, version in before.memories.items()
        if now.memories.get(id_, version) < version
    ]
    return sorted([*gone, *gone_versions, *back])
