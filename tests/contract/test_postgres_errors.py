"""Each error of the PostgreSQL driver has its place in our tree."""

import inspect

import asyncpg
import pytest
from asyncpg import exceptions as pg

from dionysus_sync_mcp.adapters.postgres.database import POOLED, in_our_words, our_errors
from dionysus_sync_mcp.domain.errors import (
    AccessRefused,
    DatabaseMissing,
    DionysusError,
    Refused,
    SchemaMismatch,
    TooLarge,
    Unavailable,
)

ROOTS = (pg.PostgresError, pg.InterfaceError, pg.InternalClientError)
CLASSES = [
    error
    for _, error in inspect.getmembers(pg, inspect.isclass)
    if issubclass(error, ROOTS) and issubclass(error, Exception)
]


def test_the_walk_finds_the_drivers_tree() -> None:
    """A renamed module would make the next test prove nothing."""
    assert len(CLASSES) > 200


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_no_error_of_the_driver_is_left_unmapped(error: type[Exception]) -> None:
    """Each becomes one of ours, with the driver's words."""
    ours = in_our_words(error("what the server said.\nDETAIL: more"))
    assert isinstance(ours, DionysusError)
    assert ours.what in ("what the server said", f"{POOLED} (what the server said)")
    assert ours.where == "PostgreSQL"


@pytest.mark.parametrize(
    "error",
    [
        pg.InterfaceError("connection is closed"),
        pg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
    ],
)
def test_the_drivers_own_words_for_a_connection_that_ends_are_not_handed_on(error: Exception) -> None:
    """Nobody can do anything with its states."""
    ours = in_our_words(error)
    assert isinstance(ours, Unavailable)
    assert ours.what == "the connection was closed"


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (pg.CannotConnectNowError, Unavailable),
        (pg.DiskFullError, Unavailable),
        (pg.OutOfMemoryError, Unavailable),
        (pg.TooManyConnectionsError, Unavailable),
        (pg.ConfigurationLimitExceededError, Unavailable),
        (pg.PostgresIOError, Unavailable),
        (pg.IdleInTransactionSessionTimeoutError, Unavailable),
        (pg.TransactionTimeoutError, Unavailable),
        (pg.AdminShutdownError, Unavailable),
        (pg.CrashShutdownError, Unavailable),
        (pg.DeadlockDetectedError, Unavailable),
        (pg.LockNotAvailableError, Unavailable),
        (pg.ReadOnlySQLTransactionError, Unavailable),
        (pg.QueryCanceledError, Unavailable),
        (pg.ConnectionDoesNotExistError, Unavailable),
        (pg.InterfaceError, Unavailable),
        (pg.InvalidCachedStatementError, Unavailable),
        (pg.OutdatedSchemaCacheError, Unavailable),
        (pg.InvalidPasswordError, AccessRefused),
        (pg.InsufficientPrivilegeError, AccessRefused),
        (pg.InvalidCatalogNameError, DatabaseMissing),
        (pg.UndefinedTableError, SchemaMismatch),
        (pg.UndefinedColumnError, SchemaMismatch),
        (pg.ProgramLimitExceededError, TooLarge),
        (pg.UniqueViolationError, Refused),
        (pg.CharacterNotInRepertoireError, Refused),
        (asyncpg.DataError, Refused),
        (OSError, Unavailable),
        (TimeoutError, Unavailable),
        (ConnectionRefusedError, Unavailable),
    ],
)
def test_what_can_be_done_decides_the_place(error: type[Exception], ours: type[DionysusError]) -> None:
    """Away, to be mended by a person, not our schema, or refused for good."""
    found = in_our_words(error("words"))
    assert type(found) is ours


def test_errors_of_others_pass_untouched() -> None:
    """A bug of ours is not called a trouble of PostgreSQL."""
    assert in_our_words(KeyError("a bug")) is None
    with pytest.raises(KeyError, match="a bug"), our_errors():
        raise KeyError("a bug")


def test_an_error_without_words_is_called_by_its_name() -> None:
    """An empty message would tell nobody anything."""
    ours = in_our_words(TimeoutError())
    assert ours is not None
    assert ours.what == "TimeoutError"
