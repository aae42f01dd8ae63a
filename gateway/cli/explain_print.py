"""Output of `gkt-gateway check --explain`: an explanation as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from gateway.cli.tables import console_for, decision_of, plain_table, values_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.cli.explain import ExplainedLabel, Explanation
    from gateway.config.limits import BudgetRule, LimitsRule
    from gateway.policy.plan import Plan, QualityPlan
    from gateway.protocol.body import Json

_LIMITS = ("rpm_limit", "tpm_limit", "max_parallel_requests")


def print_explanation(body: Json) -> None:
    """Print the JSON of an explanation as tables: the routes, and each known value with its place in the JSON."""
    console = console_for(pipe_width=160)
    routes = plain_table("route", "place", "decision")
    for route in body["routes"]:
        routes.add_row(f"routes[{route['index']}]", Text(route["place"]), Text(decision_of(route)))
    if routes.row_count:
        console.print(routes)
    refused = body["refused"]
    shown = {name: body[name] for name in body if name not in {"routes", "refused"}}
    console.print(values_table(shown if refused is None else {"request": body["request"]}))
    if refused is not None:
        console.print(Text(f"rejected with {refused['status']}: {refused['message']}", "bold red"), soft_wrap=True)


def as_json(request: Json, routes: Sequence[Json], explanation: Explanation) -> Json:
    """Return the explanation for JSON. Amounts of money are text. `routes` are those of the requested name."""
    tenant, key, refused = explanation.tenant, explanation.key, explanation.refused
    return {
        "request": request,
        "routes": routes,
        "refused": None if refused is None else _fields(refused, "status code param message"),
        "plan": None if explanation.plan is None else _plan_json(explanation.plan),
        "limits": {"tenant": _limits_json(tenant.limits), "key": _limits_json(key.limits)},
        "budgets": {"tenant": _budget_json(tenant.budget), "key": _budget_json(key.budget)},
        "redis_slices": explanation.slices,
        "labels": {one.name: _label_json(one) for one in explanation.labels},
        "reserved_usd": None if explanation.reserved_usd is None else f"{explanation.reserved_usd:f}",
        "assumed": list(explanation.assumed),
        "unguided_fields": list(explanation.fields),
    }


def _fields(of: object, names: str) -> Json:
    return {name: getattr(of, name) for name in names.split()}


def _limits_json(limits: LimitsRule) -> Json:
    return {name: getattr(limits, name) for name in _LIMITS if getattr(limits, name)}


def _budget_json(budget: BudgetRule | None) -> Json | None:
    if budget is None:
        return None
    return {
        "max_budget": f"{budget.max_budget:f}",
        "soft_budget": None if budget.soft_budget is None else f"{budget.soft_budget:f}",
        "budget_duration": str(budget.budget_duration),
        **_fields(budget, "calendar_aligned on_soft on_hard"),
    }


def _label_json(one: ExplainedLabel) -> Json:
    return _fields(one, "value source") | {"limits": _limits_json(one.limits), "budget": _budget_json(one.budget)}


def _quality_json(quality: QualityPlan) -> Json:
    judge = None if quality.judge is None else quality.judge.student
    return _fields(quality.rule, "sample compare") | {"judge": judge, "max_budget": f"{quality.rule.max_budget:f}"}


def _plan_json(plan: Plan) -> Json:
    guidance: Json | None = None
    if plan.guidance is not None:
        guidance = _fields(
            plan.guidance, "teacher tokens placement boundary deadline_s cache_ttl_s required warm_student"
        )
        guidance["projection"] = plan.guidance.projection.name
        bounds = plan.guidance.auto_deadline
        guidance["auto_deadline"] = None if bounds is None else _fields(bounds, "min_s max_s")
    return {
        "mode": plan.mode,
        "students": [one.engine for one in plan.students],
        "guidance": guidance,
        "unguided": plan.unguided,
        "max_tokens": plan.max_tokens,
        "baseline": plan.baseline,
        "num_retries": plan.retries.num_retries,
        "show_cost": plan.show_cost,
        "shadow": None if plan.shadow is None else _plan_json(plan.shadow),
        "quality": None if plan.quality is None else _quality_json(plan.quality),
        "variant": None if plan.split is None else plan.split.variant,
    }
