"""Embed: give remote memories that lack a current vector theirs, one batch at a time."""

from collections.abc import Sequence
from typing import NamedTuple

from dionysus_sync_mcp.domain.embedding import text_hash
from dionysus_sync_mcp.domain.errors import AccessRefused, Refused
from dionysus_sync_mcp.engine.ports.embed import Embedder, Text, Vector, VectorStore

NO_TEXT = "no text"
# Any model that works at all has a vector for this.
_PROBE = "memory"


class EmbedResult(NamedTuple):
    """What one step did. All zeros: every memory has its vector, or the reason why it has none.

    Attributes:
        refused: Texts that cannot be embedded; recorded, and not tried again until they change.
        stale: Vectors that were not stored because the memory has changed meanwhile.
    """

    embedded: int
    refused: int
    stale: int


class _Bad(NamedTuple):
    text: Text
    reason: str


async def embed_once(vectors: VectorStore, embedder: Embedder, *, limit: int = 32) -> EmbedResult:
    """Embed at most `limit` memories; a bad text is found by halving, recorded, and does not fail the others.

    Raises:
        Unavailable: Ollama or the remote store is away; what was not stored is found again.
        AccessRefused: The model is missing, or refuses every text; nothing is recorded against the texts.
    """
    texts = await vectors.texts_without_vector(limit)
    blank = [_Bad(text, NO_TEXT) for text in texts if _is_blank(text)]
    good, bad = await _embed(embedder, [text for text in texts if not _is_blank(text)])
    stored = await vectors.store_vectors(good, embedder.model) if good else 0
    for text, reason in (*blank, *bad):
        await vectors.refuse_text(text.memory_id, text_hash(text.content or ""), reason)
    return EmbedResult(embedded=stored, refused=len(blank) + len(bad), stale=len(good) - stored)


def _is_blank(text: Text) -> bool:
    return not (text.content or "").strip()


async def _embed(embedder: Embedder, texts: Sequence[Text]) -> tuple[list[Vector], list[_Bad]]:
    if not texts:
        return [], []
    try:
        return await _vectors(embedder, texts), []
    except Refused as error:
        await _check_that_the_texts_are_to_blame(embedder)
        return await _halved(embedder, texts, error)


async def _halved(embedder: Embedder, texts: Sequence[Text], error: Refused) -> tuple[list[Vector], list[_Bad]]:
    if len(texts) == 1:
        return [], [_Bad(texts[0], error.what)]
    good: list[Vector] = []
    bad: list[_Bad] = []
    middle = len(texts) // 2
    for half in (texts[:middle], texts[middle:]):
        try:
            good += await _vectors(embedder, half)
        except Refused as half_error:
            half_good, half_bad = await _halved(embedder, half, half_error)
            good += half_good
            bad += half_bad
    return good, bad


async def _vectors(embedder: Embedder, texts: Sequence[Text]) -> list[Vector]:
    values = await embedder.embed_documents([text.content for text in texts])
    return [Vector(text.memory_id, text_hash(text.content), vector) for text, vector in zip(texts, values, strict=True)]


async def _check_that_the_texts_are_to_blame(embedder: Embedder) -> None:
    """Without this, a model of other dimensions would put every memory on record as impossible to embed."""
    try:
        await embedder.embed_documents([_PROBE])
    except Refused as error:
        raise AccessRefused(
            f"the model {embedder.model} refuses every text: {error.what}",
            where="embedding",
            hint="Check OLLAMA_EMBED_MODEL and DIONYSUS_EMBEDDING_DIMENSIONS.",
        ) from error
