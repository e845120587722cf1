"""What is published works away from the checkout: the wheel is built, installed into a fresh environment, and run."""

import json
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest

from dionysus_sync_mcp.adapters.statements import load_cypher, load_migrations, load_sql

CHECKOUT = Path(__file__).resolve().parents[1]
PROBE = """
import json
import dionysus_sync_mcp
from dionysus_sync_mcp.adapters.statements import load_cypher, load_migrations, load_sql
print(json.dumps({
    "file": dionysus_sync_mcp.__file__,
    "sql": dict(load_sql()),
    "cypher": dict(load_cypher()),
    "migrations": load_migrations(),
}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel in it; its dependencies are those of the running one."""
    folder = tmp_path_factory.mktemp("wheel")
    _python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(CHECKOUT))
    (wheel,) = folder.glob("*.whl")
    fresh = folder / "venv"
    _python("-m", "venv", "--without-pip", str(fresh))
    _python("-m", "pip", "--python", str(_interpreter(fresh)), "install", "--no-deps", "--no-index", str(wheel))
    # A folder named in a .pth file has its own .pth files ignored, so the editable install of the checkout stays out.
    site = _output(_interpreter(fresh), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return fresh


def test_the_installed_wheel_loads_every_statement(environment: Path, tmp_path: Path) -> None:
    """The wheel carries the SQL, the Cypher and the migrations of the checkout, whole."""
    found = json.loads(_output(_interpreter(environment), "-c", PROBE, cwd=tmp_path))
    assert Path(found["file"]).is_relative_to(environment)
    assert found["sql"] == dict(load_sql()) != {}
    assert found["cypher"] == dict(load_cypher()) != {}
    assert found["migrations"] == [list(migration) for migration in load_migrations()] != []


def test_the_installed_command_explains_itself(environment: Path, tmp_path: Path) -> None:
    """The console script starts, away from the checkout."""
    assert "recover" in _output(environment / "bin" / "dionysus-sync-mcp", "--help", cwd=tmp_path)


def _interpreter(environment: Path) -> Path:
    return environment / "bin" / "python"


def _python(*arguments: str) -> None:
    _output(Path(sys.executable), *arguments)


def _output(program: Path, *arguments: str, cwd: Path = CHECKOUT) -> str:
    command: Sequence[str] = [str(program), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
