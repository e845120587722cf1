"""The limit of a test ends it, and leaves alone one that is done in time."""

import anyio
import pytest

from tests.services.limits import limited


@pytest.mark.parametrize("seconds", [0.01, 60])
async def test_a_test_that_waits_for_ever_ends_with_an_error(seconds: float) -> None:
    """It is told by where it stood; its arguments are the ones that it was given."""
    done: list[int] = []

    async def test(number: int) -> None:
        if seconds < 1:
            await anyio.sleep_forever()
        done.append(number)

    if seconds < 1:
        with pytest.raises(TimeoutError):
            await limited(test, seconds)(number=5)
    else:
        await limited(test, seconds)(number=5)
    assert done == ([] if seconds < 1 else [5])
