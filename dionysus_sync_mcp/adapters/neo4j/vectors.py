"""The remote's side of embedding: which texts wait for a vector, and the vectors that arrive."""

from collections.abc import Sequence

from dionysus_sync_mcp.adapters.neo4j.connection import Call, Part
from dionysus_sync_mcp.domain.embedding import text_hash
from dionysus_sync_mcp.domain.errors import Refused
from dionysus_sync_mcp.domain.memory import broken_vector_rule
from dionysus_sync_mcp.engine.ports.embed import Text, Vector


class Vectors(Part):
    """Implements `VectorStore`. A memory that waits carries the label `Unembedded`."""

    async def texts_without_vector(self, limit: int) -> list[Text]:
        """At most `limit` of them, in no order; a text that somebody changed by hand gets its hash on the way."""
        rows = await self._connection.read("texts_without_vector", self._limits.look_seconds, limit=limit)
        await self._mend(
            [(Text(id_, content), text_hash(content)) for id_, content, noted in rows if noted != text_hash(content)]
        )
        return [Text(id_, content) for id_, content, _ in rows]

    async def store_vectors(self, vectors: Sequence[Vector], model: str) -> int:
        """Store those whose memory still has that very content; returns how many.

        Raises:
            Refused: A vector that the index would leave out in silence: wrong length, not finite, all zeros.
        """
        for vector in vectors:
            self._check(vector)
        rows = [
            {"id": vector.memory_id, "text_hash": vector.text_hash, "values": vector.values}
            for vector in sorted(vectors, key=lambda vector: vector.memory_id)
        ]
        stored: int
        (stored,) = await self._connection.write(
            [Call("store_vectors", {"rows": rows, "model": model})], self._limits.write_seconds
        )
        return stored

    async def refuse_text(self, memory_id: str, text_hash: str, reason: str) -> None:
        """Record that this text cannot be embedded, so that it is not tried again until it changes."""
        parameters = {"id": memory_id, "text_hash": text_hash, "reason": reason}
        await self._connection.write([Call("refuse_text", parameters)], self._limits.write_seconds)

    async def count_without_vector(self) -> int:
        """How many memories wait for a vector."""
        waiting: int = await self._connection.read("count_without_vector", self._limits.look_seconds)
        return waiting

    async def _mend(self, changed: Sequence[tuple[Text, str]]) -> None:
        if not changed:
            return
        rows = [{"id": text.memory_id, "content": text.content, "text_hash": hash_} for text, hash_ in sorted(changed)]
        await self._connection.write([Call("mend_text_hashes", {"rows": rows})], self._limits.write_seconds)

    def _check(self, vector: Vector) -> None:
        broken = broken_vector_rule(vector.values, self._limits.dimensions)
        if broken:
            raise Refused(f"{broken} (memory {vector.memory_id})", where="neo4j")
