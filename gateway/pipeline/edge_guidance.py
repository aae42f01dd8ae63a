"""The path of a device that runs the student itself: a chat in, and out come the teacher's first words and the seam.

Paper, Figure 1: the teacher in the cloud, the student at the edge. Guidance is made as for any chat, in its batch,
cached, limited and paid for; no student is asked. How the device finished the answer it reports (edge_reports.py).
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from gateway.accounting.receipt import CloseTerms
from gateway.pipeline.completion import Answer
from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.student_request import place_in_messages
from gateway.policy.for_devices import resolve_guidance
from gateway.policy.routing import find_route

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.accounting.draft import ReceiptBuilder
    from gateway.accounting.ledger import Ledger
    from gateway.pipeline.admission import Admission
    from gateway.pipeline.completion import RequestContext
    from gateway.pipeline.guidance_request import Guidance
    from gateway.pipeline.teacher import TeacherCall
    from gateway.policy.resolve import Plan
    from gateway.protocol.body import Json
    from gateway.protocol.chat import ChatRequest


class EdgeGuidancePipeline:
    """The path, with everything it needs handed in.

    Args:
        close_within_s: for how long after its request a device may report.
    """

    def __init__(
        self, *, teacher_call: TeacherCall, admission: Admission, ledger: Ledger, close_within_s: float
    ) -> None:
        self._teacher_call = teacher_call
        self._admission = admission
        self._ledger = ledger
        self._close_within_s = close_within_s

    async def answer(self, visit: RequestContext, asked: ChatRequest) -> Answer:
        """The guidance, whole. Raises GatewayErrors."""
        draft = await self._draft(visit, asked)
        with self._admission.slot(visit.caller), self._admission.settled(draft):
            plan = await self._admission.reserve(draft, asked, visit.caller)
            opening = await self._teacher_call.open(plan, asked, draft)
            terms = self._hand_over(draft, asked, opening)
            receipt = await self._ledger.close(draft, shown=plan.show_cost)
            return Answer(_reply(draft, plan, asked, opening, terms), receipt, plan.show_cost)

    async def stream(
        self, visit: RequestContext, asked: ChatRequest
    ) -> AsyncGenerator[ReceiptBuilder | list[Json], None]:
        """The same for who reads events: the draft, when the reply's headers can be known; what may be shown at once,
        where the route streams guidance; and all of it.

        An error raised before the draft was yielded can still become a status; one raised after it cannot.
        """
        draft = await self._draft(visit, asked)
        with self._admission.slot(visit.caller), self._admission.settled(draft):
            plan = await self._admission.reserve(draft, asked, visit.caller)
            opening, announced = UNGUIDED, False
            async with aclosing(self._teacher_call.stream(plan, asked, draft)) as pieces:
                async for piece in pieces:
                    if not isinstance(piece, str):
                        opening = piece
                        continue
                    if not announced:
                        yield draft
                        announced = True
                    draft.saw_first_token()
                    yield [{"object": "guidance.chunk", "id": _name(draft), "delta": piece}]
            terms = self._hand_over(draft, asked, opening)
            if not announced:
                yield draft
            receipt = await self._ledger.close(draft, shown=plan.show_cost)
            told = receipt.facts(show_cost=plan.show_cost)
            yield [{**_reply(draft, plan, asked, opening, terms), "gkt": told}]

    async def _draft(self, visit: RequestContext, asked: ChatRequest) -> ReceiptBuilder:
        route = await find_route(visit.caller, asked, visit.headers)
        plan = resolve_guidance(visit.caller.policy, route, asked, visit.headers)
        draft = visit.new_receipt(plan, asked.model, stream=asked.stream)
        # Now: if this process dies behind its reply, the device may still report.
        draft.terms = CloseTerms(
            self._due(draft), None if plan.max_tokens is None else plan.max_tokens * asked.generated_choices
        )
        return draft

    def _due(self, draft: ReceiptBuilder) -> int:
        return int(draft.created + self._close_within_s)

    def _hand_over(self, draft: ReceiptBuilder, asked: ChatRequest, opening: Guidance) -> CloseTerms:
        """Write down what the device may do with the opening, and return it."""
        draft.finish_reason = opening.finish_reason
        if draft.content is not None:
            draft.content.hear([{"choices": [{"message": {"content": opening.text}}]}])
        most = draft.plan.max_tokens
        if opening.finish_reason is not None:
            draft.terms = None  # there is nothing left to do, or to report
            return CloseTerms(self._due(draft), 0)
        draft.terms = CloseTerms(
            self._due(draft), None if most is None else (most - draft.shown_tokens) * asked.generated_choices
        )
        return draft.terms


def _name(draft: ReceiptBuilder) -> str:
    return f"guid-{draft.id}"


def _reply(draft: ReceiptBuilder, plan: Plan, asked: ChatRequest, opening: Guidance, terms: CloseTerms) -> Json:
    guidance = plan.guidance
    prefix = guidance is not None and guidance.placement == "prefix"
    placed = None
    if guidance is not None and opening.text and not prefix and opening.finish_reason is None:
        placed = place_in_messages(guidance, asked.messages, opening.text)
    return {
        "id": _name(draft),
        "object": "guidance",
        "created": draft.created,
        "model": asked.model,
        "guidance": {
            "text": opening.text,
            # Where in the prompt, the messages say.
            "placement": None if guidance is None else "prefix" if prefix else "context",
            "projection": None if guidance is None else guidance.projection.name,
            "tokens": 0 if guidance is None else guidance.tokens,
            "kept_tokens": draft.kept_tokens,
            "complete": draft.complete,
            "finish_reason": opening.finish_reason,
            "seam": {
                "owed": "" if opening.finish_reason == "stop" else opening.pending_space,
                "trimmed": opening.dropped,
            },
        },
        "messages": placed,
        "unguided": draft.unguided,
        "receipt": draft.id,
        "close": {"by": terms.by, "most_output_tokens": terms.most_output_tokens},
    }
