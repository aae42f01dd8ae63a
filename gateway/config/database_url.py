"""URL of the usage database, validated before any connection. It may contain a password, so no message quotes it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.config.scalars import PERCENT_ENCODE, InvalidValue, is_spelled_as_url

if TYPE_CHECKING:
    from pathlib import Path

USAGE_FILE = "usage.db"
"""Name of the file in the folder `data` where usage.url is `sqlite`."""
_POSTGRES = {"postgresql", "postgres", "postgresql+psycopg"}


def check_usage_url(url: str) -> None:
    """Raise InvalidValue for a URL that is not valid for SQLite or PostgreSQL."""
    if url == "sqlite":
        return
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        has_file = url.startswith("sqlite:///") and len(url) > len("sqlite:///") and url.isprintable()
        if not has_file or "?" in url or "#" in url:
            raise InvalidValue("must name a file, like sqlite:////var/lib/gkt/usage.db, or be sqlite alone")
    elif scheme in _POSTGRES:
        with suppress(ValueError):  # no port, or a half of an IPv6 address
            parts = urlsplit(url)
            complete = parts.port != 0 and len(parts.path) > 1 and is_spelled_as_url(url)
            if complete and "//" in url and not parts.fragment:
                return
        raise InvalidValue(
            f"is not a valid URL: write it like postgresql://USER:PASSWORD@HOST:5432/DATABASE, and {PERCENT_ENCODE}"
        )
    else:
        raise InvalidValue("must be sqlite, or a URL that starts with sqlite:/// or postgresql://")


def check_replica_url(url: str, primary: str | None) -> None:
    """Raise InvalidValue unless both URLs name PostgreSQL and differ. `primary` is None if it is invalid."""
    if not is_postgres(url):
        raise InvalidValue("must be a URL that starts with postgresql://: only PostgreSQL has replicas")
    check_usage_url(url)
    if primary is not None and not is_postgres(primary):
        raise InvalidValue("needs a usage.url in PostgreSQL, of which it is a replica: remove read_url, or set url")
    if url == primary:
        raise InvalidValue("is the same as usage.url: set it to the replica, or remove it")


def is_postgres(url: str) -> bool:
    """Return whether a URL names PostgreSQL, which needs the extra `postgres`."""
    return url.partition(":")[0] in _POSTGRES


def sqlalchemy_url(url: str, data: Path) -> str:
    """Return the URL for SQLAlchemy. `data` is the folder of relative paths."""
    if url == "sqlite":
        return f"sqlite:///{data / USAGE_FILE}"
    if url.startswith("sqlite:///"):
        return f"sqlite:///{data / url.removeprefix('sqlite:///')}"
    return f"postgresql+psycopg:{url.partition(':')[2]}"


def without_credentials(address: str) -> str:
    """Return a SQLAlchemy URL without its user, password and options."""
    if address.startswith("sqlite:///"):
        return address
    parts = urlsplit(address)
    host = parts.hostname or "(local)"
    return f"postgresql://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
