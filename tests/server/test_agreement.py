"""Rows that are here are overwritten only after the user has agreed, in both eras of the protocol."""

import sys

import anyio
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.context import ClientRequestContext
from mcp.types import CallToolResult, ElicitRequestParams, ElicitResult, TextContent

from dionysus_sync_mcp.server.app import Server, build
from tests.server.fake import PLAN_ID, RECOVERY_ID, FakeProgram, fake_app

ERAS = ["auto", "legacy"]
PROCESS = StdioServerParameters(command=sys.executable, args=["-m", "tests.server.fake"], env={"FAKE_OVERWRITES": "7"})


class User:
    """Answers what is asked with one and the same answer, and remembers the question."""

    def __init__(self, answer: ElicitResult) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def __call__(self, context: ClientRequestContext, params: ElicitRequestParams) -> ElicitResult:
        assert context.session is not None
        self.asked.append(params.message)
        return self.answer


YES = ElicitResult(action="accept", content={"overwrite": True})
NO = ElicitResult(action="accept", content={"overwrite": False})
DECLINE = ElicitResult(action="decline")
CANCEL = ElicitResult(action="cancel")


@pytest.fixture
def program() -> FakeProgram:
    """A program whose plan overwrites rows."""
    program = FakeProgram()
    program.overwrites = 7
    return program


def ran(program: FakeProgram) -> bool:
    """Whether the plan was run."""
    return PLAN_ID in program.asked


async def run_plan(target: Server | StdioServerParameters, mode: str, user: User | None) -> CallToolResult:
    """Run the plan for a user; without one the client cannot ask."""
    with anyio.fail_after(20):
        async with Client(target, mode=mode, elicitation_callback=user) as client:
            return await client.call_tool("recover_from_remote", {"plan_id": PLAN_ID})


@pytest.mark.parametrize("mode", ERAS)
async def test_a_yes_runs_the_plan(program: FakeProgram, mode: str) -> None:
    """One question, with the number of rows and the way back."""
    user = User(YES)
    result = await run_plan(build(fake_app(program)), mode, user)
    assert not result.is_error
    assert result.structured_content is not None
    assert result.structured_content["report"]["recovery_id"] == RECOVERY_ID
    assert ran(program)
    (question,) = user.asked
    assert "overwrites 7 rows" in question
    assert "undo" in question


@pytest.mark.parametrize("mode", ERAS)
@pytest.mark.parametrize(
    ("answer", "said"),
    [(NO, "The user said no"), (DECLINE, "The user said no"), (CANCEL, "closed without an answer")],
    ids=["no", "declined", "cancelled"],
)
async def test_anything_but_a_yes_changes_nothing(
    program: FakeProgram, mode: str, answer: ElicitResult, said: str
) -> None:
    """It is said, and the plan can still be run."""
    result = await run_plan(build(fake_app(program)), mode, User(answer))
    assert not result.is_error
    assert result.structured_content is not None
    assert result.structured_content["phase"] == "declined"
    assert said in result.structured_content["next_step"]
    assert "nothing was changed" in result.structured_content["next_step"]
    assert not ran(program)
    assert not (await run_plan(build(fake_app(program)), mode, User(YES))).is_error
    assert ran(program)


@pytest.mark.parametrize("mode", ERAS)
async def test_a_client_that_cannot_ask_is_refused_with_the_ways_out(program: FakeProgram, mode: str) -> None:
    """Before anything is changed: plan without overwriting, or let the user run it in a terminal."""
    result = await run_plan(build(fake_app(program)), mode, None)
    assert result.is_error
    (block,) = result.content
    assert isinstance(block, TextContent)
    assert "only_missing=true" in block.text
    assert "dionysus-sync-mcp recover --before-incident ID" in block.text
    assert block.text.endswith("Nothing was changed.")
    assert not ran(program)


@pytest.mark.parametrize("mode", ERAS)
async def test_a_plan_that_overwrites_nothing_asks_nothing(program: FakeProgram, mode: str) -> None:
    """Neither a client that can ask nor one that cannot."""
    program.overwrites = 0
    user = User(DECLINE)
    assert not (await run_plan(build(fake_app(program)), mode, user)).is_error
    assert not (await run_plan(build(fake_app(program)), mode, None)).is_error
    assert user.asked == []
    assert program.asked.count(PLAN_ID) == 2


@pytest.mark.parametrize("mode", ERAS)
async def test_an_answer_that_cannot_be_read_is_no_yes(program: FakeProgram, mode: str) -> None:
    """A client that sends something else than the form."""
    result = await run_plan(build(fake_app(program)), mode, User(ElicitResult(action="accept", content={})))
    assert result.is_error
    (block,) = result.content
    assert isinstance(block, TextContent)
    assert block.text.startswith("The answer to the question put to the user could not be read. Nothing was changed.")
    assert not ran(program)


@pytest.mark.parametrize("mode", ERAS)
async def test_wrong_use_is_refused_before_the_user_is_asked(program: FakeProgram, mode: str) -> None:
    """A plan that does not exist, or that is given beside other arguments."""
    user = User(YES)
    async with Client(build(fake_app(program)), mode=mode, elicitation_callback=user) as client:
        for arguments in ({"plan_id": "another"}, {"plan_id": PLAN_ID, "include_deleted": True}):
            assert (await client.call_tool("recover_from_remote", arguments)).is_error
    assert user.asked == []
    assert program.asked == []


@pytest.mark.parametrize("mode", ERAS)
async def test_the_question_travels_over_stdio(mode: str) -> None:
    """The server as a process."""
    user = User(YES)
    assert not (await run_plan(PROCESS, mode, user)).is_error
    assert len(user.asked) == 1
    assert (await run_plan(PROCESS, mode, None)).is_error


@pytest.mark.parametrize("mode", ERAS)
async def test_a_plan_says_beforehand_whether_the_user_will_be_asked(program: FakeProgram, mode: str) -> None:
    """So that no agent shows the user a plan that it cannot run."""
    said = []
    for user in (User(YES), None):
        async with Client(build(fake_app(program)), mode=mode, elicitation_callback=user) as client:
            reply = (await client.call_tool("recover_from_remote")).structured_content
            assert reply is not None
            said.append(reply["next_step"])
    assert "the user is asked before" in said[0]
    assert "only_missing=true" in said[1]
