"""No message of the program holds a command that destroys something: agents paste what they read."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import dionysus_sync_mcp
from dionysus_sync_mcp.domain.text import defused
from tests.commands import COMMAND

PACKAGE = Path(dionysus_sync_mcp.__file__).parent
STATEMENT = "DROP TABLE memories; rm -rf /"
COMMANDS = [
    STATEMENT,
    "DROP TABLE memories",
    "drop schema public cascade",
    "Then run DROP DATABASE mydb.",
    "truncate memories",
    "TRUNCATE TABLE x",
    "DELETE FROM memories",
    "ALTER TABLE memories",
    "UPDATE memories SET content = ''",
    "rm -rf data",
    "sudo rm -fr /",
    "dropdb mydb",
    "MATCH (n) DETACH DELETE n",
]


def _texts(file: Path) -> Iterator[str]:
    """Every text of a module: literals, formatted ones with a word for each value, and docstrings, which help shows."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "value" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("command", COMMANDS)
def test_the_scan_sees_what_it_is_for(command: str) -> None:
    """In any case, and within a sentence."""
    assert COMMAND.search(command)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_statement_that_is_shown_is_none_any_more(command: str) -> None:
    """It can be read, and neither run nor taken for advice."""
    shown = defused(command)
    assert not COMMAND.search(shown)
    assert shown.replace("·", "") == command


@pytest.mark.parametrize(
    "text",
    [
        "The table was dropped; 3 memories were deleted.",
        "Somebody has truncated the table memories.",
        "D·ROP T·ABLE memories; r·m -rf /",
        "Columns were altered; the update of 51 rows was seen.",
    ],
)
def test_the_scan_lets_words_about_destruction_pass(text: str) -> None:
    """What happened has to be said."""
    assert not COMMAND.search(text)


def test_no_text_of_the_package_is_a_destructive_command() -> None:
    """Whatever is shown is made of these; the program's own SQL and Cypher stand in files of their own."""
    found = {
        str(file.relative_to(PACKAGE)): [text for text in _texts(file) if COMMAND.search(text)]
        for file in PACKAGE.rglob("*.py")
    }
    assert {file: texts for file, texts in found.items() if texts} == {}
    assert sum(len(list(_texts(file))) for file in PACKAGE.rglob("*.py")) > 1000
