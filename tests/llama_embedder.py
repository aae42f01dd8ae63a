"""llama.cpp as an embeddings server in a process of its own: the 135M model, its vectors averaged over a text.

`python -m tests.llama_embedder` prints its address and serves until its standard input ends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.local import weights

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = "smollm2-135m-instruct"
_MEAN = 1


def main() -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights.fetch(MODEL))
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.embedding = True
    params.pooling_type = _MEAN
    params.verbosity = 1
    params.ui = False
    server = xllamacpp.Server(params)
    sys.stdout.write(server.listening_address + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)  # as the demo's student leaves: llama.cpp's threads do not end by themselves


@contextmanager
def running_embedder() -> Iterator[str]:
    """Start the server; yield its base URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.llama_embedder"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, "llama.cpp did not start"
        yield address
    finally:
        process.stdin.close()
        process.wait(timeout=30)
        process.stdout.close()


if __name__ == "__main__":
    main()
