"""Test databases on a PostgreSQL server: one template for each kind, one copy of it for each test."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from dionysus_sync_mcp.adapters.postgres.database import Database
from dionysus_sync_mcp.adapters.postgres.installer import Installer
from dionysus_sync_mcp.adapters.statements import load_migrations, load_sql

PREFIX = "dionysus_test_"
# Copies of one template would otherwise take each other for the same local store.
NEW_IDENTITY = "UPDATE dionysus_sync.store_identity SET id = gen_random_uuid(), epoch = gen_random_uuid()"

Prepare = Callable[[str], Awaitable[None]]


def with_database(url: str, database: str) -> str:
    """The same server's URL for another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{database}"))


async def execute(url: str, statement: str) -> None:
    """Run one statement on a connection of its own."""
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def answers(url: str) -> bool:
    """Whether a server accepts connections there now."""
    try:
        await execute(url, "SELECT 1")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    return True


async def drop_left_over(server_url: str) -> None:
    """Remove the test databases of runs that were killed; for a server that no other run uses."""
    connection = await asyncpg.connect(server_url, timeout=10)
    try:
        for row in await connection.fetch("SELECT datname FROM pg_database WHERE starts_with(datname, $1)", PREFIX):
            await connection.execute(f'DROP DATABASE "{row["datname"]}" WITH (FORCE)')
    finally:
        await connection.close()


async def leave_as_is(_url: str) -> None:
    """The preparation of a plain template: none."""


async def install_local_store(url: str) -> None:
    """The preparation of a template that is a local store: what `init` does to an empty database."""

    async def address() -> str:
        return url

    database = Database(address, "public", load_sql())
    try:
        await Installer(database, load_migrations()).install()
    finally:
        await database.close()


@asynccontextmanager
async def template_database(server_url: str, prepare: Prepare) -> AsyncIterator[str]:
    """A database to be copied, yielded by its URL; `prepare` must have closed its connections when it returns."""
    async with _database(server_url, "template0") as url:
        await prepare(url)
        yield url


@asynccontextmanager
async def copy_of(template_url: str) -> AsyncIterator[str]:
    """A fresh copy of a template database, yielded by its URL and gone afterwards, whoever is still connected."""
    async with _database(with_database(template_url, "postgres"), urlsplit(template_url).path[1:]) as url:
        yield url


@asynccontextmanager
async def _database(server_url: str, template: str) -> AsyncIterator[str]:
    name = PREFIX + secrets.token_hex(6)
    await execute(server_url, f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        yield with_database(server_url, name)
    finally:
        await execute(server_url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
