"""One answer on a device: the gateway's guidance, the device's own student behind it, and the account of both.

The gateway is asked while the student is looked at. Whatever keeps the gateway from answering, the student answers
alone, and says so. What an answer took is kept in a file before it is sent, so that nothing is lost on the way.
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

from gateway.capabilities.reasoning import ReasoningFilter
from gateway.edge import placing
from gateway.edge.errors import EdgeError, GatewayAway
from gateway.edge.guidance import EdgeGuidance
from gateway.edge.link import GatewayLink
from gateway.edge.queue import Synced, UsageQueue, default_folder
from gateway.edge.relay import EdgeRelay, whole
from gateway.edge.usage import DeviceUsage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType

    from gateway.capabilities.continuation import Continuation
    from gateway.edge.placing import EdgeStudentRequest
    from gateway.edge.student import UrlStudent
    from gateway.edge.usage import UsageReport
    from gateway.protocol.body import Json

log = logging.getLogger("gateway.edge")

PATIENCE_S = 30.0
_SENT_ALONG = 20
"""How many reports that waited are sent behind an answer: the device is online then."""
_DRAIN_LIMIT_S = 15.0
_BYTES_PER_TOKEN = 4
RESTARTED = "student_started_anew"


@dataclass(slots=True)
class _Turn:
    """One question, as its answer goes on."""

    body: Json
    route: str
    relay: EdgeRelay
    began: float = field(default_factory=time.monotonic)
    guidance: EdgeGuidance | None = None
    away: GatewayAway | None = None
    sent: EdgeStudentRequest | None = None
    first_token: float | None = None

    @property
    def begun(self) -> str | None:
        """The receipt of guidance that was begun, whole or not."""
        told = self.guidance or self.away
        return told.receipt if told is not None else None

    @property
    def guided(self) -> bool:
        return self.unguided is None

    @property
    def unguided(self) -> str | None:
        """Why no guidance is in the answer; None: some is."""
        if self.guidance is None:
            return self.away.reason if self.away is not None else "cancelled"
        return self.guidance.unguided or (RESTARTED if self.relay.restarted else None)

    @property
    def placement(self) -> str | None:
        """Where the guidance stands. Who cannot go on with it got it in the prompt."""
        told = self.guidance.placement if self.guidance is not None else None
        return "context" if self.sent is not None and self.sent.prefill is None else told

    @property
    def facts(self) -> Json:
        """What the end of the answer tells of it, in the words of the gateway's receipts."""
        facts: Json = {"mode": "student", "unguided": self.unguided}
        if self.guided:
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
        """Tokens that the student read, and those that it wrote of the rest of the answer."""
        if self.sent is None:
            return 0, 0
        if self.relay.counts is None:
            size = len(str(self.sent.body["messages"]).encode())
            read, wrote = size // _BYTES_PER_TOKEN, self.relay.pieces
        else:
            read, wrote = self.relay.counts
        if self.sent.written_again:
            # Its own tokens and the teacher's are not the same: what it wrote again is told apart by the teacher's.
            again = 0 if self.relay.restarted else self.sent.written_again
            wrote = max(0, wrote - again)
            wrote = wrote if self.sent.limit is None else min(wrote, self.sent.limit)
        return read, wrote


class EdgeClient:
    """An async context manager around one gateway and one student, which it enters as well.

    Args:
        gateway: its address, like https://gateway.example.com.
        key: one of the gateway's callers' keys.
        student: what finishes the answers.
        route: which route to ask for where a body has no `model`.
        queue: the folder for what the gateway is yet to be told; None: one in the user's state folder, by the gateway's
            address. All that use a folder have keys of one tenant.
        patience_s: how long guidance may take, in seconds; then the student answers alone.

    Raises ValueError where the gateway's address is none.
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
        self._student = student
        self._route = route
        self._queue = UsageQueue(default_folder(gateway) if queue is None else Path(queue))
        self._open = AsyncExitStack()
        self._link = GatewayLink(gateway, key, patience_s=patience_s)
        self._telling: set[asyncio.Task[None]] = set()
        self._one_sync = asyncio.Lock()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opening:
            opening.push_async_callback(self._link.close)
            await opening.enter_async_context(self._student)
            opening.push_async_callback(self._drain)
            self._open = opening.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._open.aclose()

    @property
    def student(self) -> UrlStudent:
        return self._student

    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[Json, None]:
        """Answer a chat completion request in OpenAI's chunks; the first words may be the teacher's.

        body: OpenAI's, with `messages`; its sampling is the student's. `stream` may be left out.

        Raises ValueError for a body that cannot be, GatewayRefused where the gateway says that the request is wrong
        (VersionRefused: that this client is), and EngineErrors where the student fails. What was shown stays true.
        """
        turn = self._turn(body)
        try:
            async with aclosing(self._answer(turn)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            await self._account(turn)

    async def complete(self, body: Mapping[str, Any]) -> Json:
        """The whole answer, in words, as one chat completion with `gkt`. Raises what `stream` does."""
        if body.get("tools") or body.get("functions"):
            raise ValueError("complete() answers in words alone: use stream() with tools and functions")
        asked = {**body, "stream": False, "stream_options": {"include_usage": True}}
        async with aclosing(self.stream(asked)) as chunks:
            return whole([chunk async for chunk in chunks])

    async def sync(self) -> Synced:
        """Tell the gateway of what waits. Raises GatewayRefused where it takes nothing: the key, or the version."""
        while self._telling:
            await asyncio.wait(set(self._telling))
        return await self._sync(None)

    async def waiting(self) -> int:
        """How many reports the gateway is yet to be told."""
        return await asyncio.to_thread(self._queue.count)

    def _turn(self, body: Mapping[str, Any]) -> _Turn:
        messages, route = body.get("messages"), body.get("model") or self._route
        if not isinstance(messages, list) or not messages:
            raise ValueError("'messages' is required: a list of chat messages")
        if not isinstance(route, str):
            raise ValueError("'model' is required: the name of a route of the gateway")
        usage = bool((body.get("stream_options") or {}).get("include_usage"))
        relay = EdgeRelay(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), route, wants_usage=usage)
        return _Turn(dict(body), route, relay)

    async def _answer(self, turn: _Turn) -> AsyncGenerator[Json, None]:
        # The caller's wait for the first answer need not be longer for it.
        looking = asyncio.get_running_loop().create_task(self._student.look(), name="look at the student")
        try:
            for steps in (self._opened(turn, looking), self._finished(turn, looking)):
                async with aclosing(steps) as groups:
                    async for chunks in groups:
                        for chunk in chunks:
                            turn.first_token = turn.first_token or time.monotonic()
                            yield chunk
        finally:
            looking.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await looking

    async def _opened(
        self, turn: _Turn, looking: asyncio.Task[Continuation | None]
    ) -> AsyncGenerator[list[Json], None]:
        """The guidance, as far as it may be shown before the student is asked."""
        held, pieces = "", 0
        asked = placing.told(turn.body, turn.route, stream=turn.body.get("stream") is not False)
        try:
            async with aclosing(self._link.ask(asked)) as heard:
                async for one in heard:
                    if isinstance(one, EdgeGuidance):
                        turn.guidance = one
                        continue
                    held += one
                    pieces += 1
                    if self._shows(turn, looking):
                        yield turn.relay.show(held)
                        held = ""
        except GatewayAway as away:
            turn.away = away
        if turn.relay.shown and turn.unguided is not None:
            # It cannot be taken back: the student goes on with it. A teacher tells of a token at a time, or of a few.
            turn.guidance = EdgeGuidance(turn.begun, turn.relay.shown, kept_tokens=pieces)
        if turn.guidance is None or turn.guidance.unguided is not None:
            turn.relay.why_alone = turn.unguided

    def _shows(self, turn: _Turn, looking: asyncio.Task[Continuation | None]) -> bool:
        """Whether guidance may be shown before the student has spoken: it is known to go on with it."""
        if not looking.done() or looking.cancelled() or looking.exception() is not None:
            return False
        how = looking.result()
        return how is not None and not how.writes_again and placing.goes_on(self._student.reasoning, how, turn.body)

    async def _finished(
        self, turn: _Turn, looking: asyncio.Task[Continuation | None]
    ) -> AsyncGenerator[list[Json], None]:
        """The student's words, and the end."""
        relay, guidance = turn.relay, turn.guidance
        if guidance is not None and guidance.finish_reason is not None and guidance.unguided is None:
            yield relay.show_rest(guidance.text)
            yield self._end(turn, guidance.finish_reason)
            return
        if guidance is None or guidance.unguided is not None:
            turn.sent = placing.alone(turn.body, guidance.most_output_tokens if guidance is not None else None)
        else:
            how = await looking if guidance.placement == "prefix" else None
            turn.sent = sent = placing.guided(turn.body, guidance, self._student.reasoning, how)
            if sent.prefill is not None:
                thinks = self._student.reasoning != "none"
                thoughts = ReasoningFilter(guidance.text) if thinks else None
                yield relay.join(placing.joint(guidance, sent.prefill.continuation, turn.body), thoughts)
        if turn.sent.limit is None or turn.sent.limit > 0:
            async with aclosing(self._student.stream(turn.sent.body, turn.sent.prefill)) as chunks:
                async for chunk in chunks:
                    yield relay.feed(chunk)
                    if relay.stopped:
                        break
        yield self._end(turn, None if turn.sent.limit != 0 else "length")

    def _end(self, turn: _Turn, finish_reason: str | None) -> list[Json]:
        held = turn.relay.rest()  # first: it may show that the student began otherwise than it was told
        ends = turn.relay.end(turn.facts, finish_reason)
        read, wrote = turn.counts
        if turn.guidance is not None and turn.guided and (turn.sent is None or turn.placement == "prefix"):
            wrote += turn.guidance.kept_tokens
            read = max(0, read - (turn.guidance.kept_tokens if turn.sent and turn.sent.prefill else 0))
        usage = {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
        return [*held, *ends, *turn.relay.usage_chunk(usage, turn.facts)]

    async def _account(self, turn: _Turn) -> None:
        """Keep what the answer took, and begin to tell the gateway. Never raises: the answer is there."""
        if turn.sent is None and (turn.guidance is None or turn.guidance.finish_reason is not None):
            return  # the device has done nothing
        ended = time.monotonic()
        read, wrote = turn.counts
        usage = DeviceUsage(
            input_tokens=read,
            output_tokens=wrote,
            finish_reason=turn.relay.finish_reason,
            student=self._student.name,
            first_token_ms=_ms(turn.began, turn.first_token) if turn.first_token is not None else None,
            total_ms=_ms(turn.began, ended),
            guided=turn.guided,
            at=int(time.time()),
        )
        receipt = turn.guidance.receipt if turn.guidance is not None else None
        report = usage.closing(receipt) if receipt is not None else usage.alone(turn.route)
        await self._keep(report, online=turn.away is None)

    async def _keep(self, report: UsageReport, *, online: bool) -> None:
        try:
            await asyncio.to_thread(self._queue.put, report)
        except OSError as error:
            log.warning("usage cannot be kept in %s: %s", self._queue.folder, error)
            return
        if online:
            telling = asyncio.get_running_loop().create_task(self._tell(), name="tell the gateway of an answer")
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)

    async def _tell(self) -> None:
        try:
            await self._sync(_SENT_ALONG)
        except (EdgeError, OSError) as error:
            log.warning("usage waits in %s: %s", self._queue.folder, error)

    async def _sync(self, most: int | None) -> Synced:
        """Send what waits, the newest first: its answer may close soon, and an old one can wait a little longer."""
        counts = {"closed": 0, "closed_before": 0, "refused": 0}
        why: str | None = None
        async with self._one_sync:
            waiting = await asyncio.to_thread(self._queue.waiting)
            for file, report in waiting[::-1][:most]:
                try:
                    counts[await self._link.tell(report)] += 1
                except GatewayAway as away:
                    why = away.message
                    break
                await asyncio.to_thread(self._queue.drop, file)
        left = await self.waiting()
        return Synced(counts["closed"], counts["closed_before"], counts["refused"], left, why)

    async def _drain(self) -> None:
        """Wait for what is being told, and not for ever: it is kept."""
        if self._telling:
            await asyncio.wait(set(self._telling), timeout=_DRAIN_LIMIT_S)
        for telling in set(self._telling):
            telling.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)


def _ms(began: float, ended: float) -> int:
    return round((ended - began) * 1000)
