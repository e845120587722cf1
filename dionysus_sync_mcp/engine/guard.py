"""Guard: keeps the local store captured, finds rows that were missed, and notes the table's definition remotely."""

import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import NamedTuple

from dionysus_sync_mcp.domain.definition import reshaped, same, widened
from dionysus_sync_mcp.domain.errors import DatabaseMissing, DionysusError, SchemaMismatch, Unavailable
from dionysus_sync_mcp.engine.ports.install import Installation
from dionysus_sync_mcp.engine.ports.push import RemoteWriter
from dionysus_sync_mcp.engine.ports.recover import RemoteReader

logger = logging.getLogger(__name__)

BACKFILL_PAGE = 1000


class GuardResult(NamedTuple):
    """What one look did."""

    protected: bool
    installed: bool = False
    backfilled: int = 0


class Guard:
    """The use-case guard.

    Args:
        may_initialise: Whether a database without our bookkeeping is made a local store unasked: only our own is, and
            one whose bookkeeping was removed while we looked.
        look_first: Sees what is missing before it is put back, as otherwise nobody would know that it was.
    """

    def __init__(
        self,
        installation: Installation,
        writer: RemoteWriter,
        reader: RemoteReader,
        *,
        may_initialise: bool,
        look_first: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._installation = installation
        self._writer = writer
        self._reader = reader
        self._may_initialise = may_initialise
        self._look_first = look_first
        self._looks_fail: str | None = None
        self._backfilled = False
        self._gap: datetime | None = None

    async def guard_once(self) -> GuardResult:
        """Reinstall a capture that is gone, queue rows that were missed; a lost table is left for a recovery.

        Rows were also missed where somebody else has put the capture back: a recovery, or another process.

        Raises:
            NotAdoptable: The table cannot be captured any more.
        """
        await self.look()
        initialised = await self._installation.initialised()
        if not initialised and not self._may_initialise:
            return GuardResult(protected=False)
        self._may_initialise = True
        if initialised and not await self._installation.table_present():
            return GuardResult(protected=False)
        installed = not await self._installation.capture_installed()
        if installed:
            self._backfilled = False
            await self._installation.install()
        gap = await self._installation.gap()
        if self._backfilled and gap in (None, self._gap):
            return GuardResult(protected=True)
        backfilled = await self.backfill()
        self._backfilled, self._gap = True, gap
        return GuardResult(protected=True, installed=installed, backfilled=backfilled)

    async def look(self) -> None:
        """Before anything is put back, whoever does it. A look that fails keeps nobody from that."""
        if self._look_first is None:
            return
        try:
            await self._look_first()
        except (SchemaMismatch, Unavailable, DatabaseMissing):
            return  # what follows says so, or puts it right
        except DionysusError as error:
            if str(error) != self._looks_fail:
                logger.warning("what is missing could not be looked at before it is put back: %s", error)
            self._looks_fail = str(error)
            return
        self._looks_fail = None

    async def backfill(self) -> int:
        """Queue every row that is pending and has no queue entry, in pages; how many were."""
        total = 0
        while page := await self._installation.backfill_once(BACKFILL_PAGE):
            total += page
        return total

    async def note_definition_once(self) -> bool:
        """Keep the table's definition in the remote store, where it is not there yet; whether it was written.

        Only of a table that is captured: one that somebody put in its place must not replace the definition. And
        it only grows: memories in the remote store still have the columns that a table made again lacks. What was noted
        before stays there, so that a table can become again what it was before an incident.

        Where the columns have changed, rows that nobody has written since are no more what was pushed of them: they
        are compared and sent again.
        """
        if not await self._installation.capture_installed():
            return False
        current = await self._installation.definition()
        if current is None:
            return False
        identity = await self._installation.identity()
        noted = (await self._reader.definitions()).get(identity.id)
        if noted is not None and reshaped(current, noted):
            await self._installation.note_gap()
        definition = widened(current, noted)
        if same(definition, noted):
            return False
        # Before the store's node is unique, several processes would make one each.
        await self._writer.prepare()
        await self._writer.note_definition(identity, definition)
        return True
