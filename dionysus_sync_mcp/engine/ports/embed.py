"""What embedding needs."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Text(NamedTuple):
    """A memory that has no current vector."""

    memory_id: str
    content: str


class Vector(NamedTuple):
    """A vector and what it was made from. `text_hash` is the hex SHA-256 of the UTF-8 content."""

    memory_id: str
    text_hash: str
    values: list[float]


class VectorStore(Protocol):
    """The remote's side of embedding."""

    async def texts_without_vector(self, limit: int) -> list[Text]: ...

    async def store_vectors(self, vectors: Sequence[Vector], model: str) -> int:
        """Store those whose memory still has that very content; returns how many."""
        ...

    async def refuse_text(self, memory_id: str, text_hash: str, reason: str) -> None:
        """Record that this text cannot be embedded, so that it is not tried again until it changes."""
        ...

    async def count_without_vector(self) -> int: ...


class Embedder(Protocol):
    """Text in, vectors out."""

    @property
    def model(self) -> str: ...

    async def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """One vector for each text. Raises `Refused` when the server refuses the batch, be it for one bad text."""
        ...

    async def embed_query(self, text: str) -> list[float]: ...
