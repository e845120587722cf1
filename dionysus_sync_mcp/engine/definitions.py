"""Which definition of the local table a recovery goes by."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from dionysus_sync_mcp.domain.definition import is_definition, valid_at, widened
from dionysus_sync_mcp.engine.ports.install import Installation
from dionysus_sync_mcp.engine.ports.recover import RemoteReader


async def definition_for(
    reader: RemoteReader, installation: Installation, moment: datetime | None = None, place: Sequence[str] = ()
) -> str | None:
    """The local table as this store noted it; a store without a memory there goes by the newest of all stores.

    A definition that somebody has damaged by hand counts as never noted: the newest one of the same store that a table
    can be made by stands for it.

    Args:
        place: Stores in whose place this one is, as far as that is known: their tables come before the newest one.
        moment: When the table was as it should be, by the local store's clock: the time of `as_of`, or the restore
            point of the incident. The table gets the types, constraints and indexes of that time, and still lacks none
            of the columns that it had later. `None`: now.

    Returns:
        JSON text, `None` where nothing was ever noted.
    """
    noted = await _whole(reader, await reader.definitions())
    if not noted:
        return None
    store, definition = await _newest(reader, installation, noted, place)
    if moment is None:
        return definition
    history = [(at, text) for at, text in await reader.definition_history(store) if is_definition(text)]
    then = valid_at(history, moment)
    return widened(then, definition) if then else definition


async def damaged_definitions(reader: RemoteReader) -> int:
    """Of how many stores the newest definition is none that a table can be made by."""
    return sum(not is_definition(text) for text in (await reader.definitions()).values())


async def _whole(reader: RemoteReader, noted: Mapping[str, str]) -> dict[str, str]:
    """Those that a table can be made by, in the same order."""
    found: dict[str, str] = {}
    for store, text in noted.items():
        if is_definition(text):
            found[store] = text
            continue
        older = [one for _, one in await reader.definition_history(store) if is_definition(one)]
        if older:
            found[store] = older[-1]
    return found


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
