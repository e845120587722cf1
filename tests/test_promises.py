"""Each promise of the design is proved by a test that names it, and no test names a promise that does not exist."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROMISES = {
    "P1": "nothing acknowledged is lost",
    "P2": "replay is harmless",
    "P3": "the remote never goes back",
    "P4": "sync never erases",
    "P5": "the user's SQL is never in our way",
    "P6": "recovery is planned, verified, repeatable, undoable",
    "P7": "loss is not mirrored, in either direction",
    "P8": "everything is on record",
    "P9": "any service may be away",
    "P10": "a good guest",
}
# Promise -> why no test proves it yet. An entry has to go as soon as a test names its promise.
DEFERRED: dict[str, str] = {}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def named_promises(source: str) -> list[str]:
    """The promises that `@pytest.mark.promise(...)` names on the test functions of a module, as often as they stand."""
    return [name for test in _tests(ast.parse(source)) for mark in test.decorator_list for name in _names(mark)]


def every_mention(source: str) -> list[str]:
    """The promises that any `promise(...)` mark in a module names, wherever it stands."""
    return [name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.expr) for name in _names(node)]


def _tests(tree: ast.Module) -> Iterator[Function]:
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return (function for function in functions if function.name.startswith("test_"))


def _names(mark: ast.expr) -> list[str]:
    if not (isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise"):
        return []
    return [str(ast.literal_eval(argument)) for argument in mark.args]


@pytest.fixture(scope="module")
def sources() -> dict[Path, str]:
    """The text of every test module."""
    return {path: path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.rglob("test_*.py"))}


@pytest.fixture(scope="module")
def proved(sources: dict[Path, str]) -> set[str]:
    """The promises that at least one test names."""
    return {name for source in sources.values() for name in named_promises(source)}


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_is_proved_or_deferred_with_a_reason(promise: str, proved: set[str]) -> None:
    """A promise has a test, or else a reason why not yet; never both, never neither."""
    assert (promise in proved) != bool(DEFERRED.get(promise))


def test_nothing_unknown_is_named(proved: set[str]) -> None:
    """A mark with a wrong number would prove nothing, and neither would a deferral."""
    assert proved | set(DEFERRED) <= set(PROMISES)


def test_a_promise_is_named_on_a_test_itself(sources: dict[Path, str]) -> None:
    """A mark on a module, a class or a parameter would hide which test proves the promise."""
    hidden = [path.name for path, source in sources.items() if named_promises(source) != every_mention(source)]
    assert hidden == []


def test_marks_are_found_on_plain_and_async_tests_only() -> None:
    """The reading of a source that the checks above rest on."""
    source = (
        '@pytest.mark.promise("P1")\ndef test_plain(): ...\n'
        '@pytest.mark.promise("P2")\n@pytest.mark.promise("P3")\nasync def test_async(): ...\n'
        '@pytest.mark.promise("P4")\ndef helper(): ...\n'
        '@pytest.mark.other("P5")\ndef test_other(): ...\n'
        'pytestmark = pytest.mark.promise("P6")\n'
    )
    assert named_promises(source) == ["P1", "P2", "P3"]
    assert sorted(every_mention(source)) == ["P1", "P2", "P3", "P4", "P6"]
