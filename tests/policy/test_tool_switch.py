"""The engine of each turn with tools: signals in the messages, the choice, and the plan of a route."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.policy.guidance_off import GuidanceOff
from gateway.policy.plan import EngineSnapshot, Plan, TurnPlan
from gateway.policy.plan_variants import AS_PLANNED, SHORTENED, STUDENT_ALONE, cheaper_plans, with_students
from gateway.policy.resolve import resolve, resolve_guidance
from gateway.policy.route_rules import SwitchRule
from gateway.policy.schema import TenantPolicy
from gateway.policy.tool_switch import TurnChoice, choose_at_once, choose_by_probability, read_signals
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion

TOOLS = [{"type": "function", "function": {"name": "find"}}]
RULE = SwitchRule(min_probability=0.8, margin=0.1)


def user(text: str = "Find it.") -> dict[str, Any]:
    return {"role": "user", "content": text}


def called(number: int, result: str = "3 rows") -> list[dict[str, Any]]:
    """Return a reply with a call, and its result."""
    name = f"call_{number}"
    call = {"id": name, "type": "function", "function": {"name": "find", "arguments": "{}"}}
    return [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": name, "content": result},
    ]


DONE = {"role": "assistant", "content": "Done."}
FAILED = "Error: no such table"


@pytest.mark.parametrize(
    "messages",
    [
        [user()],
        [{"role": "system", "content": "You are brief."}, user()],
        [user(), *called(0), DONE, user("And the other?")],
        [user(), *called(0, FAILED), DONE, user("And the other?")],
    ],
)
def test_a_message_of_the_user_begins_a_loop_and_the_teacher_writes_its_first_turn(messages: Any) -> None:
    signals = read_signals(messages)
    assert signals.first
    assert choose_at_once(signals) == TurnChoice("teacher", "switch_first_turn")


def test_a_reminder_behind_results_begins_no_loop() -> None:
    signals = read_signals([user(), *called(0), user("<system-reminder>Be brief.</system-reminder>")])
    assert (signals.first, signals.failed, choose_at_once(signals)) == (False, False, None)


def test_the_teacher_follows_a_failed_result_of_the_last_turn_alone() -> None:
    failed = read_signals([user(), *called(0), *called(1, FAILED)])
    assert choose_at_once(failed) == TurnChoice("teacher", "switch_tool_error")
    recovered = read_signals([user(), *called(0, FAILED), *called(1)])
    assert choose_at_once(recovered) is None


def test_one_failed_result_of_several_counts() -> None:
    second = {"role": "tool", "tool_call_id": "call_9", "content": "3 rows"}
    assert read_signals([user(), *called(0, FAILED), second]).failed


@pytest.mark.parametrize(
    ("messages", "follows_teacher"),
    [
        ([user(), *called(0)], True),  # the first turn was the teacher's
        ([user(), *called(0), *called(1)], False),
        ([user(), *called(0), *called(1, FAILED), *called(2)], True),  # after the error the teacher was called
        ([user(), *called(0), *called(1, FAILED), *called(2), *called(3)], False),
        ([*called(0), *called(1)], False),  # a client that cut the beginning of the chat
    ],
)
def test_the_messages_show_whose_turn_the_previous_one_was(messages: Any, *, follows_teacher: bool) -> None:
    assert read_signals(messages).follows_teacher == follows_teacher


def test_a_turn_is_recognized_as_the_previous_one_of_the_next() -> None:
    second = [user(), *called(0)]
    third = [*second, *called(1)]
    fourth = [*third, *called(2)]
    signals = [read_signals(messages) for messages in ([user()], second, third, fourth)]
    assert [one.previous for one in signals] == [None, None, signals[1].turn, signals[2].turn]
    assert len({one.turn for one in signals}) == 4
    other = read_signals([user(), *called(0, "4 rows")])
    assert other.turn != signals[1].turn


@pytest.mark.parametrize(
    ("previous", "probability", "engine"),
    [
        ("student", 0.71, "student"),
        ("student", 0.69, "teacher"),
        ("teacher", 0.89, "teacher"),
        ("teacher", 0.91, "student"),
    ],
)
def test_the_engine_changes_only_beyond_the_margin(previous: Any, probability: float, engine: str) -> None:
    reason = "switch_confident" if engine == "student" else "switch_unsure"
    assert choose_by_probability(RULE, previous, probability) == TurnChoice(engine, reason)


@pytest.mark.parametrize("previous", ["teacher", "student"])
def test_without_a_probability_the_student_writes_the_turn(previous: Any) -> None:
    assert choose_by_probability(RULE, previous, None) == TurnChoice("student", "switch_no_probability")


@pytest.mark.parametrize("rule", [{"min_probability": 0.9, "margin": 0.1}, {"min_probability": 0.1, "margin": 0.1}])
def test_a_margin_that_no_probability_can_cross_is_refused(rule: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be smaller than min_probability"):
        SwitchRule.model_validate(rule)


def chat(*messages: dict[str, Any], **more: Any) -> Any:
    return parse_chat(orjson.dumps({"model": "chat", "messages": messages, "tools": TOOLS} | more))


def policy_of(**guidance: Any) -> TenantPolicy:
    route = {"model": "chat", "mode": "guided", "teacher": "big", "student": "small"}
    return TenantPolicy.model_validate(
        {"tenant": "acme", "routes": [route | {"guidance": {"tools": "switch"} | guidance}]}
    )


def turn_of(plan: Plan) -> TurnPlan:
    assert plan.turn is not None
    return plan.turn


def planned(request: Any, *, down: str = "", off: GuidanceOff | None = None, **guidance: Any) -> Plan:
    policy = policy_of(**guidance)

    def snapshot(name: str) -> EngineSnapshot:
        return EngineSnapshot(Continuation("trailing"), cooldown=name == down)

    return resolve(policy, policy.routes[0], request, snapshot, lambda: 0.0, off=off)


@pytest.mark.parametrize("placement", ["prefix", "context"])
def test_a_turn_has_no_guidance(placement: str) -> None:
    plan = planned(chat(user()), placement=placement)
    turn = turn_of(plan)
    assert (plan.mode, plan.guidance, plan.student, plan.unguided) == ("guided", None, "small", "switch_first_turn")
    assert (turn.teacher.mode, turn.teacher.student, turn.required) == ("teacher", "big", False)
    assert turn_of(planned(chat(user()), on_failure="reject")).required


@pytest.mark.parametrize(
    "request_",
    [
        chat(user(), tools=[]),
        chat(user(), {"role": "assistant", "content": "It"}),
        parse_text_completion(orjson.dumps({"model": "chat", "prompt": "Why?"})),
    ],
)
def test_other_requests_are_guided_as_before(request_: Any) -> None:
    plain = planned(request_, tools="none")
    assert planned(request_) == plain
    assert plain.turn is None


def test_a_teacher_with_an_open_circuit_is_replaced_where_the_policy_allows_it() -> None:
    plan = planned(chat(user()), down="big")
    assert (plan.turn, plan.unguided, plan.student) == (None, "teacher_circuit_open", "small")
    assert planned(chat(user()), down="big", on_failure="reject").turn is not None


@pytest.mark.parametrize(
    ("answer_by", "on_failure", "student"),
    [("student", "student", "small"), ("teacher", "student", "big"), ("student", "reject", "big")],
)
def test_the_operators_switch_decides_instead(answer_by: Any, on_failure: str, student: str) -> None:
    off = GuidanceOff(1.0, answer_by=answer_by)
    plan = planned(chat(user()), off=off, on_failure=on_failure)
    assert (plan.turn, plan.unguided, plan.student) == (None, "switched_off", student)


def test_a_spent_budget_selects_the_student() -> None:
    plans = cheaper_plans(planned(chat(user())))
    assert list(plans) == [AS_PLANNED, SHORTENED, STUDENT_ALONE]
    alone = plans[STUDENT_ALONE]
    assert (alone.turn, alone.unguided, alone.student) == (None, "budget", "small")


def test_a_device_is_guided_as_without_the_setting() -> None:
    switch, none = policy_of(placement="context"), policy_of(placement="context", tools="none")
    plan = resolve_guidance(switch, switch.routes[0], chat(user()))
    assert plan == resolve_guidance(none, none.routes[0], chat(user()))
    assert plan.guidance is not None


def test_another_student_than_the_planned_one_is_not_asked() -> None:
    """Nothing is reserved for that call."""
    plan = planned(chat(user(), *called(0)))
    assert turn_of(plan).asks_student
    assert not turn_of(with_students(plan, turn_of(plan).teacher.students)).asks_student
