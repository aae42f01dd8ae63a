"""A length model is numbers in a file, which are validated and evaluated by arithmetic."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from gateway.policy.book import PolicyFileCache, check_book
from gateway.policy.length_model import MAX_FILE_BYTES, FittedLengths, lengths_of
from gateway.policy.question_features import FEATURES

if TYPE_CHECKING:
    from pathlib import Path

ZEROS = [0.0] * len(FEATURES)
WHENCE = {
    "data": "made-up",
    "data_sha256": "0" * 64,
    "questions": 80,
    "teacher": "big",
    "student": "small",
    "setting": "chat",
    "created": 1,
    "version": "0.1.0",
}
FILE: dict[str, Any] = {
    "name": "chat.1",
    "features": list(FEATURES),
    "means": ZEROS,
    "scales": [1.0] * len(FEATURES),
    "lengths": [
        {"tokens": 0, "intercept": 0.0, "weights": ZEROS, "cost_usd": 0.001},
        {"tokens": 40, "intercept": 0.0, "weights": [1.0, *ZEROS[1:]], "cost_usd": 0.003},
    ],
    "usd_for_right": 0.01,
    "provenance": WHENCE,
}


def test_the_length_is_taken_that_is_worth_most_after_its_cost() -> None:
    """A correct answer is worth one cent: 40 tokens, 0.2 cents more, must raise its probability by a fifth."""
    model = FittedLengths.model_validate(FILE)
    assert model.predict([0.0, *ZEROS[1:]]).tokens == 0
    assert model.predict([0.8, *ZEROS[1:]]).tokens == 0  # 0.69, by 0.19
    likelier = model.predict([0.9, *ZEROS[1:]])  # 0.71
    assert likelier.tokens == 40
    assert likelier.score == pytest.approx(0.7109, abs=1e-4)


def test_numbers_far_from_those_of_its_training_break_nothing() -> None:
    model = FittedLengths.model_validate(FILE)
    assert model.predict([1e9, *ZEROS[1:]]).tokens == 40
    assert model.predict([-1e9, *ZEROS[1:]]).tokens == 0


def changed(**more: Any) -> dict[str, Any]:
    return FILE | more


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (changed(features=["log_bytes"]), "fit it again"),
        (changed(means=[0.0]), "14 means"),
        (changed(scales=[0.0] * len(FEATURES)), "scales.0"),
        (changed(lengths=[]), "lengths"),
        (changed(lengths=[FILE["lengths"][0]] * 2), "a length twice"),
        (changed(usd_for_right=0), "usd_for_right"),
        (changed(kind="pickle"), "kind"),
        (changed(format=2), "format"),
        (changed(code="import os"), "code"),
        (changed(name="../../x"), "name"),
    ],
)
def test_an_invalid_file_is_rejected_with_the_reason(file: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lengths_of(json.dumps(file).encode())


@pytest.mark.parametrize("raw", [b"", b"\x80\x04\x95", b'{"means": [NaN]}', b"[" * 50_000])
def test_a_file_of_another_kind_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="is no file of"):
        lengths_of(raw)


POLICY = """\
tenant: acme
routes:
  - model: chat
    mode: guided
    teacher: big
    student: small
    guidance:
      tokens: auto
      auto: {AUTO}
"""


MODEL = "9: routes[0].guidance.auto.model"


def issues_of(folder: Path, auto: str) -> list[str]:
    (folder / "acme.yaml").write_text(POLICY.replace("{AUTO}", auto))
    _, issues = check_book(folder, ["big", "small"])
    return [str(one).partition("acme.yaml:")[2] for one in issues]


def fitted(folder: Path, name: str = "lengths/chat.json", **more: Any) -> Path:
    file = folder / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(changed(**more)))
    return file


@pytest.mark.parametrize("name", ["lengths/chat.json", "chat.json"])
def test_a_policy_names_a_file_in_its_folder_or_below(tmp_path: Path, name: str) -> None:
    fitted(tmp_path, name)
    (tmp_path / "acme.yaml").write_text(POLICY.replace("{AUTO}", f"{{model: {name}}}"))
    policy_set, issues = check_book(tmp_path, ["big", "small"])
    assert not issues
    assert policy_set is not None
    learned = policy_set.policies[0].routes[0].guidance.auto.length_model
    assert learned is not None
    assert learned.name == "chat.1"


def test_a_projection_and_a_learned_length_go_together(tmp_path: Path) -> None:
    fitted(tmp_path)
    own = tmp_path / "projections" / "plan.yaml"
    own.parent.mkdir()
    own.write_text("instruction: Plan\n")
    routes = POLICY.replace("{AUTO}", "{model: lengths/chat.json}") + "      projection: plan\n"
    (tmp_path / "acme.yaml").write_text(routes)
    policy_set, _ = check_book(tmp_path, ["big", "small"])
    assert policy_set is not None
    rule = policy_set.policies[0].routes[0].guidance
    assert rule.auto.length_model is not None
    assert rule.resolved_projection.instruction == "Plan"


def test_an_invalid_file_of_many_policies_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the file's name and no content of it."""
    monkeypatch.chdir(tmp_path)
    fitted(tmp_path, means=[0.0])
    for tenant in ("acme", "globex"):
        policy = POLICY.replace("acme", tenant).replace("{AUTO}", "{model: lengths/chat.json}")
        (tmp_path / f"{tenant}.yaml").write_text(policy)
    policy_set, issues = check_book(tmp_path, ["big", "small"])
    assert policy_set is None
    (line,) = map(str, issues)
    assert line.startswith("lengths/chat.json: is no file of `eval fit`: the file: must hold 14 means, scales")


def test_an_unchanged_policy_keeps_its_identity(tmp_path: Path) -> None:
    file = fitted(tmp_path)
    (tmp_path / "acme.yaml").write_text(POLICY.replace("{AUTO}", "{model: lengths/chat.json}"))
    cache = PolicyFileCache()
    before, again = (check_book(tmp_path, None, cache=cache)[0] for _ in range(2))
    assert before is not None
    assert again is not None
    assert before.policies[0] is again.policies[0]
    version = cache.version
    file.write_text(json.dumps(changed(name="chat.2")))
    after, _ = check_book(tmp_path, None, cache=cache)
    assert after is not None
    assert cache.version != version
    names = [policy_set.policies[0].routes[0].guidance.auto.length_model for policy_set in (before, after)]
    assert [one and one.name for one in names] == ["chat.1", "chat.2"], "a request keeps the book it began with"


@pytest.mark.parametrize(
    ("auto", "line"),
    [
        ("{model: lengths/none.json}", f"{MODEL}: lengths/none.json cannot be read"),
        ("{model: ../other.json}", f"{MODEL}: must be a file within the policies folder"),
        ("{model: /etc/passwd}", f"{MODEL}: must be a file within the policies folder"),
        ("{model: ''}", f"{MODEL}: must be a file within the policies folder"),
        ("{model: lengths/link.json}", f"{MODEL}: leads out of the policies folder by a link"),
        ("{model: lengths/large.json}", f"{MODEL}: lengths/large.json has more than {MAX_FILE_BYTES} bytes"),
        ("{model: lengths/pipe.json}", f"{MODEL}: lengths/pipe.json is a pipe, not a file"),
        ("{model: lengths/chat.pkl}", f"{MODEL}: must end in .json"),
        ("{model: 7}", f"{MODEL}: must be text"),
        ("{min: 50, max: 40}", "9: routes[0].guidance.auto.max: must be at least min, 50"),
        ("{default: 90}", "9: routes[0].guidance.auto.default: must be at most max, 80"),
        ("{rules: [{name: a, tokens: 20}]}", "9: routes[0].guidance.auto.rules[0]: matches every request"),
        (
            "{rules: [{name: a, prompt: maths, tokens: 8}]}",
            "9: routes[0].guidance.auto.rules: the tokens of rule a must",
        ),
        ("{probe: {confident: 0}}", "9: routes[0].guidance.auto.probe.confident: must be more than 0"),
        ("{stop_at: word}", "9: routes[0].guidance.auto.stop_at: must be step, sentence or none"),
    ],
)
def test_an_impossible_setting_is_an_issue_with_its_line(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, auto: str, line: str
) -> None:
    lengths = tmp_path / "lengths"
    lengths.mkdir()
    (lengths / "link.json").symlink_to(fitted(tmp_path_factory.mktemp("elsewhere")))
    (lengths / "large.json").write_bytes(b" " * (MAX_FILE_BYTES + 1))
    os.mkfifo(lengths / "pipe.json")
    (found,) = issues_of(tmp_path, auto)
    assert found.startswith(line)


@pytest.mark.parametrize("value", ["automatic", "true", "1.5", "[40]"])
def test_tokens_are_a_number_or_auto(tmp_path: Path, value: str) -> None:
    (tmp_path / "acme.yaml").write_text(POLICY.replace("tokens: auto", f"tokens: {value}").replace("{AUTO}", "{}"))
    _, (found,) = check_book(tmp_path, ["big", "small"])
    assert str(found).endswith("routes[0].guidance.tokens: must be a whole number, or auto")
