"""Step 6: let the finisher (the student; in mode teacher, the teacher) complete the answer.

The caller's body goes out as it came, but for what the plan changes. Paper, section 2: the student continues the
prompt and the guidance, with the user's own sampling settings.
"""

from __future__ import annotations

from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING

from gateway.continuation import Prefill
from gateway.engines.chat import message_text, read_usage
from gateway.engines.failures import note_failure
from gateway.errors import EngineError, EngineRejected, InvalidRequest
from gateway.guidance.projection import PROJECTIONS, place_in_context
from gateway.guidance.seam import SeamJoin
from gateway.ledger.draft import Call
from gateway.opening import UNGUIDED
from gateway.relay import join_reply

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator, Mapping

    from gateway.continuation import Known
    from gateway.engines.base import Engine
    from gateway.ledger.draft import Draft
    from gateway.metrics import Metrics
    from gateway.opening import Opening
    from gateway.policy.resolve import Plan
    from gateway.protocol import ChatRequest, Json
    from gateway.relay import StreamRelay


class Finisher:
    """Calls the engine that completes an answer."""

    def __init__(self, engines: Mapping[str, Engine], metrics: Metrics) -> None:
        self._engines = engines
        self._metrics = metrics

    def continuation_of(self, engine: str) -> Known:
        """How an engine continues an assistant message, as it is known now."""
        return self._engines[engine].state.continuation

    async def complete(self, plan: Plan, chat: ChatRequest, opening: Opening, draft: Draft) -> Json:
        """The finisher's reply, with shown guidance in front. Raises EngineErrors and InvalidRequest.

        Where the finisher refuses the request with the opening, which the caller did not send, it gets it without.
        """
        try:
            reply = await self._complete(plan, chat, opening, draft)
        except EngineRejected as refused:
            if not (refused.blames_request and _is_placed(plan, opening)):
                raise
            draft.drop_guidance("student_refused_prefix")
            return await self._complete(plan, chat, UNGUIDED, draft)
        seam = self.seam(plan, chat, opening)
        if seam is not None:
            join_reply(reply, seam)
        return reply

    async def _complete(self, plan: Plan, chat: ChatRequest, opening: Opening, draft: Draft) -> Json:
        body, prefill = self._asked(plan, chat, opening)
        call = _begin(plan, draft, body, prefill)
        # Until it has answered, nobody knows how much of this it wrote.
        limit = body.get(chat.limit_field)
        call.lost_tokens, call.unbounded = (limit or 0) * (body.get("n") or 1), limit is None
        with self._failures(plan, opening, draft):
            reply = await self._engines[plan.finisher].complete(body, prefill)
        call.lost_tokens, call.unbounded = 0, False
        call.usage = read_usage(reply.get("usage"))
        call.text.write(message_text(reply) or "")
        return reply

    async def stream(
        self, plan: Plan, chat: ChatRequest, opening: Opening, relay: StreamRelay, draft: Draft
    ) -> AsyncGenerator[list[Json], None]:
        """The finisher's chunks, as `relay` turns them into the caller's, as many at a time as came together.

        Raises EngineErrors and InvalidRequest.

        The opening has left by now: where the finisher refuses it, there is no going back to an answer without.
        """
        body, prefill = self._asked(plan, chat, opening)
        # The receipt wants usage, whether the caller does or not.
        body["stream_options"] = {**(chat.body.get("stream_options") or {}), "include_usage": True}
        call = _begin(plan, draft, body, prefill)
        with self._failures(plan, opening, draft):
            async with aclosing(self._engines[plan.finisher].stream(body, prefill)) as groups:
                async for chunks in groups:
                    relayed = []
                    for chunk in chunks:
                        if text := _text_of(chunk):
                            draft.saw_first_token()
                            call.text.write(text)
                        if (one := relay.feed(chunk)) is not None:
                            relayed.append(one)
                        if relay.done:
                            break
                    call.usage = relay.usage
                    if relayed:
                        yield relayed
                    if relay.done:
                        break

    def seam(self, plan: Plan, chat: ChatRequest, opening: Opening) -> SeamJoin | None:
        """Joins guidance that the caller is shown to what the finisher says; None when there is none to join."""
        if not _is_placed(plan, opening):
            return None
        assert plan.continuation is not None, "resolve() sends no prefix to an engine that cannot continue it"
        return SeamJoin(
            opening.text,
            owed=opening.owed,
            # vLLM and llama.cpp repeat the opening when the caller asks them to, whatever they do by themselves.
            echo=chat.body.get("echo") is True or plan.continuation.echo,
            strips_leading_space=plan.continuation.strips_leading_space,
            stop=chat.stop,
        )

    def _asked(self, plan: Plan, chat: ChatRequest, opening: Opening) -> tuple[Json, Prefill | None]:
        """The caller's body, changed only where the plan says so; and the answer that it goes on with."""
        body = {**chat.body}
        guidance = plan.guidance
        prefill: Prefill | None = None
        if opening.text and guidance is not None:
            if guidance.placement == "context":
                projection = PROJECTIONS[guidance.projection]
                body["messages"] = place_in_context(projection, chat.messages, opening.text)
            else:
                assert plan.continuation is not None, "resolve() sends no prefix to an engine that cannot continue it"
                prefill = Prefill(opening.text, plan.continuation)
        if plan.max_tokens is not None:
            body[chat.limit_field] = plan.max_tokens - (opening.tokens if prefill is not None else 0)
        return body, prefill

    @contextmanager
    def _failures(self, plan: Plan, opening: Opening, draft: Draft) -> Iterator[None]:
        """Count the finisher's failures, and let a request that it blames be the caller's to mend.

        Not one with an opening in front of its answer: some engines refuse that alone, and it is the gateway's.
        """
        try:
            yield
        except EngineError as error:
            note_failure(error, draft.id, self._metrics)
            if not error.heard:
                _forget(plan, draft)
            if isinstance(error, EngineRejected) and error.blames_request and not _is_placed(plan, opening):
                raise InvalidRequest(error.message) from error
            raise


def _is_placed(plan: Plan, opening: Opening) -> bool:
    """Whether the finisher is to continue the opening as its own message."""
    guidance = plan.guidance
    return bool(opening.text) and opening.whole is None and guidance is not None and guidance.placement == "prefix"


def _begin(plan: Plan, draft: Draft, body: Json, prefill: Prefill | None) -> Call:
    read = body["messages"]
    if prefill is not None:
        read = [*read, {"role": "assistant", "content": prefill.text}]
    call = Call(plan.finisher, read)
    if plan.mode == "teacher":
        draft.teacher = call
    else:
        draft.student = call
    return call


def _forget(plan: Plan, draft: Draft) -> None:
    """A call that the engine did not take cost nothing."""
    if plan.mode == "teacher":
        draft.teacher = None
    else:
        draft.student = None


def _text_of(chunk: Json) -> str:
    """The words in a chunk, over all its choices."""
    deltas = (choice.get("delta") or {} for choice in chunk["choices"])
    return "".join(text for delta in deltas if isinstance(text := delta.get("content"), str))
