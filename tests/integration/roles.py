"""Roles of a test's own, other than the engine's."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.integration.stores import Client


@asynccontextmanager
async def role_of(client: Client, url: str, rights: str = "") -> AsyncIterator[str]:
    """The URL of a role without any right but those given, `{role}` standing for its name."""
    role = "plain_" + re.sub(r"\W", "", url.split("?")[0].rsplit("/", 1)[-1])
    await client.execute(f"CREATE ROLE {role} LOGIN; {rights.format(role=role)}")
    try:
        yield re.sub(r"//[^@/]*@", f"//{role}@", url)
    finally:
        await client.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")
