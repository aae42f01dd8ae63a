"""`gkt-gateway check --explain`: explain how a request would be handled, without sending it.

Facts that are known only while engines run are assumed and listed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import typer
from msgspec import structs
from multidict import CIMultiDict

from gateway.accounting.engine_set import max_output_of
from gateway.accounting.labels import Labeler
from gateway.accounting.worst_case import budget_max_tokens, worst_case
from gateway.cli.explain_print import as_json, print_explanation
from gateway.config.limits import LimitsRule
from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import display_path, read
from gateway.errors import GatewayError
from gateway.policy.book import Caller
from gateway.policy.caller_fields import check_caller_fields
from gateway.policy.constraints import excluding_fields
from gateway.policy.key_entry import KeyEntry
from gateway.policy.labels import read_request_labels
from gateway.policy.plan import EngineSnapshot
from gateway.policy.policies import allowed_key, allowed_tenant
from gateway.policy.resolve import resolve, resolve_embeddings
from gateway.policy.routing import choose, not_found
from gateway.policy.token_limit import allowed_limit
from gateway.protocol.capabilities.continuation import Continuation
from gateway.protocol.chat import parse_chat
from gateway.protocol.embeddings import EmbeddingsRequest, parse_embeddings
from gateway.protocol.tags import tags_of
from gateway.protocol.text import TextRequest, parse_text_completion

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from decimal import Decimal

    from gateway.config.limits import BudgetRule
    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet
    from gateway.policy.constraints import API, ExcludingField
    from gateway.policy.labels import Source
    from gateway.policy.plan import Plan
    from gateway.policy.policies import EffectiveLimits
    from gateway.policy.routing import RouteChoice
    from gateway.policy.schema import Route, TenantPolicy
    from gateway.protocol.body import Json
    from gateway.protocol.requests import AnyRequest

_KINDS: dict[str, tuple[str, Callable[[bytes], AnyRequest]]] = {
    "messages": ("chat", parse_chat),
    "prompt": ("text completion", parse_text_completion),
    "input": ("embeddings", parse_embeddings),
}
_MAX_NAMES = 20


class ExplainedLabel(NamedTuple):
    """A label of a request, with the limits and the budget of its value. A hashed label has the hash."""

    name: str
    value: str
    source: Source
    limits: LimitsRule
    budget: BudgetRule | None


class Explanation(NamedTuple):
    """The explanation of a request, which counts against the limits of its tenant, key and labels."""

    choice: RouteChoice  # the matching route, and the reasons against earlier ones
    plan: Plan | None  # the plan; None if the request would be rejected
    refused: GatewayError | None
    tenant: EffectiveLimits
    key: EffectiveLimits
    assumed: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()  # the fields that give the reason against guidance
    reserved_usd: Decimal | None = None  # the maximum cost that would be reserved, without that of a shadow
    slices: int = 1  # parts of all limits and budgets
    labels: tuple[ExplainedLabel, ...] = ()


def explain_request(
    settings: Settings, file: str, caller: Caller, key: str | None, headers: Iterable[str], *,
    in_json: bool,
) -> None:  # fmt: skip
    """Print how the caller's request in `file` would be handled. `key` is the id of its key; None: any.

    Exits with 1 if it would be rejected or cannot be read.
    """
    sent_headers, policy = _headers(headers), caller.policy
    kind, request = _request(file)
    explanation = _explain(caller, request, sent_headers, settings)
    size, model = request.size_bytes, request.model
    facts = {"file": file, "kind": kind, "model": model, "bytes": size, "tenant": policy.tenant, "key": key}
    routes = list(_routes(caller, model, explanation, _locations(settings.policies, policy)))
    body = as_json(facts, routes, explanation)
    if in_json:
        typer.echo(orjson.dumps(body, option=orjson.OPT_INDENT_2))
    else:
        print_explanation(body)
    if explanation.refused is not None:
        raise typer.Exit(1)


def caller_with_key(book: PolicySet, tenant: str | None, key: str | None) -> Caller:
    """Return the caller of a tenant, by default of the only one, with a key of its file, by default any key."""
    policy = _policy(book, tenant)
    return Caller(policy, _key(policy, key))


def _stop(message: str) -> typer.Exit:
    typer.echo(f"gkt-gateway: {message}", err=True)
    return typer.Exit(1)


def _headers(given: Iterable[str]) -> CIMultiDict[str]:
    headers = CIMultiDict[str]()
    for one in given:
        name, colon, value = one.partition(":")
        if not colon or not name.strip():
            raise _stop(f"--header: write a name, a colon and a value, like 'x-team: blue', and not '{one}'")
        headers[name.strip()] = value.strip()
    try:
        tags_of(headers, ())
    except GatewayError as error:
        raise _stop(f"--header: rejected with {error.status}: {error.message}") from None
    return headers


def _policy(book: PolicySet, tenant: str | None) -> TenantPolicy:
    names = [policy.tenant for policy in book.policies]
    if tenant is None and len(names) == 1:
        return book.policies[0]
    listed = ", ".join(names[:_MAX_NAMES]) + (", ..." if names[_MAX_NAMES:] else "")
    if tenant is None:
        raise _stop(f"--tenant: set the tenant of the request: one of {listed}")
    if tenant not in names:
        close = nearest(tenant, names)
        raise _stop(
            f"--tenant: there is no tenant '{tenant}'" + (f". Did you mean '{close}'?" if close else f": {listed}")
        )
    return book.policies[names.index(tenant)]


def _key(policy: TenantPolicy, key: str | None) -> KeyEntry:
    """Return the key with an id, or for None a key without its own models, limits and budget."""
    if key is None:
        return KeyEntry(id="any", sha256="0" * 64)
    known = [one.id for one in policy.keys]
    if key not in known:
        close = nearest(key, known)
        hint = f". Did you mean '{close}'?" if close else f"; it has {', '.join(known[:_MAX_NAMES]) or 'none'}"
        raise _stop(f"--key: the policy of tenant {policy.tenant} has no key '{key}'{hint}")
    return policy.keys[known.index(key)]


def _request(file: str) -> tuple[str, AnyRequest]:
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise _stop(f"{file}: cannot be read: {(error.strerror or 'error').lower()}") from None
    try:
        body: Any = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise _stop(f"{file}: not valid JSON ({error}): the file must have a request body") from None
    for field, (kind, parse) in _KINDS.items():
        if isinstance(body, dict) and field in body:
            try:
                return kind, parse(raw)
            except GatewayError as error:
                raise _stop(f"{file}: rejected with {error.status}: {error.message}") from None
    raise _stop(f"{file}: has no messages, prompt or input: the file must have a request body")


def _locations(folder: Path, policy: TenantPolicy) -> list[str]:
    for file in sorted(folder.glob("*.yaml")):
        source, _ = read(file)
        if source is not None and source.get("tenant") == policy.tenant:
            lines = (source.issue(("routes", index), "").line for index in range(len(policy.routes)))
            return [f"{display_path(file)}:{line}" for line in lines]
    return [""] * len(policy.routes)


def _routes(caller: Caller, model: str, explanation: Explanation, locations: list[str]) -> Iterator[Json]:
    """Yield every route of the model's name. `why` is the reason it does not match; None: an earlier route matches."""
    passed, taken = dict(explanation.choice.passed), explanation.choice.index
    for index, _ in caller.policy.routes_named(model):
        why = passed.get(index, "this key may not use the model" if taken is None else None)
        yield {"index": index, "place": locations[index], "takes": index == taken, "why": why}


def _explain(caller: Caller, request: AnyRequest, headers: Mapping[str, str], settings: Settings) -> Explanation:
    choice, defaults = choose(caller, request, headers), settings.defaults
    tenant, key = allowed_tenant(caller.policy, defaults), allowed_key(caller.policy, caller.key, defaults)
    try:
        plan, route = _plan(caller, choice, request, headers, settings)
        labels = tuple(_labels(caller, request, headers, settings))
    except GatewayError as error:
        return Explanation(choice, None, error, tenant, key)
    excluding = _excluding(route, request)
    assumed, fields = (
        tuple(_assumed(caller, plan, route, settings, excluding)),
        tuple(_fields(route, request, plan, excluding)),
    )
    max_output = max_output_of(settings.models)
    budgets = tenant.budget, key.budget, *(one.budget for one in labels)
    if plan.max_tokens is None and plan.students and any(budgets):
        plan = structs.replace(plan, max_tokens=budget_max_tokens(plan, max_output))  # as admission does
    prices = {model.name: model.price for model in settings.models}
    reserved_usd = worst_case(plan, request, prices, max_output).usd
    slices = caller.policy.redis_slices
    return Explanation(choice, plan, None, tenant, key, assumed, fields, reserved_usd, slices, labels)


def _labels(
    caller: Caller, request: AnyRequest, headers: Mapping[str, str], settings: Settings
) -> Iterator[ExplainedLabel]:
    """Yield the labels of the request. Raises InvalidRequest for a required or an invalid one."""
    hash_key = settings.labels.hash_key
    labeler = Labeler(None, None if hash_key is None else hash_key.get_secret_value())
    sources = read_request_labels(caller, headers, request)
    for name, value in labeler.of_request(caller, headers, request).items():
        limits, budget = caller.policy.labels[name].limits_of(value)
        yield ExplainedLabel(name, value, sources[name].source, limits or LimitsRule(), budget)


def _plan(
    caller: Caller, choice: RouteChoice, request: AnyRequest, headers: Mapping[str, str], settings: Settings
) -> tuple[Plan, Route]:
    route = choice.route
    if route is None:
        raise not_found(caller, request.model, choice)
    check_caller_fields(caller.policy.caller_fields, request)
    # No random numbers: students keep the order of the file, and every request is sampled.
    if isinstance(request, EmbeddingsRequest):
        return resolve_embeddings(route, lambda _: False, lambda: 0.0, headers), route

    def snapshot(engine: str) -> EngineSnapshot:
        model = settings.by_name[engine]
        mode = model.continuation
        known = None if mode == "none" else Continuation("trailing" if mode == "auto" else mode)
        return EngineSnapshot(known, reasoning=model.reasoning, takes_prompts=model.protocol != "litellm")

    request = structs.replace(request, max_tokens=allowed_limit(request, route))
    return resolve(caller.policy, route, request, snapshot, lambda: 0.0, headers, key_id=caller.key.id), route


def _excluding(route: Route, request: AnyRequest) -> list[ExcludingField]:
    if isinstance(request, EmbeddingsRequest):
        return []
    api: API = "completions" if isinstance(request, TextRequest) else "chat"
    return list(excluding_fields(request.body, api, route.guidance.allow_fields))


def _fields(route: Route, request: AnyRequest, plan: Plan, excluding: Iterable[ExcludingField]) -> dict[str, None]:
    """Return the names of the fields that give the reason against guidance."""
    reason = (plan.shadow or plan).unguided
    prefix = route.guidance.placement == "prefix"
    return {one.path: None for one in excluding if one.reason == reason and (prefix or one.placement == "none")}


def _assumed(
    caller: Caller, plan: Plan, route: Route, settings: Settings, excluding: Collection[ExcludingField]
) -> list[str]:
    engines = [one.engine for each in (plan, plan.shadow) if each is not None for one in each.students]
    guided = plan.guidance is not None or plan.shadow is not None
    probed = [name for name in dict.fromkeys(engines) if settings.by_name[name].continuation == "auto"]
    probes = [f"{name} continues an answer that was begun (continuation: auto finds out)" for name in probed if guided]
    assumed = ["every engine answers, and no circuit is open", *probes]
    if any(one.weight is not None for one in route.all_students):
        assumed.append("students are tried in the order of the file; the gateway draws the first one by weight")
    if plan.shadow is not None:
        assumed.append(f"the request is in the sample of shadow requests, {route.shadow.sample:.4g} of all")
    if plan.max_tokens and plan.mode != "embeddings":
        assumed.append("the contexts of the engines leave room for max_tokens beside the prompt")
    if any(rule.claim is not None for rule in caller.policy.labels.values()):
        assumed.append("the caller has a key: no label comes from a claim of a token")
    if any(rule.values is None for rule in caller.policy.labels.values()):
        assumed.append("labels have fewer values this month than max_values")
    if (plan.shadow or plan).unguided is not None and excluding and all(map(_may_be_shared, excluding)):
        assumed.append("the engines differ in their vocabulary, or do not apply the fields to guidance")
    return assumed


def _may_be_shared(field: ExcludingField) -> bool:
    return field.placement == "prefix" and field.holder is None
