"""The last drill in the status."""

from typing import Any

import pytest

from dionysus_sync_mcp.engine.drill import VERIFY
from dionysus_sync_mcp.engine.ports.status import Activity
from dionysus_sync_mcp.engine.reports import DrillReport, StatusReport
from dionysus_sync_mcp.engine.status import StatusReader
from tests.engine.memory_local import START, MemoryLocal
from tests.engine.memory_remote import MemoryRemote


async def status(monkeypatch: pytest.MonkeyPatch, last_drill: dict[str, Any] | None) -> StatusReport:
    """With this drill on record."""
    local, remote = MemoryLocal(), MemoryRemote()

    async def activity(_since: object) -> Activity:
        return Activity(last_drill=last_drill)

    monkeypatch.setattr(local, "activity", activity)
    return await StatusReader((), local, remote, remote, "0").read(START, 5, None, None)


def drilled(**fields: Any) -> dict[str, Any]:  # noqa: ANN401 - of a report's fields
    """A drill as it is on record."""
    report = DrillReport(next_step=VERIFY, finished_at=START, **fields)
    return report.model_dump(mode="json")


async def test_a_drill_that_failed_is_a_warning_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is in the report as it was put on record."""
    report = await status(monkeypatch, drilled(result="failed", missing=2, different=1))
    assert report.last_drill is not None
    assert report.last_drill.missing == 2
    (warning,) = [w for w in report.warnings if "drill" in w]
    assert "2 memories did not come back, 1 came back otherwise" in warning
    assert report.next_step == VERIFY


async def test_one_that_passed_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is only shown."""
    report = await status(monkeypatch, drilled(result="passed", verified=3))
    assert report.last_drill is not None
    assert not any("drill" in w for w in report.warnings)


@pytest.mark.parametrize("kept", [None, {"result": "of another version"}])
async def test_a_drill_that_cannot_be_read_is_none_at_all(
    monkeypatch: pytest.MonkeyPatch, kept: dict[str, Any] | None
) -> None:
    """The status is answered all the same."""
    assert (await status(monkeypatch, kept)).last_drill is None
