"""Validate `redis.url`, and divide it into URLs of single servers, which the Redis client reads.

A URL names one server, the sentinels of a Redis Sentinel deployment, or some nodes of a Redis Cluster.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Literal, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from gateway.config.scalars import PERCENT_ENCODE, InvalidValue, is_spelled_as_url

_SERVER = ("redis://", "rediss://", "unix://")
_SENTINEL = ("redis+sentinel://", "rediss+sentinel://")
_CLUSTER = ("redis+cluster://", "rediss+cluster://")
_SCHEMES = (*_SERVER, *_SENTINEL, *_CLUSTER)
# Timeouts are left out, since redis.timeout sets them; so are options that change how replies are decoded.
_OPTIONS = ("client_name", "db", "health_check_interval", "max_connections", "password", "username")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_PORT = 6379
_SENTINEL_PORT = 26379
_MAX_PORT = 65535
_HOST = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\[\]:@/?#,]+)(:(?P<port>[0-9]{1,5}))?")
_MASTER = re.compile(r"(?P<name>[A-Za-z0-9._-]+)(/(?P<db>[0-9]*))?")

_LIKE = "is not a valid URL: write it like "
_SENTINEL_LIKE = "redis+sentinel://:PASSWORD@HOST:26379,HOST:26379,HOST:26379/MASTER_NAME/0"
_TCP = f"{_LIKE}redis://:PASSWORD@HOST:6379/0, and {PERCENT_ENCODE}"
_UNIX = f"{_LIKE}unix:///run/redis.sock, with an absolute path, and {PERCENT_ENCODE}"
_OF_CLUSTER = (
    f"{_LIKE}redis+cluster://:PASSWORD@HOST:6379,HOST:6379,HOST:6379, without a database, and {PERCENT_ENCODE}"
)
_OF_SENTINELS = f"{_LIKE}{_SENTINEL_LIKE}, and {PERCENT_ENCODE}"
_OPTION = f"has an unknown or invalid option after '?': use {', '.join(_OPTIONS)}, and ssl_... with rediss"
_OF_SENTINEL_OPTIONS = f", {' and '.join(_SENTINEL_OPTIONS)} with +sentinel"


class RedisAddress(NamedTuple):
    """The parts of `redis.url`.

    Attributes:
        url: of the server. For Sentinel, its host is the first sentinel, and the other parts apply to the master. For a
            cluster, its host is the first node.
        hosts: hosts and ports without user and password; or the path of a socket.
        sentinels: for Sentinel, the URLs of the sentinels, with their own user and password.
        master: for Sentinel, the name of the master.
    """

    kind: Literal["server", "sentinel", "cluster"]
    url: str
    hosts: tuple[str, ...]
    sentinels: tuple[str, ...] = ()
    master: str = ""


def check_redis_url(url: str) -> None:
    """Raise InvalidValue for a URL that the Redis client would reject or misread."""
    redis_address(url)


def redis_address(url: str) -> RedisAddress:
    """Return the parts of a URL. Raises InvalidValue for a URL that the Redis client would reject or misread."""
    if url.startswith(_SENTINEL):
        return _of_sentinels(url)
    if url.startswith(_CLUSTER):
        return _of_cluster(url)
    if not url.startswith(_SERVER):
        raise InvalidValue(f"must be embedded, or a URL that starts with {', '.join(_SCHEMES[:-1])} or {_SCHEMES[-1]}")
    if not _is_complete(url):
        raise InvalidValue(_UNIX if url.startswith("unix:") else _TCP)
    if not _client_accepts(url):
        raise InvalidValue(f"{_OPTION}; {PERCENT_ENCODE}")
    parts = urlsplit(url)
    return RedisAddress("server", url, (f"{parts.hostname}:{parts.port or _PORT}" if parts.hostname else parts.path,))


def _of_sentinels(url: str) -> RedisAddress:
    scheme, user, hosts, path, query = _divide(url, _SENTINEL_PORT, _OF_SENTINELS)
    master = _MASTER.fullmatch(path)
    if master is None:
        raise InvalidValue(_OF_SENTINELS)
    options = _options(query, _SENTINEL_OPTIONS)
    own = {name: value for name, value in options if name in _SENTINEL_OPTIONS}
    credentials = ""
    if own:
        name, password = (quote(own.get(one, ""), safe="") for one in _SENTINEL_OPTIONS)
        credentials = f"{name}:{password}@"
    shared = [(name, value) for name, value in options if name == "client_name" or name.startswith("ssl_")]
    sentinels = tuple(_single(scheme, credentials, host, "", shared) for host in hosts)
    others = [(name, value) for name, value in options if name not in _SENTINEL_OPTIONS]
    plain = _single(scheme, user, hosts[0], master["db"] or "", others)
    if not all(map(_is_complete, (plain, *sentinels))):
        raise InvalidValue(_OF_SENTINELS)
    if not _client_accepts(plain):
        raise InvalidValue(f"{_OPTION}{_OF_SENTINEL_OPTIONS}; {PERCENT_ENCODE}")
    return RedisAddress("sentinel", plain, hosts, sentinels, master["name"])


def _of_cluster(url: str) -> RedisAddress:
    scheme, user, hosts, path, query = _divide(url, _PORT, _OF_CLUSTER)
    options = _options(query, ())
    if path.strip("0") or any(name == "db" for name, _ in options):
        raise InvalidValue(_OF_CLUSTER)
    plain = _single(scheme, user, hosts[0], "", options)
    if not _is_complete(plain):
        raise InvalidValue(_OF_CLUSTER)
    if not _client_accepts(plain):
        raise InvalidValue(f"{_OPTION}{_OF_SENTINEL_OPTIONS}; {PERCENT_ENCODE}")
    return RedisAddress("cluster", plain, hosts)


def _divide(url: str, port: int, like: str) -> tuple[str, str, tuple[str, ...], str, str]:
    """Return scheme, user and password with '@', hosts with ports, path and query of a URL with several hosts."""
    scheme, _, rest = url.partition("://")
    head, _, query = rest.partition("?")
    authority, _, path = head.partition("/")
    user, at, names = authority.rpartition("@")
    found = [_HOST.fullmatch(name) for name in names.split(",")]
    ports = [int(match["port"] or port) if match else 0 for match in found]
    if "#" in url or not is_spelled_as_url(url) or not all(0 < one <= _MAX_PORT for one in ports):
        raise InvalidValue(like)
    hosts = tuple(f"{match['host']}:{one}" for match, one in zip(found, ports, strict=True) if match)
    if len(set(hosts)) < len(hosts):
        raise InvalidValue("names a host twice")
    return scheme.partition("+")[0], user + at, hosts, path, query


def _options(query: str, more: tuple[str, ...]) -> list[tuple[str, str]]:
    with suppress(ValueError):
        options = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        if all(name in (*_OPTIONS, *more) or name.startswith("ssl_") for name, _ in options):
            return options
    raise InvalidValue(f"{_OPTION}{_OF_SENTINEL_OPTIONS}; {PERCENT_ENCODE}")


def _single(scheme: str, user: str, host: str, db: str, options: list[tuple[str, str]]) -> str:
    query = f"?{urlencode(options, quote_via=quote)}" if options else ""
    return f"{scheme}://{user}{host}/{db}{query}"


def _is_complete(url: str) -> bool:
    """Return whether the URL names a host or a path and has no part that the client would ignore."""
    with suppress(ValueError):  # no port, or a half of an IPv6 address
        parts = urlsplit(url)
        if url.startswith("unix:"):
            has_address = parts.hostname is None and parts.port is None and len(parts.path) > 1
        else:
            has_address = bool(parts.hostname) and parts.port != 0 and re.fullmatch("/?[0-9]*", parts.path) is not None
        return has_address and "#" not in url and is_spelled_as_url(url)
    return False


def _client_accepts(url: str) -> bool:
    """Return whether the client accepts every option. It checks most of them only when it creates a connection."""
    # Imported here: `check` of an embedded Redis needs no client.
    from redis.asyncio import ConnectionPool
    from redis.exceptions import RedisError

    query = urlsplit(url).query
    with suppress(ValueError, TypeError, AttributeError, RedisError):
        options = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
        if all(name in _OPTIONS or name.startswith("ssl_") for name, _ in options):
            ConnectionPool.from_url(url).make_connection()  # type: ignore[no-untyped-call]
            return True
    return False
