"""Reads the state of a vLLM server that /models does not show: its version, and whether it sleeps.

Sources: vLLM 0.32, `entrypoints/serve/instrumentator/basic.py` and `entrypoints/serve/dev/sleep/api_router.py`. The
start time of the process is not read: several replicas may have one address.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.engines.replies import short_name
from gateway.errors import EngineError

if TYPE_CHECKING:
    from gateway.engines.http import EngineHttp
    from gateway.protocol.body import Json

_VERSIONS = ("version", "rust_frontend_version")


class VllmStatus:
    """The status routes of one server. A proxy may lack them, so their errors do not count."""

    def __init__(self, http: EngineHttp) -> None:
        self._http = http
        self._version: Json = {}
        self.may_sleep = True  # whether the server may have /is_sleeping, which requires its development mode

    async def version(self) -> Json:
        """Return the server's `version`, and the `rust_frontend_version` of the Rust front end, as last reported."""
        if (reply := await self._get("/version")) is not None:
            self._version = {name: short_name(reply[name]) for name in _VERSIONS if isinstance(reply.get(name), str)}
        return self._version

    async def is_asleep(self) -> bool:
        """Return whether the server queues calls until it is woken. A server without the route is asked once."""
        if not self.may_sleep:
            return False
        asleep = (await self._get("/is_sleeping") or {}).get("is_sleeping")
        self.may_sleep = isinstance(asleep, bool)
        return asleep is True

    async def _get(self, path: str) -> Json | None:
        try:
            reply = (await self._http.get(path, native=True)).body
        except EngineError:
            return None
        return reply if isinstance(reply, dict) else None
