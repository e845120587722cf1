"""Every error of the program, one tree.

    DionysusError                  what happened, where, whether a retry can help, and a hint
    ├── SettingsError              a setting is missing, wrong, or contradicts another one
    ├── InputError                 an argument that cannot be used; nothing was changed
    │   └── InvalidMemory          a memory that breaks a rule of the data model
    ├── Unavailable                a service cannot be used now; the work waits and is tried again
    │   ├── Starting               an embedded service is still being fetched or started
    │   ├── TimedOut               a service was at work, and had not done it by its deadline: less may be done by then
    │   ├── OutcomeUnknown         the connection was lost while a commit was under way
    │   └── LineageMoved           the remote store remembers another push than this database; nothing was written
    ├── AccessRefused              wrong password, missing right, unknown database: a person has to act
    │   └── DatabaseMissing            the server is there, and the database that DATABASE_URL names is not
    ├── Refused                    a service refuses this very piece of work, and would refuse it again
    │   └── TooLarge               the same, because of its size: half of it may be accepted
    ├── NotAdoptable               the table `memories` that was found cannot be used; it was left as it was
    ├── SchemaMismatch             the bookkeeping found is older, newer or other than this program's
    ├── StoreRolledBack            this database is older than what it has pushed: somebody has to decide what counts
    ├── RemoteDamaged              the remote store cannot be written to before it is repaired
    ├── PlanOutdated               the stores have moved since the plan was made, in a way that changes it
    ├── RecoveryShortfall          not every row that the plan named was restored and verified
    └── EmbeddedError              an embedded service could not be fetched or started

A message never holds a secret and never a destructive command: agents paste what they read.
"""

from typing import ClassVar

from dionysus_sync_mcp.domain.lineage import RemoteLineage
from dionysus_sync_mcp.domain.text import clause

OVERTAKEN = "another process has pushed meanwhile"


class DionysusError(Exception):
    """The root. `str()` gives one line for people: what, where and the hint.

    Args:
        what: What happened, a clause without a full stop.
        where: The service, file or argument that it is about, `""` when `what` says it.
        hint: What to do next, a sentence, `""` when there is nothing to do.
    """

    retryable: ClassVar[bool] = False

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f" {self.hint}" if self.hint else ""
        return f"{place}{clause(self.what)}.{advice}"


class SettingsError(DionysusError):
    """A setting is missing, wrong, or contradicts another one."""


class InputError(DionysusError):
    """An argument that cannot be used; nothing was changed."""


class InvalidMemory(InputError):
    """A memory that breaks a rule of the data model."""


class Unavailable(DionysusError):
    """A service cannot be used now; the work waits and is tried again."""

    retryable = True


class Starting(Unavailable):
    """An embedded service is still being fetched or started; `what` says how far it is."""


class TimedOut(Unavailable):
    """A service was reached and at work, and had not done it by its deadline: a smaller piece may be done by then."""


class OutcomeUnknown(Unavailable):
    """The connection was lost while a commit was under way: send again, applying is idempotent."""


class LineageMoved(Unavailable):
    """The remote store remembers another push than this database; nothing was written.

    Args:
        there: What it remembers, `None` where it remembers none.
    """

    def __init__(
        self, what: str = OVERTAKEN, *, where: str = "", hint: str = "", there: RemoteLineage | None = None
    ) -> None:
        super().__init__(what, where=where, hint=hint)
        self.there = there


class AccessRefused(DionysusError):
    """Wrong password, missing right, unknown database: a person has to act, so tries are slow."""

    retryable = True


class DatabaseMissing(AccessRefused):
    """The server is there, and the database that the settings name is not."""


class Refused(DionysusError):
    """A service refuses this very piece of work, and would refuse it again."""


class TooLarge(Refused):
    """A service refuses this piece of work because of its size: half of it may be accepted."""


class NotAdoptable(DionysusError):
    """The table `memories` that was found cannot be used; it was left as it was."""


class SchemaMismatch(DionysusError):
    """The bookkeeping found is older, newer or other than this program's."""


class StoreRolledBack(DionysusError):
    """This database is older than what it has pushed, or a copy of it has pushed: a person decides what counts."""

    retryable = True


class RemoteDamaged(DionysusError):
    """The remote store cannot be written to before it is repaired: two nodes of one memory, a constraint that fails."""

    retryable = True


class PlanOutdated(DionysusError):
    """The stores have moved since the plan was made, in a way that changes it; nothing was changed."""


class RecoveryShortfall(DionysusError):
    """Not every row that the plan named was restored and verified."""


class EmbeddedError(DionysusError):
    """An embedded service could not be fetched or started; `what` ends with the last lines of its log."""
