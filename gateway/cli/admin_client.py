"""How commands ask a running gateway: its admin listener's address, the admin key, and what to say when it fails."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias
from urllib.parse import urlsplit

import aiohttp
import msgspec
import typer

from gateway.config.settings import admin_key, admin_listener
from gateway.errors import StartupError

if TYPE_CHECKING:
    from pydantic import SecretStr

# Longer than `redis.timeout` can be, for which the gateway may wait itself.
_ANSWER_LIMIT_S = 15.0
_CONNECT_LIMIT_S = 5.0

ConfigOption: TypeAlias = Annotated[
    Path, typer.Option("--config", "-c", help="The gateway's configuration file, for the address to ask.")
]
UrlOption: TypeAlias = Annotated[
    str | None, typer.Option("--url", help="Ask this admin listener instead, like http://10.0.0.7:8081.", metavar="URL")
]


class _Told(msgspec.Struct):
    message: str
    code: str | None = None
    param: str | None = None


class _Error(msgspec.Struct):
    error: _Told


class AdminClient:
    """Where to ask. Raises StartupError, with what to do, for whatever cannot be.

    Args:
        url: where `--url` says; else `admin` of the configuration does.
        keyed: whether it shows the admin key.
    """

    def __init__(self, url: str | None, config: Path, *, keyed: bool = False) -> None:
        self.url, self._said_by = (_checked(url), "--url") if url is not None else _configured(config)
        self._headers = {"Authorization": f"Bearer {_key(config).get_secret_value()}"} if keyed else {}

    def session(self) -> aiohttp.ClientSession:
        """What to ask with; whoever opens it closes it."""
        limits = aiohttp.ClientTimeout(total=_ANSWER_LIMIT_S, sock_connect=_CONNECT_LIMIT_S)
        return aiohttp.ClientSession(timeout=limits, headers=self._headers)

    async def ask(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        """The body of a good answer. Raises StartupError; what the gateway itself refuses, it says in its own words."""
        try:
            # Elsewhere, where a redirect may lead, nobody is to see the key.
            async with session.request(
                method, self.url + path, data=body, headers=headers, allow_redirects=False
            ) as reply:
                status, raw = reply.status, await reply.read()
        except aiohttp.ClientConnectorError as error:
            refused = isinstance(error.os_error, ConnectionRefusedError)
            why = "connection refused" if refused else (error.os_error.strerror or str(error.os_error)).lower()
            raise StartupError(
                f"Nobody listens at {self.url} ({why}). The address comes from {self._said_by}. Is the gateway "
                "running? Its log line 'listening' tells its admin address; name it with --url http://HOST:PORT."
            ) from None
        except TimeoutError:
            raise StartupError(
                f"{self.url} does not answer in time. The address comes from {self._said_by}; name another with --url "
                "http://HOST:PORT."
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise self.no_gateway(type(error).__name__) from None
        if status // 100 == 2:
            return raw
        raise self._refused(status, raw)

    def _refused(self, status: int, raw: bytes) -> StartupError:
        try:
            said = msgspec.json.decode(raw, type=_Error).error
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return self.no_gateway(f"it answers {status}")
        if said.code == "not_found" and said.param is None:  # the path, and not what it names
            return self.no_gateway(f"it answers {status}")
        return StartupError(said.message)

    def no_gateway(self, why: str) -> StartupError:
        """What to say when something else answers."""
        return StartupError(
            f"What listens at {self.url} is not the admin listener of a gateway of this version ({why}). Callers have "
            "a port of their own; the admin listener's is admin.port in config.yaml, 8081 by default. Name another "
            "with --url http://HOST:PORT."
        )


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if not fine:
        raise typer.BadParameter("must be like http://127.0.0.1:8081", param_hint="--url")
    return url.rstrip("/")


def _configured(config: Path) -> tuple[str, str]:
    """The address, and who says so."""
    if not config.exists():
        raise StartupError(f"There is no {config}. Name it with --config, or the address to ask with --url.")
    host, port = admin_listener(config)
    if port == 0:
        raise StartupError(
            "admin.port is 0, which takes any free port. The gateway's log line 'listening' tells which: name it with "
            "--url http://HOST:PORT."
        )
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  compared, not listened on
    said_by = f"admin in {config} or from GKT_ADMIN_HOST and GKT_ADMIN_PORT"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", said_by


def _key(config: Path) -> SecretStr:
    key = admin_key(config)
    if key is None:
        raise StartupError(
            "This needs the gateway's admin key. Put it into the environment variable GKT_ADMIN_KEY, or name the "
            f"gateway's {config.name} with --config, whose admin.key refers to it."
        )
    return key
