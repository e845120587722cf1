"""What becomes of a round of the soak in which something went wrong that is not the program's to answer for, or is."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dionysus_sync_mcp.embedded.neo4j_server import Neo4jServer
from dionysus_sync_mcp.embedded.processes import this_process
from dionysus_sync_mcp.embedded.servers import Report, Running
from tests.faults.load import Load
from tests.faults.mishaps import Field, Mishap
from tests.faults.oracle import Comparison, Oracle
from tests.faults.program import Stores
from tests.faults.servers import HarnessError, OwnNeo4j
from tests.faults.soak import Fleet, Soak

URL, ELSEWHERE = "bolt://127.0.0.1:20001", "bolt://127.0.0.1:20002"


class Server:
    """One of the soak's own."""

    url = URL
    log = "the end of its log"

    def __init__(self) -> None:
        self.running = True

    async def start(self) -> None:
        """Start it."""
        self.running = True


class Elsewhere(OwnNeo4j):
    """A Neo4j of which the process is the test's own."""

    def thaw(self) -> None:
        """It is not frozen."""


class Way:
    """A proxy."""

    def __init__(self) -> None:
        self.healed = 0

    async def heal(self) -> None:
        """Let all pass."""
        self.healed += 1


class Blind(Oracle):
    """An oracle that reaches no store."""

    async def compare(self) -> Comparison:
        """As an oracle does."""
        raise ConnectionRefusedError("nobody listens")


class Ground:
    """A soak on servers that are none."""

    def __init__(self, home: Path) -> None:
        self.servers, self.ways = (Server(), Server()), (Way(), Way())
        oracle, stores = Blind("", ""), Stores("", "", home)
        chance = random.Random(0)  # noqa: S311 - no secret
        self.field = Field(stores, oracle, cast("Any", self.servers), cast("Any", self.ways), chance)
        self.soak = Soak(self.field, Fleet(stores), Load(oracle, chance), 0)


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    """A soak that does not run."""
    return Ground(tmp_path)


@pytest.mark.parametrize(
    ("comes", "outcome"),
    [
        (True, "passed"),
        (False, "void"),
        (TimeoutError("it does not come back"), "failed"),
        (HarnessError("it is elsewhere"), "broken"),
    ],
)
async def test_whatever_comes_of_a_fault_is_an_outcome(ground: Ground, comes: bool | Exception, outcome: str) -> None:
    """None of it ends the soak, and the stores can be reached afterwards."""

    async def do(_field: Field, _load: Load) -> bool:
        if isinstance(comes, Exception):
            raise comes
        return comes

    assert await ground.soak._done(Mishap("a fault", do)) == outcome
    assert all(way.healed for way in ground.ways)


async def test_a_server_that_is_gone_is_started_again_and_named(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the end of its log; one that runs is left alone."""
    assert not await ground.soak._brought_back()
    ground.servers[1].running = False
    assert await ground.soak._brought_back()
    assert ground.servers[1].running
    assert "the soak, not the program: bolt://127.0.0.1:20001 did not run any more: the end" in capsys.readouterr().out


async def test_a_store_that_cannot_be_looked_at_is_not_whole(ground: Ground) -> None:
    """It may have lost anything."""
    compared = await ground.soak._look()
    assert not compared.whole
    assert compared.lost == ["no look was possible: nobody listens"]


async def test_a_neo4j_that_came_back_elsewhere_is_an_error_of_the_tests(tmp_path: Path) -> None:
    """And the next start tries the port at which everybody looks for it."""
    urls = iter([URL, ELSEWHERE, URL])

    async def start(report: Report) -> Running:
        report("starting", 0, 0, "")
        return Running(this_process(), next(urls))

    async def stop(_running: object) -> None:
        return

    server = Elsewhere(cast("Neo4jServer", SimpleNamespace(folder=tmp_path, start=start, stop=stop)), None)
    await server.start()
    server._process = None
    with pytest.raises(HarnessError, match="20002"):
        await server.start()
    assert not server.running
    assert (tmp_path / "port").read_text(encoding="ascii") == "20001\n"
    await server.start()
    assert server.url == URL
