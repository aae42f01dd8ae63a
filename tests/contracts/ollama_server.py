"""Start Ollama on a port and create the model of the suite in its store.

    python tests/contracts/ollama_server.py OLLAMA PORT MODEL

The Modelfile is two folders above the program. The server gets the output and the process group of this process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

START_LIMIT_S = 30.0


def main() -> int:
    """Run Ollama until it ends; return its exit status."""
    program, port, model = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    environ = {**os.environ, "OLLAMA_HOST": f"127.0.0.1:{port}"}
    server = subprocess.Popen([program, "serve"], env=environ, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    give_up = time.monotonic() + START_LIMIT_S
    while not _answers(f"http://127.0.0.1:{port}/api/version"):
        if server.poll() is not None or time.monotonic() > give_up:
            server.kill()
            return 1
        time.sleep(0.1)
    subprocess.run(
        [program, "create", model, "-f", program.parents[1] / "Modelfile"], env=environ, check=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False


if __name__ == "__main__":
    sys.exit(main())
