"""The JSON schemas for editors: up to date, complete, and consistent with the validation of files."""

from __future__ import annotations

import functools
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from gateway.cli.json_schema import SCHEMAS, json_schema
from gateway.cli.schema import schema_json
from gateway.config.scalars import ValueOrigin
from gateway.config.settings import Settings, check_settings
from gateway.config.yaml_source import read
from gateway.policy.schema import TenantPolicy
from tests.settings_reference import reference

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.config.yaml_source import YamlSource

REPOSITORY = Path(__file__).parents[2]
FILES = {
    "config": REPOSITORY / "config.yaml",
    "policy": REPOSITORY / "policies" / "default.yaml",
    "projection": REPOSITORY / "policies" / "projections" / "direct.yaml",
    "curve": REPOSITORY / "deploy" / "curves" / "llama-3.3-70b-fp8-2xh100.json",
}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return float(value) if isinstance(value, Decimal) else value


def source_of(text: str, folder: Path) -> YamlSource:
    (folder / "it.yaml").write_text(text)
    source, issues = read(folder / "it.yaml")
    assert source is not None, issues
    return source


schema_of = functools.cache(json_schema)


def mistakes_of(which: str, data: Any) -> list[str]:
    found = jsonschema.Draft7Validator(schema_of(which)).iter_errors(plain(data))
    return [f"{error.json_path}: {error.message}" for error in found]


def parts(which: str) -> Iterator[tuple[str, dict[str, Any]]]:
    whole = schema_of(which)
    yield which, whole
    yield from whole["$defs"].items()


@pytest.mark.parametrize("which", SCHEMAS)
def test_the_committed_schema_is_current(which: str) -> None:
    """Update the file: gkt-gateway schema NAME > docs/schema/NAME.json"""
    assert (REPOSITORY / "docs" / "schema" / f"{which}.json").read_text() == schema_json(which)


@pytest.mark.parametrize(("which", "page"), [("config", "configuration.md"), ("policy", "policy.md")])
def test_the_committed_page_is_current(which: str, page: str) -> None:
    """Update the page: python -m tests.settings_reference NAME > docs/reference/PAGE"""
    assert (REPOSITORY / "docs" / "reference" / page).read_text("utf-8") == reference(which)


@pytest.mark.parametrize("which", ["config", "policy"])
def test_a_page_has_a_row_for_each_key_of_each_part_and_a_section_for_each_link(which: str) -> None:
    """Each pattern is described in words."""
    page = reference(which)
    tables = [dict(re.findall(r"^\| `([$\w]+)` \| (.*?) \|", part, re.MULTILINE)) for part in page.split("\n## ")]
    for name, part in parts(which):
        table = next((one for one in tables if list(one) == list(part["properties"])), None)
        assert table is not None, name
        spelt = {key: table[key] for key, about in part["properties"].items() if "pattern" in about}
        assert [key for key, words in spelt.items() if words.startswith("text")] == [], name
    anchors = {re.sub(r"[^a-z0-9_-]", "", head.lower()) for head in re.findall(r"^## (.+)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(.+?)\)", page)) <= anchors


@pytest.mark.parametrize("which", SCHEMAS)
def test_a_schema_is_valid_and_describes_each_key(which: str) -> None:
    jsonschema.Draft7Validator.check_schema(schema_of(which))
    for name, part in parts(which):
        assert part["description"], name
        assert part["additionalProperties"] is False, name
        undescribed = [key for key, about in part["properties"].items() if not about.get("description")]
        assert (name, undescribed) == (name, [])


@pytest.mark.parametrize("which", SCHEMAS)
def test_every_default_could_be_written(which: str) -> None:
    for name, part in parts(which):
        for key, about in part["properties"].items():
            if "default" in about:
                assert list(jsonschema.Draft7Validator(about).iter_errors(about["default"])) == [], (name, key)


@pytest.mark.parametrize("which", SCHEMAS)
def test_the_files_that_we_deliver_fit_and_name_their_schema(which: str) -> None:
    source, issues = read(FILES[which])
    assert source is not None
    assert issues == []
    assert mistakes_of(which, source.data) == []
    first = FILES[which].read_text().splitlines()[0]
    # JSON has no comments: there it is a key.
    named = source.data.get("$schema") or first.removeprefix("# yaml-language-server: $schema=")
    assert (FILES[which].parent / named).resolve() == REPOSITORY / "docs" / "schema" / f"{which}.json"


@pytest.mark.parametrize(
    ("which", "old", "new"),
    [
        ("config", "drain_timeout: 30s", "drain_timout: 30s"),
        ("config", "drain_timeout: 30s", "drain_timeout: 30"),
        ("config", "max_body: 8MB", "max_body: 8M"),
        ("config", "protocol: tgi ", "protocol: tgl "),
        ("config", "input_per_1m: 0.90", "input_per_1m: cheap"),
        ("config", "port: 8080", "port: 80800"),
        ("config", "prefix: gkt", "prefix:"),
        ("policy", "mode: guided ", "mode: guidde "),
        ("policy", "temperature: 0 ", "temperature: 3 "),
        ("policy", "tokens: 40 ", "tokens: '40' "),
        ("policy", "deadline: 2s", "deadline: 2sec"),
        ("policy", "teacher: big           #", "techer: big #"),
        ("policy", "f5e64146", "gk-dev"),
        ("projection", "skip_tokens: 24 ", "skip_tokens: 0 "),
        ("projection", "skip: english ", "skip: 5 "),
        ("projection", "keep: ", "kept: "),
        ("projection", "placement: prefix", "placement: prefx"),
        ("curve", '"tokens_per_s":', '"tokens_per_sec":'),
        ("curve", '"batch": 5,', '"batch": 0,'),
        ("curve", "0.01858", '"0.01858"'),
        ("curve", '"kind": "derived"', '"kind": "guessed"'),
    ],
)
def test_a_slip_is_one_for_the_schema_as_for_the_gateway(which: str, old: str, new: str, tmp_path: Path) -> None:
    """Only a key without a value is rejected by the schema alone."""
    text = FILES[which].read_text()
    assert old in text
    source = source_of(text.replace(old, new, 1), tmp_path)
    shape, context = SCHEMAS[which], ValueOrigin({}, tmp_path) if which == "config" else None
    assert mistakes_of(which, source.data)
    refused = shape is Settings and check_settings(tmp_path / "it.yaml", {})[0] is None
    assert refused or (shape is not Settings and source.check(shape, context)[0] is None) or new == "prefix:"


RIGHT = """\
tenant: acme
limits: {rpm_limit: 600}
budget: {max_budget: 100.50, soft_budget: 80, budget_duration: 1mo, on_soft: shorten}
overrides: {modes: [student], guidance_tokens: 80}
keys:
  - {id: prod, sha256: f5e64146b09361cfe08c3902031e0ff4fc8ef88e6809f466f15d84e3a5734786, expires: 2027-06-30}
  - {id: other, sha256: f5e64146b09361cfe08c3902031e0ff4fc8ef88e6809f466f15d84e3a5734787, expires: 2027-06-30T12:00:00Z}
routes:
  - model: chat
    mode: shadow
    shadow: {serves: student, sample: 0.1}
    teacher: big
    students: [small, {model: small-b}]
    when:
      max_tokens: 80
      prompt_bytes: {gte: 10, lt: 8000}
      tools: false
      header: {x-team: blue, x-tier: {matches: "^g"}, x-beta: {present: true}}
      contains: [refund, invoice]
      matches: "(?i)refund"
      any: [{stream: true}, {not: {contains: x}}]
    guidance: {temperature: 0.7, top_p: 0.9, deadline: 2.5s}
"""


def test_every_valid_policy_matches_the_schema(tmp_path: Path) -> None:
    source = source_of(RIGHT, tmp_path)
    assert source.check(TenantPolicy)[1] == []
    assert mistakes_of("policy", source.data) == []


@pytest.mark.parametrize(
    "new",
    ["max_tokens: {gteq: 1}", "max_tokens: many", "tools: 1", "header: {x-team: 1}", "contains: ''", "matches: 3",
     "any: []", "not: {tols: true}"],
)  # fmt: skip
def test_a_slip_in_a_condition_is_one_for_both(new: str, tmp_path: Path) -> None:
    when = re.sub(r"    when:\n(      .*\n)+", f"    when: {{{new}}}\n", RIGHT)
    source = source_of(when, tmp_path)
    assert source.check(TenantPolicy)[0] is None
    assert mistakes_of("policy", source.data)
