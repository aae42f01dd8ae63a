"""Shared parts of commands that call the admin API: options, requests, and amounts of money."""

from __future__ import annotations

import getpass
import re
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from urllib.parse import urlencode

import msgspec
import typer
import uvloop

if TYPE_CHECKING:
    from gateway.cli.admin_client import AdminClient

_ACTOR_BREAKS = re.compile(r"[^A-Za-z0-9@._+-]+")
_DECODER = msgspec.json.Decoder(float_hook=Decimal)
_ENCODER = msgspec.json.Encoder(decimal_format="number")

ActorOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Actor for the audit trail. Default: your login name.", metavar="NAME")
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def without_none(**values: Any) -> dict[str, Any]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def usd_of(text: str | None, option: str) -> Decimal | None:
    """Return an amount of money exactly as written, or None. Raises typer.BadParameter."""
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,12})?", text):
        raise typer.BadParameter("must be an amount in USD, like 10 or 0.50", param_hint=option)
    return Decimal(text)


def call_admin(client: AdminClient, method: str, path: str, body: Any = None, *, actor: str | None = None) -> Any:
    """Send a request and return the decoded reply; numbers with a decimal point are Decimal. Raises StartupError."""
    reply = request_admin(client, method, path, body, actor=actor)
    try:
        return _DECODER.decode(reply)
    except msgspec.DecodeError:
        raise client.no_gateway("unexpected reply") from None


def request_admin(client: AdminClient, method: str, path: str, body: Any = None, *, actor: str | None = None) -> bytes:
    """Send a request and return the reply. Raises StartupError."""
    raw = None if body is None else _ENCODER.encode(body)
    headers = {} if method == "GET" else {"x-gkt-actor": actor or _login_name()}

    async def request() -> bytes:
        async with client.session() as session:
            return await client.request(session, method, path, body=raw, headers=headers)

    return uvloop.run(request())


def list_all(client: AdminClient, path: str, name: str, **query: str | None) -> list[dict[str, Any]]:
    """Return all pages of the list that replies carry under `name`."""
    entries: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = call_admin(client, "GET", f"{path}?{urlencode(without_none(**query, after=after or None))}")
        entries += page[name]
        after = page["next"]
    return entries


def _login_name() -> str:
    with suppress(OSError, KeyError):
        return _ACTOR_BREAKS.sub("_", getpass.getuser())[:64] or "admin"
    return "admin"


def in_json(body: Any) -> str:
    """Return a reply as indented JSON; Decimals become numbers."""
    return msgspec.json.format(_ENCODER.encode(body), indent=2).decode()
