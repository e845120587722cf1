"""`python -m tests.faults.client COMMAND`: a client that starts an MCP server, shakes hands, and waits to be killed."""

import json
import subprocess
import sys

from tests.server.wire import INITIALIZE


def main(command: list[str]) -> None:
    """Prints the server's pid once it has answered; its stdin and stdout are pipes of this process alone."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": INITIALIZE}
        done = {"jsonrpc": "2.0", "method": "notifications/initialized"}
        server.stdin.write(f"{json.dumps(hello)}\n")
        server.stdin.flush()
        assert server.stdout.readline()
        server.stdin.write(f"{json.dumps(done)}\n")
        server.stdin.flush()
        print(server.pid, flush=True)  # noqa: T201 - what the test waits for
        server.wait()


if __name__ == "__main__":
    main(sys.argv[1:])
