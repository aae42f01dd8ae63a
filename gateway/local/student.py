"""The embedded student: llama.cpp's OpenAI server.

    python -m gateway.local.student --model smollm2-135m-instruct --port 8081

Its routes include `GET /health`, `POST /v1/chat/completions` and `/v1/completions`. The server continues a trailing
assistant message, and this build REPEATS it at the start of the reply.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import NoReturn

from gateway.local import child, weights
from gateway.runtime import llama_cpp as llama


def main(argv: list[str] | None = None) -> NoReturn:
    """Serve until SIGTERM, SIGINT or, with `--parent-watch`, the end of stdin. Raises StartupError."""
    flags = child.parser("student", "llama.cpp's OpenAI server with a small model")
    flags.add_argument("--chat-template", type=Path, help="Jinja file; default: the template in the model's file")
    args = flags.parse_args(argv)
    stopped = threading.Event()
    child.on_stop(stopped.set, parent_watch=args.parent_watch)
    options = llama.LlamaOptions(
        args.threads, args.parallel, args.slot_tokens, args.poll_percent, chat_template=args.chat_template
    )
    name = args.name or weights.model_name(args.model)
    server = llama.serve(weights.fetch(args.model), name, options, host=args.host, port=args.port)
    sys.stdout.write(child.ready_line("student", server.listening_address))
    sys.stdout.flush()
    stopped.wait()
    child.exit_now(server)


if __name__ == "__main__":
    sys.exit(child.run(main))
