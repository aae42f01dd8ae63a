"""What config.yaml says of one engine: where it is, what it can do, what it costs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field, ValidationInfo, field_validator

from gateway.capabilities.continuation import Mode
from gateway.capabilities.kinds import TGI
from gateway.capabilities.providers import providers
from gateway.capabilities.reasoning import Reasoning
from gateway.config.scalars import (
    Duration,
    HttpBase,
    InvalidValue,
    Name,
    Rate,
    Secret,
    Size,
    Usd,
    Whole,
    lasting,
    origin,
    sized,
)
from gateway.config.yaml_messages import MISSING, nearest
from gateway.config.yaml_source import StrictModel
from gateway.pricing import Price, litellm_max_output, litellm_table

if TYPE_CHECKING:
    from decimal import Decimal


class BatchSettings(StrictModel):
    """What one batch of guidance calls to this model may hold when it plays the teacher, and how it goes out."""

    max_size: Annotated[Whole, Field(ge=1, le=4096)] = 32
    """Calls."""
    max_prompt_tokens: Annotated[Whole, Field(ge=1, le=100_000_000)] = 32768
    """Tokens of all their prompts together."""
    low_water: Annotated[Whole, Field(ge=0, le=100_000)] = 8
    """With fewer calls than this in flight, a request does not wait for others."""
    max_queue: Annotated[Whole, Field(ge=1, le=1_000_000)] = Field(1000, validate_default=True)
    """Requests of one tenant that may wait."""
    calls: Literal["single", "list"] = "single"
    """`list`: the members that one process holds go out in one HTTP call, where the engine takes such a call."""

    @field_validator("max_queue")
    @classmethod
    def _holds_a_batch(cls, max_queue: int, info: ValidationInfo) -> int:
        max_size = info.data.get("max_size", 1)
        if max_queue < max_size:
            raise InvalidValue(
                f"must be at least batch.max_size, which is {max_size}: or no batch of one tenant could fill"
            )
        return max_queue


class TimeoutSettings(StrictModel):
    """Seconds an engine may take: to connect, to its first token, between two tokens, and for it all."""

    connect_s: Annotated[Duration, lasting("10ms", "1m")] = Field(2.0, alias="connect")
    """To connect."""
    first_token_s: Annotated[Duration, lasting("10ms", "1h")] = Field(30.0, alias="first_token")
    """From sending the request to the first token."""
    idle_s: Annotated[Duration, lasting("10ms", "1h")] = Field(30.0, alias="idle")
    """Between two tokens."""
    total_s: Annotated[Duration, lasting("10ms", "1d")] = Field(300.0, alias="total", validate_default=True)
    """The whole call."""

    @field_validator("total_s")
    @classmethod
    def _holds_its_parts(cls, total_s: float, info: ValidationInfo) -> float:
        for part in ("connect", "first_token"):
            part_s = info.data.get(f"{part}_s", 0.0)
            if total_s < part_s:
                raise InvalidValue(f"must be at least timeouts.{part}, which is {part_s:g}s and a part of it")
        return total_s


class BreakerSettings(StrictModel):
    """When an engine that keeps failing is left alone, and for how long."""

    failures: Annotated[Whole, Field(ge=1, le=1000)] = 5
    """Failed calls of one tenant in a row, or failed connections in a row."""
    rest_s: Annotated[Duration, lasting("10ms", "10m")] = Field(1.0, alias="rest")
    """Then no call is made for so long; the next one is the trial."""
    longest_s: Annotated[Duration, lasting("10ms", "1h")] = Field(30.0, alias="longest_rest", validate_default=True)
    """Each trial that fails doubles the rest, up to this."""

    @field_validator("longest_s")
    @classmethod
    def _at_least_one_rest(cls, longest_s: float, info: ValidationInfo) -> float:
        rest_s = info.data.get("rest_s", 0.0)
        if longest_s < rest_s:
            raise InvalidValue(f"must be at least breaker.rest, which is {rest_s:g}s")
        return longest_s


ENCODINGS = ("cl100k_base", "o200k_base", "o200k_harmony", "p50k_base", "p50k_edit")
"""The tiktoken encodings whose vocabularies are installed with LiteLLM: an estimate never waits for a download."""


def tokenizer_file(name: str, folder: Path) -> str:
    """The path of a tokenizer.json, which is looked for on this machine alone. Raises Wrong."""
    if name.endswith(".json"):
        found = str(folder / name)
    elif re.fullmatch(r"[A-Za-z0-9._-]+/[A-Za-z0-9._-]+", name):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "tokenizer.json")
        if not isinstance(cached, str):
            raise InvalidValue(
                f"the hub's cache on this machine has no tokenizer.json of {name}: run `hf download {name} "
                "tokenizer.json` as the gateway's user, or write the path of the file"
            )
        found = cached
    else:
        raise InvalidValue(
            f"must be one of {', '.join(ENCODINGS)}, or the path of a tokenizer.json, or a name on the hub like "
            "Qwen/Qwen2.5-7B-Instruct",
            nearest(name, ENCODINGS),
        )
    # Only here: most gateways name none, and need not pay for the library.
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_file(found)
    except Exception as error:  # noqa: BLE001  the library raises nothing narrower
        raise InvalidValue(f"no tokenizer could be read from {found}: {error}") from None
    return found


_SCALE = "prices here are USD per 1M tokens: multiply by 1,000,000 and call it "


class PriceRule(StrictModel):
    """What YAML says of a price: per 1M tokens, or an engine's hourly price with its token rates."""

    input_per_1m: Usd | None = None
    """USD per 1,000,000 tokens read."""
    output_per_1m: Usd | None = None
    """USD per 1,000,000 tokens written."""
    cached_input_per_1m: Usd | None = None
    """USD per 1,000,000 tokens read from the engine's prompt cache. Default: input_per_1m."""
    cache_write_per_1m: Usd | None = None
    """USD per 1,000,000 tokens read and written to the engine's prompt cache. Default: input_per_1m."""
    gpu_usd_per_hour: Usd | None = None
    """USD for an hour of the engine, or of each of its `gpus`."""
    input_tokens_per_s: Rate | None = None
    """What it reads in a second, over all requests at once."""
    output_tokens_per_s: Rate | None = None
    """What it writes in a second, over all requests at once."""
    gpus: Annotated[Whole, Field(ge=1, le=100_000)] | None = None
    """How many of these the engine has. Default: 1."""
    foreign: ClassVar[Mapping[str, str]] = {
        "input_cost_per_token": _SCALE + "input_per_1m",
        "output_cost_per_token": _SCALE + "output_per_1m",
        "cache_read_input_token_cost": _SCALE + "cached_input_per_1m",
        "cache_creation_input_token_cost": _SCALE + "cache_write_per_1m",
    }

    def problem(self) -> str | None:
        """Why this is not one whole price; None if it is."""
        by_token = {"input_per_1m", "output_per_1m"}
        by_hour = {"gpu_usd_per_hour", "input_tokens_per_s", "output_tokens_per_s"}
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        of_cache = {"cached_input_per_1m", "cache_write_per_1m"}
        kinds = [kind for kind in (by_token | of_cache, by_hour | {"gpus"}) if given & kind]
        if len(kinds) > 1:
            return "is either per 1M tokens or per GPU hour: keep one of the two"
        needed = by_hour if given & (by_hour | {"gpus"}) else by_token
        if needed - given:
            return f"needs {' and '.join(name for name in type(self).model_fields if name in needed - given)} too"
        return None

    def price(self) -> Price:
        """The price per token. Only for a rule without a problem."""
        if self.input_per_1m is not None and self.output_per_1m is not None:
            return Price.of_tokens(
                self.input_per_1m, self.output_per_1m, self.cached_input_per_1m, self.cache_write_per_1m
            )
        hourly_usd = self.hourly_usd
        assert hourly_usd is not None
        assert self.input_tokens_per_s is not None
        assert self.output_tokens_per_s is not None
        return Price.of_gpu_hour(hourly_usd, self.input_tokens_per_s, self.output_tokens_per_s)

    @property
    def hourly_usd(self) -> Decimal | None:
        """What an hour of the whole engine costs; None where it is paid by the token."""
        return None if self.gpu_usd_per_hour is None else self.gpu_usd_per_hour * (self.gpus or 1)


Option: TypeAlias = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:-]+$")]

_NO_RATE = (
    "an engine has no limit by the minute here: max_concurrency bounds a teacher's calls, limits of a policy callers"
)
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "api_version": ("azure", "azure_ai", "azure_text"),
    "aws_region_name": ("bedrock", "sagemaker", "sagemaker_chat"),
    "vertex_project": ("vertex_ai",),
    "vertex_location": ("vertex_ai",),
}
"""What some of LiteLLM's providers need beside an address and a key, and which."""


class ModelSettings(StrictModel):
    """One engine and the model it serves. Teacher and student are roles that a policy gives."""

    name: Name
    """What policies call it."""
    protocol: Literal["tgi", "openai", "litellm"]
    """What it speaks: Text Generation Inference's, OpenAI's, or what LiteLLM translates for."""
    api_base: HttpBase | None = Field(None, validate_default=True)
    """Where it is. With protocol litellm it may be left out: then it is where its provider is."""
    model: Annotated[str, Field(min_length=1, max_length=256)] = Field(
        default_factory=lambda data: "tgi" if data.get("protocol") == "tgi" else str(data.get("name", "")),
        validate_default=True,
    )
    """What the engine itself calls the model; with protocol litellm `provider/name`."""
    api_key: Secret | None = None
    """With protocol litellm it may be left out: then the provider's own environment variables hold."""
    api_version: Option | None = None
    """With protocol litellm and a model of azure."""
    aws_region_name: Option | None = None
    """With protocol litellm and a model of bedrock."""
    vertex_project: Option | None = None
    """With protocol litellm and a model of vertex_ai."""
    vertex_location: Option | None = None
    """With protocol litellm and a model of vertex_ai."""
    tokenizer: str | None = None
    """The model's own: a tiktoken encoding, the path of its tokenizer.json, or its name on the hub, out of the hub's
    cache. For what the engine did not count. Default: not known; then such counts are estimates."""
    max_concurrency: Annotated[Whole, Field(ge=1, le=100_000)] = 96
    """Calls in flight over the whole fleet while this model is a teacher."""
    batch: BatchSettings = BatchSettings()
    """As a teacher: what one batch of guidance calls may hold."""
    guidance_cache_bytes: Annotated[Size, sized("0B", "100GB")] = Field(64_000_000, alias="guidance_cache")
    """As a teacher: how much of its greedy guidance Redis keeps for identical requests."""
    continuation: Literal["auto", Mode, "none"] = Field(
        default_factory=lambda data: "trailing" if data.get("protocol") == "tgi" else "auto"
    )
    """How the engine is told to continue an answer that another model began."""
    echo: Literal["auto", True, False] = "auto"
    """Whether the engine repeats the text that it continues."""
    reasoning: Reasoning = "none"
    """Whether the model reasons before it answers, and whether it can be told not to."""
    max_output_tokens: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = None
    """The most tokens that one answer can have: what a request without a limit may cost rests on it."""
    price_rule: PriceRule | None = Field(None, alias="price", validate_default=True)
    """In USD. Needed, unless `model` has a known list price; 0 is allowed."""
    timeouts: TimeoutSettings = TimeoutSettings()
    """How long it may take."""
    breaker: BreakerSettings = BreakerSettings()
    """When it is left alone."""
    foreign: ClassVar[Mapping[str, str]] = {
        "model_name": "here it is called name",
        "litellm_params": "write what it holds (model, api_base, api_key) beside name, and protocol: litellm",
        "custom_llm_provider": "write it before the model, as provider/name, with protocol: litellm",
        "base_url": "here it is called api_base",
        "timeout": "say which one under timeouts: connect, first_token, idle or total",
        "stream_timeout": "say which one under timeouts: first_token or idle",
        "model_info": "its prices stand under price here, per 1M tokens",
        "rpm": _NO_RATE,
        "tpm": _NO_RATE,
    }

    @cached_property
    def price(self) -> Price:
        """USD per token: what the YAML says, else the list price of `model`."""
        price = self.price_rule.price() if self.price_rule else litellm_table(self.model)
        assert price is not None  # held by _known_price
        return price

    @property
    def listed_max_output(self) -> int | None:
        """The most tokens of one answer in LiteLLM's table. Not looked up for a model of one's own, with a price."""
        return litellm_max_output(self.model) if self.price_rule is None or self.protocol == "litellm" else None

    @property
    def options(self) -> dict[str, str]:
        """What LiteLLM's call needs beside the address and the key."""
        return {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}

    @field_validator("api_base")
    @classmethod
    def _without_the_route(cls, base: str | None, info: ValidationInfo) -> str | None:
        if base is None:
            if info.data.get("protocol") in {"tgi", "openai"}:
                raise InvalidValue(MISSING)
            return None
        tgi = info.data.get("protocol") == "tgi"
        for route in ("/chat/completions", "/completions", "/generate", "/generate_stream"):
            if base.endswith(route):
                root = base.removesuffix(route)
                raise InvalidValue(
                    f"must end before {route}: the gateway adds the route", root.removesuffix("/v1") if tgi else root
                )
        if tgi and base.endswith("/v1"):
            raise InvalidValue("must end before /v1 with protocol tgi: the gateway adds it", base.removesuffix("/v1"))
        return base

    @field_validator("model")
    @classmethod
    def _of_a_known_provider(cls, model: str, info: ValidationInfo) -> str:
        if info.data.get("protocol") != "litellm":
            return model
        provider, _, name = model.partition("/")
        if not name:
            raise InvalidValue("must be provider/name with protocol litellm, like anthropic/claude-sonnet-4-5")
        if providers() and provider not in providers():
            raise InvalidValue(f"LiteLLM knows no provider '{provider}'", nearest(provider, providers()))
        return model

    @field_validator(*OPTIONS)
    @classmethod
    def _of_its_provider(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or "model" not in info.data or "protocol" not in info.data:
            return value
        provider = str(info.data["model"]).partition("/")[0]
        meant = OPTIONS[info.field_name or ""]
        if info.data["protocol"] != "litellm" or provider not in meant:
            raise InvalidValue(f"is for protocol litellm with a model of {' or '.join(meant)}: remove it")
        return value

    @field_validator("tokenizer")
    @classmethod
    def _known_tokenizer(cls, tokenizer: str | None, info: ValidationInfo) -> str | None:
        if tokenizer is None or tokenizer in ENCODINGS:
            return tokenizer
        source = origin(info)
        return tokenizer_file(tokenizer, source.folder if source else Path())

    @field_validator("batch")
    @classmethod
    def _takes_lists(cls, batch: BatchSettings, info: ValidationInfo) -> BatchSettings:
        if info.data.get("protocol") == "litellm" and batch.calls == "list":
            raise InvalidValue(
                "calls: list is not for protocol litellm: its providers take one chat a call. Write single"
            )
        if info.data.get("protocol") == "tgi" and batch.calls == "list":
            raise InvalidValue(
                "calls: list is not for TGI: its list of prompts fails as one and turns its prefix cache off, and it "
                "puts single calls into one batch by itself. Write calls: single"
            )
        return batch

    @field_validator("continuation")
    @classmethod
    def _as_tgi_does(cls, continuation: str, info: ValidationInfo) -> str:
        if info.data.get("protocol") == "tgi" and continuation not in {"auto", *TGI.modes, "none"}:
            raise InvalidValue(
                f"TGI does not know this way: write auto, {', '.join(TGI.modes)}, or none to leave it alone"
            )
        return continuation

    @field_validator("continuation")
    @classmethod
    def _as_litellm_can(cls, continuation: str, info: ValidationInfo) -> str:
        if info.data.get("protocol") == "litellm":
            provider = str(info.data.get("model")).partition("/")[0]
            flags = continuation == "vllm" and provider not in {"hosted_vllm", "openai"}
            if flags or continuation in {"sglang", "partial", "completions"}:
                raise InvalidValue(
                    f"{continuation} does not go through LiteLLM to {provider}: use protocol openai for it"
                )
        return continuation

    @field_validator("echo")
    @classmethod
    def _tgi_never_echoes(cls, echo: object, info: ValidationInfo) -> object:
        if info.data.get("protocol") == "tgi" and echo is True:
            raise InvalidValue("TGI never repeats the text that it continues: leave this out")
        return echo

    @field_validator("reasoning")
    @classmethod
    def _tgi_cannot_be_told(cls, reasoning: Reasoning, info: ValidationInfo) -> Reasoning:
        if info.data.get("protocol") == "tgi" and reasoning == "switchable":
            raise InvalidValue(
                "TGI passes no switch on to the chat template: write always, or none if it does not reason"
            )
        return reasoning

    @field_validator("price_rule")
    @classmethod
    def _known_price(cls, rule: PriceRule | None, info: ValidationInfo) -> PriceRule | None:
        if rule is not None:
            problem = rule.problem()
            if problem:
                raise InvalidValue(problem)
            return rule
        model = info.data.get("model") or info.data.get("name")
        if model and litellm_table(str(model)) is None:
            raise InvalidValue(
                "missing, and no list price is known: add input_per_1m and output_per_1m (0 if it is free)"
            )
        return rule
