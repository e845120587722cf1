"""The edge where the driver's errors become ours; nothing of the driver's crosses it."""

from collections.abc import Iterator
from contextlib import contextmanager

from neo4j._exceptions import BoltError
from neo4j.exceptions import (
    AuthError,
    ConfigurationError,
    Forbidden,
    GqlError,
    IncompleteCommit,
    Neo4jError,
    TransientError,
)

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

WHERE = "neo4j"
LONGEST_MESSAGE = 300
_REACH = "Check that Neo4j runs and that NEO4J_URI reaches it; the work is kept and tried again."
SMALLER = "A smaller part of the work is tried next."
_ACT = "Check NEO4J_USER, NEO4J_PASSWORD, NEO4J_DATABASE and NEO4J_URI, and the rights of that user."
_REPAIR = "Run 'dionysus-sync-mcp verify --repair' to see how to mend it."
_UNSUPPORTED = "Use Neo4j 5.26 or newer."

# Neo4j reports these as transient, but the same transaction would run out of memory again: only a smaller one helps.
_OUT_OF_MEMORY = ("MemoryPoolOutOfMemoryError", "OutOfMemoryError", "TransactionMemoryLimit", "StackOverFlowError")
_OUT_OF_TIME = {
    "Neo.ClientError.Transaction.TransactionTimedOut",
    "Neo.ClientError.Transaction.TransactionTimedOutClientConfiguration",
}
# Not about the rows that were sent: parking them would be wrong.
_NOT_ABOUT_ROWS = {
    "Neo.ClientError.Transaction.TransactionTerminated",
    "Neo.ClientError.Transaction.LockClientStopped",
}
# A full disk, a damaged log or index stops every transaction, whatever is in it. Not so an unknown error and a failed
# execution: one row may cause these, and would hold back all others for ever if they were waited out.
_ILL = (
    "Neo.DatabaseError.Transaction.",
    "Neo.DatabaseError.Database.",
    "Neo.DatabaseError.Schema.",
    "Neo.DatabaseError.General.IndexCorruption",
    "Neo.DatabaseError.General.SchemaCorruption",
    "Neo.DatabaseError.General.StorageDamage",
)
# Two nodes of one memory, or an index of the user's own, stand in the way of what every write relies on.
_SCHEMA_IN_THE_WAY = {
    "Neo.DatabaseError.Schema.ConstraintCreationFailed",
    "Neo.DatabaseError.Schema.IndexCreationFailed",
    "Neo.ClientError.Schema.ConstraintAlreadyExists",
    "Neo.ClientError.Schema.ConstraintWithNameAlreadyExists",
    "Neo.ClientError.Schema.IndexAlreadyExists",
    "Neo.ClientError.Schema.IndexWithNameAlreadyExists",
}
_NEEDS_A_PERSON = (
    "Neo.ClientError.Security.",
    "Neo.ClientError.Database.",
    "Neo.ClientError.General.ForbiddenOnReadOnly",
)
# A value that cannot be a time, say: the server calls that an error of the syntax too.
_DATA_EXCEPTION = "22"
# The server does not know a word of a statement: that is its version, never the rows.
_NOT_UNDERSTOOD = {
    "Neo.ClientError.Statement.SyntaxError",
    "Neo.ClientError.Statement.FeatureDeprecationWarning",
    "Neo.ClientError.Procedure.ProcedureNotFound",
}


# What the driver raises of frames that it cannot read, or that are no answers to what it has asked.
UNREADABLE = (BoltError, ValueError, AttributeError, TypeError, LookupError)
_UNREADABLE_TEXT = "the answer cannot be read"
# Its decoder's way to say the same: a `BaseException`, which has no name that could be imported.
_PANIC = "PanicException"


def translated(error: GqlError) -> DionysusError:
    """Our error for one of the driver's."""
    if isinstance(error, Neo4jError):
        return _from_server(error)
    return _from_driver(error)


def _from_driver(error: GqlError) -> DionysusError:
    if isinstance(error, IncompleteCommit):
        return OutcomeUnknown("the connection was lost while a commit was under way", where=WHERE, hint=_REACH)
    if isinstance(error, ConfigurationError):
        return AccessRefused(_text(error), where=WHERE, hint=_ACT)
    return Unavailable(_text(error), where=WHERE, hint=_REACH)


def _from_server(error: Neo4jError) -> DionysusError:
    code = error.code or ""
    text = _text(error)
    if code.endswith(_OUT_OF_MEMORY):
        return TooLarge(text, where=WHERE)
    if code in _NOT_UNDERSTOOD and not (error.gql_status or "").startswith(_DATA_EXCEPTION):
        return AccessRefused(text, where=WHERE, hint=_UNSUPPORTED)
    if isinstance(error, AuthError | Forbidden) or code.startswith(_NEEDS_A_PERSON):
        return AccessRefused(text, where=WHERE, hint=_ACT)
    if code in _SCHEMA_IN_THE_WAY:
        return RemoteDamaged(text, where=WHERE, hint=_REPAIR)
    if code in _OUT_OF_TIME:
        return TimedOut(text, where=WHERE, hint=SMALLER)
    if isinstance(error, TransientError) or code in _NOT_ABOUT_ROWS or code.startswith(_ILL):
        return Unavailable(text, where=WHERE, hint=_REACH)
    return Refused(text, where=WHERE)


def _text(error: GqlError) -> str:
    """The first line only: the ones after it quote the statement."""
    message = error.message if isinstance(error, Neo4jError) else str(error)
    first = (message or type(error).__name__).strip().splitlines()[0].rstrip(". ")
    return first if len(first) <= LONGEST_MESSAGE else f"{first[:LONGEST_MESSAGE]}…"


@contextmanager
def our_errors() -> Iterator[None]:
    """Raise what the driver raises inside as one of ours.

    Raises:
        Unavailable: Not reached, no answer within the deadline, or none that the driver can read.
        TimedOut: The server had not done it within the deadline that it was given.
        OutcomeUnknown: The connection was lost while a commit was under way.
        AccessRefused: Wrong password, missing right, unknown database or a server that is too old.
        TooLarge: More than the server's memory for one transaction.
        RemoteDamaged: A constraint or an index cannot be created.
        Refused: Anything else that the server refuses.
    """
    try:
        yield
    except GqlError as error:
        raise translated(error) from error
    except TimeoutError as error:
        raise Unavailable("no answer within the deadline", where=WHERE, hint=_REACH) from error
    except OSError as error:
        raise Unavailable(error.strerror or type(error).__name__, where=WHERE, hint=_REACH) from error
    except UnicodeEncodeError:
        raise
    except UNREADABLE as error:
        raise Unavailable(_UNREADABLE_TEXT, where=WHERE, hint=_REACH) from error
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        raise Unavailable(_UNREADABLE_TEXT, where=WHERE, hint=_REACH) from error
