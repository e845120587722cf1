"""Fetches the locked Maven artifacts of a Neo4j: in parallel, resumed when cut off, checked, placed when whole."""

import hashlib
import os
import shutil
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import anyio
import httpx

from dionysus_sync_mcp.domain.errors import EmbeddedError

AT_ONCE = 8
ATTEMPTS = 2  # an artifact with a wrong hash is fetched once more: a proxy may have cut or replaced it
PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)  # seconds between tries that bring nothing
HERE = "embedded Neo4j"


@dataclass(frozen=True)
class Artifact:
    """One line of a lock file. `coordinate` is `group:artifact:packaging[:classifier]:version`, `size` is in bytes."""

    coordinate: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        """The file's name, as Maven has it; unique within a lock file."""
        _, artifact, packaging, *classifier, version = self.coordinate.split(":")
        return f"{'-'.join([artifact, version, *classifier])}.{packaging}"

    @property
    def path(self) -> str:
        """Where a Maven repository has the file, relative to its root."""
        group, artifact, *_, version = self.coordinate.split(":")
        return f"{group.replace('.', '/')}/{artifact}/{version}/{self.filename}"


@dataclass(frozen=True)
class Source:
    """Where artifacts come from: a local Maven repository first, then remote ones (base URLs) in this order."""

    local: Path | None
    remotes: tuple[str, ...]


def locked(version: str) -> tuple[Artifact, ...]:
    """The artifacts of a Neo4j version that this package has a lock file for.

    Raises:
        EmbeddedError: If there is none.
    """
    file = files("dionysus_sync_mcp.embedded") / "locks" / f"neo4j-{version}.lock"
    if not file.is_file():
        raise EmbeddedError(f"no lock file for version {version}", where=HERE, hint="Use 5.26.31 or 2026.09.0.")
    return parse_lock(file.read_text(encoding="utf-8"))


def parse_lock(text: str) -> tuple[Artifact, ...]:
    """Read `coordinate sha256 size` lines; `#` starts a comment line."""
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return tuple(Artifact(coordinate, int(size), sha256) for coordinate, sha256, size in lines)


def maven_source() -> Source:
    """The repositories that jgo uses: those of the user's jgo configuration (a mirror), then its own."""
    from jgo.config import GlobalSettings
    from jgo.maven import MavenContext

    context = MavenContext()
    remotes = {**GlobalSettings.load().repositories, **context.remote_repos}
    return Source(context.repo_cache, tuple(url.rstrip("/") for url in remotes.values()))


async def fetch(
    artifacts: tuple[Artifact, ...], folder: Path, source: Source, report: Callable[[int, int], None]
) -> None:
    """Bring every artifact into `folder`; those that are there already are left alone.

    A file appears under its name only when its hash is right. What was cut off stays in the folder `partial` beside
    `folder` and is taken up by the next call. Only one process at a time may fetch into a folder.

    Args:
        artifacts: What is wanted.
        folder: Where the files go, all in one folder.
        source: Where they come from.
        report: Called with bytes there and bytes in all, often.

    Raises:
        EmbeddedError: An artifact cannot be had, or has a wrong hash twice.
        OSError: The folder cannot be written.
    """
    missing = missing_from(folder, artifacts)
    if not missing:
        return
    partial = folder.parent / "partial"
    for place in (folder, partial):
        place.mkdir(parents=True, exist_ok=True)
    async with httpx.AsyncClient(
        verify=trusted(), follow_redirects=True, timeout=httpx.Timeout(30, connect=10)
    ) as client:
        await _Fetch(client, folder, partial, source, _Meter(artifacts, missing, report)).all(missing)
    shutil.rmtree(partial)


def missing_from(folder: Path, artifacts: tuple[Artifact, ...]) -> tuple[Artifact, ...]:
    """Those that are not in `folder` whole. Being there under their name means that the hash was right."""
    return tuple(a for a in artifacts if _size(folder / a.filename) != a.size)


def trusted() -> ssl.SSLContext:
    """The certificates of httpx (SSL_CERT_FILE, SSL_CERT_DIR, certifi), of the system and of REQUESTS_CA_BUNDLE."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    bundle = os.environ.get("REQUESTS_CA_BUNDLE", "")
    if Path(bundle).is_file():
        context.load_verify_locations(bundle)
    return context


class _Meter:
    """Counts bytes by artifact, so that a discarded part is taken back."""

    def __init__(
        self, artifacts: tuple[Artifact, ...], missing: tuple[Artifact, ...], report: Callable[[int, int], None]
    ) -> None:
        self._done = {a.filename: a.size for a in artifacts} | {a.filename: 0 for a in missing}
        self._total = sum(a.size for a in artifacts)
        self._report = report

    def set(self, artifact: Artifact, done: int) -> None:
        self._done[artifact.filename] = done
        self._report(sum(self._done.values()), self._total)


class _Fetch:
    def __init__(self, client: httpx.AsyncClient, folder: Path, partial: Path, source: Source, meter: _Meter) -> None:
        self._client = client
        self._folder = folder
        self._partial = partial
        self._source = source
        self._meter = meter

    async def all(self, missing: tuple[Artifact, ...]) -> None:
        waiting = list(reversed(missing))
        failures: list[EmbeddedError | OSError] = []

        async def work() -> None:
            while waiting and not failures:
                try:
                    await self._one(waiting.pop())
                except (EmbeddedError, OSError) as error:
                    failures.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(AT_ONCE):
                tasks.start_soon(work)
        if failures:
            raise failures[0]

    async def _one(self, artifact: Artifact) -> None:
        part = self._partial / f"{artifact.filename}.part"
        if await anyio.to_thread.run_sync(self._copied, artifact, part):
            return
        for _ in range(ATTEMPTS):
            await self._fill(artifact, part)
            if await anyio.to_thread.run_sync(_sha256, part) == artifact.sha256:
                part.replace(self._folder / artifact.filename)
                return
            part.unlink()
            self._meter.set(artifact, 0)
        raise EmbeddedError(
            f"{artifact.coordinate} was fetched {ATTEMPTS} times and its SHA-256 was never the locked one",
            where=HERE,
            hint="The file was discarded. Look for a proxy or a mirror that changes files, then try again.",
        )

    def _copied(self, artifact: Artifact, part: Path) -> bool:
        """Take the file from the local Maven repository, if that has the right one."""
        if self._source.local is None:
            return False
        there = self._source.local / artifact.path
        if _size(there) != artifact.size or _sha256(there) != artifact.sha256:
            return False
        shutil.copyfile(there, part)
        part.replace(self._folder / artifact.filename)
        self._meter.set(artifact, artifact.size)
        return True

    async def _fill(self, artifact: Artifact, part: Path) -> None:
        """Append to `part` until it has the artifact's size, however often the connection breaks."""
        idle = 0
        while (have := _size(part)) < artifact.size:
            reason = await self._append(artifact, part, have)
            if _size(part) > have:
                idle = 0
                continue
            if idle == len(PAUSES):
                raise _unreachable(artifact, reason)
            await anyio.sleep(PAUSES[idle])
            idle += 1

    async def _append(self, artifact: Artifact, part: Path, have: int) -> str:
        """One request; the reason why it brought less than the rest, `""` if it did not."""
        for remote in self._source.remotes:
            try:
                status = await self._request(f"{remote}/{artifact.path}", artifact, part, have)
            except httpx.TransportError as error:
                return str(error) or type(error).__name__
            if status in {200, 206}:
                return ""
            if status not in {403, 404}:
                return f"status {status}"
        raise EmbeddedError(f"no Maven repository has {artifact.coordinate}", where=HERE)

    async def _request(self, url: str, artifact: Artifact, part: Path, have: int) -> int:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        async with self._client.stream("GET", url, headers=headers) as response:
            if response.status_code == 416:
                _discard(part)
            if response.status_code not in {200, 206}:
                return response.status_code
            goes_on = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
                f"bytes {have}-"
            )
            await self._save(response, artifact, part, have if goes_on else 0)
            return response.status_code

    async def _save(self, response: httpx.Response, artifact: Artifact, part: Path, have: int) -> None:
        async with await anyio.open_file(part, "ab" if have else "wb") as file:
            async for chunk in response.aiter_bytes(1 << 18):
                await file.write(chunk)
                have += len(chunk)
                self._meter.set(artifact, have)
                if have > artifact.size:
                    return


def _unreachable(artifact: Artifact, reason: str) -> EmbeddedError:
    return EmbeddedError(
        f"{artifact.coordinate} could not be fetched ({reason or 'the answer was empty'})",
        where=HERE,
        hint="What was fetched is kept. Check the network (HTTPS_PROXY, SSL_CERT_FILE) and try again.",
    )


def _discard(part: Path) -> None:
    """The repository has no more of it: what we have is not the beginning of that file."""
    part.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
