"""Install each peer into its own environment, in a folder below the user's cache, from the pins in peers/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PEERS = Path(__file__).with_name("peers")
# Only a complete environment has a stamp, which is a copy of its pins.
_STAMP = "installed-from"


class NotInstalled(Exception):
    """A peer is missing or could not be installed. The message gives the reason."""


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gkt-gateway" / "peers"


def pins(peer: str) -> Path:
    """Return the file that pins every package of a peer by version and hash."""
    return PEERS / peer / ("package-lock.json" if (PEERS / peer / "package.json").exists() else "requirements.lock")


def find(peer: str) -> Path | None:
    """Return the environment of a peer; None if it is missing or was installed from other pins."""
    folder = cache() / peer
    stamp = folder / _STAMP
    return folder if stamp.exists() and stamp.read_text() == pins(peer).read_text() else None


def install(peer: str, say: Callable[[str], object]) -> Path:
    """Install a peer again. The installer's output goes to stderr. Raises NotInstalled."""
    folder = cache() / peer
    shutil.rmtree(folder, ignore_errors=True)
    say(f"installing {peer} into {folder}")
    if pins(peer).name == "package-lock.json":
        if shutil.which("npm") is None:
            raise NotInstalled("it needs Node.js and npm")
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(PEERS / peer / name, folder)
        _run("npm", "ci", "--prefix", folder, "--ignore-scripts", "--no-fund", "--no-audit")
    else:
        _run(sys.executable, "-m", "venv", folder)
        _run(
            folder / "bin/python", "-m", "pip", "--disable-pip-version-check", "install", "--require-hashes",
            "--only-binary", ":all:", "-r", pins(peer),
        )  # fmt: skip
    (folder / _STAMP).write_text(pins(peer).read_text())
    return folder


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode:
        raise NotInstalled(f"`{' '.join(map(str, command[:4]))} ...` ended with status {done.returncode}")
