"""Where Redis is: one address, looked at before anything connects. It may hold a password, so nothing quotes it."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import SplitResult, parse_qsl, urlsplit

from gateway.config.scalars import InvalidValue, is_spelled_as_url

_SCHEMES = ("redis://", "rediss://", "unix://")
# Not among them: how long to wait, which is redis.timeout, and what would change how replies are read.
_OPTIONS = ("client_name", "db", "health_check_interval", "max_connections", "password", "username")
# A password that is not encoded ends where one of / ? # stands in it, and the rest is read as something else.
ENCODE = "percent-encode what is special in the password: / is %2F, ? is %3F, # is %23, @ is %40"
_TCP = f"cannot be read: write it like redis://:PASSWORD@HOST:6379/0, and {ENCODE}"
_UNIX = f"cannot be read: write it like unix:///run/redis.sock, with the whole path, and {ENCODE}"
_OPTION = (
    f"has an option after '?' that is unknown or wrong: known are {', '.join(_OPTIONS)}, and ssl_... with rediss://; "
    f"{ENCODE}"
)


def check_address(url: str) -> None:
    """Raises Wrong for an address that Redis' client would not take, or would read otherwise than it is meant."""
    if not url.startswith(_SCHEMES):
        raise InvalidValue("must be embedded, or an address that starts with redis://, rediss:// or unix://")
    unix = url.startswith("unix:")
    if not _is_whole(url, unix=unix):
        raise InvalidValue(_UNIX if unix else _TCP)
    if not (_has_known_options(url) and _can_connect(url)):
        raise InvalidValue(_OPTION)


def _is_whole(url: str, *, unix: bool) -> bool:
    """Whether it says where to connect, and nothing in it would be left unread."""
    with suppress(ValueError):  # no port, or a half of an IPv6 address
        parts = urlsplit(url)
        placed = _is_path(parts) if unix else _is_host(parts)
        return placed and "#" not in url and is_spelled_as_url(url)
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
    """Whether the client takes every option. It looks at most of them only when it makes a connection."""
    # Here, since `check` of an embedded Redis needs no client.
    from redis.asyncio import ConnectionPool
    from redis.exceptions import RedisError

    try:
        ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, AttributeError, RedisError):
        return False
    return True
