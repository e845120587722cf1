"""A user who writes: what SQL lets somebody do to rows of `memories`, and what it comes to in a plain dictionary."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple
from uuid import UUID

from tests.faults.oracle import Oracle, State
from tests.integration.stores import Client, uid

Kind = Literal["put", "upsert", "delete", "insert again", "rekey", "properties", "same", "put all", "delete all"]
INSERT = "INSERT INTO memories (id, content, source_project, tags) VALUES ($1, $2, $3, $4)"
UPDATE = "UPDATE memories SET content = $2 WHERE id = $1"
UPSERT = f"{INSERT} ON CONFLICT (id) DO UPDATE SET content = excluded.content, tags = excluded.tags"
DELETE = "DELETE FROM memories WHERE id = $1"
REKEY = "UPDATE memories SET id = $2 WHERE id = $1"
PROPERTIES = (
    "UPDATE memories SET source_project = NULL, session_id = md5($2)::uuid, tags = ARRAY[$2, '', $2],"
    " importance = 0.25 WHERE id = $1"
)
SAME = "UPDATE memories SET content = content, session_id = session_id WHERE id = $1"
UPDATE_ALL = "UPDATE memories SET content = content || $2 WHERE id = ANY ($1)"
INSERT_ALL = "INSERT INTO memories (id, content) SELECT * FROM unnest($1::uuid[], $2::text[])"
DELETE_ALL = "DELETE FROM memories WHERE id = ANY ($1)"


class Write(NamedTuple):
    """One thing that a user does.

    Attributes:
        number: Of the memory that it is done to; with `other`, the memories between both for what is done to many.
        other: Of the memory that it becomes, for `rekey`.
        text: Becomes part of the content, a project and a tag.
    """

    kind: Kind
    number: int
    other: int
    text: str

    @property
    def touches(self) -> frozenset[int]:
        """Numbers of the memories that may be changed or looked for."""
        if self.kind in ("put all", "delete all"):
            return frozenset(range(min(self.number, self.other), max(self.number, self.other) + 1))
        return frozenset({self.number, self.other} if self.kind == "rekey" else {self.number})


class Draft:
    """What a transaction makes of the rows, if it is committed.

    Attributes:
        rows: Contents of the live memories, as the transaction sees them.
        written: Each state of each memory, in order.
    """

    def __init__(self, rows: dict[UUID, str]) -> None:
        self.rows = dict(rows)
        self.written: list[tuple[UUID, State]] = []

    def set(self, id_: UUID, state: State) -> None:
        """A memory has this content now, or none."""
        self.written.append((id_, state))
        if state is None:
            self.rows.pop(id_, None)
        else:
            self.rows[id_] = state

    def copy(self) -> "Draft":
        """What a savepoint goes back to."""
        copied = Draft(self.rows)
        copied.written = list(self.written)
        return copied


class User:
    """Two connections of a user: one that writes, and one that can keep a transaction open meanwhile.

    Every statement must succeed (P5). What is committed is noted with the oracle.

    Attributes:
        rows: Contents of the live memories that are committed.
        held: Numbers of the memories that the open transaction has touched.
    """

    def __init__(self, client: Client, holder: Client, oracle: Oracle) -> None:
        self.rows: dict[UUID, str] = {}
        self.held: frozenset[int] = frozenset()
        self._client = client
        self._holder = holder
        self._oracle = oracle
        self._holding: Draft | None = None
        self._contents = 0

    async def write(self, write: Write) -> None:
        """One statement that is committed by itself, or two in a transaction where one would not do."""
        await self.transact([write])

    async def transact(self, writes: Sequence[Write], *, undone_from: int | None = None, commit: bool = True) -> None:
        """Several writes in one transaction.

        Args:
            undone_from: The write from which on they stand behind a savepoint that is gone back to.
            commit: Whether it is committed or rolled back.
        """
        allowed = self._allowed(writes)
        draft = Draft(self.rows)
        if len(allowed) == 1 and commit and undone_from is None and allowed[0].kind != "insert again":
            await self._apply(self._client, draft, allowed[0])
            self._commit(draft)
            return
        with suppress(_RolledBackError):
            async with self._client.transaction():
                draft = await self._apply_with_savepoint(draft, allowed, undone_from)
                if not commit:
                    raise _RolledBackError
            self._commit(draft)

    async def hold(self, writes: Sequence[Write]) -> None:
        """Write in a transaction that stays open."""
        assert self._holding is None
        await self._holder.execute("BEGIN")
        self._holding = Draft(self.rows)
        for write in writes:
            await self._apply(self._holder, self._holding, write)
        self.held = frozenset().union(*(write.touches for write in writes))

    async def let_go(self, *, commit: bool) -> None:
        """End the transaction that is open, if one is."""
        if self._holding is None:
            return
        await self._holder.execute("COMMIT" if commit else "ROLLBACK")
        if commit:
            self._commit(self._holding)
        self._holding, self.held = None, frozenset()

    async def _apply_with_savepoint(self, draft: Draft, writes: Sequence[Write], undone_from: int | None) -> Draft:
        kept = len(writes) if undone_from is None else undone_from
        for write in writes[:kept]:
            await self._apply(self._client, draft, write)
        with suppress(_RolledBackError):
            async with self._client.transaction():
                undone = draft.copy()
                for write in writes[kept:]:
                    await self._apply(self._client, undone, write)
                raise _RolledBackError
        return draft

    def _allowed(self, writes: Iterable[Write]) -> list[Write]:
        """Without those that would have to wait for the user's own open transaction."""
        return [write for write in writes if not write.touches & self.held]

    def _commit(self, draft: Draft) -> None:
        for id_, state in draft.written:
            self._oracle.expect(id_, state)
            if state is None:
                self.rows.pop(id_, None)
            else:
                self.rows[id_] = state

    async def _apply(self, client: Client, draft: Draft, write: Write) -> None:
        if write.kind in ("put all", "delete all"):
            await self._apply_to_many(client, draft, write)
            return
        id_, live = uid(write.number + 1), uid(write.number + 1) in draft.rows
        content = self._content(write.text)
        new = (id_, content, write.text or None, [write.text])
        match write.kind:
            case "put" if live:
                await client.execute(UPDATE, id_, content)
                draft.set(id_, content)
            case "put":
                await client.execute(INSERT, *new)
                draft.set(id_, content)
            case "upsert":
                await client.execute(UPSERT, *new)
                draft.set(id_, content)
            case "insert again":
                await self._delete(client, draft, id_)
                await client.execute(INSERT, *new)
                draft.set(id_, content)
            case "delete":
                await self._delete(client, draft, id_)
            case "rekey" if live and uid(write.other + 1) not in draft.rows:
                await client.execute(REKEY, id_, uid(write.other + 1))
                kept = draft.rows[id_]
                draft.set(id_, None)
                draft.set(uid(write.other + 1), kept)
            case "properties" if live:
                await client.execute(PROPERTIES, id_, write.text)
                draft.set(id_, draft.rows[id_])
            case _:
                await client.execute(SAME, id_)

    async def _delete(self, client: Client, draft: Draft, id_: UUID) -> None:
        await client.execute(DELETE, id_)
        if id_ in draft.rows:
            draft.set(id_, None)

    async def _apply_to_many(self, client: Client, draft: Draft, write: Write) -> None:
        ids = [uid(number + 1) for number in sorted(write.touches)]
        live, absent = [id_ for id_ in ids if id_ in draft.rows], [id_ for id_ in ids if id_ not in draft.rows]
        if write.kind == "delete all":
            await client.execute(DELETE_ALL, ids)
            for id_ in live:
                draft.set(id_, None)
            return
        ending = self._content("")
        await client.execute(UPDATE_ALL, live, ending)
        contents = [self._content(write.text) for _ in absent]
        await client.execute(INSERT_ALL, absent, contents)
        for id_ in live:
            draft.set(id_, draft.rows[id_] + ending)
        for id_, content in zip(absent, contents, strict=True):
            draft.set(id_, content)

    def _content(self, text: str) -> str:
        """Each one differs from all others, so that a version can be told from another one."""
        self._contents += 1
        return f"{text}#{self._contents}"


class _RolledBackError(Exception):
    """Leaves a transaction so that it is undone."""


async def end_connections(client: Client) -> int:
    """The server ends every connection of the program to this database; how many there were."""
    ended = await client.fetch(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'dionysus-sync-mcp %' AND datname = current_database()"
    )
    return len(ended)
