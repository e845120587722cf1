"""Fetching from a Maven repository that misbehaves."""

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from dionysus_sync_mcp.domain.errors import EmbeddedError
from dionysus_sync_mcp.embedded import artifacts
from dionysus_sync_mcp.embedded.artifacts import Artifact, Source, fetch
from tests.embedded.repository import Repository, artifact_of, served

CONTENT = bytes(range(256)) * 4096


@pytest.fixture
def repository() -> Iterator[Repository]:
    """A repository with nothing in it yet."""
    with served() as repository:
        yield repository


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(artifacts, "PAUSES", (0.0, 0.0))


async def into(folder: Path, repository: Repository, *wanted: Artifact, local: Path | None = None) -> list[int]:
    """Fetch from this repository alone; gives the bytes that were reported, in order."""
    reported: list[int] = []
    await fetch(wanted, folder / "lib", Source(local, (repository.url,)), lambda done, _total: reported.append(done))
    return reported


def names(folder: Path) -> set[str]:
    """The artifacts that count as there."""
    return {path.name for path in (folder / "lib").glob("*")}


async def test_all_artifacts_arrive_with_progress_to_the_last_byte(tmp_path: Path, repository: Repository) -> None:
    """More artifacts than are fetched at once all arrive, and the progress ends at their whole size."""
    wanted = [repository.add(f"a{number}", CONTENT[number:]) for number in range(20)]
    reported = await into(tmp_path, repository, *wanted)
    assert {artifact.filename for artifact in wanted} == names(tmp_path)
    assert (tmp_path / "lib" / "a3-1.0.jar").read_bytes() == CONTENT[3:]
    assert reported[-1] == sum(artifact.size for artifact in wanted)
    assert reported == sorted(reported)
    assert not (tmp_path / "partial").exists()


async def test_a_download_that_is_cut_off_goes_on_where_it_stopped(tmp_path: Path, repository: Repository) -> None:
    """The rest is asked for by Range, and the file is whole in the end."""
    artifact = repository.add("cut", CONTENT, "cut", "cut", "whole")
    await into(tmp_path, repository, artifact)
    half = len(CONTENT) // 2
    assert repository.ranges(artifact) == ["", f"bytes={half}-", f"bytes={half + half // 2}-"]
    assert (tmp_path / "lib" / artifact.filename).read_bytes() == CONTENT


async def test_an_interrupted_fetch_is_taken_up_by_the_next_one(tmp_path: Path, repository: Repository) -> None:
    """What is whole is not asked for again, what was cut off goes on, and a part never counts as there."""
    whole = repository.add("whole", CONTENT)
    cut = repository.add("cut", CONTENT, "cut", "broken")
    with pytest.raises(EmbeddedError, match=r"org\.example:cut:jar:1\.0 could not be fetched \(status 503\)"):
        await into(tmp_path, repository, whole, cut)
    assert names(tmp_path) == {whole.filename}
    assert (tmp_path / "partial" / f"{cut.filename}.part").stat().st_size == len(CONTENT) // 2

    repository.change(cut, "whole")
    repository.asked.clear()
    await into(tmp_path, repository, whole, cut)
    assert repository.ranges(whole) == []
    assert repository.ranges(cut) == [f"bytes={len(CONTENT) // 2}-"]
    assert (tmp_path / "lib" / cut.filename).read_bytes() == CONTENT


async def test_a_repository_without_ranges_starts_again(tmp_path: Path, repository: Repository) -> None:
    """An answer that begins at the first byte replaces the part."""
    artifact = repository.add("plain", CONTENT, "cut", "no ranges")
    await into(tmp_path, repository, artifact)
    assert repository.ranges(artifact)[1].startswith("bytes=")
    assert (tmp_path / "lib" / artifact.filename).read_bytes() == CONTENT


async def test_a_wrong_hash_is_fetched_once_more(tmp_path: Path, repository: Repository) -> None:
    """Bytes of the right number but of another content are discarded and asked for again."""
    artifact = repository.add("wrong", CONTENT, "wrong", "whole")
    await into(tmp_path, repository, artifact)
    assert repository.ranges(artifact) == ["", ""]
    assert (tmp_path / "lib" / artifact.filename).read_bytes() == CONTENT


async def test_a_hash_that_stays_wrong_is_an_error_that_names_the_artifact(
    tmp_path: Path, repository: Repository
) -> None:
    """After the second time nothing of it is left, neither in its place nor as a part."""
    artifact = repository.add("bad", CONTENT, "wrong")
    with pytest.raises(EmbeddedError, match=r"org\.example:bad:jar:1\.0 was fetched 2 times"):
        await into(tmp_path, repository, artifact)
    assert repository.ranges(artifact) == ["", ""]
    assert names(tmp_path) == set()
    assert list((tmp_path / "partial").iterdir()) == []


async def test_an_artifact_longer_than_locked_does_not_pass(tmp_path: Path, repository: Repository) -> None:
    """A file that begins right and goes on is wrong as well."""
    repository.add("long", CONTENT + b"more")
    with pytest.raises(EmbeddedError, match="never the locked one"):
        await into(tmp_path, repository, artifact_of("long", CONTENT))


async def test_the_next_repository_is_asked_for_what_one_lacks(tmp_path: Path, repository: Repository) -> None:
    """Repositories are asked in order; what none has is an error."""
    artifact = repository.add("second", CONTENT)
    absent = artifact_of("absent", CONTENT)
    with served() as empty:
        both = Source(None, (empty.url, repository.url))
        await fetch((artifact,), tmp_path / "lib", both, lambda _done, _total: None)
        assert empty.ranges(artifact) == [""]
        with pytest.raises(EmbeddedError, match=r"no Maven repository has org\.example:absent"):
            await fetch((absent,), tmp_path / "lib", both, lambda _done, _total: None)
    assert names(tmp_path) == {artifact.filename}


async def test_a_repository_that_is_away_is_an_error_with_advice(tmp_path: Path) -> None:
    """Nobody listens: the tries end, and the error says that nothing is lost."""
    with served() as repository:
        artifact = repository.add("away", CONTENT)
    with pytest.raises(EmbeddedError, match="could not be fetched") as caught:
        await into(tmp_path, repository, artifact)
    assert "What was fetched is kept" in caught.value.hint


async def test_the_local_maven_repository_saves_the_download(tmp_path: Path, repository: Repository) -> None:
    """A file with the locked hash is copied from there; one with another hash is not."""
    good, bad = repository.add("good", CONTENT), repository.add("bad", CONTENT)
    local = tmp_path / "m2"
    for artifact, content in ((good, CONTENT), (bad, bytes(len(CONTENT)))):
        (local / artifact.path).parent.mkdir(parents=True)
        (local / artifact.path).write_bytes(content)
    await into(tmp_path, repository, good, bad, local=local)
    assert repository.ranges(good) == []
    assert repository.ranges(bad) == [""]
    assert (tmp_path / "lib" / bad.filename).read_bytes() == CONTENT


async def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path, repository: Repository) -> None:
    """With a file in the folder's place nothing is fetched."""
    (tmp_path / "lib").write_text("in the way", encoding="utf-8")
    artifact = repository.add("any", CONTENT)
    with pytest.raises(FileExistsError):
        await into(tmp_path, repository, artifact)
    assert repository.asked == []


def test_the_certificates_of_the_environment_are_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """REQUESTS_CA_BUNDLE is read: a file that holds no certificate is an error there."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("no certificate", encoding="utf-8")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with pytest.raises(ssl.SSLError):
        artifacts.trusted()
