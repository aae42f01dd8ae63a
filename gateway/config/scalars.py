"""The scalars that YAML may say: durations, sizes, money, numbers, secrets, addresses.

A value out of a YAML file is validated with a context and must carry its unit ("30s", "8MB"); references to secrets
are followed when that context is an `ValueOrigin`. Python code builds the same models without a context and gives plain
numbers: seconds, bytes, `Decimal` USD.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from typing import TYPE_CHECKING, Annotated, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, Strict, ValidationInfo

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import GetJsonSchemaHandler
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import CoreSchema

_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE_UNITS = {unit.lower(): factor for unit, factor in _BYTES.items()}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9._:/-]{1,128}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_MAX_USD = Decimal(1_000_000)
_MAX_RATE = Decimal(1_000_000_000)
_MAX_DIGITS = 24


@dataclass(frozen=True, slots=True)
class ValueOrigin:
    """Where a YAML value came from: `environ` answers `env:NAME`, `folder` anchors relative paths."""

    environ: Mapping[str, str]
    folder: Path


class InvalidValue(ValueError):
    """A value that is wrong in a way that names its mend; `suggestion` is the nearest right value."""

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.suggestion = suggestion


def origin(info: ValidationInfo) -> ValueOrigin | None:
    """Where references of this value are looked up; None if they are not followed."""
    return info.context if isinstance(info.context, ValueOrigin) else None


def duration_s(text: str) -> float:
    """ "250ms", "30s", "5m", "1h", "1d" -> seconds."""
    found = _AMOUNT.fullmatch(text)
    if found is None or found[2] not in _SECONDS:
        raise InvalidValue("must be a duration: a number with ms, s, m, h or d, like 250ms or 30s")
    return float(Decimal(found[1]) * _SECONDS[found[2]])


def size_bytes(text: str) -> int:
    """ "8MB" (10^6), "512kB" (10^3), "8MiB" (2^20) -> bytes."""
    found = _AMOUNT.fullmatch(text)
    factor = _SIZE_UNITS.get(found[2].lower()) if found else None
    if found is None or factor is None:
        raise InvalidValue("must be a size: a number with B, kB, MB, GB, KiB, MiB or GiB, like 8MB")
    size = Decimal(found[1]) * factor
    if size != int(size):
        raise InvalidValue("must be a whole number of bytes")
    return int(size)


def read_duration(value: object, info: ValidationInfo) -> float:
    """Return the seconds that a YAML value says. Raises Wrong."""
    if isinstance(value, str):
        return duration_s(value)
    if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and info.context is None):
        return float(value)
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        raise InvalidValue(f"a duration needs its unit (ms, s, m, h, d): write {value}s if you mean seconds")
    raise InvalidValue("must be a duration: a number with ms, s, m, h or d, like 250ms or 30s")


def _size(value: object, info: ValidationInfo) -> int:
    if isinstance(value, str):
        return size_bytes(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if info.context is not None:
            raise InvalidValue(
                f"a size needs its unit (B, kB, MB, GB, KiB, MiB, GiB): write {value}B if you mean bytes"
            )
        return value
    raise InvalidValue("must be a size: a number with B, kB, MB, GB, KiB, MiB or GiB, like 8MB")


def _number(value: object) -> float:
    with suppress(OverflowError):
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool) and isfinite(value):
            return float(value)
    raise InvalidValue("must be a number, without quotes")


def _usd(value: object) -> Decimal:
    amount = _exact(value, "must be an amount in USD: a number without quotes, like 0.90")
    if not 0 <= amount <= _MAX_USD:
        raise InvalidValue(f"must be between 0 and {_MAX_USD} USD")
    return amount


def _rate(value: object) -> Decimal:
    rate = _exact(value, "must be a number, without quotes, like 9000")
    if not 0 < rate <= _MAX_RATE:
        raise InvalidValue(f"must be more than 0 and at most {_MAX_RATE}")
    return rate


def _exact(value: object, message: str) -> Decimal:
    """The number as it was written. A binary float has lost that already, so it is refused."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not Decimal(value).is_finite():
        raise InvalidValue(message)
    number = Decimal(value)
    if len(number.as_tuple().digits) > _MAX_DIGITS or number.adjusted() < -_MAX_DIGITS:
        raise InvalidValue(f"must have at most {_MAX_DIGITS} digits")
    return number


def lasting(low: str, high: str) -> AfterValidator:
    """A duration between `low` and `high`, both included and written as in YAML."""
    least_s, most_s = duration_s(low), duration_s(high)

    def check(value_s: float) -> float:
        if not least_s <= value_s <= most_s:
            raise InvalidValue(f"must be between {low} and {high}")
        return value_s

    return AfterValidator(check)


def sized(low: str, high: str) -> AfterValidator:
    """A size between `low` and `high`, both included and written as in YAML."""
    least, most = size_bytes(low), size_bytes(high)

    def check(value: int) -> int:
        if not least <= value <= most:
            raise InvalidValue(f"must be between {low} and {high}")
        return value

    return AfterValidator(check)


def dereference(value: str, source: ValueOrigin) -> str | None:
    """The secret that `value` refers to; None if it is not a reference. Messages name the reference only."""
    for prefix in ("env:", "os.environ/"):
        if value.startswith(prefix):
            return _from_environment(value.removeprefix(prefix), source)
    if value.startswith("file:"):
        return _from_file(value.removeprefix("file:"), source)
    return None


def _from_environment(name: str, source: ValueOrigin) -> str:
    if not _VARIABLE.fullmatch(name):
        raise InvalidValue("must name an environment variable, like env:TEACHER_KEY")
    if name not in source.environ:
        raise InvalidValue(f"the environment variable {name} is not set: set it, or correct its name here")
    if not source.environ[name].strip():
        raise InvalidValue(f"the environment variable {name} is empty")
    return source.environ[name].strip()


def _from_file(name: str, source: ValueOrigin) -> str:
    try:
        text = (source.folder / name).read_bytes().decode().strip()
    except OSError as error:
        raise InvalidValue(f"cannot read {name}: {(error.strerror or 'error').lower()}") from None
    except ValueError:
        raise InvalidValue(f"{name} does not hold UTF-8 text") from None
    if not text:
        raise InvalidValue(f"{name} is empty")
    return text


def _secret(value: object, info: ValidationInfo) -> SecretStr:
    if isinstance(value, SecretStr):
        return value
    source = origin(info)
    if not isinstance(value, str):
        raise InvalidValue("must be a reference to a secret: env:NAME or file:/path")
    text = dereference(value, source) if source else value if info.context is None else None
    if text is None:
        raise InvalidValue("a secret must not stand in this file: write env:NAME or file:/path")
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise InvalidValue("the secret holds a space or another character that cannot travel in a header")
    return SecretStr(text)


def _secret_or_text(value: object, info: ValidationInfo) -> SecretStr:
    if isinstance(value, SecretStr):
        return value
    if not isinstance(value, str):
        raise InvalidValue("must be text, or a reference: env:NAME or file:/path")
    source = origin(info)
    return SecretStr((dereference(value, source) if source else None) or value)


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise InvalidValue("must be 1 to 128 letters, digits or any of . _ : / -")
    return value


def is_spelled_as_url(value: str) -> bool:
    """Return whether a URL holds only characters that a URL can hold: no spaces, no control characters, no NUL."""
    return value.isprintable() and not any(char.isspace() for char in value)


def _http_base(value: str) -> str:
    if not is_spelled_as_url(value):
        raise InvalidValue("must not hold a space, a NUL or another control character: write it like http://host:8080")
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidValue("must be an address like http://host:8080") from None
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise InvalidValue(
            "must not hold a user name or a password: a key stands in a field of its own, api_key or headers"
        )
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        raise InvalidValue("must be an address like http://host:8080 or https://host/v1")
    if "?" in value or "#" in value:
        raise InvalidValue("must end with its path: no '?' and no '#'")
    return value.rstrip("/")


class TextPattern:
    """How a text is spelt, as a regular expression, for JSON Schema alone: what checks it says more."""

    def __init__(self, pattern: str) -> None:
        self._pattern = f"^({pattern})$"

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "pattern": self._pattern}


# What an editor is told that YAML may say: its own spelling of a value, not Python's.
DurationText: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d)$")]
_SizeText: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)? ?([kKmMgG]?[bB]|[kKmMgG][iI][bB])$")]
_Dollars: TypeAlias = Annotated[float, Field(ge=0, le=int(_MAX_USD))]
_PerSecond: TypeAlias = Annotated[float, Field(gt=0, le=int(_MAX_RATE))]
Reference: TypeAlias = Annotated[str, Field(pattern=r"^(env:|os\.environ/|file:).+$")]
"""A reference to a secret, as YAML spells it."""

Duration: TypeAlias = Annotated[float, BeforeValidator(read_duration, json_schema_input_type=DurationText)]
"""Seconds."""
Size: TypeAlias = Annotated[int, BeforeValidator(_size, json_schema_input_type=_SizeText)]
"""Bytes."""
Usd: TypeAlias = Annotated[Decimal, BeforeValidator(_usd, json_schema_input_type=_Dollars)]
"""USD, exactly as written; 0 to 1,000,000."""
Rate: TypeAlias = Annotated[Decimal, BeforeValidator(_rate, json_schema_input_type=_PerSecond)]
"""Tokens per second; more than 0."""
Number: TypeAlias = Annotated[float, BeforeValidator(_number)]
Whole: TypeAlias = Annotated[int, Strict()]
Flag: TypeAlias = Annotated[bool, Strict()]
Secret: TypeAlias = Annotated[SecretStr, BeforeValidator(_secret, json_schema_input_type=Reference)]
"""Out of YAML only by reference; never shown."""
SecretOrText: TypeAlias = Annotated[SecretStr, BeforeValidator(_secret_or_text, json_schema_input_type=str)]
"""A reference or the text itself; never shown either way."""
Name: TypeAlias = Annotated[str, AfterValidator(_name), TextPattern(_NAME.pattern)]
"""What a model or a route may be called: [A-Za-z0-9._:/-], 1 to 128."""
HttpBase: TypeAlias = Annotated[str, AfterValidator(_http_base), TextPattern("https?://[^?#@ ]+")]
"""http(s) address without user, query, fragment or closing slash."""
