"""Every place that shows savings shows the same values of one month, to the last digit (tests/savings_month.py)."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from sqlalchemy import func, select

from gateway.accounting.receipt import Receipt
from gateway.admin.usage import as_csv
from gateway.api.usage import encoded
from gateway.cli.usage_files import write_receipts
from gateway.cli.usage_show import print_usage
from gateway.usage.database_reader import DatabaseReader
from gateway.usage.entries import OutboxEntry
from gateway.usage.reader import UsageReader
from gateway.usage.span import RequestedRange, span
from gateway.usage.store import UsageStore
from gateway.usage.sums import Retention
from gateway.usage.tables import RECEIPTS
from gateway.usage.threads import QueryThreads
from gateway.usage.usage import UsageQuery
from tests.accounting.test_ledger import Books
from tests.savings_month import CLASSES, MONTH, SINCE, TOTAL, UNTIL, ShownSavings, micro, receipts
from tests.system.test_prometheus import BOARDS, panels, promtool

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

_LONG_S = 10_000 * 86_400
PARTS = ("answers_usd", "disconnected_usd", "failed_usd", "measuring_usd")
"""Parts of the cost."""
RETENTION = Retention(minute=_LONG_S, hour=_LONG_S, day=_LONG_S)


async def test_all_places_show_the_savings_of_a_month_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    month = receipts()
    holds_receipts(month)
    store = UsageStore(f"sqlite:///{tmp_path}/usage.db", RETENTION)
    threads = QueryThreads(store.engine.reading)
    try:
        await store.write([OutboxEntry(one.tenant, f"{place}-1", one.to_json()) for place, one in enumerate(month, 1)])
        print_usage(await holds_usage(DatabaseReader(threads)))
        holds_table(capsys.readouterr().out)
        await holds_export(store, tmp_path / "month.csv")
    finally:
        threads.close()
        await store.close()
    holds_prometheus(month, tmp_path)


def holds_receipts(month: list[Receipt]) -> None:
    """Check receipts, headers and last chunks of replies."""
    assert {one.id: (one.savings_class, one.savings_usd) for one in month} == {
        receipt_id: (of_class, micro(usd)) for receipt_id, (of_class, usd) in CLASSES.items()
    }
    for one in month:
        of_class, usd = CLASSES[one.id]
        assert Receipt.from_json(one.to_json()) == one
        assert Decimal(one.as_dict()["savings_usd"]) == micro(usd)
        about = one.id == "haze-0"
        assert one.as_dict()["savings_about_zero"] is about
        facts = one.facts(show_cost=True)
        assert facts["savings_class"] == of_class
        assert facts["savings_usd"] == ("about 0" if about else f"{micro(usd).normalize():f}")


async def holds_usage(sums: DatabaseReader) -> dict[str, Any]:
    """Check the admin API's JSON and CSV, and GET /v1/usage."""
    reader = UsageReader(sums, RETENTION)
    when = span(RequestedRange(SINCE, UNTIL), None, RETENTION, time.time())
    usage = await reader.read(UsageQuery(when, None, ("tenant",), {}), lambda figures: figures)
    figures: dict[str, Any] = json.loads(encoded(usage))
    assert {row["tenant"] for row in figures["rows"]} == MONTH.keys()
    lines = {row["tenant"]: row for row in csv.DictReader(io.StringIO(as_csv(usage).decode()))}
    for row in figures["rows"]:
        expected = MONTH[row["tenant"]]
        holds_figures(row, expected)
        own = await reader.read(
            UsageQuery(when, None, (), {}).for_tenant(row["tenant"]), lambda figures: figures, tenant=row["tenant"]
        )
        holds_figures(json.loads(encoded(own))["total"], expected)
        line = lines[row["tenant"]]
        for name in ("requests", "cost_usd", *PARTS, "baseline_usd", "savings_usd", "savings_error_usd"):
            assert Decimal(line[name]) == Decimal(row[name])
        assert line["savings_about_zero"] == str(expected.shown == "about 0").lower()
        assert int(line["class_teacher_unavailable_requests"]) == expected.teacher_away
        assert int(line["class_unclassified_requests"]) == 0
    holds_figures(figures["total"], TOTAL)
    assert figures["total"]["savings_classes"] == {
        "guided": of_class(3, "2130", "4810", "2680"),  # 3 x 710; 2200 + 2200 + 1410 - 1000; 1490 + 1490 + 700 - 1000
        "student_by_policy": of_class(3, "150", "2400", "2250"),
        "teacher_unavailable": of_class(4, "775", "450", "-325"),  # 3 x 50 + 625; 3 x 50 + 300
        "not_guidable": of_class(1, "50", "50", "0"),
        "teacher": of_class(1, "800", "800", "0"),
        "disconnected": of_class(1, "710", "710", "0"),
        "failed": of_class(1, "50", "0", "-50"),
        "measuring": of_class(3, "1900", "0", "-1900"),  # 1140 + 50 + 710
    }
    return figures


def of_class(requests: int, cost: str, baseline: str, savings: str) -> dict[str, Any]:
    amounts = {"cost_usd": cost, "baseline_usd": baseline, "savings_usd": savings}
    return {"requests": requests} | {name: f"{micro(usd).normalize():f}" for name, usd in amounts.items()}


def holds_figures(row: dict[str, Any], expected: ShownSavings) -> None:
    assert row["requests"] == expected.requests
    for name, usd in (
        ("cost_usd", expected.cost),
        ("measuring_usd", expected.measuring),
        ("failed_usd", expected.failed),
        ("baseline_usd", expected.baseline),
        ("savings_usd", expected.savings),
        ("savings_error_usd", expected.error),
    ):
        assert Decimal(row[name]) == micro(usd), name
    assert row["savings_about_zero"] is (expected.shown == "about 0")
    assert sum(Decimal(row[name]) for name in PARTS) == Decimal(row["cost_usd"])
    assert Decimal(row["baseline_usd"]) - Decimal(row["cost_usd"]) == Decimal(row["savings_usd"])
    assert row["requests"] == row["answers"] + row["disconnected"] + sum(row["errors"].values())
    cost = Decimal(expected.cost)
    share = None if expected.shown == "about 0" else round(float(cost / Decimal(expected.baseline)), 6)
    assert row["cost_share"] == share
    assert row["savings_classes"].get("teacher_unavailable", {}).get("requests", 0) == expected.teacher_away


def holds_table(out: str) -> None:
    """Check the command's table: cost with its parts, baseline, saved, error, requests without teacher, in order."""
    lines = {words[0]: words for line in out.splitlines() if (words := line.split())}
    for name, expected in {**MONTH, "all": TOTAL}.items():
        money = expected.cost, expected.failed, expected.measuring, expected.baseline
        amounts = [f"{micro(one):.6f}" for one in money]
        # Amounts are shown to the millionth, with half of one rounded to the even digit.
        cells = [*amounts, *expected.shown.split(), f"{micro(expected.error):.6f}", str(expected.teacher_away)]
        assert " ".join(cells) in " ".join(lines[name]), name
    assert "Requests: 14 = 12 answered + 1 failed + 1 disconnected. Shadows apart: 3." in out
    assert (
        "USD: teacher alone 0.00922 - answers 0.003905 - disconnected 0.00071 - failed requests 0.00005 - measuring "
        "0.0019 = saved 0.002655" in out
    )
    assert (
        "Saved: guidance 0.00268, student by policy 0.00225, reported by devices and not verified 0, other unguided "
        "answers -0.000325, failed requests -0.00005, measuring -0.0019" in out
    )


async def holds_export(store: UsageStore, file: Path) -> None:
    """Check the column of savings, and exports as CSV and as JSON lines."""
    by_tenant = select(RECEIPTS.c.tenant, func.sum(RECEIPTS.c.savings_pico)).group_by(RECEIPTS.c.tenant)
    found = await store.read(lambda queries: queries.connection.execute(by_tenant).all())
    summed = {tenant: int(pico) for tenant, pico in found}
    assert summed == {tenant: int(micro(figures.savings).scaleb(12)) for tenant, figures in MONTH.items()}
    await write_receipts(store.receipts(), "csv", file, lambda _: None)
    with file.open(encoding="utf-8", newline="") as opened:
        lines = list(csv.DictReader(opened))
    assert {one["id"]: (one["savings_class"], Decimal(one["savings_usd"])) for one in lines} == {
        receipt_id: (of_class, micro(usd)) for receipt_id, (of_class, usd) in CLASSES.items()
    }
    for tenant, figures in MONTH.items():
        errors = (Decimal(one["savings_error_usd"]) for one in lines if one["tenant"] == tenant)
        assert sum(errors, Decimal(0)) == micro(figures.error)
    await write_receipts(store.receipts(), "jsonl", file, lambda _: None)
    plain = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert {one["id"]: (one["savings_class"], Decimal(one["savings_usd"])) for one in plain} == {
        receipt_id: (of_class, micro(usd)) for receipt_id, (of_class, usd) in CLASSES.items()
    }


def holds_prometheus(month: list[Receipt], folder: Path) -> None:
    """Check the metrics and the values of Grafana's panels, in picodollars."""
    books = Books()
    for one in month:
        books.ledger.record_edge_report(one)
    samples = [one for family in books.metrics.registry.collect() for one in family.samples]
    series = [
        {"series": f"{one.name}{{{labels(one.labels)}}}", "values": f"{one.value!r}"}
        for one in samples
        if one.name.startswith(("gkt_savings_", "gkt_losses_", "gkt_class_cost_", "gkt_cost_"))
        and one.name.endswith("_total")
    ]
    queries = {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in panels(BOARDS["cost"])}
    tests = []
    for tenant, figures in {**MONTH, ".*": TOTAL}.items():
        sure = "0" if figures.shown == "about 0" else figures.savings
        away = {"dusk": "150", "tardy": "625", ".*": "775"}.get(tenant)
        for title, usd in (
            ("Saved", sure),
            ("Error of the savings", figures.error),
            ("Baseline", figures.baseline),
            ("Cost", figures.cost),
            ("Cost of measuring", figures.measuring if Decimal(figures.measuring) else None),
            ("Cost of failed requests", figures.failed if Decimal(figures.failed) else None),
            ("Saved by guidance", {"acme": "1490", "lab": "490", ".*": "2680"}.get(tenant, "0")),
            ("Saved by student by policy", {"acme": "1500", "lab": "750", ".*": "2250"}.get(tenant)),
            ("Cost while the teacher was unavailable", away),
        ):
            # Counters began at 0, so the growth over the month is their value.
            expr = re.sub(r"increase\((gkt_\w+\{[^}]*\})\[\$__range\]\)", r"\1", queries[title][0])
            expr = expr.replace("$tenant", tenant).replace("$route", ".*")
            samples_ = [] if usd is None else [{"labels": "{}", "value": int(micro(usd).scaleb(12))}]
            tests.append({"expr": f"round(({expr}) * 1e12)", "eval_time": "0m", "exp_samples": samples_})
    by_route = (queries["Who spent what"][2], queries["Saved per hour, by route"][0] + " / 3600")
    for tenant, figures in MONTH.items():
        picodollars = 0 if figures.shown == "about 0" else int(micro(figures.savings).scaleb(12))
        for query in by_route:
            expr = re.sub(r"(?:increase|rate)\((gkt_\w+\{[^}]*\})\[\$__\w+\]\)", r"\1", query)
            expr = expr.replace("$tenant", tenant).replace("$route", ".*")
            samples_ = [{"labels": "{}", "value": picodollars}]
            tests.append({"expr": f"sum(round(({expr}) * 1e12))", "eval_time": "0m", "exp_samples": samples_})
    file = folder / "month.yml"
    with file.open("w", encoding="utf-8") as opened:
        YAML().dump({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}]}, opened)
    promtool("test", "rules", file)


def labels(of: dict[str, str]) -> str:
    return ", ".join(f'{name}="{value}"' for name, value in of.items())
