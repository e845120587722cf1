"""Text made fit for where it goes: to a store, to an uncased model, or before the eyes of a person or an agent.

Memories come from other projects. What is shown of them carries nothing that acts on a terminal and nothing that a
reader cannot see: no escape sequences, no control, bidi, zero-width or otherwise invisible characters.
"""

import re
import unicodedata
from typing import NamedTuple

ELLIPSIS = "…"

# ECMA-48: control sequences, then strings up to their terminator (titles, links, device controls), then the short ones.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]{0,4096}(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_LINE_ENDS = re.compile(r"\r\n?|[\x85\u2028\u2029]")
# Unicode's Default_Ignorable_Code_Point, all controls but newline and tab, annotations, and lone surrogates.
_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
# What does something when it is pasted to a database or a shell, and what it does it to.
_COMMANDS = re.compile(
    r"\b(alter|call|cascade|copy|create|delete|detach|disable|do|drop(?:db)?|execute|grant|insert|kill|merge|reassign"
    r"|remove|rename|reset|revoke|rm|set|truncate|update)\b(\s+(?:column|database|from|into|owned|schema|table|trigger)\b)?",
    re.IGNORECASE,
)
_UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
_COMBINING = "Mn"
_ASCII_CHARACTERS_PER_TOKEN = 3.5


class Excerpt(NamedTuple):
    """The beginning of a text, made fit to be shown."""

    text: str
    cut: bool


def storable(text: str) -> str:
    """The text with a space for each character that UTF-8 or PostgreSQL cannot hold: NUL and lone surrogates."""
    return _UNSTORABLE.sub(" ", text)


def storable_parts(value: object) -> object:
    """What JSON is made of, each text in it storable: JSON text hides a NUL behind an escape."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(str(name)): storable_parts(part) for name, part in value.items()}
    return [storable_parts(part) for part in value] if isinstance(value, (list, tuple)) else value


def storable_in(text: str, charset: str | None) -> str:
    """The text with a question mark for each character that this Python codec has not; `None` for one that has all."""
    if charset is None:
        return storable(text)
    return storable(text).replace(ELLIPSIS, "...").encode(charset, "replace").decode(charset)


def is_storable(text: str) -> bool:
    """Whether UTF-8 and PostgreSQL can hold the text: no NUL, no lone surrogate."""
    return _UNSTORABLE.search(text) is None


def visible(text: str) -> str:
    """The text without anything that acts on a terminal or cannot be seen; newlines and tabs stay."""
    return _HIDDEN.sub("", _LINE_ENDS.sub("\n", _ESCAPES.sub("", text)))


def excerpt(text: str, limit: int) -> Excerpt:
    """The visible text in at most `limit` characters, ended by an ellipsis where it was cut."""
    # A content may be megabytes long: no more is looked at than may be needed to fill the limit.
    head = text[: 2 * limit + 64]
    seen = visible(head).strip()
    if len(seen) <= limit and len(head) == len(text):
        return Excerpt(seen, cut=False)
    return Excerpt(_at_word(seen[: limit - 1]) + ELLIPSIS, cut=True)


def line(text: str, limit: int) -> str:
    """The visible text on one line, in at most `limit` characters."""
    return excerpt(" ".join(visible(text[: 4 * limit + 64]).split()), limit).text


def defused(text: str, limit: int = 300) -> str:
    """A statement of somebody else's as it may be shown: on one line, and not to be run by whoever pastes it.

    Each word of a command has a middle dot after its first letter, as in `D·ROP T·ABLE memories`.
    """
    shown = _COMMANDS.sub(_with_dots, " ".join(visible(text[: 4 * limit + 64]).split()))
    return shown if len(shown) <= limit else shown[: limit - 1] + ELLIPSIS


def _with_dots(command: re.Match[str]) -> str:
    return " ".join(f"{word[0]}·{word[1:]}" for word in command[0].split())


def clause(text: str) -> str:
    """The text without what a sentence or a list goes on after: for a message of somebody else's within one of ours."""
    return text.rstrip(" .:;,")


def fold(text: str) -> str:
    """Lower case without accents, as the tokenizer of an uncased model makes it.

    Ollama 0.13.1 to 0.24.0 leaves that out and turns each capitalised or accented word into an unknown one.
    """
    decomposed = unicodedata.normalize("NFKD", text.lower())
    return "".join(c for c in decomposed if unicodedata.category(c) != _COMBINING)


def estimated_tokens(text: str) -> int:
    """About how many tokens of a language model the text takes; rather too many than too few."""
    ascii_count = len(text.encode("ascii", "ignore"))
    return round(ascii_count / _ASCII_CHARACTERS_PER_TOKEN) + (len(text) - ascii_count)


def _at_word(text: str) -> str:
    # Only a word's end near the cut counts: a text without spaces is cut where it is.
    end = max(text.rfind(" "), text.rfind("\n"))
    return text[:end].rstrip() if end > len(text) * 0.8 else text
