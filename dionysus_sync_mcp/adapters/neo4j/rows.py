"""Pure: what a batch looks like as the parameters of `write_memories`, and what a store's node says."""

import hashlib
from collections.abc import Sequence
from typing import Any

from dionysus_sync_mcp.domain.errors import Refused
from dionysus_sync_mcp.domain.lineage import Lineage, RemoteLineage
from dionysus_sync_mcp.domain.memory import MemoryChange, Version

HASH_CHARACTERS = 16


def memory_parameters(changes: Sequence[MemoryChange], store: str) -> dict[str, Any]:
    """The parameters of `write_memories`, rows sorted by id so that two writers lock in the same order.

    Raises:
        Refused: A text that UTF-8 cannot carry (a lone surrogate); names the memory, not the text.
    """
    ordered = sorted(changes, key=lambda change: change.memory_id)
    newest = [change.newest.properties for change in ordered]
    sessions = {(p.session_id, p.source_project) for p in newest if p.session_id is not None}
    return {
        "store": store,
        "rows": [memory_row(change, store) for change in ordered],
        "projects": sorted({p.source_project for p in newest if p.source_project is not None}),
        "sessions": [{"id": id_, "project": project} for id_, project in sorted(sessions, key=_none_last)],
    }


def memory_row(change: MemoryChange, store: str) -> dict[str, Any]:
    """One memory: its newest version, what the guard needs, and the versions before it."""
    content = change.newest.properties.content
    try:
        return {
            **_version(change.memory_id, change.newest, store),
            "id": change.memory_id,
            "version": change.newest.number,
            "base": change.base_version or 0,
            "deleted": change.newest.operation == "delete",
            "text_hash": None if content is None else text_hash(content),
            "older": [_version(change.memory_id, version, store) for version in change.older],
        }
    except UnicodeEncodeError as error:
        raise Refused(f"memory {change.memory_id} holds text that is not valid Unicode", where="neo4j") from error


def text_hash(content: str) -> str:
    """Hex SHA-256 of the UTF-8 content: what a vector was made from."""
    return hashlib.sha256(content.encode()).hexdigest()


def version_key(memory_id: str, version: Version) -> str:
    """The same for every delivery of one version; a tombstone is another version than the row it stands for."""
    kind = ":deleted" if version.operation == "delete" else ""
    return f"{memory_id}:{version.number}:{version.content_hash[:HASH_CHARACTERS]}{kind}"


def lineage_of(noted: Sequence[Any] | None) -> RemoteLineage | None:
    """What the node of a local store says of its pushes; `None` where it says nothing.

    Args:
        noted: Epoch, generation, lineage, past epochs and last entry, whatever somebody has made of them by hand.
    """
    if not noted or not noted[2]:
        return None
    epoch, generation, lineage, past_epochs, last_entry = noted
    number = generation if isinstance(generation, int) else 0
    past = frozenset(map(str, past_epochs if isinstance(past_epochs, list) else ()))
    return RemoteLineage(Lineage(str(epoch), number, str(lineage)), past, str(last_entry or ""))


def _version(memory_id: str, version: Version, store: str) -> dict[str, Any]:
    properties = version.properties
    _check_unicode(memory_id, version)
    return {
        "key": version_key(memory_id, version),
        "operation": version.operation,
        "changed_at": version.changed_at,
        "created_at": properties.created_at,
        "updated_at": properties.updated_at,
        "state": {
            "content": properties.content,
            "memory_type": properties.memory_type,
            "importance": properties.importance,
            "source_project": properties.source_project,
            "session_id": properties.session_id,
            "tags": properties.tags,
            "extra": properties.extra,
            "content_hash": version.content_hash,
            "sync_version": version.number,
            "origin": store,
        },
    }


def _check_unicode(memory_id: str, version: Version) -> None:
    properties = version.properties
    texts = (memory_id, *(value for value in properties if isinstance(value, str)), *(properties.tags or ()))
    for text in texts:
        text.encode()


def _none_last(pair: tuple[str | None, str | None]) -> tuple[str, bool, str]:
    return pair[0] or "", pair[1] is None, pair[1] or ""
