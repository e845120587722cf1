"""Holding, sharing and losing a real embedded PostgreSQL; Neo4j goes the same ways through the same keeper."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import anyio
import asyncpg
import pytest

from dionysus_sync_mcp.domain.errors import EmbeddedError
from dionysus_sync_mcp.embedded import services
from dionysus_sync_mcp.embedded.home import Home
from dionysus_sync_mcp.embedded.keeper import GRACE_SECONDS
from dionysus_sync_mcp.embedded.services import Lease, Progress, acquire, default_home, down, status
from tests.embedded.watching import HOLDER, ROOT, Holder, holding, of, processes_of, service, until

ONLY_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as other users")
NOBODY = 65534
GONE_WITHIN = GRACE_SECONDS + 10.0


async def lease_of(home: Path, told: list[Progress] | None = None) -> Lease:
    """Hold PostgreSQL in this process."""
    with anyio.fail_after(60):
        return await acquire(home, frozenset({"postgres"}), "5.26.31", ([] if told is None else told).append)


async def answers(url: str | None) -> bool:
    """Whether a PostgreSQL of the packaged version takes connections there."""
    assert url is not None
    connection = await asyncpg.connect(url, timeout=5)
    major = connection.get_server_version().major
    await connection.close()
    return major == 18


def mode(path: Path) -> int:
    """The permissions of a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)


def environment_of(pid: int | None) -> bytes:
    """The environment that a process was started with."""
    return Path(f"/proc/{pid}/environ").read_bytes()


def owner(pid: int | None) -> int:
    """The user that a process runs as."""
    return Path(f"/proc/{pid}").stat().st_uid


def permit(folder: Path, permissions: int, user: int = 0) -> None:
    """Set the permissions of a folder and give it to a user."""
    if user:
        os.chown(folder, user, user)
    folder.chmod(permissions)


def plain_python() -> list[str]:
    """A command that runs this Python environment as a user without rights."""
    places = os.pathsep.join([str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))])
    drop = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", f"PYTHONPATH={places}"]
    probe = "import asyncpg, dionysus_sync_mcp.embedded.keeper, os, sys; os.execv(sys.executable, ['python', '-V'])"
    said = ""
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        tried = subprocess.run([*drop, python, "-c", probe], cwd="/", capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            return [*drop, python]
        said = tried.stderr.strip()[-200:]
    pytest.skip(f"another user cannot use this Python environment: {said}")


def postmasters(home: Path) -> list[str]:
    """The command lines of the PostgreSQL servers of this home folder."""
    return [line for line in processes_of(home) if "/postgres -D" in line]


async def test_services_start_when_held_and_are_shared(home: Path) -> None:
    """The first hold starts the server, a second one gets the same, and the status says who holds it."""
    told: list[Progress] = []
    first = await lease_of(home, told)
    assert await answers(first.database_url)
    assert first.neo4j_uri is None
    assert [progress.phase for progress in told][-2:] == ["starting", "ready"]

    second = await lease_of(home)
    assert second.database_url == first.database_url
    seen = await service(home, "postgres")
    assert (seen.running, seen.phase, seen.url) == (True, "ready", first.database_url)
    assert seen.holders == [os.getpid(), os.getpid()]
    assert seen.disk_bytes > 20_000_000
    assert len(postmasters(home)) == 1
    first.release()
    second.release()


async def test_letting_go_takes_no_time_and_may_be_repeated(home: Path) -> None:
    """A process that is about to be killed has time for it: the rest is the keeper's."""
    lease = await lease_of(home)
    began = time.perf_counter()
    lease.release()
    lease.release()
    assert time.perf_counter() - began < 0.01
    assert (await service(home, "postgres")).holders == []


async def test_many_processes_that_start_at_once_get_one_instance(home: Path) -> None:
    """Four processes race on an empty home folder: one server, one keeper, one address."""
    found: list[Holder] = []
    release = anyio.Event()

    async def hold() -> None:
        async with holding(home, "postgres") as holder:
            found.append(holder)
            await release.wait()

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(hold)
        await until(lambda: len(found) == 4, seconds=60)
        seen = await service(home, "postgres")
        assert len({holder.database_url for holder in found}) == 1
        assert sorted(holder.process.pid for holder in found) == seen.holders
        assert len(postmasters(home)) == 1
        release.set()


async def test_a_killed_holder_is_noticed(home: Path) -> None:
    """It cannot take its file away by itself; the keeper sees that nobody is there, and all ends."""
    async with holding(home, "postgres") as holder:
        assert await answers(holder.database_url)
        assert list((home / "holders").glob("*.json")) != []
        holder.process.kill()
        await holder.process.wait()
    await until(lambda: processes_of(home) == [], seconds=GONE_WITHIN)
    assert list((home / "holders").iterdir()) == []
    assert (await status(home)).keeper_pid is None


async def test_a_killed_keeper_is_replaced_and_the_server_goes_on(home: Path) -> None:
    """kill -9 of the keeper does not touch the server; the next hold brings a keeper that takes it over and ends it."""
    lease = await lease_of(home)
    before = await status(home)
    assert before.keeper_pid is not None
    os.kill(before.keeper_pid, signal.SIGKILL)
    await until(lambda: len(processes_of(home)) == len(postmasters(home)))
    assert (await service(home, "postgres")).running
    assert await answers(lease.database_url)

    second = await lease_of(home)
    after = await status(home)
    assert after.keeper_pid not in {None, before.keeper_pid}
    assert of(after, "postgres").pid == of(before, "postgres").pid
    lease.release()
    second.release()
    await until(lambda: processes_of(home) == [], seconds=GONE_WITHIN)


async def test_down_stops_what_a_killed_keeper_left(home: Path) -> None:
    """Without a keeper nothing else would end the server."""
    lease = await lease_of(home)
    keeper = (await status(home)).keeper_pid
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)
    await until(lambda: len(processes_of(home)) == len(postmasters(home)) == 1)
    assert (await down(home)).stopped == ["postgres"]
    assert processes_of(home) == []
    lease.release()


async def test_down_stops_servers_that_are_held(home: Path) -> None:
    """It says what it stopped; a lease that was held is harmless afterwards, and a new one starts all again."""
    lease = await lease_of(home)
    seen = await down(home)
    assert seen.stopped == ["postgres"]
    assert not of(seen, "postgres").running
    assert processes_of(home) == []
    assert (await down(home)).stopped == []
    lease.release()
    again = await lease_of(home)
    assert await answers(again.database_url)
    again.release()


async def test_up_outlives_the_process_that_called_it(home: Path) -> None:
    """The process ends, the grace period passes, the server is still there; `down` ends it."""
    async with holding(home, "postgres", "up") as holder:
        url = holder.database_url
    assert holder.process.returncode == 0
    await anyio.sleep(GRACE_SECONDS + 1)  # that time passes is the very thing tested
    seen = await service(home, "postgres")
    assert (seen.running, seen.persistent, seen.holders) == (True, True, [])
    assert await answers(url)
    assert (await down(home)).stopped == ["postgres"]


async def test_a_server_that_dies_is_started_again_for_its_holders(home: Path) -> None:
    """kill -9 of the postmaster: the same address answers again without anybody asking."""
    lease = await lease_of(home)
    before = Home.at(home).state().instances["postgres"].process
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)

    await until(lambda: Home.at(home).state().instances["postgres"].process not in {None, before})
    seen = await service(home, "postgres")
    assert seen.running
    assert seen.url == lease.database_url
    assert await answers(lease.database_url)
    lease.release()


async def test_a_start_that_fails_shows_the_last_lines_of_the_log(home: Path) -> None:
    """A damaged configuration: the error ends with what PostgreSQL said; once it is repaired, all is well."""
    (await lease_of(home)).release()
    await down(home)
    settings = home / "data" / "postgres-18" / "pgdata" / "postgresql.auto.conf"
    kept = settings.read_bytes()
    settings.write_text("max_connections = 'a lot'\n", encoding="utf-8")
    with pytest.raises(EmbeddedError, match=r"ended while it was starting; its log ends with:\n") as caught:
        await lease_of(home)
    assert 'invalid value for parameter "max_connections": "a lot"' in caught.value.what
    assert "server.log" in caught.value.hint
    assert (await service(home, "postgres")).phase == "failed"

    settings.write_bytes(kept)
    lease = await lease_of(home)
    assert await answers(lease.database_url)
    lease.release()


@pytest.mark.parametrize("place", [".", "data", "holders"])
async def test_a_home_that_cannot_be_written_is_said(open_folder: Path, place: str) -> None:
    """With a file in a folder's place the error names the home folder and the setting."""
    home = open_folder / "home"
    target = home / place
    target.parent.mkdir(exist_ok=True)
    target.write_text("in the way", encoding="utf-8")
    with pytest.raises(EmbeddedError, match="cannot write in") as caught:
        await lease_of(home)
    assert str(home) in caught.value.what
    assert "DIONYSUS_HOME" in caught.value.hint
    assert processes_of(home) == []


async def test_a_data_folder_that_cannot_be_written_is_said(home: Path) -> None:
    """The keeper cannot make the cluster's folder, and the holder that waits hears why."""
    (home / "data").mkdir()
    (home / "data" / "postgres-18").write_text("in the way", encoding="utf-8")
    with pytest.raises(EmbeddedError, match=r"postgres-18: File exists"):
        await lease_of(home)
    assert list((home / "holders").iterdir()) == []


async def test_a_folder_without_write_permission_is_said(open_folder: Path) -> None:
    """As a plain user, in a folder that only its owner may write, or not even its owner."""
    home = open_folder / "home"
    python = plain_python() if os.geteuid() == 0 else [sys.executable]
    permit(open_folder, 0o555)
    tried = await anyio.run_process([*python, "-m", HOLDER, str(home), "5.26.31", "postgres"], check=False, cwd=ROOT)
    permit(open_folder, 0o755)
    assert tried.returncode == 1
    assert f"cannot write in {home} (Permission denied)" in tried.stderr.decode()
    assert not home.exists()


async def test_what_a_killed_first_start_left_is_no_obstacle(home: Path) -> None:
    """Half a cluster beside the real place is put away, and holder files that cannot be read do not count."""
    half = home / "data" / "postgres-18" / "pgdata.new-1"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n", encoding="utf-8")
    (home / "holders").mkdir()
    (home / "holders" / "1-x-0.json").write_text('{"process": {"pi', encoding="utf-8")
    (home / "state.json").write_text('{"keeper": {"pi', encoding="utf-8")
    lease = await lease_of(home)
    assert await answers(lease.database_url)
    assert not half.exists()
    lease.release()


async def test_a_long_path_does_not_keep_the_socket_from_working(open_folder: Path) -> None:
    """Sockets have short names only: it goes to a folder in the system's temporary one, closed to others."""
    home = open_folder / ("long" * 20) / ("er" * 20)
    lease = await lease_of(home)
    try:
        assert await answers(lease.database_url)
        assert lease.database_url is not None
        sockets = Path(lease.database_url.partition("host=")[2].partition("&")[0])
        assert home not in sockets.parents
        assert mode(sockets) == 0o700
    finally:
        await down(home)
        lease.release()
    shutil.rmtree(sockets)


async def test_nobody_else_can_open_the_data_or_the_socket(home: Path) -> None:
    """There is no password, so the folders are what keeps other users out."""
    lease = await lease_of(home)
    folder = home / "data" / "postgres-18"
    assert mode(folder) == 0o700
    assert (folder / ".s.PGSQL.5432").is_socket()
    lease.release()


async def test_the_keeper_carries_no_secrets(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what would change the servers: it outlives who started it."""
    monkeypatch.setenv("NEO4J_PASSWORD", "a secret")
    monkeypatch.setenv("PGPORT", "1")
    lease = await lease_of(home)
    seen = await status(home)
    for pid in (seen.keeper_pid, of(seen, "postgres").pid):
        environment = environment_of(pid)
        assert b"PATH=" in environment
        assert b"a secret" not in environment
        assert b"PGPORT" not in environment
    assert await answers(lease.database_url)
    lease.release()


async def test_status_starts_nothing(open_folder: Path) -> None:
    """A home folder that is not there is shown as such and is not made."""
    home = open_folder / "home"
    seen = await status(home)
    assert seen.keeper_pid is None
    assert [(each.service, each.running) for each in seen.services] == [("postgres", False)]
    assert not home.exists()


async def test_a_cancelled_wait_lets_go(home: Path) -> None:
    """Who stops waiting holds nothing any more, and what was being started is stopped."""

    def cancel_at_start(said: Progress) -> None:
        if said.phase == "starting":
            scope.cancel()

    with anyio.CancelScope() as scope:
        await acquire(home, frozenset({"postgres"}), "5.26.31", cancel_at_start)
    assert scope.cancelled_caught
    assert list((home / "holders").iterdir()) == []


async def test_down_ends_the_wait_of_others(home: Path) -> None:
    """Who waits for a service that is stopped meanwhile hears it instead of waiting on."""
    starting = anyio.Event()

    async def wait() -> None:
        with pytest.raises(EmbeddedError, match="stopped by `embedded down`"):
            await acquire(home, frozenset({"postgres"}), "5.26.31", lambda _said: starting.set())

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await starting.wait()
            await down(home)


@ONLY_ROOT
async def test_root_shares_no_more_than_the_way_to_the_server(home: Path) -> None:
    """As root PostgreSQL runs as an account of its own, which may pass the home folder but not list it."""
    permit(home, 0o700)
    lease = await lease_of(home)
    assert owner((await service(home, "postgres")).pid) not in {0, NOBODY}
    assert mode(home) == 0o701
    lease.release()


@ONLY_ROOT
async def test_root_is_told_when_the_server_cannot_reach_its_folder(open_folder: Path, home: Path) -> None:
    """A folder above the home that is closed to others is not opened but named."""
    permit(open_folder, 0o700)
    with pytest.raises(EmbeddedError, match=f"may not enter {open_folder}") as caught:
        await lease_of(home)
    assert "DIONYSUS_HOME" in caught.value.hint
    assert mode(open_folder) == 0o700


@ONLY_ROOT
async def test_it_runs_for_a_plain_user_too(home: Path) -> None:
    """Not as root: the same services as the user itself, in a home folder of the user's own."""
    python = plain_python()
    permit(home, 0o700, NOBODY)
    async with holding(home, "postgres", python=python) as holder:
        assert holder.uid == NOBODY
        assert await answers(holder.database_url)
        assert owner((await service(home, "postgres")).pid) == NOBODY


def test_the_default_home_of_root_is_outside_its_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain user has it in the folder of user data."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_home() == Path("/var/lib/dionysus-sync-mcp")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/somewhere/data")
    if sys.platform == "linux":
        assert default_home() == Path("/somewhere/data/dionysus-sync-mcp")


async def test_without_the_extra_the_error_names_it(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way in says how to install it, and nothing is made."""
    monkeypatch.setattr(services, "NEEDED", (*services.NEEDED, "a_package_that_is_not_there"))
    for way in (lease_of, down):
        with pytest.raises(EmbeddedError, match="a_package_that_is_not_there") as caught:
            await way(open_folder / "home")
        assert "pip install 'dionysus-sync-mcp[embedded]'" in str(caught.value)
    with pytest.raises(EmbeddedError):
        default_home()
    assert not (open_folder / "home").exists()


def test_the_module_can_be_imported_without_the_extra() -> None:
    """The rest of the program imports it whatever is installed."""
    block = "import sys; sys.modules.update(dict.fromkeys({!r}.split()))"
    code = f"{block.format(' '.join(services.NEEDED))}; import dionysus_sync_mcp.embedded.services"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT, timeout=30)
