"""Where the tests keep what they fetched or built, shared by all runs of a user."""

import os
from collections.abc import Mapping
from pathlib import Path

from platformdirs import user_cache_path

NAME = "dionysus-sync-mcp-tests"
# PostgreSQL refuses to run as root, so for root it runs as another user, who cannot enter root's home.
ROOTS_FOLDER = Path("/var/cache") / NAME


def cache_folder(environment: Mapping[str, str]) -> Path:
    """The folder, made if it is missing: `DIONYSUS_TEST_HOME`, else one in the system's cache folder."""
    chosen = environment.get("DIONYSUS_TEST_HOME")
    folder = Path(chosen) if chosen else _system_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _system_folder() -> Path:
    as_root = hasattr(os, "geteuid") and os.geteuid() == 0
    return ROOTS_FOLDER if as_root else user_cache_path(NAME)
