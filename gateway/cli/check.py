"""`gkt-gateway check`: validate config.yaml and the policies without a running gateway."""

from __future__ import annotations

import time
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path  # noqa: TC003  typer reads it
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from gateway.accounting.estimate import TOKENS_PER_MESSAGE
from gateway.accounting.worst_case import BUDGET_MAX_TOKENS
from gateway.cli.lazy import CONFIG, config_option
from gateway.config.database_url import is_postgres
from gateway.config.yaml_source import display_path
from gateway.keys.callers import utc_text
from gateway.pipeline.guidance_deadlines import GuidanceTimes, as_duration, read_times, recommended_s
from gateway.policy.book import check_all, near_misses
from gateway.policy.routing import modes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.config.models import ModelSettings
    from gateway.config.sections import AdminSettings, Defaults
    from gateway.config.settings import Settings
    from gateway.policy.book import Caller, PolicySet
    from gateway.policy.schema import Route, TenantPolicy

DEVELOPMENT_KEY = "gk-dev"
"""Publicly known key of the shipped policies/default.yaml."""
_OTEL = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
_BYTES_PER_TOKEN = 4


def check(
    config: Annotated[Path, config_option(help="The configuration file.")] = CONFIG,
    explain: Annotated[
        str | None,
        typer.Option(
            help="Explain how the gateway would handle the request body in this file; `-`: standard input.",
            metavar="FILE",
        ),
    ] = None,
    tenant: Annotated[
        str | None, typer.Option(help="With --explain: tenant of the request. Default: the only tenant.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="With --explain: id of a key in the policy, for its models and limits.")
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(help="With --explain: a header of the request, like 'x-team: blue'. Can be repeated."),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(
            help="Show which rule (`identities`) matches the token in this file, or its claims as JSON; `-`: standard "
            "input. With --explain: the caller of the request.",
            metavar="FILE",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --explain or --identity: print JSON.")] = False,
) -> None:
    """Validate the configuration and all policies. Print every issue with its file and line.

    With --explain, print how one request would be handled, without sending it. The output has the route, the reasons
    why earlier routes do not match, the engines, the guidance, limits and budgets, and the reserved amount.

    `echo '{"model": "chat", "messages": [{"role": "user", "content": "Hi"}]}' | gkt-gateway check --explain -`

    With --identity, print which rule gives a token its tenant and key id, and why others do not match. A token is
    verified with the keys of its issuer, which must be reachable. Claims as JSON are not verified.

    `echo '{"iss": "https://login.example.com", "sub": "ada"}' | gkt-gateway check --identity -`

    Neither engines nor Redis need to run. Exits with 1 if there is an issue or the request would be rejected.
    """
    explain_options = {"--tenant": tenant, "--key": key, "--header": header, "--json": as_json and identity is None}
    if explain is None and (unused := [name for name, value in explain_options.items() if value]):
        raise typer.BadParameter(f"{unused[0]} needs --explain FILE")
    if identity is not None and (tenant or key):
        raise typer.BadParameter("--identity determines the tenant and the key: omit --tenant and --key")
    if identity == explain == "-":
        raise typer.BadParameter("--identity and --explain cannot both read standard input")
    settings, book, issues = check_all(config)
    for issue in issues:
        typer.echo(str(issue), err=True)
    if settings is None or book is None:
        typer.echo(f"{_count(len(issues), 'issue')} found", err=True)
        raise typer.Exit(1)
    caller: Caller | None = None
    if identity is not None:
        # Imported here, as below: checking does not need it.
        from gateway.cli.identity_match import match_identity

        caller = match_identity(settings, book, identity, in_json=as_json, quiet=explain is not None)
    if explain is not None:
        from gateway.cli.explain import caller_with_key, explain_request

        if caller is not None:
            key = caller.key.id
        else:
            caller = caller_with_key(book, tenant, key)
        explain_request(settings, explain, caller, key, header or (), in_json=as_json)
    elif caller is None:
        _summarize(settings, book)


def _summarize(settings: Settings, book: PolicySet) -> None:
    """Print the warnings, the notes, and the numbers of a valid configuration."""
    warnings = list(warnings_of(settings, book))
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    for note in notes_of(book):
        typer.echo(f"note: {note}")
    counts = (
        _count(len(settings.models), "model"),
        _count(len(book.policies), "tenant"),
        _count(sum(len(policy.routes) for policy in book.policies), "route"),
        _count(sum(len(policy.keys) for policy in book.policies), "key"),
        _count(len(warnings), "warning"),
    )
    typer.echo(f"ok: {', '.join(counts)}")


def notes_of(book: PolicySet) -> Iterator[str]:
    """Yield notes on teacher tokens that projections add to requests, and on limits by labels that callers choose."""
    routes = ((policy, route) for policy in book.policies for route in policy.all_routes)
    rules = (route.guidance for policy, route in routes if policy.max_guidance_tokens(route))
    used = {(rule.resolved_projection.name, rule.exemplars): rule.resolved_projection for rule in rules}
    for (name, file), projection in sorted(used.items(), key=str):
        if projection.turns:
            tokens = projection.shown_bytes // _BYTES_PER_TOKEN + TOKENS_PER_MESSAGE * projection.turns
            count = _count(len(projection.exemplars), "exemplar")
            parts = [f"{count} of {file}" if file else count] if projection.exemplars else []
            parts += ["a system text"] if projection.system else []
            yield (
                f"projection {name}: adds {' and '.join(parts)}, about {tokens} tokens, to each teacher request; "
                "receipts include these tokens"
            )
        if projection.skip is not None:
            yield (
                f"projection {name}: requests {projection.skip.tokens} tokens more than guidance.tokens from the "
                "teacher, since skipped text is dropped; receipts include these tokens"
            )

    for policy in book.policies:
        for name, rule in policy.labels.items():
            if rule.is_limited and (sources := rule.caller_sources):
                yield (
                    f"tenant {policy.tenant}: label {name}: callers choose its value in {' and '.join(sources)}: a "
                    "hostile caller can use up the limits and budgets of other values, or choose a value with more "
                    "left; those of the tenant and the key always apply"
                )


def warnings_of(settings: Settings, book: PolicySet) -> Iterator[str]:
    """Yield warnings about a valid configuration: settings that are probably wrong in production."""
    if known := book.tenant_of_key(DEVELOPMENT_KEY):
        yield (
            f"tenant {known.policy.tenant}: key {known.key.id} is the development key '{DEVELOPMENT_KEY}': "
            "remove it before production"
        )
    for model in settings.models:
        parts = urlsplit(model.api_base or "")
        if parts.scheme == "http" and model.api_key is not None and not is_private(parts.hostname or ""):
            yield f"model {model.name}: its api_key is sent unencrypted to {parts.hostname}: use https"
        for why in _doubts(model, teaches=model.name in book.teachers()):
            yield f"model {model.name}: {why}"
    measured = GuidanceTimes(time.monotonic, read_times(settings.data))
    for policy in book.policies:
        for why in (
            *(f"route {route.model}: {doubt}" for route in policy.routes if (doubt := _doubt(policy, route, settings))),
            *_unbounded(settings, policy),
            *_guessable(settings, policy),
            *_out_of_reach(settings.defaults, policy),
            *_unserved(policy),
            *_expired(policy, time.time()),
            *_often_late(policy, measured),
            *_not_warmed(policy, settings),
        ):
            yield f"tenant {policy.tenant}: {why}"
    yield from _unpriced(settings, book)
    used = {name for policy in book.policies for route in policy.routes for name in route.engines}
    for model in settings.models:
        if model.name not in used:
            yield f"model {model.name}: no route uses it"
    yield from _folder_doubts(settings.policies, book)
    yield from _extras_missing(settings)
    if admin_doubt := _admin_doubt(settings.admin):
        yield f"admin: listens on {settings.admin.host} {admin_doubt}"
    if (oidc := settings.admin.oidc) is not None:
        issuer = settings.identity.named(oidc.issuer)
        if issuer is not None and oidc.client_id in issuer.audience:
            yield (
                f"admin.oidc: its client_id is an audience of issuer {issuer.name}, too: tokens of callers may pass "
                "for those of operators, and ID tokens of operators for those of callers. Use two names"
            )


def _extras_missing(settings: Settings) -> Iterator[str]:
    """Yield settings that need an extra which is not installed here. It may be installed where the gateway runs."""
    postgres = is_postgres(settings.usage.url.get_secret_value())
    for enabled, modules, extra, reason in (
        (settings.tracing.endpoint is not None, _OTEL, "otel", "tracing.endpoint is set, and OpenTelemetry"),
        (postgres, ("psycopg",), "postgres", "usage.url is PostgreSQL, and psycopg"),
    ):
        if enabled and not all(map(_is_installed, modules)):
            yield (
                f"{reason} is not installed here: the gateway does not start without the extra "
                f"(pip install 'gkt-gateway[{extra}]')"
            )


def _is_installed(module: str) -> bool:
    """Return whether a module is installed, without importing it. Parent packages are imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _folder_doubts(folder: Path, book: PolicySet) -> Iterator[str]:
    if not any(policy.keys or policy.identities for policy in book.policies):
        yield f"{display_path(folder)}: no policy file has a key: create one with `gkt-gateway keys create`"
    rules = [route.guidance for policy in book.policies for route in policy.all_routes]
    referenced = {rule.exemplars for rule in rules}
    for file in near_misses(folder):
        if file.name not in referenced:
            yield f"{display_path(file)}: not read: rename it to end in .yaml"


def _admin_doubt(admin: AdminSettings) -> str | None:
    if _is_loopback(admin.host):
        return None
    is_open = admin.key is None and admin.oidc is None
    if is_private(admin.host):
        return "without a key: set admin.key" if is_open else None
    if is_open:
        return "and requires no key: set admin.key, and keep it behind a firewall"
    return "and requires no key for probes, metrics and queues: keep it behind a firewall"


def _unbounded(settings: Settings, policy: TenantPolicy) -> Iterator[str]:
    """Yield routes without default_max_tokens under a budget, where the gateway sets a limit of its own."""
    budgets = [policy.budget, policy.key_budget, settings.defaults.budget, settings.defaults.key_budget]
    budgets += [*(key.budget for key in policy.keys), *(rule.budget for rule in policy.identities)]
    if any(budgets) or any(rule.has_budget for rule in policy.labels.values()):
        for route in policy.routes:
            if route.default_max_tokens is None and route.mode != "embeddings":
                yield (
                    f"route {route.model}: there is a budget and no default_max_tokens: requests without max_tokens "
                    f"are limited to {BUDGET_MAX_TOKENS} tokens"
                )


def _guessable(settings: Settings, policy: TenantPolicy) -> Iterator[str]:
    """Yield hashed labels without a secret."""
    for name, rule in policy.labels.items():
        if rule.hash and settings.labels.hash_key is None:
            yield f"label {name}: its hashes are guessable without a secret: set labels.hash_key in config.yaml"


def _unserved(policy: TenantPolicy) -> Iterator[str]:
    named = [(f"key {key.id}", key.models) for key in policy.keys]
    for owner, models in [*named, *((f"identity {rule.id}", rule.models) for rule in policy.identities)]:
        for name in models or ():
            if not policy.routes_named(name):
                yield f"{owner}: no route of the tenant has model {name}: correct or remove the name"


def _expired(policy: TenantPolicy, now: float) -> Iterator[str]:
    """Yield expired keys of the policy. They are no issue, since an expired key must not prevent a restart."""
    for key in policy.keys:
        if key.expires is not None and key.expires <= now:
            yield f"key {key.id} expired on {utc_text(key.expires)}: remove it, or set a later date in expires"


def _often_late(policy: TenantPolicy, measured: GuidanceTimes) -> Iterator[str]:
    """Yield routes with a deadline below the teacher's latency that was last measured with this data folder."""
    for route in policy.all_routes:
        tokens, rule = policy.max_guidance_tokens(route), route.guidance
        if not tokens or route.teacher is None:
            continue
        p95_s = measured.p95_s(route.teacher, tokens)
        if p95_s is not None and p95_s > rule.max_deadline_s:
            name = "auto_deadline.max" if rule.deadline == "auto" else "deadline"
            yield (
                f"route {route.model}: guidance.{name} is {as_duration(rule.max_deadline_s)}, but the last "
                f"measured 95th percentile of {route.teacher}'s guidance is {as_duration(round(p95_s, 3))}: set "
                f"guidance.{name} to {as_duration(recommended_s(p95_s))}"
            )


def _not_warmed(policy: TenantPolicy, settings: Settings) -> Iterator[str]:
    """Yield routes with `warm_student` that do not warm their student, or may pay for it without effect."""
    for route in policy.all_routes:
        rule = route.guidance
        if not rule.warm_student or not policy.max_guidance_tokens(route):
            continue
        if rule.placement != "prefix":
            yield f"route {route.model}: guidance.warm_student has no effect with placement {rule.placement}: remove it"
        for student in route.all_students:
            protocol = settings.by_name[student.model].protocol
            if protocol == "tgi":
                yield (
                    f"route {route.model}: guidance.warm_student: {student.model} is a TGI server, which caches no "
                    "prefix of a call without a stream: remove it"
                )
            elif protocol == "litellm":
                yield (
                    f"route {route.model}: guidance.warm_student: {student.model}'s provider bills the prompt twice, "
                    "and caches only long prompts or none: compare cached_input_tokens with and without"
                )


def _out_of_reach(defaults: Defaults, policy: TenantPolicy) -> Iterator[str]:
    """Yield tenant limits that the keys cannot reach because of defaults.key_limits in config.yaml."""
    if policy.limits is None or policy.key_limits is not None or any(key.limits for key in policy.keys):
        return
    for name in type(policy.limits).model_fields:
        limit, each = getattr(policy.limits, name), getattr(defaults.key_limits, name)
        if policy.keys and limit is not None and each is not None and each * len(policy.keys) < limit:
            yield (
                f"limits.{name} is {limit}, but defaults.key_limits in config.yaml limits all keys of the file "
                f"together to {each * len(policy.keys)}: set key_limits in the file too"
            )


def _unpriced(settings: Settings, book: PolicySet) -> Iterator[str]:
    """Yield models with the price 0 in a route with a paid model, unless they are marked as free."""
    paid = {model.name for model in settings.models if model.price.max_input_usd or model.price.output_usd}
    together = [route.engines for policy in book.policies for route in policy.routes if route.engines & paid]
    for model in settings.models:
        is_marked = model.price_rule is not None and model.price_rule.free
        if model.name not in paid and not is_marked and any(model.name in engines for engines in together):
            yield (
                f"model {model.name}: its price is 0, so that savings are too high if it is not free: set price, or "
                "write price: {free: true}"
            )


def _doubts(model: ModelSettings, *, teaches: bool) -> Iterator[str]:
    if model.price.cached_input_usd > model.price.input_usd:
        yield "cached_input_per_1m is above input_per_1m: a cached token would cost more than an uncached one"
    if teaches and model.batch.low_water > model.max_concurrency:
        yield (
            f"batch.low_water {model.batch.low_water} is above max_concurrency {model.max_concurrency}: "
            "requests never wait for a batch"
        )


def _doubt(policy: TenantPolicy, route: Route, settings: Settings) -> str | None:
    may_guide = bool(policy.max_guidance_tokens(route))
    others = set(modes_of(policy, route)) - {route.mode}
    unused = "student" if route.mode == "teacher" else "teacher"
    has_unused = route.all_students if route.mode == "teacher" else route.teacher
    if not may_guide and not others and not route.variants and has_unused:
        return f"mode {route.mode} leaves its {unused} and its guidance unused"
    if not may_guide:
        return None
    for index, (student, weight) in enumerate((one.model, one.weight) for one in route.all_students):
        # A fallback student may be the teacher.
        if route.teacher == student and (index == 0 or weight is not None):
            return f"{student} is its own teacher"
        if route.guidance.placement == "prefix" and settings.by_name[student].continuation == "none":
            return f"{student} has continuation none: it gets its guidance as context, not as a prefix"
    return None


def is_private(host: str) -> bool:
    """Return whether a host is reachable only from this machine or network. Names without a dot count as private."""
    try:
        address = ip_address(host)
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".svc", ".svc.cluster.local"))
    return address.is_private and not address.is_unspecified


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
