"""What the scenarios of crashes share: the steps at which a command is killed, and the push that comes after."""

import signal
from collections.abc import Iterable

import pytest

from tests.faults.failpoints import Step
from tests.faults.oracle import Comparison, Oracle
from tests.faults.program import Failpoint, Stores, run
from tests.services.local_store import running

PUSH = ("sync", "--no-embed")


def at_steps(number: int, of: str) -> pytest.MarkDecorator:
    """A scenario: a few steps in `make test`, and every one in `make faults`. The results say which of both it was."""
    some, each = (pytest.mark.scenario(number, f"kill -9 at {which} of {of}") for which in ("some steps", "each step"))
    return pytest.mark.parametrize(
        "every",
        [
            pytest.param(False, id="some steps", marks=some),
            pytest.param(True, id="every step", marks=[pytest.mark.slow, each]),
        ],
    )


async def recorded(stores: Stores, *command: str) -> list[Step]:
    """Every step of a command that is not disturbed."""
    ended = await run(stores, *command, failpoint=Failpoint())
    assert ended.status == 0, ended.output
    return ended.steps


async def killed_at(step: str, stores: Stores, *command: str) -> bool:
    """Kill a command with -9 when it comes to a step; whether that is what ended it."""
    ended = await run(stores, *command, failpoint=Failpoint(step))
    assert ended.reached, f"{step}: {ended.output}"
    return ended.status == -signal.SIGKILL


def distinct(steps: Iterable[Step], *, since: str) -> list[str]:
    """From the first time of a statement on, before the first time of each one, and after the first of each commit.

    What comes after a statement is what comes before the next one.
    """
    ordered = list(steps)
    first = next(i for i, step in enumerate(ordered) if step.name == since)
    return [str(s) for s in ordered[first:] if s.number == 1 and (s.when == "before" or s.name == "COMMIT")]


async def finished(stores: Stores, oracle: Oracle) -> tuple[Comparison, float]:
    """Another program pushes what is left; how the stores compare then, and the seconds that it took."""
    async with running(stores.database_url, stores.neo4j_uri) as runtime:
        await runtime.sync(timeout=60, embed=False)
        return await oracle.until_whole()
