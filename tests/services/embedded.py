"""PostgreSQL and Neo4j as the program itself runs them, each run of the tests with data of its own."""

import itertools
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
from fasteners import InterProcessLock

from dionysus_sync_mcp.domain.errors import EmbeddedError
from dionysus_sync_mcp.embedded.services import Lease, Progress, Service, acquire, down
from dionysus_sync_mcp.settings import Neo4jVersion
from tests.services import postgres
from tests.services.choice import SourceAbsentError
from tests.services.waiting import until

FETCHED_WITHIN = 900.0
# The lock of a file keeps other processes away, and lets its own in again.
_CLAIMED_HERE: set[Path] = set()


@contextmanager
def claimed_home(cache: Path) -> Iterator[Path]:
    """A home folder that no other run uses meanwhile; the programs in it are those of all runs."""
    homes = (cache / f"home-{number}" for number in itertools.count(1))
    free = (home for home in homes if home not in _CLAIMED_HERE)
    home, lock = next((home, lock) for home in free if (lock := _try_lock(home.with_suffix(".lock"))))
    _CLAIMED_HERE.add(home)
    try:
        home.mkdir(exist_ok=True)
        _share_programs(cache, home)
        yield home
    finally:
        _CLAIMED_HERE.remove(home)
        lock.release()


def _try_lock(path: Path) -> InterProcessLock | None:
    lock = InterProcessLock(path)
    if lock.acquire(blocking=False):
        return lock
    # The file of a lock that somebody else has stays open otherwise, which is a warning, which is an error.
    lock.lockfile.close()
    return None


def _share_programs(cache: Path, home: Path) -> None:
    shared = cache / "programs"
    shared.mkdir(exist_ok=True)
    if not (home / "programs").exists():
        (home / "programs").symlink_to(shared, target_is_directory=True)


@asynccontextmanager
async def embedded_postgres(home: Path, say: Callable[[str], None]) -> AsyncIterator[str]:
    """The PostgreSQL of that home folder, yielded by its URL, without the databases of runs that were killed."""
    async with _leased(home, "postgres", "5.26.31", say) as lease:
        url = str(lease.database_url)
        await postgres.drop_left_over(url)
        yield url


@asynccontextmanager
async def embedded_neo4j(home: Path, version: Neo4jVersion, say: Callable[[str], None]) -> AsyncIterator[str]:
    """The Neo4j of that version in that home folder, yielded by its URI."""
    async with _leased(home, "neo4j", version, say) as lease:
        yield str(lease.neo4j_uri)


@asynccontextmanager
async def throwaway_neo4j(cache: Path, version: Neo4jVersion, say: Callable[[str], None]) -> AsyncIterator[str]:
    """A Neo4j of that version in a home folder of its own, yielded by its URI; its data is gone afterwards."""
    # What is left of files that the keeper was writing when it was ended is not worth an error.
    with tempfile.TemporaryDirectory(prefix="throwaway-", dir=cache, ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        _share_programs(cache, home)
        try:
            async with embedded_neo4j(home, version, say) as uri:
                yield uri
        finally:
            with anyio.CancelScope(shield=True):
                await down(home)


@asynccontextmanager
async def _leased(
    home: Path, service: Service, version: Neo4jVersion, say: Callable[[str], None]
) -> AsyncIterator[Lease]:
    try:
        async with _fetching_alone(home.parent):
            lease = await acquire(home, frozenset({service}), version, _Announcer(say))
    except EmbeddedError as error:
        raise SourceAbsentError(str(error)) from error
    try:
        yield lease
    finally:
        lease.release()


@asynccontextmanager
async def _fetching_alone(cache: Path) -> AsyncIterator[None]:
    """Only one process at a time may fetch into the folder of programs, and a start may have to fetch."""
    lock = InterProcessLock(cache / "programs.lock")

    async def locked() -> bool:
        return bool(lock.acquire(blocking=False))

    await until(locked, what="another run of the tests lets go of the programs", seconds=FETCHED_WITHIN)
    try:
        yield
    finally:
        lock.release()


class _Announcer:
    """Says once that something is being fetched: the rest is over before anybody wonders."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said = False

    def __call__(self, progress: Progress) -> None:
        if progress.phase == "fetching" and not self._said:
            self._said = True
            self._say(progress.message)
