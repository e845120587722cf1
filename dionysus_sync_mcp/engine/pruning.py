"""Pruning: the audit is kept for as long as it is of use, and no longer."""

from dionysus_sync_mcp.domain.errors import SchemaMismatch
from dionysus_sync_mcp.engine.ports.alerts import AuditPruning

PRUNE_SECONDS = 3600.0
# Between two pages: nobody waits for this, and others use the database.
PAGE_SECONDS = 1.0
UNADOPTED_SECONDS = 60.0


async def prune_once(audit: AuditPruning) -> float:
    """Remove a page of what is older than it is kept for; the seconds to wait before the next one."""
    try:
        return PAGE_SECONDS if await audit.prune_events() else PRUNE_SECONDS
    except SchemaMismatch:  # a database that is not adopted yet has no audit
        return UNADOPTED_SECONDS
