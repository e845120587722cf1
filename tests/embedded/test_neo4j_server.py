"""The embedded Neo4j, both versions, from the artifacts of their lock files."""

import socket
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
from neo4j import AsyncGraphDatabase

from dionysus_sync_mcp.domain.errors import EmbeddedError
from dionysus_sync_mcp.embedded import neo4j_server
from dionysus_sync_mcp.embedded.home import Home
from dionysus_sync_mcp.embedded.neo4j_server import Neo4jServer
from dionysus_sync_mcp.embedded.services import Lease, Progress, acquire, down, status
from tests.embedded.conftest import LTS, NEWEST
from tests.embedded.watching import of


async def lease_of(home: Path, version: str) -> Lease:
    """Hold Neo4j in this process."""
    with anyio.fail_after(120):
        return await acquire(home, frozenset({"neo4j"}), version, lambda _progress: None)


def port_of(lease: Lease) -> int:
    """The port of a Neo4j, which listens on loopback."""
    address = urlsplit(lease.neo4j_uri or "")
    assert address.hostname == "127.0.0.1"
    return int(address.port or 0)


async def count_after_adding_one(uri: str | None) -> int:
    """Create a node and count all there are."""
    assert uri is not None
    async with AsyncGraphDatabase.driver(uri) as driver:
        await driver.execute_query("CREATE (:Thing)", database_="neo4j")
        records, _, _ = await driver.execute_query("MATCH (n) RETURN count(n) AS count", database_="neo4j")
        return int(records[0]["count"])


@pytest.mark.usefixtures("programs_lts")
async def test_both_services_start_side_by_side_and_a_taken_port_is_exchanged(home: Path) -> None:
    """PostgreSQL does not wait for Neo4j; if somebody has its port at the next start, another serves the same data."""
    told: list[Progress] = []
    with anyio.fail_after(120):
        lease = await acquire(home, frozenset({"postgres", "neo4j"}), LTS, told.append)
    assert [progress.service for progress in told if progress.phase == "ready"] == ["postgres", "neo4j"]
    assert lease.database_url is not None
    assert await count_after_adding_one(lease.neo4j_uri) == 1
    lease.release()
    assert (await down(home)).stopped == [f"neo4j-{LTS}", "postgres"]

    taken = port_of(lease)
    remembered = home / "data" / f"neo4j-{LTS}" / "port"
    assert remembered.read_text(encoding="ascii") == f"{taken}\n"
    with socket.create_server(("127.0.0.1", taken)):
        again = await lease_of(home, LTS)
        assert port_of(again) != taken
        assert remembered.read_text(encoding="ascii") == f"{port_of(again)}\n"
        assert await count_after_adding_one(again.neo4j_uri) == 2
        again.release()


@pytest.mark.usefixtures("programs_lts")
async def test_a_port_that_is_taken_during_the_start_is_exchanged_too(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neo4j finds its port in use and ends; it is started again with another one."""
    Home.at(home).make()
    server = Neo4jServer(Home.at(home), LTS)
    server.folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        looks = iter([True])
        monkeypatch.setattr(neo4j_server, "is_free", lambda port: next(looks, False) if port == taken else True)
        (server.folder / "port").write_text(str(taken), encoding="ascii")
        with anyio.fail_after(120):
            running = await server.start(lambda *_said: None)
    try:
        assert next(looks, None) is None
        assert urlsplit(running.url).port != taken
        assert await count_after_adding_one(running.url) == 1
    finally:
        await server.stop(running.process)


@pytest.mark.usefixtures("programs_newest")
async def test_the_newest_version_starts_with_data_of_its_own(home: Path) -> None:
    """Each version has its data folder, and starts empty beside what another version left."""
    other = home / "data" / f"neo4j-{LTS}"
    other.mkdir(parents=True)
    lease = await lease_of(home, NEWEST)
    assert await count_after_adding_one(lease.neo4j_uri) == 1
    seen = await status(home)
    assert {each.version: each.running for each in seen.services if each.service == "neo4j"} == {
        LTS: False,
        NEWEST: True,
    }
    assert list(other.iterdir()) == []
    lease.release()


@pytest.mark.usefixtures("programs_lts")
async def test_a_start_that_fails_shows_the_last_lines_of_the_log(home: Path) -> None:
    """A file stands in the place of the databases: Neo4j ends, and the error says what it said."""
    folder = home / "data" / f"neo4j-{LTS}"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "databases").write_text("in the way", encoding="utf-8")
    with pytest.raises(EmbeddedError, match=r"ended while it was starting; its log ends with:\n") as caught:
        await lease_of(home, LTS)
    assert "databases" in caught.value.what
    assert of(await status(home), "neo4j").phase == "failed"


async def test_a_version_without_lock_file_is_refused(home: Path) -> None:
    """The error names the versions that there are."""
    with pytest.raises(EmbeddedError, match=r"no lock file for version 1\.2\.3") as caught:
        await lease_of(home, "1.2.3")
    assert LTS in caught.value.hint
