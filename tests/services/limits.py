"""A limit for each test: one that waits for ever would keep all others from being run."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import anyio


def limited(test: Callable[..., Awaitable[None]], seconds: float) -> Callable[..., Awaitable[None]]:
    """The same test, cancelled with a TimeoutError after so many seconds."""

    @wraps(test)
    async def run(**fixtures: Any) -> None:  # noqa: ANN401 - whatever the test asks for
        with anyio.fail_after(seconds):
            await test(**fixtures)

    return run
