"""Convert the deployments of a LiteLLM proxy configuration to models of config.yaml."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from gateway.config.models import OPTIONS, ModelSettings
from gateway.migration.builder import DataBuilder
from gateway.migration.litellm_advice import MODEL_INFO, PARAMETERS, VARIABLES, advice
from gateway.migration.litellm_prices import add_price
from gateway.migration.source import SourceKeys
from gateway.pricing import litellm_listed, litellm_providers, without_trailing_zeros

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.migration.context import ImportContext
    from gateway.migration.source import SourceField

OPENAI_BASE = "https://api.openai.com/v1"
_OPENAI_KEY = "OPENAI_API_KEY"
_NATIVE = frozenset({"openai", "custom_openai", "openai_like", "hosted_vllm", "litellm_proxy"})
"""Providers with OpenAI's API."""
_NO_KEYS = frozenset({"", "-", "anything", "dummy", "empty", "fake", "fake-key", "na", "no-key", "none", "not-needed"})
"""Values of api_key for engines without a key."""
_CHAT_MODES = frozenset({"chat", "completion", "responses"})
_EMBEDDING = "embedding"
_ROUTER = "auto_router"
_UNKNOWN_HOST = ".invalid"
_REGIONS = {"bedrock": "aws_region_name", "vertex_ai": "vertex_location"}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._:/-]+", re.ASCII)
_MAX_NAME = 128
NAME_RULE = "names are unique, and have only letters, digits and . _ : / -"
_MAX_FIRST_S = "3600"
_DEFAULT_CONNECT_S, _DEFAULT_TOTAL_S = 2, 300


class EngineDefaults(NamedTuple):
    """Settings of the router that apply to each deployment without its own."""

    timeout: SourceField | None = None
    stream_timeout: SourceField | None = None
    max_parallel_requests: SourceField | None = None
    allowed_fails: SourceField | None = None
    cooldown_time: SourceField | None = None


class Deployment(NamedTuple):
    """A deployment: its model in config.yaml, and what its route needs."""

    group: str  # model_name, as a route's name
    model: DataBuilder
    entry: SourceField
    embeds: bool
    order: int  # deployments with a higher order are called after those with a lower one
    weights: Mapping[str, Decimal]  # by the name of the setting: weight, rpm, tpm
    max_tokens: SourceField | None
    num_retries: SourceField | None

    @property
    def name(self) -> str:
        """Name of the model in config.yaml."""
        return str(self.model.data["name"])

    @property
    def is_probed_at_cost(self) -> bool:
        """Return whether each probe of the engine's continuation is a call that a provider bills."""
        data = self.model.data
        through_litellm: bool = data["protocol"] == "litellm"
        return through_litellm or urlsplit(data["api_base"]).hostname == urlsplit(OPENAI_BASE).hostname


class Provider(NamedTuple):
    """A provider and the name of its model."""

    name: str
    model: str  # without the provider


class _Entry(NamedTuple):
    """An entry of model_list, with the keys that are not converted yet."""

    field: SourceField
    group: str  # model_name, as a route's name
    params: SourceKeys
    info: SourceKeys
    written: str  # litellm_params.model
    provider: Provider
    mode: str
    is_alone: bool  # whether no other entry has the same model_name

    @property
    def embeds(self) -> bool:
        return self.mode == _EMBEDDING


class DeploymentConverter:
    """Converts the entries of model_list. Names of the models are unique."""

    def __init__(
        self, context: ImportContext, defaults: EngineDefaults, credentials: Mapping[str, SourceField]
    ) -> None:
        self._context = context
        self._defaults = defaults
        self._credentials = credentials
        self._names: set[str] = set()
        self._group_names: dict[str, str] = {}  # model_name by group
        self.used_credentials: set[str] = set()

    def convert(self, field: SourceField, *, is_alone: bool) -> Deployment | None:
        """Convert an entry; None if it cannot be imported, which a notice states.

        Args:
            field: the entry, with a model_name and litellm_params.model.
            is_alone: whether no other entry has the same model_name.
        """
        keys = SourceKeys(field)
        entry = self._entry(field, keys, is_alone=is_alone)
        if entry is None:
            return None
        context = self._context
        before = dict(context.variables), list(context.missing), list(context.notices)
        model = self._model(entry)
        if model is None:
            context.notice(field, "not imported: embeddings need an OpenAI-compatible server (protocol openai)")
            return None
        deployment = self._deployment(entry, model)
        for rest in (*keys.rest(), *entry.params.rest(), *entry.info.rest()):
            context.notice(rest, self._advice(rest))
        had_base, checked = "api_base" in model.data, len(context.notices)
        issue = model.validate(ModelSettings, context, context.origin(Path()))
        if issue is not None or (had_base and "api_base" not in model.data):
            why = "its api_base is not valid" if issue is None else f"{issue.field}: {issue.message}"
            reasons = context.notices[checked:]
            context.variables, context.missing, context.notices = before
            context.notices += reasons
            context.notice(field, f"not imported: {why}")
            return None
        self._names.add(deployment.name)
        return deployment

    def _entry(self, field: SourceField, keys: SourceKeys, *, is_alone: bool) -> _Entry | None:
        """Take the parts of an entry; None if the gateway has no such models."""
        context = self._context
        group_field, params_field, info_field = (
            keys.take(name) for name in ("model_name", "litellm_params", "model_info")
        )
        assert group_field is not None, "the caller has checked it"
        params, info = self._params(params_field), SourceKeys(info_field)
        written, custom = context.text(params.take("model")) or "", params.take("custom_llm_provider")
        if "*" in f"{group_field.value}{written}":
            context.notice(field, "not imported: a wildcard. Add an entry for each model, and import again")
            return None
        group = route_name(str(group_field.value))
        if (other := self._group_names.setdefault(group, str(group_field.value))) != str(group_field.value):
            context.notice(group_field, f"not imported: '{other}' has the route {group} too. Rename one of them")
            return None
        if group != other:
            context.notice(group_field, f"callers must send {group}: {NAME_RULE}")
        provider = find_provider(written, None if custom is None else str(custom.value))
        if provider is None:
            context.notice(field, f"not imported: the provider of '{written}' is unknown. Write provider/name")
            return None
        if provider.name == _ROUTER:
            context.notice(field, f"not imported: {advice(PARAMETERS, _ROUTER)}")
            return None
        listed = litellm_listed(written) or litellm_listed(provider.model)
        mode = context.text(info.take("mode")) or (listed.mode if listed is not None else "chat")
        if mode not in {*_CHAT_MODES, _EMBEDDING}:
            context.notice(field, f"not imported: mode {mode}. The gateway serves chats, texts and embeddings")
            return None
        return _Entry(field, group, params, info, written, provider, mode, is_alone)

    def _params(self, field: SourceField | None) -> SourceKeys:
        """Return litellm_params with the values of the credential that they name."""
        params = SourceKeys(field)
        named = params.take("litellm_credential_name")
        if named is None:
            return params
        values = self._credentials.get(str(named.value))
        if values is None:
            self._context.notice(named, "not imported: credential_list has no such name")
            return params
        self.used_credentials.add(str(named.value))
        params = SourceKeys(field, values)
        params.take("litellm_credential_name")
        return params

    def _advice(self, field: SourceField) -> str:
        variable = VARIABLES.get(field.name)
        if variable is None:
            return advice(MODEL_INFO if "model_info" in field.loc else PARAMETERS, field.name)
        self._context.need(variable)
        return f"LiteLLM reads it from the environment: set {variable} for the gateway, the same for all models"

    def _model(self, entry: _Entry) -> DataBuilder | None:
        """Return the model for config.yaml; None for embeddings that the gateway cannot make."""
        provider, params = entry.provider, entry.params
        field = self._context.first(params.take("api_base"), params.take("base_url"))
        base = self._base(field, provider)
        if provider.name == "openai" and field is None and not provider.model.startswith("responses/"):
            base = OPENAI_BASE
        native = provider.name in _NATIVE and base is not None
        if entry.embeds and not native:
            return None
        model = DataBuilder({"name": self._name(entry)})
        if native and base is not None:
            model.put("protocol", value="openai")
            model.put("api_base", value=_without_route(base), field=field)
            model.put("model", value=provider.model)
            if entry.mode == "responses":
                self._context.notice(entry.field, "the gateway calls this model with chat completions, not responses")
        elif provider.name == "huggingface" and base is not None:
            model.put("protocol", value="tgi", comment=provider.model)
            model.put("api_base", value=_without_route(base).removesuffix("/v1"), field=field)
            self._context.notice(field or entry.field, "taken for a TGI server. For other servers, use protocol openai")
        else:
            model.put("protocol", value="litellm")
            model.put("api_base", value=base, field=field)
            model.put("model", value=f"{provider.name}/{provider.model}")
        if field is not None and base is not None and base.endswith(_UNKNOWN_HOST):
            model.comments["api_base",] = f"fill in the value of {_variable(field)}"
            self._context.missing.append(f"api_base of {model.data['name']}")
        self._key(model, entry)
        self._options(model, entry)
        self._limits(model, entry)
        add_price(model, entry.field, entry.params, entry.info, self._context)
        return model

    def _name(self, entry: _Entry) -> str:
        """Return the name of the model: its id in LiteLLM, else its model_name, numbered if others have it too."""
        given = entry.info.take("id")
        own = "" if given is None else str(given.value)
        if own and own not in self._names and route_name(own) == own:
            return own
        if given is not None:
            self._context.notice(given, f"not imported as name of the model: {NAME_RULE}")
        numbered = (f"{entry.group[: _MAX_NAME - 5]}-{number}" for number in range(1, 10_000))
        candidates = (entry.group, *numbered) if entry.is_alone else numbered
        return next(name for name in candidates if name not in self._names)

    def _base(self, field: SourceField | None, provider: Provider) -> str | None:
        """Return the address. An unknown one that LiteLLM itself reads from the environment is left out."""
        if field is None or not self._context.is_unset(field):
            return self._context.text(field)
        variable = _variable(field)
        if provider.name not in {*_NATIVE, "huggingface"} and variable == f"{provider.name.upper()}_API_BASE":
            self._context.need(variable)
            return None
        self._context.notice(field, f"{variable} is not set here: write its value as api_base into config.yaml")
        return f"http://{variable.lower().replace('_', '-')}{_UNKNOWN_HOST}"

    def _key(self, model: DataBuilder, entry: _Entry) -> None:
        field = entry.params.take("api_key")
        native = model.data["protocol"] != "litellm"
        if field is not None and native and str(field.value).lower() in _NO_KEYS:
            self._context.notice(field, "a placeholder, so no key is sent. If the engine has one: api_key: env:NAME")
        elif field is not None:
            name = re.sub(r"[^A-Z0-9]+", "_", f"{entry.group}_API_KEY".upper())
            variable = name if name[0].isalpha() else f"MODEL_{name.lstrip('_')}"
            model.put("api_key", value=self._context.secret(field, variable), field=field)
        elif model.data.get("api_base") == OPENAI_BASE:
            model.put("api_key", value=self._context.need(_OPENAI_KEY))
        elif native and entry.provider.name == "openai":
            message = f"no api_key: LiteLLM sends {_OPENAI_KEY}, and the gateway no key. Add api_key if it is needed"
            self._context.notice(entry.field, message)

    def _options(self, model: DataBuilder, entry: _Entry) -> None:
        provider, params = entry.provider.name, entry.params
        if model.data["protocol"] != "litellm":
            return
        for name, providers in OPTIONS.items():
            if provider in providers and (field := params.take(name)) is not None:
                model.put(name, value=self._context.text(field), field=field)
        own = _REGIONS.get(provider)
        if own is not None and own not in model.data and (field := params.take("region_name")) is not None:
            model.put(own, value=self._context.text(field), field=field)

    def _limits(self, model: DataBuilder, entry: _Entry) -> None:
        """Add timeouts, concurrency, the circuit breaker and the longest answer."""
        defaults, context, params = self._defaults, self._context, entry.params
        parallel = params.take("max_parallel_requests") or defaults.max_parallel_requests
        if (number := context.number(parallel)) is not None:
            model.put("max_concurrency", value=whole(number), field=parallel)
        longest = context.first(entry.info.take("max_output_tokens"), entry.info.take("max_tokens"))
        if (number := context.number(longest)) is not None:
            model.put("max_output_tokens", value=whole(number), field=longest)
        total, stream = params.take("timeout"), params.take("stream_timeout")
        self._timeouts(model, total or defaults.timeout, stream or defaults.stream_timeout)
        cooldown = params.take("cooldown_time") or defaults.cooldown_time
        if (number := context.number(defaults.allowed_fails)) is not None:
            model.put("breaker", "failures", value=whole(number + 1), field=defaults.allowed_fails)
        if cooldown is not None and (number := context.number(cooldown)) is not None:
            number = context.clamped(cooldown, number, "0.01", "600")
            model.put("breaker", "cooldown", value=duration(number), field=cooldown)

    def _timeouts(self, model: DataBuilder, total_field: SourceField | None, stream_field: SourceField | None) -> None:
        """Add the timeouts. LiteLLM's `timeout` bounds the first token, too, unless there is a `stream_timeout`."""
        context = self._context
        total, stream = context.number(total_field), context.number(stream_field)
        if total_field is not None and total is not None:
            total = context.clamped(total_field, total, "0.01", "86400")
            if total < _DEFAULT_TOTAL_S:
                context.notice(total_field, "ends streams, too: raise timeouts.total if answers take longer")
        if stream_field is not None and stream is not None:
            stream = context.clamped(stream_field, stream, "0.01", _MAX_FIRST_S)
            total = max(total or Decimal(_DEFAULT_TOTAL_S), stream)
        if total is None:
            return
        first = min(total, Decimal(_MAX_FIRST_S)) if stream is None else stream
        times = {"connect": total if total < _DEFAULT_CONNECT_S else None, "first_token": first, "idle": stream}
        for name, seconds in {**times, "total": total}.items():
            own_field = stream_field if name == "idle" else total_field or stream_field
            model.put("timeouts", name, value=None if seconds is None else duration(seconds), field=own_field)

    def _deployment(self, entry: _Entry, model: DataBuilder) -> Deployment:
        context, params = self._context, entry.params
        weights: dict[str, Decimal] = {}
        for name in ("weight", "rpm", "tpm"):
            field = params.take(name)
            if (number := context.number(field)) is not None:
                weights[name] = number
            if field is not None and (name != "weight" or entry.is_alone):
                used = "" if entry.is_alone else ". Used as a weight among the deployments, as in LiteLLM"
                context.notice(field, f"{advice(PARAMETERS, name)}{used}")
        order = context.first(params.take("order"), entry.info.take("order"))
        if order is not None and entry.is_alone:
            context.notice(order, advice(PARAMETERS, "order"))
        rank = context.number(order)
        return Deployment(
            entry.group,
            model,
            entry.field,
            entry.embeds,
            0 if rank is None else int(rank),
            weights,
            context.first(params.take("max_tokens"), params.take("max_completion_tokens")),
            params.take("num_retries"),
        )


def route_name(name: str) -> str:
    """Return a name that routes and models permit."""
    return _NOT_IN_NAMES.sub("-", name)[:_MAX_NAME]


def duration(seconds: Decimal) -> str:
    """Return seconds as a duration of config.yaml."""
    return f"{without_trailing_zeros(seconds)}s"


def find_provider(model: str, custom: str | None = None) -> Provider | None:
    """Return the provider of a model as LiteLLM finds it: written, or in its table; None if unknown."""
    prefix, slash, name = model.partition("/")
    if custom is not None:
        return Provider(custom, name if slash and prefix == custom else model) if model else None
    if slash and prefix in litellm_providers():
        return Provider(prefix, name)
    listed = litellm_listed(model)
    if listed is None:
        return None
    known = [one for one in litellm_providers() if re.match(rf"{re.escape(one)}(?:[_-]|$)", listed.provider)]
    return Provider(max(known, key=len), model) if known else None


def _without_route(base: str) -> str:
    base = base.rstrip("/")
    for route in ("/chat/completions", "/completions", "/generate", "/generate_stream"):
        base = base.removesuffix(route)
    return base


def _variable(field: SourceField) -> str:
    return str(field.value).rpartition("/")[2]


def whole(number: Decimal) -> int | Decimal:
    """Return a whole number as int. Other numbers are returned unchanged, and fail validation."""
    return int(number) if number == int(number) else number
