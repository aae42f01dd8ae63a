"""Sections of config.yaml with their validation, except for the models (models.py).

Attribute names end in their units (`_s` seconds, `_bytes`). YAML keys do not, since YAML values have units ("30s").
"""

from __future__ import annotations

import re
from contextlib import suppress
from functools import partial
from ipaddress import ip_address
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator

from gateway.config.admin_oidc import OidcSettings
from gateway.config.cors import ANY_ORIGIN, CorsSettings, HeaderName
from gateway.config.database_url import check_replica_url, check_usage_url
from gateway.config.limits import BudgetRule, LimitsRule, OnRedisFailure
from gateway.config.redis_url import check_redis_url
from gateway.config.scalars import (
    Duration,
    Flag,
    HttpBase,
    InvalidValue,
    LabelName,
    Number,
    Reference,
    Secret,
    SecretOrText,
    Size,
    Whole,
    duration_between,
    is_spelled_as_url,
    secret_of,
    size_between,
)
from gateway.config.yaml_source import StrictModel

MAX_WORKERS = 256
MAX_PORT = 65535
_MIN_KEY_LENGTH = 16
_LEASE_TIMEOUTS = 4
_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.ASCII)

Port = Annotated[Whole, Field(ge=0, le=MAX_PORT)]


def _host(value: str) -> str:
    if not value or any(char.isspace() or char in "/@[]" for char in value):
        raise InvalidValue("must be an address to listen on, like 0.0.0.0, 127.0.0.1 or ::")
    # A value with a colon is IPv6, one of digits and dots IPv4. All others may be host names.
    if ":" in value or value.replace(".", "").isdigit():
        try:
            ip_address(value)
        except ValueError:
            if value.count(":") == 1:
                raise InvalidValue("must be an address without a port: use the key port") from None
            raise InvalidValue("is not a valid address: write it like 0.0.0.0, 127.0.0.1 or ::") from None
    return value


def _host_name(value: str) -> str:
    name = value.lower().removesuffix(".")
    if not _HOST_NAME.fullmatch(name):
        raise InvalidValue("must be a host name without scheme, port, path and wildcards, like gkt.example.com")
    return name


HostName = Annotated[str, AfterValidator(_host_name)]
Host = Annotated[str, BeforeValidator(lambda value: _host(value) if isinstance(value, str) else value)]


class ServerSettings(StrictModel):
    """Public listener for callers."""

    host: Host = "0.0.0.0"  # noqa: S104  callers come from other machines
    """Address to listen on; 0.0.0.0: every IPv4 address of this machine."""
    port: Port = 8080
    """Port; 0 selects any free port."""
    max_body_bytes: Annotated[Size, size_between("1kB", "1GB")] = Field(8_000_000, alias="max_body")
    """Largest request body. Larger requests get 413."""
    drain_timeout_s: Annotated[Duration, duration_between("0s", "1h")] = Field(30.0, alias="drain_timeout")
    """Time for open requests to finish at shutdown."""
    max_in_flight: Annotated[Whole, Field(ge=1, le=1_000_000)] = 1024
    """Most concurrent requests in each worker. A tenant below its fair share is admitted up to twice this number
    (`gkt-gateway docs policies`)."""
    max_connections: Annotated[Whole, Field(ge=1, le=1_000_000)] = 4096
    """Most open connections of callers in each worker."""
    workers: Annotated[Whole, Field(ge=1, le=MAX_WORKERS)] = 1
    """Processes that share the ports."""
    cors: CorsSettings | None = None
    """Web pages that may call this listener. None: none."""


class AdminSettings(StrictModel):
    """Listener for operators: metrics, queues, detailed readiness, and the admin API."""

    host: Host = "127.0.0.1"
    """Address to listen on. Keep it private."""
    port: Port = 8081
    """Port; 0 selects any free port."""
    hosts: Annotated[tuple[HostName, ...], Field(max_length=100)] = ()
    """Names by which clients reach this listener, like gkt.example.com. IP addresses, localhost, `host` and the name in
    `oidc.public_url` are always valid. A request for another name gets 421, which stops DNS rebinding."""
    key: Secret | None = None
    """Key for all requests except probes, metrics and queues. None: these requests are rejected."""
    cors: CorsSettings | None = None
    """Web pages that may call this listener with the admin key. None: only its own pages, by a session."""
    oidc: OidcSettings | None = None
    """Login of operators at an OpenID Connect provider, with roles. None: with the admin key only."""

    @field_validator("oidc")
    @classmethod
    def _can_sign(cls, oidc: OidcSettings | None, info: ValidationInfo) -> OidcSettings | None:
        if oidc is not None and oidc.session_secret is None and info.data.get("key", oidc) is None:
            raise InvalidValue("needs a secret that signs sessions: set oidc.session_secret, or admin.key")
        return oidc

    @field_validator("cors")
    @classmethod
    def _named_origins(cls, cors: CorsSettings | None) -> CorsSettings | None:
        if cors is not None and ANY_ORIGIN in cors.origins:
            raise InvalidValue("must name its origins: with '*', every web page could read metrics and queues")
        return cors

    @field_validator("key")
    @classmethod
    def _hard_to_guess(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and len(key.get_secret_value()) < _MIN_KEY_LENGTH:
            raise InvalidValue(f"must have at least {_MIN_KEY_LENGTH} characters: create one with openssl rand -hex 24")
        return key


class RedisSettings(StrictModel):
    """Redis, which all replicas of a gateway share."""

    url: SecretOrText = SecretStr("embedded")
    """`embedded` (the gateway starts a Redis of its own), or a URL: redis://, rediss://, unix://, redis+sentinel:// or
    redis+cluster:// (`gkt-gateway docs deployment#redis-sentinel-and-redis-cluster`). For a URL with a password write
    env:NAME."""
    prefix: str = "gkt"
    """Prefix of all Redis keys. Independent gateways that share a Redis need different prefixes."""
    timeout_s: Annotated[Duration, duration_between("10ms", "10s")] = Field(0.2, alias="timeout")
    """Timeout of one command."""
    lease_s: Annotated[Duration, duration_between("1s", "1h")] = Field(10.0, alias="lease", validate_default=True)
    """Time without a heartbeat after which a process loses its tickets, permits and requests in flight."""
    on_failure: OnRedisFailure = "degrade"
    """While Redis is unavailable: admit within a local share of limits and budgets (`degrade`), admit uncounted
    (`allow`), or answer 503 (`reject`)."""

    @field_validator("url")
    @classmethod
    def _valid_url(cls, url: SecretStr) -> SecretStr:
        text = url.get_secret_value()
        if text != "embedded":
            check_redis_url(text)
        return url

    @field_validator("lease_s")
    @classmethod
    def _outlasts_a_command(cls, lease_s: float, info: ValidationInfo) -> float:
        timeout_s = info.data.get("timeout_s", 0.0)
        if lease_s < _LEASE_TIMEOUTS * timeout_s:
            raise InvalidValue(
                f"must be at least {_LEASE_TIMEOUTS} times redis.timeout, which is {timeout_s:g}s: "
                "otherwise one slow command could lose the lease"
            )
        return lease_s

    @field_validator("prefix")
    @classmethod
    def _plain_prefix(cls, prefix: str) -> str:
        if not (0 < len(prefix) <= 32 and prefix.isascii() and prefix.replace("-", "").replace("_", "").isalnum()):
            raise InvalidValue("must be 1 to 32 letters, digits, - or _")
        return prefix


class ReceiptSettings(StrictModel):
    """Receipts of requests in Redis."""

    ttl_s: Annotated[Duration, duration_between("1m", "30d")] = Field(86_400.0, alias="ttl")
    """Time for which Redis keeps a receipt, and a device may report. The usage database has older receipts."""
    max_buffered: Annotated[Whole, Field(ge=1_000, le=100_000_000)] = 200_000
    """Most receipts in Redis, of all tenants, that wait for a usage worker. Beyond this limit, the oldest receipts of
    the tenants with the most are deleted."""
    spool_bytes: Annotated[Size, size_between("1MB", "100GB")] = Field(64_000_000, alias="spool")
    """Disk space of each process for receipts that it stores while Redis is unavailable."""


class UsageSettings(StrictModel):
    """Usage database: receipts and their sums. `gkt-gateway usage worker` writes it."""

    url: SecretOrText = SecretStr("sqlite")
    """`sqlite` (a file in the folder data, for a trial or one machine), or a URL like postgresql://host/name, for
    production. For a URL with a password write env:NAME."""
    read_url: SecretOrText | None = None
    """URL of a replica of `url`, in PostgreSQL. Dashboard, usage API, receipts and exports read it; if it is
    unavailable, they read `url`. None: they read `url`."""
    max_connections: Annotated[Whole, Field(ge=3, le=100)] = 8
    """Most connections of a gateway process to `url`, and to `read_url`. Half of them are for large queries."""
    keep_s: Annotated[Duration, duration_between("1d", "3660d")] | None = Field(400 * 86_400.0, alias="keep")
    """Retention of receipts; null: no limit. In PostgreSQL, whole days are dropped."""
    minutes_s: Annotated[Duration, duration_between("1h", "2d")] = Field(6 * 3600.0, alias="minutes")
    """Retention of sums per minute."""
    hours_s: Annotated[Duration, duration_between("2d", "100d")] = Field(14 * 86_400.0, alias="hours")
    """Retention of sums per hour."""
    days_s: Annotated[Duration, duration_between("30d", "3660d")] = Field(400 * 86_400.0, alias="days")
    """Retention of sums per day (UTC)."""
    max_rows: Annotated[Whole, Field(ge=10, le=100_000)] = 1_000
    """Most rows of sums per tenant and period, one row for each key, route, mode, teacher and student. Further
    combinations share one row."""
    run: Literal["host", "command"] = "host"
    """`host`: `gkt-gateway serve` runs one usage worker. `command`: you run `gkt-gateway usage worker`."""

    @field_validator("url")
    @classmethod
    def _valid_url(cls, url: SecretStr) -> SecretStr:
        check_usage_url(url.get_secret_value())
        return url

    @field_validator("read_url")
    @classmethod
    def _valid_replica(cls, url: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if url is not None:
            primary: SecretStr | None = info.data.get("url")
            check_replica_url(url.get_secret_value(), None if primary is None else primary.get_secret_value())
        return url


class MetricsSettings(StrictModel):
    """Limits of metric labels."""

    max_tenants: Annotated[Whole, Field(ge=1, le=100_000)] = 1000
    """Most tenants with their own time series. Further tenants share one."""
    labels: tuple[LabelName, ...] = Field((), max_length=8)
    """Labels of policies with time series of requests and cost by value."""
    max_label_values: Annotated[Whole, Field(ge=1, le=100_000)] = 1000
    """Most values of labels with their own time series, of all tenants and labels together. Further values share one
    per label."""


class LabelSettings(StrictModel):
    """Labels of requests."""

    hash_key: Secret | None = None
    """Secret of hashed labels. None: hashes are keyed by the tenant's name alone, so values can be guessed."""


class RequestLogSettings(StrictModel):
    """Sampling of the request log. Requests that failed, were canceled, are slow, or lost their guidance to a failure
    are always logged."""

    sample: Annotated[Number, Field(ge=0, le=1)] = 1.0
    """Fraction of all other requests that is logged. Sampling is deterministic by request id."""
    slow_s: Annotated[Duration, duration_between("1ms", "1h")] | None = Field(10.0, alias="slow")
    """Duration from which a request counts as slow; null: no request does."""


_HeaderValue = Annotated[SecretStr, BeforeValidator(partial(secret_of, spaces=True), json_schema_input_type=Reference)]


class TracingSettings(StrictModel):
    """OpenTelemetry tracing: exports the spans of each request with OTLP over HTTP."""

    endpoint: HttpBase | None = None
    """URL of the collector without /v1/traces, like http://otel:4318. None: tracing is off."""
    headers: dict[HeaderName, _HeaderValue] = Field({}, max_length=16)
    """Headers of each export, such as a key, as references: env:NAME or file:/path."""
    sample: Annotated[Number, Field(ge=0, le=1)] = 1.0
    """Fraction of the traces that start in the gateway which is exported."""
    service: Annotated[str, Field(min_length=1, max_length=255)] = "gkt-gateway"
    """Service name of the gateway in traces."""
    follow_callers: Flag = True
    """Whether a caller's traceparent header continues its trace, with the caller's sampling decision."""
    propagate: Flag = True
    """Whether calls to engines carry a traceparent header."""


class LogSettings(StrictModel):
    """Log of the process."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged."""
    format: Literal["auto", "json", "console"] = "auto"
    """JSON lines (`json`), text for people (`console`), or text on a terminal and JSON elsewhere (`auto`)."""
    requests: RequestLogSettings = RequestLogSettings()
    """Sampling of the request log."""


class Defaults(StrictModel):
    """Limits and budgets of tenants and keys whose policy sets none."""

    limits: LimitsRule = LimitsRule()
    """Limits of a tenant, for all its keys together."""
    key_limits: LimitsRule = LimitsRule()
    """Limits of each key."""
    budget: BudgetRule | None = None
    """Budget of a tenant, for all its keys together."""
    key_budget: BudgetRule | None = None
    """Budget of each key."""


class AlertSettings(StrictModel):
    """Notifications about budgets, the quality fallback and unusual spend."""

    spend_factor: Annotated[Number, Field(ge=1.1, le=100)] = 3.0
    """The spend of a tenant in an hour is unusual above this multiple of the same hour's median in four weeks."""
    spend_min_usd: Annotated[Number, Field(ge=0.01, le=1_000_000)] = 5.0
    """Least unusual spend of an hour in USD."""
    webhook: SecretOrText | None = None
    """http(s) URL that receives the events as JSON. It may contain a token."""
    webhook_secret: Secret | None = None
    """Secret that signs the events."""

    @field_validator("webhook")
    @classmethod
    def _valid_webhook(cls, url: SecretStr | None) -> SecretStr | None:
        text = "" if url is None else url.get_secret_value()
        with suppress(ValueError):
            parts = urlsplit(text)
            complete = parts.hostname and parts.port != 0 and is_spelled_as_url(text)
            if url is None or (complete and parts.scheme in {"http", "https"}):
                return url
        raise InvalidValue("must be a URL like https://host/path, or a reference to one: env:NAME or file:/path")
