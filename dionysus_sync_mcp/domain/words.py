"""A person's question as a full-text query: data, never syntax."""

MOST_WORDS = 200  # Lucene refuses a query of more than 1,024 clauses, and a word may become several.
_SYNTAX = str.maketrans({character: f"\\{character}" for character in '+-&|!(){}[]^"~*?:\\/'})
_OPERATORS = frozenset({"AND", "OR", "NOT"})
# Words that a question is made of and that say nothing of its subject; the analyzer cuts "the", "is" and the like.
QUESTION_WORDS = frozenset({
    "what", "which", "who", "whom", "whose", "when", "where", "why", "how", "do", "does", "did", "has", "have",
    "had", "can", "could", "should", "would", "will", "is", "are", "was", "were", "am", "be", "been", "i", "me",
    "my", "mine", "we", "us", "our", "you", "your", "he", "she", "him", "her", "his", "they", "them", "their",
    "it", "its", "a", "an", "the", "there", "that", "this", "these", "those", "any", "some",
})  # fmt: skip


def lucene_query(text: str) -> str:
    """The classic Lucene query that asks for any of the words of `text`; `""` where it has none.

    Question words are cut, unless nothing else is there.
    """
    words = [word for word in text.split() if any(map(str.isalnum, word))]
    telling = [word for word in words if _bare(word) not in QUESTION_WORDS]
    distinct = list(dict.fromkeys(map(_as_data, telling or words)))
    return " ".join(distinct[:MOST_WORDS])


def _bare(word: str) -> str:
    return word.strip("?!.,;:'\"()").casefold()


def _as_data(word: str) -> str:
    return (word.lower() if word in _OPERATORS else word).translate(_SYNTAX)
