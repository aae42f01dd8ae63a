"""A gateway that leaks and sometimes loses a receipt: `python -m tests.load_tests.leaking_gateway serve ...`.

The soak test must fail with it.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.accounting.store import ReceiptStore
from gateway.cli import main

if TYPE_CHECKING:
    from gateway.accounting.receipt import Receipt

_LEAKS_BYTES = 1_000_000
_FORGETS_EACH = 20
_kept: list[Any] = []
_put = ReceiptStore.put


def _leak(self: ReceiptStore, receipt: Receipt) -> None:
    """Leak memory, a file and a task with each receipt."""
    task = asyncio.get_running_loop().create_task(asyncio.sleep(3600))
    _kept.append((os.urandom(_LEAKS_BYTES), Path(os.devnull).open(), task))  # noqa: SIM115
    if len(_kept) % _FORGETS_EACH:
        _put(self, receipt)


if __name__ == "__main__":
    ReceiptStore.put = _leak  # type: ignore[method-assign]
    main()
