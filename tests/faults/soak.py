"""`python -m tests.faults.soak [MINUTES]`: load, and each minute a random fault, after which both stores are compared.

Two MCP servers and a worker run as processes on servers of their own, behind proxies. A round in which the fault did
not take hold is void, neither passed nor failed; one in which a server of the soak's own did not come back is broken,
which says nothing about the program. Ends with 1 if anything was lost or wrong.
"""

import json
import os
import random
import re
import secrets
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
import psutil

from dionysus_sync_mcp.domain.errors import EmbeddedError
from dionysus_sync_mcp.embedded.home import Home
from dionysus_sync_mcp.engine.tasks import first_error
from tests.benchmarks.machine import machine
from tests.faults.load import Load
from tests.faults.mishaps import MISHAPS, Field, Mishap
from tests.faults.oracle import AWAY, Comparison, Oracle, open_oracle
from tests.faults.program import Program, Stores, drained, mcp_server, run, worker
from tests.faults.proxy import open_proxy
from tests.faults.results import markdown
from tests.faults.servers import HarnessError, own_neo4j, own_postgres
from tests.integration.stores import plain_client
from tests.services import postgres
from tests.services.cache import cache_folder
from tests.services.embedded import claimed_home

FOLDER = Path(__file__).parent
ROUND_SECONDS = 60.0
LOAD_SECONDS = 10.0  # before a fault, so that something is always under way
WHOLE_SECONDS = 300.0
DRILL_SECONDS = 300.0
MEGABYTE = 1 << 20
CHECK_SECONDS = "20"


@dataclass(frozen=True, slots=True)
class Round:
    """What one round came to.

    Attributes:
        outcome: passed, failed, void or broken.
        seconds: From the pause of the load until the queue is empty and both stores are as the oracle says.
        memory: Of each program, in MB.
        files: Open files and connections of each program.
    """

    fault: str
    outcome: str
    compared: Comparison
    seconds: float
    memory: list[int]
    files: list[int]


class Fleet:
    """Two MCP servers and a worker, each started again when it has ended."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._running: list[tuple[AsyncExitStack, Program]] = []

    @property
    def programs(self) -> list[Program]:
        """Those that run now."""
        return [program for _, program in self._running]

    async def complete(self) -> None:
        """Start what is missing."""
        kept = []
        for stack, program in self._running:
            if program.running:
                kept.append((stack, program))
            else:
                await stack.aclose()
        self._running = kept
        while len(self._running) < 3:
            stack = AsyncExitStack()
            opened = mcp_server(self._stores) if self._servers() < 2 else worker(self._stores)
            self._running.append((stack, await stack.enter_async_context(opened)))

    async def close(self) -> None:
        """End all."""
        for stack, _ in self._running:
            await stack.aclose()

    def _servers(self) -> int:
        return sum(program.process.stdin is not None for program in self.programs)


class Soak:
    """The rounds.

    Args:
        scratch: URL of a server on which a recovery may be tried.
    """

    def __init__(self, field: Field, fleet: Fleet, load: Load, rounds_seed: int) -> None:
        self.rounds: list[Round] = []
        self.drills: list[bool] = []
        self._field = field
        self._fleet = fleet
        self._load = load
        self._random = random.Random(rounds_seed)  # noqa: S311 - the order of faults, not a secret
        self._deck: list[Mishap] = []

    async def run(self, minutes: float, note: Callable[[float], None]) -> None:
        """Rounds until the time is over; `note` gets the minutes so far after each."""
        begun = last_drill = time.monotonic()
        while time.monotonic() - begun < minutes * 60:
            await self._round()
            if time.monotonic() - last_drill > DRILL_SECONDS:
                last_drill = time.monotonic()
                self.drills.append(await drill(self._field))
                say(f"      recovery into an empty database: {'as the oracle' if self.drills[-1] else 'DIFFERENT'}")
            note((time.monotonic() - begun) / 60)

    async def _round(self) -> None:
        begun, mishap = time.monotonic(), self._drawn()
        self._load.resume()
        await anyio.sleep(LOAD_SECONDS)
        outcome = await self._done(mishap)
        await self._fleet.complete()
        over = time.monotonic()
        await anyio.sleep(max(0.0, ROUND_SECONDS - (over - begun) - LOAD_SECONDS))
        await self._load.pause()
        if await self._brought_back():
            outcome = "broken"
        paused = time.monotonic()
        compared = await self._until_whole(mishap)
        seconds = time.monotonic() - paused
        outcome = outcome if compared.whole else "failed"
        seen = [psutil.Process(program.pid) for program in self._fleet.programs]
        memory = [one.memory_info().rss // MEGABYTE for one in seen]
        made = Round(mishap.name, outcome, compared, seconds, memory, [one.num_fds() for one in seen])
        self.rounds.append(made)
        say(line_of(len(self.rounds), made))
        if outcome == "failed":
            say("\n".join(f"      {program.pid}: {program.log[-2000:]}" for program in self._fleet.programs))
            say("\n".join(f"      {server.url}: {server.log}" for server in self._field.servers))

    async def _done(self, mishap: Mishap) -> str:
        """Do it: passed, as far as it goes, or failed, void or broken."""
        try:
            return "passed" if await self._field.do(mishap, self._fleet.programs, self._load) else "void"
        except (HarnessError, EmbeddedError) as error:
            say(f"      the soak, not the program: {error}")
            return "broken"
        except AWAY as error:
            say(f"      {mishap.name}: {error}")
            return "failed"
        finally:
            await self._field.heal()
            self._load.resume()

    async def _brought_back(self) -> bool:
        """Start the servers that do not run, of which each should; whether there was one.

        Raises:
            HarnessError, EmbeddedError: One of them does not start.
        """
        gone = [server for server in self._field.servers if not server.running]
        for server in gone:
            say(f"      the soak, not the program: {server.url} did not run any more: {server.log}")
            await server.start()
        return bool(gone)

    async def _until_whole(self, mishap: Mishap) -> Comparison:
        try:
            await drained(self._field.stores.database_url, WHOLE_SECONDS)
            if mishap.to_repair:
                await self._repair()
        except TimeoutError as error:
            say(f"      {error}")
            return await self._look()
        return (await self._field.oracle.until_whole(WHOLE_SECONDS))[0]

    async def _repair(self) -> None:
        ended = await run(self._field.stores, "verify", "--repair", "--yes", "--json", seconds=WHOLE_SECONDS)
        if ended.status:
            say(f"      verify --repair: {ended.output[-300:]}")
        await drained(self._field.stores.database_url, WHOLE_SECONDS)

    async def _look(self) -> Comparison:
        """A store that cannot be looked at may have lost anything."""
        oracle = self._field.oracle
        try:
            return await oracle.compare()
        except AWAY as error:
            return Comparison(oracle.rows_written, lost=[f"no look was possible: {error}"])

    def _drawn(self) -> Mishap:
        """Each fault once, in a random order, before any comes again."""
        if not self._deck:
            self._deck = self._random.sample(MISHAPS, len(MISHAPS))
        return self._deck.pop()


async def drill(field: Field) -> bool:
    """Whether a recovery into an empty database brings what the oracle knows."""
    try:
        return await _recovered(field)
    except AWAY as error:
        say(f"      {error}")
        return False


async def _recovered(field: Field) -> bool:
    async with postgres.template_database(field.postgres.url, postgres.install_local_store) as url:
        scratch = Stores(url, field.stores.neo4j_uri, field.stores.home)
        ended = await run(scratch, "recover", "--yes", "--json", seconds=WHOLE_SECONDS)
        async with plain_client(url) as client:
            found = {row["id"]: row["content"] for row in await client.fetch("SELECT id, content FROM memories")}
    async with plain_client(field.stores.database_url) as client:
        wanted = {row["id"]: row["content"] for row in await client.fetch("SELECT id, content FROM memories")}
    return ended.status == 0 and found == wanted


@asynccontextmanager
async def open_soak(seed: int) -> AsyncIterator[tuple[Soak, Oracle, Load, str]]:
    """Servers, programs and load, running."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        home = stack.enter_context(claimed_home(cache_folder(os.environ)))
        folder = Path(stack.enter_context(TemporaryDirectory()))
        Home.at(home).make()
        local, remote = await enter(own_postgres(home)), await enter(own_neo4j(home))
        url = await enter(postgres.template_database(local.url, postgres.install_local_store))
        proxies = await enter(open_proxy(url)), await enter(open_proxy(remote.url))
        direct = Stores(url, remote.url, folder).with_settings(DIONYSUS_VERIFY_SECONDS=CHECK_SECONDS)
        oracle = await enter(open_oracle(url, remote.url))
        fleet = Fleet(direct.through(local=proxies[0], remote=proxies[1]))
        stack.push_async_callback(fleet.close)
        await fleet.complete()
        field = Field(direct, oracle, (local, remote), proxies, random.Random(seed))  # noqa: S311 - no secret
        load = Load(oracle, random.Random(seed + 1))  # noqa: S311 - no secret
        where = await machine(url, remote.url)
        yield Soak(field, fleet, load, seed + 2), oracle, load, where


async def soaked(minutes: float, seed: int) -> bool:
    """Run it, and write down what it came to; whether nothing was lost."""
    async with open_soak(seed) as (soak, oracle, load, where):

        def note(passed: float) -> None:
            write_down(summed_up(passed, soak.rounds, soak.drills, oracle.rows_written, seed), where)

        with first_error():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(load.run)
                await soak.run(minutes, note)
                tasks.cancel_scope.cancel()
    return all(one.outcome != "failed" for one in soak.rounds) and all(soak.drills)


def summed_up(
    minutes: float, rounds: Sequence[Round], drills: Sequence[bool], rows: int, seed: int
) -> dict[str, float | str]:
    """What soak.json holds: value by name."""
    outcomes = [one.outcome for one in rounds]
    memory = [max(one.memory) for one in rounds]
    third = max(1, len(rounds) // 3)
    return {
        "minutes": round(minutes, 1),
        "rounds": len(rounds),
        "rounds_passed": outcomes.count("passed"),
        "rounds_failed": outcomes.count("failed"),
        "rounds_void": outcomes.count("void"),
        "rounds_broken": outcomes.count("broken"),
        "different_faults": len({one.fault for one in rounds if one.outcome == "passed"}),
        "rows_written": rows,
        "rows_lost": sum(one.compared.rows_lost for one in rounds),
        "rows_wrong": sum(one.compared.rows_wrong for one in rounds),
        "seconds_until_whole_at_most": round(max(one.seconds for one in rounds), 1),
        "drills": len(drills),
        "drills_failed": drills.count(False),
        "memory_of_a_program_in_the_first_third_at_most_mb": max(memory[:third]),
        "memory_of_a_program_in_the_last_third_at_most_mb": max(memory[-third:]),
        "open_files_of_a_program_at_most": max(max(one.files) for one in rounds),
        "seed": str(seed),
    }


def line_of(number: int, made: Round) -> str:
    """A round in a line."""
    compared = made.compared
    found = [*compared.lost, *compared.wrong]
    return (
        f"{number:4}  {made.outcome:6}  {made.fault:44}  written {compared.rows_written:7,}  lost {compared.rows_lost}"
        f"  wrong {compared.rows_wrong}  whole after {made.seconds:5.1f} s  MB {made.memory}  files {made.files}"
        + "".join(f"\n      {what}" for what in found[:10])
    )


def write_down(summary: dict[str, float | str], where: str) -> None:
    """soak.json, and RESULTS.md anew, which says on what the scenarios ran, where it stood before."""
    (FOLDER / "soak.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    results, page = FOLDER / "results.json", FOLDER / "RESULTS.md"
    entries = json.loads(results.read_text(encoding="utf-8")) if results.exists() else []
    before = re.search(r"^Last run (.*)\.$", page.read_text(encoding="utf-8"), re.MULTILINE) if page.exists() else None
    page.write_text(markdown(entries, before[1] if before else where, summary), encoding="utf-8")


def say(words: str) -> None:
    """For whoever watches."""
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def main(arguments: Sequence[str]) -> int:
    """The exit code. A seed may follow the minutes."""
    minutes = float(arguments[0]) if arguments else 30.0
    seed = int(arguments[1]) if len(arguments) > 1 else secrets.randbelow(2**32)
    say(f"{minutes:g} minutes, seed {seed}")
    return 0 if anyio.run(soaked, minutes, seed) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
