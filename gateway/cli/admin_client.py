"""HTTP client of a running gateway's admin listener, for CLI commands."""

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

# Longer than the largest `redis.timeout`, for which the gateway itself may wait.
_TIMEOUT_S = 15.0
_CONNECT_TIMEOUT_S = 5.0

ConfigOption: TypeAlias = Annotated[
    Path, typer.Option("--config", "-c", help="Configuration file with the address of the admin listener.")
]
UrlOption: TypeAlias = Annotated[
    str | None, typer.Option("--url", help="Address of the admin listener, like http://10.0.0.7:8081.", metavar="URL")
]


class _ErrorBody(msgspec.Struct):
    message: str
    code: str | None = None
    param: str | None = None


class _ErrorReply(msgspec.Struct):
    error: _ErrorBody


class AdminClient:
    """HTTP client of the admin listener. All failures are StartupErrors that say what to do.

    Args:
        url: the value of --url; None: the address of `admin` in the configuration.
        config: the configuration file.
        keyed: whether requests carry the admin key.
    """

    def __init__(self, url: str | None, config: Path, *, keyed: bool = False) -> None:
        self.url, self._url_source = (_checked(url), "--url") if url is not None else _configured(config)
        self._headers = {"Authorization": f"Bearer {_key(config).get_secret_value()}"} if keyed else {}

    def session(self) -> aiohttp.ClientSession:
        """Return a new session. The caller closes it."""
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S, sock_connect=_CONNECT_TIMEOUT_S)
        return aiohttp.ClientSession(timeout=timeout, headers=self._headers)

    async def request(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        """Send a request and return the body of a successful reply.

        Raises:
            StartupError: the request failed. The message of an error reply is the gateway's own.
        """
        try:
            # A redirect could send the key to another host.
            async with session.request(
                method, self.url + path, data=body, headers=headers, allow_redirects=False
            ) as reply:
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
