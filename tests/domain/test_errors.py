"""The error tree."""

import re
from collections.abc import Iterator

import pytest

from dionysus_sync_mcp.domain import errors
from dionysus_sync_mcp.domain.errors import (
    AccessRefused,
    DionysusError,
    Refused,
    RemoteDamaged,
    StoreRolledBack,
    TooLarge,
    Unavailable,
)


def tree(root: type[DionysusError]) -> Iterator[type[DionysusError]]:
    """The root and all below it."""
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


OURS = [error for error in tree(DionysusError) if error.__module__ == errors.__name__]


def test_the_drawing_shows_every_error() -> None:
    """The tree at the top of the module is the tree."""
    drawn = re.findall(r"([A-Z]\w+) {2,}", errors.__doc__ or "")
    assert drawn == [error.__name__ for error in OURS]


@pytest.mark.parametrize("what", ["it broke", "it broke.", "it broke: ", "it broke ...:."])
def test_what_somebody_else_says_ends_with_one_full_stop(what: str) -> None:
    """Whatever it ended with there."""
    assert str(DionysusError(what, hint="Mend it.")) == "it broke. Mend it."


@pytest.mark.parametrize("error", OURS, ids=lambda error: error.__name__)
def test_an_error_says_what_where_and_what_to_do(error: type[DionysusError]) -> None:
    """One line for people, with what is known."""
    full = error("it broke", where="there", hint="Mend it.")
    assert str(full) == "there: it broke. Mend it."
    assert str(error("it broke")) == "it broke."
    assert (full.what, full.where, full.hint) == ("it broke", "there", "Mend it.")


def test_what_can_be_tried_again_says_so() -> None:
    """An outage, and what a person has to mend, can end; a refused row cannot."""
    retryable = {error for error in OURS if error.retryable}
    assert retryable == {*tree(Unavailable), *tree(AccessRefused), StoreRolledBack, RemoteDamaged}
    assert not {Refused, TooLarge} & retryable
