"""The server as a process: its end, its purity, and what broken clients do to it."""

import json
import signal
import sys
import time

import anyio
import pytest

from dionysus_sync_mcp.server.framing import HALF_CHARACTER, NOT_JSON, TOO_LONG
from tests.server.wire import FAKE, Wire, server_process

END_SECONDS = 1.0  # the promise is 0.1 s on a machine with nothing else to do


async def _end_of(wire: Wire) -> tuple[int, float]:
    """Exit status, and how long the end took from here on."""
    started = time.monotonic()
    with anyio.fail_after(10):
        status = await wire.process.wait()
    return status, time.monotonic() - started


@pytest.mark.promise("P10")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signal_ends_the_server_at_once(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    """With stdin still open, as Claude Code does it; what is held is let go of."""
    async with server_process(*FAKE) as wire:
        await wire.greet()
        await wire.call(1, "get_sync_status")
        assert (await wire.receive())["id"] == 1
        wire.process.send_signal(number)
        status, seconds = await _end_of(wire)
    assert status == 128 + number
    assert seconds < END_SECONDS
    assert capfd.readouterr().err.count("RELEASED") == 1


@pytest.mark.promise("P10")
async def test_end_of_stdin_ends_the_server_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """A client that goes away takes the server with it, without a trace of an error."""
    async with server_process(*FAKE) as wire:
        await wire.greet()
        await wire.stdin.aclose()
        status, seconds = await _end_of(wire)
        assert await wire.rest_of_stdout() == b""
    assert status == 0
    assert seconds < END_SECONDS
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.promise("P10")
async def test_client_that_closes_both_pipes_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    """Writing to a client that is gone is no error of the server's."""
    async with server_process(*FAKE) as wire:
        await wire.greet()
        assert wire.process.stdout is not None
        await wire.process.stdout.aclose()
        await wire.call(1, "get_sync_status")
        await wire.stdin.aclose()
        _, seconds = await _end_of(wire)
    assert seconds < END_SECONDS
    assert "Traceback" not in capfd.readouterr().err


async def test_failing_background_ends_the_process_instead_of_leaving_it_mute(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The client sees a closed pipe at once, and the log has the reason."""
    async with server_process(*FAKE, env={"FAKE_BROKEN": "1"}) as wire:
        status, _ = await _end_of(wire)
    assert status == 1
    assert "a fault of the test's" in capfd.readouterr().err


@pytest.mark.promise("P10")
async def test_broken_messages_are_answered_and_the_server_goes_on() -> None:
    """Half a surrogate pair, 20 MB, no JSON: each gets a short error, and the next call works."""
    async with server_process(*FAKE) as wire:
        await wire.greet()
        await wire.send(
            b'{"jsonrpc":"2.0","id":1,"method":"tools/call",'
            b'"params":{"name":"query_cross_project","arguments":{"query":"\\ud800"}}}'
        )
        assert await _error(wire) == (1, HALF_CHARACTER)
        await wire.call(2, "query_cross_project", {"query": "x" * 20_000_000})
        assert await _error(wire) == (2, TOO_LONG)
        await wire.send(b"hello")
        assert await _error(wire) == (None, NOT_JSON)
        await wire.send(b"")
        await wire.call(3, "get_sync_status")
        answer = await wire.receive()
        assert (answer["id"], answer["result"]["isError"]) == (3, False)


async def test_refusals_never_tear_answers_apart() -> None:
    """Refusals and results that are written at the same time stay whole lines."""
    async with server_process(*FAKE) as wire:
        await wire.greet()
        async with anyio.create_task_group() as sending:
            sending.start_soon(_send_mixed, wire)
            answers = [await wire.receive() for _ in range(100)]
    assert sorted(answer["id"] for answer in answers) == list(range(1, 101))
    assert sum("error" in answer for answer in answers) == 50


async def _send_mixed(wire: Wire) -> None:
    for i in range(1, 101, 2):
        await wire.request(i, "tools/list")
        await wire.send(b'{"jsonrpc":"2.0","id":%d,"method":"tools/list","params":{"cursor":"\\ud800"}}' % (i + 1))


async def test_half_a_message_and_the_end_is_an_end() -> None:
    """A client that dies in the midst of a message is no error of the server's."""
    async with server_process(*FAKE) as wire:
        await wire.greet()
        await wire.stdin.send(b'{"jsonrpc":"2.0","id":1,"meth')
        await wire.stdin.aclose()
        status, seconds = await _end_of(wire)
    assert status == 0
    assert seconds < END_SECONDS


@pytest.mark.promise("P10")
async def test_stray_output_misses_the_wire(capfd: pytest.CaptureFixture[str]) -> None:
    """What a library or a child prints goes to stderr; stdout carries frames only."""
    printing = (
        "import os, subprocess, tests.server.fake as fake\n"
        "async def status(self, timeout=1.5):\n"
        "    print('stray print', flush=True)\n"
        "    os.write(1, b'stray write\\n')\n"
        "    subprocess.run(['echo', 'stray child'])\n"
        "    assert os.read(0, 1) == b''\n"
        "    return await plain(self, timeout)\n"
        "plain, fake.FakeProgram.status = fake.FakeProgram.status, status\n"
        "fake.main()"
    )
    async with server_process(sys.executable, "-c", printing) as wire:
        await wire.greet()
        await wire.call(1, "get_sync_status")
        assert (await wire.receive())["result"]["isError"] is False
        await wire.stdin.aclose()
        assert await wire.rest_of_stdout() == b""
    err = capfd.readouterr().err
    assert [word for word in ("print", "write", "child") if f"stray {word}" not in err] == []


async def _error(wire: Wire) -> tuple[int | None, str]:
    answer = await wire.receive()
    assert len(json.dumps(answer)) < 400
    return answer["id"], answer["error"]["message"]
