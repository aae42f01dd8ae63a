"""Mode shadow: answer a request with guidance a second time, in the background. Nobody sees the answer.

The shadow has a receipt of its own. Its text is dropped and its failures are counted. The caller has its answer by then
and never waits for the shadow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from gateway.errors import GatewayError, Overloaded

if TYPE_CHECKING:
    from gateway.accounting.draft import ReceiptBuilder
    from gateway.pipeline.admission import Admission
    from gateway.pipeline.student import StudentCall
    from gateway.pipeline.teacher import TeacherCall
    from gateway.policy.book import Caller
    from gateway.protocol.requests import CompletionRequest
    from gateway.runtime.tasks import BackgroundTasks
    from gateway.telemetry.metrics import Metrics
    from gateway.telemetry.tracing import Tracing


class ShadowRequests:
    """Run shadow requests.

    Args:
        max_in_flight: shadow requests at a time in this process; further ones are dropped.
    """

    def __init__(
        self,
        teacher_call: TeacherCall,
        student_call: StudentCall,
        admission: Admission,
        metrics: Metrics,
        tasks: BackgroundTasks,
        *,
        max_in_flight: int,
        tracing: Tracing | None = None,
    ) -> None:
        self._teacher_call = teacher_call
        self._student_call = student_call
        self._admission = admission
        self._results = metrics.shadows
        self._tasks = tasks
        self._max_in_flight = max_in_flight
        self._tracing = tracing
        self._in_flight = 0

    def start(self, builder: ReceiptBuilder, request: CompletionRequest, caller: Caller) -> None:
        """Start the guided answer to a request, as its builder plans it."""
        if builder.plan.guidance is None:
            self._results.labels("unguidable").inc()
        elif self._in_flight >= self._max_in_flight:
            self._results.labels("dropped").inc()
        else:
            self._in_flight += 1
            run = self._run_counted if self._tracing is None else self._run_traced
            task = self._tasks.spawn(builder.id, run(builder, without_streaming(request), caller))
            task.add_done_callback(lambda _: self._release())

    def _release(self) -> None:
        self._in_flight -= 1

    async def _run_traced(self, builder: ReceiptBuilder, request: CompletionRequest, caller: Caller) -> None:
        assert self._tracing is not None
        with self._tracing.shadow():
            await self._run_counted(builder, request, caller)

    async def _run_counted(self, builder: ReceiptBuilder, request: CompletionRequest, caller: Caller) -> None:
        result = "failed"
        try:
            async with self._admission.cancel_on_drain():
                result = await self._run(builder, request, caller)
        except GatewayError as error:
            # The log has an engine's failure and the receipt its label. A cancellation by a shutdown is not a failure.
            if builder.refused or builder.admitted is None or isinstance(error, Overloaded):
                result = "refused"
        finally:
            self._results.labels(result).inc()

    async def _run(self, builder: ReceiptBuilder, request: CompletionRequest, caller: Caller) -> str:
        """Answer the request. Without a free slot there is no receipt."""
        with self._admission.slot(caller), self._admission.settled(builder):
            plan = await self._admission.reserve(builder, request, caller)
            if plan.guidance is None:
                builder.unguided = plan.unguided
                return "refused"  # a budget selected the student alone, which needs no shadow
            self._student_call.check_available(plan, builder)
            guidance = await self._teacher_call.open(plan, request, builder)
            if guidance.finish_reason is None:
                reply = await self._student_call.complete(plan, request, guidance, builder)
                builder.finish_reason = reply["choices"][0].get("finish_reason")
            else:
                builder.finish_reason = guidance.finish_reason
            return "made"


def without_streaming(request: CompletionRequest) -> CompletionRequest:
    """Return the same request without streaming."""
    body = {name: value for name, value in request.body.items() if name not in {"stream", "stream_options"}}
    return structs.replace(request, body=body, stream=False, wants_usage=False)
