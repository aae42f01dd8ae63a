"""The documentation against the code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import msgspec
import pytest
from ruamel.yaml import YAML

from gateway.accounting.receipt import Receipt
from gateway.cli.commands import COMMANDS
from gateway.errors import GatewayError, StartupError
from gateway.local.weights import CATALOGUE
from gateway.policy.book import check_all
from gateway.policy.conditions import RouteCondition
from gateway.telemetry.metrics import Metrics
from tests import metrics_reference
from tests.cli_reference import document

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def error_types(root: type[GatewayError] = GatewayError) -> Iterator[type[GatewayError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__.startswith("gateway."):
            yield from error_types(child)


def structs(root: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    """A struct, and those its fields hold."""
    yield root
    for field in msgspec.structs.fields(root):
        for part in (field.type, *get_args(field.type)):
            if isinstance(part, type) and issubclass(part, msgspec.Struct):
                yield from structs(part)


@pytest.mark.parametrize(
    "error", [error for error in error_types() if "label" in vars(error)], ids=lambda error: error.__name__
)
def test_every_error_label_has_its_row(error: type[GatewayError]) -> None:
    rows = [line for line in page("docs/clients.md").splitlines() if line.startswith(f"| `{error.label}` |")]
    assert len(rows) == 1
    status, kind, code = (cell.strip(" `") for cell in rows[0].split("|")[2:5])
    no_caller_sees_it = issubclass(error, StartupError)
    meant = ("", "", "") if no_caller_sees_it else (str(error.status), error.kind, error.code or "")
    assert (status, kind, code) == meant


@pytest.mark.parametrize("struct", list(structs(Receipt)), ids=lambda struct: struct.__name__)
def test_every_receipt_field_is_described(struct: type[msgspec.Struct]) -> None:
    text = page("docs/reference/receipts.md")
    assert [field.encode_name for field in msgspec.structs.fields(struct) if f"`{field.encode_name}`" not in text] == []


def test_every_fact_of_a_reply_has_its_header_described() -> None:
    source = page("gateway/accounting/receipt.py").partition("def facts")[2]
    names = {*re.findall(r'facts\["(\w+)"\]', source), *re.findall(r'"(\w+_ms)"', source), "mode", "teacher", "student"}
    names |= {"teacher_tokens", "student_tokens"}
    text = page("docs/reference/receipts.md")
    headers = {"x-gkt-" + name.replace("_", "-") for name in names}
    assert {header for header in headers if f"`{header}`" not in text} == set()


def metrics_as_they_are() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name -> kind and labels."""
    found = {}
    for collector in Metrics().registry._collector_to_names:
        for family in collector.collect():
            name = family.name + ("_total" if family.type == "counter" else "")
            # A family that is made for one look has its labels itself.
            labels = getattr(collector, "_labelnames", None) or getattr(family, "_labelnames", ())
            found[name] = (family.type, tuple(labels))
    return found


def test_every_metric_is_described_and_none_that_is_not_there() -> None:
    """With its kind and its labels."""
    rows = re.findall(r"^\| `(gkt_\w+)` \| (\w+) \|([^|]*)\|", page("docs/reference/metrics.md"), re.MULTILINE)
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert len(documented) == len(rows)
    assert documented == metrics_as_they_are()


def test_the_table_of_metrics_is_generated() -> None:
    """Update it with: python -m tests.metrics_reference"""
    assert page("docs/reference/metrics.md") == metrics_reference.document()


def test_every_command_is_in_the_readme() -> None:
    assert [name for name in COMMANDS if f"`gkt-gateway {name}`" not in page("README.md")] == []


def test_the_command_line_page_is_generated() -> None:
    """Update it with: python -m tests.cli_reference > docs/reference/cli.md"""
    assert page("docs/reference/cli.md") == document()


def test_the_quickstart_names_the_models_that_the_demo_can_take() -> None:
    assert [name for name in CATALOGUE if f"`{name}`" not in page("docs/quickstart.md")] == []


def test_the_readme_links_to_each_page_once() -> None:
    folder = ROOT / "docs"
    section = page("README.md").partition("## Documentation\n")[2]
    found = re.findall(r"\]\(docs/([\w/-]+\.md)\)", section)
    parts = ("*.md", "guides/*.md", "reference/*.md", "design/*.md")
    pages = [file for part in parts for file in folder.glob(part)]
    assert sorted(found) == sorted(str(file.relative_to(folder)) for file in pages)


def test_the_readme_is_short() -> None:
    assert len(page("README.md").split()) <= 700


def test_the_quickstarts_configuration_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("placeholder-of-the-test")
    blocks = re.findall(r"```yaml\n# (\S+)\n(.*?)```", page("docs/quickstart.md"), re.DOTALL)
    assert len(blocks) == 2
    for name, text in blocks:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    _, _, issues = check_all(tmp_path / "config.yaml")
    assert list(issues) == []


_MODELS = "models:\n" + "".join(
    f"  - {{name: {name}, protocol: openai, api_base: 'http://{name}', price: {{input_per_1m: 1, output_per_1m: 1}}}}\n"
    for name in ("big", "small", "small-b")
)


def test_the_policies_of_their_page_can_be_used(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", page("docs/policies.md"), re.DOTALL)
    assert len(examples) == 12
    (tmp_path / "config.yaml").write_text(_MODELS, "utf-8")
    (tmp_path / "policies").mkdir()
    for text in examples:
        (tmp_path / "policies" / "it.yaml").write_text(text, "utf-8")
        _, _, issues = check_all(tmp_path / "config.yaml")
        assert list(issues) == []


def test_every_condition_has_its_row() -> None:
    rows = [line for line in page("docs/policies.md").splitlines() if line.startswith("| `")]
    names = [info.alias or name for name, info in RouteCondition.model_fields.items()]
    assert [name for name in names if not any(row.startswith(f"| `{name}: ") for row in rows)] == []


def test_the_operations_page_has_a_section_for_each_alert() -> None:
    """In the order of the rules, with its severity and the section that its annotation names."""
    section = page("docs/operations.md").partition("\n## Alerts\n")[2].partition("\n## ")[0]
    documented = re.findall(r"^### (\w+)\n\n`(\w+)` ", section, re.MULTILINE)
    groups = YAML(typ="safe").load(ROOT / "deploy/prometheus/alerts.yml")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    runbooks = [f"docs/operations.md#{name.lower()}" for name, _ in documented]
    assert documented == [(rule["alert"], rule["labels"]["severity"]) for rule in rules]
    assert runbooks == [rule["annotations"]["runbook"] for rule in rules]


def test_the_readme_has_no_figure_of_its_own() -> None:
    """Each figure of its results is on a page that describes the measurement."""
    measured = page("docs/design/benchmarks.md") + page("docs/design/model-pairs.md")
    results = page("README.md").partition("## Results\n")[2].partition("\n## ")[0]
    models = r"Coder 1\.5B and 0\.5B|(Opus|Sonnet|GPT-) ?5\.5|Flash|Gemini 3\.8"
    figures = re.findall(r"\d+\.\d+", re.sub(models, "", results))
    assert len(figures) > 30
    assert [figure for figure in figures if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", measured)] == []


def test_the_import_order_is_the_one_that_is_held() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    held = project["tool"]["importlinter"]["contracts"][0]["layers"]
    block = page("CONTRIBUTING.md").partition("## Import contract")[2].split("```")[1]
    assert " ".join(block.split()).split(" > ") == held
