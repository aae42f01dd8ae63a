"""A real Prometheus scrapes a gateway under load: every rule, every panel and every sum is correct."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
import subprocess
import time
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from ruamel.yaml import YAML

from gateway.accounting.request_log import EXPECTED_REASONS
from gateway.telemetry.metrics import Metrics
from gateway.wiring import init_engine_series
from tests.installed import program
from tests.prometheus_world import (
    DEPLOY,
    Prometheus,
    faulty_gateway,
    kill_a_busy_worker,
    load,
    prometheus,
    samples_of,
    settled,
    total,
    until,
    usd,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gateway.accounting.receipt import Receipt
    from tests.gateway_process import GatewayProcess

RULES = DEPLOY / "prometheus"
CASES = sorted(RULES.glob("tests*.yml"))
DOCS = DEPLOY.parent / "docs"
BOARDS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((DEPLOY / "grafana").glob("*.json"))}
_NEED_THE_TEACHER = ("gkt_guidance_total", "gkt_quality_agreement_count")
SELECTOR = re.compile(r"\b((?:gkt_|gkt:|up\b)[\w:]*(?:\{[^}]*\})?)")


def alerts() -> list[dict[str, Any]]:
    groups = YAML(typ="safe").load(RULES / "alerts.yml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def promtool(*arguments: str | Path, given: str | None = None) -> None:
    done = subprocess.run(
        [program("promtool"), *arguments], input=given, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class World:
    gateway: GatewayProcess
    prometheus: Prometheus
    receipts: list[Receipt]
    metrics_text: str
    statuses: dict[int, int]
    loaded_at: float
    """When the load began: Unix time in seconds."""

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Return the gateway's metrics from before a worker was killed."""
        return samples_of(self.metrics_text, name)

    def sum(self, name: str) -> Decimal:
        return Decimal(sum(value for _, value in self.samples(name)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[World]:
    """Run the load and kill a worker; the sums are from before the kill."""
    folder = tmp_path_factory.mktemp("world")
    program("prometheus")
    with faulty_gateway(folder, redis_url) as gateway, prometheus(folder, gateway.admin_url) as server:
        statuses: dict[int, int] = {}
        loaded_at = time.time()
        parts = itertools.count()
        # Prometheus does not count the first value of a series as growth: the first load makes them, the second adds.
        _load_until_grown(gateway, parts, statuses)
        _wait_for_scrape(server, gateway)
        _load_until_grown(gateway, parts, statuses)
        receipts = settled(gateway, redis_url)
        metrics_text = httpx.get(f"{gateway.admin_url}/metrics").text
        kill_a_busy_worker(gateway)
        _wait_for_scrape(server, gateway)
        # What a scrape that comes too late leaves out is missed by every query until the next one.
        until(lambda: _value_of(server, "min_over_time(up[5s])") == 1, "no five seconds of scrapes in time")
        now = time.time()
        until(lambda: _value_of(server, "min(timestamp(gkt:requests:rate5m))") > now, "no rule is evaluated")
        yield World(gateway, server, receipts, metrics_text, statuses, loaded_at)


def _load_until_grown(gateway: GatewayProcess, parts: Iterator[int], statuses: dict[int, int]) -> None:
    """Send the load until the teacher has given guidance and an answer has been compared with its own.

    The teacher fails so often that its breaker may refuse all of one load.
    """
    before = {name: total(gateway, name) for name in _NEED_THE_TEACHER}

    def grown() -> bool:
        asyncio.run(load(gateway, next(parts), statuses))
        return all(total(gateway, name) > value for name, value in before.items())

    until(grown, "no answer of the teacher's is counted", limit_s=120)


def _wait_for_scrape(server: Prometheus, gateway: GatewayProcess) -> None:
    """Wait until Prometheus has the gateway's current counts."""
    seen = total(gateway, "gkt_requests_total")
    until(lambda: _value_of(server, "sum(gkt_requests_total)") >= seen, "the last count is not scraped")


def _value_of(server: Prometheus, expr: str) -> float:
    found = server.query(expr)
    return float(found[0]["value"][1]) if found else -math.inf


def _had_number(world: World, expr: str) -> bool:
    """Return whether the query had a number at any time since the load began: a rate over an idle minute is 0 / 0."""
    series = world.prometheus.query_range(expr, world.loaded_at)
    return any(math.isfinite(float(value)) for one in series for _, value in one["values"])


@pytest.mark.long
def test_the_load_met_all_that_should_make_series(world: World) -> None:
    """Without these faults the other tests would prove nothing."""
    ended = {receipt.status for receipt in world.receipts}
    assert {"ok", "client_gone"} < ended
    assert any(status.startswith("engine_") for status in ended)
    assert {receipt.mode for receipt in world.receipts} >= {"guided", "student", "teacher", "shadow"}
    assert {"teacher_late", "tools"} < {receipt.unguided for receipt in world.receipts}
    assert any(receipt.attempts for receipt in world.receipts)
    assert {0, 200, 401, 404, 429, 503} <= set(world.statuses)


def test_the_money_in_the_metrics_is_that_of_the_receipts(world: World) -> None:
    """The sums agree to a millionth of a dollar, over two workers, with shadows, failed calls, estimates and
    disconnects.
    """
    cost = usd(world.receipts, "cost_usd")
    assert cost > 0
    assert abs(world.sum("gkt_cost_usd_total") - cost) < Decimal("1e-6")
    assert abs(world.sum("gkt_engine_cost_usd_total") - cost) < Decimal("1e-6")
    saved = world.sum("gkt_savings_usd_total") - world.sum("gkt_losses_usd_total")
    assert abs(saved - usd(world.receipts, "savings_usd")) < Decimal("1e-6")
    for labels, value in world.samples("gkt_cost_usd_total"):
        of = [one for one in world.receipts if (one.tenant, one.route) == (labels["tenant"], labels["route"])]
        assert abs(Decimal(value) - usd(of, "cost_usd")) < Decimal("1e-6")


def test_requests_and_tokens_in_the_metrics_are_those_of_the_receipts(world: World) -> None:
    for labels, value in world.samples("gkt_requests_total"):
        facts = ("tenant", "route", "mode", "status")
        labels_expected = tuple(labels[fact] for fact in facts)
        assert value == sum(tuple(getattr(one, fact) for fact in facts) == labels_expected for one in world.receipts)
    assert world.sum("gkt_tokens_total") == sum(receipt.tokens for receipt in world.receipts)


def test_promtool_accepts_the_metrics(world: World) -> None:
    promtool("check", "metrics", given=httpx.get(f"{world.gateway.admin_url}/metrics").text)


def test_per_worker_metrics_have_a_worker_label(world: World) -> None:
    for name, least in (("resident_memory_bytes", 20_000_000), ("open_fds", 5), ("cpu_seconds_total", 0.1)):
        by_worker = {labels["worker"]: value for labels, value in world.samples(f"gkt_process_{name}")}
        assert set(by_worker) == {"1", "2"}
        assert min(by_worker.values()) > least


def test_a_budget_has_the_same_value_in_each_worker(world: World) -> None:
    """Each worker reports the same budget."""
    limits = world.prometheus.query("gkt_budget_limit_usd")
    assert [(one["metric"]["tenant"], float(one["value"][1])) for one in limits] == [("acme", 5.0)]
    spent = float(usd([one for one in world.receipts if one.tenant == "acme"], "cost_usd"))
    until(lambda: _value_of(world.prometheus, "gkt_budget_spent_usd") >= spent - 1e-9, "what is spent is not told")
    assert _value_of(world.prometheus, "gkt_budget_left_usd + gkt_budget_spent_usd") <= 5 + 1e-9


@pytest.mark.parametrize("board", BOARDS)
def test_every_query_of_every_panel_returns_a_series_with_a_number(world: World, board: str) -> None:
    queries = [(panel["title"], target["expr"]) for panel in panels(BOARDS[board]) for target in panel["targets"]]

    missing = []

    def whole() -> bool:
        missing[:] = [(title, expr) for title, expr in queries if not _had_number(world, _filled_in(expr))]
        return not missing

    # A scrape that a busy machine let time out leaves nothing until the next one.
    until(whole, missing)


def test_the_annotations_of_the_dashboards_mark_deployments_and_edits(world: World) -> None:
    """The load has processes that started; it edits nothing, so the other queries are only valid."""
    annotations = {one["name"]: one["expr"] for one in BOARDS["overview"]["annotations"]["list"]}
    assert set(annotations) == {"Deployments", "Policy changes", "Configuration changes"}
    assert _had_number(world, annotations["Deployments"])
    for name in ("Policy changes", "Configuration changes"):
        assert world.prometheus.query(annotations[name]) == []
        edits = annotations[name].replace("increase(", "(").replace("[90s]", "").replace("> 0", ">= 0")
        assert {one["metric"]["result"] for one in world.prometheus.query(edits)} == {"loaded", "refused"}


@pytest.mark.parametrize("board", BOARDS)
def test_every_choice_on_top_of_a_dashboard_has_values(world: World, board: str) -> None:
    for choice in BOARDS[board]["templating"]["list"]:
        if choice["type"] != "query":
            continue
        of, label = re.fullmatch(r"label_values\((.*), (\w+)\)", choice["definition"]).groups()  # type: ignore[union-attr]
        url = f"{world.prometheus.url}/api/v1/label/{label}/values"
        values = httpx.get(url, params={"match[]": _filled_in(of)}).json()["data"]
        assert values, choice["definition"]


def _filled_in(expr: str) -> str:
    """Fill in variables as Grafana does, with All chosen."""
    expr = expr.replace("$__rate_interval", "1m").replace("$__range", "2m")
    filled = re.sub(r"\$(tenant|route|engine|teacher|mode)\b", ".*", expr)
    assert "$" not in filled, filled
    return filled


def test_every_rule_is_evaluated_without_an_error(world: World) -> None:
    rules = world.prometheus.rules()
    assert {rule["name"] for rule in rules if rule["type"] == "alerting"} == {rule["alert"] for rule in alerts()}
    assert [(rule["name"], rule["health"], rule.get("lastError")) for rule in rules if rule["health"] != "ok"] == []


@pytest.mark.long
def test_every_series_of_a_rule_exists(world: World) -> None:
    """An alert on a metric that does not exist would never fire."""
    exprs = {rule["name"]: rule["query"] for rule in world.prometheus.rules()}
    selectors = {selector for expr in exprs.values() for selector in SELECTOR.findall(expr)}
    selectors -= {"gkt_issuer_up"}  # this gateway has no issuers of tokens
    assert len(selectors) > 25
    missing = []

    def whole() -> bool:
        missing[:] = [selector for selector in sorted(selectors) if not world.prometheus.query(selector)]
        return not missing

    until(whole, missing)
    recorded = [rule["name"] for rule in world.prometheus.rules() if rule["type"] == "recording"]
    assert [name for name in recorded if not world.prometheus.query(name)] == []


def test_counters_of_alerts_exist_from_the_start() -> None:
    """Prometheus sees no increase when a series appears. The rule itself handles new series of tenants."""
    metrics = Metrics()
    init_engine_series(metrics, ["big"])
    samples = {family.name: family.samples for family in metrics.registry.collect()}
    grows = {name for rule in alerts() for name in re.findall(r"increase\((gkt_\w+)_total", rule["expr"])}
    assert grows > {"gkt_receipts_lost", "gkt_spool_failures"}
    assert {name for name in grows if not samples[name]} == {"gkt_intents_abandoned"}
    assert [name for name in grows if any(sample.value for sample in samples[name])] == []


def test_metrics_report_the_usage_worker(world: World) -> None:
    """The worker is up and writes all receipts, and every gateway reports the fleet's counts."""
    assert world.sum("gkt_usage_up") == 1
    written = 'max(gkt_usage_receipts{result="inserted"})'
    until(lambda: _value_of(world.prometheus, written) >= len(world.receipts), written)
    until(lambda: _value_of(world.prometheus, "max(gkt_usage_waiting)") == 0, "receipts wait")


def test_only_the_expected_alerts_become_pending(world: World) -> None:
    """One engine is gone, another fails half of its calls, and a process was killed. Alerts are pending at first."""
    for rate in ("sum(gkt:failures:rate5m)", 'sum(gkt:guidance_failed:rate5m{route="chat"})'):
        until(lambda rate=rate: _value_of(world.prometheus, rate) > 0, rate)
    expected_alerts = {"GktEngineDown", "GktErrorRateHigh", "GktGuidanceFallingBack", "GktRequestsAbandoned"}
    unwanted = {
        "GktGatewayDown",
        "GktRedisDown",
        "GktReceiptsLost",
        "GktSpoolFailing",
        "GktUsageWorkerDown",
        "GktUsageLate",
        "GktUsageBacklog",
        "GktUsageReceiptsMissed",
        "GktReplicaLate",
        "GktBudgetNearlySpent",
        "GktPolicyStale",
    }
    alerting: list[str] = []

    def as_it_is() -> bool:
        alerting[:] = [one["metric"]["alertname"] for one in world.prometheus.query("ALERTS")]
        return expected_alerts <= set(alerting) and not unwanted & set(alerting)

    # A busy machine may look down for a second, which makes an alert pending.
    until(as_it_is, alerting)


def test_promtool_passes_configuration_and_rules() -> None:
    promtool("check", "config", RULES / "prometheus.yml")
    promtool("check", "rules", RULES / "recording.yml", RULES / "alerts.yml")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_each_alert_fires_when_it_should_and_not_otherwise() -> None:
    promtool("test", "rules", *CASES)


def test_each_alert_has_a_firing_and_a_silent_case() -> None:
    """An alert does not fire for other series of the same case, or at an earlier time."""
    cases = [case for file in CASES for case in YAML(typ="safe").load(file)["tests"]]
    fires = {one["alertname"] for case in cases for one in case["alert_rule_test"] if one["exp_alerts"]}
    assert fires == {rule["alert"] for rule in alerts()}
    for case in cases:
        for one in case["alert_rule_test"]:
            quiet = any(not other["exp_alerts"] for other in case["alert_rule_test"])
            assert quiet or len(case["input_series"]) > len(one["exp_alerts"]), one["alertname"]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: str(rule["alert"]))
def test_each_alert_has_a_severity_and_a_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert (page, anchor) == ("docs/operations.md", rule["alert"].lower())
    section = (
        (DOCS / "operations.md").read_text("utf-8").partition(f"\n### {rule['alert']}\n")[2].partition("\n### ")[0]
    )
    for part in ("**Meaning.**", "**Check.**", "**Fix.**"):
        assert part in section


def test_no_runbook_section_names_a_missing_alert() -> None:
    section = (DOCS / "operations.md").read_text("utf-8").partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == [rule["alert"] for rule in alerts()]


def test_the_rule_and_the_log_use_the_same_guidance_failures() -> None:
    """The rule repeats the list in the code."""
    text = (RULES / "recording.yml").read_text("utf-8")
    (reasons,) = re.findall(r'gkt_unguided_total\{reason!~"([^"]*)"', text)
    assert set(reasons.split("|")) == EXPECTED_REASONS


@pytest.mark.parametrize("board", BOARDS)
def test_a_dashboard_can_be_imported_and_read(board: str) -> None:
    """A dashboard has a data source variable. Each panel has a unit and a description, and none overlaps another."""
    page = BOARDS[board]
    assert page["uid"] == f"gkt-{board}"
    assert [one["name"] for one in page["templating"]["list"] if one["type"] == "datasource"] == ["datasource"]
    assert len({panel["id"] for panel in page["panels"]}) == len(page["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in page["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels(page):
        assert len(panel["description"]) > 5
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert [target["datasource"] for target in panel["targets"]] == [panel["datasource"]] * len(panel["targets"])
    assert sum("thresholds" in panel["fieldConfig"]["defaults"] for panel in panels(page)) == len(panels(page))


def test_dashboards_and_rules_name_only_metrics_that_there_are() -> None:
    known = {family.name for family in Metrics().registry.collect()}
    texts = [
        *(json.dumps(page) for page in BOARDS.values()),
        *(path.read_text("utf-8") for path in RULES.glob("*.yml")),
    ]
    named = {name for text in texts for name in re.findall(r"\bgkt_[a-z_]+", text)}
    assert len(named) > 40
    assert {name for name in named if re.sub(r"_(total|bucket|sum|count)$", "", name) not in known} == set()
