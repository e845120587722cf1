"""A plain dictionary that knows what the servers acknowledged, and what they hold of it.

It writes as a user does, through a connection of its own which knows nothing of the program. A write whose answer was
lost may have happened or not: then either state is right, until the next acknowledged write of the same memory.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

import anyio
import asyncpg
from neo4j import AsyncGraphDatabase
from neo4j.exceptions import DriverError, Neo4jError

from tests.integration.stores import Client

INSERT = "INSERT INTO memories (id, content, source_project) VALUES ($1, $2, $3)"
UPDATE = "UPDATE memories SET content = $2 WHERE id = $1"
DELETE = "DELETE FROM memories WHERE id = $1"
LOCAL = (
    "SELECT dionysus_row.id, dionysus_row.content, dionysus_row.sync_version AS version,"
    " dionysus_sync.content_hash(to_jsonb(dionysus_row.*) - dionysus_sync.sync_columns()) AS content_hash"
    " FROM memories AS dionysus_row"
)
QUEUED = "SELECT memory_id, parked_at IS NOT NULL AS parked FROM dionysus_sync.sync_queue WHERE entity = 'memory'"
REMOTE = (
    "MATCH (m:Memory) RETURN m.id AS id, m.content AS content, m.sync_version AS version, m.content_hash AS hash,"
    " m.deleted_at IS NOT NULL AS deleted"
)
HISTORY = "MATCH (m:Memory)-[:HAS_VERSION]->(v) RETURN m.id AS id, v.sync_version AS version, v.content AS content"
# The driver may call a connection that is just being lost one that is at work.
LOST = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
AWAY = (OSError, TimeoutError, *LOST, Neo4jError, DriverError)
LOOK_AGAIN = 0.1

State = str | None  # content; None for a memory that was deleted


class LocalRow(NamedTuple):
    """A row of the local store."""

    content: str
    version: int
    content_hash: str


class RemoteRow(NamedTuple):
    """A memory in the remote store."""

    content: str
    version: int
    content_hash: str
    deleted: bool


@dataclass(frozen=True, slots=True)
class Look:
    """Both stores at one moment.

    Attributes:
        queued: Memories with entries that wait.
        parked: Memories with entries that are parked.
        history: Id, version and content of every MemoryVersion.
    """

    local: dict[UUID, LocalRow]
    queued: set[UUID]
    parked: set[UUID]
    remote: dict[UUID, RemoteRow]
    history: set[tuple[UUID, int, str]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the stores hold beside what the oracle knows; `lost` and `wrong` say what of which memory.

    Attributes:
        waiting: Memories with queue entries that are not parked: the comparison is not final while there are any.
    """

    rows_written: int
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    waiting: int = 0

    @property
    def rows_lost(self) -> int:
        """Acknowledged writes that are absent: neither in the remote store, nor queued, nor parked."""
        return len(self.lost)

    @property
    def rows_wrong(self) -> int:
        """Memories of which a store holds something that was never written, or that went back."""
        return len(self.wrong)

    @property
    def whole(self) -> bool:
        """Whether everything has arrived and is right."""
        return not (self.lost or self.wrong or self.waiting)


class Oracle:
    """See `open_oracle`.

    Attributes:
        rows_written: Writes that were acknowledged so far.
        elsewhere: Memories of another local store, which only the remote store may hold.
    """

    def __init__(self, database_url: str, neo4j_uri: str, auth: tuple[str, str] | None = None) -> None:
        self.rows_written = 0
        self.elsewhere: set[UUID] = set()
        self._url = database_url
        self._uri = neo4j_uri
        self._auth = auth
        self._client: Client | None = None
        self._rows: dict[UUID, State] = {}
        self._possible: dict[UUID, set[State]] = {}
        self._contents: set[tuple[UUID, str]] = set()
        self._remote: dict[UUID, RemoteRow] = {}
        self._history: set[tuple[UUID, int, str]] = set()

    @property
    def live(self) -> list[UUID]:
        """Ids of the memories whose last acknowledged write was no delete, in the order of their insertion."""
        return [id_ for id_, state in self._rows.items() if state is not None]

    async def insert(self, id_: UUID, content: str, project: str = "p") -> None:
        """Write a memory. Contents must differ from each other, so that a version can be told from another one."""
        await self._write(id_, content, INSERT, id_, content, project)

    async def update(self, id_: UUID, content: str) -> None:
        """Change a memory's content."""
        await self._write(id_, content, UPDATE, id_, content)

    async def delete(self, id_: UUID) -> None:
        """Delete a memory."""
        await self._write(id_, None, DELETE, id_)

    def expect(self, id_: UUID, state: State) -> None:
        """Note a write that the test has made by itself and that was acknowledged."""
        self.rows_written += 1
        self._rows[id_] = state
        self._possible.pop(id_, None)
        if state is not None:
            self._contents.add((id_, state))

    async def look(self) -> Look:
        """Both stores now; raises the drivers' errors."""
        async with self._connected() as client, client.transaction(isolation="repeatable_read", readonly=True):
            local = {r["id"]: LocalRow(*list(r)[1:]) for r in await client.fetch(LOCAL)}
            queue = await client.fetch(QUEUED)
        remote, history = await self._remote_now()
        queued = {r["memory_id"] for r in queue if not r["parked"]}
        return Look(local, queued, {r["memory_id"] for r in queue} - queued, remote, history)

    async def compare(self) -> Comparison:
        """Look at both stores and compare them with what was acknowledged, and with the look before.

        A memory that waits in the queue or is parked is not lost; the remote may then hold an older state of it.
        """
        look = await self.look()
        found = Comparison(self.rows_written, waiting=len(look.queued))
        for id_ in self._rows.keys() | self._possible.keys():
            self._judge_local(id_, look, found)
            if id_ not in look.queued | look.parked:
                self._judge_remote(id_, look, found)
        self._judge_strangers(look, found)
        self._judge_history(look, found)
        self._remote, self._history = look.remote, look.history
        return found

    async def until_whole(self, seconds: float = 60.0) -> tuple[Comparison, float]:
        """Compare again and again until everything has arrived and is right, or until the time is over.

        Returns:
            The last comparison, and the seconds that it took. What is wrong by going back counts even if it went on.
        """
        begun, last, gone_back = time.monotonic(), Comparison(self.rows_written, lost=["no look was possible"]), set()
        while time.monotonic() - begun < seconds:
            try:
                last = await self.compare()
            except AWAY:
                await anyio.sleep(LOOK_AGAIN)
                continue
            gone_back |= {what for what in last.wrong if what.startswith("went back")}
            if last.whole:
                break
            await anyio.sleep(LOOK_AGAIN)
        last.wrong.extend(sorted(gone_back.difference(last.wrong)))
        return last, time.monotonic() - begun

    async def close(self) -> None:
        """Let go of the connection."""
        if self._client is not None:
            self._client.terminate()
            self._client = None

    async def _write(self, id_: UUID, state: State, statement: str, *arguments: object) -> None:
        before = self._rows.get(id_)
        try:
            async with self._connected() as client:
                await client.execute(statement, *arguments)
        except AWAY:
            # The answer was lost, or the write was refused: both the state before and the new one may be there.
            self._possible.setdefault(id_, {before}).add(state)
            raise
        self.expect(id_, state)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Client]:
        if self._client is None or self._client.is_closed():
            self._client = await asyncpg.connect(self._url, timeout=10, command_timeout=60)
        yield self._client

    async def _remote_now(self) -> tuple[dict[UUID, RemoteRow], set[tuple[UUID, int, str]]]:
        async with AsyncGraphDatabase.driver(self._uri, auth=self._auth) as driver:
            rows, _, _ = await driver.execute_query(REMOTE, database_="neo4j")
            versions, _, _ = await driver.execute_query(HISTORY, database_="neo4j")
        remote = {UUID(r["id"]): RemoteRow(*r.values()[1:]) for r in rows}
        return remote, {(UUID(r["id"]), r["version"], r["content"]) for r in versions}

    def _states(self, id_: UUID) -> set[State]:
        return self._possible.get(id_) or {self._rows[id_]}

    def _judge_local(self, id_: UUID, look: Look, found: Comparison) -> None:
        row = look.local.get(id_)
        state = row.content if row else None
        if state in self._states(id_):
            return
        (found.wrong if row else found.lost).append(f"{id_}: the local store has {state!r}")

    def _judge_remote(self, id_: UUID, look: Look, found: Comparison) -> None:
        row, local = look.remote.get(id_), look.local.get(id_)
        if row is None:
            if None not in self._states(id_):
                found.lost.append(f"{id_}: not in the remote store, and nothing waits")
        elif row.deleted != (local is None):
            found.wrong.append(f"{id_}: deleted in one store only")
        elif not row.deleted and row.content not in self._states(id_):
            found.wrong.append(f"{id_}: the remote store has {row.content!r}")
        elif local and (row.version, row.content_hash) != (local.version, local.content_hash):
            found.wrong.append(f"{id_}: version or hash differ: {row}, {local}")

    def _judge_strangers(self, look: Look, found: Comparison) -> None:
        known = self._rows.keys() | self._possible.keys()
        strangers = sorted((look.local.keys() | (look.remote.keys() - self.elsewhere)) - known)
        found.wrong.extend(f"{id_}: nobody wrote this" for id_ in strangers)

    def _judge_history(self, look: Look, found: Comparison) -> None:
        waits = look.queued | look.parked
        held = {(id_, content) for id_, _, content in look.history}
        absent = sorted((id_, content) for id_, content in self._contents - held if id_ not in waits)
        found.lost.extend(f"{id_}: no version has {content!r}" for id_, content in absent)
        found.wrong.extend(f"went back: {version} left the history" for version in sorted(self._history - look.history))
        for id_, earlier in self._remote.items():
            now = look.remote.get(id_)
            if now is None or now.version < earlier.version:
                found.wrong.append(f"went back: {id_} from {earlier} to {now}")


@asynccontextmanager
async def open_oracle(database_url: str, neo4j_uri: str, auth: tuple[str, str] | None = None) -> AsyncIterator[Oracle]:
    """An oracle of these stores, which must hold no memories yet.

    Args:
        database_url: Not through a proxy, unless the user's own writes are to suffer too.
        auth: User and password of a Neo4j that asks for them.
    """
    oracle = Oracle(database_url, neo4j_uri, auth)
    try:
        yield oracle
    finally:
        await oracle.close()
