"""The lock files that the package ships, and how they are made."""

import re
from pathlib import Path

import pytest

from dionysus_sync_mcp.domain.errors import EmbeddedError
from dionysus_sync_mcp.embedded.artifacts import locked, parse_lock
from dionysus_sync_mcp.embedded.lock import lock_text

VERSIONS = ("5.26.31", "2026.09.0")
COORDINATE = re.compile(r"[\w.-]+:[\w.-]+:jar(:[\w.-]+)?:[\w.-]+")


@pytest.mark.parametrize("version", VERSIONS)
def test_each_entry_has_a_coordinate_a_hash_and_a_size(version: str) -> None:
    """Nothing in a lock file is half an entry, and no two artifacts would have one file name."""
    artifacts = locked(version)
    assert len(artifacts) > 200
    for artifact in artifacts:
        assert COORDINATE.fullmatch(artifact.coordinate), artifact
        assert re.fullmatch(r"[0-9a-f]{64}", artifact.sha256), artifact
        assert artifact.size > 0, artifact
    assert len({artifact.filename for artifact in artifacts}) == len(artifacts)
    assert list(artifacts) == sorted(artifacts, key=lambda artifact: f"{artifact.coordinate} ")


@pytest.mark.parametrize("version", VERSIONS)
def test_the_three_parts_of_the_server_are_there_in_its_version(version: str) -> None:
    """The lock file's name and its content are of one version."""
    coordinates = {artifact.coordinate for artifact in locked(version)}
    for part in ("org.neo4j:neo4j", "org.neo4j:neo4j-bolt", "org.neo4j.app:neo4j-server"):
        assert f"{part}:jar:{version}" in coordinates


def test_a_classifier_is_part_of_the_file_name() -> None:
    """Coordinates map to paths as Maven does it."""
    (artifact,) = parse_lock(f"# why\n\nio.netty:epoll:jar:linux-x86_64:4.1 {'0' * 64} 7\n")
    assert artifact.path == "io/netty/epoll/4.1/epoll-4.1-linux-x86_64.jar"


@pytest.mark.parametrize("line", ["a:b:jar:1", f"a:b:jar:1 {'0' * 64}", f"a:b:jar:1 {'0' * 64} many"])
def test_a_damaged_lock_file_is_not_read(line: str) -> None:
    """A line without all three values stops the reading."""
    with pytest.raises(ValueError, match=r"unpack|literal"):
        parse_lock(line)


def test_a_version_without_lock_file_is_an_error_that_names_the_others() -> None:
    """The hint says what there is."""
    with pytest.raises(EmbeddedError, match=r"1\.2\.3") as caught:
        locked("1.2.3")
    assert all(version in caught.value.hint for version in VERSIONS)


def test_a_lock_file_is_made_from_what_jgo_resolved(tmp_path: Path) -> None:
    """Coordinates and hashes come from jgo's lock file, sizes from the local Maven repository, in order of name."""
    resolved = tmp_path / "jgo.lock.toml"
    entry = '[[dependencies]]\ngroupId="g.h"\nartifactId="{}"\nversion="1"\npackaging="jar"\nsha256="{}"\n'
    resolved.write_text(entry.format("b", "1" * 64) + entry.format("a", "2" * 64), encoding="utf-8")
    for name, size in (("a", 3), ("b", 5)):
        (tmp_path / "g" / "h" / name / "1").mkdir(parents=True)
        (tmp_path / "g" / "h" / name / "1" / f"{name}-1.jar").write_bytes(bytes(size))
    artifacts = parse_lock(lock_text("9.9", resolved, tmp_path))
    assert [(a.coordinate, a.sha256[0], a.size) for a in artifacts] == [
        ("g.h:a:jar:1", "2", 3),
        ("g.h:b:jar:1", "1", 5),
    ]
