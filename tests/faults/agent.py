"""An MCP client over the wire of a server process, with a user behind it who answers what the server asks."""

import json
from collections.abc import Mapping
from typing import Any

from tests.server.wire import INITIALIZE, Wire


class Agent:
    """Calls tools, and lets the user agree to what the server asks.

    Attributes:
        asked: The questions that the user was asked.
    """

    def __init__(self, wire: Wire) -> None:
        self.asked: list[str] = []
        self._wire = wire
        self._calls = 0

    async def greet(self) -> None:
        """Shake hands as a client that can ask its user."""
        await self._wire.request(0, "initialize", {**INITIALIZE, "capabilities": {"elicitation": {}}})
        await self._wire.receive()
        await self._wire.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')

    async def call(self, tool: str, arguments: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The structured result of a call that succeeds."""
        self._calls += 1
        await self._wire.call(self._calls, tool, arguments)
        while True:
            message = await self._wire.receive()
            if message.get("method") == "elicitation/create":
                await self._agree(message)
            elif message.get("id") == self._calls and "method" not in message:
                break
        result = message.get("result", {})
        assert not result.get("isError", True), message
        content = result["structuredContent"]
        assert isinstance(content, dict)
        return content

    async def _agree(self, question: Mapping[str, Any]) -> None:
        self.asked.append(question["params"]["message"])
        fields = question["params"]["requestedSchema"]["properties"]
        result = {"action": "accept", "content": dict.fromkeys(fields, True)}
        await self._wire.send(json.dumps({"jsonrpc": "2.0", "id": question["id"], "result": result}).encode())
