"""Send small requests of a well-behaved tenant, one at a time, at a constant rate.

    python -m load_tests.floods.victim --url http://127.0.0.1:9000/v1/chat/completions --for 10

It prints a line for each request: start (CLOCK_MONOTONIC, shared by all processes), duration in seconds, and status.
Status 0 is a lost connection, or a last request without a reply at SIGTERM.
"""

from __future__ import annotations

import argparse
import http.client
import signal
import time
from urllib.parse import urlsplit

from load_tests.floods.kinds import VICTIM_KEY, chat

_TIMEOUT_S = 10.0
_STUCK_S = 1.0  # a longer request counts as failed if the run ends before its reply


def run(url: str, for_s: float, every_s: float) -> None:
    address = urlsplit(url)
    headers = {"Authorization": f"Bearer {VICTIM_KEY}", "Content-Type": "application/json"}
    body = chat("json")
    began, waits = 0.0, False

    def end_early(*_: object) -> None:
        if waits and time.monotonic() - began > _STUCK_S:
            print(f"{began:.6f} {time.monotonic() - began:.6f} 0", flush=True)
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end_early)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT_S)
    end = due = time.monotonic()
    end += for_s
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        began, waits = time.monotonic(), True
        try:
            connection.request("POST", address.path, body, headers)
            reply = connection.getresponse()
            reply.read()
            status = reply.status
        except (OSError, http.client.HTTPException):
            connection.close()
            status = 0
        now, waits = time.monotonic(), False
        print(f"{began:.6f} {now - began:.6f} {status}", flush=True)
        due = max(due + every_s, now)
    connection.close()


def main() -> None:
    flags = argparse.ArgumentParser(description="Send requests at a constant rate to 127.0.0.1.")
    flags.add_argument("--url", required=True, help="of the chat completions")
    flags.add_argument("--for", type=float, default=10.0, dest="for_s", help="time limit in seconds")
    flags.add_argument("--every", type=float, default=0.02, help="seconds from one request to the next")
    given = flags.parse_args()
    run(given.url, min(given.for_s, 600.0), given.every)


if __name__ == "__main__":
    main()
