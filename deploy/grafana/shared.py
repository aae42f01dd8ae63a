"""Panels that several dashboards have."""

from __future__ import annotations

from typing import Any

from deploy.grafana.money import BY_POLICY, GUIDANCE, WHO, over_range, per_second, sure, teacher_alone
from deploy.grafana.panels import Panel, Query

SMALL: dict[str, Any] = {"kind": "stat", "width": 4, "height": 4}
_WHO = f"{{{WHO}}}"
_CALLERS = f'{{{WHO}, mode!="shadow"}}'
_FAILED = f'{{{WHO}, mode!="shadow", status!~"ok|client_gone"}}'

COST_AGAINST_BASELINE = Panel(
    "Cost against baseline, per hour",
    "The gap between the lines is the savings.",
    "currencyUSD",
    (
        Query(f"sum(rate(gkt_cost_usd_total{_WHO}[$__rate_interval])) * 3600", "cost"),
        Query(f"{teacher_alone(per_second())} * 3600", "baseline"),
    ),
    width=12,
)
SAVED_BY_GUIDANCE = Panel(
    "Saved by guidance",
    "Savings of guided answers alone, without answers for which a policy selected the student. About 0: the error of "
    "the estimate is at least as large.",
    "currencyUSD",
    (Query(sure(over_range(f"{WHO}, {GUIDANCE}"))),),
    falling=True,
    bad=0,
    least=None,
    words={0: ("about 0", "text")},
    **SMALL,
)
SAVED_BY_POLICY = Panel(
    "Saved by student by policy",
    "Savings of answers for which a policy selected the student. About 0: the error of the estimate is at least as "
    "large.",
    "currencyUSD",
    (Query(sure(over_range(f"{WHO}, {BY_POLICY}"))),),
    falling=True,
    bad=0,
    least=None,
    words={0: ("about 0", "text")},
    **SMALL,
)
FAILED_REQUESTS = Panel(
    "Requests that fail",
    "Fraction of all requests of callers in the selected time. Client disconnects are no failure. GktErrorRateHigh "
    "fires above 5 %.",
    "percentunit",
    (
        Query(
            f"(sum(increase(gkt_requests_total{_FAILED}[$__range])) or vector(0)) / "
            f"sum(increase(gkt_requests_total{_CALLERS}[$__range]))"
        ),
    ),
    warn=0.01,
    bad=0.05,
    **SMALL,
)
