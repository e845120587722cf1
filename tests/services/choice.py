"""Pure decisions: where a server comes from, and what its absence means for a test."""

from collections.abc import Sequence
from typing import Literal, get_args

Service = Literal["postgres", "neo4j", "ollama"]
Absence = Literal["skip", "fail"]
SERVICES: tuple[Service, ...] = get_args(Service)


class SourceAbsentError(Exception):
    """One way to have a server does not work here; the message says why."""


class ServerAbsentError(Exception):
    """A server that could neither be found nor started.

    Args:
        service: Which one.
        reasons: Why each way that was tried did not work, in the order tried.
    """

    def __init__(self, service: Service, reasons: Sequence[str]) -> None:
        super().__init__(f"no {service} for this test: {'; '.join(reasons)}")
        self.service = service


def required_services(text: str) -> frozenset[Service]:
    """The services named in `DIONYSUS_TEST_REQUIRE`, a comma-separated list.

    Raises:
        ValueError: A name that is not a service.
    """
    names = {name.strip() for name in text.split(",")} - {""}
    unknown = sorted(names.difference(SERVICES))
    if unknown:
        raise ValueError(f"DIONYSUS_TEST_REQUIRE names {', '.join(unknown)}; known are {', '.join(SERVICES)}")
    return frozenset(service for service in SERVICES if service in names)


def on_absence(service: Service, required: frozenset[Service]) -> Absence:
    """What becomes of a test whose server cannot be had."""
    return "fail" if service in required else "skip"
