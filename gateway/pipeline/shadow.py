"""Mode shadow: answer a request with guidance a second time, in the background. Nobody sees the answer.

The shadow has a receipt of its own. Its text is dropped and its failures are counted. The caller has its answer by then
and never waits for the shadow.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import structs

from gateway.errors import GatewayError, Overloaded

if TYPE_CHECKING:
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.pipeline.admission import Admission
    from gateway.pipeline.student import StudentCall
    from gateway.pipeline.teacher import TeacherCall
    from gateway.policy.book import Caller
    from gateway.protocol.requests import CompletionRequest
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics
    from gateway.telemetry.tracing import Tracing


@dataclass(slots=True)
class ShadowRequests:
    """Run shadow requests: at most `max_in_flight` at a time in this process. Further ones are dropped."""

    teacher_call: TeacherCall
    student_call: StudentCall
    admission: Admission
    metrics: Metrics
    tasks: BackgroundTasks
    max_in_flight: int
    tracing: Tracing | None = None
    _in_flight: int = field(default=0, init=False)

    def start(self, builder: ReceiptBuilder, request: CompletionRequest, caller: Caller) -> None:
        """Start the guided answer to a request, as its builder plans it."""
        if builder.plan.guidance is None:
            self.metrics.shadows.labels("unguidable").inc()
        elif self._in_flight >= self.max_in_flight:
            self.metrics.shadows.labels("dropped").inc()
        else:
            self._in_flight += 1
            self.tasks.spawn(builder.id, self._run_counted(builder, without_streaming(request), caller))

    async def _run_counted(self, builder: ReceiptBuilder, request: CompletionRequest, caller: Caller) -> None:
        result = "failed"
        try:
            traced = self.tracing.shadow() if self.tracing is not None else nullcontext()
            with traced, self.admission.cancel_on_drain():
                result = await self._run(builder, request, caller)
        except GatewayError as error:
            # The log has an engine's failure and the receipt its label. A cancellation by a shutdown is not a failure.
            if builder.refused or builder.admitted is None or isinstance(error, Overloaded):
                result = "refused"
        finally:
            self._in_flight -= 1
            self.metrics.shadows.labels(result).inc()

    async def _run(self, builder: ReceiptBuilder, request: CompletionRequest, caller: Caller) -> str:
        with self.admission.slot(caller), self.admission.settled(builder):
            await self.admission.reserve(builder, request, caller)
            if builder.plan.guidance is None:
                builder.unguided = builder.plan.unguided
                return "refused"  # a budget selected the student alone, which needs no shadow
            self.student_call.check_available(builder)
            guidance = await self.teacher_call.open(request, builder)
            builder.finish_reason = guidance.finish_reason
            if guidance.finish_reason is None:
                reply = await self.student_call.complete(request, guidance, builder)
                builder.finish_reason = reply["choices"][0].get("finish_reason")
            return "made"


def without_streaming(request: CompletionRequest) -> CompletionRequest:
    """Return the same request without streaming."""
    body = {name: value for name, value in request.body.items() if name not in {"stream", "stream_options"}}
    return structs.replace(request, body=body, stream=False, wants_usage=False)
