"""The origin of an engine call: the tenant and the request that caused it.

The origin is stored in a context variable, as traces are, since engines are called in separate tasks.
`Admission.settled` sets it for each request.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple


class CallOrigin(NamedTuple):
    """The tenant and the id of a request. Both are empty for the gateway's own calls, such as probes."""

    tenant: str = ""
    request_id: str = ""


_NO_ORIGIN = CallOrigin()
_origin: ContextVar[CallOrigin] = ContextVar("origin", default=_NO_ORIGIN)


def set_origin(tenant: str, request_id: str) -> None:
    """Attribute the engine calls of this task, and of the tasks that it starts, to a request."""
    _origin.set(CallOrigin(tenant, request_id))


def current_origin() -> CallOrigin:
    """Return the origin of the current task."""
    return _origin.get()
