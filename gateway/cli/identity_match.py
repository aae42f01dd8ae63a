"""`gkt-gateway check --identity`: show which rule of the policies matches a token, and why others do not."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import typer
from rich.text import Text

from gateway.cli.tables import console_for, decision_of, plain_table
from gateway.config.claims import without_unverified_email
from gateway.keys.identity.document import parse_object
from gateway.keys.identity.issuers import Issuers
from gateway.keys.identity.token import TokenRejected, looks_like_jwt
from gateway.keys.token_callers import caller_of, matches_of
from gateway.runtime.tasks import BackgroundTasks
from gateway.telemetry.logs import set_up_logs
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.config.settings import Settings
    from gateway.policy.book import Caller, PolicySet
    from gateway.protocol.body import Json


class _Claims(NamedTuple):
    issuer: str
    claims: Mapping[str, Any]
    is_verified: bool


def match_identity(settings: Settings, book: PolicySet, file: str, *, in_json: bool, quiet: bool) -> Caller:
    """Print which rule matches the token or the claims in `file`, and return the caller. Exits with 1 if none does.

    With `quiet`, print only a rejection.
    """
    try:
        found = _claims(settings, file)
        result = caller_of(book, found.issuer, found.claims)
    except TokenRejected as error:
        raise _stop(f"{file}: rejected with {error.status}: {error.message}") from None
    if not quiet or isinstance(result, TokenRejected):
        rules = list(_rules(book, found))
        if in_json:
            typer.echo(orjson.dumps(_as_json(file, found, rules, result), option=orjson.OPT_INDENT_2))
        else:
            _print(file, found, rules, result)
    if isinstance(result, TokenRejected):
        raise typer.Exit(1)
    return result


def _stop(message: str) -> typer.Exit:
    typer.echo(f"gkt-gateway: {message}", err=True)
    return typer.Exit(1)


def _claims(settings: Settings, file: str) -> _Claims:
    """Return the claims in the file. A token is verified with the keys of its issuer. Raises TokenRejected."""
    try:
        raw = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise _stop(f"{file}: cannot be read: {(error.strerror or 'error').lower()}") from None
    text = raw.decode("utf-8", "replace").strip()
    if looks_like_jwt(text):
        set_up_logs("error", "auto")  # the reason is in the message
        return asyncio.run(_verified(settings, text))
    try:
        claims = parse_object(raw)
    except ValueError as error:
        raise _stop(f"{file}: neither a token nor claims as a JSON object ({error})") from None
    url = claims.get("iss")
    name = next((one.name for one in settings.identity.issuers if one.issuer == url), None)
    if name is None:
        known = ", ".join(one.issuer for one in settings.identity.issuers) or "none"
        raise _stop(f"{file}: iss is not the URL of an issuer of config.yaml; known: {known}")
    return _Claims(name, without_unverified_email(claims), is_verified=False)


async def _verified(settings: Settings, token: str) -> _Claims:
    tasks = BackgroundTasks()
    issuers = Issuers(tasks, Metrics())
    issuers.use(settings.identity)
    try:
        verified = await issuers.verify(token)
    except TokenRejected as error:
        issuer = issuers.named(error.issuer or "")
        if issuer is not None and issuer.state.error is not None:
            raise _stop(f"the keys of issuer '{issuer.name}' cannot be read: {issuer.state.error}") from None
        raise
    finally:
        await tasks.close()
        await issuers.close()
    return _Claims(verified.issuer.name, verified.claims, is_verified=True)


def _rules(book: PolicySet, found: _Claims) -> Iterator[Json]:
    """Yield every rule of the issuer. `why` is the reason it does not match; None: an earlier rule matches."""
    tenants = book.identities.get(found.issuer, ())
    taken = {(match.tenant, match.rule.id) for match in matches_of(tenants, found.claims)}
    for tenant in tenants:
        for rule in tenant.rules:
            yield {
                "tenant": tenant.tenant,
                "id": rule.id,
                "place": rule.place,
                "takes": (tenant.tenant, rule.id) in taken,
                "why": rule.mismatch(found.claims),
            }


def _as_json(file: str, found: _Claims, rules: list[Json], result: Caller | TokenRejected) -> Json:
    body = {"file": file, "issuer": found.issuer, "verified": found.is_verified, "rules": rules}
    if isinstance(result, TokenRejected):
        return {**body, "refused": {"status": result.status, "message": result.message}, "tenant": None, "key": None}
    return {**body, "refused": None, "tenant": result.policy.tenant, "key": result.key.id}


def _print(file: str, found: _Claims, rules: list[Json], result: Caller | TokenRejected) -> None:
    console = console_for(pipe_width=160)
    kind = "a verified token" if found.is_verified else "claims, without a signature, an audience or times to check"
    console.print(Text(f"{file}: {kind}, of issuer {found.issuer}", "bold"), soft_wrap=True)
    table = plain_table("tenant", "rule", "place", "decision")
    for rule in rules:
        table.add_row(*(Text(text) for text in (rule["tenant"], rule["id"], rule["place"], decision_of(rule))))
    console.print(table)
    if isinstance(result, TokenRejected):
        console.print(Text(f"rejected with {result.status}: {result.message}", "bold red"), soft_wrap=True)
    else:
        console.print(Text(f"tenant {result.policy.tenant}, key {result.key.id}"), soft_wrap=True)
