"""What the commands share that ask the admin API: their options, a question with its answer, and amounts of money."""

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
    str | None, typer.Option(help="Who does it, for the audit trail. Default: the login name here.", metavar="NAME")
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print the admin API's JSON.")]


def given(**values: Any) -> dict[str, Any]:
    """Without what was not said."""
    return {name: value for name, value in values.items() if value is not None}


def usd_of(text: str | None, option: str) -> Decimal | None:
    """An amount of money, exactly as written. Raises typer.BadParameter."""
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,12})?", text):
        raise typer.BadParameter("must be an amount in USD, like 10 or 0.50", param_hint=option)
    return Decimal(text)


def ask(client: AdminClient, method: str, path: str, body: Any = None, *, actor: str | None = None) -> Any:
    """What the gateway answers; numbers with a point are Decimal. Raises StartupError, with what to do."""
    return uvloop.run(_asked(client, method, path, body, actor))


def ask_for_all(client: AdminClient, path: str, name: str, **query: str | None) -> list[dict[str, Any]]:
    """All pages of a list of that name."""
    found: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        page = ask(client, "GET", f"{path}?{urlencode(given(**query, after=after or None))}")
        found += page[name]
        after = page["next"]
    return found


async def _asked(client: AdminClient, method: str, path: str, body: Any, actor: str | None) -> Any:
    raw = None if body is None else _ENCODER.encode(body)
    headers = {} if method == "GET" else {"x-gkt-actor": actor or _login_name()}
    async with client.session() as session:
        answer = await client.ask(session, method, path, body=raw, headers=headers)
    try:
        return _DECODER.decode(answer)
    except msgspec.DecodeError:
        raise client.no_gateway("it answers something else") from None


def _login_name() -> str:
    with suppress(OSError, KeyError):
        return _ACTOR_BREAKS.sub("_", getpass.getuser())[:64] or "admin"
    return "admin"


def in_json(body: Any) -> str:
    """For programs."""
    return msgspec.json.format(_ENCODER.encode(body), indent=2).decode()
