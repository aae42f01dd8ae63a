"""On whose behalf an engine is called.

The origin travels in a context variable, as traces do: engines are called in tasks of their own, and several requests
share one call. `Admission.settled` sets it for each request.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import NamedTuple


class CallOrigin(NamedTuple):
    """The tenant and the id of a request. Both are empty for calls that the gateway makes by itself."""

    tenant: str = ""
    request_id: str = ""


_NOBODY = CallOrigin()
_origin: ContextVar[CallOrigin] = ContextVar("origin", default=_NOBODY)


def call_for(tenant: str, request_id: str) -> None:
    """Attribute the engine calls of this task, and of tasks that it starts, to a request."""
    _origin.set(CallOrigin(tenant, request_id))


def origin() -> CallOrigin:
    """The request on whose behalf this task runs."""
    return _origin.get()
