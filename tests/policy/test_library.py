"""Files of projections and exemplars: read, checked with file and line, bound to routes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from gateway.policy.book import PolicyFileCache, check_book
from gateway.policy.library import MAX_BYTES
from gateway.policy.projection_shapes import MAX_CHARS, MAX_EXEMPLARS
from gateway.policy.projections import HINT, PRIMED, PROJECTIONS, Exemplar
from gateway.policy.routing import RouteOverride, apply_headers
from gateway.policy.schema import OverridesRule
from tests.policy.test_book import book_of, folder, issues_of, tenant

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.policy.schema import GuidanceRule

__all__ = ["folder"]

TWO = "- {question: One?, answer: '1.'}\n- {question: Two?, answer: '2.'}\n"
SHOWN = (Exemplar("One?", "1."), Exemplar("Two?", "2."))


def put(folder: Path, name: str, text: str) -> Path:
    file = folder / "policies" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def guided(folder: Path, guidance: str, name: str = "acme") -> None:
    tenant(
        folder,
        name,
        routes=f"  - {{model: chat, mode: guided, teacher: big, student: small, guidance: {{{guidance}}}}}\n",
    )


def rule(folder: Path) -> GuidanceRule:
    (policy,) = book_of(folder).policies
    return policy.routes[0].guidance


def test_primed_alone_shows_the_shipped_primer(folder: Path) -> None:
    guided(folder, "projection: primed")
    assert rule(folder).resolved_projection is PRIMED


@pytest.mark.parametrize(
    ("name", "text"),
    [("exemplars/it.yaml", TWO), ("deep/er/it.yml", TWO),
     ("it.json", json.dumps([{"question": "One?", "answer": "1."}, {"question": "Two?", "answer": "2."}]))],
)  # fmt: skip
def test_a_route_names_its_exemplars(folder: Path, name: str, text: str) -> None:
    put(folder, name, text)
    guided(folder, f"projection: primed, exemplars: {name}")
    found = rule(folder)
    assert (found.resolved_projection.name, found.resolved_projection.exemplars, found.placement) == (
        "primed",
        SHOWN,
        "prefix",
    )


def test_json_writes_large_characters_in_halves(folder: Path) -> None:
    put(folder, "it.json", json.dumps([{"question": "Which?", "answer": "\U0001f600"}]))
    guided(folder, "projection: primed, exemplars: it.json")
    assert rule(folder).resolved_projection.exemplars == (Exemplar("Which?", "\U0001f600"),)


OWN = """\
instruction: "Plan:"
system: You plan.
exemplars: exemplars/it.yaml
keep: {skip: [english, 'Hm+,'], skip_tokens: 9}
teacher_may_finish: false
placement: context
introduction: "So: {guidance}"
"""


def test_a_custom_projection_has_the_name_of_its_file(folder: Path) -> None:
    put(folder, "exemplars/it.yaml", TWO)
    put(folder, "projections/plan.yaml", OWN)
    guided(folder, "projection: plan")
    found = rule(folder)
    plan = found.resolved_projection
    assert (plan.name, plan.instruction, plan.system, plan.exemplars) == ("plan", "Plan:", "You plan.", SHOWN)
    assert (plan.teacher_may_finish, plan.introduction, found.placement) == (False, "So: {guidance}", "context")
    assert plan.skip is not None
    assert (plan.skip.tokens, plan.skip.patterns[-1].text, len(plan.skip.patterns) > 5) == (9, "Hm+,", True)
    assert set(book_of(folder).projections) == {*PROJECTIONS, "plan"}


def test_overrides_of_a_caller_keep_the_projection(folder: Path) -> None:
    put(folder, "exemplars/it.yaml", TWO)
    put(folder, "projections/plan.yaml", OWN)
    guided(folder, "projection: plan")
    (policy,) = book_of(folder).policies
    longer = apply_headers(
        policy,
        policy.routes[0].model_copy(update={"overrides": OverridesRule(guidance_tokens=80)}),
        {"x-gkt-guidance-tokens": "70"},
    )
    assert (longer.guidance.tokens, longer.guidance.resolved_projection) == (
        70,
        policy.routes[0].guidance.resolved_projection,
    )


def test_an_operator_can_select_the_routes_projection_with_exemplars(folder: Path) -> None:
    put(folder, "exemplars/it.yaml", TWO)
    guided(folder, "projection: primed, exemplars: exemplars/it.yaml")
    (policy,) = book_of(folder).policies
    assert (
        RouteOverride("guided", projection=PRIMED).apply(policy.routes[0]).guidance.resolved_projection.exemplars
        == SHOWN
    )
    assert RouteOverride("guided", projection=HINT).apply(policy.routes[0]).guidance.resolved_projection is HINT


def test_the_policy_overrides_the_projection(folder: Path) -> None:
    put(folder, "exemplars/it.yaml", TWO)
    put(folder, "projections/plan.yaml", "exemplars: [{question: Three?, answer: '3.'}]\nplacement: context\n")
    guided(folder, "projection: plan, placement: prefix, exemplars: exemplars/it.yaml")
    assert (rule(folder).placement, rule(folder).resolved_projection.exemplars) == ("prefix", SHOWN)
    guided(folder, "projection: plan")
    assert (rule(folder).placement, rule(folder).resolved_projection.exemplars) == (
        "context",
        (Exemplar("Three?", "3."),),
    )


def test_no_file_below_the_folder_is_a_tenants(folder: Path) -> None:
    put(folder, "exemplars/it.yaml", TWO)
    put(folder, "notes/more.yaml", "tenant: [")
    put(folder, "projections/plan.yaml", OWN)
    guided(folder, "projection: plan")
    assert [policy.tenant for policy in book_of(folder).policies] == ["acme"]


HERE = "policies/acme.yaml:3: routes[0].guidance"
WITHIN = "must be a file within the policies folder: write its path from there, like exemplars/arithmetic.yaml"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../it.yaml", WITHIN),
        ("a/../../it.yaml", WITHIN),
        ("/etc/passwd", WITHIN),
        ("''", WITHIN),
        ("it.txt", "must end in .json, .yaml, .yml"),
        ("other.yaml", "is in the folder of tenants' policies: put it into a folder of its own, like exemplars/"),
        ("projections/it.yaml", "is in the folder of projections: put it into a folder of its own, like exemplars/"),
        ("exemplars/none.yaml", "exemplars/none.yaml cannot be read: no such file or directory"),
        ("exemplars/dir.yaml", "exemplars/dir.yaml cannot be read: is a directory"),
        ("exemplars/link.yaml", "leads out of the policies folder by a link: put the file itself there"),
    ],
)
def test_an_invalid_path_is_an_issue_of_the_naming_file(folder: Path, path: str, message: str) -> None:
    (folder / "policies" / "exemplars" / "dir.yaml").mkdir(parents=True)
    (folder / "secret.yaml").write_text(TWO)
    (folder / "policies" / "exemplars" / "link.yaml").symlink_to(folder / "secret.yaml")
    guided(folder, f"projection: primed, exemplars: {path}")
    assert issues_of(folder) == [f"{HERE}.exemplars: {message}"]


def test_a_link_within_the_folder_is_followed(folder: Path) -> None:
    """Links of a ConfigMap stay within the folder."""
    put(folder, "..data/it.yaml", TWO)
    (folder / "policies" / "exemplars").mkdir()
    (folder / "policies" / "exemplars" / "it.yaml").symlink_to("../..data/it.yaml")
    guided(folder, "projection: primed, exemplars: exemplars/it.yaml")
    assert rule(folder).resolved_projection.exemplars == SHOWN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: must have at least 1 entry"),
        ("question: One?\n", ":1: must be a list: one '- ...' per entry"),
        ("- {question: One?, answr: '1.'}\n", ":1: [0].answr: unknown key. Did you mean 'answer'?"),
        ("- {question: One?, answer: '1.'}\n- {question: Two?}\n", ":2: [1].answer: missing: add it"),
        ("- {question: One?, answer: 1}\n", ":1: [0].answer: must be text: put it in quotes"),
        ("- {question: One?, answer: ' '}\n", ":1: [0].answer: must not be blank: add text, or remove the key"),
        ("- just text\n", ":1: [0]: must hold keys, one per line, each as 'key: value'"),
        ("- [\n", ":2: not valid YAML: "),
        (
            '- {question: One?, answer: "\\ud83d"}\n',
            ":1: [0].answer: contains half of a surrogate pair: remove it",
        ),
        (TWO * MAX_EXEMPLARS, f":1: must have at most {MAX_EXEMPLARS} entries"),
        (f"- {{question: One?, answer: {'a' * (MAX_CHARS - 1)}}}\n", f":1: holds {MAX_CHARS + 3} characters"),
        ("#" * (MAX_BYTES + 1), f"exemplars/it.yaml has more than {MAX_BYTES} bytes"),
    ],
)
def test_an_issue_in_exemplars_has_its_line(folder: Path, text: str, message: str) -> None:
    put(folder, "exemplars/it.yaml", text)
    guided(folder, "projection: primed, exemplars: exemplars/it.yaml")
    (line,) = issues_of(folder)
    assert message in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- The canary sings: at dawn\n", ":1: [0]: unknown key; known here: question, answer"),
        ("- {question: One?, answer: *canary }\n", ":1: not valid YAML: found undefined alias '...'"),
        ("- {question: One?, answer: !canary '1.'}\n", ":1: [0].answer: YAML tags ('!...') are not supported"),
        ("- question: One?\n  answer: no\n  The canary: 1\n  The canary: 2\n", ":4: [0]: set twice"),
        ("- {question: One?, answer: [canary]}\n", ":1: [0].answer: must be text"),
    ],
)
@pytest.mark.parametrize("projection", [False, True])
def test_no_issue_quotes_the_teachers_prompt(folder: Path, text: str, message: str, *, projection: bool) -> None:
    if projection:
        put(folder, "projections/plan.yaml", "exemplars:\n" + text)
        guided(folder, "projection: plan")
    else:
        put(folder, "exemplars/it.yaml", text)
        guided(folder, "projection: primed, exemplars: exemplars/it.yaml")
    lines = issues_of(folder)
    assert "canary" not in str(lines)
    assert projection or any(message in line for line in lines)


def test_an_invalid_file_of_many_policies_is_reported_once(folder: Path) -> None:
    put(folder, "exemplars/it.yaml", "- {question: One?}\n")
    for name in ("acme", "globex"):
        guided(folder, "projection: primed, exemplars: exemplars/it.yaml", name)
    assert issues_of(folder) == ["policies/exemplars/it.yaml:1: [0].answer: missing: add it"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("plan.yaml", "instructon: Plan\n", ":1: instructon: unknown key. Did you mean 'instruction'?"),
        ("plan.yaml", "", ":1: is empty: add at least one field, like instruction"),
        ("plan.yaml", "instruction: ' '\n", ":1: instruction: must not be blank: add text, or remove the key"),
        ("plan.yaml", "\nintroduction: none\n", ":2: introduction: must contain {guidance} exactly once"),
        ("plan.yaml", "placement: behind\n", ":1: placement: must be prefix, context or input"),
        ("plan.yaml", "keep: {skip: '(?=a)'}\n", ":1: keep.skip[0]: has look-around at character 1"),
        ("plan.yaml", "keep: {skip: []}\n", ":1: keep.skip: must have at least 1 entry"),
        ("plan.yaml", "keep: {skip: english, skip_tokens: 0}\n", ":1: keep.skip_tokens: must be at least 1"),
        ("plan.yaml", "keep: {}\n", ":1: keep.skip: missing: add it"),
        ("plan.yaml", "exemplars: [{question: One?}]\n", ":1: exemplars[0].answer: missing: add it"),
        ("plan.yaml", "exemplars: ../it.yaml\n", f":1: exemplars: {WITHIN}"),
        ("plan.yaml", "teacher_may_finish: 1\n", ":1: teacher_may_finish: must be true or false"),
        ("hint.yaml", "instruction: Hint\n", ":1: hint is a built-in projection: rename the file"),
        ("my plan.yaml", "instruction: Plan\n", ":1: its name must be 1 to 64 letters, digits or any of . _ -"),
        ("plan.yml", "instruction: Plan\n", ": not read: rename it to end in .yaml"),
    ],
)
def test_an_issue_in_a_projection_has_its_line(folder: Path, name: str, text: str, message: str) -> None:
    put(folder, f"projections/{name}", text)
    guided(folder, "tokens: 5")
    (line,) = issues_of(folder)
    assert line.startswith(f"policies/projections/{name}{message}")


def test_all_that_a_projection_adds_is_bounded(folder: Path) -> None:
    put(folder, "projections/plan.yaml", f"system: {'a' * MAX_CHARS}\ninstruction: Plan\n")
    guided(folder, "projection: plan")
    (line,) = issues_of(folder)
    assert line.endswith(f"plan.yaml:1: adds {MAX_CHARS + 4} characters to what the teacher reads; at most {MAX_CHARS}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plam", "no projection is called 'plam'. Did you mean 'plan'?"),
        (
            "zzz",
            "no projection is called 'zzz'; known: cutoff, concise, hint, primed, plan; or add projections/NAME.yaml",
        ),
    ],
)
def test_an_unknown_name_is_an_issue_with_the_nearest_known_one(folder: Path, name: str, message: str) -> None:
    put(folder, "projections/plan.yaml", "instruction: Plan\n")
    guided(folder, f"projection: {name}")
    assert issues_of(folder) == [f"{HERE}.projection: {message}"]


def test_a_projection_with_an_issue_is_reported_once(folder: Path) -> None:
    """Only the first file that names it reports its issues."""
    put(folder, "projections/plan.yaml", "instruction: 5\n")
    guided(folder, "projection: plan")
    assert issues_of(folder) == ["policies/projections/plan.yaml:1: instruction: must be text: put it in quotes"]


def test_an_unchanged_policy_keeps_its_identity(folder: Path) -> None:
    """Unchanged policies keep their identity, so that thousands need no comparison."""
    put(folder, "exemplars/it.yaml", TWO)
    guided(folder, "projection: primed, exemplars: exemplars/it.yaml")
    guided(folder, "projection: cutoff", "globex")
    cache = PolicyFileCache()
    before, _ = check_book(folder / "policies", None, cache=cache)
    version = cache.version
    again, _ = check_book(folder / "policies", None, cache=cache)
    assert before is not None
    assert again is not None
    assert all(one is other for one, other in zip(before.policies, again.policies, strict=True))
    assert cache.version == version
    put(folder, "exemplars/it.yaml", TWO.replace("1.", "one."))
    after, _ = check_book(folder / "policies", None, cache=cache)
    assert after is not None
    assert cache.version != version
    assert [one == other for one, other in zip(before.policies, after.policies, strict=True)] == [False, True]
    assert before.policies[0].routes[0].guidance.resolved_projection.exemplars == SHOWN, (
        "a request keeps the book it began with"
    )
