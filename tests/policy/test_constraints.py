"""The table of fields that constrain an answer, and its page in the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
from msgspec import structs

from gateway.accounting.request_log import EXPECTED_REASONS
from gateway.policy.constraints import (
    APIS,
    CONSTRAINTS,
    FIELD_NOT_KNOWN,
    HOLDERS,
    MAX_FIELDS,
    NEUTRAL,
    UNCONSTRAINED,
    Constraint,
    Placements,
    known_fields,
    placements,
)
from gateway.policy.plan import EngineSnapshot, Plan
from gateway.policy.resolve import resolve
from gateway.policy.schema import TenantPolicy
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.capabilities.kinds import KINDS
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reference/request-fields.md").read_text("utf-8").partition("## Rejected names")[0]
MESSAGES = [{"role": "user", "content": "Why?"}]
# A value of each field that constrains an answer, where `true` does not.
CONSTRAINING: dict[str, Any] = {
    "prompts": ["one", "two"],
    "token_ids": [1, 2, 3],
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "response_format": {"type": "json_object"},
    "n": 2,
    "best_of": 2,
    "modalities": ["text", "audio"],
}


def value_of(rule: Constraint) -> Any:
    """Return a constraining value."""
    if rule.ignored == "null or true":
        return False
    return CONSTRAINING.get(rule.reason, True)


SNAPSHOT = EngineSnapshot(Continuation("trailing"))


def plan(
    body: dict[str, Any],
    teacher: EngineSnapshot = SNAPSHOT,
    student: EngineSnapshot = SNAPSHOT,
    **guidance: Any,
) -> Plan:
    route = {"model": "m", "mode": "guided", "teacher": "big", "student": "small", "guidance": guidance}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    raw = orjson.dumps({"model": "m", **body})
    request = parse_chat(raw) if "messages" in body else parse_text_completion(raw)
    return resolve(policy, policy.routes[0], request, lambda engine: teacher if engine == "big" else student)


EACH = [
    pytest.param(api, rule, field, id=f"{api}-{field}-{rule.reason}")
    for rule in CONSTRAINTS
    for api in rule.apis
    for field in rule.fields
]


@pytest.mark.parametrize(("api", "rule", "field"), EACH)
def test_each_field_leaves_the_placement_of_its_row(api: Any, rule: Constraint, field: str) -> None:
    least = {"messages": MESSAGES} if api == "chat" else {"prompt": "Q:"}
    found = placements({**least, field: value_of(rule)}, api)
    shared = (field,) if rule.placement == "prefix" else ()
    assert found == Placements(rule.reason, rule.reason if rule.placement == "none" else None, shared)
    if field != "prompt":
        assert placements({**least, field: None}, api) == UNCONSTRAINED


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "text"}},
        {"logit_bias": {}, "bad_words": [], "stop_token_ids": [], "min_tokens": 0, "ignore_eos": False, "n": 1},
        {"tools": [], "functions": [], "grammar": "", "structured_outputs": {}, "json_schema": "", "best_of": 1},
        {"skip_special_tokens": True, "add_generation_prompt": True, "continue_final_message": False},
        {"modalities": ["text"], "use_beam_search": False, "include_stop_str_in_output": False},
        {"anything": None, "nvext": {"top_k": 5, "ignore_eos": False}, "extra_body": {}},
        {"temperature": 2, "top_p": 0.1, "seed": 1, "user": "me", "repetition_penalty": 1.3, "stop": ["x"]},
    ],
)
def test_values_that_constrain_nothing_leave_every_placement(api: Any, fields: dict[str, Any]) -> None:
    assert placements({"model": "m", **fields}, api) == UNCONSTRAINED


@pytest.mark.parametrize("fields", [{"json_schema": {}}, {"guided_json": {}}, {"web_search_options": {}}])
def test_an_empty_object_is_a_constraint_if_it_has_a_meaning(fields: dict[str, Any]) -> None:
    """The empty schema means any JSON; empty search options mean a search."""
    assert placements({"messages": MESSAGES, **fields}, "chat").prefix is not None


def test_logprobs_0_in_completions_requests_the_chosen_tokens_only() -> None:
    assert placements({"prompt": "Q:", "logprobs": 0}, "completions").prefix == "logprobs"
    assert placements({"messages": MESSAGES, "logprobs": False, "top_logprobs": 5}, "chat") == UNCONSTRAINED


@pytest.mark.parametrize("holder", HOLDERS)
def test_fields_in_a_holder_constrain_as_at_the_top(holder: str) -> None:
    assert placements({holder: {"guided_regex": "a+"}}, "chat") == Placements("structured_output", None)
    assert placements({holder: {"zebra": 1}}, "chat") == Placements(FIELD_NOT_KNOWN, FIELD_NOT_KNOWN)
    assert placements({holder: "text"}, "chat") == Placements(FIELD_NOT_KNOWN, FIELD_NOT_KNOWN)
    # The gateway would not apply it.
    assert placements({holder: {"stop": "x"}}, "chat").context == FIELD_NOT_KNOWN
    assert placements({holder: {holder: {"grammar": "g"}}}, "chat").context == FIELD_NOT_KNOWN


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"enable_thinking": False, "thinking": True, "reasoning_effort": "low"}, UNCONSTRAINED),
        ({"documents": [{"text": "x"}]}, Placements("prompt_control", "prompt_control")),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, Placements("tools", None)),
        ({"continue_final_message": True}, Placements("caller_prefill", "caller_prefill")),
        ({"add_generation_prompt": False}, Placements("caller_prefill", "caller_prefill")),
        ({"messages": [], "enable_thinking": False}, Placements(FIELD_NOT_KNOWN, FIELD_NOT_KNOWN)),
    ],
)
def test_arguments_of_the_chat_template_constrain_as_fields_do(kwargs: dict[str, Any], expected: Placements) -> None:
    assert placements({"messages": MESSAGES, "chat_template_kwargs": kwargs}, "chat") == expected


def test_the_reason_is_that_of_the_first_row_that_excludes_the_placement() -> None:
    found = placements({"messages": MESSAGES, "zebra": 1, "documents": [{}], "n": 2, "tools": [{}]}, "chat")
    assert found == Placements("tools", "prompt_control")


def test_a_body_of_very_many_fields_is_not_gone_through() -> None:
    assert len(known_fields()) + 64 < MAX_FIELDS
    body = {f"f{number}": 1 for number in range(MAX_FIELDS + 1)}
    assert placements(body, "chat").context == placements({"nvext": body}, "chat").context == FIELD_NOT_KNOWN


@pytest.mark.parametrize("placement", ["prefix", "context", "input"])
@pytest.mark.parametrize("request_", [{"messages": MESSAGES}, {"prompt": "Q:"}], ids=["chat", "completions"])
def test_unknown_fields_go_without_guidance_unless_the_policy_allows_them(placement: str, request_: Any) -> None:
    """The reason contains no text of the caller. The field's name is beside it."""

    def unguided(allowed: list[str]) -> tuple[str | None, str | None]:
        found = plan(body, placement=placement, allow_fields=allowed)
        return found.unguided, found.unguided_field

    body = {**request_, "zebra": 1, "nvext": {"yak": True}}
    assert unguided([]) == (FIELD_NOT_KNOWN, "zebra")
    assert unguided(["zebra"]) == (FIELD_NOT_KNOWN, "nvext.yak")
    allowed = plan(body, placement=placement, allow_fields=["zebra", "yak"])
    assert allowed.unguided is None
    assert allowed.guidance is not None
    assert allowed.guidance.may_answer
    assert allowed.unguided_field is None


@pytest.mark.parametrize("field", ["grammar", "temperature", "nvext"])
def test_a_policy_allows_unknown_fields_alone(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: the gateway knows this field"):
        plan({"messages": MESSAGES}, allow_fields=[field])


@pytest.mark.parametrize("placement", ["context", "input"])
def test_with_a_constraint_the_teacher_does_not_replace_the_student(placement: str) -> None:
    found = plan({"messages": MESSAGES, "grammar": "g"}, placement=placement)
    assert found.guidance is not None
    assert not found.guidance.may_answer


@pytest.mark.parametrize("placement", ["prefix", "context", "input"])
@pytest.mark.parametrize("flags", [{}, {"continue_final_message": True, "add_generation_prompt": False}])
def test_an_answer_that_the_caller_began_is_not_guided(placement: str, flags: dict[str, Any]) -> None:
    """In the prompt, guidance would be introduced as the beginning although it follows the caller's prefill."""
    begun = [*MESSAGES, {"role": "assistant", "content": "Because"}]
    assert plan({"messages": begun, **flags}, placement=placement).unguided == "caller_prefill"


def test_a_user_message_that_is_to_be_continued_is_not_guided() -> None:
    assert plan({"messages": MESSAGES, "continue_final_message": True}).unguided == "caller_prefill"
    assert plan({"messages": MESSAGES, "add_generation_prompt": False}).unguided == "caller_prefill"


@pytest.mark.parametrize("placement", ["prefix", "context", "input"])
@pytest.mark.parametrize("request_", [{"messages": MESSAGES}, {"prompt": "Q:"}], ids=["chat", "completions"])
def test_an_answer_of_one_token_calls_no_teacher(request_: Any, placement: str) -> None:
    found = plan({**request_, "max_tokens": 1}, placement=placement)
    assert (found.unguided, found.guidance) == ("token_limit", None)


def test_the_routes_own_limit_counts_where_the_caller_sends_none() -> None:
    route = {"model": "m", "mode": "guided", "teacher": "big", "student": "small", "default_max_tokens": 1}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    chat = parse_chat(orjson.dumps({"model": "m", "messages": MESSAGES}))
    assert (
        resolve(policy, policy.routes[0], chat, lambda _: EngineSnapshot(Continuation("trailing"))).unguided
        == "token_limit"
    )


def test_a_hint_that_is_shown_leaves_the_student_a_token() -> None:
    """A hint is no answer; the teacher's own beginning may be the whole answer."""
    for projection, tokens in (("hint", 19), ("cutoff", 20)):
        found = plan({"messages": MESSAGES, "max_tokens": 20}, projection=projection, placement="prefix", tokens=40)
        assert found.guidance is not None
        assert found.guidance.tokens == tokens


SHARED = {
    "logit_bias": {"5": -100},
    "bad_words": ["sky"],
    "allowed_token_ids": [5, 6],
    "stop_token_ids": [7],
    "ignore_eos": True,
    "min_tokens": 50,
}
VLLM = EngineSnapshot(Continuation("vllm"), revision="Qwen", constraints=frozenset(SHARED))


@pytest.mark.parametrize("request_", [{"messages": MESSAGES, "stream": True}, {"prompt": "Q:"}], ids=str)
@pytest.mark.parametrize("fields", [*({name: value} for name, value in SHARED.items()), SHARED], ids=str)
def test_a_teacher_with_the_students_vocabulary_applies_the_constraint(fields: Any, request_: Any) -> None:
    """It may write the whole answer, which is not shown before it is complete."""
    found = plan({**request_, **fields, "n": 1}, VLLM, VLLM).guidance
    assert found is not None
    assert (found.placement, found.constraints, found.may_answer, found.stream) == ("prefix", fields, True, False)
    assert plan({**request_, "logit_bias": {}, "user": "me"}, VLLM, VLLM).guidance.constraints is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("teacher", "student", "is_shared"),
    [
        ({}, {}, True),
        ({"revision": "other"}, {}, False),
        ({"revision": None}, {"revision": None}, False),
        ({"revision": None, "tokenizer": "o200k_base"}, {"revision": "x", "tokenizer": "o200k_base"}, True),
        ({"tokenizer": "a.json"}, {"tokenizer": "b.json"}, False),  # the tokenizers contradict the models
        ({"tokenizer": "a.json"}, {}, True),
        ({"revision": "other", "tokenizer": "a.json"}, {}, False),
        ({"constraints": frozenset({"logit_bias"})}, {}, False),
        ({}, {"constraints": frozenset()}, False),
        ({}, {"continuation": None}, False),
    ],
)
def test_a_vocabulary_is_shared_by_one_model_or_one_configured_tokenizer(
    teacher: dict[str, Any], student: dict[str, Any], *, is_shared: bool
) -> None:
    engines = (structs.replace(VLLM, **teacher), structs.replace(VLLM, **student))
    found = plan({"messages": MESSAGES, "bad_words": ["sky"]}, *engines)
    assert (found.unguided, found.guidance is not None) == (None if is_shared else "token_constraint", is_shared)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"min_tokens": 5, "stop": "x"}, "stop_condition"),  # vLLM ignores stop strings before min_tokens
        ({"min_tokens": "5"}, "stop_condition"),
        ({"min_tokens": True}, "stop_condition"),
        ({"min_tokens": -1}, "stop_condition"),
        ({"bad_words": "sky"}, "token_constraint"),
        ({"bad_words": [5]}, "token_constraint"),
        ({"bad_words": ["x"] * 101}, "token_constraint"),
        ({"bad_words": ["x" * 101]}, "token_constraint"),
        ({"logit_bias": {"5": 1}, "n": 2}, "token_constraint"),
        ({"nvext": {"ignore_eos": True}}, "stop_condition"),
        ({"min_tokens": 5, "min_length": 5}, "stop_condition"),
        ({"truncate_prompt_tokens": 5}, "prompt_control"),
    ],
)
def test_other_constraints_exclude_a_prefix_of_the_same_model(fields: dict[str, Any], reason: str) -> None:
    found = plan({"messages": MESSAGES, **fields}, VLLM, VLLM)
    assert (found.unguided, found.guidance) == (reason, None)


def test_all_students_must_have_the_teachers_vocabulary() -> None:
    route = {"model": "m", "mode": "guided", "teacher": "big", "students": ["small", "other"]}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    chat = parse_chat(orjson.dumps({"model": "m", "messages": MESSAGES, "stop_token_ids": [7]}))
    other = structs.replace(VLLM, revision="other")
    found = resolve(policy, policy.routes[0], chat, lambda engine: other if engine == "other" else VLLM)
    assert found.unguided == "stop_condition"


@pytest.mark.parametrize("rule", [{"placement": "context"}, {"placement": "input"}])
def test_the_student_alone_applies_the_constraint_to_guidance_in_its_prompt(rule: dict[str, Any]) -> None:
    found = plan({"messages": MESSAGES, "min_tokens": 5}, VLLM, VLLM, **rule).guidance
    assert found is not None
    assert (found.constraints, found.may_answer) == (None, False)


def test_a_hint_is_not_constrained_like_the_answer() -> None:
    found = plan({"messages": MESSAGES, "min_tokens": 5}, VLLM, VLLM, projection="hint", placement="prefix")
    assert found.unguided == "stop_condition"


def test_kinds_apply_only_fields_of_the_rows_that_leave_a_prefix() -> None:
    shared = {field for rule in CONSTRAINTS if rule.placement == "prefix" for field in rule.fields}
    assert shared == SHARED.keys()
    by_name = {kind.name: kind.constraints for kind in KINDS if kind.constraints}
    assert by_name == {"vLLM": shared, "OpenAI": {"logit_bias"}}


def test_every_reason_of_the_table_is_the_callers_wish_and_no_failure() -> None:
    assert {rule.reason for rule in CONSTRAINTS} | {FIELD_NOT_KNOWN} <= EXPECTED_REASONS


def test_no_field_is_in_two_rows_of_one_api_that_contradict_each_other() -> None:
    for api in APIS:
        neutral = [field for row in NEUTRAL if api in row.apis for field in row.fields]
        constraining = {field for rule in CONSTRAINTS if api in rule.apis for field in rule.fields}
        assert len(neutral) == len(set(neutral))
        assert constraining & set(neutral) <= {"prompt"}


def rows(apis: tuple[str, ...], fields: tuple[str, ...], *cells: str) -> str:
    where = "" if set(apis) == set(APIS) else f" ({apis[0]})"
    return f"| {', '.join(f'`{field}`' for field in fields)}{where} | {' | '.join(cells)} |"


def test_the_page_shows_the_tables() -> None:
    """Compare row by row, in order, and name extra and missing fields."""
    constraints = [
        rows(rule.apis, rule.fields, f"`{rule.reason}`", rule.placement, rule.ignored, rule.why) for rule in CONSTRAINTS
    ]
    neutral = [rows(row.apis, row.fields, row.why) for row in NEUTRAL]
    shown = re.findall(r"^\| `.*\|$", PAGE, re.MULTILINE)
    assert shown == constraints + neutral
