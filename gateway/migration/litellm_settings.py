"""Convert general_settings, litellm_settings and router_settings of a LiteLLM proxy configuration."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from gateway.migration.litellm_advice import GENERAL, LITELLM, ROUTER, TOP, advice, callback_advice
from gateway.migration.litellm_models import EngineDefaults, whole
from gateway.migration.source import SourceKeys

if TYPE_CHECKING:
    from gateway.migration.builder import DataBuilder
    from gateway.migration.context import ImportContext
    from gateway.migration.source import LiteLLMFile, SourceField

REDIS_VARIABLE = "GKT_REDIS_URL"
ADMIN_VARIABLE = "GKT_ADMIN_KEY"
_REDIS_EXAMPLE = "redis://:PASSWORD@HOST:6379/0"
_MIN_ADMIN_KEY = 16
_CREATE_KEY = "`gkt-gateway keys create --tenant default --id NAME`"
_CALLBACKS = ("callbacks", "success_callback", "failure_callback")
_LIMITS = ("rpm_limit", "tpm_limit", "max_parallel_requests")
_DURATION = re.compile(r"([0-9]+)(s|m|h|d|w|mo)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_MAX_DAYS = 366


class RouterSettings(NamedTuple):
    """Settings that concern models and routes."""

    engines: EngineDefaults
    num_retries: SourceField | None
    fallbacks: list[SourceField]
    default_fallbacks: SourceField | None
    aliases: SourceField | None


class SectionConverter:
    """Converts all sections but model_list."""

    def __init__(self, file: LiteLLMFile, config: DataBuilder, policy: DataBuilder, context: ImportContext) -> None:
        self._file = file
        self._config = config
        self._policy = policy
        self._context = context

    def convert(self) -> RouterSettings:
        """Add settings to config.yaml and to the policy. Return those for models and routes."""
        general, litellm, router = (
            self._file.section(name) for name in ("general_settings", "litellm_settings", "router_settings")
        )
        self._general(general)
        self._redis(router)
        self._litellm(litellm)
        fallbacks = self._context.first(router.take("fallbacks"), litellm.take("fallbacks"))
        timeout, retries = router.take("timeout"), router.take("num_retries")
        fails = router.take("allowed_fails")
        settings = RouterSettings(
            EngineDefaults(
                timeout=self._context.first(timeout, litellm.take("request_timeout")),
                stream_timeout=router.take("stream_timeout"),
                max_parallel_requests=router.take("default_max_parallel_requests"),
                allowed_fails=self._context.first(fails, litellm.take("allowed_fails")),
                cooldown_time=router.take("cooldown_time"),
            ),
            self._context.first(retries, litellm.take("num_retries")),
            self._context.entries(fallbacks, list),
            self._context.first(router.take("default_fallbacks"), litellm.take("default_fallbacks")),
            router.take("model_group_alias"),
        )
        for table, keys in ((GENERAL, general), (LITELLM, litellm), (ROUTER, router)):
            for field in keys.rest():
                self._context.notice(field, advice(table, field.name))
        return settings

    def read_environment(self) -> None:
        """Use the variables that the file sets for the values of references, and report them."""
        for field in self._file.section("environment_variables").rest():
            self._context.add_variable(field.name, str(field.value))
            self._context.notice(field, f"not copied: set {field.name} in the gateway's environment, if it is needed")

    def report_others(self) -> None:
        """Report all top-level keys that were not read."""
        for part in self._file.rest():
            self._context.notice(part, advice(TOP, part.name))

    def _general(self, keys: SourceKeys) -> None:
        config, context = self._config, self._context
        if (field := keys.take("master_key")) is not None:
            context.notice(field, f"written as admin.key, for operators only. Callers need keys: {_CREATE_KEY}")
            if len(str(field.value)) < _MIN_ADMIN_KEY:
                context.notice(field, f"too short for admin.key: set {ADMIN_VARIABLE} to 16 characters or more")
                config.put("admin", "key", value=context.need(ADMIN_VARIABLE), field=field)
            else:
                config.put("admin", "key", value=context.secret(field, ADMIN_VARIABLE), field=field)
        in_flight = keys.take("max_in_flight_requests_per_worker")
        in_flight = self._context.first(in_flight, keys.take("global_max_parallel_requests"))
        if (number := context.number(in_flight)) is not None:
            config.put("server", "max_in_flight", value=whole(number), field=in_flight)
        size = keys.take("max_request_size_mb")
        if (number := context.number(size)) is not None:
            config.put("server", "max_body", value=f"{number}MB", field=size)
        parallel = keys.take("max_parallel_requests")
        if (number := context.number(parallel)) is not None:
            config.put("defaults", "key_limits", "max_parallel_requests", value=whole(number), field=parallel)
        if context.flag(closed := keys.take("fail_closed_rate_limit_enforcement")):
            config.put("redis", "on_failure", value="reject", field=closed)
        elif closed is not None:
            context.notice(closed, "the default here: redis.on_failure is degrade")

    def _redis(self, keys: SourceKeys) -> None:
        names = ("redis_url", "redis_host", "redis_port", "redis_password", "redis_db", "redis_username", "redis_ssl")
        fields = {name: field for name in names if (field := keys.take(name)) is not None}
        if not fields:
            return
        context, first = self._context, next(iter(fields.values()))
        host = fields.get("redis_host")
        values = {name: str(field.value) for name, field in fields.items()}
        is_plain = set(fields) <= {"redis_host", "redis_port"} and host is not None
        if is_plain and not any({"/", "@"} & set(value) for value in values.values()):
            url = f"redis://{values['redis_host']}:{values.get('redis_port', '6379')}"
        else:
            url = context.need(REDIS_VARIABLE, _REDIS_EXAMPLE)
            for field in fields.values():
                context.notice(field, f"a part of redis.url: set {REDIS_VARIABLE} to {_REDIS_EXAMPLE}")
        self._config.put("redis", "url", value=url, field=first)
        context.notice(
            first, "redis.url must be durable, without eviction (`gkt-gateway docs policies#redis-requirements`)"
        )

    def _litellm(self, keys: SourceKeys) -> None:
        context = self._context
        for name in _CALLBACKS:
            if (field := keys.take(name)) is not None:
                for one in field.children() or [field]:
                    context.notice(one, callback_advice(str(one.value)))
        if context.flag(verbose := keys.take("set_verbose")):
            self._config.put("log", "level", value="debug", field=verbose)
        elif verbose is not None:
            context.notice(verbose, "the default here: log.level is info")
        if context.flag(json_logs := keys.take("json_logs")):
            self._config.put("log", "format", value="json", field=json_logs)
        elif json_logs is not None:
            context.notice(json_logs, LITELLM["json_logs"])
        self._budget(self._policy, ("budget",), keys)
        if "budget" in self._policy.data:
            field = self._policy.origin("budget", "max_budget")
            context.notice(field, "a budget limits requests without max_tokens to 1024 tokens: set default_max_tokens "
                           "of the routes")  # fmt: skip
        self._end_user_budget(keys.take("max_end_user_budget"))
        for name, prefix, hints in (
            ("default_team_params", "", {"models": "a tenant's models are its routes"}),
            ("default_key_generate_params", "key_", {"models": "`gkt-gateway keys create --models A,B`",
                                                     "duration": "`gkt-gateway keys create --expires 90d`"}),
        ):  # fmt: skip
            if (section := keys.take(name)) is not None:
                self._defaults(section, prefix, hints)

    def _end_user_budget(self, field: SourceField | None) -> None:
        """Add a label for end users, with a budget of each."""
        amount = self._context.number(field)
        if field is None or amount is None:
            return
        if amount <= 0:
            self._context.notice(field, "not imported: no limit in LiteLLM without an amount above 0")
            return
        label = "labels", "end_user"
        self._policy.put(*label, value={}, field=field)  # removed as a whole without a valid amount
        self._policy.put(*label, "user", value=True)
        self._policy.put(*label, "budget", "max_budget", value=amount, field=field)
        self._policy.put(*label, "budget", "budget_duration", value=f"{_MAX_DAYS}d")
        self._policy.put(*label, "budget", "calendar_aligned", value=False)
        self._context.notice(
            field,
            "written as labels.end_user with a budget of each value; requests without `user` share that of (none)",
        )

    def _defaults(self, section: SourceField, prefix: str, hints: dict[str, str]) -> None:
        """Add default limits and budgets of tenants (LiteLLM's teams) or keys to `defaults`."""
        keys = SourceKeys(section)
        for name in _LIMITS:
            field = keys.take(name)
            if (number := self._context.number(field)) is not None:
                self._config.put("defaults", f"{prefix}limits", name, value=whole(number), field=field)
        self._budget(self._config, ("defaults", f"{prefix}budget"), keys)
        if not prefix:
            self._context.notice(section, "written as defaults of each tenant, as a team is a tenant. Tenant default, "
                                 "too, if its policy has none")  # fmt: skip
        for field in keys.rest():
            self._context.notice(field, hints.get(field.name) or advice(LITELLM, field.name))

    def _budget(self, builder: DataBuilder, loc: tuple[str, ...], keys: SourceKeys) -> None:
        context = self._context
        most, soft, period = (keys.take(name) for name in ("max_budget", "soft_budget", "budget_duration"))
        amount = context.number(most)
        if most is None or amount is None or amount <= 0:
            for field in filter(None, (most, soft, period)):
                context.notice(field, "not imported: no limit in LiteLLM without a max_budget above 0")
            return
        builder.put(*loc, value={}, field=most)  # removed as a whole without a valid max_budget
        builder.put(*loc, "max_budget", value=amount, field=most)
        builder.put(*loc, "soft_budget", value=context.number(soft), field=soft)
        if period is None:
            builder.put(*loc, "budget_duration", value=f"{_MAX_DAYS}d")
            builder.put(*loc, "calendar_aligned", value=False)
            context.notice(most, f"LiteLLM never resets it; the longest budget_duration here is {_MAX_DAYS}d")
        else:
            builder.put(*loc, "budget_duration", value=self._period(period), field=period)

    def _period(self, field: SourceField) -> str | None:
        """Return a budget_duration of the gateway: whole hours, days, weeks or months, at most a year."""
        text = self._context.text(field)
        match = _DURATION.fullmatch(text or "")
        if match is None or match[2] == "mo":
            return text
        hours, rest = divmod(int(match[1]) * _SECONDS[match[2]], _SECONDS["h"])
        if rest:
            self._context.notice(field, f"written as {hours + 1}h: periods are whole hours, days, weeks or months")
            return f"{hours + 1}h"
        if hours > _MAX_DAYS * 24:
            self._context.notice(field, f"written as {_MAX_DAYS}d, the longest period")
            return f"{_MAX_DAYS}d"
        return text if match[2] in {"h", "d", "w"} else f"{hours}h"


def use_free_ports(config: DataBuilder, addresses: list[str]) -> None:
    """Choose other ports for the gateway where an engine on this machine has the default one."""
    taken = set()
    for address in addresses:
        parts = urlsplit(address)
        if parts.hostname in {"localhost", "::1", "0.0.0.0"} or (parts.hostname or "").startswith("127."):  # noqa: S104
            taken.add(parts.port)
    if not taken & {8080, 8081}:
        return
    free = (port for port in range(8080, 9080) if port not in taken)
    for section in ("server", "admin"):
        config.put(section, "port", value=next(free), comment="the default is the port of an engine")
