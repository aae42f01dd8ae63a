"""A gateway of a later version, for tests: run as a script, with the arguments of `gkt-gateway`.

Its scheduler has a layout that this version does not know. Its receipts and intents have fields that this version does
not read. The script runs this code, not an earlier commit's, because a shallow clone has no earlier commits.
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
    """Make this process a gateway of the later version."""
    redis_keys.RedisKeys.__new__.__defaults__ = (LAYOUT,)
    for kind in (Receipt, Intent):
        kind.to_json = _more(kind.to_json)  # type: ignore[method-assign]


if __name__ == "__main__":
    become_later()
    main()
