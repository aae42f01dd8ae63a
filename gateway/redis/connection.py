"""Redis connections with timeouts that exclude the lag of the event loop.

redis-py limits each read and write by `asyncio.timeout`. These connections use `LoopDeadline` instead.
"""

from __future__ import annotations

import math
import ssl
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gateway.runtime.timeouts import MAX_LAG_S, LoopDeadline

_SERIALIZER = HiredisRespSerializer()


class ReplicaConnected(RedisConnectionError):
    """The server is a replica, which rejects writes."""


class WithLoopDeadlines(AbstractConnection):
    """A connection with loop deadlines: of one write and of one reply (None: for subscribers), and of connecting."""

    def __init__(self, *, command_timeout_s: float | None, connect_timeout_s: float, **more: Any) -> None:
        # The library's own connect timeout remains as an upper limit.
        own_limits = {"socket_timeout": None, "socket_connect_timeout": connect_timeout_s + MAX_LAG_S}
        super().__init__(**more | own_limits)
        self._command_timeout_s, self._connect_timeout_s = command_timeout_s, connect_timeout_s

    def pack_command(self, *args: Any) -> list[bytes]:
        """Encode a command in C. The library's asyncio connections encode each argument in Python."""
        packed: list[bytes] = _SERIALIZER.pack(*args)
        return packed

    async def _connect(self) -> None:
        async with LoopDeadline(self._connect_timeout_s):
            await super()._connect()  # type: ignore[no-untyped-call, safe-super]

    async def _reconnect(self) -> None:
        """Connect for a retry of a command."""
        await self.connect_check_health(check_health=False)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if not self.is_connected:  # connecting has its own deadlines
            await self._reconnect()
        if self._command_timeout_s is None:
            return await super().send_packed_command(command, check_health)
        try:
            async with LoopDeadline(self._command_timeout_s):
                return await super().send_packed_command(command, check_health)
        except TimeoutError:
            raise RedisTimeoutError("Timeout writing to socket") from None

    async def read_response(
        self,
        disable_decoding: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109  the library's own argument
        **more: Any,
    ) -> Any:
        if timeout is not None or self._command_timeout_s is None:
            return await super().read_response(disable_decoding, timeout, **more)
        try:
            async with LoopDeadline(self._command_timeout_s):
                return await super().read_response(disable_decoding, math.inf, **more)
        except TimeoutError:
            raise RedisTimeoutError(f"Timeout reading from {self._host_error()}") from None


def connect(url: str, *, command_timeout_s: float | None, connect_timeout_s: float, **options: Any) -> Redis:
    """Return a client with loop deadlines, which connects with its first command. `options` are those of `from_url`.

    A `command_timeout_s` of None is no timeout, for subscribers.
    Raises ValueError, TypeError and RedisError if the URL is invalid.
    """
    redis = Redis.from_url(url, command_timeout_s=command_timeout_s, connect_timeout_s=connect_timeout_s, **options)
    pool = redis.connection_pool
    original = pool.connection_class
    pool.connection_class = type(original.__name__, (WithLoopDeadlines, original), {})
    return redis


def reason_of(error: BaseException) -> str:
    """Return the kind of an error, and for an error of TLS its reason with a hint."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            hint = _CERTIFICATE_HINTS.get(cause.verify_code, "check ssl_ca_certs in redis.url")
            return f"TLS: {cause.verify_message.rstrip('.')}; {hint}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {_with_hint(cause.reason or cause.strerror or type(cause).__name__)}"
        if isinstance(cause, FileNotFoundError):
            return "no such file: check the paths in redis.url"
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


_NOT_NAMED = "redis.url needs a host that the certificate names"
_RENEW = "renew the certificate of the server, or correct the clock"
_CERTIFICATE_HINTS = {9: _RENEW, 10: _RENEW, 62: _NOT_NAMED, 64: _NOT_NAMED}
"""By X509_V_ERR codes of OpenSSL: not valid yet, expired, another host name, another IP address."""
_PLAIN = "this port has no TLS: correct the port, or write redis instead of rediss in redis.url"
_TLS_HINTS = {
    "WRONG_VERSION_NUMBER": _PLAIN,
    "PACKET_LENGTH_TOO_LONG": _PLAIN,
    "NO_CERTIFICATE_OR_CRL_FOUND": "the file ssl_ca_certs in redis.url has no certificate as PEM",
}


def _with_hint(reason: str) -> str:
    """Return a reason of OpenSSL with the option to check, if one causes it."""
    hint = _TLS_HINTS.get(reason)
    if hint is None and any(part in reason for part in ("CERT", "KEY", "PEM", "UNKNOWN_CA", "HANDSHAKE")):
        hint = "check ssl_certfile and ssl_keyfile in redis.url"
    return f"{reason}; {hint}" if hint else reason
