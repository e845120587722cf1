"""Makes a database a local store: migrations with checksums, adoption of `memories`, capture, backfill."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING

from asyncpg.exceptions import InsufficientPrivilegeError

from dionysus_sync_mcp.adapters.postgres.database import LONG_PATIENCE, Database, functions_in
from dionysus_sync_mcp.adapters.statements import load_migrations
from dionysus_sync_mcp.domain.adoption import (
    CAPTURE_TRIGGERS,
    Column,
    DdlWatch,
    FoundTable,
    Rights,
    StepName,
    decide_migrations,
    decide_steps,
    refuse_newer,
    refuse_without_rights,
)
from dionysus_sync_mcp.domain.definition import retyped
from dionysus_sync_mcp.domain.errors import Refused, SchemaMismatch
from dionysus_sync_mcp.domain.text import defused
from dionysus_sync_mcp.engine.ports.install import InstallStep
from dionysus_sync_mcp.engine.ports.shared import StoreIdentity

if TYPE_CHECKING:
    import asyncpg

    from dionysus_sync_mcp.adapters.postgres.database import Connection

logger = logging.getLogger(__name__)

PUT_BACK = "put_back_columns"
WATCH_DDL: StepName = "install_event_triggers"


class Installer:
    """Implements `Installation`. Every change is one transaction: a kill leaves all of it or nothing."""

    def __init__(self, database: Database, migrations: Sequence[tuple[str, str]]) -> None:
        self._database = database
        self._migrations = dict(migrations)
        self._shipped = [(name, hashlib.sha256(text.encode()).hexdigest()) for name, text in migrations]

    async def missing_steps(self) -> tuple[list[InstallStep], bool]:
        """The steps that are left, with their SQL, and whether a table `memories` is there; changes nothing.

        Raises:
            NotAdoptable: `memories` cannot be used; the message names everything that is in the way.
            SchemaMismatch: The bookkeeping is a newer program's.
        """
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            return await self._missing(connection)

    async def install(self) -> tuple[list[InstallStep], bool]:
        """Carry out the steps that are left, in one transaction; returns them as `missing_steps` does.

        Where the capture was installed before, changes may have gone by it: a full comparison is then due. So it is
        where the bookkeeping is new, but the remote store has confirmed rows before.
        """
        sql = self._database.sql
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(sql["lock_migrations"])
            await connection.execute(sql["short_lock_wait"])
            await connection.execute(sql["mark_engine"])
            before = await connection.fetchval(sql["has_migrations"])
            steps, adopted = await self._missing(connection)
            await self._carry_out(connection, steps)
            off = any(step.name != WATCH_DDL for step in steps)
            if off and (before or await connection.fetchval(sql["any_confirmed"])):
                await connection.execute(sql["note_gap"])
            watch = await self._ddl_watch(connection)
            if not watch.present and watch.lesser is None:
                await self._try_to_watch_ddl(connection)
        return steps, adopted

    async def rebuild(self, definition: str | None) -> list[str]:
        """Create what is missing, and make `memories` what a noted definition says; what could not be, a line each.

        A table that stood there without the capture may hold rows that nobody has seen: a full comparison is then due.
        """
        sql = self._database.sql
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(sql["mark_engine"])
            await connection.execute(sql["lock_migrations"])
            await self._carry_out(connection, await self._migration_steps(connection))
            await connection.execute(sql["short_lock_wait"])
            before = await self._table(connection)
            faults = await self._rebuild_table(connection, definition)
            steps, _ = await self._missing(connection)
            await self._carry_out(connection, steps)
            if before is not None and before.triggers < CAPTURE_TRIGGERS:
                await connection.execute(sql["note_gap"])
        return [defused(fault) for fault in faults]

    async def _rebuild_table(self, connection: "Connection", definition: str | None) -> list[str]:
        sql, schema = self._database.sql, self._database.schema
        if definition is None:
            await connection.execute(sql["ensure_schema"], schema)
            return []
        present: str | None = await connection.fetchval(sql["table_definition"])
        retype = retyped(present, definition) if present else []
        faults: list[str] = await connection.fetchval(sql["rebuild_memories"], schema, definition, retype)
        return faults

    async def complete(self, definition: str | None) -> list[str]:
        """Add the triggers, row security and foreign keys of a noted definition; what could not be, a line each."""
        if definition is None:
            return []
        sql = self._database.sql
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(sql["mark_engine"])
            await connection.execute(sql["short_lock_wait"])
            faults = await connection.fetchval(sql["complete_memories"], self._database.schema, definition)
        return [defused(fault) for fault in faults]

    async def capture_installed(self) -> bool:
        """Whether the bookkeeping, the table and every trigger of ours that this role can make are in place."""
        async with self._database.connection() as connection:
            if not await connection.fetchval(self._database.sql["bookkeeping_whole"]):
                return False
            if await functions_altered(connection, self._database, self._migrations):
                return False
            if (await self._ddl_watch(connection)).left:
                return False
            table = await self._table(connection)
            return table is not None and table.triggers >= CAPTURE_TRIGGERS

    async def initialised(self) -> bool:
        """Whether the bookkeeping is installed."""
        async with self._database.connection() as connection:
            return bool(await connection.fetchval(self._database.sql["has_migrations"]))

    async def refuse_other_bookkeeping(self) -> None:
        """Nothing, where the bookkeeping is the one that this program installs.

        Raises:
            SchemaMismatch: It is newer, older, or was changed.
        """
        async with self._database.connection() as connection:
            left = decide_migrations(await self._applied(connection), self._shipped)
        if left:
            raise SchemaMismatch(
                f"the bookkeeping is older than this program, {', '.join(left)} is due",
                where="dionysus_sync",
                hint="Run 'dionysus-sync-mcp init' to bring it up to date.",
            )

    async def table_present(self) -> bool:
        """Whether there is a table `memories`."""
        async with self._database.connection() as connection:
            return await self._table(connection) is not None

    async def identity(self) -> StoreIdentity:
        """Which local store this is.

        Raises:
            SchemaMismatch: The bookkeeping is not installed.
        """
        async with self._database.connection() as connection:
            return identity_of(await connection.fetchrow(self._database.sql["identity"]))

    async def backfill_once(self, limit: int) -> int:
        """Queue at most `limit` rows that are pending and have no queue entry, or park them; how many were."""
        try:
            return await self._backfill("backfill", limit)
        except Refused:
            return await self._backfill("backfill_one_by_one", limit)

    async def _backfill(self, name: str, limit: int) -> int:
        async with self._database.transaction(patience=LONG_PATIENCE) as connection:
            await connection.execute(self._database.sql["lock_for_stamps"])
            return len(await connection.fetch(self._database.sql[name], limit))

    async def definition(self) -> str | None:
        """The table's own words for its shape, JSON text; `None` while there is no table."""
        async with self._database.connection() as connection:
            found: str | None = await connection.fetchval(self._database.sql["table_definition"])
            return found

    async def gap(self) -> datetime | None:
        """See `Installation.gap`."""
        async with self._database.connection() as connection:
            due = await connection.fetchrow(self._database.sql["comparison_due"])
        return due["gap_since"] if due else None

    async def note_gap(self) -> None:
        """See `Installation.note_gap`."""
        async with self._database.connection() as connection:
            await connection.execute(self._database.sql["note_gap"])

    async def _missing(self, connection: "Connection") -> tuple[list[InstallStep], bool]:
        table = await self._table(connection)
        rights = await self._rights(connection)
        migrations = await self._migration_steps(connection)
        steps = [self._step(name) for name in decide_steps(table, rights, self._database.schema)]
        refuse_without_rights(rights, bookkeeping_left=bool(migrations))
        watching = [self._step(WATCH_DDL)] if (await self._ddl_watch(connection)).left else []
        return [*migrations, *watching, *steps], table is not None

    async def _ddl_watch(self, connection: "Connection") -> DdlWatch:
        found = await connection.fetch(self._database.sql["event_triggers"], self._database.ddl_functions())
        return DdlWatch(**found[0])

    async def _try_to_watch_ddl(self, connection: "Connection") -> None:
        """Some servers let other roles than superusers create event triggers, and none says so."""
        try:
            async with connection.transaction():
                await connection.execute(self._database.sql[WATCH_DDL])
        except InsufficientPrivilegeError:
            logger.info("this role may not create event triggers: dropped and altered tables are seen by watching only")

    async def _rights(self, connection: "Connection") -> Rights:
        found = await connection.fetch(self._database.sql["may_create"], self._database.schema)
        return Rights(**found[0])

    async def _migration_steps(self, connection: "Connection") -> list[InstallStep]:
        sql = self._database.sql
        applied = await self._applied(connection) if await connection.fetchval(sql["has_migrations"]) else {}
        whole = bool(await connection.fetchval(sql["bookkeeping_whole"]))
        if applied and whole:
            whole = not await functions_altered(connection, self._database, self._migrations)
        left = decide_migrations(applied, self._shipped, whole=whole)
        mending = [InstallStep(PUT_BACK, sql[PUT_BACK])] if applied and left and not whole else []
        return [*mending, *(InstallStep(name, self._migrations[name]) for name in left)]

    async def _applied(self, connection: "Connection") -> dict[str, str]:
        found = await connection.fetch(self._database.sql["applied_migrations"])
        return {r["name"]: r["checksum"] for r in found}

    def _step(self, name: StepName) -> InstallStep:
        return InstallStep(name, self._database.sql[name])

    async def _carry_out(self, connection: "Connection", steps: Sequence[InstallStep]) -> None:
        sql, checksums = self._database.sql, dict(self._shipped)
        if any(step.name in checksums for step in steps):
            await connection.execute(sql["migrations_table"])
        for step in steps:
            await connection.execute(step.sql)
            if step.name in checksums:
                await connection.execute(sql["note_migration"], step.name, checksums[step.name])

    async def _table(self, connection: "Connection") -> FoundTable | None:
        sql, schema = self._database.sql, self._database.schema
        found = await connection.fetchrow(sql["inspect_table"], schema)
        if found is None:
            return None
        columns = await connection.fetch(sql["inspect_columns"], schema)
        return FoundTable(
            name=found["name"],
            kind=found["kind"],
            owned=found["owned"],
            primary_key=found["primary_key"],
            columns=[Column(c["name"], c["type"], c["category"]) for c in columns],
            triggers=frozenset(r["name"] for r in await connection.fetch(sql["inspect_triggers"], schema)),
            indexes=frozenset(r["name"] for r in await connection.fetch(sql["inspect_indexes"], schema)),
        )


async def functions_altered(connection: "Connection", database: Database, migrations: Mapping[str, str]) -> bool:
    """Whether something else stands in the place of a function of these migrations, where they are those in use."""
    if not await connection.fetchval(database.sql["has_migrations"]):
        return False
    ours = functions_in("\n".join(migrations.values()))
    return bool(await connection.fetchval(database.sql["altered_functions"], ours, max(migrations)))


def identity_of(record: "asyncpg.Record | None") -> StoreIdentity:
    """The store's identity in a record.

    Raises:
        SchemaMismatch: The bookkeeping has lost it, or is a newer program's, which may mean something else by it.
    """
    if record is None:
        raise SchemaMismatch("the store's identity is missing", where="dionysus_sync.store_identity")
    refuse_newer(record["newest_migration"], _last_migration())
    return StoreIdentity(record["id"], record["epoch"], record["generation"], record["lineage"], record["repeated"])


@cache
def _last_migration() -> str:
    return load_migrations()[-1][0]
