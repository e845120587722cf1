"""Opens the program, or only its access to PostgreSQL, on servers of the tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr

from dionysus_sync_mcp.adapters.postgres.database import Database
from dionysus_sync_mcp.adapters.statements import load_sql
from dionysus_sync_mcp.runtime import Runtime, open_runtime
from dionysus_sync_mcp.settings import Settings

NOBODY = "http://127.0.0.1:9"


@asynccontextmanager
async def opened(url: str, schema: str = "public") -> AsyncIterator[Database]:
    """The program's own access to a database."""

    async def address() -> str:
        return url

    database = Database(address, schema, load_sql())
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def opened_by_older(url: str) -> AsyncIterator[Database]:
    """As `opened`, of a program before the detection of incidents, which had no triggers for it."""
    async with opened(url) as database:
        triggers = database.sql["install_capture"].split(";")
        database.sql["install_capture"] = ";".join(part for part in triggers if "dionysus_truncate" not in part)
        database.sql["install_event_triggers"] = "SELECT"
        yield database


@asynccontextmanager
async def running(
    database_url: str, neo4j_uri: str, *, worker: bool = False, schema: str = "public"
) -> AsyncIterator[Runtime]:
    """The whole program on these stores, without a session and without an Ollama."""
    settings = Settings(
        database_url=SecretStr(database_url),
        neo4j_uri=neo4j_uri,
        ollama_url=NOBODY,
        dionysus_schema=schema,
        dionysus_poll_ms=20,
    )
    async with open_runtime(settings, worker=worker, start_session=False) as runtime:
        yield runtime
