"""Conversations and the students that serve them: keys, shares, loads and failures."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from msgspec import structs

from gateway.policy.affinity import (
    LOAD_FACTOR,
    MIN_CALLS,
    NO_LOAD,
    SESSION_HEADERS,
    EngineLoad,
    conversation_key,
    conversation_order,
)
from gateway.policy.plan import EngineSnapshot
from gateway.policy.resolve import resolve
from gateway.policy.schema import TenantPolicy
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.chat import ChatRequest, parse_chat
from gateway.protocol.text import parse_text_completion

if TYPE_CHECKING:
    from collections.abc import Mapping

REPLICAS = {"a": 1.0, "b": 1.0, "c": 1.0}


def chat(first: Any = "Why?", turns: int = 1, system: Any = "Be brief.", **more: Any) -> ChatRequest:
    """Return a conversation after `turns` messages of the user."""
    messages: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": first})
    for turn in range(turns - 1):
        messages += [{"role": "assistant", "content": f"Because {turn}."}, {"role": "user", "content": f"And {turn}?"}]
    return parse_chat(orjson.dumps({"model": "chat", "messages": messages} | more))


def key(request: Any = None, tenant: str = "acme", **headers: str) -> bytes | None:
    return conversation_key(tenant, request or chat(), {name.replace("_", "-"): one for name, one in headers.items()})


def session_key(session: object, tenant: str = "acme") -> bytes:
    found = key(tenant=tenant, x_session_id=str(session))
    assert found is not None
    return found


def ranking(
    conversation: bytes, weights: Mapping[str, float], loads: Mapping[str, EngineLoad] | None = None
) -> list[str]:
    order = conversation_order(conversation, weights, dict.fromkeys(weights, NO_LOAD) if loads is None else loads)
    return sorted(weights, key=lambda name: order[name])


def called(
    request: ChatRequest, resting: str = "", loads: Mapping[str, EngineLoad] | None = None, **route: Any
) -> list[str]:
    """Return the students of a plan, in the order of calls."""
    students = [{"model": name, "weight": weight} for name, weight in REPLICAS.items()]
    policy = TenantPolicy.model_validate(
        {"tenant": "acme", "routes": [{"model": "chat", "mode": "student", "students": students} | route]}
    )
    plan = resolve(
        policy,
        policy.routes[0],
        request,
        lambda engine: EngineSnapshot(Continuation("trailing"), cooldown=engine == resting),
        load_of=(loads or dict.fromkeys(REPLICAS, NO_LOAD)).__getitem__,
    )
    return [student.engine for student in plan.students]


def test_all_turns_of_a_conversation_have_one_order_of_students() -> None:
    orders = {tuple(called(chat("Where do I start?", turns))) for turns in range(1, 40)}
    assert len(orders) == 1
    firsts = {called(chat(f"Question {number}"))[0] for number in range(40)}
    assert firsts == set(REPLICAS)


def test_without_affinity_each_request_is_drawn_by_itself() -> None:
    assert {called(chat(), affinity="none")[0] for _ in range(200)} == set(REPLICAS)


def test_students_without_weights_keep_the_order_of_the_file() -> None:
    for number in range(20):
        assert called(chat(f"Question {number}"), students=["c", "a", "b"]) == ["c", "a", "b"]


def test_headers_come_before_the_cache_key_and_that_before_the_texts() -> None:
    """The first session header of the list identifies the conversation, whatever its text is."""
    both = chat("One", prompt_cache_key="k")
    assert key(both) == key(chat("Two", prompt_cache_key="k")) != key(chat("One"))
    found = {}
    for name in reversed(SESSION_HEADERS):
        found[name] = "7"
        conversation = conversation_key("acme", both, dict(found))
        assert conversation == conversation_key("acme", chat("Two"), {name: "7"})
        assert conversation != key(both)
        found[name] = "another"
    assert key(x_session_id="\udcff") == key(x_session_id="\udcfe"), "bytes that are no UTF-8"
    assert key(both, x_session_id="") == key(both), "an empty header identifies nothing"
    assert key(chat(prompt_cache_key="7")) != key(x_session_id="7")
    assert key(structs.replace(chat("Two"), cache_key="k")) == key(chat(prompt_cache_key="k"))
    for unusable in ("", 7, None, ["k"]):
        assert key(chat(prompt_cache_key=unusable)) == key(chat())


def test_the_texts_are_those_of_the_system_and_of_the_first_user_message() -> None:
    assert key(chat("One")) != key(chat("Two"))
    assert key(chat(system="One")) != key(chat(system="Two"))
    assert key(chat("b", system="a")) != key(chat("ab", system=None))
    parts = [{"type": "text", "text": "What is"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    assert key(chat(parts)) == key(chat(parts, turns=4)) != key(chat([{"type": "text", "text": "What was"}]))
    developer = [{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}]
    other = [{"role": "developer", "content": "z"}, {"role": "user", "content": "y"}]
    requests = [parse_chat(orjson.dumps({"model": "chat", "messages": one})) for one in (developer, other)]
    assert key(requests[0]) != key(requests[1])


def test_a_raw_prompt_has_no_conversation_without_a_name() -> None:
    prompt = parse_text_completion(b'{"model": "chat", "prompt": "Once"}')
    named = parse_text_completion(b'{"model": "chat", "prompt": "Once", "prompt_cache_key": "k"}')
    assert key(prompt) is None
    assert key(named) == key(chat(prompt_cache_key="k"))
    assert key(prompt, x_session_id="7") == key(x_session_id="7")


def test_the_start_and_the_end_of_a_long_text_are_read_in_bounded_time() -> None:
    shared = "x" * 4_000_000
    assert key(chat("a" + shared)) != key(chat("b" + shared))
    assert key(chat(shared + "a")) != key(chat(shared + "b"))
    long, short = chat(shared, system=shared), chat()
    took = {}
    for name, request in (("long", long), ("short", short)):
        began = time.perf_counter()
        for _ in range(200):
            key(request)
        took[name] = (time.perf_counter() - began) / 200
    assert took["long"] < took["short"] + 0.001, "hashing 8 million characters takes about 10 ms"


def test_the_first_texts_of_many_are_read_in_bounded_time() -> None:
    """2 million characters in 1,024 parts would take some milliseconds."""
    parts = [{"type": "text", "text": "x" * 2000}] * 32
    many = [{"role": "system", "content": parts}] * 32
    request = parse_chat(orjson.dumps({"model": "chat", "messages": [*many, {"role": "user", "content": "Why?"}]}))
    began = time.perf_counter()
    for _ in range(100):
        key(request)
    assert (time.perf_counter() - began) / 100 < 0.002
    assert key(chat(parts[:15], system=parts[:16])) != key(chat(parts[:14], system=parts[:16]))


def test_conversations_are_shared_by_weight() -> None:
    """Each bound is more than four standard deviations away."""
    for weights in (REPLICAS, {"a": 3.0, "b": 1.0}, {"a": 0.5, "b": 0.25, "c": 0.25}):
        firsts = Counter(ranking(session_key(number), weights)[0] for number in range(1000))
        for name, weight in weights.items():
            assert abs(firsts[name] - 1000 * weight / sum(weights.values())) < 65


def test_tenants_with_the_same_session_are_placed_independently() -> None:
    weights = {"a": 1.0, "b": 1.0}
    same = sum(
        ranking(session_key(number, "acme"), weights)[0] == ranking(session_key(number, "globex"), weights)[0]
        for number in range(1000)
    )
    assert 435 < same < 565


def test_a_failed_engine_moves_its_own_conversations_alone() -> None:
    moved = Counter[str]()
    for number in range(300):
        request = chat(f"Question {number}")
        before, after = called(request), called(request, resting="b")
        assert after == [*(name for name in before if name != "b"), "b"]
        if before[0] == "b":
            moved[after[0]] += 1
        else:
            assert after[0] == before[0]
    assert min(moved["a"], moved["c"]) > 25, "the other engines share them"


def test_a_new_engine_gets_conversations_and_moves_no_others() -> None:
    for number in range(300):
        before, after = (ranking(session_key(number), REPLICAS | more)[0] for more in ({}, {"d": 1.0}))
        assert after in (before, "d")


def test_a_single_conversation_fills_its_engine_up_to_the_bound_only() -> None:
    """Calls that never end, all of one conversation."""
    weights, calls = {"a": 2.0, "b": 1.0, "c": 1.0}, Counter[str]()
    home = ranking(session_key(1), weights)
    for sent in range(400):
        loads = {name: EngineLoad(calls[name], is_full=False) for name in weights}
        first = ranking(session_key(1), weights, loads)[0]
        assert calls[first] < max(MIN_CALLS, LOAD_FACTOR * (sent + 1) * weights[first] / 4)
        if sent < MIN_CALLS:
            assert first == home[0]
        calls[first] += 1
    for name, weight in weights.items():
        assert calls[name] <= LOAD_FACTOR * 400 * weight / 4 + 1
    assert calls[home[0]] > 0.9 * LOAD_FACTOR * 400 * weights[home[0]] / 4, "the engine is used up to its bound"


def test_an_engine_without_free_slots_is_passed_over_unless_all_are_full() -> None:
    home = called(chat())
    full = {name: EngineLoad(2, is_full=name == home[0]) for name in REPLICAS}
    assert called(chat(), loads=full) == [*home[1:], home[0]]
    assert called(chat(), loads=dict.fromkeys(REPLICAS, EngineLoad(2, is_full=True))) == home


def test_calls_at_a_failed_engine_do_not_raise_the_bound_of_the_others() -> None:
    """The bound is a multiple of the mean over the engines that are called."""
    request = next(chat(str(number)) for number in itertools.count() if called(chat(str(number)))[:2] == ["a", "b"])
    loads = {"a": EngineLoad(1000, is_full=False), "b": EngineLoad(20, is_full=False), "c": NO_LOAD}
    assert called(request, resting="a", loads=loads) == ["c", "b", "a"]


@pytest.mark.parametrize("seed", ["0", "1"])
def test_other_processes_compute_the_same_order(seed: str) -> None:
    """The order depends on no random seed of the process."""
    code = (
        "from tests.policy.test_affinity import *\n"
        "print([ranking(session_key(n), REPLICAS) for n in range(50)], [called(chat(str(n))) for n in range(50)])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, check=True, capture_output=True
    )
    here = [ranking(session_key(n), REPLICAS) for n in range(50)], [called(chat(str(n))) for n in range(50)]
    assert run.stdout.decode().strip() == " ".join(map(str, here))
