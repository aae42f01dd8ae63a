"""Plans for tools: which requests get one, where a task begins, and which results are failures."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from gateway.policy.plan import EngineSnapshot, GuidancePlan, Plan
from gateway.policy.projections import TOOL_PLAN
from gateway.policy.resolve import resolve
from gateway.policy.schema import TenantPolicy
from gateway.policy.tool_plan import ToolPlanScope, is_failure, scope_of
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.chat import parse_chat

TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
TASK = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "Find it."}]


def turn(*results: str) -> list[dict[str, Any]]:
    """Return an assistant's turn with one call for each result, and the results."""
    calls = [{"id": f"c{n}", "type": "function", "function": {"name": "find", "arguments": "{}"}} for n in range(9)]
    return [
        {"role": "assistant", "content": None, "tool_calls": calls[: len(results)]},
        *({"role": "tool", "tool_call_id": f"c{n}", "content": one} for n, one in enumerate(results)),
    ]


def planned(body: dict[str, Any], *, default_max_tokens: int | None = None, **rule: Any) -> Plan:
    route: dict[str, Any] = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}
    route |= {"guidance": {"tools": "plan"} | rule}
    if default_max_tokens is not None:
        route["default_max_tokens"] = default_max_tokens
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    request = parse_chat(orjson.dumps({"model": "chat", "messages": TASK, **body}))
    return resolve(policy, policy.routes[0], request, lambda _: EngineSnapshot(Continuation("trailing")))


def guidance(body: dict[str, Any], **rule: Any) -> GuidancePlan:
    found = planned(body, **rule).guidance
    assert found is not None
    return found


@pytest.mark.parametrize("placement", ["prefix", "context", "input"])
@pytest.mark.parametrize("field", ["tools", "functions"])
def test_a_request_with_tools_gets_a_plan_as_context(placement: str, field: str) -> None:
    plan = guidance({field: TOOLS, "stream": True}, placement=placement, tool_plan_tokens=77)
    assert (plan.projection, plan.placement, plan.tokens) == (TOOL_PLAN, "context", 77)
    assert (plan.stream, plan.may_answer, plan.warm_student) == (False, False, False)
    assert plan.tool_plan == ToolPlanScope(2, 2)
    assert not plan.tool_plan.renewed


@pytest.mark.parametrize("body", [{}, {"tools": []}, {"tools": None}])
def test_other_requests_of_the_route_keep_its_guidance(body: dict[str, Any]) -> None:
    plan = guidance(body, tokens=30)
    assert (plan.projection.name, plan.placement, plan.tokens, plan.tool_plan) == ("cutoff", "prefix", 30, None)


def test_without_the_setting_a_request_with_tools_is_as_before() -> None:
    assert planned({"tools": TOOLS}, tools="none").unguided == "tools"
    plan = guidance({"tools": TOOLS}, tools="none", placement="context")
    assert (plan.projection.name, plan.tool_plan) == ("cutoff", None)


def test_a_field_that_excludes_guidance_in_the_prompt_excludes_a_plan() -> None:
    assert planned({"tools": TOOLS, "zebra": 1}).unguided == "field_not_known"
    assert planned({"tools": TOOLS, "max_tokens": 1}).unguided == "token_limit"
    assert planned({"tools": TOOLS, "n": 2, "logprobs": True}).unguided is None


def test_the_callers_limit_does_not_change_the_plan() -> None:
    """A later turn with another limit would not find the plan in the cache."""
    assert guidance({"tools": TOOLS, "max_tokens": 20}).tokens == 160


def test_a_sampled_plan_is_cached_since_later_turns_need_the_same_one() -> None:
    assert guidance({"tools": TOOLS}, temperature=0.7, cache_ttl="60s").cache_ttl_s == 60
    assert guidance({}, temperature=0.7, cache_ttl="60s").cache_ttl_s == 0


def test_a_plan_without_a_cache_is_a_mistake_of_the_policy() -> None:
    with pytest.raises(ValidationError, match="raise cache_ttl"):
        planned({}, cache_ttl="0s")


def test_the_longest_guidance_of_a_route_may_be_its_plan() -> None:
    route = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small", "guidance": {"tools": "plan"}}
    policy = TenantPolicy.model_validate({"tenant": "acme", "routes": [route]})
    assert policy.max_guidance_tokens(policy.routes[0]) == 160


@pytest.mark.parametrize(
    ("messages", "scope"),
    [
        (TASK, (2, 2)),
        ([*TASK, *turn("found")], (2, 2)),
        ([*TASK, *turn("found"), *turn("Error: no such row"), *turn("found")], (2, 6)),
        # Results of one turn belong together.
        ([*TASK, *turn("Error: no such row", "found"), *turn("found")], (2, 5)),
        ([*TASK, *turn("Error: one"), *turn("found", "Error: two")], (2, 7)),
        # A new task begins, and errors of the previous one do not matter.
        ([*TASK, *turn("Error: one"), {"role": "assistant", "content": "No."}, TASK[1]], (6, 6)),
        ([*TASK, TASK[1]], (3, 3)),
        # What a client adds to results begins no task.
        ([*TASK, *turn("found"), {"role": "system", "content": "Hurry."}, TASK[1], *turn("found")], (2, 2)),
        ([TASK[0], *turn("found")], (1, 1)),
        ([TASK[0]], (1, 1)),
        (turn("found"), (0, 0)),
    ],
)
def test_the_scope_is_the_task_and_its_last_failed_call(messages: Any, scope: tuple[int, int]) -> None:
    assert scope_of(messages) == ToolPlanScope(*scope)


@pytest.mark.parametrize(
    "text",
    [
        "Error: no such row",
        " \n error: x",
        "ERROR (404)",
        "Error",
        "Error\nno such row",
        "ValueError: x",
        "json.decoder.JSONDecodeError: x",
        "Error executing tool find: x",
        "Traceback (most recent call last):\n...",
        "The tool failed:\nno such row",
        '{"error": "no such row"}',
        '{"id": 1, "error": {"code": 404}}',
        '{"is_error": true, "content": "x"}',
        '{"isError": true}',
    ],
)
def test_a_failure_is_recognized(text: str) -> None:
    assert is_failure(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3 rows",
        "No errors",
        "Error rates of 2024: 3 %",
        "Errors: 0",
        "The word error: a mistake",
        '{"error": null, "rows": []}',
        '{"error": false}',
        '{"rows": [{"error": "x"}]}',
        '{"errors": 0}',
        '{"error": "x"',
        '[{"error": "x"}]',
        '"error"',
    ],
)
def test_a_result_that_mentions_errors_is_no_failure(text: str) -> None:
    assert not is_failure(text)


def test_long_results_take_no_time() -> None:
    """Results are read in one step of the event loop."""
    messages = [*TASK, *turn("a" * 500_000, " " * 500_000, '{"error": "' + "y" * 70_000 + '"}')]
    assert scope_of(messages) == ToolPlanScope(2, 2)


@pytest.mark.parametrize(
    ("later", "read"),
    [
        (["found"] * 999, True),
        (["found"] * 1_000, False),
        (['{"rows": "' + "y" * 60_000 + '"}'] * 8, True),
        (['{"rows": "' + "y" * 60_000 + '"}'] * 9, False),
    ],
)
def test_the_latest_results_of_a_long_task_are_read(later: list[str], *, read: bool) -> None:
    """Searching thousands of results would block the event loop. Earlier ones count as successful."""
    failed, after = turn('{"error": "no such row"}'), [message for one in later for message in turn(one)]
    assert scope_of([*TASK, *failed, *after]) == ToolPlanScope(2, 4 if read else 2)
