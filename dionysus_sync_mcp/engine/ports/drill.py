"""What a drill needs of the local store."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from dionysus_sync_mcp.domain.memory import RemoteMemory
from dionysus_sync_mcp.engine.ports.shared import SyncEvent


class Shown(NamedTuple):
    """What people are shown of a local row."""

    memory_id: str
    project: str | None
    content: str | None


class Scratch(Protocol):
    """The table into which memories are brought back, to be thrown away."""

    @property
    def faults(self) -> Sequence[str]:
        """What of the table could not be made, a clause each."""
        ...

    async def restore(self, memories: Sequence[RemoteMemory]) -> list[tuple[str, str]]:
        """Bring back those of these that are here, as a recovery would; the ids that the table refuses, and why."""
        ...

    async def clear(self, memory_ids: Sequence[str]) -> None:
        """Take these out again."""
        ...

    async def hashes(self, memory_ids: Sequence[str]) -> dict[str, str]:
        """Of those that came back."""
        ...


class LocalDrilling(Protocol):
    """The local store's side of a drill; changes nothing of the user's."""

    def alone(self) -> AbstractAsyncContextManager[bool]:
        """Whether no other drill is under way, which then holds until the end, or until this process ends."""
        ...

    async def may_drill(self) -> bool:
        """Whether the role may make a scratch schema."""
        ...

    async def remove_left_behind(self) -> int:
        """Remove the scratch schemas of drills that were cut off; for one that is alone. How many were."""
        ...

    def scratch(self, definition: str) -> AbstractAsyncContextManager[Scratch]:
        """A scratch schema with a table of this definition, gone afterwards, however that is left.

        Raises:
            Refused: The table cannot be made after this definition.
        """
        ...

    async def show(self, memory_ids: Sequence[str]) -> list[Shown]: ...

    async def ages(self) -> tuple[float | None, float | None]:
        """Seconds since the last drill that was carried out, and since the last one that was tried; `None` for none."""
        ...

    async def record(self, drill_id: str, result: str, report: dict[str, Any], event: SyncEvent | None) -> None:
        """Keep its report, and audit it where there is something to audit; old reports are pruned."""
        ...
