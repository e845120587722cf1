"""Loads the named SQL and Cypher statements from their files; Python names a statement and never builds one."""

import re
from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import MappingProxyType

PACKAGE = "dionysus_sync_mcp"
_HEADINGS = {
    "sql": re.compile(r"^-- ([a-z][a-z0-9_]*) --$", re.M),
    "cypher": re.compile(r"^// ([a-z][a-z0-9_]*) //$", re.M),
}


def load_sql() -> Mapping[str, str]:
    """The statements of `sql/*.sql`, by name."""
    return _all_named("sql")


def load_cypher() -> Mapping[str, str]:
    """The statements of `cypher/*.cypher`, by name; those of `schema.cypher` in its order."""
    return _all_named("cypher")


def load_migrations() -> list[tuple[str, str]]:
    """Name (`NNNN_what`) and text of each SQL migration, in order."""
    found = [f for f in (folder("sql") / "migrations").iterdir() if f.name.endswith(".sql")]
    return [(f.name.removesuffix(".sql"), f.read_text(encoding="utf-8")) for f in sorted(found, key=lambda f: f.name)]


def folder(name: str) -> Traversable:
    """The folder `sql` or `cypher`: of the installed package, else of the checkout that an editable install points to.

    Raises:
        FileNotFoundError: With both places that were looked at.
    """
    packaged = files(PACKAGE) / f"_{name}"
    checkout = Path(__file__).resolve().parents[2] / name
    for place in (packaged, checkout):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"no folder of {name} statements: looked at {packaged} and {checkout}")


def _all_named(language: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for file in sorted(folder(language).iterdir(), key=lambda f: f.name):
        if not file.name.endswith(f".{language}"):
            continue
        named = _named(language, file)
        if twice := found.keys() & named.keys():
            raise ValueError(f"{file}: the statement's name stands in another file too: {', '.join(sorted(twice))}")
        found |= named
    return MappingProxyType(found)


def _named(language: str, file: Traversable) -> Mapping[str, str]:
    text = file.read_text(encoding="utf-8")
    parts = _HEADINGS[language].split(text)[1:]
    names, bodies = parts[::2], parts[1::2]
    if len(set(names)) != len(names):
        raise ValueError(f"{file}: a statement's name stands twice")
    return MappingProxyType({name: body.strip() for name, body in zip(names, bodies, strict=True)})
