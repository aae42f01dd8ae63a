"""Control calls: minimal requests that show whether an engine or a request causes a failure."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING

from gateway.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.protocol.body import Json

CONTROL_CHAT: Json = {"messages": [{"role": "user", "content": "Are you there?"}], "max_tokens": 1, "temperature": 0}
CONTROL_TEXT: Json = {"input": "Are you there?"}
_CONTROL_TIMEOUT_S = 2.0
# How long an outcome is reused. A broken engine is called rarely; a working one may fail at any time.
_CONTROL_SUCCESS_TTL_S = 0.25
_CONTROL_FAILURE_TTL_S = 5.0


class ControlCall:
    """A minimal request that shows whether the engine or the request causes a failure. `call` sends it.

    The gateway sends a control call after a request failed twice while the engine answered no other request.
    Concurrent requests share a control call.
    """

    def __init__(self, call: Callable[[], Awaitable[object]], clock: Callable[[], float]) -> None:
        self._call = call
        self._clock = clock
        self._running: asyncio.Task[tuple[float, float] | None] | None = None
        self._outcome: tuple[float, float] | None = None
        self._holds_until = 0.0

    async def outcome(self) -> tuple[float, float] | None:
        """Return when the call was sent and answered; None if the engine did not answer it."""
        if self._clock() < self._holds_until:
            return self._outcome
        if self._running is None:
            # An empty context: the call belongs to no request and no trace.
            task = asyncio.get_running_loop().create_task(self._run(), name="control", context=Context())
            self._running = task
        return await asyncio.shield(self._running)

    async def close(self) -> None:
        """Cancel the call in flight."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _run(self) -> tuple[float, float] | None:
        sent = self._clock()
        try:
            async with asyncio.timeout(_CONTROL_TIMEOUT_S):
                await self._call()
            self._outcome = sent, self._clock()
        except (EngineError, TimeoutError):
            self._outcome = None
        finally:
            self._running = None
        ttl_s = _CONTROL_FAILURE_TTL_S if self._outcome is None else _CONTROL_SUCCESS_TTL_S
        self._holds_until = self._clock() + ttl_s
        return self._outcome
