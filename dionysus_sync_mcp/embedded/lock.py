"""Makes a lock file, for maintainers: `python -m dionysus_sync_mcp.embedded.lock VERSION > locks/neo4j-VERSION.lock`.

jgo resolves the Neo4j server and all it needs and fetches it into the local Maven repository (minutes, once).
"""

import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from dionysus_sync_mcp.embedded.artifacts import Artifact

ENDPOINT = "org.neo4j:neo4j:{0}+org.neo4j.app:neo4j-server:{0}+org.neo4j:neo4j-bolt:{0}"
HEADER = """\
# Neo4j Community {version}: every Maven artifact that its server needs.
# Made by `python -m dionysus_sync_mcp.embedded.lock {version}`; do not edit.
# group:artifact:packaging[:classifier]:version sha256 bytes
"""


def resolve(version: str, cache: Path) -> Path:
    """Let jgo resolve the server; gives its lock file."""
    from jgo.env import EnvironmentBuilder
    from jgo.maven import MavenContext

    builder = EnvironmentBuilder(context=MavenContext(), cache_dir=cache)
    environment = builder.from_endpoint(ENDPOINT.format(version))
    return Path(environment.path) / "jgo.lock.toml"


def lock_text(version: str, resolved: Path, repository: Path) -> str:
    """Our lock file's text from jgo's, with the sizes of the files in the local Maven repository."""
    dependencies = tomllib.loads(resolved.read_text(encoding="utf-8"))["dependencies"]
    lines = sorted(_line(dependency, repository) for dependency in dependencies)
    return HEADER.format(version=version) + "".join(lines)


def _line(dependency: dict[str, Any], repository: Path) -> str:
    keys = ("groupId", "artifactId", "packaging", "classifier", "version")
    coordinate = ":".join(dependency[key] for key in keys if dependency.get(key))
    sha256 = dependency["sha256"]
    size = (repository / Artifact(coordinate, 0, sha256).path).stat().st_size
    return f"{coordinate} {sha256} {size}\n"


def main() -> None:
    """Write the lock file of the version named on the command line to stdout."""
    from jgo.maven import MavenContext

    version = sys.argv[1]
    with tempfile.TemporaryDirectory() as cache:
        text = lock_text(version, resolve(version, Path(cache)), MavenContext().repo_cache)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
