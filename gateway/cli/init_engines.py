"""Engines for `init`: their API and models, how they continue a text, and the settings that follow."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import ValidationError

from gateway.cli.timed_stream import time_stream
from gateway.config.models import ModelSettings
from gateway.config.providers import OPENAI, completed
from gateway.config.scalars import ValueOrigin
from gateway.config.settings import environment
from gateway.engines.http import EngineDeadlines, EngineHttp
from gateway.engines.refusal import BLAMES_CREDENTIALS
from gateway.engines.replies import listed_model
from gateway.errors import (
    EngineError,
    EngineFailed,
    EngineProtocolError,
    EngineRejected,
    EngineTimeout,
    EngineUnreachable,
    StartupError,
)
from gateway.evaluation.pair import built
from gateway.policy.guidance_rule import GuidanceRule

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.policy.projections import Placement
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Continuation
    from gateway.protocol.capabilities.reasoning import Reasoning

Role = Literal["teacher", "student"]
NAMES = {"teacher": "big", "student": "small"}
"""Names of the two models in config.yaml, as in the documentation's examples."""
PROTOCOLS = {
    "tgi": "Text Generation Inference",
    "openai": "an OpenAI-compatible server",
    "litellm": "a provider through LiteLLM",
}

DEFAULT_TOKENS = GuidanceRule().tokens
_CALL_LIMITS = EngineDeadlines(connect_s=5.0, first_token_s=15.0, idle_s=15.0, total_s=30.0)
_PROBE_LIMITS: Json = {"connect": "5s", "first_token": "2m", "idle": "1m", "total": "5m"}  # it may load its model
_PROBE = (8, 16)  # words of the prompt, tokens of the answer
_MOST_NAMES = 20
_ENV = "env:"
_KEY_NAMES = ("_KEY", "_TOKEN")  # ends of the names of variables with API keys
# A URL is the base of routes. People copy it with one.
_ROUTES = ("/chat/completions", "/completions", "/models", "/generate_stream", "/generate", "/info")


class EngineApi(NamedTuple):
    """The API of a running engine, and the names of the models that it lists."""

    protocol: Literal["tgi", "openai"]
    api_base: str
    served: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChosenEngine:
    """An engine with its keys of config.yaml. `shown` is its model's name for people."""

    role: Role
    shown: str
    keys: Json

    @property
    def place(self) -> str:
        """The role and the address of the engine, for messages."""
        return f"{self.role} {self.keys.get('api_base', self.shown)}"

    def settings(self, folder: Path, **more: object) -> ModelSettings:
        """Return the validated settings. References are resolved. Raises StartupError, which names the option."""
        try:
            return ModelSettings.model_validate(
                {**self.keys, **more}, context=ValueOrigin(environment(), folder), by_alias=True, by_name=False
            )
        except ValidationError as error:
            detail = error.errors()[0]
            option = {"api_key": "-key", "price": "-price", "price_rule": "-price"}.get(str(detail["loc"][0]), "")
            if detail["loc"][0] == "model" and self.keys["protocol"] != "litellm":
                option = "-model"
            message = detail["msg"].removeprefix("Value error, ")
            raise StartupError(f"--{self.role}{option}: {message}") from None


class ProbedEngine(NamedTuple):
    """Facts of an engine from probes and one short answer."""

    continuation: Continuation | None  # None: not supported, or the engine is a teacher
    reasoning: Reasoning
    temperature: float  # 0, or 1 for a model that accepts no other value

    @property
    def placement(self) -> Placement:
        """The placement of guidance for this student."""
        return "context" if self.continuation is None or self.reasoning == "always" else "prefix"


def without_route(url: str) -> str:
    """Return the base of an engine's URL. A missing http:// and routes at the end are corrected."""
    base = url.strip().rstrip("/")
    host, _, port = base.partition("/")[0].partition(":")
    # No provider of LiteLLM has a dot in its name.
    if "://" not in base and host and (port.isdigit() or "." in host):
        base = f"http://{base}"
    route = next((route for route in _ROUTES if base.endswith(route)), "")
    return base.removesuffix(route)


def keys_of_provider(model: str) -> Json:
    """Return the keys of config.yaml for `provider/model` of LiteLLM. OpenAI's own models need no LiteLLM."""
    keys = {"protocol": "litellm", **completed({"model": model})}
    return {name: keys[name] for name in ("protocol", "api_base", "model", "api_key") if name in keys}


async def missing_key(keys: Json) -> str | None:
    """Return the environment variable of a provider's API key if it is required and not set. Raises StartupError.

    Return None for providers with other credentials, such as Bedrock's, which LiteLLM finds in many places.
    """
    variables = {name for name, value in environment().items() if value.strip()}
    if "api_key" in keys:
        name = str(keys["api_key"]).removeprefix(_ENV)
        return None if name in variables else name
    # Imported here: other engines do not need it.
    from gateway.engines import litellm_library

    missing = (await litellm_library.load()).missing_variables(keys["model"])
    if not missing or not all(name.endswith(_KEY_NAMES) and "_API_" in name for name in missing):
        return None
    # LiteLLM reads some keys under several names, and reports one.
    stem = keys["model"].partition("/")[0].partition("_")[0].upper()
    has_other = any(name.startswith(stem) and name.endswith(_KEY_NAMES) for name in variables)
    return None if has_other else missing[-1]


async def find_api(role: Role, url: str, api_key: str | None) -> EngineApi:
    """Detect the API of the engine at `url`, and its models. Raises EngineError and StartupError."""
    root = url.removesuffix("/v1")
    info = await _tgi_info(role, root, api_key)
    if info is not None:
        return EngineApi("tgi", root, (info,))
    with_version = f"{root}/v1"
    bases = (url, with_version) if urlsplit(root).path else (with_version, root)
    reasons = []
    for base in dict.fromkeys(bases):
        try:
            body = await _get(role, base, "/models", api_key)
        except (EngineRejected, EngineProtocolError) as error:
            if rejects_key(error):
                raise
            reasons.append(str(error.status_sent) if isinstance(error, EngineRejected) else "no JSON")
            continue
        served = (entry.get("id") for entry in listed_model(body, None)[1])
        # Other characters could control the terminal.
        return EngineApi("openai", base, tuple(one for one in served if isinstance(one, str) and one.isprintable()))
    raise StartupError(
        f"{role} {url} has neither TGI's /info nor OpenAI's /models ({', '.join(dict.fromkeys(reasons))}): correct the "
        "URL, or write provider/model for a provider of LiteLLM"
    )


async def _tgi_info(role: Role, root: str, api_key: str | None) -> str | None:
    """Return the model of a TGI server; None for any other server."""
    try:
        info = await _get(role, root, "/info", api_key)
    except (EngineRejected, EngineFailed, EngineProtocolError):
        return None
    # text-embeddings-inference has an /info with `model_type`.
    if not isinstance(info, dict) or "model_type" in info or "max_total_tokens" not in info:
        return None
    return model if isinstance(model := info.get("model_id"), str) and model.isprintable() else None


async def _get(role: Role, base: str, path: str, api_key: str | None) -> Any:
    http = EngineHttp(role, base, api_key=api_key, deadlines=_CALL_LIMITS)
    try:
        return (await http.get(path)).body
    finally:
        await http.close()


def rejects_key(error: EngineError) -> bool:
    """Return whether the engine requires another key."""
    return isinstance(error, EngineRejected) and error.status_sent in BLAMES_CREDENTIALS


def explained(error: EngineError, role: Role, place: str, key: str | None) -> StartupError:
    """Return the error of a call to an engine with its remedy. `key` is the reference to the engine's key."""
    if isinstance(error, EngineRejected) and rejects_key(error):
        problem = f"requires a key ({error.status_sent}): name its environment variable with --{role}-key env:NAME"
        if key is not None:
            problem = f"rejects the key in {key} ({error.status_sent}): correct the variable, or --{role}-key"
    elif isinstance(error, EngineUnreachable):
        problem = f"is not reachable ({_reason(error)}): start the engine, or correct the URL"
    elif isinstance(error, EngineTimeout):
        problem = "accepts connections, but does not answer in time: wait until the engine has loaded its model"
    else:
        problem = f"cannot be used: {error.message.removesuffix('.')}"
        if "://" not in place and key is None:  # LiteLLM reports a missing key in many ways
            problem += f". If the provider requires a key, name its environment variable with --{role}-key env:NAME"
    return StartupError(f"{place} {problem}")


def _reason(error: EngineError) -> str:
    system = getattr(error.__cause__, "os_error", error.__cause__)
    if isinstance(system, ConnectionRefusedError):
        return "connection refused"
    text = getattr(system, "strerror", None)
    return str(text).lower() if text else "no connection"


def chosen_model(api: EngineApi, role: Role, given: str | None) -> str | None:
    """Return the name of the model at the engine; None if one of several must be chosen. Raises StartupError."""
    if api.protocol == "tgi":
        return "tgi" if given is None or given in api.served else given  # another name is a LoRA adapter
    if given is None:
        return api.served[0] if len(api.served) == 1 else None
    if api.served and given not in api.served:
        raise StartupError(f"{role} {api.api_base} has no model {given}. Its models: {names_of(api)}")
    return given


def names_of(api: EngineApi) -> str:
    """Return the models that an engine lists as text, at most the first 20."""
    more = len(api.served) - _MOST_NAMES
    return ", ".join(api.served[:_MOST_NAMES]) + (f" or one of {more} more" if more > 0 else "")


async def probe_engine(engine: ChosenEngine, folder: Path) -> ProbedEngine:
    """Probe an engine, and request one short answer. Raises StartupError with a remedy.

    A model that reasons before it answers is probed again with its reasoning switched off.
    """
    teaches = engine.role == "teacher"
    switchable: tuple[Reasoning, ...] = () if engine.keys["protocol"] == "tgi" else ("switchable",)
    probed: ProbedEngine | None = None
    # A teacher continues no text, and its probes would take time.
    more: Json = {"continuation": "none" if teaches else "auto", "timeouts": _PROBE_LIMITS, "name": engine.role}
    for reasoning in ("none", *switchable):
        settings = engine.settings(folder, reasoning=reasoning, **more)
        try:
            found, is_reasoning = await _probe(settings)
        except EngineError as error:
            if probed is not None and isinstance(error, EngineRejected) and error.blames_request:
                break  # the engine has no such switch
            raise explained(error, engine.role, engine.place, engine.keys.get("api_key")) from error
        if not is_reasoning:
            return found
        probed = found
    assert probed is not None
    if teaches:
        raise StartupError(
            f"{engine.place} reasons before it answers, or writes no text: its first tokens are no guidance. "
            "Switch its reasoning off at the server, or use another teacher"
        )
    return probed._replace(reasoning="always")


async def _probe(settings: ModelSettings) -> tuple[ProbedEngine, bool]:
    """Return the facts of an engine, and whether its answer has only reasoning. Raises EngineError."""
    generator = random.Random()  # noqa: S311  another text each time, no secret
    temperature = 0.0
    async with built(settings) as engine:
        timed_stream = partial(time_stream, engine, generator, *_PROBE, reasoning=settings.reasoning)
        await engine.probe()
        try:
            answer = await timed_stream()
        except EngineRejected as error:
            if "temperature" not in error.message.lower():
                raise
            temperature = 1.0
            answer = await timed_stream(temperature=temperature)
        known = engine.state.continuation
        assert known != "not_probed"
        return ProbedEngine(known, settings.reasoning, temperature), answer.is_reasoning


def with_probed_keys(engine: ChosenEngine, probed: ProbedEngine) -> ChosenEngine:
    """Return the engine with the keys of config.yaml that follow from its probes."""
    keys = dict(engine.keys)
    if engine.role == "student" and probed.continuation is None:
        keys["continuation"] = "none"
    elif keys["protocol"] == "litellm" or keys.get("api_base") == OPENAI["api_base"]:
        # `auto` would make a paid call at each start.
        keys["continuation"] = probed.continuation.mode if probed.continuation is not None else "none"
    elif keys["protocol"] == "tgi" and probed.continuation is not None and probed.continuation.mode != "trailing":
        keys["continuation"] = probed.continuation.mode
    if probed.reasoning != "none":
        keys["reasoning"] = probed.reasoning
    return replace(engine, keys=keys)
