"""The human's commands. Not imported when the program serves MCP."""

from dionysus_sync_mcp.cli.commands import app


def main() -> None:
    """Run the command of `sys.argv`; ends the process with 0 done, 1 not all of it could be done, 2 wrong use."""
    app(prog_name="dionysus-sync-mcp")
