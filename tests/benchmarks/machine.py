"""On what a run is measured: in words, for the results."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version

import asyncpg
import psutil
from neo4j import AsyncGraphDatabase

GIGABYTE = 1024**3
DRIVERS = ("asyncpg", "neo4j", "neo4j-rust-ext", "mcp")


async def machine(postgres_url: str, neo4j_uri: str) -> str:
    """Date, cores, memory, what else was going on, and versions, in a line."""
    memory = psutil.virtual_memory().total / GIGABYTE
    drivers = ", ".join(f"{name} {version(name)}" for name in DRIVERS)
    return (
        f"on {datetime.now(UTC):%Y-%m-%d} with {os.cpu_count()} cores and {memory:.0f} GB of memory, shared by the "
        f"program, the measuring client and both servers "
        f"(load average before: {os.getloadavg()[0]:.1f}); {platform.system()}, Python {platform.python_version()}, "
        f"PostgreSQL {await _postgres_version(postgres_url)}, Neo4j {await _neo4j_version(neo4j_uri)}, {drivers}"
    )


async def _postgres_version(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("SELECT split_part(current_setting('server_version'), ' ', 1)"))
    finally:
        await connection.close()


async def _neo4j_version(uri: str) -> str:
    async with AsyncGraphDatabase.driver(uri) as driver:
        records, _, _ = await driver.execute_query(
            "CALL dbms.components() YIELD versions RETURN versions[0] AS version"
        )
    return str(records[0]["version"])
