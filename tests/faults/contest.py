"""A second local store on the same remote store, which changes the same memory later, but pushes it earlier."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.runtime import Runtime
from tests.faults.oracle import Oracle
from tests.integration.stores import Client, plain_client, uid
from tests.services import postgres
from tests.services.local_store import running

SHARED = uid(1)
CONFLICTS = "SELECT winner, local_content, remote_content FROM dionysus_sync.conflicts ORDER BY detected_at"


@asynccontextmanager
async def another_store(template: str, uri: str) -> AsyncIterator[tuple[Runtime, Client]]:
    """A second local store on the same remote store, which has recovered what that holds."""
    async with postgres.copy_of(template) as url:
        await postgres.execute(url, postgres.NEW_IDENTITY)
        async with running(url, uri) as program, plain_client(url) as client:
            await program.run_recovery((await program.plan_recovery(Scope())).plan_id)
            yield program, client


async def contest(oracle: Oracle, other: tuple[Runtime, Client], word: str) -> str:
    """Both stores change the shared memory, the other one later; it pushes first. What has won."""
    program, client = other
    theirs = f"theirs: {word}"
    await oracle.update(SHARED, f"ours: {word}")
    assert await client.execute("UPDATE memories SET content = $2 WHERE id = $1", SHARED, theirs) == "UPDATE 1"
    await program.sync(timeout=60, embed=False)
    oracle.expect(SHARED, theirs)
    return theirs
