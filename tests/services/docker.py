"""PostgreSQL and Neo4j as containers, where a Docker daemon answers."""

import os
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import SplitResult, urlsplit

import anyio
import anyio.to_thread
from docker.errors import DockerException
from testcontainers.core.container import DockerContainer

from dionysus_sync_mcp.settings import Neo4jVersion
from tests.services import neo4j, postgres
from tests.services.choice import SourceAbsentError
from tests.services.waiting import until

DEFAULT_HOST = "unix:///var/run/docker.sock"
STARTS_WITHIN = 90.0


def daemon_answers(environment: Mapping[str, str]) -> bool:
    """Whether somebody listens where Docker's daemon would; its own client leaks a socket when nobody does."""
    address = urlsplit(environment.get("DOCKER_HOST") or DEFAULT_HOST)
    try:
        with _connected(address):
            return True
    except OSError:
        return False


def _connected(address: SplitResult) -> socket.socket:
    if address.scheme != "unix":
        return socket.create_connection((address.hostname or "localhost", address.port or 2375), timeout=2)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address.path)
    except OSError:
        connection.close()
        raise
    return connection


@asynccontextmanager
async def postgres_container() -> AsyncIterator[str]:
    """A PostgreSQL 18 with password-free access, yielded by its URL."""
    async with _container("postgres:18", {"POSTGRES_HOST_AUTH_METHOD": "trust"}, 5432) as address:
        url = f"postgresql://postgres:@{address}/postgres"
        await until(lambda: postgres.answers(url), what="the PostgreSQL container answers", seconds=STARTS_WITHIN)
        yield url


@asynccontextmanager
async def neo4j_container(version: Neo4jVersion) -> AsyncIterator[str]:
    """A Neo4j Community of that version without authentication, yielded by its URI."""
    async with _container(f"neo4j:{version}", {"NEO4J_AUTH": "none"}, 7687) as address:
        uri = f"bolt://{address}"
        await until(lambda: neo4j.answers(uri), what="the Neo4j container answers", seconds=STARTS_WITHIN)
        yield uri


@asynccontextmanager
async def _container(image: str, environment: dict[str, str], port: int) -> AsyncIterator[str]:
    """A container while it runs, yielded by the host and port under which its `port` is reached from here."""
    if not await anyio.to_thread.run_sync(daemon_answers, os.environ):
        raise SourceAbsentError("no Docker daemon answers")
    try:
        container = await anyio.to_thread.run_sync(_start, image, environment, port)
    except DockerException as error:
        raise SourceAbsentError(f"Docker cannot run {image}: {error}") from error
    try:
        yield f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}"
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(container.stop)


def _start(image: str, environment: dict[str, str], port: int) -> DockerContainer:
    return DockerContainer(image).with_envs(**environment).with_exposed_ports(port).start()
