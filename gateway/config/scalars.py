"""Scalar types of YAML files: durations, sizes, money, numbers, secrets, addresses.

Values from a YAML file are validated with a context and must carry their unit ("30s", "8MB"). References to secrets
are resolved if that context is a `ValueOrigin`. Python code builds the same models without a context, from plain
numbers: seconds, bytes, `Decimal` USD.
"""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, Strict, ValidationInfo

from gateway.config.variables import Substituted, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_UNITS = {86_400: "d", 3600: "h", 60: "m", 1: "s"}
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE_UNITS = {unit.lower(): factor for unit, factor in _BYTES.items()}
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)", re.ASCII)
NAME = re.compile(r"[A-Za-z0-9._:/-]{1,128}", re.ASCII)
ANY_NAME = "*"
"""Name of a route for all models that no other route names."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_MAX_USD = Decimal(1_000_000)
_MAX_RATE = Decimal(1_000_000_000)
_MAX_DIGITS = 24
_VARIABLE_REFERENCES = ("env:", "os.environ/")
_REFERENCES = (*_VARIABLE_REFERENCES, "file:")
# An unencoded password ends at its first / ? or #, and the rest is misread as another part of the URL.
PERCENT_ENCODE = "percent-encode special characters in the password: / is %2F, ? is %3F, # is %23, @ is %40"


class ValueOrigin(NamedTuple):
    """Origin of a YAML value: `environ` resolves `env:NAME`, `folder` is the base of relative paths."""

    environ: Mapping[str, str]
    folder: Path


class InvalidValue(ValueError):
    """A value is invalid. The message names the correction; `suggestion` is the nearest valid value."""

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.suggestion = suggestion


def origin(info: ValidationInfo) -> ValueOrigin | None:
    """Return where references of this value are resolved, or None if they are not resolved."""
    return info.context if isinstance(info.context, ValueOrigin) else None


def duration_s(text: str) -> float:
    """Return the seconds of a duration like "250ms", "30s", "5m", "1h" or "1d". Raises InvalidValue."""
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2] not in _SECONDS:
        raise InvalidValue("must be a duration: a number with ms, s, m, h or d, like 250ms or 30s")
    return float(Decimal(match[1]) * _SECONDS[match[2]])


def duration_text(seconds: float) -> str:
    """Return a duration in the notation of settings: 400d, 36h, 90s."""
    unit_s = next((unit for unit in _UNITS if seconds >= unit and seconds % unit == 0), 1)
    return f"{seconds / unit_s:.15g}{_UNITS[unit_s]}"


def size_bytes(text: str) -> int:
    """Return the bytes of a size like "8MB" (10^6), "512kB" (10^3) or "8MiB" (2^20). Raises InvalidValue."""
    match = _AMOUNT.fullmatch(text)
    factor = _SIZE_UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise InvalidValue("must be a size: a number with B, kB, MB, GB, KiB, MiB or GiB, like 8MB")
    size = Decimal(match[1]) * factor
    if size != int(size):
        raise InvalidValue("must be a whole number of bytes")
    return int(size)


def read_duration(value: object, info: ValidationInfo) -> float:
    """Return the seconds of a YAML value. Raises InvalidValue."""
    if isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and info.context is None):
        return float(value)
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        raise InvalidValue(f"a duration needs its unit (ms, s, m, h, d): write {value}s if you mean seconds")
    return duration_s(value if isinstance(value, str) else "")


def _size(value: object, info: ValidationInfo) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        return size_bytes(value if isinstance(value, str) else "")
    if info.context is not None:
        raise InvalidValue(f"a size needs its unit (B, kB, MB, GB, KiB, MiB, GiB): write {value}B if you mean bytes")
    return value


def _number(value: object) -> float:
    value = plain(value)
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
    """Return the number exactly as written. Binary floats are rejected: they have lost the written digits."""
    value = plain(value)
    if isinstance(value, bool) or not isinstance(value, int | Decimal) or not Decimal(value).is_finite():
        raise InvalidValue(message)
    number = Decimal(value)
    if len(number.as_tuple().digits) > _MAX_DIGITS or number.adjusted() < -_MAX_DIGITS:
        raise InvalidValue(f"must have at most {_MAX_DIGITS} digits")
    return number


def _between(parse: Callable[[str], float], low: str, high: str) -> AfterValidator:
    minimum, maximum = parse(low), parse(high)

    def check(value: float) -> float:
        if not minimum <= value <= maximum:
            raise InvalidValue(f"must be between {low} and {high}")
        return value

    return AfterValidator(check)


duration_between = partial(_between, duration_s)
"""Return a validator of durations from `low` to `high`, both inclusive and written as in YAML."""
size_between = partial(_between, size_bytes)
"""Return a validator of sizes from `low` to `high`, both inclusive and written as in YAML."""


def dereference(value: str, source: ValueOrigin) -> str | None:
    """Return the secret that `value` refers to, or None if it is not a reference. Raises InvalidValue, which contains
    the reference only, if it cannot be resolved. A text with the value of a variable is a secret from the environment,
    unless the file itself has a reference there, like file:${FOLDER}/key."""
    if isinstance(value, Substituted) and not value.written.startswith(_REFERENCES):
        return str(value) if value.values else None
    for prefix in _VARIABLE_REFERENCES:
        if value.startswith(prefix):
            return _from_environment(value.removeprefix(prefix), source)
    if not value.startswith("file:"):
        return None
    name = value.removeprefix("file:")
    try:
        text = (source.folder / name).read_bytes().decode().strip()
    except OSError as error:
        raise InvalidValue(f"cannot read {name}: {(error.strerror or 'error').lower()}") from None
    except ValueError:
        raise InvalidValue(f"{name} is not UTF-8 text") from None
    if not text:
        raise InvalidValue(f"{name} is empty")
    return text


def _from_environment(name: str, source: ValueOrigin) -> str:
    if not _VARIABLE.fullmatch(name):
        raise InvalidValue("must name an environment variable, like env:TEACHER_KEY")
    if name not in source.environ:
        raise InvalidValue(f"the environment variable {name} is not set: set it, or correct the name")
    if not source.environ[name].strip():
        raise InvalidValue(f"the environment variable {name} is empty")
    return source.environ[name].strip()


def secret_of(value: object, info: ValidationInfo, *, spaces: bool) -> SecretStr:
    """Return the secret that a reference names, for a header, with `spaces` or without. Raises InvalidValue."""
    if isinstance(value, SecretStr):
        return value
    source = origin(info)
    if not isinstance(value, str):
        raise InvalidValue("must be a reference to a secret: env:NAME or file:/path")
    text = dereference(value, source) if source else value if info.context is None else None
    if text is None:
        raise InvalidValue("a secret must not be written in this file: write env:NAME or file:/path")
    if not (text.isascii() and text.isprintable() and (spaces or " " not in text)):
        what = "a character" if spaces else "a space or another character"
        raise InvalidValue(f"the secret contains {what} that is not allowed in a header")
    return SecretStr(text)


_secret = partial(secret_of, spaces=False)


def _secret_or_text(value: object, info: ValidationInfo) -> SecretStr:
    if isinstance(value, SecretStr):
        return value
    if not isinstance(value, str):
        raise InvalidValue("must be text, or a reference: env:NAME or file:/path")
    source = origin(info)
    return SecretStr((dereference(value, source) if source else None) or str(value))


def file_path(value: object, info: ValidationInfo) -> Path:
    """Return the path of a file. A relative path of a YAML file is relative to its folder. Raises InvalidValue."""
    source = origin(info)
    path = Path(value) if isinstance(value, str | Path) and str(value) else None
    if path is None:
        raise InvalidValue("must be the path of a file")
    return source.folder / path if source else path


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise InvalidValue("must be 1 to 128 letters, digits or any of . _ : / -")
    return value


def _route_name(value: str) -> str:
    if value != ANY_NAME and not NAME.fullmatch(value):
        raise InvalidValue("must be 1 to 128 letters, digits or any of . _ : / -, or '*' for every other model")
    return value


def _moment(value: object) -> float:
    """Return the Unix seconds of a date and time, or of the end of a date in UTC."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        text = value if isinstance(value, str) else ""
        if len(text) == len("2027-06-30"):
            text = (date.fromisoformat(text) + timedelta(days=1)).isoformat()
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise InvalidValue("must be a date like 2027-06-30, or a time like 2027-06-30T12:00:00Z") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def is_spelled_as_url(value: str) -> bool:
    """Return whether `value` has only characters that a URL can have: no spaces and no control characters."""
    return value.isprintable() and not any(char.isspace() for char in value)


def _http_base(value: str) -> str:
    if not is_spelled_as_url(value):
        raise InvalidValue("must not contain a space or a control character: write it like http://host:8080")
    try:
        parts = urlsplit(value)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise InvalidValue("must be an address like http://host:8080") from None
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise InvalidValue("must not contain a user name or a password: put the key into api_key or headers")
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        raise InvalidValue("must be an address like http://host:8080 or https://host/v1")
    if "?" in value or "#" in value:
        raise InvalidValue("must not contain '?' or '#'")
    return value.rstrip("/")


def text_pattern(pattern: str) -> Any:
    """Return a pattern of a text, for the JSON Schema only. The validator has the better message."""
    return Field(json_schema_extra={"pattern": f"^({pattern})$"})


# Types of the JSON Schema: the spelling of a value in YAML, not in Python.
DurationText: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)? ?(ms|s|m|h|d)$")]
_SizeText: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)? ?([kKmMgG]?[bB]|[kKmMgG][iI][bB])$")]
_Dollars: TypeAlias = Annotated[float, Field(ge=0, le=int(_MAX_USD))]
_PerSecond: TypeAlias = Annotated[float, Field(gt=0, le=int(_MAX_RATE))]
Reference: TypeAlias = Annotated[str, Field(pattern=r"^(env:|os\.environ/|file:).+$")]
"""A reference to a secret, as written in YAML."""

Duration: TypeAlias = Annotated[float, BeforeValidator(read_duration, json_schema_input_type=DurationText)]
"""Seconds."""
Size: TypeAlias = Annotated[int, BeforeValidator(_size, json_schema_input_type=_SizeText)]
"""Bytes."""
Usd: TypeAlias = Annotated[Decimal, BeforeValidator(_usd, json_schema_input_type=_Dollars)]
"""USD, exactly as written; 0 to 1,000,000."""
Rate: TypeAlias = Annotated[Decimal, BeforeValidator(_rate, json_schema_input_type=_PerSecond)]
"""Tokens per second; more than 0."""
Number: TypeAlias = Annotated[float, BeforeValidator(_number)]
Whole: TypeAlias = Annotated[int, Strict(), BeforeValidator(plain)]
Flag: TypeAlias = Annotated[bool, Strict(), BeforeValidator(plain)]
Secret: TypeAlias = Annotated[SecretStr, BeforeValidator(_secret, json_schema_input_type=Reference)]
"""A secret; in YAML only as a reference. It is never printed."""
SecretOrText: TypeAlias = Annotated[SecretStr, BeforeValidator(_secret_or_text, json_schema_input_type=str)]
"""A secret as a reference or as plain text. It is never printed."""
Name: TypeAlias = Annotated[str, AfterValidator(_name), text_pattern(NAME.pattern)]
"""Name of a model or a route: 1 to 128 of [A-Za-z0-9._:/-]."""
RouteName: TypeAlias = Annotated[str, AfterValidator(_route_name), text_pattern(rf"\*|{NAME.pattern}")]
"""Name of a route: a Name, or * for every other model."""
HttpBase: TypeAlias = Annotated[str, AfterValidator(_http_base), text_pattern("https?://[^?#@ ]+")]
"""http(s) URL without user, query, fragment or trailing slash."""
_MomentText: TypeAlias = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]+(Z|[+-][0-9:]+)?)?$")]
Moment: TypeAlias = Annotated[float, BeforeValidator(_moment, json_schema_input_type=_MomentText)]
"""Unix seconds."""

_LABEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)
LABEL = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def _label(value: str) -> str:
    if not LABEL.fullmatch(value):
        raise InvalidValue("must be 1 to 64 letters, digits or any of . _ -")
    return value


Label: TypeAlias = Annotated[str, AfterValidator(_label), text_pattern(LABEL.pattern)]
"""A name in receipts, metrics and logs."""


def label_name(name: object) -> str:
    """Return the name of a label of requests. Raises InvalidValue."""
    if not isinstance(name, str) or not _LABEL_NAME.fullmatch(name):
        raise InvalidValue("a label's name is 1 to 32 of a-z, 0-9 and _, and begins with a letter: correct the name")
    return name


def label_names(labels: object) -> object:
    """Check the names of labels, so that an issue has the location of the whole mapping. Raises InvalidValue."""
    for name in labels if isinstance(labels, dict) else ():
        label_name(name)
    return labels


LabelName: TypeAlias = Annotated[str, BeforeValidator(label_name), text_pattern(_LABEL_NAME.pattern)]
"""The name of a label of requests, such as team."""
