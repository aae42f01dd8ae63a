"""The policy file of a recommendation, read by the gateway's own code."""

from __future__ import annotations

import re
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from gateway.config.yaml_source import parse
from gateway.errors import StartupError
from gateway.evaluation.advice.evidence import evidence_of
from gateway.evaluation.advice.explanation import cautions
from gateway.evaluation.advice.policy_file import policy_text
from gateway.evaluation.advice.recommend import Recommendation, recommend
from gateway.evaluation.advice.target import RecommendationTarget
from gateway.evaluation.record import read_run
from gateway.policy.projections import HINT
from gateway.policy.schema import Route, TenantPolicy
from tests.evaluation.known_truth import ALONE, M40, Truth, folder_of

if TYPE_CHECKING:
    from pathlib import Path

KEEP = RecommendationTarget("keep", Decimal("0.9"))
HINTED = replace(M40, tokens=25, projection=HINT, placement="context", boundary="sentence", max_tokens=300)


def recommendation(
    path: Path, *guided: Truth, n: int = 400, target: RecommendationTarget = KEEP, **manifest: Any
) -> Recommendation:
    return recommend(
        evidence_of(read_run(folder_of(path, [*ALONE, *guided], n, exactly=True, **manifest))),
        target,
        confidence=0.8,
        folds=5,
        seed=0,
    )


def routes(text: str | None) -> tuple[Route, ...]:
    assert text is not None
    source, issues = parse(text.encode(), "x")
    assert source is not None
    policy, more = source.check(TenantPolicy)
    assert [*issues, *more] == []
    assert policy is not None
    return policy.routes


def with_field(found: Recommendation, **fields: Any) -> Recommendation:
    """Return the recommendation with more keys in its setting."""
    candidates = tuple(one._replace(setting={**one.setting, **fields}) for one in found.evidence.candidates)
    return found._replace(evidence=found.evidence._replace(candidates=candidates))


def test_a_guided_setting_is_written_whole(tmp_path: Path) -> None:
    (route,) = routes(policy_text([("maths", recommendation(tmp_path, Truth(HINTED, 0.8, 25, 100)))], tenant="acme"))
    assert (route.model, route.mode, route.teacher, route.student, route.baseline) == (
        "maths", "guided", "big", "small", "big",
    )  # fmt: skip
    assert route.default_max_tokens == 300
    rule = route.guidance
    assert (rule.tokens, rule.projection, rule.placement, rule.boundary) == (25, "hint", "context", "sentence")


def test_fields_that_settings_come_to_have_follow_by_themselves(tmp_path: Path) -> None:
    found = with_field(recommendation(tmp_path, Truth(M40, 0.8, 40, 100)), stream=False, deadline="3s", seed=7)
    (route,) = routes(policy_text([("chat", found)], tenant="acme"))
    assert route.guidance.stream is False
    assert route.guidance.max_deadline_s == 3
    assert route.guidance.seed is None, "a setting's is the caller's"


def test_a_field_that_no_policy_has_is_refused_by_its_name(tmp_path: Path) -> None:
    found = with_field(recommendation(tmp_path, Truth(M40, 0.8, 40, 100)), wibble=1)
    with pytest.raises(StartupError, match=r"a policy cannot contain this: routes\[0\]\.guidance\.wibble: unknown key"):
        policy_text([("chat", found)], tenant="acme")


def test_given_settings_override_measured_ones(tmp_path: Path) -> None:
    text = policy_text(
        [("chat", recommendation(tmp_path, Truth(M40, 0.8, 40, 100)))],
        tenant="acme", teacher="large", student="tiny", guidance={"deadline": "5s", "tokens": 41},
    )  # fmt: skip
    (route,) = routes(text)
    assert (route.teacher, route.student, route.baseline) == ("large", "tiny", "large")
    assert (route.guidance.max_deadline_s, route.guidance.tokens) == (5, 41)


@pytest.mark.parametrize(
    ("target", "mode", "engines"),
    [(KEEP, "teacher", {"big"}), (RecommendationTarget("share", Decimal("0.3")), "student", {"small", "big"})],
)
def test_one_of_the_two_alone_is_written_with_the_reason(
    tmp_path: Path, target: RecommendationTarget, mode: str, engines: set[str]
) -> None:
    text = policy_text([("chat", recommendation(tmp_path, Truth(M40, 0.3, 40, 100), target=target))], tenant="acme")
    (route,) = routes(text)
    assert route.mode == mode
    assert route.engines == engines
    assert "none pays: " in str(text)


def test_where_nothing_reaches_the_target_nothing_is_written(tmp_path: Path) -> None:
    nothing = recommendation(
        tmp_path / "a", Truth(M40, 0.8, 40, 100), target=RecommendationTarget("budget", Decimal("0.000001"))
    )
    assert policy_text([("chat", nothing)], tenant="acme") is None
    other = recommendation(tmp_path / "b", Truth(M40, 0.8, 40, 100))
    text = policy_text([("chat", nothing), ("maths", other)], tenant="acme")
    assert [route.model for route in routes(text)] == ["maths"]
    assert "# No route chat:\n# Target: the best for 0.001 USD per 1000 answers." in str(text)


def test_comments_of_the_file_state_expected_results_and_source(tmp_path: Path) -> None:
    found = recommendation(tmp_path, Truth(M40, 0.8, 60, 100))
    words = re.sub(r"\s+#\s+", " ", str(policy_text([("chat", found)], tenant="acme")))
    for part in (
        "Target: the cheapest that keeps 90 % of the teacher's accuracy.",
        "of 2026-09-21: sums, big and small, requests as chat.",
        "Costs are the tokens of these models at assigned prices, not bills.",
        "Expected from 400 questions: 80.0 % right (95 %: 75.8 % to 83.6 %); 0.07000 USD per 1000 answers;",
        "each answer has 60 teacher tokens and 100 student tokens.",
        "Advantage of this setting over a student-teacher mixture at its cost: shown with 80 % confidence, ",
        "+28.9 points (at least",
        "The teacher of the mixture is teacher, chat, 300 tokens.",
        "Loss of accuracy with this setting: 0.0 points (95 %: -0.5 to 0.5) compared with teacher, chat, 300 tokens,",
        "which has 80.0 % right. The loss may be up to 0.5 points, and the target allows 8.0.",
        "Savings with this setting: 65 %, 0.1300 USD per 1000 answers, compared with teacher, chat, 300 tokens.",
        "Selected and measured on different questions (5 folds): 80.0 % right",
        "the teacher took up to 3.0 s for guidance, with concurrent requests; a gateway waits 2 s",
        "Measured in two stages, not through a gateway",
    ):
        assert part in words


def test_a_name_out_of_a_run_cannot_leave_its_comment(tmp_path: Path) -> None:
    found = recommendation(tmp_path, Truth(M40, 0.8, 40, 100), data="sums\nkeys: [x]\u2028y\x85z")
    text = policy_text([("chat", found)], tenant="acme")
    assert [route.model for route in routes(text)] == ["chat"]
    assert all(line.lstrip().startswith("#") for line in str(text).splitlines() if "[x]" in line)


def test_a_projection_of_a_called_gateway_requires_its_files(tmp_path: Path) -> None:
    found = recommendation(tmp_path, Truth(M40, 0.8, 40, 100))
    assert [line for line in cautions(with_field(found, route="r")) if "own files" in line] == []
    ours = with_field(found, route="r", projection="ours")
    assert [line for line in cautions(ours) if "used its own files for projection ours" in line]


def test_other_facts_of_a_run_are_not_written(tmp_path: Path) -> None:
    found = with_field(recommendation(tmp_path, Truth(M40, 0.8, 40, 100)), shown="5f", route="r", policies="/theirs")
    (route,) = routes(policy_text([("chat", found)], tenant="acme"))
    assert route.guidance.tokens == 40


def test_exemplars_are_named_relative_to_the_policy(tmp_path: Path) -> None:
    found = with_field(
        recommendation(tmp_path, Truth(M40, 0.8, 40, 100)), projection="primed", exemplars="/home/me/mine.yaml"
    )
    (route,) = routes(policy_text([("chat", found)], tenant="acme"))
    assert route.guidance.exemplars == "exemplars/mine.yaml"
