"""The rule of `tokens: auto` in a run, from a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
import pytest

from gateway.config.yaml_source import YamlSource
from gateway.errors import ConfigError
from gateway.evaluation.advice.fit import families, fit
from gateway.evaluation.folder import shown_hash
from gateway.evaluation.setting import Setting, read_auto
from gateway.policy.length import AutoRule
from tests.evaluation.families import examples, manifest, questions

if TYPE_CHECKING:
    from pathlib import Path

RULE = """\
max: 40
default: 24
stop_at: sentence
probe: {confident: 0.85, deadline: 2s}
rules:
  - {name: long, when: {prompt_bytes: {gte: 400}}, tokens: 32}
"""


def again(block: object) -> AutoRule:
    """Parse this block as a policy's rule."""
    rule, issues = YamlSource("policy", block).check(AutoRule)
    assert issues == []
    assert rule is not None
    return rule


def test_without_a_file_the_complete_built_in_rule_applies() -> None:
    """Later versions may have other defaults."""
    found = read_auto(None)
    assert found.rule == AutoRule()
    assert found.block["max"] == 80
    assert [(one["name"], one["tokens"]) for one in found.block["rules"]] == [
        ("trivial", 0),
        ("choice", 30),
        ("maths", 60),
    ]
    assert again(orjson.loads(orjson.dumps(found.block))).max == 80


def test_a_rule_of_a_file_can_be_written_in_a_policy(tmp_path: Path) -> None:
    file = tmp_path / "rule.yaml"
    file.write_text(RULE)
    found = read_auto(file)
    assert found.rule.probe is not None
    assert (found.rule.probe.confident, found.rule.min, found.rule.default) == (0.85, 16, 24)
    assert again(orjson.loads(orjson.dumps(found.block))) == found.rule


def test_built_in_rules_keep_within_the_bounds_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "rule.yaml"
    file.write_text("max: 40\n")
    block = read_auto(file).block
    assert [one["tokens"] for one in block["rules"]] == [0, 30, 40]
    assert again(block).rules


def test_an_issue_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "rule.yaml"
    file.write_text("min: 20\nmaxx: 40\n")
    with pytest.raises(ConfigError, match=r"rule\.yaml:2: maxx: unknown key\. Did you mean 'max'\?"):
        read_auto(file)
    with pytest.raises(ConfigError, match="cannot be read: no such file"):
        read_auto(tmp_path / "none.yaml")


def test_a_model_in_the_files_folder_is_part_of_the_rule(tmp_path: Path) -> None:
    sample = questions(60)
    run = manifest(60)
    (family,) = families(run, examples(sample, by_kind=True), sample)
    model = fit(family, run, "chat", 1)
    (tmp_path / "chat.json").write_text(model.model_dump_json())
    file = tmp_path / "rule.yaml"
    file.write_text("model: chat.json\n")
    found = read_auto(file)
    assert found.learned == found.rule.length_model == model
    assert (found.block["model"], found.file) == ("chat.json", str(file))
    assert "rules" not in found.block, "a model has none beside it, unless they are named"
    (tmp_path / "chat.json").write_text(fit(family, run, "chat", 2).model_dump_json())
    settings = (Setting(mode="guided", auto=auto) for auto in (found, read_auto(file)))
    assert len({shown_hash(setting, ()) for setting in settings}) == 2, "the hash includes the model"
    file.write_text("model: gone.json\n")
    with pytest.raises(ConfigError, match=r"model: gone\.json cannot be read"):
        read_auto(file)
