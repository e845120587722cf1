"""A Maven repository over HTTP that answers as a test tells it to, and remembers what it was asked."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar, Literal

from dionysus_sync_mcp.embedded.artifacts import Artifact

Plan = Literal["whole", "cut", "wrong", "no ranges", "missing", "broken"]


class Repository:
    """Files by path; for each a plan for each request to come, the last of which stays."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[tuple[str, str]] = []
        self._files: dict[str, bytes] = {}
        self._plans: dict[str, list[Plan]] = {}

    def add(self, name: str, content: bytes, *plans: Plan) -> Artifact:
        """Serve an artifact of that name."""
        artifact = artifact_of(name, content)
        path = f"/{artifact.path}"
        self._files[path] = content
        self._plans[path] = list(plans or ("whole",))
        return artifact

    def change(self, artifact: Artifact, *plans: Plan) -> None:
        """Answer differently from now on."""
        self._plans[f"/{artifact.path}"] = list(plans)

    def ranges(self, artifact: Artifact) -> list[str]:
        """The Range header of each request for this artifact, `""` where there was none."""
        return [asked for path, asked in self.asked if path == f"/{artifact.path}"]

    def answer(self, path: str, asked: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; a body shorter than its Content-Length is cut off."""
        self.asked.append((path, asked))
        plans = self._plans.get(path, ["missing"])
        plan = plans.pop(0) if len(plans) > 1 else plans[0]
        if plan in {"missing", "broken"}:
            return (404 if plan == "missing" else 503), {"Content-Length": "0"}, b""
        content = self._files[path]
        start = int(asked.removeprefix("bytes=").removesuffix("-") or 0) if plan != "no ranges" else 0
        body = bytes(len(content)) if plan == "wrong" else content
        rest = body[start:]
        headers = {"Content-Length": str(len(rest))}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return (206 if start else 200), headers, rest[: len(rest) // 2] if plan == "cut" else rest


class _Handler(BaseHTTPRequestHandler):
    repository: ClassVar[Repository]

    def do_GET(self) -> None:
        status, headers, body = self.repository.answer(self.path, self.headers.get("Range", ""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the signature of http.server
        """Say nothing: stderr is for failures."""


@contextmanager
def served() -> Iterator[Repository]:
    """A repository that listens on loopback as long as the context lasts."""
    repository = Repository()
    handler = type("Handler", (_Handler,), {"repository": repository})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        repository.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield repository
        server.shutdown()
        thread.join()


def artifact_of(name: str, content: bytes) -> Artifact:
    """The lock file's entry for this content."""
    return Artifact(f"org.example:{name}:jar:1.0", len(content), hashlib.sha256(content).hexdigest())
