"""Splits: variants are complete routes, and each conversation or caller keeps its variant."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from multidict import CIMultiDict

from gateway.config.yaml_source import parse
from gateway.errors import InvalidRequest
from gateway.policy.book import check_book
from gateway.policy.plan import EngineSnapshot
from gateway.policy.resolve import resolve, resolve_guidance
from gateway.policy.routing import RouteOverride
from gateway.policy.schema import TenantPolicy
from gateway.policy.split import assign
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.policy.plan import Plan
    from gateway.protocol.chat import ChatRequest

POLICY = """tenant: acme
routes:
  - model: chat
    mode: guided
    teacher: big
    student: small
    guidance:
      tokens: 40
      placement: context
    split:
      by: conversation
      variants:
        control:
          share: 25%
        long:
          share: 50%
          guidance: {tokens: 80}
        alone:
          share: 25%
          mode: student
          student: other
"""
MODELS = ["big", "small", "other"]


def policy_of(text: str = POLICY) -> TenantPolicy:
    source, issues = parse(text.encode(), "acme.yaml")
    assert source is not None
    policy, more = source.check(TenantPolicy)
    assert [*issues, *more] == []
    assert policy is not None
    return policy


def issues_of(text: str) -> list[str]:
    source, issues = parse(text.encode(), "acme.yaml")
    assert source is not None
    return [str(issue) for issue in [*issues, *source.check(TenantPolicy)[1]]]


def chat(text: object = "Why?", **more: Any) -> ChatRequest:
    return parse_chat(orjson.dumps({"model": "chat", "messages": [{"role": "user", "content": str(text)}], **more}))


def planned(request: Any = None, policy: TenantPolicy | None = None, *, key: str | None = "k", **more: Any) -> Plan:
    policy, snapshot = policy or policy_of(), EngineSnapshot(Continuation("trailing"))
    return resolve(policy, policy.routes[0], request or chat(), lambda _: snapshot, key_id=key, **more)


def variant_of(plan: Plan) -> str | None:
    return None if plan.split is None else plan.split.variant


def test_a_variant_is_the_route_with_its_own_keys() -> None:
    control, long, alone = policy_of().routes[0].variants
    assert [(one.name, one.share) for one in (control, long, alone)] == [
        ("control", 0.25),
        ("long", 0.5),
        ("alone", 0.25),
    ]
    assert [one.route.mode for one in (control, long, alone)] == ["guided", "guided", "student"]
    assert [one.route.guidance.tokens for one in (control, long, alone)] == [40, 80, 40]
    assert {one.route.guidance.placement for one in (control, long, alone)} == {"context"}
    assert [one.route.student for one in (control, long, alone)] == ["small", "small", "other"]
    assert all(one.route.split is None and one.route.model == "chat" for one in (control, long, alone))


def test_a_variant_with_one_student_replaces_several() -> None:
    text = POLICY.replace("    student: small\n", "    students: [small, big]\n")
    control, _, alone = policy_of(text).routes[0].variants
    assert [one.model for one in control.route.all_students] == ["small", "big"]
    assert [one.model for one in alone.route.all_students] == ["other"]


@pytest.mark.parametrize(
    ("old", "new", "issue"),
    [
        (
            "tokens: 80",
            "tokns: 80",
            "17: routes[0].split.variants.long.guidance.tokns: unknown key. Did you mean 'tokens'?",
        ),
        (
            "tokens: 80",
            "deadline: 1ms",
            "17: routes[0].split.variants.long.guidance.deadline: must be longer than max_wait",
        ),
        (
            "tokens: 80",
            "exemplars: a.yaml",
            "17: routes[0].split.variants.long.guidance.exemplars: projection cutoff shows",
        ),
        ("{tokens: 80}", "7", "17: routes[0].split.variants.long.guidance: must hold keys"),
        (
            "mode: student",
            "mode: techer",
            "20: routes[0].split.variants.alone.mode: must be guided, student or teacher",
        ),
        (
            "mode: student",
            "shadow: 1%",
            "20: routes[0].split.variants.alone.shadow: unknown key; known here: share, mode",
        ),
        ("          share: 50%\n", "", "15: routes[0].split.variants.long.share: missing: add it"),
        ("share: 50%", "share: 40%", "12: routes[0].split.variants: the shares sum to 90 %: they must sum to 100 %"),
        ("mode: guided", "mode: shadow", "10: routes[0].split: does not apply to mode shadow: remove it"),
        ("        long:", "        a long one:", "15: routes[0].split.variants.a long one"),
    ],
)
def test_an_issue_names_the_line_of_the_variant(old: str, new: str, issue: str) -> None:
    found = issues_of(POLICY.replace(old, new, 1))
    assert len(found) == 1, found
    assert found[0].startswith(f"acme.yaml:{issue}"), found


def test_a_variant_needs_the_engines_of_its_mode() -> None:
    text = POLICY.replace("    student: small\n", "").replace("mode: guided", "mode: teacher")
    (issue,) = issues_of(text.replace("          student: other\n", ""))
    assert issue == "acme.yaml:17: routes[0].split.variants.alone.student: missing: mode student needs a student"


def test_engines_and_projections_of_variants_are_checked_and_bound(tmp_path: Path) -> None:
    (tmp_path / "acme.yaml").write_text(POLICY.replace("student: other", "student: othr"))
    assert [(one.line, one.suggestion) for one in check_book(tmp_path, MODELS)[1]] == [(21, "other")]
    (tmp_path / "acme.yaml").write_text(POLICY.replace("tokens: 80", "projection: mine"))
    (issue,) = check_book(tmp_path, MODELS)[1]
    assert (issue.line, issue.field) == (17, "routes[0].split.variants.long.guidance.projection")
    (tmp_path / "projections").mkdir()
    (tmp_path / "projections" / "mine.yaml").write_text("instruction: Begin.\nplacement: input\n")
    book, issues = check_book(tmp_path, MODELS)
    assert issues == []
    assert book is not None
    route = book.policies[0].routes[0]
    assert [one.route.guidance.resolved_projection.name for one in route.variants] == ["cutoff", "mine", "cutoff"]
    assert route.engines == {"big", "small", "other"}


def test_the_teacher_of_a_variant_is_a_teacher() -> None:
    text = POLICY.replace("mode: guided", "mode: student").replace(
        "          guidance: {", "          mode: guided\n          guidance: {"
    )
    policy = policy_of(text)
    assert policy.max_guidance_tokens(policy.routes[0]) == 0
    assert max(map(policy.max_guidance_tokens, policy.all_routes)) == 80


def test_shares_are_kept_and_a_conversation_keeps_its_variant() -> None:
    policy = policy_of()
    counts = Counter(variant_of(planned(chat(number), policy)) for number in range(4000))
    # Six standard deviations of 4,000 draws are less than 0.05 of them.
    assert counts.keys() == {"control", "long", "alone"}
    for name, share in (("control", 0.25), ("long", 0.5), ("alone", 0.25)):
        assert abs(counts[name] / 4000 - share) < 0.05
    turns = [{"role": "assistant", "content": "So."}, {"role": "user", "content": "And then?"}]
    for number in range(50):
        first = chat(number)
        later = parse_chat(orjson.dumps({"model": "chat", "messages": [*first.messages, *turns]}))
        assert planned(first, policy).split == planned(later, policy, key="another").split


def test_a_changed_share_moves_no_more_than_necessary() -> None:
    def variants(*shares: float) -> list[str]:
        named = list(zip(("a", "b", "c"), shares, strict=True))
        return [assign("caller", named, "acme", "chat", str(key), chat(), {}).variant for key in range(3000)]

    before, after = variants(0.4, 0.3, 0.3), variants(0.2, 0.4, 0.4)
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert {old for old, _ in moved} == {"a"}
    assert 0.15 < len(moved) / 3000 < 0.25
    assert "a" not in variants(0, 0.5, 0.5)
    before, after = variants(0.5, 0.4, 0.1), variants(0.4, 0.5, 0.1)
    assert {(old, new) for old, new in zip(before, after, strict=True) if old != new} <= {
        ("a", "b"), ("a", "c"), ("c", "b"),
    }  # fmt: skip


def test_a_long_name_of_a_caller_counts_by_both_ends() -> None:
    def unit(user: str) -> str:
        return assign("caller", [("a", 1.0)], "acme", "chat", "key", chat(user=user), {}).unit

    long = "x" * 5_000
    assert unit(long) == unit("x" * 6_000)
    assert len({unit(long), unit("y" + long), unit(long + "y"), unit("x" * 1_500), unit("x" * 1_000)}) == 5


@pytest.mark.parametrize("field", ["user", "safety_identifier"])
def test_a_caller_is_the_end_user_or_else_the_key(field: str) -> None:
    policy = policy_of(POLICY.replace("by: conversation", "by: caller"))
    users = [planned(chat(f"{one} asks", **{field: str(one)}), policy) for one in range(40)]
    assert {variant_of(one) for one in users} == {"control", "long", "alone"}
    again = [planned(chat("another question", **{field: str(one)}), policy, key="another") for one in range(40)]
    assert [one.split for one in users] == [one.split for one in again]
    keys = [planned(chat(), policy, key=str(one)) for one in range(40)]
    assert {variant_of(one) for one in keys} == {"control", "long", "alone"}
    assert [one.split for one in keys] == [planned(chat("else"), policy, key=str(one)).split for one in range(40)]


def test_a_raw_prompt_without_a_conversation_follows_its_caller() -> None:
    policy = policy_of()
    prompts = [parse_text_completion(orjson.dumps({"model": "chat", "prompt": f"Q: {one}"})) for one in range(30)]
    assert len({variant_of(planned(one, policy)) for one in prompts}) == 1
    assert len({variant_of(planned(prompts[0], policy, key=str(one))) for one in range(30)}) == 3


def test_tenants_and_routes_are_split_independently() -> None:
    shares = [("a", 0.5), ("b", 0.5)]
    other = parse_chat(orjson.dumps({"model": "other", "messages": [{"role": "user", "content": "Why?"}]}))

    def drawn(tenant: str, request: ChatRequest) -> list[str]:
        return [assign("caller", shares, tenant, request.model, str(key), request, {}).variant for key in range(400)]

    for one in (drawn("globex", chat()), drawn("acme", other)):
        same = sum(map(str.__eq__, drawn("acme", chat()), one))
        assert 120 < same < 280  # eight standard deviations around the half


def test_a_caller_cannot_choose_a_variant() -> None:
    text = POLICY.replace(
        "    guidance:\n", "    overrides: {modes: [student, teacher], guidance_tokens: 60}\n    guidance:\n", 1
    )
    policy = policy_of(text)
    plain = [planned(chat(one), policy) for one in range(30)]
    own_mode = [planned(chat(one), policy, headers=CIMultiDict({"x-gkt-mode": "guided"})) for one in range(30)]
    assert [one.split for one in plain] == [one.split for one in own_mode]
    assert [one.mode for one in plain] == [one.mode for one in own_mode]
    with pytest.raises(InvalidRequest):
        planned(chat(), policy_of(), headers=CIMultiDict({"x-gkt-mode": "student"}))
    # What the policy lets a caller override is answered by the route itself, and counts for no variant.
    for headers in ({"x-gkt-mode": "student"}, {"x-gkt-guidance-tokens": "50"}):
        overridden = [planned(chat(one), policy, headers=CIMultiDict(headers)) for one in range(30)]
        assert {variant_of(one) for one in overridden} == {None}
        assert {one.student for one in overridden} == {"small"}


def test_operators_and_devices_take_no_part() -> None:
    policy = policy_of()
    for number in range(20):
        assert variant_of(planned(chat(number), policy, override=RouteOverride("guided"))) is None
        assert resolve_guidance(policy, policy.routes[0], chat(number)).split is None
        assert planned(chat(number), policy, key=None).split is None


def test_a_quality_sample_belongs_to_no_variant_itself() -> None:
    policy = policy_of(POLICY.replace("    split:", "    quality: {sample: 100%}\n    split:"))
    plans = [plan for one in range(30) if (plan := planned(chat(one), policy)).mode == "guided"]
    assert plans
    for plan in plans:
        assert plan.quality is not None
        assert plan.split is not None
        assert plan.quality.teacher.split is None


def test_binding_keeps_the_projections_of_all_routes(tmp_path: Path) -> None:
    """The bound policy is a copy. Nothing in it may come from the policy before."""
    (tmp_path / "projections").mkdir()
    (tmp_path / "projections" / "mine.yaml").write_text("instruction: Begin.\n")
    (tmp_path / "acme.yaml").write_text(POLICY.replace("tokens: 40", "projection: mine"))
    book, issues = check_book(tmp_path, MODELS)
    assert issues == []
    assert book is not None
    (policy,) = book.policies
    assert [one.guidance.resolved_projection.name for one in policy.all_routes] == ["mine"] * 4
