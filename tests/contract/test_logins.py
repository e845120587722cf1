"""A refused login is not tried again at once, whoever asks: the server would lock the user out."""

from types import TracebackType
from typing import Any, Self

import pytest
from neo4j.exceptions import Neo4jError
from pydantic import SecretStr

from dionysus_sync_mcp.adapters.neo4j import connection
from dionysus_sync_mcp.adapters.neo4j.connection import LOCKED_OUT, Access, Connection
from dionysus_sync_mcp.domain.errors import AccessRefused

WRONG = "Neo.ClientError.Security.Unauthorized"


class Refusing:
    """A driver whose server refuses each login."""

    def __init__(self, code: str) -> None:
        self.logins = 0
        self._code = code

    async def __aenter__(self) -> Self:
        """Nothing is connected yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is to be closed."""

    def session(self, **_: Any) -> Self:  # noqa: ANN401 - whatever the adapter asks for
        """One more user of the driver."""
        return self

    async def run(self, *_: Any) -> None:  # noqa: ANN401 - as `session`
        """Connects, which is a login."""
        self.logins += 1
        raise Neo4jError._hydrate_neo4j(code=self._code, message="no")


async def address() -> str:
    """Of nobody."""
    return "bolt://127.0.0.1:9"


@pytest.mark.promise("P9")
@pytest.mark.parametrize("code", [WRONG, LOCKED_OUT])
async def test_one_login_for_looks_and_work_together(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks and reads, refused for the password or since the user is locked out, come back at once with the answer."""
    driver, store = Refusing(code), Connection(Access(address, "neo4j", SecretStr("wrong"), "neo4j"))
    monkeypatch.setattr(store, "_new_driver", lambda _: driver)
    for ask in (store.look(["components"], 5), store.read("components", 5), store.look(["components"], 5)):
        with pytest.raises(AccessRefused):
            await ask
    assert driver.logins == 1
    monkeypatch.setattr(connection, "REFUSAL_SECONDS", -1.0)
    store._refusal = None
    for _ in range(2):
        with pytest.raises(AccessRefused):
            await store.look(["components"], 5)
    assert driver.logins == 3
