"""The path of a device that runs the student itself: from a chat request to the guidance and the seam's data.

Paper, Figure 1: the teacher runs in the cloud, the student at the edge. Guidance is batched, cached, limited and
charged as for any chat, and the gateway calls no student. The device reports how it completed the answer
(edge_reports.py).
"""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec import structs

from gateway.accounting.receipt import CloseTerms
from gateway.pipeline.completion import Answer
from gateway.pipeline.guidance_request import UNGUIDED
from gateway.pipeline.student_request import place_in_messages
from gateway.policy.resolve import resolve_guidance
from gateway.policy.routing import find_route
from gateway.policy.token_limit import allowed_limit

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.accounting.ledger import Ledger
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.pipeline.admission import Admission
    from gateway.pipeline.completion import RequestContext
    from gateway.pipeline.guidance_request import Guidance
    from gateway.pipeline.teacher import TeacherCall
    from gateway.policy.guidance_off import GuidanceSwitches
    from gateway.protocol.body import Json
    from gateway.protocol.chat import ChatRequest


@dataclass(frozen=True, slots=True)
class EdgeGuidancePipeline:
    """Answer guidance requests. A device may report within `close_within_s` seconds after its request."""

    teacher_call: TeacherCall
    admission: Admission
    ledger: Ledger
    close_within_s: float
    switches: GuidanceSwitches

    async def answer(self, context: RequestContext, request: ChatRequest) -> Answer:
        """Return the complete guidance. Raises GatewayErrors."""
        builder = await self._new_builder(context, request)
        with self.admission.slot(context.caller), self.admission.settled(builder):
            await self.admission.reserve(builder, request, context.caller)
            guidance = await self.teacher_call.open(request, builder)
            terms, show_cost = self._hand_over(builder, request, guidance), builder.plan.show_cost
            receipt = await self.ledger.close(builder, shown=show_cost)
            return Answer(_reply(builder, request, guidance, terms), receipt, show_cost)

    async def stream(
        self, context: RequestContext, request: ChatRequest
    ) -> AsyncGenerator[ReceiptBuilder | list[Json], None]:
        """Answer an SSE caller. Yield the receipt builder once the reply's headers are known, then the guidance.

        Text that may be shown at once is yielded as it arrives, where the route streams guidance. The last event is the
        complete reply. An error raised before the builder was yielded can still become an HTTP status. A later error
        cannot.
        """
        builder = await self._new_builder(context, request)
        with self.admission.slot(context.caller), self.admission.settled(builder):
            await self.admission.reserve(builder, request, context.caller)
            guidance, announced = UNGUIDED, False
            async with aclosing(self.teacher_call.stream(request, builder)) as pieces:
                async for piece in pieces:
                    if not isinstance(piece, str):
                        guidance = piece
                        continue
                    if not announced:
                        yield builder
                        announced = True
                    builder.mark_first_token()
                    yield [{"object": "guidance.chunk", "id": f"guid-{builder.id}", "delta": piece}]
            terms, show_cost = self._hand_over(builder, request, guidance), builder.plan.show_cost
            if not announced:
                yield builder
            receipt = await self.ledger.close(builder, shown=show_cost)
            yield [{**_reply(builder, request, guidance, terms), "gkt": receipt.facts(show_cost=show_cost)}]

    async def _new_builder(self, context: RequestContext, request: ChatRequest) -> ReceiptBuilder:
        route = await find_route(context.caller, request, context.headers)
        policy = context.caller.policy
        off = self.switches.find(policy.tenant, route.model)
        limit = allowed_limit(request, route)
        reduced = limit is not None and request.max_tokens is not None and limit < request.max_tokens
        request = structs.replace(request, max_tokens=limit)
        plan = resolve_guidance(policy, route, request, context.headers, off)
        if reduced:
            plan = structs.replace(plan, reduced_max_tokens=limit)
        builder = context.new_receipt(plan, route.model, request, stream=request.stream)
        # Set before the call: if this process dies after its reply, the device may still report.
        builder.terms = self._terms(builder, request)
        return builder

    def _terms(self, builder: ReceiptBuilder, request: ChatRequest) -> CloseTerms:
        max_tokens = builder.plan.max_tokens
        most = None if max_tokens is None else (max_tokens - builder.shown_tokens) * request.generated_choices
        return CloseTerms(int(builder.created + self.close_within_s), most)

    def _hand_over(self, builder: ReceiptBuilder, request: ChatRequest, guidance: Guidance) -> CloseTerms:
        """Store in the receipt what the device may report for this guidance, and return it."""
        builder.finish_reason = guidance.finish_reason
        if builder.content is not None:
            builder.content.add([{"choices": [{"message": {"content": guidance.text}}]}])
        terms = self._terms(builder, request)
        if guidance.finish_reason is not None:
            builder.terms = None  # the answer is complete: there is nothing to report
            return CloseTerms(terms.by, 0)
        builder.terms = terms
        return terms


def _reply(builder: ReceiptBuilder, request: ChatRequest, guidance: Guidance, terms: CloseTerms) -> Json:
    guidance_plan = builder.plan.guidance
    prefix = guidance_plan is not None and guidance_plan.placement == "prefix"
    placed = None
    if guidance_plan is not None and guidance.text and not prefix and guidance.finish_reason is None:
        placed = place_in_messages(guidance_plan, request.messages, guidance.text)
    return {
        "id": f"guid-{builder.id}",
        "object": "guidance",
        "created": builder.created,
        "model": request.model,
        "guidance": {
            "text": guidance.text,
            # `messages` has the exact position.
            "placement": None if guidance_plan is None else "prefix" if prefix else "context",
            "projection": None if guidance_plan is None else guidance_plan.projection.name,
            "tokens": 0 if guidance_plan is None else guidance_plan.tokens,
            "kept_tokens": builder.kept_tokens,
            "complete": builder.complete,
            "finish_reason": guidance.finish_reason,
            "seam": {
                "owed": "" if guidance.finish_reason == "stop" else guidance.pending_space,
                "trimmed": guidance.dropped,
            },
        },
        "messages": placed,
        "unguided": builder.unguided,
        "receipt": builder.id,
        "close": {"by": terms.by, "most_output_tokens": terms.most_output_tokens},
    }
