"""The faults that the soak does to the program and to its servers. Each says whether it took hold."""

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import anyio
from neo4j import AsyncGraphDatabase

from tests.faults.load import Load
from tests.faults.oracle import Oracle
from tests.faults.program import Program, Stores, waiting
from tests.faults.proxy import Proxy, Slowness
from tests.faults.servers import OwnNeo4j, OwnPostgres, OwnServer
from tests.faults.writes import end_connections
from tests.integration.stores import plain_client
from tests.services.waiting import until

FREEZE_SECONDS = 10.0
AWAY_SECONDS = 15.0
SOON = 60.0
WIPED = 100
# Longer than what an index of the remote store takes, so that it refuses the row.
POISON = "x" * 40_000
WIPE = (
    "MATCH (m:Memory) WHERE m.id IN $ids OPTIONAL MATCH (m)-[:HAS_VERSION]->(v)"
    " WITH collect(DISTINCT m) AS memories, collect(DISTINCT v) AS versions"
    " FOREACH (v IN versions | DETACH DELETE v) FOREACH (m IN memories | DETACH DELETE m)"
    " RETURN size(memories) AS wiped"
)
DISABLE = "ALTER TABLE memories DISABLE TRIGGER USER"
CAPTURED = "SELECT bool_and(tgenabled = 'A') FROM pg_trigger WHERE tgrelid = 'memories'::regclass AND NOT tgisinternal"


class Field:
    """What faults are done to.

    Attributes:
        stores: Without the proxies that stand before the programs.
    """

    def __init__(
        self,
        stores: Stores,
        oracle: Oracle,
        servers: tuple[OwnPostgres, OwnNeo4j],
        proxies: tuple[Proxy, Proxy],
        chance: random.Random,
    ) -> None:
        self.stores = stores
        self.oracle = oracle
        self.postgres, self.neo4j = servers
        self.local, self.remote = proxies
        self.random = chance
        self.programs: Sequence[Program] = ()

    @property
    def servers(self) -> tuple[OwnServer, OwnServer]:
        """Both."""
        return self.postgres, self.neo4j

    async def heal(self) -> None:
        """Both can be reached, also after a fault that ended before its end."""
        for proxy in (self.local, self.remote):
            await proxy.heal()

    async def do(self, mishap: "Mishap", programs: Sequence[Program], load: Load) -> bool:
        """Do a fault, and end it; whether it took hold."""
        self.programs = programs
        return await mishap.do(self, load)


@dataclass(frozen=True, slots=True)
class Mishap:
    """A fault. `to_repair` says that it makes a difference which somebody has to have repaired."""

    name: str
    do: Callable[[Field, Load], Awaitable[bool]]
    to_repair: bool = False


async def kill_program(field: Field, _load: Load) -> bool:
    """One of the programs ends as the system ends it."""
    await field.random.choice(field.programs).kill_9()
    return True


async def freeze_program(field: Field, _load: Load) -> bool:
    """One of the programs stands still, perhaps with a push in flight, and goes on."""
    program = field.random.choice(field.programs)
    await program.stop()
    await anyio.sleep(FREEZE_SECONDS)
    stood = await program.stopped()
    program.resume()
    return stood


async def kill_server(server: OwnServer) -> bool:
    """A server ends as in a power cut, and is started again."""
    before = server.pid
    await server.kill_9()
    await server.start()
    return server.pid != before


async def restart_server(server: OwnServer) -> bool:
    """A server is stopped and started."""
    before = server.pid
    await server.restart()
    return server.pid != before


async def half_open(proxy: Proxy) -> bool:
    """All packets vanish for a while."""
    before = proxy.engaged["blackhole"]
    await proxy.blackhole()
    await anyio.sleep(AWAY_SECONDS)
    await proxy.heal()
    return proxy.engaged["blackhole"] > before


async def refuse(proxy: Proxy) -> bool:
    """Connections are refused for a while."""
    before, accepted = proxy.engaged["refuse"], proxy.accepted
    await proxy.refuse()
    await anyio.sleep(AWAY_SECONDS)
    none = proxy.accepted == accepted
    await proxy.heal()
    return none and proxy.engaged["refuse"] > before


async def slow(proxy: Proxy) -> bool:
    """Every packet takes its time."""
    before = proxy.engaged["slow"]
    await proxy.slow(Slowness(latency=0.1))
    await anyio.sleep(AWAY_SECONDS)
    await proxy.heal()
    return proxy.engaged["slow"] > before


async def poison(field: Field, load: Load) -> bool:
    """A row that the remote store refuses is parked; a later version of it goes through."""
    id_, content = load.fresh(), load.content()
    _, parked = await waiting(field.stores.database_url)
    async with plain_client(field.stores.database_url) as client:
        statement = "INSERT INTO memories (id, content, source_project) VALUES ($1, $2, $3)"
        await client.execute(statement, id_, content, POISON)
        field.oracle.expect(id_, content)

        async def is_parked() -> bool:
            return (await waiting(field.stores.database_url))[1] > parked

        try:
            await until(is_parked, what="the row is parked", seconds=SOON)
        except TimeoutError:
            return False
        finally:
            await client.execute("UPDATE memories SET source_project = 'p' WHERE id = $1", id_)
    return True


async def go_uncaptured(field: Field, load: Load) -> bool:
    """Somebody turns our triggers off and writes; captured writes go on once the program has turned them on again."""
    await load.pause()
    old, new = load.taken(1)[0], load.fresh()
    changed, inserted = load.content(), load.content()
    async with plain_client(field.stores.database_url) as client:
        async with client.transaction():
            await client.execute(DISABLE)
            engaged = not await client.fetchval(CAPTURED)
            await client.execute("UPDATE memories SET content = $2 WHERE id = $1", old, changed)
            await client.execute("INSERT INTO memories (id, content) VALUES ($1, $2)", new, inserted)
        field.oracle.expect(old, changed)
        field.oracle.expect(new, inserted)

        async def captured() -> bool:
            return bool(await client.fetchval(CAPTURED))

        await until(captured, what="the triggers are on again", seconds=SOON)
    load.resume()
    return engaged


async def wipe(field: Field, load: Load) -> bool:
    """A part of the remote store is removed by hand, its history too."""
    ids = load.taken(WIPED)
    async with AsyncGraphDatabase.driver(field.stores.neo4j_uri) as driver:
        records, _, _ = await driver.execute_query(WIPE, {"ids": [str(id_) for id_ in ids]}, database_="neo4j")
    forgive(field.oracle, set(ids))
    return int(records[0]["wiped"]) > 0


async def end_all_connections(field: Field, _load: Load) -> bool:
    """PostgreSQL ends every connection of the program."""
    async with plain_client(field.stores.database_url) as client:
        return await end_connections(client) > 0


def forgive(oracle: Oracle, ids: set[UUID]) -> None:
    """What was removed by hand need not be in the history any more; the state that the memories have now has to be."""
    oracle._contents = {(id_, content) for id_, content in oracle._contents if id_ not in ids}
    oracle._contents |= {(id_, state) for id_ in ids if (state := oracle._rows.get(id_)) is not None}
    oracle._history = {version for version in oracle._history if version[0] not in ids}
    oracle._remote = {id_: row for id_, row in oracle._remote.items() if id_ not in ids}


MISHAPS = (
    Mishap("kill -9 of one of three programs", kill_program),
    Mishap("one of three programs stands still for 10 s", freeze_program),
    Mishap("kill -9 of PostgreSQL", lambda field, _: kill_server(field.postgres)),
    Mishap("kill -9 of Neo4j", lambda field, _: kill_server(field.neo4j)),
    Mishap("restart of PostgreSQL", lambda field, _: restart_server(field.postgres)),
    Mishap("restart of Neo4j", lambda field, _: restart_server(field.neo4j)),
    Mishap("packets to Neo4j vanish for 15 s", lambda field, _: half_open(field.remote)),
    Mishap("packets to PostgreSQL vanish for 15 s", lambda field, _: half_open(field.local)),
    Mishap("Neo4j refuses for 15 s", lambda field, _: refuse(field.remote)),
    Mishap("100 ms more to Neo4j for 15 s", lambda field, _: slow(field.remote)),
    Mishap("a row that Neo4j refuses", poison),
    Mishap("triggers off, and two writes", go_uncaptured, to_repair=True),
    Mishap("100 memories removed from Neo4j", wipe, to_repair=True),
    Mishap("every connection ended by PostgreSQL", end_all_connections),
)
