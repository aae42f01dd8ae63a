"""URL of Redis, validated before any connection. It may contain a password, so no message quotes it."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import SplitResult, parse_qsl, urlsplit

from gateway.config.scalars import PERCENT_ENCODE, InvalidValue, is_spelled_as_url

_SCHEMES = ("redis://", "rediss://", "unix://")
# Timeouts are left out, since redis.timeout sets them; so are options that change how replies are decoded.
_OPTIONS = ("client_name", "db", "health_check_interval", "max_connections", "password", "username")
_TCP = f"is not a valid URL: write it like redis://:PASSWORD@HOST:6379/0, and {PERCENT_ENCODE}"
_UNIX = f"is not a valid URL: write it like unix:///run/redis.sock, with an absolute path, and {PERCENT_ENCODE}"
_OPTION = (
    f"has an unknown or invalid option after '?': use {', '.join(_OPTIONS)}, and ssl_... with rediss://; "
    f"{PERCENT_ENCODE}"
)


def check_redis_url(url: str) -> None:
    """Raise InvalidValue for a URL that the Redis client would reject or misread."""
    if not url.startswith(_SCHEMES):
        raise InvalidValue("must be embedded, or a URL that starts with redis://, rediss:// or unix://")
    unix = url.startswith("unix:")
    if not _is_complete(url, unix=unix):
        raise InvalidValue(_UNIX if unix else _TCP)
    if not (_has_known_options(url) and _can_connect(url)):
        raise InvalidValue(_OPTION)


def _is_complete(url: str, *, unix: bool) -> bool:
    """Return whether the URL names a host or a path and has no part that the client would ignore."""
    with suppress(ValueError):  # no port, or a half of an IPv6 address
        parts = urlsplit(url)
        has_address = _is_path(parts) if unix else _is_host(parts)
        return has_address and "#" not in url and is_spelled_as_url(url)
    return False


def _is_path(parts: SplitResult) -> bool:
    return parts.hostname is None and parts.port is None and len(parts.path) > 1


def _is_host(parts: SplitResult) -> bool:
    database = parts.path.removeprefix("/")
    return bool(parts.hostname) and parts.port != 0 and (not database or (database.isascii() and database.isdigit()))


def _has_known_options(url: str) -> bool:
    query = urlsplit(url).query
    with suppress(ValueError):  # something without a '='
        options = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        return all(name in _OPTIONS or name.startswith("ssl_") for name, _ in options)
    return False


def _can_connect(url: str) -> bool:
    """Return whether the client accepts every option. It checks most of them only when it creates a connection."""
    # Imported here: `check` of an embedded Redis needs no client.
    from redis.asyncio import ConnectionPool
    from redis.exceptions import RedisError

    try:
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, AttributeError, RedisError):
        return False
    return True
