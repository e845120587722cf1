"""Text made fit for stores, models and eyes."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dionysus_sync_mcp.domain.text import (
    ELLIPSIS,
    defused,
    estimated_tokens,
    excerpt,
    fold,
    is_storable,
    line,
    storable,
    storable_parts,
    visible,
)
from tests.commands import COMMAND

any_text = st.text(st.characters(codec=None))
ESC = "\x1b"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        (f"{ESC}[31mred{ESC}[0m", "red"),
        (f"{ESC}]0;owned\x07title", "title"),
        (f"{ESC}]8;;http://x{ESC}\\link{ESC}]8;;{ESC}\\", "link"),
        (f"{ESC}Pq#0{ESC}\\picture", "picture"),
        ("\x9b2Jcleared", "cleared"),
        (f"{ESC}cfull reset", "full reset"),
        (f"cut off {ESC}[", "cut off "),
        (f"cut off {ESC}]0;title", "cut off 0;title"),
        ("bell\x07 back\x08 nul\x00", "bell back nul"),
        ("abc\u202edcba\u202c \u2066x\u2069", "abcdcba x"),
        ("zero\u200bwidth\u200d\ufeff join\u2060er", "zerowidth joiner"),
        ("hidden\U000e0041\U000e0042 tags\ufe01", "hidden tags"),
        ("lone \ud800 surrogate", "lone  surrogate"),
        ("one\r\ntwo\rthree\u2028four\tfive", "one\ntwo\nthree\nfour\tfive"),
        ("Grüße, 世界 🎉", "Grüße, 世界 🎉"),
    ],
)
def test_what_acts_on_a_terminal_or_cannot_be_seen_is_gone(text: str, seen: str) -> None:
    """Escape sequences vanish whole; the visible text stays as it was."""
    assert visible(text) == seen


def test_no_control_bidi_or_surrogate_character_survives() -> None:
    """Every code point of the categories control and surrogate, and every bidi control, is stripped."""
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    bad = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in {"Cc", "Cs"} or unicodedata.bidirectional(chr(code)) in bidi
    ]
    assert len(bad) > 2000
    assert [c for c in bad if c not in "\n\t" and c in visible(f"a{c}b")] == []


@given(any_text)
def test_visible_text_stays_as_it_is(text: str) -> None:
    """A second pass finds nothing more to strip."""
    assert visible(visible(text)) == visible(text)


@given(any_text, st.integers(min_value=2, max_value=300))
def test_an_excerpt_never_exceeds_its_limit(text: str, limit: int) -> None:
    """Whatever a memory holds, no more than the limit of it is shown, and only what is visible."""
    shown = excerpt(text, limit)
    assert len(shown.text) <= limit
    assert shown.text == visible(shown.text)
    assert shown.cut == shown.text.endswith(ELLIPSIS) or text.strip().endswith(ELLIPSIS)


def test_an_excerpt_is_cut_at_a_word() -> None:
    """A long text ends with a whole word and an ellipsis, and says that it was cut."""
    assert excerpt("the quick brown fox jumps over", 22) == ("the quick brown fox…", True)


def test_a_short_text_is_shown_whole() -> None:
    """A text within the limit is not cut."""
    assert excerpt("  the fox\n", 7) == ("the fox", False)


def test_a_text_of_hidden_characters_says_that_it_was_cut() -> None:
    """Megabytes of invisible characters do not hide that there is more."""
    assert excerpt("\u200b" * 10_000_000 + "tail", 100) == (ELLIPSIS, True)


def test_a_line_has_no_line_ends() -> None:
    """A tag or a name stays on its line."""
    assert line(f"one\n\n two\t{ESC}[1mthree", 50) == "one two three"


@given(any_text)
def test_storable_text_can_be_encoded(text: str) -> None:
    """NUL and lone surrogates become spaces, so that every store and model takes the text."""
    clean = storable(text)
    clean.encode("utf-8")
    assert "\x00" not in clean
    assert len(clean) == len(text)
    assert is_storable(text) == (clean == text)


@pytest.mark.parametrize(
    ("text", "folded"), [("REPLACE Sump", "replace sump"), ("Café Ångström", "cafe angstrom"), ("İx ﬁ", "ix fi")]
)
def test_folding_drops_case_and_accents(text: str, folded: str) -> None:
    """An uncased model sees the same words whatever their case and accents."""
    assert fold(text) == folded


def test_folding_twice_changes_nothing() -> None:
    """A server that folds by itself gets what it would have made."""
    text = "Crème BRÛLÉE Straße Ελληνικά"
    assert fold(fold(text)) == fold(text)


def test_other_scripts_count_a_token_for_each_character() -> None:
    """A Chinese text is not taken for a quarter of its tokens."""
    assert estimated_tokens("世界" * 100) == 200
    assert estimated_tokens("word " * 70) == 100


def test_every_text_of_a_json_value_can_be_stored() -> None:
    """Keys, and texts however deep, lose what PostgreSQL cannot hold; the rest stays."""
    assert storable_parts({"a\x00": ["b\x00", 1, None, ("c",)]}) == {"a ": ["b ", 1, None, ["c"]]}


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("DROP TABLE memories", "D·ROP T·ABLE memories"),
        ("drop\n  table\tmemories;", "d·rop t·able memories;"),
        (f"DR\u200bOP{ESC}[31m SCHEMA public CASCADE", "D·ROP S·CHEMA public C·ASCADE"),
        ("TRUNCATE memories", "T·RUNCATE memories"),
        ("DELETE FROM memories WHERE true", "D·ELETE F·ROM memories WHERE true"),
        ("UPDATE memories SET content = ''", "U·PDATE memories S·ET content = ''"),
        ("ALTER TABLE memories DISABLE TRIGGER ALL", "A·LTER T·ABLE memories D·ISABLE T·RIGGER ALL"),
        ("DO $$ BEGIN EXECUTE 'drop table x'; END $$", "D·O $$ BEGIN E·XECUTE 'd·rop t·able x'; END $$"),
        ("MATCH (n) DETACH DELETE n", "MATCH (n) D·ETACH D·ELETE n"),
        ("rm -rf /", "r·m -rf /"),
        ("the backdrop of an updated table", "the backdrop of an updated table"),
    ],
)
def test_a_statement_is_shown_so_that_it_cannot_be_run(statement: str, shown: str) -> None:
    """Words that are no command stay as they are; what was done once is not done twice."""
    assert defused(statement) == defused(shown) == shown
    assert not COMMAND.search(shown)


def test_a_long_statement_is_cut() -> None:
    """By its length as it is shown."""
    assert defused("DROP TABLE x; " * 10_000, 20) == "D·ROP T·ABLE x; D·R…"
    assert len(defused("rm " * 500)) == 300
