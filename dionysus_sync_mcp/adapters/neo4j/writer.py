"""The remote's writing side: its schema, batches of changes, and the definition of the local table."""

from contextlib import suppress
from typing import Any

from dionysus_sync_mcp.adapters.neo4j.connection import Call, Part
from dionysus_sync_mcp.adapters.neo4j.errors import WHERE
from dionysus_sync_mcp.adapters.neo4j.rows import lineage_of, memory_parameters
from dionysus_sync_mcp.domain.errors import LineageMoved, Refused, RemoteDamaged
from dionysus_sync_mcp.engine.ports.push import RemoteBatch, Replaced, RowOutcome
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity

SCHEMA = (
    "memory_id_unique",
    "session_id_unique",
    "project_id_unique",
    "memory_version_key_unique",
    "store_id_unique",
    "incident_id_unique",
    "memory_embedding",
    "memory_content",
    "memory_project_type",
    "memory_created",
    "memory_deleted",
    "session_dates",
)
# The schema is looked at, and made, by whoever holds the push lock: a peer that is lost must not keep that for long.
SCHEMA_SECONDS = 5.0
INDEX_SECONDS = 5


class Writer(Part):
    """Implements `RemoteWriter`."""

    async def prepare(self) -> None:
        """Create constraints and indexes that are missing; idempotent.

        It waits a little until they can be used. One that takes longer to build holds back searches, not pushes.
        """
        missing = await self._missing()
        for name in missing:
            await self._make(name)
        if missing:
            with suppress(Refused):
                await self._connection.read("await_indexes", 2 * INDEX_SECONDS, at_most=INDEX_SECONDS)

    async def _missing(self) -> list[str]:
        present = {name for name, *_ in await self._connection.read("schema_present", SCHEMA_SECONDS)}
        return [name for name in SCHEMA if name not in present]

    async def _make(self, name: str) -> None:
        """Create one of them, which somebody else may be doing too, or a try before this one that was cut off."""
        try:
            await self._create(name)
        except (RemoteDamaged, Refused) as error:
            if name not in await self._missing():
                return
            if name != "store_id_unique" or isinstance(error, Refused):
                raise
            await self._connection.write([Call("merge_stores", {})], SCHEMA_SECONDS)
            await self._create(name)

    async def _create(self, name: str) -> None:
        limits = self._limits
        await self._connection.read(name, limits.write_seconds, dimensions=limits.dimensions, analyzer=limits.analyzer)

    async def write(self, batch: RemoteBatch) -> list[RowOutcome]:
        """Apply a batch in one transaction and one deadline; the outcomes are sorted by memory id.

        The rows of `projects` and `references` may carry `changed_at`, the time of their capture, which then guards
        them instead of `created_at`.

        Raises:
            Refused: The server refuses a row; `TooLarge` when the batch exceeds its memory.
            Unavailable: Nothing was written; `OutcomeUnknown` when that is not known, `TimedOut` after `batch.seconds`.
            LineageMoved: The store's node remembers a push that the batch does not follow; nothing was written.
        """
        calls = [_store(batch)]
        if batch.changes:
            calls.append(Call("write_memories", memory_parameters(batch.changes, batch.identity.id)))
        calls.extend(_context(batch))
        values = await self._connection.write(calls, batch.seconds)
        return sorted(map(_outcome, values[1])) if batch.changes else []

    async def note_definition(self, identity: StoreIdentity, definition: str) -> None:
        """Keep the local table's definition (JSON text) with the store's node, which a push locks too.

        A process that is stopped in the middle of this must not keep the others from pushing for long.
        """
        parameters = {"id": identity.id, "definition": definition}
        await self._connection.write([Call("note_definition", parameters)], SCHEMA_SECONDS)


def _outcome(row: list[Any]) -> RowOutcome:
    memory_id, outcome, version, replaced, outlived = row
    return RowOutcome(memory_id, outcome, version, tuple(Replaced(*lost) for lost in replaced), outlived)


def _store(batch: RemoteBatch) -> Call:
    identity, move = batch.identity, batch.move
    parameters = {
        "id": identity.id,
        "epoch": identity.epoch,
        "generation": identity.generation + 1,
        "accepted": list(move.accepted),
        "to": move.to,
        "last_entry": move.last_entry,
    }
    return Call("write_store", parameters, _check_that_it_moved)


def _check_that_it_moved(noted: list[Any]) -> None:
    moved, held = noted
    if not moved:
        raise LineageMoved(where=WHERE, there=lineage_of(held))


def _context(batch: RemoteBatch) -> list[Call]:
    given = (
        ("write_projects", batch.projects),
        ("write_sessions", batch.sessions),
        ("write_references", batch.references),
    )
    return [Call(name, {"rows": list(rows)}) for name, rows in given if rows]
