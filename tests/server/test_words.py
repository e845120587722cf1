"""No message of the program holds a command that destroys something: agents paste what they read."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import dionysus_sync_mcp

PACKAGE = Path(dionysus_sync_mcp.__file__).parent
COMMAND = re.compile(
    r"\bDROP\s+(TABLE|SCHEMA|DATABASE|TRIGGER|FUNCTION)\b|\bTRUNCATE\s+\w|\bDELETE\s+FROM\b|\bDETACH\s+DELETE\b"
    r"|\brm\s+-\w*[rf]|\bdropdb\b|\bgit\s+(reset|clean)\b|\bkill\s+-9\b|\bmkfs\b",
    re.IGNORECASE,
)


def _texts(file: Path) -> Iterator[str]:
    """Every string of a module but its docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    statements = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
    docstrings = {id(value) for value in statements if isinstance(value, ast.Constant)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_the_scan_sees_what_it_is_for() -> None:
    """Each kind of command is caught, and plain words about destruction are not."""
    for command in (
        "DROP TABLE memories",
        "truncate memories",
        "DELETE FROM memories",
        "rm -rf data",
        "detach delete n",
    ):
        assert COMMAND.search(command), command
    assert not COMMAND.search("The table was dropped; 3 memories were deleted.")


def test_no_string_of_the_package_is_a_destructive_command() -> None:
    """Whatever is shown comes from these strings; the program's own SQL and Cypher stand in files of their own."""
    found = {
        file.relative_to(PACKAGE): [text for text in _texts(file) if COMMAND.search(text)]
        for file in PACKAGE.rglob("*.py")
    }
    assert {file: texts for file, texts in found.items() if texts} == {}
    assert sum(len(list(_texts(file))) for file in PACKAGE.rglob("*.py")) > 500
