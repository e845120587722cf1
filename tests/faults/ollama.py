"""A real Ollama of a test's own, which can be killed and started again on the same port with the same model."""

import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
from anyio.abc import Process

from tests.services import ollama
from tests.services.cache import cache_folder


class OwnOllama:
    """See `own_ollama`.

    Attributes:
        url: The same after each start.
    """

    def __init__(self, binary: str, folder: Path) -> None:
        self.url = f"http://127.0.0.1:{ollama._free_port()}"
        self._binary = binary
        self._folder = folder
        self._environment = {
            **os.environ,
            "OLLAMA_HOST": self.url,
            "OLLAMA_MODELS": str(folder / "models"),
            "HOME": str(folder),
        }
        self._process: Process | None = None

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it and wait until it answers."""
        log = self._folder / "server.log"
        with log.open("ab") as output:
            self._process = await ollama._start([self._binary, "serve"], self._environment, output)
        await ollama._until_it_answers(self.url, log)

    async def make_model(self) -> None:
        """Give it the model of the tests."""
        await ollama._create_model(self._binary, self._environment, self._folder)

    async def kill_9(self) -> None:
        """End it and the processes that run its models; harmless when repeated."""
        if self._process is not None and self.running:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        self._process = None


@asynccontextmanager
async def own_ollama() -> AsyncIterator[OwnOllama]:
    """A fresh Ollama, running, with the model of the tests.

    Raises:
        ServerAbsentError: There is none, and none can be built.
    """
    binary = await anyio.to_thread.run_sync(ollama._binary, os.environ, cache_folder(os.environ), _quiet)
    with tempfile.TemporaryDirectory(prefix="dionysus-own-ollama-", ignore_cleanup_errors=True) as folder:
        own = OwnOllama(binary, Path(folder))
        try:
            await own.start()
            await own.make_model()
            yield own
        finally:
            with anyio.CancelScope(shield=True):
                await own.kill_9()


def _quiet(_line: str) -> None:
    """Nobody watches."""
