"""llama.cpp's OpenAI server with a small model, as teacher or student.

    python -m gateway.local.llama_server --model smollm2-135m-instruct --port 8081

Its routes include `GET /health`, `POST /v1/chat/completions` and `/v1/completions`. The server continues a trailing
assistant message, and this build REPEATS it at the start of the reply.
"""

from __future__ import annotations

import argparse
import sys
import threading
from typing import NoReturn

from gateway.local import child, weights
from gateway.runtime import llama_cpp as llama


def main(argv: list[str] | None = None) -> NoReturn:
    """Serve until SIGTERM, SIGINT or, with `--parent-watch`, the end of stdin. Raises StartupError."""
    args = _parser().parse_args(argv)
    stopped = threading.Event()
    child.on_stop(stopped.set, parent_watch=args.parent_watch)
    options = llama.LlamaOptions(args.threads, args.parallel, args.slot_tokens, args.poll_percent)
    name = args.name or weights.model_name(args.model)
    server = llama.serve(weights.fetch(args.model), name, options, host=args.host, port=args.port)
    sys.stdout.write(child.ready_line(server.listening_address))
    sys.stdout.flush()
    stopped.wait()
    child.exit_now(server)


def _parser() -> argparse.ArgumentParser:
    defaults = llama.LlamaOptions()
    flags = argparse.ArgumentParser(
        prog="python -m gateway.local.llama_server", description="llama.cpp's OpenAI server with a small model"
    )
    flags.add_argument("--model", required=True, help="a name in the catalogue, or the path of a .gguf file")
    flags.add_argument("--name", help="the model's name in replies; default: --model without folder and extension")
    flags.add_argument("--host", default="127.0.0.1")
    flags.add_argument("--port", type=int, default=0, help="0: any free port")
    flags.add_argument("--threads", type=int, default=defaults.threads)
    flags.add_argument("--parallel", type=int, default=defaults.parallel, help="requests decoded concurrently")
    flags.add_argument("--slot-tokens", type=int, default=defaults.slot_tokens, help="context tokens of a request")
    flags.add_argument("--poll-percent", type=int, default=defaults.poll_percent, help="0 to 100: busy waiting")
    flags.add_argument(
        "--parent-watch", action="store_true", help="exit at the end of stdin, which is the end of the parent"
    )
    return flags


if __name__ == "__main__":
    sys.exit(child.run(main))
