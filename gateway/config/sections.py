"""The sections of config.yaml but for the models (models.py): what may stand in each, and what else holds.

Attributes carry their units (`_s` seconds, `_bytes`); YAML keys do not, since their values do ("30s", "8MB").
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator

from gateway.config.database_url import check_usage_url
from gateway.config.limits import BudgetRule, LimitsRule, OnRedisFailure
from gateway.config.redis_url import check_address
from gateway.config.scalars import (
    Duration,
    Flag,
    HttpBase,
    InvalidValue,
    Number,
    Reference,
    Secret,
    SecretOrText,
    Size,
    Whole,
    dereference,
    is_spelled_as_url,
    lasting,
    origin,
    sized,
)
from gateway.config.yaml_source import StrictModel

MAX_WORKERS = 256
Port = Annotated[Whole, Field(ge=0, le=65535)]


def _host(value: str) -> str:
    if not value or any(char.isspace() or char in "/@[]" for char in value):
        raise InvalidValue("must be an address to listen on, like 0.0.0.0, 127.0.0.1 or ::")
    # What has a colon is IPv6; what is all digits and dots is IPv4. All else may be a name.
    if ":" in value or value.replace(".", "").isdigit():
        try:
            ip_address(value)
        except ValueError:
            if value.count(":") == 1:
                raise InvalidValue("must be an address without its port, which stands beside it under port") from None
            raise InvalidValue("is no address that can be: write it like 0.0.0.0, 127.0.0.1 or ::") from None
    return value


Host = Annotated[str, BeforeValidator(lambda value: _host(value) if isinstance(value, str) else value)]


class ServerSettings(StrictModel):
    """The callers' listener. Port 0 takes any free port."""

    host: Host = "0.0.0.0"  # noqa: S104  a gateway is there to be reached; admin stays at home
    """The address to listen on; 0.0.0.0: every IPv4 address of this machine."""
    port: Port = 8080
    """The port; 0 takes any free one."""
    max_body_bytes: Annotated[Size, sized("1kB", "1GB")] = Field(8_000_000, alias="max_body")
    """A larger request gets 413."""
    drain_timeout_s: Annotated[Duration, lasting("0s", "1h")] = Field(30.0, alias="drain_timeout")
    """At shutdown, how long open requests may take to finish."""
    max_in_flight: Annotated[Whole, Field(ge=1, le=1_000_000)] = 1024
    """Requests in each worker. A tenant below its fair share is admitted up to twice as many (docs/policies.md)."""
    max_connections: Annotated[Whole, Field(ge=1, le=1_000_000)] = 4096
    """Open connections of callers in each worker."""
    workers: Annotated[Whole, Field(ge=1, le=MAX_WORKERS)] = 1
    """Processes that share the ports."""


_SHORTEST_KEY = 16


class AdminSettings(StrictModel):
    """The operators' listener: metrics, queues, readiness in detail, and the admin API."""

    host: Host = "127.0.0.1"
    """The address to listen on. Keep it private."""
    port: Port = 8081
    """The port; 0 takes any free one."""
    key: Secret | None = None
    """What whoever asks for more than probes, metrics and queues must show. None: nobody can."""

    @field_validator("key")
    @classmethod
    def _hard_to_guess(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key.get_secret_value()) < _SHORTEST_KEY:
            raise InvalidValue(f"must have at least {_SHORTEST_KEY} characters: openssl rand -hex 24 makes one")
        return key


_LEASE_TIMEOUTS = 4


class RedisSettings(StrictModel):
    """Where the replicas meet. "embedded" starts one here."""

    url: SecretOrText = SecretStr("embedded")
    """embedded, redis://, rediss:// or unix://; with a password in it env:NAME."""
    prefix: str = "gkt"
    """How its keys begin; gateways that share a Redis and not their work need two."""
    timeout_s: Annotated[Duration, lasting("10ms", "10s")] = Field(0.2, alias="timeout")
    """How long one command may take."""
    lease_s: Annotated[Duration, lasting("1s", "1h")] = Field(10.0, alias="lease", validate_default=True)
    """How long a process that is not heard of keeps what it holds: tickets, permits, requests under way."""
    on_failure: OnRedisFailure = "degrade"
    """While Redis is away: admit within a local part of limits and budgets, admit uncounted, or answer 503."""

    @field_validator("url")
    @classmethod
    def _can_be_read(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        if text != "embedded":
            check_address(text)
        return url

    @field_validator("lease_s")
    @classmethod
    def _outlasts_a_command(cls, lease_s: float, info: ValidationInfo) -> float:
        timeout_s = info.data.get("timeout_s", 0.0)
        if lease_s < _LEASE_TIMEOUTS * timeout_s:
            raise InvalidValue(
                f"must be at least {_LEASE_TIMEOUTS} times redis.timeout, which is {timeout_s:g}s: "
                "one slow command would lose it"
            )
        return lease_s

    @field_validator("prefix")
    @classmethod
    def _plain_prefix(cls, prefix: str) -> str:
        if not (0 < len(prefix) <= 32 and prefix.isascii() and prefix.replace("-", "").replace("_", "").isalnum()):
            raise InvalidValue("must be 1 to 32 letters, digits, - or _")
        return prefix


class ReceiptSettings(StrictModel):
    """What Redis keeps of each request."""

    ttl_s: Annotated[Duration, lasting("1m", "30d")] = Field(86_400.0, alias="ttl")
    """Time for which Redis keeps a receipt, and a device may report. The usage database has older receipts."""
    max_buffered: Annotated[Whole, Field(ge=1_000, le=100_000_000)] = 200_000
    """Receipts in Redis, of all tenants, that wait for a usage worker. Beyond, the oldest of the tenants with most are
    deleted."""
    spool_bytes: Annotated[Size, sized("1MB", "100GB")] = Field(64_000_000, alias="spool")
    """What each process may write to disk while Redis is away, for receipts to outlive it."""


class UsageSettings(StrictModel):
    """The database of receipts and of their sums. `gkt-gateway usage-worker` writes it."""

    url: SecretOrText = SecretStr("sqlite")
    """sqlite (a file in the folder data), or an address like postgresql://host/name; with a password in it env:NAME."""
    keep_s: Annotated[Duration, lasting("1d", "3660d")] | None = Field(400 * 86_400.0, alias="keep")
    """How long receipts are kept; null: for ever."""
    minutes_s: Annotated[Duration, lasting("1h", "2d")] = Field(6 * 3600.0, alias="minutes")
    """How long sums by the minute are kept."""
    hours_s: Annotated[Duration, lasting("2d", "100d")] = Field(14 * 86_400.0, alias="hours")
    """How long sums by the hour are kept."""
    days_s: Annotated[Duration, lasting("30d", "3660d")] = Field(400 * 86_400.0, alias="days")
    """How long sums by the day, in UTC, are kept."""
    max_rows: Annotated[Whole, Field(ge=10, le=100_000)] = 1_000
    """Separate sums of each tenant and period: by key, route, mode, teacher and student. Others count together."""
    run: Literal["host", "command"] = "host"
    """host: `gkt-gateway serve` runs one usage worker. command: you run `gkt-gateway usage-worker`."""

    @field_validator("url")
    @classmethod
    def _valid_url(cls, url: SecretStr) -> SecretStr:
        check_usage_url(url.get_secret_value())
        return url


class MetricsSettings(StrictModel):
    """How much is told apart in metrics."""

    max_tenants: Annotated[Whole, Field(ge=1, le=100_000)] = 1000
    """Tenants with series of their own; the others count together."""


class RequestLogSettings(StrictModel):
    """Which requests have a line in the log. Those that failed, were given up, went unguided because something failed
    or are slow always have theirs."""

    sample: Annotated[Number, Field(ge=0, le=1)] = 1.0
    """What part of all other requests; chosen by their ids, so that every process would choose the same."""
    slow_s: Annotated[Duration, lasting("1ms", "1h")] | None = Field(10.0, alias="slow")
    """From this long on a request is slow; null: none is."""


def _header(value: object, info: ValidationInfo) -> SecretStr:
    """As a secret, but there may be spaces in it: `Bearer ...`."""
    if isinstance(value, SecretStr):
        return value
    source = origin(info)
    text = dereference(value, source) if source and isinstance(value, str) else None
    if text is None:
        raise InvalidValue("a header's value must not stand in this file: write env:NAME or file:/path")
    if not (text.isascii() and text.isprintable()):
        raise InvalidValue("holds a character that cannot travel in a header")
    return SecretStr(text)


def _headers_name(value: str) -> str:
    if not _TOKEN.fullmatch(value):
        raise InvalidValue("must be the name of a header, like authorization")
    return value


_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", re.ASCII)
_HeaderName = Annotated[str, AfterValidator(_headers_name)]
_HeaderValue = Annotated[SecretStr, BeforeValidator(_header, json_schema_input_type=Reference)]


class TracingSettings(StrictModel):
    """OpenTelemetry: the spans of each request, to a collector that speaks OTLP over HTTP."""

    endpoint: HttpBase | None = None
    """The collector's address without /v1/traces, like http://otel:4318. None: there are no traces, and none of the
    cost."""
    headers: dict[_HeaderName, _HeaderValue] = Field({}, max_length=16)
    """What goes with each export, such as a key: references, env:NAME or file:/path."""
    sample: Annotated[Number, Field(ge=0, le=1)] = 1.0
    """The part of the traces that begin here which is sent."""
    service: Annotated[str, Field(min_length=1, max_length=255)] = "gkt-gateway"
    """What the gateway is called there."""
    follow_callers: Flag = True
    """Whether a caller's traceparent is followed: its trace goes on here, and is sent if it says so."""
    tell_engines: Flag = True
    """Whether calls to engines carry a traceparent."""
    max_queue: Annotated[Whole, Field(ge=64, le=1_000_000)] = 8192
    """Spans of one process that may wait to be sent; those beyond are dropped, and counted."""
    timeout_s: Annotated[Duration, lasting("100ms", "1m")] = Field(10.0, alias="timeout")
    """How long the collector may take for one export, retries included."""


class LogSettings(StrictModel):
    """`auto`: for eyes on a terminal, JSON lines elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least that is logged."""
    format: Literal["auto", "json", "console"] = "auto"
    """For eyes, for machines, or whichever fits."""
    requests: RequestLogSettings = RequestLogSettings()
    """Which requests have a line."""


class Defaults(StrictModel):
    """What holds for tenants and keys whose policy says nothing of it."""

    limits: LimitsRule = LimitsRule()
    """Of a tenant: all its keys together."""
    key_limits: LimitsRule = LimitsRule()
    """Of each key."""
    budget: BudgetRule | None = None
    """Of a tenant: all its keys together."""
    key_budget: BudgetRule | None = None
    """Of each key."""


class AlertSettings(StrictModel):
    """Who is told of budgets."""

    webhook: SecretOrText | None = None
    """An http(s) address to which events are posted as JSON. It may hold a token."""
    webhook_secret: Secret | None = None
    """Signs what is posted there."""

    @field_validator("webhook")
    @classmethod
    def _an_address(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not _is_http(url.get_secret_value()):
            raise InvalidValue(
                "must be an address like https://host/path, or a reference to one: env:NAME or file:/path"
            )
        return url


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        whole = bool(parts.hostname) and parts.port != 0 and is_spelled_as_url(url)
        return parts.scheme in {"http", "https"} and whole
    except ValueError:
        return False
