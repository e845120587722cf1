"""Finds or starts the real PostgreSQL, Neo4j and Ollama; `open_services` in `servers.py` is the way in."""
