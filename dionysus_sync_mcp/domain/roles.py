"""A database role of its own for agents: the SQL that makes it, and what is wrong with using the program's."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from dionysus_sync_mcp.domain.errors import InputError

AGENT_ROLE = "dionysus_agent"
ROLES = "'dionysus-sync-mcp roles' prints the SQL"
# Fewer characters than PostgreSQL allows, none of which means anything to it, to psql or to a URL.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,62}")
_PLACEHOLDER = re.compile(r":('?)(role|memories|schema)\b\1")


class RoleInUse(NamedTuple):
    """What the role that the program connects as could do to the table `memories`.

    Attributes:
        superuser: Whether it is one, or can become one.
        owner: Whether it owns the table, or is a member of a role that does.
        agents: Other roles that may write memories and could not destroy the table; at most 5.
    """

    name: str
    superuser: bool
    owner: bool
    agents: Sequence[str] = ()


def agent_role_sql(template: str, role: str, schema: str) -> str:
    """The SQL that gives agents this role, to be read and run by a person.

    Args:
        template: The statement `agent_role`.
        schema: Where `memories` stands.

    Raises:
        InputError: The name cannot be a role's.
    """
    if not _NAME.fullmatch(role) or role.lower() in {"public", "none"} or role.lower().startswith("pg_"):
        raise InputError(
            "that cannot be the name of a role",
            where="role",
            hint="Up to 63 letters, digits, _, - and ., beginning with a letter; not public, none or pg_….",
        )
    place = _quoted(schema, '"')
    values = {"role": role, "memories": f"{place}.memories", "schema": place}
    names = {**values, "role": _quoted(role, '"')}

    def filled(found: re.Match[str]) -> str:
        literal, name = bool(found[1]), found[2]
        return _quoted(values[name], "'") if literal else names[name]

    return _PLACEHOLDER.sub(filled, template).rstrip() + "\n"


def role_findings(role: RoleInUse) -> list[str]:
    """What people should know of the role in use, if agents use it too."""
    if not role.superuser and not role.owner:
        return []
    why = "is a superuser, or can become one" if role.superuser else "owns the table memories"
    other = f"such as {', '.join(role.agents)}" if role.agents else ROLES
    return [
        f"The role {role.name}, which DATABASE_URL names, {why}: whoever uses it can destroy all memories at once. "
        f"The agent should use a role of its own: {other}."
    ]


def _quoted(text: str, mark: str) -> str:
    return mark + text.replace(mark, 2 * mark) + mark
