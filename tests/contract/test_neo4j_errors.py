"""Each error of the driver is one of ours, and says nothing that it must not."""

import inspect

import pytest
from neo4j import exceptions
from neo4j.exceptions import DriverError, GqlError, Neo4jError

from dionysus_sync_mcp.adapters.neo4j.errors import LONGEST_MESSAGE, our_errors, translated
from dionysus_sync_mcp.domain.errors import (
    AccessRefused,
    DionysusError,
    OutcomeUnknown,
    Refused,
    RemoteDamaged,
    TimedOut,
    TooLarge,
    Unavailable,
)

BY_CLASS: dict[str, type[DionysusError]] = {
    "AuthConfigurationError": AccessRefused,
    "AuthError": AccessRefused,
    "BrokenRecordError": Unavailable,
    "CertificateConfigurationError": AccessRefused,
    "ClientError": Refused,
    "ConfigurationError": AccessRefused,
    "ConnectionAcquisitionTimeoutError": Unavailable,
    "ConnectionPoolError": Unavailable,
    "ConstraintError": Refused,
    "CypherSyntaxError": Refused,
    "CypherTypeError": Refused,
    "DatabaseError": Refused,
    "DatabaseUnavailable": Unavailable,
    "DriverError": Unavailable,
    "Forbidden": AccessRefused,
    "ForbiddenOnReadOnlyDatabase": Unavailable,
    "GqlError": Unavailable,
    "IncompleteCommit": OutcomeUnknown,
    "Neo4jError": Refused,
    "NotALeader": Unavailable,
    "ReadServiceUnavailable": Unavailable,
    "ResultConsumedError": Unavailable,
    "ResultError": Unavailable,
    "ResultFailedError": Unavailable,
    "ResultNotSingleError": Unavailable,
    "RoutingServiceUnavailable": Unavailable,
    "ServiceUnavailable": Unavailable,
    "SessionError": Unavailable,
    "SessionExpired": Unavailable,
    "TokenExpired": AccessRefused,
    "TransactionError": Unavailable,
    "TransactionNestingError": Unavailable,
    "TransientError": Unavailable,
    "UnsupportedServerProduct": AccessRefused,
    "WriteServiceUnavailable": Unavailable,
}
BY_CODE: dict[str, type[DionysusError]] = {
    "Neo.ClientError.Security.Unauthorized": AccessRefused,
    "Neo.ClientError.Security.Forbidden": AccessRefused,
    "Neo.ClientError.Security.AuthenticationRateLimit": AccessRefused,
    "Neo.ClientError.Database.DatabaseNotFound": AccessRefused,
    "Neo.ClientError.Procedure.ProcedureNotFound": AccessRefused,
    "Neo.ClientError.Statement.SyntaxError": AccessRefused,
    "Neo.ClientError.Statement.ArgumentError": Refused,
    "Neo.ClientError.Schema.ConstraintValidationFailed": Refused,
    "Neo.DatabaseError.Schema.ConstraintCreationFailed": RemoteDamaged,
    "Neo.ClientError.Schema.IndexAlreadyExists": RemoteDamaged,
    "Neo.ClientError.Schema.IndexWithNameAlreadyExists": RemoteDamaged,
    "Neo.ClientError.Transaction.TransactionTimedOutClientConfiguration": TimedOut,
    "Neo.ClientError.Transaction.TransactionTimedOut": TimedOut,
    "Neo.TransientError.Transaction.DeadlockDetected": Unavailable,
    "Neo.TransientError.General.MemoryPoolOutOfMemoryError": TooLarge,
    "Neo.TransientError.General.OutOfMemoryError": TooLarge,
    "Neo.DatabaseError.Transaction.TransactionCommitFailed": Unavailable,
    "Neo.DatabaseError.Transaction.TransactionStartFailed": Unavailable,
    "Neo.TransientError.Transaction.LockAcquisitionTimeout": Unavailable,
    "Neo.DatabaseError.Database.DatabaseLimitReached": Unavailable,
    "Neo.TransientError.Database.DatabaseUnavailable": Unavailable,
    "Neo.TransientError.General.DatabaseUnavailable": Unavailable,
    "Neo.DatabaseError.Transaction.TransactionLogError": Unavailable,
    "Neo.DatabaseError.General.StorageDamageDetected": Unavailable,
    "Neo.DatabaseError.General.IndexCorruptionDetected": Unavailable,
    "Neo.DatabaseError.General.SchemaCorruptionDetected": Unavailable,
    "Neo.DatabaseError.General.UnknownError": Refused,
    "Neo.DatabaseError.Statement.ExecutionFailed": Refused,
}
CLASSES = {
    name: cls
    for name, cls in inspect.getmembers(exceptions, inspect.isclass)
    if issubclass(cls, GqlError | DriverError)
}


def served(code: str, message: str = "no") -> Neo4jError:
    """An error as the driver makes it of what the server answered."""
    return Neo4jError._hydrate_neo4j(code=code, message=message)


def test_every_class_of_the_driver_is_known() -> None:
    """A new version of the driver that brings a new error makes somebody decide about it."""
    assert set(CLASSES) == set(BY_CLASS)


@pytest.mark.parametrize("name", BY_CLASS)
def test_every_class_becomes_one_of_ours(name: str) -> None:
    """By its class alone, without a code from the server."""
    error = CLASSES[name]("it broke")
    assert type(translated(error)) is BY_CLASS[name]


@pytest.mark.parametrize("code", BY_CODE)
def test_what_the_server_says_becomes_one_of_ours(code: str) -> None:
    """Rows are refused only where it is about the rows."""
    assert type(translated(served(code))) is BY_CODE[code]


def test_a_message_is_one_short_line_without_the_statement() -> None:
    """The lines after the first quote the statement, which may have words in it that agents must not paste."""
    error = translated(served("Neo.ClientError.Statement.ArgumentError", f"{'x' * 900}\n  DELETE link\n  ^"))
    assert "DELETE" not in str(error)
    assert len(error.what) <= LONGEST_MESSAGE + 1


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionRefusedError(111, "Connection refused")])
def test_what_is_not_of_the_driver_is_mapped_too(error: Exception) -> None:
    """Deadlines and sockets."""
    with pytest.raises(Unavailable), our_errors():
        raise error
