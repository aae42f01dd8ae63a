"""Where the archive is: an address, looked at before anything connects. It may hold a password: nothing quotes it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.units import Wrong, is_spelled_as_url

if TYPE_CHECKING:
    from pathlib import Path

FILE = "gkt-archive.db"
"""What the file in the folder `data` is called, where the address is only `sqlite`."""
USAGE_FILE = "usage.db"
"""The file of the usage database in the folder `data`, where usage.url is only `sqlite`."""
_ENCODE = "percent-encode what is special in the password: / is %2F, ? is %3F, # is %23, @ is %40"
_SCHEMES = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}


def check_archive(url: str) -> None:
    """Raises Wrong for an address that is none of SQLite or PostgreSQL."""
    if url == "sqlite":
        return
    scheme = url.partition(":")[0]
    if scheme == "sqlite":
        whole = url.startswith("sqlite:///") and len(url) > len("sqlite:///") and url.isprintable()
        if not whole or "?" in url or "#" in url:
            raise Wrong("must name a file, like sqlite:////var/lib/gkt/archive.db: without one write sqlite alone")
    elif scheme in _SCHEMES:
        with suppress(ValueError):  # no port, or a half of an IPv6 address
            parts = urlsplit(url)
            whole = parts.port != 0 and len(parts.path) > 1 and is_spelled_as_url(url)
            if whole and "//" in url and not parts.fragment:
                return
        raise Wrong(f"cannot be read: write it like postgresql://USER:PASSWORD@HOST:5432/DATABASE, and {_ENCODE}")
    else:
        raise Wrong("must be sqlite, an address that starts with sqlite:/// or postgresql://, or null")


def is_postgres(url: str) -> bool:
    """Whether an address is of PostgreSQL, which needs an extra."""
    return url.partition(":")[0] in _SCHEMES


def address_of(url: str, data: Path, file: str = FILE) -> str:
    """The address as SQLAlchemy takes it. A file without a whole path lies in the folder `data`.

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
    """What may be said of an address: without its user, password and options."""
    if address.startswith("sqlite:///"):
        return address
    parts = urlsplit(address)
    host = parts.hostname or "(local)"
    return f"postgresql://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"
