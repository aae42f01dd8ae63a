"""What answers cost, and what they would have."""

from __future__ import annotations

from typing import Any

from deploy.grafana.panels import Choice, Dashboard, Panel, Query

_WHO = '{tenant=~"$tenant", route=~"$route"}'
_TENANT = '{tenant=~"$tenant"}'
_COST = f"sum(increase(gkt_cost_usd_total{_WHO}[$__range]))"
_BASELINE = f"sum(increase(gkt_baseline_usd_total{_WHO}[$__range]))"
_AWAY = '{tenant=~"$tenant", route=~"$route", savings_class="teacher_unavailable"}'
_MEASURING = '{tenant=~"$tenant", route=~"$route", savings_class="measuring"}'


def _less(more: str, less: str, reach: str, by: str = "") -> str:
    """Return the growth of one counter less that of another."""
    return f"(sum{by} ({reach.replace('METRIC', more)}) - sum{by} ({reach.replace('METRIC', less)}))"


_RANGE = f"increase(METRIC{_WHO}[$__range])"
_RATE = f"rate(METRIC{_WHO}[$__rate_interval])"


def _error(reach: str, by: str = "") -> str:
    return _less("gkt_savings_error_usd_total", "gkt_savings_error_removed_usd_total", reach, by)


def _sure(reach: str, by: str = "") -> str:
    """Return the savings that count, or 0 where their error is as large."""
    saved = _less("gkt_savings_usd_total", "gkt_losses_usd_total", reach, by)
    return f"{saved} * (abs({saved}) > bool {_error(reach, by)})"


_ERROR = _error(_RANGE)
_SURE = _sure(_RANGE)
_BY_ROUTE = " by (tenant, route)"
_SMALL: dict[str, Any] = {"kind": "stat", "width": 4, "height": 4}


def _by(labels: str, metric: str) -> str:
    return f"sum by ({labels}) (increase({metric}{_WHO}[$__range]))"


COST = Dashboard(
    "gkt-cost",
    "GKT: cost and savings",
    "What answers cost, what the baseline model alone would have cost for them, and who spent it.",
    (Choice("tenant", "gkt_requests_total"), Choice("route", 'gkt_requests_total{tenant=~"$tenant"}')),
    (
        Panel("Cost", "What the answers of the chosen time cost.", "currencyUSD", (Query(_COST),), **_SMALL),
        Panel(
            "Baseline",
            "What the baseline model alone would have cost for them. Shadows are left out: they spare nothing.",
            "currencyUSD",
            (Query(_BASELINE),),
            **_SMALL,
        ),
        Panel(
            "Saved",
            "The savings that count: of guided answers, and of answers for which a policy chose the student. Below "
            "zero, guidance cost more than it spared. About 0: the error of the estimate is as large.",
            "currencyUSD",
            (Query(_SURE),),
            falling=True,
            bad=0,
            least=None,
            words={0: ("about 0", "text")},
            **_SMALL,
        ),
        Panel(
            "Saved, of the baseline",
            "The part of the baseline that the savings are.",
            "percentunit",
            (Query(f"{_SURE} / {_BASELINE}"),),
            falling=True,
            bad=0,
            least=None,
            words={0: ("about 0", "text")},
            **_SMALL,
        ),
        Panel(
            "Error of the savings",
            "How far the savings may be from the truth, either way.",
            "currencyUSD",
            (Query(_ERROR),),
            plain=True,
            **_SMALL,
        ),
        Panel(
            "Cost while the teacher was unavailable",
            "Cost of the answers that the student gave since the teacher failed, was late or had no room. They save "
            "nothing.",
            "currencyUSD",
            (Query(f"sum(increase(gkt_class_cost_usd_total{_AWAY}[$__range]))"),),
            plain=True,
            **_SMALL,
        ),
        Panel(
            "Cost of measuring",
            "Cost of shadows, quality samples and confidence probes. The savings do not contain it.",
            "currencyUSD",
            (Query(f"sum(increase(gkt_class_cost_usd_total{_MEASURING}[$__range]))"),),
            plain=True,
            **_SMALL,
        ),
        Panel(
            "Teacher's part of the tokens",
            "Of all tokens written for the chosen tenants, those of teachers. Calls that failed are left out.",
            "percentunit",
            (
                Query(
                    'sum(increase(gkt_tokens_total{tenant=~"$tenant", role="teacher", direction="output"}[$__range]))'
                    " / "
                    'sum(increase(gkt_tokens_total{tenant=~"$tenant", role!="failed", direction="output"}[$__range]))'
                ),
            ),
            **_SMALL,
        ),
        Panel(
            "Teacher's part of the cost",
            "Of all that was paid, by all tenants, what the teachers' calls cost. It is more than their part of the "
            "tokens: they are dearer, and read every prompt.",
            "percentunit",
            (
                Query(
                    'sum(increase(gkt_engine_cost_usd_total{role="teacher"}[$__range])) / '
                    "sum(increase(gkt_engine_cost_usd_total[$__range]))"
                ),
            ),
            **_SMALL,
        ),
        "Over time",
        Panel(
            "Cost against baseline, per hour",
            "The gap between the lines is not all saved: answers without the teacher and measuring are in it.",
            "currencyUSD",
            (
                Query(f"sum(rate(gkt_cost_usd_total{_WHO}[$__rate_interval])) * 3600", "cost"),
                Query(f"sum(rate(gkt_baseline_usd_total{_WHO}[$__rate_interval])) * 3600", "baseline"),
            ),
            width=12,
        ),
        Panel(
            "Saved per hour, by route",
            "The savings that count, and 0 where their error is as large. Below zero, a route costs more than its "
            "baseline: short answers read two prompts.",
            "currencyUSD",
            (Query(f"{_sure(_RATE, _BY_ROUTE)} * 3600", "{{tenant}} {{route}}"),),
            width=12,
            least=None,
            falling=True,
            bad=0,
        ),
        Panel(
            "Cost per hour, by engine",
            "Of all tenants. `failed` is what calls may have cost in whose place others were made.",
            "currencyUSD",
            (
                Query(
                    "sum by (engine, role) (rate(gkt_engine_cost_usd_total[$__rate_interval])) * 3600",
                    "{{engine}} as {{role}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Tokens per second",
            "By role, and by what was done with them: input is read afresh, cached is read from the engine's prefix "
            "cache, cache_write is read and written to that cache, output is written.",
            "short",
            (
                Query(
                    f"sum by (role, direction) (rate(gkt_tokens_total{_TENANT}[$__rate_interval]))",
                    "{{role}} {{direction}}",
                ),
            ),
            stacked=True,
        ),
        Panel(
            "Answers per second, by mode",
            "guided and teacher_complete are opened by the teacher; student and teacher are made by one model alone.",
            "reqps",
            (Query(f"sum by (mode) (rate(gkt_requests_total{_WHO}[$__rate_interval]))", "{{mode}}"),),
            stacked=True,
        ),
        "By tenant and route",
        Panel(
            "Who spent what",
            "Over the chosen time.",
            "short",
            (
                Query(_by("tenant, route", "gkt_cost_usd_total")),
                Query(_by("tenant, route", "gkt_baseline_usd_total")),
                Query(_sure(_RANGE, _BY_ROUTE)),
                Query(_error(_RANGE, _BY_ROUTE)),
                Query(_by("tenant, route", "gkt_requests_total")),
            ),
            kind="table",
            width=24,
            height=9,
            least=None,
            columns=("Cost, USD", "Baseline, USD", "Saved, USD", "Error, USD", "Requests"),
            column_words={"Saved, USD": {0: ("about 0", "text")}},
        ),
        "Quality of what guidance buys",
        Panel(
            "Agreement with the teacher's answer",
            "Of the guided answers that the quality guard compares, and of the student's alone to the same requests, "
            "from 0 to 1. The gap between the lines of a route is what guidance is worth there.",
            "percentunit",
            (
                Query(
                    f"sum by (tenant, route, pair) (increase(gkt_quality_agreement_sum{_WHO}[$__range])) / "
                    f"sum by (tenant, route, pair) (increase(gkt_quality_agreement_count{_WHO}[$__range]))",
                    "{{tenant}} {{route}}, {{pair}}",
                ),
            ),
            kind="bargauge",
            width=12,
            most=1,
        ),
        Panel(
            "Answers compared per hour, by result",
            "made; unscored (nothing to compare, or no grade); failed (an engine); refused (no place, a limit, or no "
            "Redis); over_budget; dropped (too many at a time, or too long).",
            "short",
            (Query("sum by (result) (rate(gkt_quality_samples_total[$__rate_interval])) * 3600", "{{result}}"),),
            width=12,
            stacked=True,
        ),
        "Budgets",
        Panel(
            "Left of each budget",
            "What is neither spent nor reserved, as a part of what may be spent; a raise counts. Tenants without a "
            "budget of their own are not here, and keys are not.",
            "percentunit",
            (Query(f"min by (tenant) (gkt_budget_left_usd{_TENANT} / gkt_budget_limit_usd{_TENANT})", "{{tenant}}"),),
            kind="bargauge",
            width=12,
            falling=True,
            bad=0.1,
            warn=0.3,
            most=1,
        ),
        Panel(
            "Spent of each budget",
            "In the present period: it falls to zero with the next one.",
            "currencyUSD",
            (
                Query(f"max by (tenant) (gkt_budget_spent_usd{_TENANT})", "{{tenant}}"),
                Query(f"max by (tenant) (gkt_budget_limit_usd{_TENANT})", "{{tenant}}, may be"),
            ),
            width=12,
        ),
    ),
)
