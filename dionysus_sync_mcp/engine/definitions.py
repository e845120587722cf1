"""Which definition of the local table a recovery goes by."""

from datetime import datetime

from dionysus_sync_mcp.domain.definition import valid_at, widened
from dionysus_sync_mcp.engine.ports.install import Installation
from dionysus_sync_mcp.engine.ports.recover import RemoteReader


async def definition_for(
    reader: RemoteReader, installation: Installation, moment: datetime | None = None
) -> str | None:
    """The local table as this store noted it; a store without a memory there goes by the newest of all stores.

    Args:
        moment: When the table was as it should be, by the local store's clock: the time of `as_of`, or the restore
            point of the incident. The table gets the types, constraints and indexes of that time, and still lacks none
            of the columns that it had later. `None`: now.

    Returns:
        JSON text, `None` where nothing was ever noted.
    """
    noted = await reader.definitions()
    if not noted:
        return None
    store, definition = await _newest(reader, installation, noted)
    if moment is None:
        return definition
    then = valid_at(await reader.definition_history(store), moment)
    return widened(then, definition) if then else definition


async def _newest(reader: RemoteReader, installation: Installation, noted: dict[str, str]) -> tuple[str, str]:
    """Whose definition it is, and that."""
    newest = next(iter(noted.items()))
    if not await installation.initialised():
        return newest
    store = (await installation.identity()).id
    own = noted.get(store)
    if own is None:
        return newest
    held = await reader.holdings(store)
    return (store, own) if held.live or held.tombstones else (newest[0], widened(own, newest[1]))
