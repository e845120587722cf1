"""The agents' role: its SQL, and what is said of the role in use."""

import re

import pytest

from dionysus_sync_mcp.adapters.statements import load_sql
from dionysus_sync_mcp.domain.errors import InputError
from dionysus_sync_mcp.domain.roles import AGENT_ROLE, RoleInUse, agent_role_sql, role_findings
from tests.commands import COMMAND

TEMPLATE = "GRANT :role ON :memories IN :schema; SELECT :'role', :'memories', 'x'::regclass"


def test_names_are_quoted_wherever_they_stand() -> None:
    """As identifiers and as texts, whatever the schema is called."""
    quoted = '"o\'d""d"'
    literal = "'\"o''d\"\"d\".memories'"
    assert agent_role_sql(TEMPLATE, "an_agent", "o'd\"d") == (
        f"GRANT \"an_agent\" ON {quoted}.memories IN {quoted}; SELECT 'an_agent', {literal}, 'x'::regclass\n"
    )


@pytest.mark.parametrize(
    "role", ["", "1st", "pg_agent", "PG_agent", "public", "None", "a b", "a;b", 'a"b', "a'b", "a" * 64, "ä"]
)
def test_what_cannot_be_a_roles_name_is_refused(role: str) -> None:
    """With what can be."""
    with pytest.raises(InputError, match="cannot be the name") as refused:
        agent_role_sql(TEMPLATE, role, "public")
    assert "letters" in refused.value.hint


def test_the_printed_sql_is_whole_and_destroys_nothing() -> None:
    """No placeholder is left, it is one transaction, and nobody loses anything by pasting it."""
    sql = agent_role_sql(load_sql()["agent_role"], AGENT_ROLE, "public")
    assert not re.search(r"(?<!:):'?(role|memories|schema)", sql)
    assert not COMMAND.search(sql)
    statements = [line for line in sql.splitlines() if not line.startswith("--")]
    assert (statements[0], statements[-1]) == ("BEGIN;", "COMMIT;")


def test_a_role_that_could_destroy_is_named_with_what_to_do() -> None:
    """The command, or the role that is there already."""
    (superuser,) = role_findings(RoleInUse("postgres", superuser=True, owner=True))
    assert "postgres" in superuser
    assert "is a superuser" in superuser
    assert "'dionysus-sync-mcp roles' prints the SQL" in superuser
    (owner,) = role_findings(RoleInUse("shop", superuser=False, owner=True, agents=["dionysus_agent"]))
    assert "owns the table memories" in owner
    assert "such as dionysus_agent" in owner


def test_a_role_that_could_not_is_not_spoken_of() -> None:
    """There is nothing to do."""
    assert role_findings(RoleInUse("reader", superuser=False, owner=False)) == []
