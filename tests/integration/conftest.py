"""Fixtures of the tests on real stores: the whole program on a fresh pair of them, and a plain client."""

import socket
from collections.abc import AsyncIterator

import pytest

from dionysus_sync_mcp.runtime import Runtime
from tests.integration.stores import Client, plain_client
from tests.services.local_store import running


@pytest.fixture
async def client(migrated_database_url: str) -> AsyncIterator[Client]:
    """A user's own connection to a local store."""
    async with plain_client(migrated_database_url) as connection:
        yield connection


@pytest.fixture
async def program(migrated_database_url: str, empty_neo4j: str) -> AsyncIterator[Runtime]:
    """The program without its background loops, so that a test says what happens when."""
    async with running(migrated_database_url, empty_neo4j) as runtime:
        yield runtime


@pytest.fixture
def unused_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
