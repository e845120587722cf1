"""The demo: what it takes as memories, and the whole of it on the embedded services."""

import ast
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

import anyio
import pytest
from rich.console import Console

from dionysus_sync_mcp.cli.output import embedded_progress
from dionysus_sync_mcp.demo import LONGEST, MOST_OF_ONE_PACKAGE, SHORTEST, docstrings, run
from dionysus_sync_mcp.embedded.services import Progress
from dionysus_sync_mcp.settings import Settings
from tests.services.cache import cache_folder
from tests.services.embedded import claimed_home

TEXT = "Says in enough words what this module is for, so that it is worth remembering at all."


def package(folder: Path, name: str, modules: int) -> None:
    """A package with so many modules, each with one docstring."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text("", encoding="utf-8")
    for number in range(modules):
        (folder / name / f"module{number}.py").write_text(f'"""{TEXT} {number}"""', encoding="utf-8")


def test_docstrings_come_with_their_package_and_module(tmp_path: Path) -> None:
    """The package becomes the project and the module the session."""
    package(tmp_path, "alpha", 1)
    assert list(docstrings(tmp_path)) == [("alpha", "alpha.module0", f"{TEXT} 0")]


def test_no_package_outweighs_the_others(tmp_path: Path) -> None:
    """A large package gives only a part of the memories."""
    package(tmp_path, "large", MOST_OF_ONE_PACKAGE + 5)
    package(tmp_path, "small", 1)
    found = [name for name, _, _ in docstrings(tmp_path)]
    assert (found.count("large"), found.count("small")) == (MOST_OF_ONE_PACKAGE, 1)


def test_files_that_are_not_python_or_hold_little_are_passed_over(tmp_path: Path) -> None:
    """A file that cannot be parsed, a short and an over-long docstring give no memory."""
    package(tmp_path, "odd", 0)
    (tmp_path / "odd" / "broken.py").write_text("def (", encoding="utf-8")
    (tmp_path / "odd" / "short.py").write_text(f'"""{"x" * (SHORTEST - 1)}"""', encoding="utf-8")
    (tmp_path / "odd" / "long.py").write_text(f'"""{"x" * (LONGEST + 1)}"""', encoding="utf-8")
    with pytest.raises(SyntaxError):
        ast.parse((tmp_path / "odd" / "broken.py").read_text(encoding="utf-8"))
    assert list(docstrings(tmp_path)) == []


@pytest.mark.promise("P6")
@pytest.mark.promise("P1")
async def test_the_demo_loses_nothing(ollama_url: str) -> None:
    """The main job from outside: thousands of memories written, destroyed, recovered, compared and found."""
    with claimed_home(cache_folder(os.environ)) as home:
        settings = Settings(dionysus_home=home, ollama_url=ollama_url)
        report = await run(settings, Console(file=StringIO()), embedded_progress)
        left = [path.name for path in home.glob("demo-*")]
    assert report.complete
    assert report.memories > 500
    assert report.lost == 0
    assert left == []
    results = [step.result for step in report.steps]
    assert any("seen and told within" in result for result in results)
    assert any("5 made-up ones are still here" in result for result in results)


async def test_an_interrupted_demo_leaves_nothing_and_clears_what_a_killed_one_left() -> None:
    """Servers and data of a demo go with it, however it ends; those of one that was killed go with the next."""
    with claimed_home(cache_folder(os.environ)) as home:
        killed = home / "demo-boot-1-1-killed"
        killed.mkdir()
        settings = Settings(dionysus_home=home)
        seen: list[Path] = []
        with anyio.CancelScope() as interrupted:

            @contextmanager
            def progress() -> Iterator[Callable[[Progress], None]]:
                seen.extend(home.glob("demo-*"))
                yield lambda told: interrupted.cancel() if told.phase == "starting" else None

            await run(settings, Console(file=StringIO()), progress)
        left = list(home.glob("demo-*"))
    assert interrupted.cancelled_caught
    assert len(seen) == 1
    assert seen[0] != killed
    assert left == []
