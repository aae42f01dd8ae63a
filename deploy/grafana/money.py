"""Queries about savings, which two counters hold because a counter cannot decrease."""

from __future__ import annotations

WHO = 'tenant=~"$tenant", route=~"$route"'
"""The choices on top of a dashboard."""
GUIDANCE = 'savings_class="guided"'
"""Savings of guided answers, with the corrections by measured baselines."""
BY_POLICY = 'savings_class="student_by_policy"'
"""Savings of answers for which a policy selected the student."""
BY_ROUTE = " by (tenant, route)"


def over_range(labels: str = WHO) -> str:
    """Return the growth of METRIC over the selected time."""
    return f"increase(METRIC{{{labels}}}[$__range])"


def per_second(labels: str = WHO) -> str:
    """Return the growth of METRIC in a second."""
    return f"rate(METRIC{{{labels}}}[$__rate_interval])"


def error(reach: str, by: str = "") -> str:
    """Return the error of savings."""
    return _less("gkt_savings_error_usd_total", "gkt_savings_error_removed_usd_total", reach, by)


def sure(reach: str, by: str = "") -> str:
    """Return the savings that count, or 0 where their error is as large."""
    saved = _less("gkt_savings_usd_total", "gkt_losses_usd_total", reach, by)
    return f"{saved} * (abs({saved}) > bool {error(reach, by)})"


def teacher_alone(reach: str, by: str = "") -> str:
    """Return the baselines that count: the cost and the savings together."""
    cost = f"sum{by} ({reach.replace('METRIC', 'gkt_cost_usd_total')})"
    return f"({cost} + {_less('gkt_savings_usd_total', 'gkt_losses_usd_total', reach, by)})"


def _less(more: str, less: str, reach: str, by: str) -> str:
    """Return the growth of one counter less that of another."""
    return f"(sum{by} ({reach.replace('METRIC', more)}) - sum{by} ({reach.replace('METRIC', less)}))"
