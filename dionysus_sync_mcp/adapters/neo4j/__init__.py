"""The remote store on Neo4j, 5.26 LTS and newer."""

from dionysus_sync_mcp.adapters.neo4j.store import RemoteStore

__all__ = ["RemoteStore"]
