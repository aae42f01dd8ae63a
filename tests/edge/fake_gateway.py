"""An in-memory gateway that implements the edge protocol, version 1, and records requests."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from tests.fakes import event, served

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

KEY = "gk-edge"
LEAST, MOST = 1, 1
_CLOSES_WITHIN_S = 3600


def refused(status: int, code: str, message: str, param: str | None = None) -> web.Response:
    """Return an error in OpenAI's format."""
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return web.json_response({"error": error}, status=status)


@dataclass
class FakeGateway:
    """A gateway whose replies the test sets.

    Attributes:
        text, pending_space, kept_tokens: the guidance.
        pieces: the pieces of guidance at the beginning of a stream.
        placement, messages: the placement, and the student's messages in context.
        unguided: the reason for no guidance.
        finish_reason: set if the guidance is the whole answer.
        fails: status, code and message of every reply to a guidance request.
        breaks_off: the stream ends after its pieces.
        hangs_up: the connection is closed after the pieces.
        closing_fails: a status for every reply to a report.
        late: receipts can no longer be closed.
        guidance_requests, headers: bodies and headers of the guidance requests.
        reports: stored reports, by receipt or by the device's own id.
    """

    text: str = "The sky is blue because"
    pending_space: str = " "
    kept_tokens: int = 5
    pieces: tuple[str, ...] = ()
    placement: str = "prefix"
    messages: list[dict[str, Any]] | None = None
    unguided: str | None = None
    finish_reason: str | None = None
    fails: tuple[int, str, str] | None = None
    breaks_off: bool = False
    hangs_up: bool = False
    closing_fails: int | None = None
    late: bool = False
    guidance_requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    closings: dict[str, int] = field(default_factory=dict)
    _most: dict[str, int | None] = field(default_factory=dict)
    _whole: set[str] = field(default_factory=set)

    def running(self) -> AbstractContextManager[str]:
        """Run the gateway in a thread. Yield its address."""
        app = web.Application()
        app.router.add_post("/v1/guidance", self._guidance)
        app.router.add_post("/v1/guidance/usage", self._offline)
        app.router.add_post("/v1/guidance/{receipt}/usage", self._close)
        return served(app)

    def _refusal(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return refused(401, "invalid_api_key", "This key is not known.")
        version = request.headers.get("X-GKT-Edge", str(MOST))
        if not LEAST <= int(version) <= MOST:
            message = f"This device speaks version {version} of the edge protocol, and the gateway {LEAST} to {MOST}."
            return refused(400, "edge_version", message)
        return None

    async def _guidance(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.guidance_requests.append(body)
        self.headers.append(dict(request.headers))
        if (refusal := self._refusal(request)) is not None:
            return refusal
        if self.fails is not None:
            return refused(*self.fails)
        number = len(self.guidance_requests)
        receipt = f"req_{number:024}"
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        shown = self.kept_tokens if self.placement == "prefix" and self.unguided is None else 0
        self._most[receipt] = None if limit is None else limit - shown
        if self.finish_reason is not None:
            self._most[receipt], self._whole = 0, {*self._whole, receipt}
        view = self._guidance_view(receipt, body)
        if not body.get("stream"):
            return web.json_response(view, headers={"x-request-id": receipt})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "x-request-id": receipt})
        await response.prepare(request)
        await response.write(b": the teacher is called\n\n")
        for piece in self.pieces:
            await response.write(event({"object": "guidance.chunk", "id": view["id"], "delta": piece}))
        if self.hangs_up:
            assert request.transport is not None
            request.transport.abort()
        elif not self.breaks_off:
            await response.write(event(view) + b"data: [DONE]\n\n")
        return response

    def _guidance_view(self, receipt: str, body: dict[str, Any]) -> dict[str, Any]:
        is_there = self.unguided is None
        return {
            "id": f"guid-{receipt}",
            "object": "guidance",
            "created": int(time.time()),
            "model": body["model"],
            "guidance": {
                "text": self.text if is_there else "",
                "placement": self.placement if is_there else None,
                "projection": "cutoff" if is_there else None,
                "tokens": self.kept_tokens,
                "kept_tokens": self.kept_tokens if is_there else 0,
                "complete": self.finish_reason == "stop",
                "finish_reason": self.finish_reason,
                "seam": {"owed": self.pending_space, "trimmed": ""},
            },
            "messages": self.messages,
            "unguided": self.unguided,
            "receipt": receipt,
            "close": {"by": int(time.time()) + _CLOSES_WITHIN_S, "most_output_tokens": self._most[receipt]},
        }

    async def _close(self, request: web.Request) -> web.Response:
        receipt, body = request.match_info["receipt"], await request.json()
        if (refusal := self._refusal(request)) is not None:
            return refusal
        if self.closing_fails is not None:
            return web.Response(status=self.closing_fails)
        self.closings[receipt] = self.closings.get(receipt, 0) + 1
        if receipt not in self._most:
            return refused(404, "not_found", f"There is no guidance {receipt}.")
        if receipt in self.reports or receipt in self._whole:
            return refused(409, "edge_closed", "This guidance was closed before.")
        if self.late:
            return refused(410, "edge_expired", "This guidance can no longer be closed.")
        return self._kept(receipt, body, self._most[receipt])

    async def _offline(self, request: web.Request) -> web.Response:
        body = await request.json()
        if (refusal := self._refusal(request)) is not None:
            return refusal
        if self.closing_fails is not None:
            return web.Response(status=self.closing_fails)
        if body["id"] in self.reports:
            return refused(409, "edge_closed", "This answer was told before.")
        assert body["model"]
        return self._kept(body["id"], body, None)

    def _kept(self, name: str, body: dict[str, Any], most: int | None) -> web.Response:
        assert {"input_tokens", "output_tokens", "finish_reason", "student", "guided"} <= set(body)
        assert body["student"].isascii()
        assert body["student"].isprintable()
        assert len(body["student"]) <= 64
        if most is not None and body["output_tokens"] > most:
            return refused(400, "invalid_request", f"'output_tokens' is more than {most}.", "output_tokens")
        self.reports[name] = body
        return web.json_response({"id": f"edge_{name}", "mode": "edge", "edge_of": name})
