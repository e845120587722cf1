"""Run as a process: holds services of a home folder, says where they are, lets go at the end of stdin."""

import json
import os
import sys
from pathlib import Path
from typing import cast

import anyio

from dionysus_sync_mcp.embedded.services import Service, acquire, up


async def main() -> None:
    """`python -m tests.embedded.holder HOME VERSION SERVICE...`; a service `up` makes the hold persistent."""
    home, version, *names = sys.argv[1:]
    wanted = frozenset(cast("Service", name) for name in names if name != "up")
    hold = up if "up" in names else acquire
    lease = await hold(Path(home), wanted, version, lambda _progress: None)
    said = {"database_url": lease.database_url, "neo4j_uri": lease.neo4j_uri, "uid": os.geteuid()}
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
    await anyio.to_thread.run_sync(sys.stdin.read)
    lease.release()


if __name__ == "__main__":
    anyio.run(main)
