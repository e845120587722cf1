"""What tests do to a Neo4j server as such: ask whether it is there, and empty it."""

from neo4j import AsyncGraphDatabase, Query
from neo4j.exceptions import DriverError, Neo4jError

# Versions first, then memories: with a memory go the links of all its versions in one transaction, with a project
# those of all its memories, which may be more than fits.
EMPTY = (
    "MATCH (n:MemoryVersion) CALL (n) { DETACH DELETE n } IN TRANSACTIONS OF 5000 ROWS",
    "MATCH (n:Memory) CALL (n) { DETACH DELETE n } IN TRANSACTIONS OF 5000 ROWS",
    "MATCH (n) CALL (n) { DETACH DELETE n } IN TRANSACTIONS OF 5000 ROWS",
)

# The server's own limit, of a minute, is for what the program asks of it.
EMPTY_WITHIN = 1800.0


async def answers(uri: str) -> bool:
    """Whether a server accepts queries there now."""
    async with AsyncGraphDatabase.driver(uri) as driver:
        try:
            await driver.verify_connectivity()
        except (DriverError, Neo4jError):
            return False
    return True


async def empty(uri: str) -> None:
    """Remove every node, in batches; constraints and indexes stay."""
    async with AsyncGraphDatabase.driver(uri) as driver, driver.session(database="neo4j") as session:
        for statement in EMPTY:
            result = await session.run(Query(statement, timeout=EMPTY_WITHIN))
            await result.consume()
