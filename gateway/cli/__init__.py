"""The `gkt-gateway` command: one small file per subcommand."""

from __future__ import annotations

import sys

from gateway.errors import StartupError

_INTERRUPTED = 130


def main() -> None:
    """Run the command. A StartupError is printed in one line with exit status 1; Ctrl-C exits with 130."""
    try:
        # Imported here, so that Ctrl-C during the import exits with 130.
        from gateway.cli.commands import app

        app()
    except StartupError as error:
        sys.stderr.write(f"gkt-gateway: {error.message}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
