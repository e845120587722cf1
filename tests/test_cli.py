"""The command line: what it prints where, and how it exits."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import anyio
import pytest
from typer.testing import CliRunner, Result

from dionysus_sync_mcp import runtime
from dionysus_sync_mcp.cli import output, running
from dionysus_sync_mcp.cli.commands import app
from dionysus_sync_mcp.domain.errors import (
    AccessRefused,
    DionysusError,
    EmbeddedError,
    InputError,
    SettingsError,
    Unavailable,
)
from dionysus_sync_mcp.embedded import services
from dionysus_sync_mcp.engine.ports.shared import Health, OnProgress, Scope
from dionysus_sync_mcp.engine.query import QueryRequest
from dionysus_sync_mcp.engine.reports import (
    CheckReport,
    DrillReport,
    Example,
    IncidentReport,
    IncidentsReport,
    InitReport,
    InitStep,
    LocalReport,
    PurgeReport,
    QueryAnswer,
    RecoveryPlan,
    RemoteReport,
    ServiceReport,
    SessionReport,
    Statistics,
    StatusReport,
    SyncReport,
    UndoReport,
    VerifyReport,
)
from dionysus_sync_mcp.engine.status import PARKED, RECOVER_DELETED
from dionysus_sync_mcp.settings import Settings
from tests.commands import COMMAND
from tests.server.fake import HIT, MEMORY_ID, RECOVERY_ID, FakeProgram

INCIDENT = IncidentReport(
    id=MEMORY_ID,
    kind="drop",
    summary="The table memories is gone.",
    detected_at=datetime(2026, 8, 1, 12, tzinfo=UTC),
    restore_point=datetime(2026, 8, 1, 11, 59, 59, tzinfo=UTC),
    last_at=datetime(2026, 8, 1, 11, 59, 59, tzinfo=UTC),
    rows=3,
    role="agent",
    application_name="psql [bold]",
    pid=4711,
    statement="D·ROP T·ABLE memories",
)
OPEN = f"An incident is open: {INCIDENT.summary} Call recover_from_remote."
DRILL = DrillReport(
    result="passed",
    next_step="Nothing to do.",
    finished_at=datetime(2026, 8, 1, 3, tzinfo=UTC),
    recovered=3,
    verified=3,
)
SESSION = SessionReport(session_id=MEMORY_ID, project="atlas", started_at=datetime(2026, 8, 1, tzinfo=UTC))
AWAY = {
    "DATABASE_URL": "postgresql://someone:hunter2@127.0.0.1:1/x",
    "NEO4J_URI": "bolt://127.0.0.1:1",
    "NEO4J_PASSWORD": "hunter2",
    "OLLAMA_URL": "http://127.0.0.1:1",
    "DIONYSUS_ALERT_WEBHOOK_URL": "http://me:hunter2@127.0.0.1:1/hunter2?key=hunter2",
    "MEMORY_WEBHOOK_TOKEN": "hunter2",
}
LOCAL = {
    "initialised": True,
    "table_present": True,
    "capture_installed": True,
    "memories": 3,
    "queue": {"queued": 0, "parked": 0},
    "open_conflicts": 0,
}
REMOTE = {"live": 3, "tombstones": 0, "versions": 3, "without_vector": 0}
TAUGHT_BY_EXAMPLE = ("query", "recover", "undo", "drill", "incidents", "purge", "roles")
COMMANDS = [
    ["init"],
    ["status"],
    ["doctor"],
    ["sync"],
    ["query", "x"],
    ["verify"],
    ["verify", "--deep", "--repair", "--yes"],
    ["recover", "--dry-run"],
    ["recover", "--yes"],
    ["recover", "--before-incident", MEMORY_ID, "--only-missing", "--yes"],
    ["undo"],
    ["undo", MEMORY_ID, "--yes"],
    ["drill"],
    ["incidents"],
    ["incidents", "--all"],
    ["incidents", MEMORY_ID],
    ["incidents", "--close", MEMORY_ID, "--reason", "it was meant"],
    ["purge", "--older-than", "90d"],
    ["purge", "--memory", MEMORY_ID, "--yes"],
    ["session", "show"],
    ["session", "list"],
    ["session", "end"],
]


class FakeRuntime(FakeProgram):
    """The fake program with what only the command line uses."""

    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings.model_validate({name.lower(): value for name, value in AWAY.items()})
        self.addresses = ()
        self.remote = self
        self.services: list[ServiceReport] = []
        self.incomplete = False
        self.local: LocalReport | None = LocalReport.model_validate(LOCAL)
        self.patience: float | None = None

    async def health(self, timeout: float) -> Health:
        self.patience = timeout
        return Health("neo4j")

    async def init(self, *, dry_run: bool) -> InitReport:
        self._note(dry_run)
        step = InitStep(name="install the queue", sql="CREATE TABLE dionysus_sync.sync_queue ();\n")
        return InitReport(dry_run=dry_run, adopted=True, steps=[step], backfilled=2, next_step="See the status.")

    async def status(self, timeout: float = 1.5) -> StatusReport:
        report = (await super().status(timeout)).model_copy(update={"services": self.services})
        return report.model_copy(update={"local": self.local, "remote": RemoteReport.model_validate(REMOTE)})

    async def doctor(self, timeout: float) -> StatusReport:
        return await self.status(timeout)

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
        report = await super().sync(
            timeout=timeout,
            embed=embed,
            retry_parked=retry_parked,
            verify=verify,
            rebuild=rebuild,
            on_progress=on_progress,
        )
        return report.model_copy(update={"result": "queued"}) if self.incomplete else report

    async def verify(
        self,
        kind: Literal["quick", "full", "deep"] = "full",
        *,
        repair: bool = False,
        limit: int = 1000,
        prefer: Literal["local", "remote"] | None = None,
        dry_run: bool = True,
        on_progress: OnProgress | None = None,
    ) -> VerifyReport:
        self._note((kind, repair, limit, prefer, dry_run, on_progress is not None))
        if not self.incomplete:
            return VerifyReport(kind=kind, result="clean", next_step="Nothing to do.", local_memories=3)
        example = Example(memory_id=MEMORY_ID, excerpt="a lost one")
        return VerifyReport(
            kind=kind,
            result="drift",
            next_step="Call sync_now, then verify again.",
            counts={"missing_here": 2},
            examples={"missing_here": [example]},
            actions={"missing_here": "the row is restored"},
        )

    async def undo(
        self, recovery_id: str | None, *, dry_run: bool, on_progress: OnProgress | None = None
    ) -> UndoReport:
        self._note((recovery_id, dry_run, on_progress is not None))
        done = not (dry_run or self.incomplete)
        return UndoReport(
            recovery_id=recovery_id or RECOVERY_ID,
            complete=done,
            dry_run=dry_run,
            next_step="Nothing to do.",
            overwritten=self.overwrites,
            restored=self.overwrites if done or dry_run else 0,
        )

    async def drill(self, *, on_progress: OnProgress | None = None) -> DrillReport:
        self._note(on_progress is not None)
        return DRILL.model_copy(update={"result": "failed", "missing": 1}) if self.incomplete else DRILL

    async def incidents(self, *, open_only: bool, limit: int) -> IncidentsReport:
        self._note((open_only, limit))
        return IncidentsReport(next_step="Call recover_from_remote.", incidents=[INCIDENT])

    async def incident(self, incident_id: str) -> IncidentReport:
        self._note(incident_id)
        return INCIDENT

    async def close_incident(self, incident_id: str, reason: str) -> IncidentReport:
        self._note((incident_id, reason))
        return INCIDENT.model_copy(update={"closed_at": INCIDENT.detected_at, "closed_reason": reason})

    async def purge(
        self,
        older_than: timedelta | None,
        memory_ids: Sequence[str],
        *,
        dry_run: bool,
        on_progress: OnProgress | None = None,
    ) -> PurgeReport:
        self._note((older_than, memory_ids, dry_run, on_progress is not None))
        return PurgeReport(dry_run=dry_run, next_step="Nothing to do.", versions=5, tombstones=2)

    async def query(self, request: QueryRequest) -> QueryAnswer:
        answer = await super().query(request)
        return answer.model_copy(update={"searched": "nothing", "items": []}) if self.incomplete else answer

    def session(self) -> SessionReport:
        self._note("session")
        return SESSION

    async def end_session(self, summary: str | None = None) -> SessionReport | None:
        self._note(summary)
        return None if self.incomplete else SESSION.model_copy(update={"ended_at": SESSION.started_at})

    async def list_sessions(self, limit: int) -> list[SessionReport]:
        self._note(limit)
        return [SESSION]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """The program that every command opens."""
    fake = FakeRuntime()

    @asynccontextmanager
    async def opened(*_: object, **__: object) -> AsyncIterator[FakeRuntime]:
        yield fake

    monkeypatch.setattr(runtime, "open_runtime", opened)
    for name, value in AWAY.items():
        monkeypatch.setenv(name, value)
    return fake


def invoke(*args: str, typed: str | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(args), input=typed, env={"COLUMNS": "200"})


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_done_is_0_with_words_for_people(program: FakeRuntime, command: list[str]) -> None:
    """A command that did all of its work exits with 0 and says something on stdout."""
    result = invoke(*command)
    assert (result.exit_code, program.asked != []) == (0, True)
    assert result.stdout.strip() != ""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_json_stands_alone_on_stdout(program: FakeRuntime, command: list[str]) -> None:
    """With --json, stdout is one JSON value and nothing else."""
    result = invoke(*command, "--json")
    assert (result.exit_code, program.asked != []) == (0, True)
    assert json.loads(result.stdout)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("it is away", where="Neo4j", hint="Wait."), 1),
        (AccessRefused("the password is wrong", where="Neo4j", hint="Set NEO4J_PASSWORD."), 1),
        (EmbeddedError("no space left", where="Neo4j", hint="Free some."), 1),
        (InputError("no such thing", where="cursor", hint="Leave it out."), 2),
        (SettingsError("contradiction", where="settings", hint="Choose."), 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, DionysusError) else str(value),
)
def test_error_has_its_exit_code_and_one_line(
    program: FakeRuntime, command: list[str], error: DionysusError, code: int
) -> None:
    """What the user can correct is 2, the rest 1; what, where and hint stand on one line of stderr, or in the JSON."""
    program.error = error
    plain = invoke(*command)
    assert (plain.exit_code, plain.stdout, plain.stderr) == (code, "", f"error: {error}\n")
    as_json = invoke(*command, "--json")
    assert as_json.exit_code == code
    told = json.loads(as_json.stdout)["error"]
    assert (told["kind"], told["what"], told["where"]) == (type(error).__name__, error.what, error.where)


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ([], ("full", False, 1000, None, True, True)),
        (["--deep"], ("deep", False, 1000, None, True, True)),
        (["--repair"], ("full", True, 1000, None, True, True)),
        (["--repair", "--yes", "--limit", "7"], ("full", True, 7, None, False, True)),
        (["--repair", "--prefer", "local", "--yes"], ("full", True, 1000, "local", False, True)),
    ],
)
def test_a_repair_is_a_dry_run_unless_it_is_told_otherwise(
    program: FakeRuntime, command: list[str], asked: tuple[object, ...]
) -> None:
    """Only --repair with --yes changes anything."""
    assert invoke("verify", *command).exit_code == 0
    assert program.asked == [asked]


@pytest.mark.parametrize("command", [["--yes"], ["--prefer", "remote"], ["--prefer", "neither"], ["--limit", "0"]])
def test_verify_without_sense_is_wrong_use(program: FakeRuntime, command: list[str]) -> None:
    """Nothing is compared."""
    assert (invoke("verify", *command).exit_code, program.asked) == (2, [])


def test_differences_are_shown_with_what_a_repair_does(program: FakeRuntime) -> None:
    """By class, with an example, and commands in the place of tools."""
    program.incomplete = True
    shown = invoke("verify").stdout
    assert all(
        text in shown for text in ("missing here", "the row is restored", "a lost one", "dionysus-sync-mcp sync")
    )


@pytest.mark.parametrize("command", [["sync"], ["query", "x"], ["verify"], ["recover", "--yes"]], ids=" ".join)
def test_remote_store_gets_time_to_answer_for_the_first_time(program: FakeRuntime, command: list[str]) -> None:
    """A server that has just been started answers its first question slowly, and a person can wait."""
    invoke(*command)
    assert program.patience == running.PATIENCE_SECONDS


@pytest.mark.parametrize("command", [["sync"], ["query", "x"], ["verify"], ["session", "end"]], ids=" ".join)
def test_what_could_not_be_done_in_full_is_1(program: FakeRuntime, command: list[str]) -> None:
    """A sync that leaves changes, a search of nothing, stores that differ, a session that had ended."""
    program.incomplete = True
    assert invoke(*command).exit_code == 1


def test_doctor_exits_with_1_if_a_service_is_down(program: FakeRuntime) -> None:
    """It shows why, and what to do about it."""
    program.services = [
        ServiceReport(service="postgresql", up=True, version="18.1", degraded=["no superuser: no event triggers"]),
        ServiceReport(service="neo4j", up=False, error="connection refused", hint="Start Neo4j."),
    ]
    result = invoke("doctor")
    assert result.exit_code == 1
    for said in ("18.1", "no superuser", "connection refused", "Start Neo4j."):
        assert said in result.stdout


def test_doctor_exits_with_1_if_a_store_cannot_be_read(program: FakeRuntime) -> None:
    """A role without rights reaches PostgreSQL, which is no good state."""
    program.services = [ServiceReport(service="postgresql", up=True)]
    assert invoke("doctor").exit_code == 0
    program.local = None
    assert invoke("doctor").exit_code == 1


@pytest.mark.usefixtures("program")
def test_sessions_are_listed_with_their_whole_ids() -> None:
    """Ids are there to be copied, whatever the width of the terminal."""
    lines = invoke("session", "list").stdout.splitlines()
    assert lines == [f"{MEMORY_ID}  2026-08-01 00:00 to open  atlas"]


def test_advice_names_commands_and_not_tools(program: FakeRuntime) -> None:
    """The engine speaks of the agent's tools; a person reads what they can type."""
    program.error = Unavailable("it is away", hint="Call recover_from_remote without plan_id, then get_sync_status.")
    said = "error: it is away. Run 'dionysus-sync-mcp recover', then 'dionysus-sync-mcp status'.\n"
    assert invoke("sync").stderr == said


@pytest.mark.parametrize(
    ("advice", "said"),
    [
        (RECOVER_DELETED, "Run 'dionysus-sync-mcp recover --include-deleted' to see what can be brought back."),
        (
            "Call recover_from_remote with before_incident=5f0c-9a.",
            "Run 'dionysus-sync-mcp recover --before-incident 5f0c-9a'.",
        ),
        ("Plan again with only_missing=true.", "Plan again with --only-missing."),
    ],
)
def test_advice_names_options_and_not_arguments(advice: str, said: str) -> None:
    """As they are typed."""
    assert output.for_people(advice) == said


def test_init_dry_run_prints_sql_only(program: FakeRuntime) -> None:
    """Stdout can be reviewed or piped; advice goes to stderr."""
    result = invoke("init", "--dry-run")
    assert result.stdout == "-- install the queue\nCREATE TABLE dionysus_sync.sync_queue ();\n\n"
    assert result.stderr == "See the status.\n"
    assert program.asked == [True]


@pytest.mark.parametrize(
    ("option", "asked"),
    [
        ((), (600, True, False, False, False)),
        (("--retry-parked",), (600, True, True, False, False)),
        (("--verify", "--no-embed"), (600, False, False, True, False)),
        (("--rebuild", "--timeout", "5"), (5, True, False, False, True)),
    ],
)
def test_sync_options_reach_the_engine(
    program: FakeRuntime, option: tuple[str, ...], asked: tuple[object, ...]
) -> None:
    """Nothing of it happens unasked."""
    assert invoke("sync", *option).exit_code == 0
    assert program.asked == [asked]


def test_sync_says_what_came_of_what_was_asked_for(program: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed for good, what was sent again, and what the comparison found."""
    check = CheckReport(finished_at=datetime(2026, 8, 1, tzinfo=UTC), kind="full", result="drift", differences=2)
    report = SyncReport(
        result="partial", next_step=PARKED, failed_for_good=4, retried=5, rebuilt=6, check=check, remaining=0
    )

    async def sync(**_: object) -> SyncReport:
        return report

    monkeypatch.setattr(program, "sync", sync)
    result = invoke("sync", "--verify")
    assert result.exit_code == 1
    for said in (
        "tried again: 5; queued to be sent again: 6",
        "failed for good: 4",
        "compared: drift, 2 differences",
        "run 'dionysus-sync-mcp sync --retry-parked' to try them again, or change these rows",
    ):
        assert said in result.stdout
    assert json.loads(invoke("sync", "--json").stdout)["check"]["differences"] == 2


def test_status_shows_the_last_check_and_the_last_day(program: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the queue's entries that failed for good."""
    now = datetime(2026, 8, 1, tzinfo=UTC)
    queue = {"queued": 1, "parked": 3, "failed": 2}
    program.local = LocalReport.model_validate({**LOCAL, "queue": queue})
    plain = program.status

    async def status(timeout: float = 1.5) -> StatusReport:
        check = CheckReport(finished_at=now, kind="quick", result="clean")
        done = Statistics(since=now, pushes=7, pushed=70, conflicts=1)
        return (await plain(timeout)).model_copy(update={"last_check": check, "statistics": done})

    monkeypatch.setattr(program, "status", status)
    shown = " ".join(invoke("status").stdout.split())
    assert "queue 1 queued, 3 parked, 2 of these failed for good" in shown
    assert "last check 2026-08-01 00:00:00, quick: clean" in shown
    assert "last 24 hours 70 changes in 7 pushes, 1 conflicts" in shown


def test_query_options_reach_the_engine(program: FakeRuntime) -> None:
    """Each option, in the engine's terms; local times become aware ones."""
    found = invoke(
        *("query", "why?", "--project", "a", "--project", "b", "--session", MEMORY_ID, "--type", "semantic"),
        *("--tag", "t", "--after", "2026-08-01", "--limit", "5", "--cursor", "c", "--detailed"),
    )
    assert found.exit_code == 0
    (request,) = program.asked
    assert isinstance(request, QueryRequest)
    assert (request.filters.projects, request.filters.sessions) == (("a", "b"), (MEMORY_ID,))
    assert (request.filters.memory_types, request.filters.tags) == (("semantic",), ("t",))
    assert request.filters.created_after == datetime(2026, 8, 1).astimezone()
    assert (request.text, request.limit, request.cursor, request.detailed) == ("why?", 5, "c", True)


@pytest.mark.parametrize(
    "args",
    [
        ["query", "x", "--limit", "0"],
        ["query", "x", "--limit", "10000"],
        ["query", "x", "--session", "not-a-uuid"],
        ["query", "x", "--type", "emotional"],
        ["query", "x", "--after", "yesterday"],
        ["query"],
        ["sync", "--timeout", "0"],
        ["recover", "--memory", "' OR 1=1"],
        ["recover", "--as-of", "yesterday"],
        ["recover", "--as-of", "2026-08-01T12:00:00"],
        ["recover", "--before-incident", "the last one"],
        ["undo", "the last one"],
        ["incidents", "--close", MEMORY_ID],
        ["incidents", "--reason", "it was meant"],
        ["incidents", MEMORY_ID, "--close", MEMORY_ID, "--reason", "it was meant"],
        ["purge"],
        ["purge", "--older-than", "90d", "--memory", MEMORY_ID],
        ["purge", "--older-than", "0d"],
        ["purge", "--older-than", "90"],
        ["purge", "--memory", "' OR 1=1"],
        ["session", "list", "--limit", "0"],
        ["no-such-command"],
        ["status", "--no-such-option"],
    ],
    ids=" ".join,
)
def test_wrong_use_is_2(program: FakeRuntime, args: list[str]) -> None:
    """Nothing is asked of the program."""
    result = invoke(*args)
    assert (result.exit_code, program.asked) == (2, [])
    assert "Usage" in result.stderr


def test_recover_asks_and_takes_no_for_an_answer(program: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal the plan is shown and confirmed; no means that nothing was changed."""
    monkeypatch.setattr("dionysus_sync_mcp.cli.recovering._somebody_is_there", lambda: True)
    declined = invoke("recover", typed="n\n")
    assert declined.exit_code == 1
    assert "Nothing was changed." in declined.stderr
    assert len(program.asked) == 1
    agreed = invoke("recover", typed="y\n")
    assert agreed.exit_code == 0
    assert len(program.asked) == 3


def test_recover_without_a_terminal_needs_yes(program: FakeRuntime) -> None:
    """A script that forgot --yes is told so, and only a plan was made."""
    result = invoke("recover", "--project", "atlas", "--include-deleted")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert program.asked == [(Scope(projects=("atlas",)), None, None, True, False, False)]


def test_recover_with_nothing_to_bring_back_ends_with_the_plan(
    program: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is asked to confirm nothing."""
    plan = anyio.run(program.plan_recovery, Scope()).model_copy(update={"will_restore": 0, "table_missing": False})
    program.asked.clear()

    async def nothing(scope: Scope, **_: object) -> RecoveryPlan:
        program.asked.append(scope)
        return plan

    monkeypatch.setattr(program, "plan_recovery", nothing)
    result = invoke("recover")
    assert result.exit_code == 0
    assert len(program.asked) == 1


def test_recover_options_reach_the_engine(program: FakeRuntime) -> None:
    """Each by itself; a time with an offset becomes the same moment in UTC."""
    times = ("2026-08-01T12:00:00Z", "2026-08-01T14:00:00+02:00", "2026-08-01 12:00:00+00:00")
    for time in times:
        assert invoke("recover", "--dry-run", "--as-of", time).exit_code == 0
    noon = datetime(2026, 8, 1, 12, tzinfo=UTC)
    assert program.asked == [(Scope(), noon, None, False, False, False)] * len(times)
    program.asked.clear()
    assert invoke("recover", "--dry-run", "--before-incident", MEMORY_ID, "--overwrite-newer").exit_code == 0
    assert invoke("recover", "--dry-run", "--memory", MEMORY_ID, "--only-missing").exit_code == 0
    assert program.asked == [
        (Scope(), None, MEMORY_ID, False, True, False),
        (Scope(memory_ids=(MEMORY_ID,)), None, None, False, False, True),
    ]


@pytest.mark.usefixtures("program")
def test_a_time_without_an_offset_is_told_what_it_lacks() -> None:
    """It could be anybody's."""
    assert "add Z for UTC, or an offset" in invoke("recover", "--as-of", "2026-08-01T12:00:00").stderr


def test_recover_says_how_many_rows_it_overwrites_before_it_asks(
    program: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And afterwards, how to take that back."""
    monkeypatch.setattr("dionysus_sync_mcp.cli.recovering._somebody_is_there", lambda: True)
    program.overwrites = 2
    declined = invoke("recover", typed="n\n")
    assert declined.exit_code == 1
    assert "2 of them overwrite rows that are here" in declined.stdout
    assert "Bring 3 memories back now, overwriting 2 rows that are here?" in declined.stderr
    agreed = invoke("recover", typed="y\n")
    assert agreed.exit_code == 0
    assert f"overwritten 2; 'dionysus-sync-mcp undo {RECOVERY_ID}' brings back what they held" in agreed.stdout


def test_after_a_recovery_the_incident_can_be_closed(program: FakeRuntime) -> None:
    """Nothing does that by itself; and only if everything is back."""
    close = f"'dionysus-sync-mcp incidents --close {MEMORY_ID} --reason recovered'"
    recover = ("recover", "--before-incident", MEMORY_ID, "--yes")
    assert close in invoke(*recover).stdout
    program.complete = False
    assert close not in invoke(*recover).stdout


def test_a_recovery_that_falls_short_is_1(program: FakeRuntime) -> None:
    """With the counts and the reason of what was refused."""
    program.complete = False
    result = invoke("recover", "--yes")
    assert result.exit_code == 1
    assert "planned 3, restored 2, verified 2" in result.stdout
    assert "content is too long" in result.stdout


def test_undo_only_looks_unless_somebody_agrees(program: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody can be asked it takes --yes; on a terminal the answer counts."""
    program.overwrites = 2
    looked = invoke("undo")
    assert (looked.exit_code, program.asked) == (0, [(None, True, True)])
    assert "2 would be brought back" in looked.stdout
    monkeypatch.setattr("dionysus_sync_mcp.cli.recovering._somebody_is_there", lambda: True)
    program.asked.clear()
    assert invoke("undo", typed="n\n").exit_code == 1
    assert program.asked == [(None, True, True)]
    program.asked.clear()
    done = invoke("undo", typed="y\n")
    assert (done.exit_code, program.asked) == (0, [(None, True, True), (RECOVERY_ID, False, True)])
    assert "2 brought back, verified" in done.stdout


def test_undo_that_falls_short_is_1(program: FakeRuntime) -> None:
    """Rows that could not be brought back."""
    program.overwrites = 2
    program.incomplete = True
    assert invoke("undo", MEMORY_ID, "--yes").exit_code == 1
    assert program.asked == [(MEMORY_ID, False, True)]


def test_a_drill_that_does_not_pass_is_1(program: FakeRuntime) -> None:
    """So that a scheduler notices."""
    program.incomplete = True
    result = invoke("drill")
    assert result.exit_code == 1
    assert "failed, 2026-08-01 03:00:00: 3 recovered, 3 verified, 1 missing" in result.stdout


def test_incidents_are_listed_with_their_whole_ids_and_who_did_it(program: FakeRuntime) -> None:
    """Markup in a client's name stays text."""
    shown = invoke("incidents").stdout
    assert program.asked == [(True, 50)]
    assert "OPEN  The table memories is gone." in shown
    assert MEMORY_ID in shown
    assert "by agent, psql [bold], pid 4711" in shown
    assert "D·ROP T·ABLE memories" in invoke("incidents", MEMORY_ID).stdout
    closed = invoke("incidents", "--close", MEMORY_ID, "--reason", " it was meant ").stdout
    assert program.asked[-1] == (MEMORY_ID, "it was meant")
    assert "closed" in closed


def test_status_shows_incidents_first_and_the_last_drill(program: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before warnings and services, and said once; those beyond the shown ones are counted."""
    plain = program.status

    async def status(timeout: float = 1.5) -> StatusReport:
        found = {"incidents": [INCIDENT], "open_incidents": 3, "last_drill": DRILL, "warnings": [OPEN, "a warning"]}
        return (await plain(timeout)).model_copy(update=found)

    monkeypatch.setattr(program, "status", status)
    lines = invoke("status").stdout.splitlines()
    assert lines[0] == "OPEN  The table memories is gone."
    assert lines[2:4] == ["2 more: 'dionysus-sync-mcp incidents' lists them.", "! a warning"]
    assert any(line.startswith("last drill") or "last drill" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30m", 1800), ("12h", 43_200), ("90d", 7_776_000), ("2w", 1_209_600), ("1D", 86_400)]
)
def test_a_purge_by_age_is_a_dry_run_unless_it_is_told_otherwise(program: FakeRuntime, text: str, seconds: int) -> None:
    """Spans are a number and a unit."""
    assert invoke("purge", "--older-than", text).exit_code == 0
    assert invoke("purge", "--older-than", text, "--yes").exit_code == 0
    assert program.asked == [(timedelta(seconds=seconds), (), dry_run, True) for dry_run in (True, False)]


def test_roles_prints_sql_only_and_connects_to_nothing(program: FakeRuntime) -> None:
    """Stdout can be reviewed or piped; a name that would have to be quoted everywhere is refused."""
    result = invoke("roles", "shop_agent")
    assert (result.exit_code, result.stderr, program.asked) == (0, "", [])
    assert "GRANT SELECT, INSERT, UPDATE, DELETE" in result.stdout
    assert "shop_agent" in result.stdout
    assert not COMMAND.search(result.stdout)
    assert json.loads(invoke("roles", "--json").stdout)["sql"]
    assert invoke("roles", "x; y").exit_code == 2


def test_contents_cannot_act_on_the_terminal(program: FakeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Escape sequences and markup in a memory are shown as text or not at all."""
    hit = HIT.model_copy(
        update={"content": "\x1b]0;owned\x07\x1b[31mred [bold]x[/bold] \u202eevil", "tags": ["[blink]"]}
    )
    answer = QueryAnswer(items=[hit], searched="words", warnings=[], next_cursor=None, next_step="Done.")

    async def query(_: QueryRequest) -> QueryAnswer:
        return answer

    monkeypatch.setattr(program, "query", query)
    out = invoke("query", "x").stdout
    assert "red [bold]x[/bold] evil" in out
    assert "[blink]" in out
    assert not {"\x1b", "\x07", "\u202e"} & set(out)


@pytest.mark.parametrize(
    "args",
    [[], ["session"], ["embedded"], *([name] for name in TAUGHT_BY_EXAMPLE), ["session", "end"]],
    ids=" ".join,
)
def test_help_teaches(args: list[str]) -> None:
    """Every level explains itself, without opening anything."""
    result = invoke(*args, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    if args and args[-1] in {*TAUGHT_BY_EXAMPLE, "end"}:
        assert "Example: dionysus-sync-mcp" in result.stdout


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"NEO4J_URI": "bolt://neo4j.example.com"}, "plain bolt:// to another host"),
        ({"NEO4J_URI": "embedded:", "NEO4J_PASSWORD": "hunter2"}, "NEO4J_PASSWORD is set but NEO4J_URI is 'embedded:'"),
        ({"DATABASE_URL": "mysql://someone:hunter2@127.0.0.1/x"}, "DATABASE_URL must be"),
        ({"NEO4J_URI": "bolt://neo4j:hunter2@127.0.0.1"}, "must not hold a password"),
        ({"DIONYSUS_POLL_MS": "never"}, "DIONYSUS_POLL_MS"),
        ({"DIONYSUS_ALERT_WEBHOOK_URL": "https://127.0.0.1/hunter2"}, "MEMORY_WEBHOOK_TOKEN"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("args", [["status"], ["status", "--json"], []], ids=["command", "json", "serving"])
def test_wrong_settings_are_2_and_named_without_secrets(args: list[str], settings: dict[str, str], said: str) -> None:
    """The same for a command and for the server: one plain sentence, and no password."""
    done = run_program(*args, env=settings)
    assert done.returncode == 2
    assert said in done.stdout + done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [*COMMANDS, ["embedded", "status"]], ids=" ".join)
def test_password_of_an_unreachable_database_is_never_shown(command: list[str], tmp_path: Path) -> None:
    """Whatever the real program says of servers that are away, the password is not in it, nor a trace."""
    done = run_program(*command, env={**AWAY, "HOME": str(tmp_path), "DIONYSUS_LOG_LEVEL": "DEBUG"})
    assert done.returncode in {0, 1}
    assert "hunter2" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_version_is_printed() -> None:
    """The name and the number, as packaging tools expect."""
    done = run_program("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("dionysus-sync-mcp ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_ends_the_worker_cleanly(number: signal.Signals, tmp_path: Path) -> None:
    """A service manager's stop is not a failure."""
    command = [sys.executable, "-m", "dionysus_sync_mcp", "worker", "--json"]
    env = {**os.environ, **AWAY, "HOME": str(tmp_path)}
    async with await anyio.open_process(command, env=env) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        with anyio.fail_after(20):
            said = ""
            while "The worker runs" not in said:
                said += (await process.stderr.receive()).decode()
            process.send_signal(number)
            out = b"".join([chunk async for chunk in process.stdout])
            assert await process.wait() == 0
    assert json.loads(out) == {"ended_by": number.name}


async def test_work_that_ends_by_itself_needs_no_signal() -> None:
    """Waiting for a signal does not keep work that is done."""

    async def work() -> None:
        return

    with anyio.fail_after(5):
        assert await running.until_signal(work) is None


def run_program(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the real program with a closed stdin and without this machine's own settings."""
    return subprocess.run(
        [sys.executable, "-m", "dionysus_sync_mcp", *args],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The embedded services replaced by a note of what was asked of them."""
    asked: list[str] = []
    found = services.EmbeddedStatus(
        home=str(tmp_path),
        keeper_pid=7,
        services=[
            services.ServiceStatus(
                service="neo4j",
                version="5.26.31",
                running=True,
                phase="ready",
                message="",
                pid=8,
                url="bolt://127.0.0.1:7777",
                holders=[],
                persistent=True,
                data_folder=str(tmp_path),
                disk_bytes=1,
            )
        ],
    )

    async def up(home: Path, wanted: frozenset[str], *_: object) -> None:
        asked.append(f"up {home} {sorted(wanted)}")

    async def down(home: Path) -> services.EmbeddedStatus:
        asked.append(f"down {home}")
        return found

    async def status(_: Path) -> services.EmbeddedStatus:
        return found

    for function in (up, down, status):
        monkeypatch.setattr(services, function.__name__, function)
    monkeypatch.setenv("DIONYSUS_HOME", str(tmp_path))
    return asked


def test_embedded_commands_say_where_the_services_are(embedded: list[str], tmp_path: Path) -> None:
    """The addresses, for people and for programs; both services under the home of the settings."""
    for command in ("up", "down", "status"):
        plain = invoke("embedded", command)
        assert plain.exit_code == 0
        assert "neo4j: bolt://127.0.0.1:7777" in plain.stdout
        as_json = json.loads(invoke("embedded", command, "--json").stdout)
        assert as_json["services"][0]["url"] == "bolt://127.0.0.1:7777"
    up, down = f"up {tmp_path} ['neo4j', 'postgres']", f"down {tmp_path}"
    assert embedded == [up, up, down, down]


def test_in_a_projects_folder_the_session_is_the_projects(tmp_path: Path) -> None:
    """Claude Code names the folder to its server but not to a shell; without a file there, the home folder's counts."""
    settings = Settings()
    assert running.in_folder(settings, tmp_path) is settings
    (tmp_path / ".claude-session-id").touch()
    assert running.in_folder(settings, tmp_path).claude_project_dir == tmp_path
    named = settings.model_copy(update={"claude_project_dir": tmp_path / "named"})
    assert running.in_folder(named, tmp_path) is named
