"""Lower bounds on the tokens of prompts, and the students that are dropped by them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from threading import Event
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.accounting.estimate import FALLBACK, Encoding, count_text
from gateway.errors import InvalidRequest
from gateway.pipeline import context_length
from gateway.pipeline.completion import Completions
from gateway.pipeline.context_length import (
    drop_too_small,
    fitting_limit,
    least_tokens,
    may_be_too_long,
    may_be_too_small,
)
from gateway.pipeline.stream import StreamRelay
from gateway.pipeline.token_count import TokenCounter
from gateway.policy.plan import StudentPlan
from gateway.policy.schema import TenantPolicy
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.chat import parse_chat
from gateway.protocol.reply import ReplyHead
from gateway.protocol.text import parse_text_completion
from tests.accounting.receipt_builders import builder, engine_set, plan

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.accounting.engine_set import EngineSet
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.protocol.requests import CompletionRequest

OWN = Encoding(FALLBACK, own=True)


def chat(*texts: str, role: str = "user", **more: Any) -> CompletionRequest:
    messages = [{"role": role, "content": text} for text in texts]
    return parse_chat(orjson.dumps({"model": "chat", "messages": messages, **more}))


def raw(prompt: Any, **more: Any) -> CompletionRequest:
    return parse_text_completion(orjson.dumps({"model": "chat", "prompt": prompt, **more}))


def words(number: int) -> str:
    return "word " * number


@pytest.mark.parametrize(
    ("request_", "too_long"),
    [
        (chat(words(102)), True),
        (chat(words(99)), False),
        (chat(words(60), words(60)), True),
        (chat("x" * 128 * 101), True),
        (chat("x" * 128 * 100), False),
        (chat(" " * 5000), False),
        (chat("a\n" * 5000), False),
        (raw(words(102)), True),
        (raw([words(60), words(60)]), False),
        (raw([words(60), words(102)]), True),
        (raw([7] * 101), True),
        (raw([7] * 100), False),
        (raw([[7] * 60, [7] * 101]), True),
    ],
)
async def test_only_a_prompt_that_is_certainly_too_long_is(request_: CompletionRequest, too_long: bool) -> None:
    assert (await least_tokens(request_, 100) > 100) is too_long
    assert may_be_too_long(request_, 100) or not too_long
    assert not may_be_too_long(request_, None)


@pytest.mark.parametrize("more", [{"truncate_prompt_tokens": 50}, {"chat_template": "{{ messages[-1].content }}"}])
async def test_a_prompt_that_the_caller_shortens_is_left_to_the_engine(more: dict[str, Any]) -> None:
    assert await least_tokens(chat(words(1000), **more), 100) == 0


async def test_text_parts_count() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": words(102)}]}]
    request = parse_chat(orjson.dumps({"model": "chat", "messages": messages}))
    assert await least_tokens(request, 100) > 100


async def test_reasoning_of_earlier_answers_does_not_count() -> None:
    """Chat templates remove it."""
    assert await least_tokens(chat(f"<think>{words(500)}</think>Yes.", role="assistant"), 100) == 0
    assert await least_tokens(chat(words(500), role="assistant"), 100) > 100


async def test_a_prompt_is_counted_with_the_models_own_tokenizer() -> None:
    text = "incontrovertibly " * 60  # 60 words, and more than 100 tokens
    assert await least_tokens(chat(text), 100, Encoding(FALLBACK)) <= 100
    assert 100 < await least_tokens(chat(text), 100, OWN) <= count_text(FALLBACK, text)


@given(st.lists(st.text("ab \n.é漢", max_size=400), min_size=1, max_size=3), st.integers(1, 50))
async def test_the_bound_is_never_above_the_tokens(texts: list[str], limit: int) -> None:
    counted = sum(count_text(FALLBACK, text) for text in texts)
    for encoding in (None, OWN):
        assert await least_tokens(chat(*texts), limit, encoding) <= counted


def engines(**limits: int | None) -> EngineSet:
    states = {name: SimpleNamespace(max_prompt_tokens=limit, context_tokens=limit) for name, limit in limits.items()}
    return engine_set({name: SimpleNamespace(state=state) for name, state in states.items()})


def planned(**limits: int | None) -> ReceiptBuilder:
    plans = tuple(StudentPlan(name, None) for name in limits)
    return builder(msgspec.structs.replace(plan("student"), students=plans), engine_set=engines(**limits))


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"small": 100, "large": 1000}, ["large"]),
        ({"small": 100, "unknown": None, "tiny": 10}, ["unknown"]),
        ({"large": 1000, "small": 100, "larger": 2000}, ["large", "larger"]),
    ],
)
async def test_students_that_are_too_small_are_dropped(limits: dict[str, int | None], kept: list[str]) -> None:
    request, one = chat(words(500)), planned(**limits)
    assert may_be_too_small(request, one)
    await drop_too_small(request, one)
    assert [student.engine for student in one.plan.students] == kept


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("vllm", None, ("context", False, False)),
        ("vllm", "instruct", ("prefix", False, False)),
        ("vllm", "trailing", ("prefix", True, False)),
        ("instruct", "trailing", ("prefix", True, False)),
    ],
)
async def test_the_guidance_is_planned_for_the_first_student_that_is_left(
    first: Any, second: Any, expected: tuple[str, bool, bool]
) -> None:
    """Guidance that was shown early is lost on a student that writes the whole answer."""
    guided = plan("guided")
    assert guided.guidance is not None
    students = StudentPlan("small", Continuation(first)), StudentPlan("large", second and Continuation(second))
    guidance = msgspec.structs.replace(guided.guidance, stream=True, warm_student=True)
    guided = msgspec.structs.replace(guided, students=students, guidance=guidance)
    one = builder(guided, engine_set=engines(small=100, large=1000))
    await drop_too_small(chat(words(500)), one)
    assert one.plan.guidance is not None
    left = one.plan.guidance
    assert (left.placement, left.stream, left.warm_student) == expected


async def test_the_guidance_is_as_planned_while_the_first_student_is_left() -> None:
    guided = plan("guided")
    students = StudentPlan("large", Continuation("vllm")), StudentPlan("small", None)
    known = engines(small=100, large=1000)
    one = builder(msgspec.structs.replace(guided, students=students), engine_set=known)
    await drop_too_small(chat(words(500)), one)
    assert one.plan == msgspec.structs.replace(guided, students=students[:1])


async def test_a_stream_names_the_first_student_that_is_left() -> None:
    """The guidance is sent before the student is called, in chunks with the name of the student."""
    students = StudentPlan("small", Continuation("vllm")), StudentPlan("large", Continuation("vllm"))
    guided = msgspec.structs.replace(plan("guided"), students=students, names_engine=True)
    one = builder(guided, engine_set=engines(small=100, large=1000))

    async def guidance(*_: object) -> AsyncGenerator[str, None]:
        yield "The sky"

    calls: Any = SimpleNamespace(check_available=lambda _: None, stream=guidance)
    unused: Any = None
    completions = Completions(calls, calls, unused, unused, unused, unused, unused, unused, unused)
    relay = StreamRelay(ReplyHead("ours", 1, "chat"), wants_usage=False)
    async with aclosing(completions._chunks(chat(words(500)), relay, one)) as groups:
        [shown] = await anext(groups)
    assert shown["model"] == "large"


async def test_a_prompt_that_is_too_long_for_all_students_is_the_callers_error() -> None:
    with pytest.raises(InvalidRequest) as caught:
        await drop_too_small(chat(words(500)), planned(small=100, smaller=50))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert "maximum context length is 100 tokens" in caught.value.message
    with pytest.raises(InvalidRequest) as caught:
        await drop_too_small(raw([7] * 200), planned(small=100))
    assert caught.value.param == "prompt"
    assert "at least 200 tokens" in caught.value.message


def test_a_usual_prompt_is_not_examined() -> None:
    assert not may_be_too_small(chat(words(20)), planned(small=100))


def route(**more: Any) -> Any:
    fields = {"model": "chat", "mode": "student", "students": ["small", "large"], **more}
    return TenantPolicy.model_validate({"tenant": "acme", "routes": [fields]}).routes[0]


async def limit_of(request: CompletionRequest, route: Any, known: EngineSet) -> int | None:
    return await fitting_limit(request, route, known, TokenCounter(known), "acme")


@pytest.mark.parametrize(
    ("fields", "limits", "expected"),
    [
        ({}, {}, None),
        ({}, {"max_tokens_limit": 50}, 50),
        ({}, {"default_max_tokens": 20, "max_tokens_limit": 50}, 20),
        ({"max_tokens": 40}, {"max_tokens_limit": 50}, 40),
        ({"max_tokens": 128_000}, {"max_tokens_limit": 50}, 50),
    ],
)
async def test_the_policy_limits_max_tokens(fields: Any, limits: Any, expected: int | None) -> None:
    known = planned(small=1000, large=8000).engine_set
    assert await limit_of(chat("Why?", **fields), route(**limits), known) == expected


async def test_a_limit_that_cannot_fit_into_the_context_is_reduced_to_what_the_prompt_leaves() -> None:
    """The largest context of the route counts. A limit that may fit is not changed."""
    known = planned(small=1000, large=8000)
    asked = chat(words(1000), max_tokens=128_000)
    reduced = await limit_of(asked, route(), known.engine_set)
    assert reduced is not None
    assert 4000 < reduced <= 7000
    assert await limit_of(chat(words(1000), max_tokens=6500), route(), known.engine_set) == 6500
    known.engine_set.by_name["large"].state.context_tokens = None
    assert await limit_of(asked, route(), known.engine_set) == 128_000


CODE = "\n".join(f"def value_{n}(x: int) -> int:\n    return {{'a': x + {n}}}['a']  # {n}" for n in range(90))


@pytest.mark.parametrize("asked", [6_500, 7_900, 8_100, 8_141, 8_192, 20_000])
async def test_each_limit_that_the_prompt_leaves_no_room_for_is_reduced(asked: int) -> None:
    """Also with code, which has many tokens for its words."""
    known = planned(small=8192).engine_set
    tokens = count_text(FALLBACK, CODE)
    assert 8192 - 6_500 < tokens < 3_000
    reduced = await limit_of(chat(CODE, max_tokens=asked), route(students=["small"]), known)
    assert reduced is not None
    assert 3_000 < reduced <= 8192 - tokens


async def test_a_prompt_that_does_not_fit_leaves_the_limit_to_the_engine() -> None:
    known = planned(small=1000, large=2000).engine_set
    assert await limit_of(chat(CODE, max_tokens=100), route(), known) == 100


async def test_a_count_that_takes_too_long_is_replaced_by_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another count of the tenant holds the turn."""
    known = planned(small=8192).engine_set
    counter, end = TokenCounter(known), Event()
    monkeypatch.setattr(context_length, "_COUNT_LIMIT_S", 0.01)
    before = asyncio.get_running_loop().create_task(counter.run("acme", lambda: int(end.wait(10))))
    await asyncio.sleep(0)
    asked = chat(CODE, max_tokens=7900)
    reduced = await fitting_limit(asked, route(students=["small"]), known, counter, "acme")
    end.set()
    assert await before == 1
    assert reduced == 8192 - asked.size_bytes // 3


async def test_a_raw_prompt_above_the_policys_maximum_is_rejected() -> None:
    known = planned(small=1000, large=8000).engine_set
    with pytest.raises(InvalidRequest, match="Send at most 50") as caught:
        await limit_of(raw("Why?", max_tokens=51), route(max_tokens_limit=50), known)
    assert caught.value.param == "max_tokens"
