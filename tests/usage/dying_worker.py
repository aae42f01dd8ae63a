"""A usage worker that is killed at a given point: `python -m tests.usage.dying_worker CONFIG PLACE`.

PLACE is `in_transaction`, `before_acknowledgement`, or `nowhere`. The worker claims the entries of dead workers after a
second.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from gateway.server.usage_worker import main
from gateway.usage import database, worker
from gateway.usage.feed import OutboxFeed


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    worker._CHECK_EVERY_S = 1.0
    worker.UsageWorker.__init__.__kwdefaults__["claim_after_s"] = 1.0
    if sys.argv[2] == "in_transaction":  # receipts are inserted, and no sums
        database.add_sums = _die  # type: ignore[attr-defined]
    elif sys.argv[2] == "before_acknowledgement":  # the transaction is committed, and not acknowledged in Redis
        OutboxFeed.acknowledge = _die  # type: ignore[assignment,method-assign]
    main(Path(sys.argv[1]), child=False)
