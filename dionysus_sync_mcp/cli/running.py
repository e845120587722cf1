"""How a command runs: settings, embedded services, the program around it, and its errors turned into exit codes."""

import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import typer
from anyio.abc import TaskStatus

from dionysus_sync_mcp.adapters.session_file import FILE_NAME
from dionysus_sync_mcp.cli import output
from dionysus_sync_mcp.domain.errors import DionysusError, InputError, SettingsError
from dionysus_sync_mcp.settings import Settings, load_settings

if TYPE_CHECKING:
    from dionysus_sync_mcp.runtime import Runtime

PATIENCE_SECONDS = 5.0
INTERRUPTED = 128 + signal.SIGINT  # what a shell says of a program that ended by it

T = TypeVar("T")


def run(work: "Callable[[Runtime], Awaitable[T]]", *, as_json: bool, session: bool = False, remote: bool = False) -> T:
    """Do some work with the program open around it; an error ends the command.

    Args:
        session: Take part in the session of this folder.
        remote: Give the remote store time to answer for the first time, which an agent's tool would not have.
    """

    async def with_runtime(settings: Settings) -> T:
        from dionysus_sync_mcp.runtime import open_runtime

        with ExitStack() as bars:
            on_embedded = bars.enter_context(output.embedded_progress())
            opened = open_runtime(
                in_folder(settings, Path.cwd()), worker=False, start_session=session, on_embedded=on_embedded
            )
            async with opened as runtime:
                await _embedded_ready(runtime)
                if remote:
                    await runtime.remote.health(PATIENCE_SECONDS)
                bars.close()  # before the command has something of its own to show
                return await work(runtime)

    return run_plain(with_runtime, as_json=as_json)


def run_plain(work: Callable[[Settings], Awaitable[T]], *, as_json: bool) -> T:
    """Do some work that needs the settings only; an error ends the command."""
    try:
        settings = load_settings()
        logging.basicConfig(
            level="WARNING", stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
        )
        return anyio.run(work, settings)
    except DionysusError as error:
        output.show_error(error, as_json=as_json)
        raise typer.Exit(2 if isinstance(error, SettingsError | InputError) else 1) from None
    except KeyboardInterrupt:
        output.say("interrupted")
        raise typer.Exit(INTERRUPTED) from None


async def until_signal(work: Callable[[], Awaitable[None]]) -> str | None:
    """Do some work that has no end of its own until SIGINT, SIGTERM or SIGHUP; gives the signal's name."""
    ended_by: str | None = None
    async with anyio.create_task_group() as tasks:

        async def on_signal(*, task_status: TaskStatus[None]) -> None:
            nonlocal ended_by
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
                task_status.started()
                async for number in received:
                    ended_by = number.name
                    tasks.cancel_scope.cancel()

        await tasks.start(on_signal)
        await work()
        tasks.cancel_scope.cancel()
    return ended_by


def in_folder(settings: Settings, folder: Path) -> Settings:
    """The settings that Claude Code's server has in this folder: where it left a session file there, that counts."""
    if settings.claude_project_dir or not (folder / FILE_NAME).exists():
        return settings
    return settings.model_copy(update={"claude_project_dir": folder})


def embedded_home(settings: Settings) -> Path:
    """Where the embedded services live.

    Raises:
        EmbeddedError: The extra is not installed.
    """
    from dionysus_sync_mcp.embedded.services import default_home

    return settings.dionysus_home or default_home()


async def _embedded_ready(runtime: "Runtime") -> None:
    """Wait for embedded services; one that cannot be started is left for the command to report."""
    for address in runtime.addresses:
        with suppress(DionysusError):
            await address()
