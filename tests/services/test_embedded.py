"""Runs of the tests at the same time do not get into each other's way."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.services.embedded import claimed_home

ANOTHER_RUN = """
import sys
from pathlib import Path
from tests.services.embedded import claimed_home
with claimed_home(Path(sys.argv[1])) as home:
    print(home, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_run(cache: Path) -> Iterator[Path]:
    """The home that a run in another process has claimed, as long as it lives."""
    command = [sys.executable, "-c", ANOTHER_RUN, str(cache)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        # Leaving the context closes its stdin, which ends it.
        yield Path(process.stdout.readline().strip())


def test_two_runs_have_data_of_their_own_and_share_the_programs(tmp_path: Path) -> None:
    """A run that would empty the Neo4j of another one is the thing to avoid."""
    with another_run(tmp_path) as theirs, claimed_home(tmp_path) as ours:
        assert {theirs.parent, ours.parent} == {tmp_path}
        assert theirs != ours
        (theirs / "programs" / "fetched").touch()
        assert (ours / "programs" / "fetched").exists()


def test_a_home_is_used_again_by_the_next_run(tmp_path: Path) -> None:
    """Otherwise each run would make a database of its own for good."""
    with another_run(tmp_path) as earlier:
        pass
    with claimed_home(tmp_path) as ours:
        assert ours == earlier


def test_one_run_may_claim_several(tmp_path: Path) -> None:
    """Servers that a test does something to are not those that the other tests share."""
    with claimed_home(tmp_path) as shared:
        with claimed_home(tmp_path) as own:
            assert own != shared
        with another_run(tmp_path) as theirs:
            assert theirs != shared, "giving one back does not let go of the other"
