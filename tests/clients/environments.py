"""Client environments outside .venv: each client has one of its own, built on first use and kept.

They are in `$XDG_CACHE_HOME` or `~/.cache`, then `gkt-gateway/clients`, like the model weights. A folder is named after
its lock file: another lock makes another folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gateway.local.weights import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).parent
OLDEST_NODE = 20
# npm's codes and uv's words for a registry that there is no way to: no network, no name, no certificate that is known.
_CUT_OFF = re.compile(
    r"^npm error code (?:ECONNREFUSED|ECONNRESET|ENOTFOUND|EAI_AGAIN|E(?:NET|HOST)UNREACH|ETIMEDOUT|ERR_SOCKET_TIMEOUT"
    r"|SELF_SIGNED_CERT_IN_CHAIN|DEPTH_ZERO_SELF_SIGNED_CERT|UNABLE_TO_\w+)$"
    r"|^ *(?:cause|Caused by): (?:client error \(Connect\)|operation timed out)$",
    re.MULTILINE,
)
# What a user's shell may hold and a test must not see.
_OTHERS = (
    "OPENAI_",
    "LITELLM_",
    "LANGCHAIN_",
    "LANGSMITH_",
    "LLM_",
    "AZURE_",
    "ANTHROPIC_",
    "CLAUDE",
    "CODEX_",
    "AI_SDK_",
)


def clean_environment() -> dict[str, str]:
    """Return the process's environment without variables that clients read. LiteLLM does not fetch its price list."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)}
    return kept | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}


def python_environment(name: str) -> Path:
    """Return the `bin` folder of an environment with exactly the packages of `NAME.lock`.

    Skips the test if the package registry is unreachable.
    """
    lock = HERE / f"{name}.lock"

    def install(folder: Path) -> None:
        uv = Path(sys.executable).with_name("uv")
        run_command(uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder / "env")
        python = folder / "env" / "bin" / "python"
        run_installer(uv, "pip", "sync", "--quiet", "--python", python, "--require-hashes", "--no-build", lock)

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return built(name, (lock.read_bytes(), version.encode()), install) / "env" / "bin"


def node_modules(client: str = "node") -> Path:
    """Return the folder of the packages of CLIENT/package-lock.json.

    Skips the test without a suitable Node.js, or if the package registry is unreachable.
    """
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("did not run: it needs node and npm, which are not on the PATH")
    version = run_command("node", "--version").strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"did not run: it needs Node.js {OLDEST_NODE} or later, and this is {version}")
    names = ("package.json", "package-lock.json")

    def install(folder: Path) -> None:
        for name in names:
            shutil.copy(HERE / client / name, folder)
        # npm's own pauses before it asks again add up to a minute.
        soon = ("--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000")
        run_installer("npm", "ci", *soon, "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", folder)

    contents = tuple((HERE / client / name).read_bytes() for name in names)
    return built(client, contents, install) / "node_modules"


def built(name: str, inputs: tuple[bytes, ...], install: Callable[[Path], None], *, group: str = "clients") -> Path:
    """Return a folder of the cache that `install` filled once for these inputs."""
    digest = hashlib.sha256(b"\0".join(inputs)).hexdigest()[:16]
    folder = cache_folder().parent / group / f"{name}-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / ".lock"):
        done = folder / ".installed"
        if not done.exists():
            install(folder)
            done.touch()
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process install while the others wait, as long as their tests may."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def run_installer(*command: str | Path) -> None:
    """Run an installer.

    Skips the test if the registry is unreachable; any other failure fails it, since the lock may be wrong.
    """
    try:
        run_command(*command)
    except pytest.fail.Exception as failure:
        match = _CUT_OFF.search(str(failure))
        if match is None:
            raise
        pytest.skip(f"did not run: there is no way to the package registry ({match[0].strip()})")


def run_command(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} failed:\n{done.stderr.strip()}", pytrace=False)
    return done.stdout
