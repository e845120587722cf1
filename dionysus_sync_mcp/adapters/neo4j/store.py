"""The remote store: every port that Neo4j serves, over one connection."""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pydantic import SecretStr

from dionysus_sync_mcp.adapters.neo4j.connection import Access, Connection, Limits
from dionysus_sync_mcp.adapters.neo4j.history import History
from dionysus_sync_mcp.adapters.neo4j.incidents import Incidents
from dionysus_sync_mcp.adapters.neo4j.purging import Purging
from dionysus_sync_mcp.adapters.neo4j.reader import Reader
from dionysus_sync_mcp.adapters.neo4j.search import Search
from dionysus_sync_mcp.adapters.neo4j.vectors import Vectors
from dionysus_sync_mcp.adapters.neo4j.verifying import Verifying
from dionysus_sync_mcp.adapters.neo4j.writer import SCHEMA, Writer
from dionysus_sync_mcp.domain.errors import AccessRefused, DionysusError
from dionysus_sync_mcp.engine.ports.shared import Health


class RemoteStore(Writer, Reader, History, Verifying, Vectors, Search, Incidents, Purging):
    """Implements the ports of writing, reading, history, comparing, vectors and search, and `Service`.

    Args:
        address: Gives the Bolt URI; awaited before the first use, and again until it succeeds. What it raises passes.
        password: Empty for a server without authentication.
        dimensions: Length of the vectors, of the vector index when it is created.
        analyzer: Of the full-text index when it is created.
    """

    def __init__(
        self,
        address: Callable[[], Awaitable[str]],
        user: str,
        password: SecretStr,
        database: str,
        dimensions: int,
        analyzer: str,
        *,
        connect_seconds: float = 5.0,
        look_seconds: float = 5.0,
        read_seconds: float = 60.0,
        write_seconds: float = 60.0,
    ) -> None:
        connection = Connection(Access(address, user, password, database, connect_seconds))
        super().__init__(connection, Limits(dimensions, analyzer, look_seconds, read_seconds, write_seconds))

    async def health(self, timeout: float) -> Health:
        """One look over a connection of its own, since a pooled one may be dead; never raising, within `timeout`."""
        started = time.perf_counter()
        try:
            version, indexes = await self._connection.look(["components", "schema_present"], timeout)
        except DionysusError as error:
            return Health("neo4j", error=error.what, hint=error.hint, refused=isinstance(error, AccessRefused))
        latency = (time.perf_counter() - started) * 1000
        return Health("neo4j", version=version, latency_ms=latency, degraded=degraded_by(indexes, self._limits))

    async def close(self) -> None:
        """Close the connection; bounded, and harmless when nothing was opened."""
        await self._connection.close()


def degraded_by(indexes: Sequence[Sequence[Any]], limits: Limits) -> tuple[str, ...]:
    """What does not work as it should with the indexes that are there, as [name, state, dimensions, analyzer] each."""
    present = {name: (state, dimensions) for name, state, dimensions, _ in indexes}
    if present.keys().isdisjoint(SCHEMA):
        return ("it has no indexes yet; the first push makes them",)
    missing = [f"the index {name} is missing" for name in SCHEMA if name not in present]
    building = [f"the index {name} is {state.lower()}" for name, (state, _) in present.items() if state != "ONLINE"]
    length = present.get("memory_embedding", ("", limits.dimensions))[1]
    other = f"the vector index holds vectors of {length} numbers, not {limits.dimensions}: search goes by words only"
    return (*missing, *building, *([other] if length != limits.dimensions else []))
