"""Where a database is, in a form that tells nothing: the remote store remembers which local store was there."""

import hashlib
from urllib.parse import urlsplit


def place_of(url: str, machine: str) -> str:
    """The same for the same database, as long as its URL names it in the same way; neither role nor password is in it.

    Args:
        machine: Name of this machine: `localhost` is another one on each.
    """
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return hashlib.sha256("\n".join((machine, host, parts.path, parts.query)).encode()).hexdigest()
