"""The command `roles`: it prints, and does nothing else."""

import json

import pytest
from typer.testing import CliRunner

from dionysus_sync_mcp.cli.commands import app

runner = CliRunner()


def test_the_sql_is_alone_on_stdout() -> None:
    """So that it can be kept in a file; nothing has to run for it."""
    result = runner.invoke(app, ["roles"], env={"DATABASE_URL": "postgresql://127.0.0.1:9/nobody"})
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("-- A role of its own for agents")
    assert 'GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE "public".memories TO "dionysus_agent";' in result.stdout


def test_the_name_and_the_schema_can_be_said() -> None:
    """As JSON too."""
    result = runner.invoke(app, ["roles", "shop_agent", "--json"], env={"DIONYSUS_SCHEMA": "shop"})
    report = json.loads(result.stdout)
    assert report["role"] == "shop_agent"
    assert 'ON TABLE "shop".memories TO "shop_agent"' in report["sql"]


@pytest.mark.parametrize("name", ["pg_agent", "a b", 'x"; SELECT 1; --'])
def test_a_name_that_cannot_be_is_wrong_use(name: str) -> None:
    """Nothing is printed that could be run."""
    result = runner.invoke(app, ["roles", "--", name])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "cannot be the name of a role" in result.stderr
