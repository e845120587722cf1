"""One frozen settings object, read from the environment once at start; secrets are masked wherever it is printed."""

import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from dionysus_sync_mcp.domain.errors import SettingsError

EMBEDDED = "embedded:"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
PLACEHOLDER = re.compile(r"\$\{\w+(?::-(?P<default>[^}]*))?\}")
Neo4jVersion = Literal["5.26.31", "2026.09.0"]


class Settings(BaseSettings):
    """Every setting, under the name of its environment variable in lower case."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True, hide_input_in_errors=True)

    database_url: SecretStr = Field(default=SecretStr(EMBEDDED), description="PostgreSQL URL of the local store.")
    neo4j_uri: str = Field(default=EMBEDDED, description="Bolt URI of the remote store.")
    neo4j_user: str = Field(
        default="neo4j", validation_alias=AliasChoices("neo4j_user", "neo4j_username"), description="Or NEO4J_USERNAME."
    )
    neo4j_password: SecretStr = SecretStr("")
    neo4j_database: str = "neo4j"
    # May hold a user and a password.
    ollama_url: str = Field(default="http://127.0.0.1:11434", repr=False, exclude=True)
    ollama_embed_model: str = "nomic-embed-text"

    dionysus_home: Path | None = Field(default=None, description="Where embedded services keep programs and data.")
    dionysus_schema: str = Field(default="public", min_length=1, max_length=63, description="Schema of `memories`.")
    dionysus_project: str | None = Field(default=None, description="Name of this project.")
    claude_project_dir: Path | None = Field(default=None, description="The project's folder, set by Claude Code.")
    claude_code_session_id: str | None = Field(default=None, description="Session id, set by Claude Code.")
    dionysus_session_file: Path | None = None
    dionysus_session_idle_minutes: int = Field(default=30, ge=1)
    dionysus_allow_plaintext: bool = Field(default=False, description="Allow plain bolt:// to another host.")
    dionysus_neo4j_version: Neo4jVersion = Field(default="5.26.31", description="Version of the embedded Neo4j.")
    dionysus_embedding_dimensions: int = Field(default=768, ge=1, le=4096)
    dionysus_poll_ms: int = Field(default=150, ge=10, le=60_000, description="Pause between two looks at the queue.")
    dionysus_verify_seconds: float = Field(
        default=300, ge=0, description="Pause between two comparisons of both stores; 0: none unless one is called for."
    )
    dionysus_incident_deletes: int = Field(default=10, ge=1, description="More deletes than this in the span.")
    dionysus_incident_updates: int = Field(default=5, ge=1, description="Fewer changed contents are no incident.")
    dionysus_incident_share: float = Field(
        default=0.5, gt=0, lt=1, description="Contents of more than this share of the memories changed in the span."
    )
    dionysus_incident_seconds: float = Field(default=60, gt=0, le=3600, description="The span.")
    dionysus_drill_hours: float = Field(default=24, ge=0, description="Pause between two drills; 0: none by itself.")
    dionysus_batch_rows: int = Field(default=1000, ge=1, le=10_000)
    dionysus_batch_bytes: int = Field(default=4_000_000, ge=10_000)
    dionysus_fulltext_analyzer: str = "english"
    dionysus_words_weight: float = Field(default=0.5, ge=0, le=1, description="Share of the words in a query's score.")
    dionysus_alert_webhook_url: SecretStr | None = Field(default=None, description="Where alerts are posted to.")
    memory_webhook_token: SecretStr = Field(
        default=SecretStr(""), description="Key of the signature of what is posted."
    )
    dionysus_log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="before")
    @classmethod
    def _without_placeholders(cls, given: dict[str, object]) -> dict[str, object]:
        # Claude Code expands the `${NAME:-default}` of .mcp.json; other clients of that file hand it over as it is.
        return {name: value for name, text in given.items() if (value := _expanded(text)) is not None}

    @field_validator("neo4j_uri")
    @classmethod
    def _known_scheme(cls, uri: str) -> str:
        parts = _url_parts("NEO4J_URI", uri)
        scheme = uri if uri == EMBEDDED else parts.scheme
        known = {EMBEDDED, "bolt", "bolt+s", "bolt+ssc", "neo4j", "neo4j+s", "neo4j+ssc"}
        if scheme not in known:
            raise ValueError("NEO4J_URI must be 'embedded:' or start with bolt://, bolt+s://, neo4j:// or neo4j+s://")
        if "@" in parts.netloc:
            raise ValueError("NEO4J_URI must not hold a password: set NEO4J_USER and NEO4J_PASSWORD")
        return uri

    @field_validator("database_url")
    @classmethod
    def _postgres_url(cls, url: SecretStr) -> SecretStr:
        value = url.get_secret_value()
        if value != EMBEDDED and _url_parts("DATABASE_URL", value).scheme not in {"postgres", "postgresql"}:
            raise ValueError("DATABASE_URL must be 'embedded:' or start with postgresql://")
        return url

    @field_validator("ollama_url")
    @classmethod
    def _http_url(cls, url: str) -> str:
        parts = _url_parts("OLLAMA_URL", url)
        if parts.scheme not in {"http", "https"} or not parts.netloc:
            raise ValueError("OLLAMA_URL must start with http:// or https:// and name a host")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _webhook_that_can_be_used(self) -> Self:
        if self.dionysus_alert_webhook_url is None:
            return self
        name = "DIONYSUS_ALERT_WEBHOOK_URL"
        parts = _url_parts(name, self.dionysus_alert_webhook_url.get_secret_value())
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{name} must start with http:// or https:// and name a host")
        if parts.scheme == "http" and parts.hostname not in LOOPBACK and not self.dionysus_allow_plaintext:
            raise ValueError(
                f"{name} is plain http:// to another host: alerts would cross the network readable. Use https://, or "
                "set DIONYSUS_ALLOW_PLAINTEXT=1 to allow it"
            )
        if not self.memory_webhook_token.get_secret_value():
            raise ValueError(f"{name} is set but MEMORY_WEBHOOK_TOKEN, which signs what is posted, is not: set both")
        return self

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        parts = _url_parts("NEO4J_URI", self.neo4j_uri)
        plain = parts.scheme in {"bolt", "neo4j"}
        if plain and (parts.hostname or "") not in LOOPBACK and not self.dionysus_allow_plaintext:
            raise ValueError(
                f"NEO4J_URI is a plain {parts.scheme}:// to another host: memories and the password would cross the "
                f"network readable. Use {parts.scheme}+s://, or set DIONYSUS_ALLOW_PLAINTEXT=1 to allow it"
            )
        if self.neo4j_uri == EMBEDDED and self.neo4j_password.get_secret_value():
            raise ValueError("NEO4J_PASSWORD is set but NEO4J_URI is 'embedded:', which has no password: set NEO4J_URI")
        return self


def load_settings() -> Settings:
    """The settings of this process's environment.

    Raises:
        SettingsError: With one plain sentence for each setting that is wrong, or that does not exist.
    """
    unknown = [name for name in sorted(os.environ) if _is_unknown(name)]
    if unknown:
        raise SettingsError("; ".join(f"{name} is not a setting{_nearest(name)}" for name in unknown))
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(e["loc"], e["msg"]) for e in error.errors())) from None


def _url_parts(name: str, url: str) -> SplitResult:
    """The parts of a URL. What cannot be read is not quoted: the library's message holds the password."""
    try:
        parts = urlsplit(url)
        if name != "DATABASE_URL":  # which may name several hosts, each with its port
            _ = parts.port
    except ValueError:
        raise ValueError(f"{name} cannot be read as a URL: write special characters as %XX") from None
    return parts


def _expanded(value: object) -> object:
    placeholder = PLACEHOLDER.fullmatch(value) if isinstance(value, str) else None
    return (placeholder["default"] or None) if placeholder else value


def _is_unknown(name: str) -> bool:
    """Ours by its prefix, and no setting; what the tests read of their servers is not the program's."""
    ours = name.startswith("DIONYSUS_") and not name.startswith("DIONYSUS_TEST_")
    return ours and name.lower() not in Settings.model_fields


def _nearest(name: str) -> str:
    near = get_close_matches(name, [field.upper() for field in Settings.model_fields], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _explain(location: tuple[int | str, ...], message: str) -> str:
    name = str(location[0]).upper() if location else ""
    text = message.removeprefix("Value error, ")
    return text if not name or name in text else f"{name}: {text}"
