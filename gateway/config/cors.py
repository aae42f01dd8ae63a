"""The section `cors` of the listeners."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from gateway.config.scalars import InvalidValue
from gateway.config.yaml_source import StrictModel

ANY_ORIGIN = "*"
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", re.ASCII)
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[a-z0-9._-]+|\[[0-9a-f:]+\])(:(?P<port>[0-9]{1,5}))?", re.ASCII
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def _header_name(value: str) -> str:
    if value == "*":
        raise InvalidValue("must be the name of a header. To allow all headers, authorization included, omit the list")
    if not _TOKEN.fullmatch(value):
        raise InvalidValue("must be the name of a header, like authorization")
    return value


HeaderName = Annotated[str, AfterValidator(_header_name)]


def _origin(value: str) -> str:
    if value == ANY_ORIGIN:
        return value
    if (match := _ORIGIN.fullmatch(value)) is None:
        raise InvalidValue(
            "must be an origin as browsers send it, like https://app.example.com or http://localhost:5173: in lower "
            "case, without a path, without a final slash, and without wildcards"
        )
    if match["port"] is not None and match["port"] == _DEFAULT_PORTS.get(match["scheme"]):
        raise InvalidValue(f"must not have the default port: browsers leave out :{match['port']}")
    return value


_Origin = Annotated[str, AfterValidator(_origin)]


class CorsSettings(StrictModel):
    """Access by scripts of web pages of other origins (CORS). Credentials such as cookies are never allowed."""

    origins: Annotated[tuple[_Origin, ...], Field(min_length=1, max_length=100)]
    """Origins of the pages, like https://app.example.com; `"*"`: all, on the public listener only."""
    headers: Annotated[tuple[HeaderName, ...], Field(min_length=1, max_length=100)] | None = None
    """Request headers that the pages may send. None: all."""

    @field_validator("origins")
    @classmethod
    def _any_alone(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        if ANY_ORIGIN in origins and len(origins) > 1:
            raise InvalidValue('has "*", which includes all other origins: remove them, or "*"')
        return origins
