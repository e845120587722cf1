"""What an embedding model expects of its input, and one vector for a text that is too long for it."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dionysus_sync_mcp.domain.text import fold, storable

# A text beyond this many pieces is embedded by its beginning: it would hold up all others for minutes.
MOST_PIECES = 64


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """How a family of models was trained to be used.

    Attributes:
        document_prefix: Stands before each stored text. Ollama adds none by itself.
        query_prefix: Stands before each question.
        uncased: Whether its vocabulary has lower-case letters without accents only.
        piece_characters: A text of so many characters fits the model's context.
    """

    document_prefix: str = ""
    query_prefix: str = ""
    uncased: bool = False
    piece_characters: int = 2500


_RETRIEVAL = "Represent this sentence for searching relevant passages: "
# By the beginning of the model's name, the longer names first. Sources: the models' cards.
_FAMILIES = (
    ("nomic-embed-text-v2", ModelFamily("search_document: ", "search_query: ", piece_characters=1000)),
    ("nomic-embed-text", ModelFamily("search_document: ", "search_query: ", uncased=True)),
    ("mxbai-embed-large", ModelFamily(query_prefix=_RETRIEVAL, uncased=True, piece_characters=1000)),
    ("all-minilm", ModelFamily(uncased=True, piece_characters=1000)),
)


def text_hash(content: str) -> str:
    """What a vector was made from: hex SHA-256 of the UTF-8 content; a lone surrogate counts as its three bytes."""
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def family_of(model: str) -> ModelFamily:
    """The family by the model's name in Ollama, with or without registry, owner and tag."""
    name = model.rsplit("/", 1)[-1].split(":", 1)[0].lower()
    return next((family for start, family in _FAMILIES if name.startswith(start)), ModelFamily())


def prepared_query(question: str, family: ModelFamily) -> str:
    """The question as the model expects it, cut to what fits its context."""
    text = storable(question)[: family.piece_characters]
    return family.query_prefix + (fold(text) if family.uncased else text)


def prepared_pieces(text: str, family: ModelFamily) -> list[str]:
    """The text in one or more pieces that fit the model's context, prefix included; at most `MOST_PIECES`."""
    head = storable(text[: MOST_PIECES * family.piece_characters])
    folded = fold(head) if family.uncased else head
    pieces = [piece for piece in split(folded, family.piece_characters) if piece.strip()][:MOST_PIECES]
    return [family.document_prefix + piece for piece in pieces or [""]]


def split(text: str, size: int) -> Iterator[str]:
    """The text in pieces of at most `size` characters, parted at white space where there is some near the end."""
    start = 0
    while start < len(text):
        end = _piece_end(text, start, size)
        yield text[start:end]
        start = end


def _piece_end(text: str, start: int, size: int) -> int:
    end = start + size
    if end >= len(text):
        return len(text)
    near = start + size - size // 4
    space = max(text.rfind(mark, near, end) for mark in " \n\t")
    return space + 1 if space >= near else end


def pooled(vectors: Sequence[Sequence[float]], weights: Sequence[int]) -> list[float]:
    """The weighted mean of the pieces' vectors, of length 1; all zeros if they cancel each other out."""
    total = float(sum(weights))
    shares = [weight / total for weight in weights]
    mean = [math.fsum(map(float.__mul__, shares, column)) for column in zip(*vectors, strict=True)]
    norm = math.sqrt(math.fsum(value * value for value in mean))
    return [value / norm for value in mean] if norm else mean
