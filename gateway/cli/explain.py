"""`gkt-gateway check --explain`: what would become of a request, without sending it."""

from __future__ import annotations

import sys
from collections import UserDict
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import typer
from msgspec import structs
from rich.console import Console

from gateway.accounting.worst_case import budget_max_tokens, worst_case
from gateway.cli.explain_print import ExplainedRequest, RouteLine, as_json, shown_as_text
from gateway.config.yaml_messages import nearest
from gateway.config.yaml_source import read, shown
from gateway.errors import GatewayError
from gateway.policy.book import Caller
from gateway.policy.explain import explain
from gateway.policy.schema import KeyEntry
from gateway.pricing import total_usd
from gateway.protocol.chat import parse_chat
from gateway.protocol.embeddings import parse_embeddings
from gateway.protocol.text import parse_text_completion
from gateway.wiring import max_output_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from decimal import Decimal

    from gateway.config.settings import Settings
    from gateway.policy.book import PolicySet
    from gateway.policy.explain import Explanation
    from gateway.policy.plan import Plan
    from gateway.policy.schema import TenantPolicy
    from gateway.protocol.requests import AnyRequest

_KINDS: dict[str, tuple[str, Callable[[bytes], AnyRequest]]] = {
    "messages": ("chat", parse_chat),
    "prompt": ("text completion", parse_text_completion),
    "input": ("embeddings", parse_embeddings),
}
_MOST_NAMED = 20


class _Headers(UserDict[str, str]):
    """By name, whatever its capitals."""

    def __getitem__(self, name: str) -> str:
        return self.data[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self.data


def explain_request(
    settings: Settings, book: PolicySet, file: str, tenant: str | None, key: str | None, headers: Iterable[str], *,
    in_json: bool,
) -> None:  # fmt: skip
    """Print what would become of the request in `file`. Exits with 1 where it would be refused, or cannot be read."""
    sent = _headers(headers)
    policy = _policy(book, tenant)
    caller = Caller(policy, _key(policy, key))
    kind, asked = _request(file)
    found = _with_an_end(explain(caller, asked, sent, settings), settings)
    about = ExplainedRequest(
        file=file,
        kind=kind,
        model=asked.model,
        bytes=asked.size_bytes,
        tenant=policy.tenant,
        key=key,
        routes=tuple(_routes(caller, asked.model, found, _places(settings.policies, policy))),
        reserved_usd=None if found.plan is None else _reserved(asked, found.plan, settings),
    )
    if in_json:
        typer.echo(orjson.dumps(as_json(about, found), option=orjson.OPT_INDENT_2))
    else:
        Console().print(shown_as_text(about, found), soft_wrap=True)
    if found.refused is not None:
        raise typer.Exit(1)


def _stop(message: str) -> typer.Exit:
    typer.echo(f"gkt-gateway: {message}", err=True)
    return typer.Exit(1)


def _headers(given: Iterable[str]) -> _Headers:
    headers = _Headers()
    for one in given:
        name, colon, value = one.partition(":")
        if not colon or not name.strip():
            raise _stop(f"--header: write a name, a colon and a value, like 'x-team: blue', and not '{one}'")
        headers.data[name.strip().lower()] = value.strip()
    return headers


def _policy(book: PolicySet, tenant: str | None) -> TenantPolicy:
    names = [policy.tenant for policy in book.policies]
    if tenant is None and len(names) == 1:
        return book.policies[0]
    listed = ", ".join(names[:_MOST_NAMED]) + (", ..." if names[_MOST_NAMED:] else "")
    if tenant is None:
        raise _stop(f"--tenant: say whose request it is: one of {listed}")
    if tenant not in names:
        close = nearest(tenant, names)
        raise _stop(
            f"--tenant: there is no tenant '{tenant}'" + (f". Did you mean '{close}'?" if close else f": {listed}")
        )
    return book.policies[names.index(tenant)]


def _key(policy: TenantPolicy, key: str | None) -> KeyEntry:
    """The key of that name. None: one that has no models, limits and budget of its own."""
    if key is None:
        return KeyEntry(id="any", sha256="0" * 64)
    known = [one.id for one in policy.keys]
    if key not in known:
        close = nearest(key, known)
        hint = f". Did you mean '{close}'?" if close else f"; it has {', '.join(known[:_MOST_NAMED]) or 'none'}"
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
        raise _stop(f"{file}: not valid JSON ({error}): write the body that a caller would send") from None
    for field, (kind, parse) in _KINDS.items():
        if isinstance(body, dict) and field in body:
            try:
                return kind, parse(raw)
            except GatewayError as error:
                raise _stop(f"{file}: refused with {error.status}: {error.message}") from None
    raise _stop(f"{file}: has no messages (a chat), no prompt and no input: write the body that a caller would send")


def _places(folder: Path, policy: TenantPolicy) -> list[str]:
    """Where each route of a tenant stands, as file:line."""
    for file in sorted(folder.glob("*.yaml")):
        source, _ = read(file)
        if source is not None and source.get("tenant") == policy.tenant:
            lines = (source.mistake(("routes", index), "").line for index in range(len(policy.routes)))
            return [f"{shown(file)}:{line}" for line in lines]
    return [""] * len(policy.routes)


def _routes(caller: Caller, model: str, found: Explanation, places: list[str]) -> Iterator[RouteLine]:
    """Every route of the name, and what becomes of the request there."""
    passed, taken = dict(found.choice.passed), found.choice.index
    for index, _ in caller.policy.routes_of.get(model, ()):
        why = passed.get(index)
        if index == taken:
            yield RouteLine(index, places[index], takes=True)
        elif why is None and taken is None:
            yield RouteLine(index, places[index], why="this key may not use the model")
        else:
            yield RouteLine(index, places[index], why=why)


def _with_an_end(found: Explanation, settings: Settings) -> Explanation:
    """Under a budget an answer that nothing limits is limited all the same: admission does likewise."""
    budgeted = found.tenant.budget is not None or found.key.budget is not None
    if found.plan is None or found.plan.max_tokens is not None or not budgeted:
        return found
    most = budget_max_tokens(found.plan, max_output_of(settings.models)) if found.plan.students else None
    return replace(found, plan=structs.replace(found.plan, max_tokens=most))


def _reserved(asked: AnyRequest, plan: Plan, settings: Settings) -> Decimal:
    """What the request may cost at most, as it would be reserved; its shadow has its own."""
    most = worst_case(
        plan, asked, {model.name: model.price for model in settings.models}, max_output_of(settings.models)
    )
    shares = (most.teacher, most.student, *most.more)
    return total_usd(*(share.cost_usd for share in shares if share is not None))
