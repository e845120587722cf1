"""The local store in PostgreSQL: one class for each port, over one shared `Database`."""
