"""The address of the usage database, checked before anything connects. It may hold a password: no message quotes it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.config.scalars import InvalidValue, is_spelled_as_url

if TYPE_CHECKING:
    from pathlib import Path

USAGE_FILE = "usage.db"
"""The file in the folder `data`, where usage.url is only `sqlite`."""
ARCHIVE_FILE = "gkt-archive.db"
"""The archive of the previous version in the folder `data`, where archive.url was only `sqlite`."""
_ENCODE = "percent-encode what is special in the password: / is %2F, ? is %3F, # is %23, @ is %40"
_SCHEMES = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}


def check_usage_url(url: str) -> None:
    """Raise Wrong for an address that is none of SQLite or PostgreSQL."""
    if url == "sqlite":
        return
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        whole = url.startswith("sqlite:///") and len(url) > len("sqlite:///") and url.isprintable()
        if not whole or "?" in url or "#" in url:
            raise InvalidValue("must name a file, like sqlite:////var/lib/gkt/usage.db: without one write sqlite alone")
    elif scheme in _SCHEMES:
        with suppress(ValueError):  # no port, or a half of an IPv6 address
            parts = urlsplit(url)
            whole = parts.port != 0 and len(parts.path) > 1 and is_spelled_as_url(url)
            if whole and "//" in url and not parts.fragment:
                return
        raise InvalidValue(
            f"cannot be read: write it like postgresql://USER:PASSWORD@HOST:5432/DATABASE, and {_ENCODE}"
        )
    else:
        raise InvalidValue("must be sqlite, or an address that starts with sqlite:/// or postgresql://")


def is_postgres(url: str) -> bool:
    """Return whether an address is one of PostgreSQL, which needs an extra."""
    return url.partition(":")[0] in _SCHEMES


def address_of(url: str, data: Path, file: str = USAGE_FILE) -> str:
    """Return the URL for SQLAlchemy. A relative path is one in the folder `data`.

    Args:
        file: the name of the file where the URL is only `sqlite`.
    """
    if url == "sqlite":
        return f"sqlite:///{data / file}"
    if url.startswith("sqlite:///"):
        return f"sqlite:///{data / url.removeprefix('sqlite:///')}"
    scheme, _, rest = url.partition(":")
    return f"{_SCHEMES[scheme]}:{rest}"


def shown(address: str) -> str:
    """Return an address without its user, password and options."""
    if address.startswith("sqlite:///"):
        return address
    parts = urlsplit(address)
    host = parts.hostname or "(local)"
    return f"postgresql://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
