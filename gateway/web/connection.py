"""What aiohttp answers by itself, before or past the middleware, in the gateway's words and under its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aiohttp import web

from gateway.errors import GatewayError, InvalidRequest
from gateway.web.error_body import error_response, new_request_id

if TYPE_CHECKING:
    from collections.abc import Coroutine

SERVER = "gkt-gateway"
"""The header `Server`, in the place of Python's and aiohttp's versions. A stream sets it where it begins."""

_EXPECTATION_FAILED = 417
_UNREADABLE = "The request is not HTTP, or one of its lines is too long."
_NO_SUCH_EXPECT = "Of the header Expect only '100-continue' is known."


class Runner(web.AppRunner):
    """An AppRunner whose connections are `_Connection`s."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            **made._kwargs,  # noqa: SLF001
        )


class _Server(web.Server):
    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """A request that cannot be parsed, or a handler that broke. aiohttp would quote the line: a key, perhaps."""
        super().handle_error(request, status, exc, message)  # what it logs, and when it gives up
        error = InvalidRequest(_UNREADABLE) if status < 500 else GatewayError("The gateway made a mistake.")
        response = error_response(error, new_request_id(), status=status)
        response.force_close()
        return response

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Every reply comes by here; only a stream's head has left by then."""
        if resp.status == _EXPECTATION_FAILED:  # isinstance asks an abstract class: half a microsecond
            resp = error_response(InvalidRequest(_NO_SUCH_EXPECT), new_request_id(), status=_EXPECTATION_FAILED)
        resp.headers["Server"] = SERVER
        return super().finish_response(request, resp, start_time)
