"""Answer requests on a device: the gateway's guidance, the student's continuation, and the usage report.

Guidance is requested while the student's capabilities are probed. If the gateway fails for any reason, the student
answers alone, and the answer states the reason. A usage report is stored in a file before it is sent, so that none is
lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gateway.edge import bodies
from gateway.edge.errors import EdgeError, GatewayAway
from gateway.edge.link import EdgeGuidance, GatewayLink
from gateway.edge.queue import DeviceUsage, Synced, UsageQueue, default_folder
from gateway.edge.relay import EdgeRelay, whole
from gateway.protocol.capabilities.reasoning import ReasoningFilter

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from gateway.edge.bodies import EdgeStudentRequest
    from gateway.edge.student import UrlStudent
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Continuation

log = logging.getLogger("gateway.edge")

PATIENCE_S = 30.0
_REPORTS_PER_ANSWER = 20  # maximum stored reports sent after an answer, when the device is online
_DRAIN_LIMIT_S = 15.0
_BYTES_PER_TOKEN = 4
RESTARTED = "student_started_anew"


@dataclass(slots=True)
class _Answer:
    body: Json
    route: str
    relay: EdgeRelay
    began: float = field(default_factory=time.monotonic)
    guidance: EdgeGuidance | None = None
    away: GatewayAway | None = None
    sent: EdgeStudentRequest | None = None
    first_token: float | None = None

    @property
    def unguided(self) -> str | None:
        """Return why the answer has no guidance; None if it has some."""
        if self.guidance is None:
            return self.away.reason if self.away is not None else "cancelled"
        return self.guidance.unguided or (RESTARTED if self.relay.restarted else None)

    @property
    def placement(self) -> str | None:
        """Return the guidance's placement: context if the student could not continue it."""
        requested = self.guidance.placement if self.guidance is not None else None
        return "context" if self.sent is not None and self.sent.prefill is None else requested

    @property
    def facts(self) -> Json:
        """Return the facts in the last chunk, named as in the gateway's receipts."""
        facts: Json = {"mode": "student", "unguided": self.unguided}
        if self.unguided is None:
            facts = {"mode": "guided" if self.sent is not None else "teacher_complete"}
            assert self.guidance is not None, "it is guided"
            facts |= {"guidance_tokens": self.guidance.kept_tokens, "placement": self.placement}
        if self.away is not None:
            facts["said"] = self.away.message
        if self.guidance is not None and self.guidance.receipt is not None:
            facts["receipt"] = self.guidance.receipt
        return facts

    @property
    def counts(self) -> tuple[int, int]:
        """Return the student's prompt tokens, and its tokens of the answer after the guidance."""
        if self.sent is None:
            return 0, 0
        if self.relay.counts is None:
            size = len(str(self.sent.body["messages"]).encode())
            read_tokens, written_tokens = size // _BYTES_PER_TOKEN, self.relay.chunk_count
        else:
            read_tokens, written_tokens = self.relay.counts
        if self.sent.written_again:
            # The tokenizers differ, so the regenerated guidance is counted in the teacher's tokens.
            repeated = 0 if self.relay.restarted else self.sent.written_again
            written_tokens = max(0, written_tokens - repeated)
            written_tokens = written_tokens if self.sent.limit is None else min(written_tokens, self.sent.limit)
        return read_tokens, written_tokens


class EdgeClient:
    """A client for one gateway and one student: an async context manager that also enters the student.

    Raises ValueError if the gateway's URL is invalid.

    Args:
        gateway: the gateway's URL, such as https://gateway.example.com.
        key: a caller's key of the gateway.
        route: the route for bodies without `model`.
        queue: the folder of stored usage reports; None: a folder in the user's state folder, by the gateway's URL.
            All clients of a folder must use keys of one tenant.
        patience_s: the longest time for guidance, in seconds; then the student answers alone.
    """

    def __init__(
        self,
        gateway: str,
        *,
        key: str,
        student: UrlStudent,
        route: str | None = None,
        queue: Path | str | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.student = student
        self._route = route
        self._queue = UsageQueue(default_folder(gateway) if queue is None else Path(queue))
        self._resources = AsyncExitStack()
        self._link = GatewayLink(gateway, key, patience_s=patience_s)
        self._report_tasks: set[asyncio.Task[None]] = set()
        self._sync_lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._link.close)
            await stack.enter_async_context(self.student)
            stack.push_async_callback(self._drain)
            self._resources = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._resources.aclose()

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[Json, None]:
        """Answer a chat completion request in OpenAI's chunks, which begin with the teacher's guidance.

        `body` is a request of OpenAI's API; its sampling applies to the student. `stream` is optional.

        Raises:
            ValueError: the body is invalid.
            GatewayRefused: the gateway rejected the request.
            VersionRefused: the gateway does not support this client's version.
            EngineError: the student failed. Chunks returned before remain valid.
        """
        answer = self._new_answer(body)
        try:
            async with aclosing(self._stream(answer)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            await self._report(answer)

    async def complete(self, body: Mapping[str, Any]) -> Json:
        """Return the whole answer as one chat completion with `gkt`. Raises the errors of `stream`."""
        if body.get("tools") or body.get("functions"):
            raise ValueError("complete() returns text only: use stream() with tools and functions")
        request = {**body, "stream": False, "stream_options": {"include_usage": True}}
        async with aclosing(self.stream(request)) as chunks:
            return whole([chunk async for chunk in chunks])

    async def sync(self) -> Synced:
        """Send all stored usage reports. Raises GatewayRefused if the gateway rejects the key or the version."""
        while self._report_tasks:
            await asyncio.wait(set(self._report_tasks))
        return await self._sync(None)

    async def waiting(self) -> int:
        """Return the number of stored usage reports."""
        return await asyncio.to_thread(self._queue.count)

    def _new_answer(self, body: Mapping[str, Any]) -> _Answer:
        messages, route = body.get("messages"), body.get("model") or self._route
        if not isinstance(messages, list) or not messages:
            raise ValueError("'messages' is required: a list of chat messages")
        if not isinstance(route, str):
            raise ValueError("'model' is required: the name of a route of the gateway")
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        relay = EdgeRelay(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), route, wants_usage=usage)
        return _Answer(dict(body), route, relay)

    async def _stream(self, answer: _Answer) -> AsyncGenerator[Json, None]:
        # In parallel with the guidance request, so that the first answer is not delayed.
        detecting = self.student.detect_continuation()
        detection = asyncio.get_running_loop().create_task(detecting, name="detect the student's continuation")
        try:
            for steps in (self._guide(answer, detection), self._complete(answer, detection)):
                async with aclosing(steps) as groups:
                    async for chunks in groups:
                        for chunk in chunks:
                            answer.first_token = answer.first_token or time.monotonic()
                            yield chunk
        finally:
            detection.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await detection

    async def _guide(
        self, answer: _Answer, detection: asyncio.Task[Continuation | None]
    ) -> AsyncGenerator[list[Json], None]:
        """Request guidance, and yield what may be shown before the student is called."""
        held, piece_count = "", 0
        request = bodies.guidance_body(answer.body, answer.route, stream=answer.body.get("stream") is not False)
        try:
            async with aclosing(self._link.request_guidance(request)) as pieces:
                async for piece in pieces:
                    if isinstance(piece, EdgeGuidance):
                        answer.guidance = piece
                        continue
                    held += piece
                    piece_count += 1
                    if self._may_show(answer, detection):
                        yield answer.relay.show(held)
                        held = ""
        except GatewayAway as away:
            answer.away = away
        if answer.relay.shown and answer.unguided is not None:
            # Shown text cannot be withdrawn, so the student continues it. A piece has about one token.
            source = answer.guidance or answer.away
            receipt = source.receipt if source is not None else None
            answer.guidance = EdgeGuidance(receipt, answer.relay.shown, kept_tokens=piece_count)
        if answer.guidance is None or answer.guidance.unguided is not None:
            answer.relay.unguided_reason = answer.unguided

    def _may_show(self, answer: _Answer, detection: asyncio.Task[Continuation | None]) -> bool:
        """Return whether the student is known to continue guidance, so that it may be shown at once."""
        if not detection.done() or detection.cancelled() or detection.exception() is not None:
            return False
        continuation = detection.result()
        if continuation is None or continuation.writes_again:
            return False
        return bodies.can_continue(self.student.reasoning, continuation, answer.body)

    async def _complete(
        self, answer: _Answer, detection: asyncio.Task[Continuation | None]
    ) -> AsyncGenerator[list[Json], None]:
        relay, guidance = answer.relay, answer.guidance
        if guidance is not None and guidance.finish_reason is not None and guidance.unguided is None:
            yield relay.show_remaining(guidance.text)
            yield self._end(answer, guidance.finish_reason)
            return
        if guidance is None or guidance.unguided is not None:
            limit = guidance.most_output_tokens if guidance is not None else None
            answer.sent = bodies.unguided_request(answer.body, limit)
        else:
            continuation = await detection if guidance.placement == "prefix" else None
            answer.sent = sent = bodies.guided_request(answer.body, guidance, self.student.reasoning, continuation)
            if sent.prefill is not None:
                thinks = self.student.reasoning != "none"
                thoughts = ReasoningFilter(guidance.text) if thinks else None
                yield relay.join(bodies.seam_join(guidance, sent.prefill.continuation, answer.body), thoughts)
        if answer.sent.limit is None or answer.sent.limit > 0:
            async with aclosing(self.student.stream(answer.sent.body, answer.sent.prefill)) as chunks:
                async for chunk in chunks:
                    yield relay.feed(chunk)
                    if relay.stopped:
                        break
        yield self._end(answer, None if answer.sent.limit != 0 else "length")

    def _end(self, answer: _Answer, finish_reason: str | None) -> list[Json]:
        held = answer.relay.flush()  # first, since it may detect that the student restarted the answer
        ends = answer.relay.end(answer.facts, finish_reason)
        read_tokens, written_tokens = answer.counts
        if (
            answer.guidance is not None
            and answer.unguided is None
            and (answer.sent is None or answer.placement == "prefix")
        ):
            written_tokens += answer.guidance.kept_tokens
            if answer.sent is not None and answer.sent.prefill is not None:
                read_tokens = max(0, read_tokens - answer.guidance.kept_tokens)
        total = read_tokens + written_tokens
        usage = {"prompt_tokens": read_tokens, "completion_tokens": written_tokens, "total_tokens": total}
        return [*held, *ends, *answer.relay.usage_chunk(usage, answer.facts)]

    async def _report(self, answer: _Answer) -> None:
        """Store the usage report and start sending it. Never raises, since the answer is complete."""
        if answer.sent is None and (answer.guidance is None or answer.guidance.finish_reason is not None):
            return  # the student was not called
        ended = time.monotonic()
        read_tokens, written_tokens = answer.counts
        usage = DeviceUsage(
            input_tokens=read_tokens,
            output_tokens=written_tokens,
            finish_reason=answer.relay.finish_reason,
            student=self.student.name,
            first_token_ms=_ms(answer.began, answer.first_token) if answer.first_token is not None else None,
            total_ms=_ms(answer.began, ended),
            guided=answer.unguided is None,
            at=int(time.time()),
        )
        receipt = answer.guidance.receipt if answer.guidance is not None else None
        try:
            report = usage.report(receipt, answer.route, bodies.tag_fields(answer.body))
            await asyncio.to_thread(self._queue.put, report)
        except OSError as error:
            log.warning("usage report cannot be stored in %s: %s", self._queue.folder, error)
            return
        if answer.away is None:
            task = asyncio.get_running_loop().create_task(self._send_reports(), name="send usage reports")
            self._report_tasks.add(task)
            task.add_done_callback(self._report_tasks.discard)

    async def _send_reports(self) -> None:
        try:
            await self._sync(_REPORTS_PER_ANSWER)
        except (EdgeError, OSError) as error:
            log.warning("usage reports not sent, stored in %s: %s", self._queue.folder, error)

    async def _sync(self, limit: int | None) -> Synced:
        """Send stored reports, the newest first, since its receipt may expire soon."""
        counts = {"closed": 0, "closed_before": 0, "refused": 0}
        why: str | None = None
        async with self._sync_lock:
            waiting = await asyncio.to_thread(self._queue.waiting)
            for file, report in waiting[::-1][:limit]:
                try:
                    counts[await self._link.send_report(report)] += 1
                except GatewayAway as away:
                    why = away.message
                    break
                await asyncio.to_thread(self._queue.drop, file)
        remaining = await self.waiting()
        return Synced(counts["closed"], counts["closed_before"], counts["refused"], remaining, why)

    async def _drain(self) -> None:
        """Wait a limited time for reports being sent; unsent ones stay stored."""
        if self._report_tasks:
            await asyncio.wait(set(self._report_tasks), timeout=_DRAIN_LIMIT_S)
        for task in set(self._report_tasks):
            task.cancel()
        await asyncio.gather(*self._report_tasks, return_exceptions=True)


def _ms(began: float, ended: float) -> int:
    return round((ended - began) * 1000)
