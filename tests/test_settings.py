"""Settings: what is wrong is named plainly, and a secret is shown nowhere."""

import pytest

from dionysus_sync_mcp.domain.errors import SettingsError
from dionysus_sync_mcp.settings import Settings, load_settings

HIDDEN = "correct-horse-battery"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting comes from the machine that runs the test."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("NEO4J_USERNAME", raising=False)


def refused(monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """The message with which these settings are refused."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return str(caught.value)


def test_without_any_setting_both_stores_are_embedded() -> None:
    """A newcomer needs no setting at all."""
    settings = load_settings()
    assert (settings.database_url.get_secret_value(), settings.neo4j_uri) == ("embedded:", "embedded:")


def test_an_unknown_setting_is_named_with_the_nearest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting is not ignored in silence."""
    said = refused(monkeypatch, DIONYSUS_POL_MS="10")
    assert "DIONYSUS_POL_MS" in said
    assert "DIONYSUS_POLL_MS" in said


@pytest.mark.parametrize("uri", ["bolt://db.example.org:7687", "neo4j://10.0.0.7", "bolt://127.0.0.1.example.org"])
def test_plaintext_to_another_host_is_refused_unless_allowed(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """Memories and the password do not cross a network readable without the user's word."""
    assert "DIONYSUS_ALLOW_PLAINTEXT" in refused(monkeypatch, NEO4J_URI=uri)
    monkeypatch.setenv("DIONYSUS_ALLOW_PLAINTEXT", "1")
    assert load_settings().neo4j_uri == uri


@pytest.mark.parametrize(
    "uri", ["bolt://localhost:7687", "bolt://127.0.0.1", "neo4j://[::1]:7687", "bolt+s://db.example.org"]
)
def test_this_machine_and_encrypted_schemes_are_accepted(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    """What cannot be read on the way needs no permission."""
    monkeypatch.setenv("NEO4J_URI", uri)
    assert load_settings().neo4j_uri == uri


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NEO4J_URI", f"bolt+s://neo4j:{HIDDEN}@db.example.org"),
        ("DATABASE_URL", f"mysql://me:{HIDDEN}@localhost/db"),
        ("OLLAMA_URL", f"ftp://me:{HIDDEN}@localhost"),
        ("DATABASE_URL", f"postgresql://me:{HIDDEN}\u2100@localhost/db"),
        ("NEO4J_URI", f"bolt://me:{HIDDEN}\u2100@localhost"),
        ("OLLAMA_URL", f"http://me:{HIDDEN}\u2100@localhost"),
        ("OLLAMA_URL", f"http://me:{HIDDEN}@localhost:99999"),
        ("DIONYSUS_ALERT_WEBHOOK_URL", f"ftp://localhost/{HIDDEN}"),
        ("DIONYSUS_ALERT_WEBHOOK_URL", f"https:///{HIDDEN}"),
        ("DIONYSUS_ALERT_WEBHOOK_URL", f"https://localhost:99999/?key={HIDDEN}"),
        ("DIONYSUS_ALERT_WEBHOOK_URL", f"https://me:{HIDDEN}\u2100@localhost"),
        ("DIONYSUS_ALERT_WEBHOOK_URL", f"http://hooks.example.org/{HIDDEN}"),
    ],
)
def test_a_refused_url_is_named_but_its_password_is_not(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The message names the setting and holds nothing of its secret."""
    said = refused(monkeypatch, **{name: value})
    assert name in said
    assert HIDDEN not in said


def test_settings_that_contradict_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password for a server that has none is a mistake somewhere."""
    said = refused(monkeypatch, NEO4J_PASSWORD=HIDDEN, NEO4J_URI="embedded:")
    assert "NEO4J_PASSWORD" in said
    assert "NEO4J_URI" in said
    assert HIDDEN not in said


def test_a_webhook_needs_the_key_that_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are named; the address, which may hold a secret in any part, is not shown."""
    said = refused(monkeypatch, DIONYSUS_ALERT_WEBHOOK_URL=f"https://hooks.example.org/{HIDDEN}?key={HIDDEN}")
    assert "DIONYSUS_ALERT_WEBHOOK_URL" in said
    assert "MEMORY_WEBHOOK_TOKEN" in said
    assert HIDDEN not in said
    monkeypatch.setenv("MEMORY_WEBHOOK_TOKEN", "a key")
    url = load_settings().dionysus_alert_webhook_url
    assert url is not None
    assert url.get_secret_value().endswith(f"?key={HIDDEN}")


def test_a_plain_webhook_on_another_host_is_refused_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine it needs no permission."""
    monkeypatch.setenv("MEMORY_WEBHOOK_TOKEN", "a key")
    said = refused(monkeypatch, DIONYSUS_ALERT_WEBHOOK_URL="http://hooks.example.org/x")
    assert "DIONYSUS_ALLOW_PLAINTEXT" in said
    monkeypatch.setenv("DIONYSUS_ALERT_WEBHOOK_URL", "http://127.0.0.1:5678/x")
    load_settings()
    monkeypatch.setenv("DIONYSUS_ALERT_WEBHOOK_URL", "http://hooks.example.org/x")
    monkeypatch.setenv("DIONYSUS_ALLOW_PLAINTEXT", "1")
    load_settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DIONYSUS_POLL_MS", "0"),
        ("DIONYSUS_NEO4J_VERSION", "4.4"),
        ("DIONYSUS_WORDS_WEIGHT", "2"),
        ("DIONYSUS_SCHEMA", "x" * 64),
    ],
)
def test_a_value_out_of_range_names_its_setting(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Each wrong value is named by the variable that holds it."""
    assert name in refused(monkeypatch, **{name: value})


def test_printed_settings_hide_their_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the database's URL nor a password stands in what a log could print."""
    monkeypatch.setenv("DATABASE_URL", f"postgresql://me:{HIDDEN}@localhost/db")
    monkeypatch.setenv("NEO4J_URI", "bolt://localhost")
    monkeypatch.setenv("NEO4J_PASSWORD", HIDDEN)
    monkeypatch.setenv("OLLAMA_URL", f"http://me:{HIDDEN}@localhost:11434")
    monkeypatch.setenv("DIONYSUS_ALERT_WEBHOOK_URL", f"https://me:{HIDDEN}@localhost/{HIDDEN}?key={HIDDEN}")
    monkeypatch.setenv("MEMORY_WEBHOOK_TOKEN", HIDDEN)
    settings = load_settings()
    assert HIDDEN in settings.ollama_url
    assert HIDDEN not in repr(settings)
    assert HIDDEN not in settings.model_dump_json()


@pytest.mark.parametrize("name", ["NEO4J_USER", "NEO4J_USERNAME"])
def test_the_neo4j_user_may_have_the_name_that_neo4j_gives_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A file of credentials as Neo4j's own service hands it out needs no change."""
    monkeypatch.setenv(name, "somebody")
    assert load_settings().neo4j_user == "somebody"
