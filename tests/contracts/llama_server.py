"""llama.cpp's server with the model of the suite.

    python -m tests.contracts.llama_server --port 8081

It has one thread, since threads that wait for each other nearly stop on a busy machine. It reads one token at a time.
Otherwise llama.cpp rounds differently when it reads a text than when it writes the text,
which changes greedy answers behind the seam.
"""

from __future__ import annotations

import argparse
import signal
import threading

from gateway.local import child, weights
from gateway.runtime import llama_cpp as llama
from tests.contracts.catalog import CONTEXT_TOKENS, MODEL


def main() -> None:
    """Serve until SIGTERM."""
    flags = argparse.ArgumentParser(prog="python -m tests.contracts.llama_server")
    flags.add_argument("--port", type=int, required=True)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    options = llama.LlamaOptions(parallel=4, slot_tokens=CONTEXT_TOKENS, batch_tokens=1)
    server = llama.serve(weights.fetch(MODEL), MODEL, options, host="127.0.0.1", port=flags.parse_args().port)
    stopped.wait()
    child.exit_now(server)


if __name__ == "__main__":
    main()
