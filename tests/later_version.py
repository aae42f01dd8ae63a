"""A gateway of a later version, for tests: its board has a layout that this version does not know, and its receipts and
intents say more than this one reads. Run as a script, with the arguments of `gkt-gateway`.

It is this code and not an earlier commit's, since a shallow clone has none: what differs is what a version may change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.accounting.intent import Intent
from gateway.accounting.receipt import Receipt
from gateway.cli import main
from gateway.redis import keys as redis_keys

if TYPE_CHECKING:
    from collections.abc import Callable

LAYOUT = redis_keys.BOARD + 1
MORE = b',"of_a_later_version":{"text":"more","number":1}}'


def _more(to_json: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    return lambda one: to_json(one)[:-1] + MORE


def become_later() -> None:
    """From here on this process is the later version."""
    redis_keys.RedisKeys.__init__.__defaults__ = (LAYOUT,)  # type: ignore[attr-defined]
    for kind in (Receipt, Intent):
        kind.to_json = _more(kind.to_json)  # type: ignore[method-assign]


if __name__ == "__main__":
    become_later()
    main()
