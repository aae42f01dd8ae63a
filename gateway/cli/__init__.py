"""The `gkt-gateway` command: one small file per subcommand."""

from __future__ import annotations

import sys
from typing import Any

from gateway.errors import StartupError

SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": "markdown",
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""Of every group of commands."""
_INTERRUPTED = 130


def main() -> None:
    """Run the command; what cannot start says so in one line and leaves with 1, Ctrl-C at any time with 130."""
    try:
        # Here, since importing takes long enough for a Ctrl-C.
        from gateway.cli.commands import app

        app()
    except StartupError as error:
        sys.stderr.write(f"gkt-gateway: {error.message}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
