"""The dashboard of costs and savings."""

from __future__ import annotations

from deploy.grafana.money import BY_ROUTE, WHO, error, over_range, per_second, sure, teacher_alone
from deploy.grafana.panels import Choice, Dashboard, Panel, Query
from deploy.grafana.shared import COST_AGAINST_BASELINE, SAVED_BY_GUIDANCE, SAVED_BY_POLICY, SMALL

_WHO = f"{{{WHO}}}"
_TENANT = '{tenant=~"$tenant"}'
_COST = f"sum(increase(gkt_cost_usd_total{_WHO}[$__range]))"
_AWAY = '{tenant=~"$tenant", route=~"$route", savings_class="teacher_unavailable"}'
_FAILED = '{tenant=~"$tenant", route=~"$route", savings_class="failed"}'
_MEASURING = '{tenant=~"$tenant", route=~"$route", savings_class="measuring"}'


_RANGE = over_range()
_BASELINE = teacher_alone(_RANGE)
_ERROR = error(_RANGE)
_SURE = sure(_RANGE)


def _by(labels: str, metric: str) -> str:
    return f"sum by ({labels}) (increase({metric}{_WHO}[$__range]))"


COST = Dashboard(
    "gkt-cost",
    "GKT: cost and savings",
    "Costs of answers, of the baseline model alone for the same answers, and of each tenant.",
    (Choice("tenant", "gkt_requests_total"), Choice("route", 'gkt_requests_total{tenant=~"$tenant"}')),
    (
        Panel("Cost", "Cost of all engine calls in the selected time.", "currencyUSD", (Query(_COST),), **SMALL),
        Panel(
            "Baseline",
            "Cost of the baseline model alone for the same answers. Cost and savings together are the baseline.",
            "currencyUSD",
            (Query(_BASELINE),),
            **SMALL,
        ),
        Panel(
            "Saved",
            "Baseline less cost. Parts: guidance, student by policy, reports of devices, other unguided answers, "
            "failed requests and measuring. About 0: the error of the estimate is at least as large.",
            "currencyUSD",
            (Query(_SURE),),
            falling=True,
            bad=0,
            least=None,
            words={0: ("about 0", "text")},
            **SMALL,
        ),
        SAVED_BY_GUIDANCE,
        SAVED_BY_POLICY,
        Panel(
            "Saved, of the baseline",
            "Savings divided by the baseline.",
            "percentunit",
            (Query(f"{_SURE} / {_BASELINE}"),),
            falling=True,
            bad=0,
            least=None,
            words={0: ("about 0", "text")},
            **SMALL,
        ),
        Panel(
            "Error of the savings",
            "Maximum error of the savings, in both directions.",
            "currencyUSD",
            (Query(_ERROR),),
            plain=True,
            **SMALL,
        ),
        Panel(
            "Cost while the teacher was unavailable",
            "Cost of student answers after the teacher failed, was late or had a full queue. They save nothing.",
            "currencyUSD",
            (Query(f"sum(increase(gkt_class_cost_usd_total{_AWAY}[$__range]))"),),
            plain=True,
            **SMALL,
        ),
        Panel(
            "Cost of failed requests",
            "Cost of requests without an answer. It reduces the savings. Client disconnects are no failure.",
            "currencyUSD",
            (Query(f"sum(increase(gkt_class_cost_usd_total{_FAILED}[$__range]))"),),
            plain=True,
            **SMALL,
        ),
        Panel(
            "Cost of measuring",
            "Cost of shadows and quality samples. It reduces the savings.",
            "currencyUSD",
            (Query(f"sum(increase(gkt_class_cost_usd_total{_MEASURING}[$__range]))"),),
            plain=True,
            **SMALL,
        ),
        Panel(
            "Teacher's share of the tokens",
            "Output tokens of teachers divided by all output tokens of the selected tenants, without failed calls.",
            "percentunit",
            (
                Query(
                    'sum(increase(gkt_tokens_total{tenant=~"$tenant", role="teacher", direction="output"}[$__range]))'
                    " / "
                    'sum(increase(gkt_tokens_total{tenant=~"$tenant", role!="failed", direction="output"}[$__range]))'
                ),
            ),
            **SMALL,
        ),
        Panel(
            "Teacher's share of the cost",
            "Cost of teacher calls divided by the total cost of all tenants. It exceeds their share of the "
            "tokens, since teachers are more expensive and process every prompt.",
            "percentunit",
            (
                Query(
                    'sum(increase(gkt_engine_cost_usd_total{role="teacher"}[$__range])) / '
                    "sum(increase(gkt_engine_cost_usd_total[$__range]))"
                ),
            ),
            **SMALL,
        ),
        "Over time",
        COST_AGAINST_BASELINE,
        Panel(
            "Saved per hour, by route",
            "Savings, and 0 if their error is at least as large. Below zero, a route costs more than its "
            "baseline, since short answers process two prompts.",
            "currencyUSD",
            (Query(f"{sure(per_second(), BY_ROUTE)} * 3600", "{{tenant}} {{route}}"),),
            width=12,
            least=None,
            falling=True,
            bad=0,
        ),
        Panel(
            "Cost per hour, by engine",
            "All tenants. `failed`: possible cost of failed calls that were retried.",
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
            "By role and kind: input, cached (from the engine's prefix cache), cache_write (input written to that"
            " cache), and output.",
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
            "guided and teacher_complete have guidance; student and teacher come from a single model.",
            "reqps",
            (Query(f"sum by (mode) (rate(gkt_requests_total{_WHO}[$__rate_interval]))", "{{mode}}"),),
            stacked=True,
        ),
        "By tenant and route",
        Panel(
            "Who spent what",
            "In the selected time.",
            "short",
            (
                Query(_by("tenant, route", "gkt_cost_usd_total")),
                Query(teacher_alone(_RANGE, BY_ROUTE)),
                Query(sure(_RANGE, BY_ROUTE)),
                Query(error(_RANGE, BY_ROUTE)),
                Query(_by("tenant, route", "gkt_requests_total")),
            ),
            kind="table",
            width=24,
            height=9,
            least=None,
            columns=("Cost, USD", "Baseline, USD", "Saved, USD", "Error, USD", "Requests"),
            column_words={"Saved, USD": {0: ("about 0", "text")}},
        ),
        "Quality of guided answers",
        Panel(
            "Agreement with the teacher's answer",
            "Agreement of sampled guided answers, and of the student alone for the same requests, from 0 to 1. "
            "The gap between the lines of a route is the gain by guidance.",
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
            "made; unscored (nothing to compare, or no score); failed (an engine); refused (no slot, a limit, or "
            "no Redis); over_budget; dropped (concurrency limit or timeout).",
            "short",
            (Query("sum by (result) (rate(gkt_quality_samples_total[$__rate_interval])) * 3600", "{{result}}"),),
            width=12,
            stacked=True,
        ),
        "Budgets",
        Panel(
            "Remaining budget",
            "Unspent and unreserved part of the budget, including raises. Only tenants with their own budget, "
            "without keys.",
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
            "Spent budget",
            "In the current period. It is reset at the start of the next one.",
            "currencyUSD",
            (
                Query(f"max by (tenant) (gkt_budget_spent_usd{_TENANT})", "{{tenant}}"),
                Query(f"max by (tenant) (gkt_budget_limit_usd{_TENANT})", "{{tenant}}, may be"),
            ),
            width=12,
        ),
    ),
)
