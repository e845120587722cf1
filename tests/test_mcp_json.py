"""The checkout's `.mcp.json` works for clients that expand `${NAME:-default}`, and for those that do not."""

import json
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from dionysus_sync_mcp.settings import PLACEHOLDER, load_settings

FILE = Path(__file__).resolve().parents[1] / ".mcp.json"


@pytest.fixture
def server() -> dict[str, object]:
    """The entry of our server."""
    entry: dict[str, object] = json.loads(FILE.read_text(encoding="utf-8"))["mcpServers"]["dionysus-sync"]
    return entry


@pytest.fixture
def environment(server: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the file gives the server, with nothing of that in the environment yet."""
    given = server["env"]
    assert isinstance(given, dict)
    for name in given:
        monkeypatch.delenv(name, raising=False)
    return given


def test_unexpanded_placeholders_mean_their_defaults(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The MCP inspector hands `${NAME:-default}` over as it stands; the defaults are those of the program."""
    plain = load_settings()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == plain
    assert plain.neo4j_uri == "embedded:"


def test_each_placeholder_names_its_own_variable(environment: dict[str, str]) -> None:
    """What a user sets in the shell reaches the setting of the same name."""
    assert all(PLACEHOLDER.fullmatch(value) and value.startswith(f"${{{name}:-") for name, value in environment.items())


def test_the_command_is_the_one_that_the_package_installs(server: dict[str, object]) -> None:
    """`make demo` puts it into the checkout's virtual environment."""
    (script,) = entry_points(group="console_scripts", name="dionysus-sync-mcp")
    assert server["command"] == f".venv/bin/{script.name}"
