"""No message of the program holds a command that destroys something: agents paste what they read."""

import ast
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import pytest
from mcp import Client
from mcp.types import TextContent

import dionysus_sync_mcp
from dionysus_sync_mcp.cli import output, recovery_output
from dionysus_sync_mcp.domain.destruction import (
    Evidence,
    Incident,
    Observation,
    ObservationKind,
    Thresholds,
    Who,
    details_of,
    judge,
)
from dionysus_sync_mcp.domain.text import defused
from dionysus_sync_mcp.engine.alerts import body_of
from dionysus_sync_mcp.engine.incidents import report_of
from dionysus_sync_mcp.engine.ports.alerts import DueAlert
from dionysus_sync_mcp.engine.reports import IncidentsReport
from dionysus_sync_mcp.server.app import build
from tests.commands import COMMAND
from tests.server.fake import FakeProgram, fake_app

PACKAGE = Path(dionysus_sync_mcp.__file__).parent
STATEMENT = "DROP TABLE memories; rm -rf /"
NOW = datetime(2026, 8, 1, 12, tzinfo=UTC)
STORE = "0b7a5f0e-8f1d-4f0e-9a37-1a6f3f7f9a11"
# A client calls itself what it likes, and a role is named by whoever may make one.
INCIDENT = Incident(
    id="5f0c9a1e-5d0e-5c7a-9b57-0d6a8f3b2c11",
    key="gone:16403",
    kind="drop",
    store=STORE,
    detected_at=NOW,
    restore_point=NOW,
    last_at=NOW,
    rows=3,
    summary="The table memories is gone.",
    who=Who("rm -rf /", "TRUNCATE TABLE memories", "127.0.0.1", 4711, STATEMENT),
)
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


@pytest.mark.parametrize("kind", get_args(ObservationKind))
def test_what_is_made_of_an_observation_holds_no_command(kind: ObservationKind) -> None:
    """Whatever the database says that was hit, and by whom: neither the summary nor what is posted can be run."""
    ids = tuple(f"11111111-1111-4111-8111-{number:012}" for number in range(20))
    rows = ids if kind in {"delete", "update"} else ()
    seen = Observation(1, kind, NOW, NOW + timedelta(seconds=1), 20, rows, 16403, STATEMENT, INCIDENT.who)
    (incident,) = judge(Evidence([seen], [seen] if rows else [], population=20), Thresholds(), STORE, NOW)
    assert incident.summary
    assert not COMMAND.search(incident.summary)
    alert = DueAlert("1", "incident", incident.summary, details_of(incident), NOW, STORE, 0)
    assert not COMMAND.search(body_of(alert, "atlas").decode())


def test_an_incident_is_shown_without_the_command_that_made_it(capsys: pytest.CaptureFixture[str]) -> None:
    """By itself, in the list and in JSON: what was done can be read, and not be run."""
    report = report_of(replace(INCIDENT, closed_at=NOW, closed_reason=STATEMENT))
    recovery_output.show_incident(report)
    recovery_output.show_incidents(IncidentsReport(next_step="Nothing to do.", incidents=[report]))
    output.show_json(report)
    shown = capsys.readouterr().out
    assert shown.count("D·ROP T·ABLE memories; r·m -rf /") == 4
    assert "T·RUNCATE" in shown
    assert not COMMAND.search(shown)


async def test_the_status_shows_no_command_of_an_open_incident(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the agent and to a person."""
    program = FakeProgram()
    report = (await program.status()).model_copy(update={"incidents": [report_of(INCIDENT)], "open_incidents": 1})

    async def status(_timeout: float = 1.5) -> object:
        return report

    monkeypatch.setattr(program, "status", status)
    async with Client(build(fake_app(program))) as client:
        told = (await client.call_tool("get_sync_status")).model_dump_json()
    output.show_status(report)
    shown = capsys.readouterr().out
    assert "D·ROP T·ABLE memories" in told
    assert "The table memories is gone." in shown
    assert not COMMAND.search(told)
    assert not COMMAND.search(shown)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("recover_from_remote", {"plan_id": STATEMENT}),
        ("recover_from_remote", {"before_incident": STATEMENT}),
        ("recover_from_remote", {"as_of": STATEMENT}),
        ("recover_from_remote", {"memory_ids": [STATEMENT]}),
        ("recover_from_remote", {STATEMENT: True}),
        ("query_cross_project", {"query": STATEMENT, "memory_types": [STATEMENT]}),
        ("sync_now", {"timeout_seconds": STATEMENT}),
    ],
)
async def test_a_wrong_argument_is_not_repeated(tool: str, arguments: dict[str, Any]) -> None:
    """What somebody put into a call does not come back as the program's word."""
    async with Client(build(fake_app(FakeProgram()))) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    (block,) = result.content
    assert isinstance(block, TextContent)
    assert not COMMAND.search(block.text)
