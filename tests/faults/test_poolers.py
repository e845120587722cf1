"""Installed by a role that owns its table and is no superuser, and reached through a connection pooler."""

import os
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, urlsplit

import anyio
import asyncpg
import pytest

from dionysus_sync_mcp.domain.errors import AccessRefused
from dionysus_sync_mcp.embedded.neo4j_server import any_free_port
from dionysus_sync_mcp.engine.ports.shared import Scope
from tests.faults.oracle import Oracle, open_oracle
from tests.faults.plugin import Scenario
from tests.faults.program import Stores, run
from tests.integration.roles import role_of
from tests.integration.stores import INSERT, Client, plain_client, uid
from tests.services import postgres
from tests.services.local_store import running
from tests.services.waiting import until

ROWS = 20
SOON = 60.0
TABLE = (
    "CREATE TABLE memories (id uuid PRIMARY KEY, content text, memory_type text, importance real, source_project text,"
    " session_id uuid, tags text[], created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now())"
)
# What it takes to make a schema of one's own in a database that is somebody else's.
OWNER = (
    f"{TABLE}; ALTER TABLE memories OWNER TO {{role}};"
    " GRANT CREATE ON DATABASE {database} TO {role}; GRANT CREATE ON SCHEMA public TO {role}"
)
WRITER = "GRANT SELECT, INSERT, UPDATE, DELETE ON memories TO {role}"
NOT_SUPERUSER = (
    "SELECT NOT rolsuper AND NOT rolcreaterole AND NOT rolcreatedb FROM pg_roles WHERE rolname = current_user"
)
IGNORED = (
    "search_path, extra_float_digits, intervalstyle, bytea_output, statement_timeout,"
    " idle_in_transaction_session_timeout, idle_session_timeout, lock_timeout, datestyle, options"
)


@pytest.mark.scenario(45, "installed by a role that is no superuser: it owns the table and may create in its schema")
@pytest.mark.promise("P1")
@pytest.mark.promise("P5")
async def test_45_a_role_that_owns_only_the_table(database_url: str, empty_neo4j: str, scenario: Scenario) -> None:
    """Adopted, captured whoever writes, pushed, compared, repaired, recovered: all without a superuser."""
    name = postgres_name(database_url)
    async with (
        plain_client(database_url) as admin,
        role_of(admin, database_url, OWNER.replace("{database}", f'"{name}"')) as url,
        open_oracle(url, empty_neo4j) as oracle,
        plain_client(url) as owner,
        running(url, empty_neo4j) as program,
    ):
        plain = bool(await owner.fetchval(NOT_SUPERUSER))
        await owner.execute(INSERT, uid(99), "was there before")
        oracle.expect(uid(99), "was there before")
        assert not (await program.init(dry_run=False)).dry_run
        await write(oracle)
        async with another_role(admin, owner, database_url) as agent:
            await agent.execute(INSERT, uid(98), "written by another role")
        oracle.expect(uid(98), "written by another role")
        assert (await program.sync(embed=False, verify=True)).result == "success"
        await lose_and_bring_back(owner, oracle)
        await program.guard.guard_once()
        assert (await program.verify(repair=True, dry_run=False)).result == "clean"
        await owner.execute("ALTER TABLE memories DISABLE TRIGGER USER; DELETE FROM memories")
        await program.guard.guard_once()
        plan = await program.plan_recovery(Scope())
        await program.run_recovery(plan.plan_id)
        status = await program.status()
        assert status.local is not None
        assert status.local.capture_installed
        await program.sync(embed=False)
        compared, seconds = await oracle.until_whole()
    scenario.note(engaged=plain, compared=compared, seconds=seconds)


def postgres_name(url: str) -> str:
    """Of the database."""
    return urlsplit(url).path[1:]


async def write(oracle: Oracle) -> None:
    """Rows, changes and deletes."""
    for number in range(1, ROWS + 1):
        await oracle.insert(uid(number), f"row {number}")
        if number % 2:
            await oracle.update(uid(number), f"row {number}, changed")
        if number % 5 == 0:
            await oracle.delete(uid(number))


async def lose_and_bring_back(owner: Client, oracle: Oracle) -> None:
    """A row goes behind the capture's back, which the oracle does not count as a delete."""
    await owner.execute("ALTER TABLE memories DISABLE TRIGGER USER")
    await owner.execute("DELETE FROM memories WHERE id = $1", oracle.live[0])


@asynccontextmanager
async def another_role(admin: Client, owner: Client, url: str) -> AsyncIterator[Client]:
    """A connection of a role that the owner lets write, and that knows nothing of the bookkeeping."""
    role = "writer_" + re.sub(r"\W", "", postgres_name(url))
    await admin.execute(f"CREATE ROLE {role} LOGIN")
    await owner.execute(WRITER.format(role=role))
    try:
        async with plain_client(re.sub(r"//[^@/]*@", f"//{role}@", url)) as agent:
            yield agent
    finally:
        await owner.execute(f"REVOKE ALL ON memories FROM {role}")
        await admin.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


CONFIGURATION = """
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
logfile = {folder}/pgbouncer.log
ignore_startup_parameters = {ignored}
"""


def configured(database_url: str, folder: Path, listen: int, ignored: str) -> Path:
    """The configuration of a pooler before that database's server, in a file."""
    parts = urlsplit(database_url)
    asked = parse_qs(parts.query)
    host = asked["host"][0] if "host" in asked else parts.hostname
    port = parts.port or asked.get("port", ["5432"])[0]
    file = folder / "pgbouncer.ini"
    text = CONFIGURATION.format(
        host=host, port=port, user=parts.username, listen=listen, folder=folder, ignored=ignored
    )
    file.write_text(text, encoding="utf-8")
    folder.chmod(0o777)  # it refuses to run as root, and so runs as another user
    return file


def the_servers_user(database_url: str) -> int | str:
    """Who may use the server's socket, where it has one."""
    asked = parse_qs(urlsplit(database_url).query)
    return Path(asked["host"][0]).stat().st_uid if "host" in asked else "nobody"


@asynccontextmanager
async def pooler(stores: Stores, ignored: str) -> AsyncIterator[str]:
    """A PgBouncer in transaction mode, yielded by the URL of the store's database behind it.

    Args:
        ignored: The start-up parameters that it passes over; it refuses a client that sends others.
    """
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        pytest.skip("there is no pgbouncer on the PATH")
    with TemporaryDirectory(prefix="pooler-") as name:
        folder, listen = Path(name), any_free_port()
        file = configured(stores.database_url, folder, listen, ignored)
        account = the_servers_user(stores.database_url) if os.geteuid() == 0 else None
        async with await anyio.open_process([program, "-q", str(file)], user=account) as process:
            name = postgres_name(stores.database_url)
            url = f"postgresql://{urlsplit(stores.database_url).username}:@127.0.0.1:{listen}/{name}"
            try:
                await until(answering(url), what="the pooler answers", seconds=SOON)
                yield url
            finally:
                process.kill()


def answering(url: str) -> Callable[[], Awaitable[bool]]:
    """Whether a client of the simple protocol gets an answer."""

    async def ask() -> bool:
        return await postgres.answers(url)

    return ask


@pytest.mark.scenario(45, "DATABASE_URL leads to a PgBouncer in transaction mode; a user writes through it")
@pytest.mark.promise("P1")
@pytest.mark.promise("P9")
@pytest.mark.parametrize("ignored", ["extra_float_digits", IGNORED], ids=["as it is installed", "set to let all pass"])
async def test_45_a_pooler_in_transaction_mode(
    stores: Stores, oracle: Oracle, scenario: Scenario, ignored: str
) -> None:
    """The program says plainly what is wrong and writes nothing; what the user writes through it is captured."""
    async with pooler(stores, ignored) as url, connected(url) as user:
        behind = await is_pooled(user)
        ended = await run(replace(stores, database_url=url), "status", "--json")
        assert "connection pooler" in ended.output
        assert "direct" in ended.output
        async with running(url, stores.neo4j_uri) as program:
            report = await program.status()
            assert "connection pooler" in report.warnings[0]
            with pytest.raises(AccessRefused, match="connection pooler"):
                await program.pusher.push_once()
        for number in range(1, ROWS + 1):
            async with user.transaction():
                await user.execute(INSERT, uid(number), f"through it {number}")
            oracle.expect(uid(number), f"through it {number}")
        async with running(stores.database_url, stores.neo4j_uri) as program:
            assert (await program.sync(embed=False)).result == "success"
        compared, seconds = await oracle.until_whole()
    scenario.note(engaged=behind, compared=compared, seconds=seconds)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Client]:
    """A user's connection, set up as PgBouncer's manual says."""
    client = await asyncpg.connect(url, statement_cache_size=0, timeout=10)
    try:
        yield client
    finally:
        await client.close(timeout=5)


async def is_pooled(user: Client) -> bool:
    """Whether the server process is another one than the one that this client was greeted by."""
    return bool(await user.fetchval("SELECT pg_backend_pid()") != user.get_server_pid())
