"""A real Ollama with a tiny model: the one on the PATH, or one built from source where Go is installed."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import IO

import anyio
import anyio.to_thread
import httpx
from anyio.abc import Process
from fasteners import InterProcessLock

from tests.services.choice import SourceAbsentError
from tests.services.tiny_gguf import write_model
from tests.services.waiting import until

# The newest version that `go install` builds with inference inside: later modules lack headers, or the inference.
VERSION = "v0.10.1"
MODEL = "nomic-embed-text"
STARTS_WITHIN = 20.0
STOPS_WITHIN = 5.0


@asynccontextmanager
async def ollama(environment: Mapping[str, str], cache: Path, say: Callable[[str], None]) -> AsyncIterator[str]:
    """An Ollama of our own on a free loopback port, holding `MODEL`, yielded by its URL."""
    binary = await anyio.to_thread.run_sync(partial(_binary, environment, cache, say))
    with tempfile.TemporaryDirectory(prefix="dionysus-ollama-") as folder:
        url = f"http://127.0.0.1:{_free_port()}"
        own = {**environment, "OLLAMA_HOST": url, "OLLAMA_MODELS": f"{folder}/models", "HOME": folder}
        log = Path(folder, "server.log")
        async with _serving(binary, own, log):
            await _until_it_answers(url, log)
            await _create_model(binary, own, Path(folder))
            yield url


def planned_binary(environment: Mapping[str, str], cache: Path) -> str:
    """Which Ollama would be started, in words; nothing is built to find out."""
    found = _found_binary(environment, cache)
    if found:
        return found
    return f"a build of {VERSION}" if _go(environment) else "nowhere: no OLLAMA_URL, no `ollama`, no Go"


def _binary(environment: Mapping[str, str], cache: Path, say: Callable[[str], None]) -> str:
    # Two runs at once would each spend the minutes that one build takes.
    with InterProcessLock(cache / "ollama-build.lock"):
        return _found_binary(environment, cache) or _build(environment, _built_binary(cache), say)


def _found_binary(environment: Mapping[str, str], cache: Path) -> str | None:
    built = _built_binary(cache)
    return shutil.which("ollama", path=environment.get("PATH")) or (str(built) if built.exists() else None)


def _built_binary(cache: Path) -> Path:
    return cache / f"ollama-{VERSION}" / "ollama"


def _go(environment: Mapping[str, str]) -> str | None:
    return shutil.which("go", path=environment.get("PATH"))


def _build(environment: Mapping[str, str], target: Path, say: Callable[[str], None]) -> str:
    go = _go(environment)
    if not go:
        raise SourceAbsentError("OLLAMA_URL is not set, there is no `ollama` on the PATH, and no Go to build it with")
    say(f"building Ollama {VERSION} once into {target.parent} (about two minutes)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = ["nice", "-n", "10", go, "install", f"github.com/ollama/ollama@{VERSION}"]
        built = subprocess.run(
            command, env={**environment, "GOBIN": folder}, capture_output=True, text=True, encoding="utf-8", check=False
        )
        if built.returncode:
            raise SourceAbsentError(f"Ollama {VERSION} could not be built: {_end_of(built.stderr)}")
        Path(folder, "ollama").rename(target)
    return str(target)


@asynccontextmanager
async def _serving(binary: str, environment: Mapping[str, str], log: Path) -> AsyncIterator[None]:
    with log.open("wb") as output:
        process = await _start([binary, "serve"], environment, output)
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await _stop(process)


async def _start(command: list[str], environment: Mapping[str, str], output: IO[bytes]) -> Process:
    # A group of its own: its model runners go with it, and Ctrl-C reaches it through us only.
    return await anyio.open_process(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
    )


async def _stop(process: Process) -> None:
    async with process:
        process.terminate()
        with anyio.move_on_after(STOPS_WITHIN):
            await process.wait()
            return
        os.killpg(process.pid, signal.SIGKILL)


async def _until_it_answers(url: str, log: Path) -> None:
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:

        async def answers() -> bool:
            try:
                return (await client.get("/api/version")).is_success
            except httpx.TransportError:
                return False

        try:
            await until(answers, what="Ollama answers", seconds=STARTS_WITHIN)
        except TimeoutError as error:
            reason = _end_of(await anyio.Path(log).read_text(encoding="utf-8", errors="replace"))
            raise SourceAbsentError(f"Ollama did not start: {reason}") from error


async def _create_model(binary: str, environment: Mapping[str, str], folder: Path) -> None:
    await anyio.to_thread.run_sync(write_model, folder / "tiny.gguf")
    modelfile = folder / "Modelfile"
    modelfile.write_text(f"FROM {folder}/tiny.gguf\n", encoding="utf-8")
    created = await anyio.run_process([binary, "create", MODEL, "-f", str(modelfile)], env=environment, check=False)
    if created.returncode:
        raise SourceAbsentError(f"Ollama refuses the test model: {_end_of(created.stderr.decode(errors='replace'))}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_of(log: str, lines: int = 8) -> str:
    return "\n".join(log.strip().splitlines()[-lines:])
