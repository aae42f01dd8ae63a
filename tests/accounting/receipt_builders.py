"""Receipt builders as the pipeline leaves them, and the prices for their receipts."""

from __future__ import annotations

import itertools
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from gateway.accounting.engine_set import EngineSet
from gateway.accounting.estimate import Encoding
from gateway.accounting.intent import Intent, intend
from gateway.accounting.receipt import BatchFacts, Receipt
from gateway.accounting.receipt_builder import ReceiptBuilder
from gateway.accounting.redis_ledger import AdmissionRequest, Variant
from gateway.accounting.scopes import Scope
from gateway.accounting.shares import EngineCall
from gateway.accounting.worst_case import worst_case
from gateway.engines.base import TokenUsage
from gateway.policy.plan import GuidancePlan, Plan, StudentPlan
from gateway.policy.projections import PROJECTIONS
from gateway.pricing import Price
from gateway.protocol.chat import ChatRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

PRICES = {
    "big": Price.of_tokens(Decimal(2), Decimal(10), Decimal(1)),
    "small": Price.of_tokens(Decimal("0.2"), Decimal("0.5")),
    "huge": Price.of_tokens(Decimal(20), Decimal(100), cache_write_per_1m=Decimal(25)),
}
ENCODINGS = dict.fromkeys(PRICES, Encoding("cl100k_base"))
NO_ENGINES = EngineSet({}, PRICES, ENCODINGS)
MESSAGES = [{"role": "user", "content": "Write a story about a ship."}]
_ids = itertools.count()


def plan(mode: str = "guided", *, placement: str = "prefix", projection: str = "cutoff", baseline: str = "big") -> Plan:
    """Return the plan of a route with the teacher `big` and the student `small`."""
    guidance = GuidancePlan(
        teacher="big",
        tokens=40,
        projection=PROJECTIONS[projection],
        placement=placement,
        boundary="word",
        temperature=0.0,
        top_p=None,
        seed=None,
        max_wait_s=0.01,
        deadline_s=2,
        required=False,
        stream=False,
        may_answer=True,
        reject_when_full=False,
        tenant="acme",
        weight=1.0,
        share="acme",
        cache_ttl_s=3600.0,
    )
    return Plan(
        mode=mode,
        students=(StudentPlan("big" if mode == "teacher" else "small", None),),
        guidance=guidance if mode == "guided" else None,
        unguided=None,
        baseline=baseline,
        max_tokens=100,
        show_cost=True,
    )


def engine_set(by_name: Mapping[str, Any], **more: Any) -> EngineSet:
    """Return a set of these engines, or of fakes in their place."""
    return EngineSet(by_name, PRICES, ENCODINGS, **more)


def call(model: str, read: int | None, written: int = 0, cached: int = 0, stored: int = 0, **more: Any) -> EngineCall:
    """Return a call. With `read` None, the engine reported no usage."""
    usage = None if read is None else TokenUsage(read, written, cached, cache_write_input_tokens=stored)
    return EngineCall(model, MESSAGES, usage, **more)


def builder(
    plan: Plan,
    *,
    teacher: EngineCall | None = None,
    student: EngineCall | None = None,
    engine_set: EngineSet = NO_ENGINES,
    **more: Any,
) -> ReceiptBuilder:
    return ReceiptBuilder(
        id=f"req-{next(_ids)}",
        created=1_700_000_000,
        tenant="acme",
        key="ci",
        route="chat",
        stream=False,
        started=time.perf_counter(),
        plan=plan,
        engine_set=engine_set,
        teacher=teacher,
        student=student,
        **more,
    )


def guided(**more: Any) -> ReceiptBuilder:
    """The teacher reads 100 tokens and writes 40, all kept. The student reads 150 and writes 160."""
    began = time.perf_counter()
    facts = {
        "teacher": call("big", 100, 40),
        "student": call("small", 150, 160, 20),
        "kept_tokens": 40,
        "batch": BatchFacts("b7", 12),
        "admitted": began,
        "guidance_requested": began,
        "granted": began + 0.25,
        "guided": began + 1,
        "first_token": began + 1.5,
        "student_began": began + 1.5,
    }
    return builder(more.pop("plan", None) or plan(), **(facts | more))


def chat(**more: Any) -> ChatRequest:
    """Return a caller's request, about 400 bytes long by default."""
    facts = {
        "stop": (),
        "stream": False,
        "wants_usage": False,
        "size_bytes": 400,
        "max_tokens": None,
    }
    return ChatRequest(body={"messages": MESSAGES} | more.pop("body", {}), model="chat", **(facts | more))


def intent(process_id: str = "ann", **more: Any) -> Intent:
    """Return the intent of a guided request that process `owner` admitted."""
    one = builder(plan())
    return msgspec.structs.replace(intend(one, one.plan, worst_case(one.plan, chat(), PRICES), process_id), **more)


UNREACHED = Scope("tenant", 1_000_000, 0, 0)
"""A limit, so that a request waits for its verdict."""


def candidate(one: Intent, *scopes: Scope, force: bool = False) -> AdmissionRequest:
    """Return an admission request with one variant."""
    charged = msgspec.structs.replace(one, charges=tuple(scope.charge for scope in scopes))
    return AdmissionRequest(scopes, (Variant(1, charged),), force)


def closed(one: ReceiptBuilder, status: str = "ok") -> Receipt:
    return one.close(status, PRICES, ENCODINGS)
