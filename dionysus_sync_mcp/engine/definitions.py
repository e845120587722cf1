"""Which definition of the local table a recovery goes by."""

from collections.abc import Sequence
from datetime import datetime

from dionysus_sync_mcp.domain.definition import valid_at, widened
from dionysus_sync_mcp.engine.ports.install import Installation
from dionysus_sync_mcp.engine.ports.recover import RemoteReader


async def definition_for(
    reader: RemoteReader, installation: Installation, moment: datetime | None = None, place: Sequence[str] = ()
) -> str | None:
    """The local table as this store noted it; a store without a memory there goes by the newest of all stores.

    Args:
        place: Stores in whose place this one is, as far as that is known: their tables come before the newest one.
        moment: When the table was as it should be, by the local store's clock: the time of `as_of`, or the restore
            point of the incident. The table gets the types, constraints and indexes of that time, and still lacks none
            of the columns that it had later. `None`: now.

    Returns:
        JSON text, `None` where nothing was ever noted.
    """
    noted = await reader.definitions()
    if not noted:
        return None
    store, definition = await _newest(reader, installation, noted, place)
    if moment is None:
        return definition
    then = valid_at(await reader.definition_history(store), moment)
    return widened(then, definition) if then else definition


async def _newest(
    reader: RemoteReader, installation: Installation, noted: dict[str, str], place: Sequence[str]
) -> tuple[str, str]:
    """Whose definition it is, and that. Memories of all stores may come into a table that has none of its own."""
    own = (await installation.identity()).id if await installation.initialised() else ""
    if own in noted:
        held = await reader.holdings(own)
        if held.live or held.tombstones:
            return own, noted[own]
    newest = next(iter(noted))
    whose = next((store for store in place if store in noted), newest)
    definition = noted[own] if own in noted and whose not in place else noted[whose]
    for other in noted.values():
        definition = widened(definition, other)
    return whose, definition
