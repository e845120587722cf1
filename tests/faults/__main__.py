"""`python -m tests.faults [NUMBER]`: runs every scenario or one, and writes RESULTS.md and results.json here."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.results import FILE_VARIABLE, ONLY_VARIABLE

FOLDER = Path(__file__).parent


def main(numbers: Sequence[str]) -> int:
    """pytest's exit code."""
    os.environ[FILE_VARIABLE] = str(FOLDER / "results.json")
    os.environ[ONLY_VARIABLE] = ",".join(numbers)
    return pytest.main([str(FOLDER), "-m", "slow or not slow"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
