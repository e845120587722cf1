"""The four tools, in memory and over stdio, in both eras of the protocol."""

import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.types import CallToolResult, TextContent

from dionysus_sync_mcp.domain import errors
from dionysus_sync_mcp.domain.errors import DionysusError, InputError, Unavailable
from dionysus_sync_mcp.engine.ports.query import Filters
from dionysus_sync_mcp.engine.ports.shared import Scope
from dionysus_sync_mcp.engine.query import QueryRequest
from dionysus_sync_mcp.engine.reports import IncidentReport, StatusReport
from dionysus_sync_mcp.server.app import INSTRUCTIONS, Server, build
from dionysus_sync_mcp.server.tools import explain, tools
from tests.commands import COMMAND
from tests.server.fake import MEMORY_ID, PLAN_ID, RECOVERY_ID, FakeProgram, fake_app

NAMES = ["sync_now", "get_sync_status", "recover_from_remote", "query_cross_project"]
ERAS = [("auto", "2026-07-28"), ("legacy", "2025-11-25")]
Target = Server | StdioServerParameters
CLIENT_LIMIT = 2048  # Claude Code cuts descriptions and instructions there


@asynccontextmanager
async def client_of(program: FakeProgram, mode: str = "auto") -> AsyncIterator[Client]:
    """A client of a server in this process."""
    async with Client(build(fake_app(program)), mode=mode) as client:
        yield client


@pytest.fixture(params=["memory", "stdio"])
def target(request: pytest.FixtureRequest) -> Target:
    """The fake program's server, in this process and in one of its own."""
    if request.param == "memory":
        return build(fake_app(FakeProgram()))
    return StdioServerParameters(command=sys.executable, args=["-m", "tests.server.fake"])


@pytest.fixture
def program() -> FakeProgram:
    """The program behind the tools."""
    return FakeProgram()


def text_of(result: CallToolResult) -> str:
    """The only text of a result."""
    (block,) = result.content
    assert isinstance(block, TextContent)
    return block.text


@pytest.mark.parametrize(("mode", "version"), ERAS)
async def test_four_tools_on_every_way_in(target: Target, mode: str, version: str) -> None:
    """Listed in order, structured, with progress, strict: the same in memory, over stdio, in both eras."""
    seen: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)
        assert (total, message) == (3.0, f"{progress:.0f} of 3")

    async with Client(target, mode=mode) as client:
        assert client.protocol_version == version
        assert [tool.name for tool in (await client.list_tools()).tools] == NAMES
        synced = await client.call_tool("sync_now", {}, progress_callback=on_progress)
        assert synced.structured_content is not None
        assert synced.structured_content["pushed"] == 3
        status = await client.call_tool("get_sync_status")
        assert status.structured_content is not None
        assert status.structured_content["exposure"]["unsynced"] == 0
        plan = await client.call_tool("recover_from_remote", {"projects": ["atlas"]})
        assert plan.structured_content is not None
        assert PLAN_ID in plan.structured_content["next_step"]
        run = await client.call_tool("recover_from_remote", {"plan_id": PLAN_ID})
        assert run.structured_content is not None
        assert run.structured_content["report"]["verified"] == 3
        found = await client.call_tool("query_cross_project", {"query": "a memory"})
        assert found.structured_content is not None
        assert found.structured_content["items"][0]["memory_id"] == MEMORY_ID
        refused = await client.call_tool("sync_now", {"dryrun": True})
        assert refused.is_error
        assert "dryrun: there is no such argument" in text_of(refused)
        unknown = await client.call_tool("no_such_tool", {})
        assert unknown.is_error
    assert seen[-1] == 3.0
    assert seen == sorted(set(seen))


@pytest.mark.parametrize(("mode", "version"), ERAS)
async def test_twenty_calls_in_flight_are_all_answered(target: Target, mode: str, version: str) -> None:
    """Agents call in parallel."""
    results: list[CallToolResult] = []

    async def one(client: Client, i: int) -> None:
        results.append(await client.call_tool(NAMES[i % 4], {"query": "x"} if i % 4 == 3 else {}))

    with anyio.fail_after(20):
        async with Client(target, mode=mode) as client, anyio.create_task_group() as calls:
            assert client.protocol_version == version
            for i in range(20):
                calls.start_soon(one, client, i)
    assert [result.is_error for result in results] == [False] * 20


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        ("query_cross_project", {"query": "x", "limit": 0}, "limit: Input should be greater than or equal to 1"),
        ("query_cross_project", {"query": "x", "limit": 10_000}, "limit: Input should be less than or equal to 50"),
        ("query_cross_project", {"query": ""}, "query: String should have at least 1 character"),
        ("query_cross_project", {}, "query: is needed"),
        ("query_cross_project", {"query": "x\x00y"}, "query: must not hold a NUL character"),
        ("query_cross_project", {"query": "x" * 10_001}, "query: String should have at most 10000 characters"),
        ("query_cross_project", {"query": "x", "created_after": "2026-01-01T00:00:00"}, "has no timezone"),
        ("query_cross_project", {"query": "x", "memory_types": ["emotional"]}, "memory_types.0: Input should be 'epis"),
        ("query_cross_project", {"query": "x", "sessions": ["not-a-uuid"]}, "sessions.0: Input should be a valid UUID"),
        ("sync_now", {"timeout_seconds": 0}, "timeout_seconds: Input should be greater than or equal to 1"),
        ("recover_from_remote", {"memory_ids": ["' OR 1=1"]}, "memory_ids.0: Input should be a valid UUID"),
        ("recover_from_remote", {"plan_id": PLAN_ID, "projects": ["atlas"]}, "a plan is run as it was made"),
        ("recover_from_remote", {"plan_id": PLAN_ID, "only_missing": True}, "a plan is run as it was made"),
        ("recover_from_remote", {"plan_id": "another"}, "there is no such plan"),
        (
            "recover_from_remote",
            {"as_of": "2026-08-01T12:00:00"},
            "as_of: has no timezone; add Z for UTC, or an offset",
        ),
        ("recover_from_remote", {"as_of": "yesterday"}, "as_of: Input should be a valid datetime"),
        ("recover_from_remote", {"before_incident": "the last"}, "before_incident: Input should be a valid UUID"),
    ],
)
async def test_wrong_argument_gets_one_short_line(
    program: FakeProgram, tool: str, arguments: dict[str, Any], said: str
) -> None:
    """What is wrong and that nothing was changed, without the value, a URL or a trace."""
    async with client_of(program) as client:
        result = await client.call_tool(tool, arguments)
    assert result.is_error
    text = text_of(result)
    assert said in text
    assert "Nothing was changed" in text
    assert len(text) < 400
    assert not re.search(r"https?:|input_value|\n|Error executing", text)


async def test_arguments_reach_the_engine(program: FakeProgram) -> None:
    """Hostile names travel as they are; ids and times are normalised; each call counts as activity."""
    project = 'it\'s "quoted"\n`}) DETACH'
    arguments = {
        "query": "why?",
        "projects": [project],
        "sessions": ["11111111-1111-4111-8111-11111111AAAA"],
        "memory_types": ["semantic"],
        "tags": ["x"],
        "created_after": "2026-08-01T00:00:00Z",
        "limit": 50,
        "cursor": "c",
        "response_format": "detailed",
    }
    async with client_of(program) as client:
        assert not (await client.call_tool("query_cross_project", arguments)).is_error
        wanted = {"memory_ids": [MEMORY_ID], "include_deleted": True, "as_of": "2026-08-01T02:00:00+02:00"}
        await client.call_tool("recover_from_remote", wanted)
        wanted = {"before_incident": PLAN_ID, "overwrite_newer": True, "only_missing": True}
        await client.call_tool("recover_from_remote", wanted)
        await client.call_tool("sync_now", {"timeout_seconds": 5, "wait_for_vectors": True, "retry_parked": True})
    request, recovery, incident, sync = (asked for asked in program.asked if not isinstance(asked, float))
    assert isinstance(request, QueryRequest)
    assert request.filters.created_after is not None
    assert request == QueryRequest(
        "why?",
        Filters(
            (project,),
            ("11111111-1111-4111-8111-11111111aaaa",),
            ("semantic",),
            ("x",),
            request.filters.created_after,
        ),
        limit=50,
        cursor="c",
        detailed=True,
    )
    assert request.filters.created_after.isoformat() == "2026-08-01T00:00:00+00:00"
    midnight = datetime(2026, 8, 1, tzinfo=UTC)
    assert recovery == (Scope(memory_ids=(MEMORY_ID,)), midnight, None, True, False, False)
    assert incident == (Scope(), None, PLAN_ID, False, True, True)
    assert sync == (5, True, True, False, False)
    assert program.touched == 4


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ({}, (60, False, False, False, False)),
        ({"retry_parked": True}, (60, False, True, False, False)),
        ({"verify": True}, (60, False, False, True, False)),
        ({"rebuild": True}, (60, False, False, False, True)),
    ],
)
async def test_a_sync_does_more_only_if_it_is_asked_to(
    program: FakeProgram, arguments: dict[str, bool], asked: tuple[object, ...]
) -> None:
    """Each argument by itself."""
    async with client_of(program) as client:
        assert not (await client.call_tool("sync_now", arguments)).is_error
    assert program.asked == [asked]


@pytest.mark.parametrize("kind", [errors.StoreRolledBack, errors.RemoteDamaged])
@pytest.mark.parametrize("tool", NAMES)
def test_what_only_a_person_can_decide_is_handed_to_the_user(kind: type[DionysusError], tool: str) -> None:
    """An agent must not answer it by improvising."""
    said = explain(kind("the stores do not go together", where="PostgreSQL"), tool)
    assert "Tell the user" in said
    assert "Nothing was lost" in said


def _every_error() -> list[type[DionysusError]]:
    """But for the one that has its own words, and is an `Unavailable` like others."""
    found = (e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, DionysusError))
    return [e for e in found if e is not errors.LineageMoved]


@pytest.mark.parametrize("kind", _every_error())
@pytest.mark.parametrize("tool", NAMES)
async def test_every_error_says_what_it_means_for_the_data(
    program: FakeProgram, kind: type[DionysusError], tool: str
) -> None:
    """Whatever fails, the reply says what happened, what it means for the data and, mostly, which tool is safe next."""
    program.error = kind("the disk is full", where="Neo4j", hint="Free some space.")
    async with client_of(program) as client:
        result = await client.call_tool(tool, {"query": "x"} if tool == "query_cross_project" else {})
    assert result.is_error
    text = text_of(result)
    assert text.startswith("Neo4j: the disk is full. Free some space. ")
    assert re.search(r"Nothing was|remote store still has everything", text)
    assert issubclass(kind, InputError) or "get_sync_status" in text or "Plan again" in text
    assert not COMMAND.search(text)


async def test_fault_of_the_program_keeps_its_own_text_out_of_the_reply(
    program: FakeProgram, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unforeseen exception is logged, and the reply says that nothing was lost."""

    async def broken(_timeout: float = 1.5) -> None:
        raise RuntimeError("secret-in-a-trace")

    monkeypatch.setattr(program, "status", broken)
    async with client_of(program) as client:
        result = await client.call_tool("get_sync_status")
    assert result.is_error
    assert "Nothing was lost" in text_of(result)
    assert "secret-in-a-trace" not in text_of(result)
    assert "secret-in-a-trace" in caplog.text


async def test_status_that_hangs_is_cut_off(program: FakeProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool answers within two seconds even if the program behind it does not."""

    async def hanging(_timeout: float = 1.5) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(program, "status", hanging)
    async with client_of(program) as client:
        with anyio.fail_after(2):
            result = await client.call_tool("get_sync_status")
    assert result.is_error
    assert "did not answer" in text_of(result)


async def test_activity_that_cannot_be_noted_does_not_fail_the_call(
    program: FakeProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session's activity is a matter of the side."""
    noted: list[str] = []

    async def failing() -> None:
        noted.append("asked")
        raise Unavailable("away")

    monkeypatch.setattr(program, "touch", failing)
    async with client_of(program) as client:
        assert not (await client.call_tool("get_sync_status")).is_error
    assert noted == ["asked"]


async def test_program_that_cannot_be_opened_answers_with_the_reason() -> None:
    """The server lives, and each tool says why nothing works."""
    app = fake_app(FakeProgram())

    @asynccontextmanager
    async def opener() -> AsyncIterator[FakeProgram]:
        raise Unavailable("the home folder is not writable")
        yield FakeProgram()

    app._opener = lambda: opener
    async with Client(build(app)) as client:
        for tool in NAMES:
            result = await client.call_tool(tool, {"query": "x"} if tool == "query_cross_project" else {})
            assert result.is_error
            assert "the home folder is not writable" in text_of(result)


async def test_descriptions_are_complete_short_and_harmless(program: FakeProgram) -> None:
    """Titles, all four hints, a description for every argument and result, nothing that a client would cut."""
    async with client_of(program) as client:
        listed = (await client.list_tools()).tools
    for tool in listed:
        assert tool.annotations is not None
        assert tool.title == tool.annotations.title is not None
        hints = tool.annotations.model_dump(exclude={"title"})
        assert None not in hints.values()
        assert 0 < len(tool.description or "") < CLIENT_LIMIT
        assert "\n  " not in (tool.description or "")
        assert tool.input_schema["additionalProperties"] is False
        assert tool.output_schema is not None
        for properties in (tool.input_schema["properties"], tool.output_schema["properties"]):
            assert [name for name, schema in properties.items() if not {"description", "$ref"} & schema.keys()] == []
        assert not COMMAND.search(tool.model_dump_json())
    assert len(INSTRUCTIONS) < CLIENT_LIMIT
    assert not COMMAND.search(INSTRUCTIONS)
    read_only = {tool.name for tool in tools() if tool.annotations and tool.annotations.read_only_hint}
    assert read_only == {"get_sync_status", "query_cross_project"}
    assert [tool.name for tool in tools() if tool.annotations and tool.annotations.destructive_hint] == [
        "recover_from_remote"
    ]


def test_a_recovery_cut_short_says_that_planning_again_is_safe() -> None:
    """The remote going away in the middle of a run is the case that an agent must not answer by improvising."""
    assert "planning again finds what is left" in explain(Unavailable("away", where="Neo4j"), "recover_from_remote")


@pytest.mark.parametrize("tool", NAMES)
def test_a_database_that_is_gone_is_for_the_user(tool: str) -> None:
    """The agent hears that what was pushed is safe, and does not make a database by itself."""
    said = explain(errors.DatabaseMissing("the database is not there", where="PostgreSQL"), tool)
    assert "safe in the remote store" in said
    assert "Tell the user" in said


async def test_a_run_that_falls_short_is_an_error_with_counts(program: FakeProgram) -> None:
    """Never a success: how many, why, and that planning again finds the rest."""
    program.complete = False
    async with client_of(program) as client:
        result = await client.call_tool("recover_from_remote", {"plan_id": PLAN_ID})
    assert result.is_error
    text = text_of(result)
    assert "1 of 3 planned memories are not here" in text
    assert "2 restored, 2 verified, 0 already there, 1 refused" in text
    assert f"{MEMORY_ID}: content is too long" in text
    assert "Plan again" in text


async def test_after_a_run_the_agent_hears_how_the_incident_is_closed(
    program: FakeProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the user, with a command; until then every status names it."""
    moment = datetime(2026, 8, 1, tzinfo=UTC)
    incident = IncidentReport(
        id=RECOVERY_ID, kind="drop", summary="Gone.", detected_at=moment, restore_point=moment, last_at=moment, rows=3
    )
    report = (await program.status()).model_copy(update={"incidents": [incident], "open_incidents": 1})

    async def status(_timeout: float = 1.5) -> StatusReport:
        return report

    async with client_of(program) as client:
        before = (await client.call_tool("recover_from_remote", {"plan_id": PLAN_ID})).structured_content
        monkeypatch.setattr(program, "status", status)
        after = (await client.call_tool("recover_from_remote", {"plan_id": PLAN_ID})).structured_content
    assert before is not None
    assert after is not None
    assert "--close" not in before["next_step"]
    assert f"'dionysus-sync-mcp incidents --close {RECOVERY_ID} --reason recovered'" in after["next_step"]
