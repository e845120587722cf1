"""A home folder for each test, with the programs of all of them, and nothing left running after it."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest
from fasteners import InterProcessLock

from dionysus_sync_mcp.embedded.artifacts import fetch, locked, maven_source
from dionysus_sync_mcp.embedded.services import down
from dionysus_sync_mcp.settings import Neo4jVersion
from tests.embedded.watching import processes_of
from tests.services.cache import cache_folder

LTS: Neo4jVersion = "5.26.31"
NEWEST: Neo4jVersion = "2026.09.0"


@pytest.fixture(scope="session")
def shared_programs() -> Path:
    """The folder of programs that all runs of a user share; what a test needs in it, it fetches."""
    folder = cache_folder(os.environ) / "programs"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
async def programs_lts(shared_programs: Path) -> Path:
    """The same, with the long-term-support Neo4j in it."""
    await _fetched(shared_programs, LTS)
    return shared_programs


@pytest.fixture(scope="session")
async def programs_newest(shared_programs: Path) -> Path:
    """The same, with the newest Neo4j in it."""
    await _fetched(shared_programs, NEWEST)
    return shared_programs


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A fresh folder that other users may enter, unlike pytest's: PostgreSQL is another one when we are root."""
    folder = Path(tempfile.mkdtemp(prefix="dionysus-test-")).resolve()
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
async def home(open_folder: Path, shared_programs: Path) -> AsyncIterator[Path]:
    """A home folder with the shared programs; afterwards all is stopped and no process of it is left."""
    folder = open_folder / "home"
    folder.mkdir()
    (folder / "programs").symlink_to(shared_programs, target_is_directory=True)
    yield folder
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        await down(folder)
    assert processes_of(folder) == []


async def _fetched(programs: Path, version: Neo4jVersion) -> None:
    lock = InterProcessLock(programs.parent / "programs.lock")
    await anyio.to_thread.run_sync(lock.acquire)
    try:
        await fetch(locked(version), programs / f"neo4j-{version}" / "lib", maven_source(), lambda _done, _total: None)
    finally:
        lock.release()
