"""The overview: money, quality and reliability on one page."""

from __future__ import annotations

from deploy.grafana.money import BY_ROUTE, GUIDANCE, WHO, error, over_range, per_second, sure
from deploy.grafana.panels import Choice, Dashboard, Panel, Query
from deploy.grafana.shared import COST_AGAINST_BASELINE, FAILED_REQUESTS, SAVED_BY_GUIDANCE, SMALL

_WHO = f"{{{WHO}}}"
_GUIDED = f'{{{WHO}, mode=~"guided|teacher_complete|guidance"}}'
_BY_GUIDANCE = over_range(f"{WHO}, {GUIDANCE}")
_UNGUIDED = '{route=~"$route"}'


def _agreement(pair: str) -> str:
    of = f'{{{WHO}, pair="{pair}"}}[$__range]'
    return f"sum(increase(gkt_quality_agreement_sum{of})) / sum(increase(gkt_quality_agreement_count{of}))"


def _guided_share(reach: str) -> str:
    guided = f"sum({reach.replace('METRIC', f'gkt_requests_total{_GUIDED}')})"
    unguided = f"(sum({reach.replace('METRIC', f'gkt_unguided_total{_UNGUIDED}')}) or vector(0))"
    return f"{guided} / ({guided} + {unguided})"


OVERVIEW = Dashboard(
    "gkt-overview",
    "GKT: overview",
    "Cost, savings by guidance, quality and reliability at a glance. The other dashboards have the details.",
    (Choice("tenant", "gkt_requests_total"), Choice("route", 'gkt_requests_total{tenant=~"$tenant"}')),
    (
        Panel(
            "Cost",
            "Cost of the answers in the selected time, with measuring.",
            "currencyUSD",
            (Query(f"sum(increase(gkt_cost_usd_total{_WHO}[$__range]))"),),
            plain=True,
            **SMALL,
        ),
        SAVED_BY_GUIDANCE,
        Panel(
            "Error of the savings",
            "Maximum error of the savings by guidance, in both directions.",
            "currencyUSD",
            (Query(error(_BY_GUIDANCE)),),
            plain=True,
            **SMALL,
        ),
        Panel(
            "Agreement with the teacher",
            "Mean agreement of sampled guided answers with the teacher's, from 0 to 1. Set the route's min_agreement "
            "for a verdict.",
            "percentunit",
            (Query(_agreement("guided_teacher")),),
            plain=True,
            most=1,
            **SMALL,
        ),
        Panel(
            "Answers with guidance",
            "Share of the answers of guided routes. The filter by tenant does not apply to answers without guidance.",
            "percentunit",
            (Query(_guided_share("increase(METRIC[$__range])")),),
            falling=True,
            bad=0.5,
            warn=0.8,
            most=1,
            **SMALL,
        ),
        FAILED_REQUESTS,
        "Money",
        COST_AGAINST_BASELINE,
        Panel(
            "Saved by guidance per hour, by route",
            "Savings of guided answers, and 0 if their error is at least as large.",
            "currencyUSD",
            (Query(f"{sure(per_second(f'{WHO}, {GUIDANCE}'), BY_ROUTE)} * 3600", "{{tenant}} {{route}}"),),
            width=12,
            least=None,
            falling=True,
            bad=0,
        ),
        "Reliability",
        Panel(
            "Requests per second, by mode",
            "Ended requests with a receipt, successful or not.",
            "reqps",
            (Query(f"sum by (mode) (rate(gkt_requests_total{_WHO}[$__rate_interval]))", "{{mode}}"),),
            stacked=True,
        ),
        Panel(
            "First token, 95 %",
            "Time to the first token of streams, all tenants, by mode.",
            "s",
            (
                Query(
                    'histogram_quantile(0.95, sum by (le, mode) (rate(gkt_stage_seconds_bucket{stage="first_token"}'
                    "[$__rate_interval])))",
                    "{{mode}}",
                ),
            ),
        ),
        Panel(
            "Engines",
            "Whether each engine answered the last probe of every worker.",
            "short",
            (Query("min by (engine) (gkt_engine_up)", "{{engine}}"),),
            kind="state-timeline",
            words={0: ("down", "red"), 1: ("up", "green")},
        ),
        "Settings",
        Panel(
            "Guidance switched off",
            "Switches that are off, by an operator or by quality.",
            "short",
            (Query("count(max by (tenant, route) (gkt_guidance_off) > 0) or vector(0)"),),
            bad=1,
            **SMALL,
        ),
        Panel(
            "Edits not in use",
            "1: config.yaml or a policy file is invalid, or some worker needs a restart to apply it.",
            "short",
            (Query("max(gkt_config_stale) + max(gkt_policy_stale)"),),
            bad=1,
            **SMALL,
        ),
        Panel(
            "Remaining budget, least of all tenants",
            "Unspent and unreserved part of the budget, including raises.",
            "percentunit",
            (Query('min(gkt_budget_left_usd{tenant=~"$tenant"} / gkt_budget_limit_usd{tenant=~"$tenant"})'),),
            falling=True,
            bad=0.1,
            warn=0.3,
            most=1,
            **SMALL,
        ),
    ),
)
