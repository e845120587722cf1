"""Entry point: without an argument it serves MCP over stdio; otherwise it is the command line."""

import signal
import sys


def main() -> None:
    """Run the program; ends the process."""
    if len(sys.argv) > 1:
        from dionysus_sync_mcp.cli import main as run_command

        run_command()
    else:
        _serve()


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the server takes it over: nothing is open yet
    # Imported here, and nothing else before: what is not needed for `initialize` would delay its answer.
    from dionysus_sync_mcp.domain.errors import SettingsError
    from dionysus_sync_mcp.settings import load_settings

    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"dionysus-sync-mcp: {error}\n")
        sys.exit(2)
    if sys.stdin.isatty():
        sys.stderr.write("Serving MCP over stdio. For the commands see: dionysus-sync-mcp --help\n")
    from dionysus_sync_mcp.server.app import main as serve

    serve(settings)


if __name__ == "__main__":
    main()
