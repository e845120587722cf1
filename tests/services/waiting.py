"""Waits for a server to answer, without knowing which."""

from collections.abc import Awaitable, Callable

import anyio

PAUSE = 0.05


async def until(answers: Callable[[], Awaitable[bool]], *, what: str, seconds: float, pause: float = PAUSE) -> None:
    """Ask again and again until the answer is yes.

    Raises:
        TimeoutError: It never was; the message is `what`.
    """
    with anyio.move_on_after(seconds):
        while True:
            if await answers():
                return
            await anyio.sleep(pause)
    raise TimeoutError(f"{what} within {seconds:g} s")
