"""Output of `gkt-gateway check --explain`: an explanation as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType

    from gateway.cli.explain import ExplainedLabel, Explanation
    from gateway.config.limits import BudgetRule, LimitsRule
    from gateway.policy.labels import Source
    from gateway.policy.plan import GuidancePlan, Plan, QualityPlan
    from gateway.policy.schema import Route
    from gateway.protocol.body import Json


def as_text(request: Json, routes: Sequence[Json], explanation: Explanation) -> RenderableType:
    """Return the explanation as text for the terminal. Arguments are those of `as_json`."""
    key = "a key without its own models, limits and budget" if request["key"] is None else f"key {request['key']}"
    head = f"{request['file']}: {request['kind']} for model '{request['model']}', {request['bytes']} bytes, "
    head += f"of tenant {request['tenant']}, {key}"
    parts: list[RenderableType] = [Text(head, "bold")]
    if routes:
        parts += _section(f"routes named '{request['model']}', in order", map(_route_row, routes))
    if explanation.refused is not None:
        refusal = f"rejected with {explanation.refused.status}: {explanation.refused.message}"
        parts += [Text(), Text(refusal, "bold red")]
    if (plan := explanation.plan) is not None and (route := explanation.choice.route) is not None:
        of_route = "" if plan.mode == route.mode else f", for mode {route.mode}"
        parts += _section(f"plan{of_route}", _plan_rows(plan, route, explanation.fields))
        if plan.shadow is not None:
            sample = ("sample", f"{route.shadow.sample:.4g} of the requests")
            parts += _section("shadow request", [sample, *_plan_rows(plan.shadow, route, explanation.fields)])
        if plan.quality is not None:
            parts += _section("quality sample", _quality_rows(plan.quality))
    if explanation.labels:
        rows = ((one.name, one.value, _SOURCES[one.source]) for one in explanation.labels)
        parts += _section("labels", rows)
    if plan is not None and (reserved_usd := explanation.reserved_usd) is not None:
        parts += _section("counts against", _allowance_rows(explanation))
        bound = "" if plan.max_tokens is not None else "; without max_tokens, the engine's longest answer counts"
        parts += _section("reserved", [(f"{reserved_usd.normalize():f} USD, the most that it may cost{bound}",)])
    parts += [Text(), *(Text(f"assumed: {one}", "dim") for one in explanation.assumed)] if explanation.assumed else []
    return Group(*parts)


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


def _route_row(one: Json) -> tuple[str, ...]:
    if one["takes"]:
        decision = "match"
    else:
        decision = "not checked: an earlier route matches" if one["why"] is None else f"no: {one['why']}"
    return f"routes[{one['index']}]", one["place"], decision


def _section(title: str, rows: Iterable[tuple[str, ...]]) -> list[RenderableType]:
    """Return a title and rows with aligned columns. The last column is not padded."""
    listed = list(rows)
    widths = [max(map(len, column)) for column in list(zip(*listed, strict=True))[:-1]]
    lines = [
        Text("  ".join(["", *(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]))
        for row in listed
    ]
    return [Text(), Text(title, "bold cyan"), *lines]


def _plan_rows(plan: Plan, route: Route, fields: Sequence[str]) -> Iterator[tuple[str, ...]]:
    if plan.split is not None:
        yield "variant", plan.split.variant
    yield "mode", plan.mode
    if plan.guidance is not None:
        yield "teacher", _guidance(plan.guidance)
    if plan.unguided is not None:
        reason = f", because of {', '.join(fields)}" if fields else ""
        yield "teacher", f"no guidance: {plan.unguided}{reason} (see `gkt-gateway docs receipts`)"
    yield ("answers" if plan.mode in {"teacher", "embeddings"} else "student"), _students(plan, route)
    if plan.mode != "embeddings":
        own = "the engine's own: neither the caller nor the route sets one"
        yield "max_tokens", own if plan.max_tokens is None else str(plan.max_tokens)
    yield "baseline", plan.baseline
    yield "show_cost", "true" if plan.show_cost else "false"


def _quality_rows(quality: QualityPlan) -> Iterator[tuple[str, ...]]:
    rule = quality.rule
    yield "sample", f"{rule.sample:.4g} of the guided answers"
    yield "with", f"{quality.teacher.student} alone, and the student alone"
    yield "by", rule.compare if quality.judge is None else f"{quality.judge.student}, a judge"
    yield "within", f"{rule.max_budget:f} USD a day"


def _guidance(guidance: GuidancePlan) -> str:
    otherwise = "503" if guidance.required else "the student answers alone"
    bounds = guidance.auto_deadline
    within = f"{guidance.deadline_s:g}s" if bounds is None else f"{bounds.min_s:g}s to {bounds.max_s:g}s, as measured"
    return (
        f"{guidance.teacher}: at most {guidance.tokens} tokens, projection {_projection(guidance)}, placement "
        f"{guidance.placement}, within {within}, else {otherwise}"
        f"{'; meanwhile the first student reads the prompt' if guidance.warm_student else ''}"
    )


def _projection(guidance: GuidancePlan) -> str:
    projection = guidance.projection
    exemplars = f"{len(projection.exemplars)} exemplars" if projection.exemplars else ""
    skips = f"{projection.skip_tokens} tokens more to skip" if projection.skip is not None else ""
    parts = ", ".join(filter(None, (exemplars, skips)))
    return f"{projection.name} ({parts})" if parts else projection.name


def _students(plan: Plan, route: Route) -> str:
    weights = {one.model: one.weight for one in route.all_students if one.weight is not None}
    names = [
        f"{one.engine} ({weights[one.engine]:g})" if one.engine in weights else one.engine for one in plan.students
    ]
    tries = f"each with up to {plan.retries.num_retries + 1} attempts" if plan.retries.num_retries else "one attempt"
    if len(names) == 1:
        return f"{names[0]}, {tries.removeprefix('each ')}"
    drawn = "; the first is drawn by weight" if weights else ""
    return f"{', then '.join(names)}; {tries}{drawn}"


def _allowance_rows(explanation: Explanation) -> Iterator[tuple[str, ...]]:
    for name, one in (("tenant", explanation.tenant), ("key", explanation.key)):
        yield f"{name} limits", _limits(one.limits)
        yield f"{name} budget", _budget(one.budget)
    for label in explanation.labels:
        if label.limits or label.budget is not None:
            yield f"{label.name} limits", f"{_limits(label.limits)}, of the value '{label.value}'"
            yield f"{label.name} budget", f"{_budget(label.budget)}, of the value '{label.value}'"
    if (slices := explanation.slices) > 1:
        yield "slices", f"{slices} in Redis; the request must fit one of {slices} equal parts of each limit and budget"


_SOURCES: dict[Source, str] = {
    "claim": "from the token",
    "key": "from the key",
    "header": "from a header",
    "metadata": "from metadata",
    "user": "from the body's user",
    "none": "not sent",
}


def _limits(limits: LimitsRule) -> str:
    parts = [f"{number} {what}" for name, what in _LIMITS.items() if (number := _limits_json(limits).get(name))]
    return ", ".join(parts) or "none"


_LIMITS = {
    "rpm_limit": "requests a minute",
    "tpm_limit": "tokens a minute",
    "max_parallel_requests": "concurrent requests",
}


def _budget(budget: BudgetRule | None) -> str:
    if budget is None:
        return "none"
    each = f"each {budget.budget_duration}{', calendar-aligned' if budget.calendar_aligned else ', rolling'}"
    soft = f"; from {budget.soft_budget:f} on: {budget.on_soft}" if budget.soft_budget is not None else ""
    return f"{budget.max_budget:f} USD {each}{soft}; when it is spent: {budget.on_hard}"


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
