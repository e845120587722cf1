"""The command that prints the SQL of a role of its own for agents."""

import sys
from typing import Annotated

import typer
from pydantic import BaseModel, Field

from dionysus_sync_mcp.cli import output
from dionysus_sync_mcp.cli.options import Json
from dionysus_sync_mcp.cli.running import run_plain
from dionysus_sync_mcp.domain.roles import AGENT_ROLE, agent_role_sql
from dionysus_sync_mcp.settings import Settings


class RoleSql(BaseModel):
    """The SQL of a role, to be read and run by a person."""

    role: str = Field(description="The role.")
    sql: str = Field(description="Makes it, or takes from it what it should not have; one transaction.")


def roles(
    role: Annotated[str, typer.Argument(help="The role's name.")] = AGENT_ROLE,
    *,
    as_json: Json = False,
) -> None:
    """Print the SQL of a database role for agents, which may read and write memories and can destroy nothing else.

    It is for a person to read and run; this command connects to nothing. A role that could destroy the table by other
    means is refused then, and nothing is changed. Safe to repeat.

    Example: dionysus-sync-mcp roles > agent.sql

    Example: dionysus-sync-mcp roles shop_agent
    """

    async def work(settings: Settings) -> RoleSql:
        from dionysus_sync_mcp.adapters.statements import load_sql

        return RoleSql(role=role, sql=agent_role_sql(load_sql()["agent_role"], role, settings.dionysus_schema))

    report = run_plain(work, as_json=as_json)
    if as_json:
        output.show_json(report)
    else:
        sys.stdout.write(report.sql)
