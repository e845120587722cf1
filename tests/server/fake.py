"""A program without stores behind the tools, and the launcher that serves it: `python -m tests.server.fake`."""

import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio

from dionysus_sync_mcp.domain.errors import DionysusError, InputError
from dionysus_sync_mcp.engine.ports.shared import OnProgress, Scope
from dionysus_sync_mcp.engine.query import QueryRequest
from dionysus_sync_mcp.engine.reports import (
    Example,
    Exposure,
    Hit,
    QueryAnswer,
    RecoveryPlan,
    RecoveryReport,
    StatusReport,
    SyncReport,
)
from dionysus_sync_mcp.server.app import App, serve

PLAN_ID = "3f0e7c52-3d5b-4d7c-9d0e-0a6f3f7f9a11"
RECOVERY_ID = "6a1f4f0e-9d0c-4a53-8f0b-2d0f5f0f7c22"
MEMORY_ID = "11111111-1111-4111-8111-111111111111"
HIT = Hit(
    memory_id=MEMORY_ID,
    content="a memory",
    content_cut=False,
    project="atlas",
    session_id=None,
    session_started_at=None,
    session_summary=None,
    memory_type="semantic",
    tags=[],
    created_at=None,
    score=1.0,
    matched=["words"],
)


class FakeProgram:
    """Answers at once, remembers what it was asked, and raises `error` if it is set."""

    def __init__(self) -> None:
        self.error: DionysusError | None = None
        self.asked: list[object] = []
        self.touched = 0
        self.released = False
        self.overwrites = 0
        self.complete = True

    async def status(self, timeout: float = 1.5) -> StatusReport:
        self._note(timeout)
        return StatusReport(
            next_step="Nothing to do.",
            warnings=[],
            exposure=Exposure(unsynced=0),
            services=[],
            local=None,
            remote=None,
            worker=None,
            session=None,
            version="0",
        )

    async def sync(
        self,
        *,
        timeout: float | None = None,
        embed: bool = True,
        retry_parked: bool = False,
        verify: bool = False,
        rebuild: bool = False,
        on_progress: OnProgress | None = None,
    ) -> SyncReport:
        self._note((timeout, embed, retry_parked, verify, rebuild))
        await _count_to_three(on_progress)
        return SyncReport(result="success", next_step="Nothing to do.", pushed=3, remaining=0)

    async def plan_recovery(
        self,
        scope: Scope,
        *,
        as_of: datetime | None = None,
        before_incident: str | None = None,
        include_deleted: bool = False,
        overwrite_newer: bool = False,
        only_missing: bool = False,
        on_progress: OnProgress | None = None,
    ) -> RecoveryPlan:
        self._note((scope, as_of, before_incident, include_deleted, overwrite_newer, only_missing))
        await _count_to_three(on_progress)
        return RecoveryPlan(
            plan_id=PLAN_ID,
            expires_at=datetime.now(UTC) + timedelta(minutes=15),
            next_step="Run the plan.",
            as_of=as_of,
            before_incident=before_incident,
            will_restore=3,
            will_overwrite=self.overwrites,
            counts={"missing_here": 3},
            examples={"missing_here": [Example(memory_id=MEMORY_ID, excerpt="first")]},
            table_missing=True,
        )

    def planned_overwrites(self, plan_id: str) -> int:
        _know(plan_id)
        return self.overwrites

    async def run_recovery(self, plan_id: str, *, on_progress: OnProgress | None = None) -> RecoveryReport:
        self._note(plan_id)
        _know(plan_id)
        await _count_to_three(on_progress)
        refused = [] if self.complete else [Example(memory_id=MEMORY_ID, reason="content is too long")]
        return RecoveryReport(
            complete=self.complete,
            next_step="Nothing to do.",
            recovery_id=RECOVERY_ID,
            planned=3,
            overwritten=self.overwrites,
            restored=3 - len(refused),
            verified=3 - len(refused),
            already_there=0,
            refused=refused,
            refused_count=len(refused),
        )

    async def query(self, request: QueryRequest) -> QueryAnswer:
        self._note(request)
        return QueryAnswer(
            items=[HIT],
            searched="words and meaning",
            warnings=[],
            next_cursor=None,
            next_step="Nothing to do.",
        )

    async def touch(self) -> None:
        self.touched += 1

    def release(self) -> None:
        self.released = True
        logging.getLogger("fake").warning("RELEASED")

    def _note(self, asked: object) -> None:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error


def fake_app(program: FakeProgram) -> App:
    """The fake behind the tools."""

    @asynccontextmanager
    async def opener() -> AsyncIterator[FakeProgram]:
        yield program

    return App(lambda: opener)


def _know(plan_id: str) -> None:
    if plan_id != PLAN_ID:
        raise InputError("there is no such plan", where="plan_id", hint="Plan again.")


async def _count_to_three(on_progress: OnProgress | None) -> None:
    for count in (1, 2, 3):
        if on_progress is not None:
            await on_progress(count, 3, f"{count} of 3")


def _broken_app() -> App:
    @asynccontextmanager
    async def opener() -> AsyncIterator[FakeProgram]:
        yield FakeProgram()
        raise AssertionError("never reached")

    async def break_down() -> None:
        raise RuntimeError("a fault of the test's")

    @asynccontextmanager
    async def breaking() -> AsyncIterator[FakeProgram]:
        async with opener() as program, anyio.create_task_group() as tasks:
            tasks.start_soon(break_down)
            yield program

    return App(lambda: breaking)


def main() -> None:
    """Serve the fake over stdio; `FAKE_BROKEN` lets its background fail, `FAKE_OVERWRITES` its plan overwrite rows."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    program = FakeProgram()
    program.overwrites = int(os.environ.get("FAKE_OVERWRITES", "0"))
    anyio.run(serve, _broken_app() if os.environ.get("FAKE_BROKEN") else fake_app(program))


if __name__ == "__main__":
    main()
