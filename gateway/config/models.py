"""Settings of one engine in config.yaml: address, capabilities, price, timeouts and circuit breaker."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from gateway.config.price_rule import PriceRule
from gateway.config.providers import completed, why_not_derived
from gateway.config.scalars import (
    Duration,
    HttpBase,
    InvalidValue,
    Name,
    Secret,
    Size,
    Whole,
    duration_between,
    origin,
    size_between,
)
from gateway.config.variables import plain
from gateway.config.yaml_messages import MISSING, nearest
from gateway.config.yaml_source import StrictModel
from gateway.pricing import Price, litellm_max_output, litellm_providers, litellm_table
from gateway.protocol.capabilities.continuation import Mode
from gateway.protocol.capabilities.kinds import TGI
from gateway.protocol.capabilities.reasoning import Reasoning


class BatchSettings(StrictModel):
    """Limits of one batch of guidance calls to this model as a teacher."""

    max_size: Annotated[Whole, Field(ge=1, le=4096)] = 32
    """Most calls in one batch."""
    max_prompt_tokens: Annotated[Whole, Field(ge=1, le=100_000_000)] = 32768
    """Most prompt tokens of all calls in one batch together."""
    low_water: Annotated[Whole, Field(ge=0, le=100_000)] = 8
    """With fewer calls than this in flight, a request does not wait for a batch to fill."""
    max_queue: Annotated[Whole, Field(ge=1, le=1_000_000)] = Field(1000, validate_default=True)
    """Most requests of one tenant that may wait, in each of its roles."""

    @field_validator("max_queue")
    @classmethod
    def _at_least_one_batch(cls, max_queue: int, info: ValidationInfo) -> int:
        if max_queue < (size := info.data.get("max_size", 1)):
            raise InvalidValue(
                f"must be at least batch.max_size, which is {size}: otherwise no batch of one tenant could fill"
            )
        return max_queue


class TimeoutSettings(StrictModel):
    """Timeouts of calls to an engine."""

    connect_s: Annotated[Duration, duration_between("10ms", "1m")] = Field(2.0, alias="connect")
    """Time to connect."""
    first_token_s: Annotated[Duration, duration_between("10ms", "1h")] = Field(30.0, alias="first_token")
    """Time from sending the request to the first token."""
    idle_s: Annotated[Duration, duration_between("10ms", "1h")] = Field(30.0, alias="idle")
    """Time between two tokens."""
    total_s: Annotated[Duration, duration_between("10ms", "1d")] = Field(300.0, alias="total", validate_default=True)
    """Time of the whole call."""

    @field_validator("total_s")
    @classmethod
    def _at_least_its_parts(cls, total_s: float, info: ValidationInfo) -> float:
        for part in ("connect", "first_token"):
            part_s = info.data.get(f"{part}_s", 0.0)
            if total_s < part_s:
                raise InvalidValue(f"must be at least timeouts.{part}, which is {part_s:g}s and a part of it")
        return total_s


class BreakerSettings(StrictModel):
    """Circuit breaker: after repeated failures, calls to the engine are refused for a cooldown."""

    failures: Annotated[Whole, Field(ge=1, le=1000)] = 5
    """Consecutive failures that open the breaker: of connections and probes for all, of calls for their tenant."""
    cooldown_s: Annotated[Duration, duration_between("10ms", "10m")] = Field(1.0, alias="cooldown")
    """First cooldown, in which no call is made. The next call after it is a trial. Each failed trial doubles the
    cooldown, up to 30 times the first one and 30 s."""


ENCODINGS = ("cl100k_base", "o200k_base", "o200k_harmony", "p50k_base", "p50k_edit")
"""Tiktoken encodings whose vocabularies are installed with LiteLLM, so that an estimate needs no download."""


def tokenizer_file(name: str, folder: Path) -> str:
    """Return the path of a tokenizer.json on this machine. Nothing is downloaded. `name` is a path in `folder` that
    ends in .json, or a name on the Hugging Face hub. Raises InvalidValue."""
    if name.endswith(".json"):
        path = str(folder / name)
    elif re.fullmatch(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+", name):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "tokenizer.json")
        if not isinstance(cached, str):
            raise InvalidValue(
                f"the Hugging Face cache on this machine has no tokenizer.json of {name}: run `hf download {name} "
                "tokenizer.json` as the gateway's user, or write the path of the file"
            )
        path = cached
    else:
        raise InvalidValue(
            f"must be one of {', '.join(ENCODINGS)}, or the path of a tokenizer.json, or a name on the hub like "
            "Qwen/Qwen2.5-7B-Instruct",
            nearest(name, ENCODINGS),
        )
    try:
        stat = Path(path).stat()
        issue = _tokenizer_issue(path, stat.st_ino, stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        issue = (error.strerror or "error").lower()
    if issue is not None:
        raise InvalidValue(f"no tokenizer could be read from {path}: {issue}")
    return path


@lru_cache(maxsize=32)
def _tokenizer_issue(path: str, *_: int) -> str | None:
    """Return why the file contains no tokenizer; None if it contains one.

    Loading a tokenizer blocks all threads for tenths of a second, so an edit of config.yaml does not load it again.
    """
    # Imported here: most gateways name no tokenizer.
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(path)
    except Exception as error:  # noqa: BLE001  the library raises nothing narrower
        return str(error)
    return None


Option: TypeAlias = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:-]+$")]

_NO_RATE = (
    "an engine has no rate limit here: max_concurrency limits its calls in flight, and limits in a policy limit callers"
)
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "api_version": ("azure", "azure_ai", "azure_text"),
    "aws_region_name": ("bedrock", "sagemaker", "sagemaker_chat"),
    "vertex_project": ("vertex_ai",),
    "vertex_location": ("vertex_ai",),
}
"""Options of LiteLLM's calls in addition to address and key, with the providers that take them."""


class ModelSettings(StrictModel):
    """An engine and the model that it serves. A policy assigns the roles teacher and student."""

    # `_complete` sets the first two keys, or their issues. Their defaults make them optional in the JSON Schema.
    name: Name = Field(default_factory=str)
    """Name of the model in policies. Default: the last part of `model`."""
    protocol: Literal["tgi", "openai", "litellm"] = Field(default_factory=lambda: "openai")
    """API of the engine: Text Generation Inference's, OpenAI's, or a provider's through LiteLLM. Default: openai if
    `model` is openai/name; litellm if it names another provider that LiteLLM knows."""
    api_base: HttpBase | None = Field(None, validate_default=True)
    """Base URL of the engine. Default with protocol litellm, or without `protocol`: the provider's own URL."""
    model: Annotated[str, Field(min_length=1, max_length=256)] = Field(
        default_factory=lambda data: "tgi" if data.get("protocol") == "tgi" else str(data.get("name", "")),
        validate_default=True,
    )
    """Name of the model at the engine; with protocol litellm, or without `protocol`, `provider/name`."""
    api_key: Secret | None = None
    """Key of the engine. Default for a provider without `api_base`: the provider's own environment variables."""
    api_version: Option | None = None
    """API version, for protocol litellm and a model of azure."""
    aws_region_name: Option | None = None
    """AWS region, for protocol litellm and a model of bedrock or sagemaker."""
    vertex_project: Option | None = None
    """Google Cloud project, for protocol litellm and a model of vertex_ai."""
    vertex_location: Option | None = None
    """Google Cloud location, for protocol litellm and a model of vertex_ai."""
    tokenizer: str | None = None
    """Tokenizer for counts that the engine does not report: a tiktoken encoding, the path of a tokenizer.json, or a
    name in the local Hugging Face cache. Default: none; then such counts are estimates."""
    max_concurrency: Annotated[Whole, Field(ge=1, le=100_000)] = 96
    """Most calls in flight over the whole fleet; further calls wait. Calls that complete answers: only if it is set,
    and each process has an equal share."""
    batch: BatchSettings = BatchSettings()
    """As a teacher: limits of one batch of guidance calls."""
    guidance_cache_bytes: Annotated[Size, size_between("0B", "100GB")] = Field(64_000_000, alias="guidance_cache")
    """As a teacher: size of the cache in Redis of its greedy guidance, for identical requests."""
    continuation: Literal["auto", Mode, "none"] = Field(
        default_factory=lambda data: "trailing" if data.get("protocol") == "tgi" else "auto"
    )
    """Request fields that make the engine continue an answer that another model began. Default: auto; trailing with
    protocol tgi; none for a provider in `model` without `protocol`."""
    echo: Annotated[Literal["auto", True, False], BeforeValidator(plain)] = "auto"
    """Whether the engine repeats the text that it continues in its answer."""
    reasoning: Reasoning = "none"
    """Whether the model reasons before it answers, and whether a request can turn that off."""
    max_output_tokens: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = None
    """Most tokens of one answer. It bounds the cost of a request without max_tokens."""
    price_rule: PriceRule | None = Field(None, alias="price", validate_default=True)
    """Price in USD. Required unless `model` has a known list price."""
    timeouts: TimeoutSettings = TimeoutSettings()
    """Timeouts of calls to the engine."""
    always_stream: bool = False
    """Stream the calls of JSON callers, too, so that timeouts.first_token and timeouts.idle apply to them."""
    breaker: BreakerSettings = BreakerSettings()
    """Circuit breaker of the engine."""
    key_hints: ClassVar[Mapping[str, str]] = {
        "model_name": "use name",
        "litellm_params": "put its keys (model, api_base, api_key) at the level of name, and add protocol: litellm",
        "custom_llm_provider": "write it as model: provider/name, with protocol: litellm",
        "base_url": "use api_base",
        "timeout": "use timeouts.connect, .first_token, .idle or .total",
        "stream_timeout": "use timeouts.first_token or timeouts.idle",
        "model_info": "put its prices under price, per 1M tokens",
        "rpm": _NO_RATE,
        "tpm": _NO_RATE,
    }

    @cached_property
    def price(self) -> Price:
        """USD per token: `price_rule`, else the list price of `model`."""
        price = self.price_rule.price() if self.price_rule else litellm_table(self.model)
        assert price is not None  # checked by _known_price
        return price

    @property
    def listed_max_output(self) -> int | None:
        """Most tokens of one answer in LiteLLM's table. None for a model of one's own that has a price."""
        return litellm_max_output(self.model) if self.price_rule is None or self.protocol == "litellm" else None

    @property
    def options(self) -> dict[str, str]:
        """Options of LiteLLM's call in addition to address and key."""
        return {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, entry: Any) -> Any:
        if not isinstance(entry, dict):
            return entry
        entry = {"name": InvalidValue(MISSING), **completed(entry)}
        return (
            entry if "protocol" in entry else {**entry, "protocol": InvalidValue(why_not_derived(entry.get("model")))}
        )

    @field_validator("name", "protocol", mode="before")
    @classmethod
    def _is_given(cls, value: object) -> object:
        if isinstance(value, InvalidValue):
            raise value
        return value

    @field_validator("api_base")
    @classmethod
    def _has_no_route(cls, base: str | None, info: ValidationInfo) -> str | None:
        protocol = info.data.get("protocol")
        if base is None and protocol in {"tgi", "openai"}:
            raise InvalidValue(MISSING)
        if base is None:
            return None
        tgi = protocol == "tgi"
        for route in ("/chat/completions", "/completions", "/generate", "/generate_stream"):
            if base.endswith(route):
                root = base.removesuffix(route)
                raise InvalidValue(
                    f"must not include {route}: the gateway adds the route", root.removesuffix("/v1") if tgi else root
                )
        if tgi and base.endswith("/v1"):
            raise InvalidValue("must not include /v1 with protocol tgi: the gateway adds it", base.removesuffix("/v1"))
        return base

    @field_validator("model")
    @classmethod
    def _has_known_provider(cls, model: str, info: ValidationInfo) -> str:
        if info.data.get("protocol") != "litellm":
            return model
        provider, _, name = model.partition("/")
        if not name:
            raise InvalidValue("must be provider/name with protocol litellm, like anthropic/claude-sonnet-4-5")
        if litellm_providers() and provider not in litellm_providers():
            raise InvalidValue(f"LiteLLM has no provider '{provider}'", nearest(provider, litellm_providers()))
        return model

    @field_validator(*OPTIONS)
    @classmethod
    def _fits_provider(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or "model" not in info.data or "protocol" not in info.data:
            return value
        provider = str(info.data["model"]).partition("/")[0]
        supported = OPTIONS[info.field_name or ""]
        if info.data["protocol"] != "litellm" or provider not in supported:
            raise InvalidValue(f"is for protocol litellm with a model of {' or '.join(supported)}: remove it")
        return value

    @field_validator("tokenizer")
    @classmethod
    def _known_tokenizer(cls, tokenizer: str | None, info: ValidationInfo) -> str | None:
        if tokenizer is None or tokenizer in ENCODINGS:
            return tokenizer
        source = origin(info)
        return tokenizer_file(tokenizer, source.folder if source else Path())

    @field_validator("batch", "continuation", "echo", "reasoning")
    @classmethod
    def _supported_by_its_protocol(cls, value: object, info: ValidationInfo) -> object:
        protocol, field = info.data.get("protocol"), info.field_name
        unsupported = None
        if protocol == "tgi":
            unsupported = _unsupported_by_tgi(field, value)
        elif protocol == "litellm":
            unsupported = _unsupported_by_litellm(field, value, str(info.data.get("model")).partition("/")[0])
        if unsupported is not None:
            raise InvalidValue(unsupported)
        return value

    @field_validator("price_rule")
    @classmethod
    def _known_price(cls, rule: PriceRule | None, info: ValidationInfo) -> PriceRule | None:
        if rule is not None:
            if problem := rule.problem():
                raise InvalidValue(problem)
            return rule
        model = info.data.get("model") or info.data.get("name")
        if model and litellm_table(str(model)) is None:
            raise InvalidValue("missing, and no list price is known: add input_per_1m and output_per_1m, or free: true")
        return rule


def _unsupported_by_tgi(field: str | None, value: object) -> str | None:
    if field == "continuation" and value not in {"auto", *TGI.modes, "none"}:
        return f"TGI does not support it: write auto, {', '.join(TGI.modes)}, or none to send no continuation"
    if field == "echo" and value is True:
        return "TGI never repeats the text that it continues: remove it"
    if field == "reasoning" and value == "switchable":
        return "TGI passes no switch to the chat template: write always, or none if the model does not reason"
    return None


def _unsupported_by_litellm(field: str | None, value: object, provider: str) -> str | None:
    dropped = value == "vllm" and provider not in {"hosted_vllm", "openai"}
    if field == "continuation" and (dropped or value in {"sglang", "partial", "completions"}):
        return f"LiteLLM does not pass {value} on to {provider}: use protocol openai"
    return None
