"""Run a fake engine in its own process for the duration of a block."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from load_tests.fake.profile import TIMINGS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from load_tests.fake.profile import Dialect

_ROOT = Path(__file__).parents[1]
_ENDS_WITHIN_S = 5.0


@contextmanager
def fake_engine(
    profile: str | Path = "instant", *, dialect: Dialect | None = None, port: int = 0, for_s: float = 600
) -> Iterator[str]:
    """Start a fake engine and yield its URL, without /v1.

    Args:
        profile: the name of a file under timings/, or the path of another one.
        for_s: seconds after which the engine ends, even if this process cannot end it.

    Raises RuntimeError if it does not start. Its messages are on stderr.
    """
    file = profile if isinstance(profile, Path) else TIMINGS / f"{profile}.yaml"
    command = [sys.executable, "-m", "load_tests.fake_engine", "--profile", str(file.resolve())]
    command += ["--port", str(port), "--for", str(for_s)] + (["--dialect", dialect] if dialect else [])
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            if not first:
                raise RuntimeError(f"the fake engine did not start: exit code {process.wait(_ENDS_WITHIN_S)}")
            yield str(json.loads(first)["url"])
        finally:
            process.terminate()
            try:
                process.wait(_ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
