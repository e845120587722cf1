"""Runs the program with every step that it asks of a service on record, and sends it a signal at the one that is named.

`python -m tests.faults.failpoints --trace FILE [--at STEP] [--signal KILL] [--both-active] -- ARGUMENTS`

The program itself knows nothing of this: the drivers' methods are wrapped before it starts. A step is `before:` or
`after:` and a named statement of sql/ or cypher/, a migration (by its file's name), `COPY`, `embed` (a request to
Ollama), `post` (any other POST), or `COMMIT(name)`: the commit of a transaction that ran that statement. `#n` behind it
means the n-th time, counted from 1.
"""

import argparse
import itertools
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import asyncpg
import httpx
from neo4j import AsyncResult, AsyncSession, Query
from neo4j._async.work.transaction import AsyncTransactionBase

from dionysus_sync_mcp.adapters.postgres.database import for_schema
from dionysus_sync_mcp.adapters.statements import load_cypher, load_migrations, load_sql

LINE = re.compile(r"(before|after):(\w+)(?:\((.*)\))?")
STEP = re.compile(r"(before|after):(\w+)(?:\((\w+)\))?(?:#(\d+))?")
EXECUTING = ("execute", "executemany", "fetch", "fetchrow", "fetchval", "fetchmany")
PUSH_LOCK = "try_push_lock"
# What takes a lock that keeps two pushes apart, and what gives the same without it.
LOCK_IDENTITY, IDENTITY = "lock_identity", "identity"

Method = Callable[..., Awaitable[Any]]


class Step(NamedTuple):
    """Where something may happen: `statement` is that of a COMMIT, else empty; `number` counts from 1."""

    when: str
    name: str
    statement: str
    number: int

    @classmethod
    def parse(cls, text: str) -> "Step":
        """Read a step as `str` writes it.

        Raises:
            ValueError: It is none.
        """
        found = STEP.fullmatch(text)
        if found is None:
            raise ValueError(f"no step: {text}")
        return cls(found[1], found[2], found[3] or "", int(found[4] or 1))

    def __str__(self) -> str:
        of = f"({self.statement})" if self.statement else ""
        return f"{self.when}:{self.name}{of}#{self.number}"

    def is_in(self, line: str) -> bool:
        """Whether a line of a trace is this step, whatever its number."""
        found = LINE.fullmatch(line)
        if found is None or (found[1], found[2]) != (self.when, self.name):
            return False
        return not self.statement or self.statement in (found[3] or "").split(",")


def steps_of(trace: str) -> list[Step]:
    """Every step of a run, in order, each with its number; a COMMIT by the last statement of its transaction."""
    seen: Counter[Step] = Counter()
    found = []
    for line in trace.splitlines():
        parts = LINE.fullmatch(line)
        if parts is None:
            raise ValueError(f"no line of a trace: {line}")
        steps = [Step(parts[1], parts[2], statement, 0) for statement in (parts[3] or "").split(",")]
        seen.update(steps)
        found.append(steps[-1]._replace(number=seen[steps[-1]]))
    return found


def reached(trace: str, at: str) -> bool:
    """Whether a run came to the step, and no further."""
    lines, step = trace.splitlines(), Step.parse(at)
    return bool(lines) and step.is_in(lines[-1]) and sum(step.is_in(line) for line in lines) == step.number


class Failpoints:
    """Writes each step down, and acts at one of them.

    Args:
        trace: A line is appended for each step, before anything happens at it.
        at: Where to act; `None` to record only.
        number: The signal that the process sends itself there.
    """

    def __init__(self, trace: Path, at: Step | None, number: signal.Signals) -> None:
        self._file = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._at = at
        self._signal = number
        self._seen: Counter[Step] = Counter()

    def __call__(self, when: str, name: str, statements: Sequence[str] = ()) -> None:
        of = f"({','.join(statements)})" if statements else ""
        line = f"{when}:{name}{of}"
        os.write(self._file, f"{line}\n".encode())
        if self._at is None or not self._at.is_in(line):
            return
        self._seen[self._at] += 1
        if self._seen[self._at] == self._at.number:
            os.kill(os.getpid(), self._signal)


class Transactions:
    """Which named statements ran in the transaction that is open on a connection."""

    def __init__(self) -> None:
        self._statements: WeakKeyDictionary[object, dict[str, None]] = WeakKeyDictionary()

    def begin(self, connection: object) -> None:
        """A transaction starts."""
        self._statements[connection] = {}

    def ran(self, connection: object, name: str) -> None:
        """A statement ran; last the one that ran last."""
        statements = self._statements.setdefault(connection, {})
        statements.pop(name, None)
        statements[name] = None

    def of(self, connection: object) -> list[str]:
        """The statements, each once."""
        return list(self._statements.get(connection, {}))


def wrap_postgres(at: Failpoints, names: Mapping[str, str], *, both_active: bool) -> None:
    """Every named statement, migration, COPY and COMMIT of asyncpg is a step.

    Args:
        names: Of the statements, by their text.
        both_active: Whether the lock that lets only one process push is always said to be had, and the other one, which
            would hold up the second process, is not taken.
    """
    texts = {name: text for text, name in names.items()}
    unlocked = {texts[LOCK_IDENTITY]: texts[IDENTITY]} if both_active else {}
    transactions = Transactions()

    def wrapped(sound: Method) -> Method:
        async def run(connection: Any, query: str, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - a driver's
            if query.startswith("BEGIN"):
                transactions.begin(connection)
            name, statements = names.get(query, ""), list[str]()
            if query.startswith("COMMIT"):
                name, statements = "COMMIT", transactions.of(connection)
            if not name:
                return await sound(connection, query, *arguments, **options)
            at("before", name, statements)
            result = await sound(connection, unlocked.get(query, query), *arguments, **options)
            transactions.ran(connection, name)
            at("after", name, statements)
            return True if both_active and name == PUSH_LOCK else result

        return run

    for method in EXECUTING:
        setattr(asyncpg.Connection, method, wrapped(getattr(asyncpg.Connection, method)))
    wrap_as_step(asyncpg.Connection, "copy_records_to_table", at, lambda *_: "COPY")


def wrap_neo4j(at: Failpoints, names: Mapping[str, str]) -> None:
    """Every named statement and COMMIT of the Neo4j driver is a step; a statement is over when its value is read."""
    transactions = Transactions()
    running: WeakKeyDictionary[object, str] = WeakKeyDictionary()

    def wrapped_run(sound: Method) -> Method:
        async def run(self: Any, query: str | Query, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - a driver's
            name = names.get(query.text if isinstance(query, Query) else query, "")
            if not name:
                return await sound(self, query, *arguments, **options)
            at("before", name)
            result = await sound(self, query, *arguments, **options)
            transactions.ran(self, name)
            running[result] = name
            return result

        return run

    sound_value: Method = AsyncResult.value
    sound_commit: Method = AsyncTransactionBase._commit

    async def value(self: AsyncResult, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - a driver's
        found = await sound_value(self, *arguments, **options)
        if self in running:
            at("after", running.pop(self))
        return found

    async def commit(self: AsyncTransactionBase) -> None:
        at("before", "COMMIT", transactions.of(self))
        await sound_commit(self)
        at("after", "COMMIT", transactions.of(self))

    methods: list[tuple[type, str, Method]] = [
        (AsyncSession, "run", wrapped_run(AsyncSession.run)),
        (AsyncTransactionBase, "run", wrapped_run(AsyncTransactionBase.run)),
        (AsyncTransactionBase, "_commit", commit),
        (AsyncResult, "value", value),
    ]
    for kind, name, method in methods:
        setattr(kind, name, method)


def wrap_http(at: Failpoints) -> None:
    """Every POST is a step."""

    def name_of(_client: object, request: httpx.Request) -> str:
        if request.method != "POST":
            return ""
        return "embed" if request.url.path == "/api/embed" else "post"

    wrap_as_step(httpx.AsyncClient, "send", at, name_of)


def wrap_as_step(kind: type, method: str, at: Failpoints, name_of: Callable[..., str]) -> None:
    """The method is a step where `name_of` has a name for the call (it is given the first two arguments)."""
    sound: Method = getattr(kind, method)

    async def run(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - a driver's
        name = name_of(*arguments[:2])
        if not name:
            return await sound(*arguments, **options)
        at("before", name)
        result = await sound(*arguments, **options)
        at("after", name)
        return result

    setattr(kind, method, run)


def statement_names(schema: str) -> dict[str, str]:
    """The name of each SQL statement and migration, by the text that is sent."""
    return {
        **{text: name for name, text in load_migrations()},
        **{for_schema(text, schema): name for name, text in load_sql().items()},
    }


def main(arguments: Sequence[str]) -> None:
    """Wrap the drivers and be the program."""
    own = list(itertools.takewhile(lambda word: word != "--", arguments))
    parser = argparse.ArgumentParser(prog="python -m tests.faults.failpoints")
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("--at", type=Step.parse)
    parser.add_argument("--signal", type=lambda name: signal.Signals[f"SIG{name}"], default=signal.SIGKILL)
    parser.add_argument("--both-active", action="store_true")
    given = parser.parse_args(own)
    at = Failpoints(given.trace, given.at, given.signal)
    wrap_postgres(at, statement_names(os.environ.get("DIONYSUS_SCHEMA", "public")), both_active=given.both_active)
    wrap_neo4j(at, {text: name for name, text in load_cypher().items()})
    wrap_http(at)
    sys.argv = ["dionysus-sync-mcp", *arguments[len(own) + 1 :]]
    from dionysus_sync_mcp.__main__ import main as program

    program()


if __name__ == "__main__":
    main(sys.argv[1:])
