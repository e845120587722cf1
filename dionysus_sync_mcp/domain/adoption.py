"""Decides how a database becomes a local store: what can be adopted, which steps are left, or why it cannot be done."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dionysus_sync_mcp.domain.errors import NotAdoptable, SchemaMismatch
from dionysus_sync_mcp.domain.memory import SYNC_COLUMNS

StepName = Literal[
    "create_memories", "add_sync_columns", "add_sync_indexes", "install_capture", "install_event_triggers"
]

CAPTURE_TRIGGERS = frozenset(
    {
        "dionysus_generated",
        "zz_dionysus_bound",
        "zz_dionysus_version",
        "dionysus_capture_insert",
        "dionysus_capture_update",
        "dionysus_capture_delete",
        "dionysus_truncate",
    }
)
SYNC_INDEXES = frozenset({"idx_memories_sync_status", "idx_memories_sync_version"})
_WHAT_IT_IS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "p": "a partitioned table"}

# The columns that we need, with what their type has to be: a type's name, or a category of pg_type.typcategory.
_NEEDED: Mapping[str, tuple[str, frozenset[str]]] = {
    "id": ("uuid", frozenset({"uuid"})),
    "content": ("text", frozenset({"S"})),
    "memory_type": ("text", frozenset({"S", "E"})),
    "importance": ("real", frozenset({"N"})),
    "source_project": ("text", frozenset({"S"})),
    "session_id": ("uuid", frozenset({"uuid", "S"})),
    "tags": ("text[]", frozenset({"text[]", "character varying[]"})),
    "created_at": ("timestamptz", frozenset({"D"})),
    "updated_at": ("timestamptz", frozenset({"D"})),
}

# Ours are added; a column of the user's own that has the name of one must be able to hold what we write into it.
_OURS: Mapping[str, tuple[str, frozenset[str]]] = {
    "sync_status": ("text", frozenset({"S"})),
    "synced_at": ("timestamptz", frozenset({"D"})),
    "sync_version": ("integer", frozenset({"integer"})),
    "remote_id": ("text", frozenset({"S"})),
    "synced_version": ("integer", frozenset({"integer"})),
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column as the catalogue describes it: type name without modifiers, and `pg_type.typcategory`."""

    name: str
    type: str
    category: str


@dataclass(frozen=True, slots=True)
class FoundTable:
    """What stands at the name `memories`.

    Attributes:
        kind: `pg_class.relkind`; "r" is a plain table.
        owned: Whether this role may alter it.
        triggers: Those of ours that are there and fire always.
    """

    name: str
    kind: str
    owned: bool
    primary_key: Sequence[str]
    columns: Sequence[Column]
    triggers: frozenset[str]
    indexes: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rights:
    """What this role may create, and whether the schema that the table is to stand in is there."""

    schema_present: bool
    may_create_table: bool
    may_create_schema: bool


@dataclass(frozen=True, slots=True)
class DdlWatch:
    """How the database tells of DDL by itself.

    Attributes:
        present: Whether all of our event triggers are there, and fire always.
        superuser: Whether this role may create event triggers for certain; where it is another, one can only try.
        lesser: Name of a role that could have its own code run in them, with the rights of the one that creates them.
    """

    present: bool
    superuser: bool
    lesser: str | None = None

    @property
    def left(self) -> bool:
        """Whether they are to be put in place."""
        return self.superuser and not self.present and self.lesser is None


def refuse_without_rights(rights: Rights, *, bookkeeping_left: bool) -> None:
    """Raise `NotAdoptable` where the bookkeeping has to be made and this role may not make its schema."""
    if bookkeeping_left and not rights.may_create_schema:
        raise NotAdoptable(
            "this role may not create the schema dionysus_sync",
            where="dionysus_sync",
            hint="Give the role CREATE on the database, or run init as a role that has it.",
        )


def decide_steps(table: FoundTable | None, rights: Rights, schema: str) -> list[StepName]:
    """The steps that are left, in order; empty when all is in place.

    Raises:
        NotAdoptable: With everything that stands in the way, in one message.
    """
    if table is None:
        if not rights.schema_present:
            raise NotAdoptable(
                f"there is no schema '{schema}'",
                where="DIONYSUS_SCHEMA",
                hint="Name the schema that the table memories stands in, or create it.",
            )
        if not rights.may_create_table:
            raise NotAdoptable(
                "there is no table 'memories' and this role may not create one",
                where="memories",
                hint="Give the role CREATE on the schema and the database, or create the table as its owner.",
            )
        return ["create_memories", "add_sync_columns", "add_sync_indexes", "install_capture"]
    _refuse_unfit(table)
    steps: list[StepName] = []
    if not set(SYNC_COLUMNS) <= {c.name for c in table.columns}:
        steps.append("add_sync_columns")
    if not table.indexes >= SYNC_INDEXES:
        steps.append("add_sync_indexes")
    if not table.triggers >= CAPTURE_TRIGGERS:
        steps.append("install_capture")
    if steps and not table.owned:
        raise NotAdoptable("this role does not own it", where=table.name, hint="Run init as the table's owner.")
    return steps


def _refuse_unfit(table: FoundTable) -> None:
    if table.kind != "r":
        what = _WHAT_IT_IS.get(table.kind, f"not a plain table (relkind {table.kind!r})")
        raise NotAdoptable(f"it is {what}", where=table.name, hint="Only a plain table can be captured.")
    faults = [*_missing(table), *_wrong_types(table)]
    if list(table.primary_key) != ["id"]:
        faults.append("its primary key is not the one column id")
    if faults:
        raise NotAdoptable(
            "; ".join(faults), where=table.name, hint="Nothing was changed. Add what is missing and run init again."
        )


def _missing(table: FoundTable) -> list[str]:
    present = {column.name for column in table.columns}
    lacking = [f"{name} {wanted}" for name, (wanted, _) in _NEEDED.items() if name not in present]
    return [f"it lacks the column(s) {', '.join(lacking)}"] if lacking else []


def _wrong_types(table: FoundTable) -> list[str]:
    wanted = {**_NEEDED, **_OURS}
    return [
        f"column {c.name} is {c.type}, not {wanted[c.name][0]}"
        for c in table.columns
        if c.name in wanted and not {c.type, c.category} & wanted[c.name][1]
    ]


def decide_migrations(
    applied: Mapping[str, str], shipped: Sequence[tuple[str, str]], *, whole: bool = True
) -> list[str]:
    """The names of the migrations that are left.

    Args:
        applied: Checksum by name, as the database has them.
        shipped: Name and checksum, in order, as this program has them.
        whole: Whether all that the applied ones made is still there; if not, they are all run again.

    Raises:
        SchemaMismatch: The database was made by a newer program, or a migration was changed after it was applied.
    """
    known = dict(shipped)
    _refuse_unknown(set(applied) - set(known))
    changed = sorted(name for name, checksum in applied.items() if known[name] != checksum)
    if changed:
        raise SchemaMismatch(
            f"migration {', '.join(changed)} was applied in another form than this version has it",
            where="dionysus_sync",
            hint="Use the version of dionysus-sync-mcp that installed it.",
        )
    return [name for name, _ in shipped if name not in applied or not whole]


def refuse_newer(newest: str | None, last: str) -> None:
    """Raise `SchemaMismatch` where a database's newest migration is later than the last one that this program has."""
    if newest is not None and newest > last:
        _refuse_unknown({newest})


def _refuse_unknown(names: Collection[str]) -> None:
    if names:
        raise SchemaMismatch(
            f"the bookkeeping has migrations that this version does not know: {', '.join(sorted(names))}",
            where="dionysus_sync",
            hint="Use the version of dionysus-sync-mcp that installed them, or a newer one.",
        )
