"""The remote store's schema while somebody else makes it too: another process, or a try that was cut off."""

from typing import cast

import pytest

from dionysus_sync_mcp.adapters.neo4j.connection import Connection, Limits
from dionysus_sync_mcp.adapters.neo4j.writer import SCHEMA, Writer
from dionysus_sync_mcp.domain.errors import DionysusError, Refused, RemoteDamaged


class Server:
    """Refuses to make an index the first time, which then is there, made by somebody else, or is not."""

    def __init__(self, error: DionysusError, *, made: bool) -> None:
        self._present = set(SCHEMA) - {"memory_created"}
        self._error = error
        self._made = made

    async def read(self, statement: str, _seconds: float, **_: object) -> list[tuple[str]] | None:
        """Answers what `prepare` asks."""
        if statement == "schema_present":
            return [(name,) for name in self._present]
        if statement == "memory_created":
            self._present |= {statement} if self._made else set()
            raise self._error
        return None


@pytest.mark.parametrize("error", [Refused("an equivalent index exists"), RemoteDamaged("an index exists")])
@pytest.mark.parametrize("made", [True, False])
async def test_what_somebody_else_has_made_meanwhile_is_no_error(error: DionysusError, made: bool) -> None:
    """An index that is there is there; one that is not, and is refused, is told."""
    writer = Writer(cast("Connection", Server(error, made=made)), Limits(768, "english"))
    if made:
        await writer.prepare()
        return
    with pytest.raises(type(error)):
        await writer.prepare()
