"""The decision between skipping and failing."""

import pytest

from tests.services.choice import SERVICES, Service, on_absence, required_services


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", set()),
        ("postgres", {"postgres"}),
        (" postgres , neo4j,", {"postgres", "neo4j"}),
        ("postgres,neo4j,ollama", set(SERVICES)),
    ],
)
def test_required_services_are_a_comma_separated_list(text: str, expected: set[Service]) -> None:
    """Blanks and empty parts do not count."""
    assert required_services(text) == expected


def test_an_unknown_required_service_is_named() -> None:
    """A misspelt name would otherwise let its tests be skipped in silence."""
    with pytest.raises(ValueError, match="names postgresql; known are postgres, neo4j, ollama"):
        required_services("neo4j,postgresql")


@pytest.mark.parametrize("service", SERVICES)
def test_an_absent_server_fails_only_where_it_is_required(service: Service) -> None:
    """A test is skipped without its server, unless the run requires that server."""
    assert on_absence(service, frozenset()) == "skip"
    assert on_absence(service, frozenset(SERVICES) - {service}) == "skip"
    assert on_absence(service, frozenset({service})) == "fail"
