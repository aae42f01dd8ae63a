"""The admin API of a running gateway, for CLI commands: options, requests, and amounts of money."""

from __future__ import annotations

import getpass
import re
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from urllib.parse import urlencode, urlsplit

import aiohttp
import msgspec
import typer
import uvloop

from gateway.cli.lazy import config_option
from gateway.cli.tables import ENCODER
from gateway.config.settings import admin_key, admin_listener
from gateway.errors import StartupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import SecretStr

# Longer than the largest `redis.timeout`, for which the gateway itself may wait.
_TIMEOUT_S = 15.0
_CONNECT_TIMEOUT_S = 5.0
_ACTOR_BREAKS = re.compile(r"[^A-Za-z0-9@._+-]+")
_DECODER = msgspec.json.Decoder(float_hook=Decimal)

ConfigOption: TypeAlias = Annotated[
    Path, config_option(help="Configuration file with the address of the admin listener.")
]
UrlOption: TypeAlias = Annotated[
    str | None, typer.Option("--url", help="Address of the admin listener, like http://10.0.0.7:8081.", metavar="URL")
]
ActorOption: TypeAlias = Annotated[
    str | None, typer.Option(help="Actor for the audit trail. Default: your login name.", metavar="NAME")
]


class _ErrorBody(msgspec.Struct):
    message: str
    code: str | None = None
    param: str | None = None


class _ErrorReply(msgspec.Struct):
    error: _ErrorBody


class AdminClient:
    """HTTP client of the admin listener. All failures are StartupErrors that say what to do, or quote its error.

    `url` is the value of --url; None: the address of `admin` in the configuration. With `keyed`, requests carry the
    admin key.
    """

    def __init__(self, url: str | None, config: Path, *, keyed: bool = False) -> None:
        self.url, self._url_source = (_checked(url), "--url") if url is not None else _configured(config)
        self._headers = {"Authorization": f"Bearer {_key(config).get_secret_value()}"} if keyed else {}

    def call(self, method: str, path: str, body: Any = None, *, actor: str | None = None) -> Any:
        """Send a request and return the decoded reply; numbers with a decimal point are Decimal."""
        reply = self.send(method, path, body, actor=actor)
        try:
            return _DECODER.decode(reply)
        except msgspec.DecodeError:
            raise self.no_gateway("unexpected reply") from None

    def send(self, method: str, path: str, body: Any = None, *, actor: str | None = None) -> bytes:
        """Send a request and return the reply."""
        sent = {
            "headers": {"x-gkt-actor": actor or login_name()},
            "data": None if body is None else ENCODER.encode(body),
        }

        async def request() -> bytes:
            timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S, sock_connect=_CONNECT_TIMEOUT_S)
            async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
                return await self._request(session, method, path, **sent)

        return uvloop.run(request())

    def list_all(self, path: str, name: str, **query: str | None) -> list[dict[str, Any]]:
        """Return all pages of the list that replies carry under `name`."""
        return [entry for page in self.pages(path, **query) for entry in page[name]]

    def pages(self, path: str, **query: str | None) -> Iterator[dict[str, Any]]:
        """Yield the replies with all pages of a list."""
        after: str | None = ""
        while after is not None:
            page = self.call("GET", f"{path}?{urlencode(without_none(**query, after=after or None))}")
            yield page
            after = page["next"]

    async def _request(self, session: aiohttp.ClientSession, method: str, path: str, **sent: Any) -> bytes:
        """Send a request with aiohttp's arguments `sent`. Return the body of a successful reply."""
        try:
            # A redirect could send the key to another host.
            async with session.request(method, self.url + path, allow_redirects=False, **sent) as reply:
                status, raw = reply.status, await reply.read()
        except aiohttp.ClientConnectorError as error:
            refused = isinstance(error.os_error, ConnectionRefusedError)
            why = "connection refused" if refused else (error.os_error.strerror or str(error.os_error)).lower()
            raise StartupError(
                f"Cannot connect to {self.url} ({why}). The address comes from {self._url_source}. Check that the "
                "gateway is running. Its log line 'listening' has the admin address; pass it with --url "
                "http://HOST:PORT."
            ) from None
        except TimeoutError:
            raise StartupError(
                f"{self.url} timed out. The address comes from {self._url_source}; pass another with --url "
                "http://HOST:PORT."
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self.no_gateway(type(error).__name__) from None
        if status // 100 == 2:
            return raw
        raise self._refused(status, raw)

    def _refused(self, status: int, raw: bytes) -> StartupError:
        try:
            error = msgspec.json.decode(raw, type=_ErrorReply).error
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return self.no_gateway(f"status {status}")
        if error.code == "not_found" and error.param is None:  # the path is unknown
            return self.no_gateway(f"status {status}")
        return StartupError(error.message)

    def no_gateway(self, why: str) -> StartupError:
        """Return the error for an unexpected reply."""
        return StartupError(
            f"{self.url} is not the admin listener of a gateway of this version ({why}). The admin listener's port is "
            "admin.port in config.yaml, 8081 by default, and differs from the port for callers. Pass its address with "
            "--url http://HOST:PORT."
        )


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise typer.BadParameter("must be like http://127.0.0.1:8081", param_hint="--url")
    return url.rstrip("/")


def _configured(config: Path) -> tuple[str, str]:
    """Return the URL of the admin listener and the description of its source."""
    if not config.exists():
        raise StartupError(f"There is no {config}. Name it with --config, or the admin listener with --url.")
    host, port = admin_listener(config)
    if port == 0:
        raise StartupError(
            "admin.port is 0, which selects any free port. The gateway's log line 'listening' has the port: pass it "
            "with --url http://HOST:PORT."
        )
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared, not listened on
    url_source = f"admin in {config} or from GKT_ADMIN_HOST and GKT_ADMIN_PORT"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", url_source


def _key(config: Path) -> SecretStr:
    key = admin_key(config)
    if key is None:
        raise StartupError(
            "This command needs the gateway's admin key. Set the environment variable GKT_ADMIN_KEY, or pass a "
            f"{config.name} that has admin.key with --config."
        )
    return key


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


def login_name() -> str:
    """Return the name of the user as actor for the audit trail."""
    with suppress(OSError, KeyError):
        return _ACTOR_BREAKS.sub("_", getpass.getuser())[:64] or "admin"
    return "admin"
