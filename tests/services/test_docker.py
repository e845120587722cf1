"""Whether a Docker daemon is there is found out quickly and quietly."""

import socket
from pathlib import Path

from tests.services.docker import daemon_answers


def test_a_listening_socket_counts_as_a_daemon(tmp_path: Path) -> None:
    """The place is the one that `DOCKER_HOST` names."""
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert daemon_answers({"DOCKER_HOST": f"unix://{path}"})
    assert not daemon_answers({"DOCKER_HOST": f"unix://{path}"})


def test_a_daemon_may_be_reached_over_tcp() -> None:
    """A closed port is no daemon, and no error."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        host = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        assert daemon_answers({"DOCKER_HOST": host})
    assert not daemon_answers({"DOCKER_HOST": host})
