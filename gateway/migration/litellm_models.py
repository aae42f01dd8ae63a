"""Convert the entries of `model_list` of a LiteLLM proxy configuration to models of config.yaml."""

from __future__ import annotations

import re
from decimal import Decimal
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.config.models import OPTIONS, ModelSettings
from gateway.config.scalars import ValueOrigin
from gateway.config.yaml_source import YamlSource
from gateway.migration.source import NotConvertedError, SourceKeys
from gateway.pricing import litellm_listed, litellm_providers, without_trailing_zeros

if TYPE_CHECKING:
    from gateway.migration.notes import ImportNotes
    from gateway.migration.source import SourceField

_OPENAI = "openai"
_OPENAI_KEY = "OPENAI_API_KEY"
_OPENAI_APIS = frozenset({_OPENAI, "custom_openai", "openai_like", "hosted_vllm", "litellm_proxy"})
"""Providers whose servers have OpenAI's API."""
_CHAT_MODES = frozenset({"chat", "completion", "responses"})
_EMBEDDING = "embedding"
_PRICES = {
    "input_cost_per_token": "input_per_1m",
    "output_cost_per_token": "output_per_1m",
    "cache_read_input_token_cost": "cached_input_per_1m",
    "cache_creation_input_token_cost": "cache_write_per_1m",
    "cache_creation_input_token_cost_above_1hr": "cache_write_1h_per_1m",
}
_REQUIRED = ("input_cost_per_token", "output_cost_per_token")
_PER_1M = 1_000_000
_LAST = Decimal("Infinity")


class Deployment(NamedTuple):
    """A model of config.yaml, and what its route needs.

    Attributes:
        group: its model_name.
        data: the model, as in config.yaml.
        field: the entry of model_list.
        embeds: whether it makes embeddings.
        order: deployments with a higher order are called after those with a lower one.
        weight: its share of the requests; 0 if the entry has none.
    """

    group: str
    data: dict[str, Any]
    field: SourceField
    embeds: bool
    order: Decimal
    weight: Decimal

    @property
    def name(self) -> str:
        """Name of the model in config.yaml."""
        return str(self.data["name"])


class ModelConverter:
    """Converts the entries of model_list. Names of the models are unique."""

    def __init__(self, notes: ImportNotes) -> None:
        self._notes = notes
        self._names: set[str] = set()
        self._embeds: dict[str, bool] = {}  # by model_name

    def convert(self, field: SourceField) -> Deployment | None:
        """Convert an entry. Return None for one that cannot be converted, and add it to the notes."""
        try:
            return self._deployment(field)
        except NotConvertedError as reason:
            self._notes.add(field, str(reason))
            return None

    def _deployment(self, field: SourceField) -> Deployment:
        """Convert an entry. Reasons against it are found before anything of it is added to the notes."""
        keys = SourceKeys(field)
        group, params_field = keys.take("model_name"), keys.take("litellm_params")
        params, info = SourceKeys(params_field), SourceKeys(keys.take("model_info"))
        model = params.take("model")
        if group is None or params_field is None or model is None:
            raise NotConvertedError("needs model_name and litellm_params.model")
        if params.take("litellm_credential_name") is not None:
            raise NotConvertedError("write the values of its credential into litellm_params, and import again")
        name, written = str(group.value), model.text()
        if "*" in f"{name}{written}":
            raise NotConvertedError("a wildcard: add an entry for each model, and import again")
        provider, model_name = _provider(written, params.take("custom_llm_provider"))
        base = params.take("api_base") or params.take("base_url")
        embeds = _is_embedding(info.take("mode"), written)
        data: dict[str, Any] = {"name": self._unused(name), **_engine(provider, model_name, base)}
        for option, providers in OPTIONS.items():
            if provider in providers and (value := params.take(option)) is not None:
                data[option] = value.text()
        if problem := _problem(data):
            raise NotConvertedError(problem)
        if embeds and not (provider == _OPENAI or data.get("protocol") == _OPENAI):
            raise NotConvertedError("embeddings need a server with OpenAI's API")
        if self._embeds.setdefault(name, embeds) != embeds:
            raise NotConvertedError(f"entries of {name} are for chats and for embeddings: name them apart")
        self._names.add(data["name"])
        params.take("api_key")
        if (key := self._key(data, provider, params_field.child("api_key"))) is not None:
            data["api_key"] = key
        if (price := self._price(params, info)) is not None:
            data["price"] = price
        order = self._notes.number(params.take("order"))
        weight = self._notes.number(params.take("weight")) or Decimal(0)
        self._notes.add_rest(keys, params, info)
        return Deployment(name, data, field, embeds, _LAST if order is None else order, max(weight, Decimal(0)))

    def _unused(self, group: str) -> str:
        """Return the model_name, numbered if a model has it already."""
        names = chain([group], (f"{group}-{number}" for number in count(2)))
        return next(name for name in names if name not in self._names)

    def _key(self, data: dict[str, str], provider: str, key: SourceField) -> str | None:
        """Return `api_key` of a model: that of the file, or LiteLLM's default for OpenAI; None without one."""
        if key.value:
            variable = re.sub(r"[^A-Z0-9]+", "_", f"{data['name']}_API_KEY".upper())
            return self._notes.secret(key, variable if variable[0].isalpha() else f"MODEL_{variable}")
        if provider != _OPENAI:
            return None
        if "api_base" not in data:
            return f"env:{_OPENAI_KEY}"
        self._notes.add(key, f"LiteLLM sends {_OPENAI_KEY} to api_base; the gateway sends no key")
        return None

    def _price(self, params: SourceKeys, info: SourceKeys) -> dict[str, Any] | None:
        """Return the price that the file has, with null for an unknown part; None without a price."""
        fields = {name: params.take(name) or info.take(name) for name in _PRICES}
        if not any(fields.values()):
            return None
        usd = {name: self._notes.number(field) for name, field in fields.items()}
        if all(usd[name] == 0 for name in _REQUIRED) and not any(usd.values()):
            return {"free": True}
        return {
            ours: None if (price := usd[name]) is None else without_trailing_zeros(price * _PER_1M)
            for name, ours in _PRICES.items()
            if usd[name] is not None or name in _REQUIRED
        }


def _provider(model: str, custom: SourceField | None) -> tuple[str, str]:
    """Return provider and name of a model as LiteLLM finds them: written, or in its table. Raise NotConvertedError."""
    prefix, slash, name = model.partition("/")
    if custom is not None:
        return custom.text(), name if slash and prefix == custom.value else model
    if slash and prefix in litellm_providers():
        return prefix, name
    listed = litellm_listed(model)
    seller = "" if listed is None else listed.provider
    known = [one for one in litellm_providers() if re.match(rf"{re.escape(one)}(?:[_-]|$)", seller)]
    if not known:
        raise NotConvertedError(f"the provider of '{model}' is unknown: write provider/name")
    return max(known, key=len), model


def _is_embedding(mode: SourceField | None, model: str) -> bool:
    """Return whether a model makes embeddings, or else chats. Raise NotConvertedError for another mode."""
    listed = litellm_listed(model) or litellm_listed(model.partition("/")[2])
    found = mode.text() if mode is not None else listed.mode if listed is not None else "chat"
    if found not in {*_CHAT_MODES, _EMBEDDING}:
        raise NotConvertedError(f"mode {found}: the gateway serves chats, texts and embeddings")
    return found == _EMBEDDING


def _engine(provider: str, model: str, base: SourceField | None) -> dict[str, str]:
    """Return the engine's protocol, model and address. Without `protocol`, `model` is that of LiteLLM."""
    address = {} if base is None else {"api_base": base.text()}
    if provider == _OPENAI and model.startswith("responses/"):
        return {"protocol": "litellm", "model": f"{provider}/{model}", **address, "continuation": "none"}
    if provider in _OPENAI_APIS and address:
        return {"protocol": _OPENAI, "model": model, **address}
    if provider == "huggingface" and address:
        return {"protocol": "tgi", **address}
    return {"model": f"{provider}/{model}", **address}


def _problem(data: dict[str, Any]) -> str | None:
    """Return why the gateway rejects a model; None if it accepts the model with references, key and price."""
    known = {name: value for name, value in data.items() if "${" not in value}
    if "api_base" in data:
        known.setdefault("api_base", "http://host")
    _, issues = YamlSource("", known).check(ModelSettings, ValueOrigin({_OPENAI_KEY: "key"}, Path()))
    return next((f"{issue.field}: {issue.message}" for issue in issues if issue.field != "price"), None)
