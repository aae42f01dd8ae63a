"""The path of one embeddings request: from a checked request to vectors and a receipt, without teacher or stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.accounting.shares import EngineCall
from gateway.engines.base import TokenUsage
from gateway.engines.embeddings import write_embeddings
from gateway.engines.failures import record_failure
from gateway.errors import EngineError
from gateway.pipeline.request_deadline import RequestDeadline, left_s
from gateway.pipeline.retries import RequestRetries, Retries, retry_or_raise
from gateway.policy.resolve import resolve_embeddings
from gateway.policy.routing import find_route

if TYPE_CHECKING:
    from gateway.accounting.ledger import Ledger
    from gateway.accounting.receipt import Receipt
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.engines.base import EngineEmbeddings
    from gateway.engines.retry_budget import RetryBudgets
    from gateway.pipeline.admission import Admission
    from gateway.pipeline.completion import RequestContext
    from gateway.protocol.embeddings import EmbeddingsRequest
    from gateway.protocol.texts import Text
    from gateway.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class EmbeddingsAnswer:
    """The bytes of the reply, with its receipt."""

    body: bytes
    receipt: Receipt
    show_cost: bool


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Answer embeddings requests with the given components."""

    admission: Admission
    ledger: Ledger
    metrics: Metrics
    budgets: RetryBudgets

    async def answer(self, context: RequestContext, request: EmbeddingsRequest) -> EmbeddingsAnswer:
        """Return the engine's reply under the caller's name of the model. Raises GatewayErrors."""
        route = await find_route(context.caller, request, context.headers)
        tenant, engines = context.caller.policy.tenant, context.engine_set.by_name
        plan = resolve_embeddings(
            route, lambda engine: engines[engine].in_cooldown_for(tenant), headers=context.headers
        )
        builder = context.new_receipt(plan, route.model, request, stream=False)
        with self.admission.slot(context.caller), self.admission.settled(builder):
            await self.admission.reserve(builder, request, context.caller)
            reply = await self._embed(request, builder)
            receipt = await self.ledger.close(builder, shown=plan.show_cost)
            model = builder.answering_engine if plan.names_engine else request.model
            return EmbeddingsAnswer(await write_embeddings(reply, model), receipt, plan.show_cost)

    async def _embed(self, request: EmbeddingsRequest, builder: ReceiptBuilder) -> EngineEmbeddings:
        request_retries = RequestRetries(builder, self.budgets, self.metrics)
        retries = Retries(builder.plan.students, builder.plan.retries, request_retries)
        deadline: RequestDeadline | None = None  # set once a call failed
        while True:
            engine = builder.engine_set.by_name[retries.student.engine]
            try:
                if engine.must_wait(builder.tenant):
                    await engine.wait_for_slot(left_s(deadline))
            except EngineError as error:
                deadline = deadline or RequestDeadline.of(builder)
                await retry_or_raise(retries, error, builder, self.metrics, deadline)
                continue
            builder.student = builder.running = call = _call(engine.name, request.inputs)
            try:
                called = engine.embed(request.body)
                reply = await (called if deadline is None else deadline.bound(engine.name, called))
                break
            except EngineError as error:
                record_failure(error, builder.id, self.metrics)
                if not error.may_have_run:
                    builder.student = None  # the failed call cost nothing
                deadline = deadline or RequestDeadline.of(builder)
                await retry_or_raise(retries, error, builder, self.metrics, deadline)
            finally:
                builder.running = None
        call.usage = reply.usage or call.usage
        return reply


def _call(engine: str, inputs: list[Text]) -> EngineCall:
    """Return the engine call for these inputs. Token ids are counted here; text only if the engine does not."""
    ids = [text for text in inputs if not isinstance(text, str)]
    if ids:
        return EngineCall(engine, (), TokenUsage(sum(map(len, ids)), 0, estimated=True), limit_tokens=0)
    return EngineCall(engine, [{"content": [{"text": text} for text in inputs]}], limit_tokens=0)
