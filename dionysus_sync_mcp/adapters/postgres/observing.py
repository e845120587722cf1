"""What PostgreSQL tells of statements that destroy: the observations of its own triggers, and looks at the table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dionysus_sync_mcp.adapters.postgres.database import LONG_PATIENCE, Database
from dionysus_sync_mcp.adapters.postgres.installer import functions_altered
from dionysus_sync_mcp.adapters.statements import load_migrations
from dionysus_sync_mcp.domain.adoption import CAPTURE_TRIGGERS
from dionysus_sync_mcp.domain.destruction import MOST_COUNTED, Observation, Rows, Sight, Who
from dionysus_sync_mcp.domain.errors import SchemaMismatch, Unavailable
from dionysus_sync_mcp.domain.memory import SYNC_COLUMNS

if TYPE_CHECKING:
    import asyncpg

    from dionysus_sync_mcp.adapters.postgres.database import Connection

# Of one page of observations together; a statement over more memories makes a page of its own.
MOST_IDS = 200_000
PRUNED = 1000
# A look is in vain where the table was replaced or emptied meanwhile, which is seldom twice in a row.
LOOKS = 5


class PostgresObserving:
    """Implements `Observing`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._migrations = dict(load_migrations())

    async def unjudged(self, limit: int) -> list[Observation]:
        """See `Observing.unjudged`; fewer than `limit` where those have many ids."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            records = await connection.fetch(self._database.sql["unjudged"], limit, MOST_IDS)
        return [_observation(r) for r in records]

    async def between(self, first: datetime, last: datetime) -> list[Observation]:
        """See `Observing.between`."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            records = await connection.fetch(self._database.sql["observed_between"], first, last)
        return [_observation(r) for r in records]

    async def rows_between(self, first: datetime, last: datetime) -> Rows:
        """See `Observing.rows_between`."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            found = await connection.fetchrow(self._database.sql["observed_rows"], first, last)
        return Rows(found["deleted"], found["updated"]) if found else Rows(0, 0)

    async def live(self, memory_ids: Sequence[str]) -> frozenset[str]:
        """See `Observing.live`; none where there is no table."""
        try:
            async with self._database.connection(patience=LONG_PATIENCE) as connection:
                records = await connection.fetch(self._database.sql["live_ids"], memory_ids)
        except SchemaMismatch:
            return frozenset()
        return frozenset(r["id"] for r in records)

    async def recovered_at(self) -> datetime | None:
        """See `Observing.recovered_at`."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            found: datetime | None = await connection.fetchval(self._database.sql["last_recovered"])
        return found

    async def replaced(self, contents: Mapping[str, int | None]) -> dict[str, datetime | None]:
        """See `Observing.replaced`; none where there is no table."""
        try:
            async with self._database.connection(patience=LONG_PATIENCE) as connection:
                sql = self._database.sql["replaced_ids"]
                records = await connection.fetch(sql, list(contents), list(contents.values()))
        except SchemaMismatch:
            return {}
        return {r["id"]: r["put_at"] for r in records}

    async def population(self) -> int:
        """See `Observing.population`; 0 where there is no table."""
        try:
            async with self._database.connection(patience=LONG_PATIENCE) as connection:
                return int(await connection.fetchval(self._database.sql["count_memories"]))
        except SchemaMismatch:
            return 0

    async def sight(self, after_seq: int) -> Sight:
        """See `Observing.sight`.

        Raises:
            DatabaseMissing: The server is there, and the database is not.
            Unavailable: The table was replaced again and again while it was looked at.
        """
        for _ in range(LOOKS):
            try:
                if (seen := await self._look(after_seq)) is not None:
                    return seen
            except SchemaMismatch:
                continue  # what the snapshot has is gone by the time that it is read
        raise Unavailable("the table is being replaced", where="PostgreSQL", hint="It is tried again.")

    async def _look(self, after_seq: int) -> Sight | None:
        """`None` where what was counted is not what the snapshot has."""
        sql, schema = self._database.sql, self._database.schema
        async with self._database.transaction() as connection:
            await connection.execute(sql["one_moment"])
            found = await connection.fetchrow(
                sql["look_at_catalogue"], schema, list(SYNC_COLUMNS), sorted(CAPTURE_TRIGGERS)
            )
            if found is None:
                return None
            rows = counted = None
            if found["table_oid"] is not None:
                counted = await connection.fetchrow(sql["look_at_rows"], MOST_COUNTED)
                if counted is None or any(counted[part] != found[part] for part in ("table_oid", "file")):
                    return None
                rows = counted["rows"]
            # Triggers of which the functions do something else capture nothing.
            altered = await functions_altered(connection, self._database, self._migrations)
            last_seq, gone = await self._look_at_observations(connection, after_seq, present=found["has_observations"])
            if counted and counted["hidden"]:
                # Neither this look nor the next one can say what is missing: all rows count as accounted for.
                rows, gone = 0, MOST_COUNTED
            return Sight(
                seen_at=found["seen_at"],
                store=await connection.fetchval(sql["look_at_identity"]) if found["has_identity"] else None,
                table=found["table_oid"],
                columns=tuple(found["columns"]),
                triggers=frozenset() if altered else frozenset(found["triggers"]),
                event_triggers=found["event_triggers"],
                rows=rows,
                last_seq=last_seq,
                gone=gone,
                whole=bool(await connection.fetchval(sql["bookkeeping_whole"])),
                recovering=bool(await connection.fetchval(sql["recovery_under_way"])),
                database=found["database_oid"],
            )

    async def _look_at_observations(
        self, connection: "Connection", after_seq: int, *, present: bool
    ) -> tuple[int, int]:
        if not present:
            return after_seq, 0
        found = await connection.fetchrow(self._database.sql["look_at_observations"], after_seq)
        return (found["last_seq"], found["gone"]) if found else (after_seq, 0)

    async def remembered(self) -> Sight | None:
        """See `Observing.remembered`; `None` too for one that another version has left, or where there is no record."""
        try:
            async with self._database.connection() as connection:
                text = await connection.fetchval(self._database.sql["remembered_sight"])
        except SchemaMismatch:
            return None
        return None if text is None else _sight(json.loads(text))

    async def remember(self, sight: Sight) -> None:
        """See `Observing.remember`.

        Raises:
            SchemaMismatch: There is no record to write to.
        """
        seen = {**asdict(sight), "seen_at": sight.seen_at.isoformat(), "triggers": sorted(sight.triggers)}
        async with self._database.connection() as connection:
            text = self._database.json_of(seen)
            await connection.execute(self._database.sql["remember_sight"], sight.seen_at, text)

    async def prune_observations(self) -> int:
        """See `Observing.prune_observations`."""
        async with self._database.connection(patience=LONG_PATIENCE) as connection:
            return int(await connection.fetchval(self._database.sql["prune_observations"], PRUNED))


def _observation(record: "asyncpg.Record") -> Observation:
    return Observation(
        seq=record["seq"],
        kind=record["kind"],
        at=record["at"],
        until=record["until"],
        rows=record["row_count"],
        memory_ids=tuple(record["memory_ids"]),
        table=record["table_oid"],
        detail=record["detail"],
        who=Who(*(record[part] for part in Who._fields)),
        judged=record["judged"],
        contents=tuple(record["contents"]),
    )


def _sight(kept: dict[str, Any]) -> Sight | None:
    if kept.keys() != {field.name for field in fields(Sight)}:
        return None
    return Sight(
        **{
            **kept,
            "seen_at": datetime.fromisoformat(kept["seen_at"]),
            "columns": tuple(kept["columns"]),
            "triggers": frozenset(kept["triggers"]),
        }
    )
