"""Values that `init` derives from measured times and from providers, and the text of its files."""

from __future__ import annotations

import asyncio
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.init_engines import (
    ChosenEngine,
    EngineApi,
    ProbedEngine,
    chosen_model,
    keys_of_provider,
    missing_key,
    with_probed_keys,
    without_route,
)
from gateway.cli.init_files import NewGateway, Ports, checked
from gateway.config.models import ModelSettings
from gateway.config.scalars import ValueOrigin
from gateway.errors import ConfigError
from gateway.protocol.capabilities.continuation import Continuation

ROOT = Path(__file__).parents[2]
ANSWERS = ProbedEngine(None, "none", 0)
TEACHER = ChosenEngine(
    "teacher",
    "Qwen/Qwen2.5-72B-Instruct",
    {
        "name": "big",
        "protocol": "tgi",
        "api_base": "http://127.0.0.1:8090",
        "price": {"input_per_1m": Decimal("0.90"), "output_per_1m": Decimal("0.90")},
    },
)
STUDENT = ChosenEngine(
    "student",
    "Qwen/Qwen2.5-7B-Instruct",
    {
        "name": "small",
        "protocol": "openai",
        "api_base": "http://127.0.0.1:8000/v1",
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "price": {"input_per_1m": Decimal("0.10"), "output_per_1m": Decimal("0.10")},
    },
)
CONTINUES = ProbedEngine(Continuation("vllm", echo=False), "none", 0)


def gateway(**more: Any) -> NewGateway:
    known = {"tenant": "default", "route": "chat", "redis": "embedded", "ports": Ports(), "tokens": 40}
    known |= {"engines": ((TEACHER, ANSWERS), (STUDENT, CONTINUES)), "key": "gk-dev"}
    known |= {"admin_key": "an-admin-key-for-tests"}
    return NewGateway(**{**known, **more})


@pytest.mark.parametrize(
    ("keys", "mode", "continuation"),
    [
        ({"protocol": "openai"}, "vllm", None),  # probed at each start
        ({"protocol": "openai"}, None, "none"),
        ({"protocol": "tgi"}, "trailing", None),
        ({"protocol": "tgi"}, "completions", "completions"),  # the default is not probed
        ({"protocol": "litellm"}, "trailing", "trailing"),  # a probe costs money
        ({"protocol": "openai", "api_base": "https://api.openai.com/v1"}, "instruct", "instruct"),
        ({"protocol": "litellm"}, None, "none"),
    ],
)
def test_continuation_is_written_where_the_gateway_would_not_find_it(
    keys: dict[str, str], mode: Any, continuation: str | None
) -> None:
    probed = CONTINUES._replace(continuation=None if mode is None else Continuation(mode))
    assert with_probed_keys(ChosenEngine("student", "it", keys), probed).keys.get("continuation") == continuation


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://host:8000/", "http://host:8000"),
        (" https://host/openai/v1/chat/completions ", "https://host/openai/v1"),
        ("http://host/generate", "http://host"),
        ("localhost:8000/v1", "http://localhost:8000/v1"),
        ("engine.internal/v1", "http://engine.internal/v1"),
        ("anthropic/claude-sonnet-4-5", "anthropic/claude-sonnet-4-5"),
    ],
)
def test_a_url_is_the_base_of_the_routes(url: str, base: str) -> None:
    assert without_route(url) == base


def test_the_only_model_is_chosen_and_another_name_of_tgi_is_an_adapter() -> None:
    listed = EngineApi("openai", "http://host/v1", ("one",))
    assert chosen_model(listed, "student", None) == "one"
    assert chosen_model(listed._replace(served=()), "student", "any") == "any"
    assert chosen_model(listed._replace(served=("one", "two")), "student", None) is None
    tgi = EngineApi("tgi", "http://host", ("org/one",))
    assert [chosen_model(tgi, "teacher", name) for name in (None, "org/one", "adapter")] == ["tgi", "tgi", "adapter"]


def test_a_model_of_openai_has_openais_protocol_and_other_providers_use_litellm() -> None:
    """As the configuration reads `model: openai/name`."""
    keys = keys_of_provider("openai/gpt-4.1-mini")
    assert keys == {
        "protocol": "openai",
        "api_base": "https://api.openai.com/v1",
        "model": "gpt-4.1-mini",
        "api_key": "env:OPENAI_API_KEY",
    }
    written, short = ({**one, "name": "it"} for one in (keys, {"model": "openai/gpt-4.1-mini"}))
    source = ValueOrigin({"OPENAI_API_KEY": "secret"}, Path())
    models = [ModelSettings.model_validate({**one, "continuation": "none"}, context=source) for one in (written, short)]
    assert models[0] == models[1]
    claude = "anthropic/claude-sonnet-4-5"
    assert keys_of_provider(claude) == {"protocol": "litellm", "model": claude}


@pytest.mark.parametrize(
    ("model", "environ", "variable"),
    [
        ("openai/gpt-4.1-mini", {}, "OPENAI_API_KEY"),
        ("openai/gpt-4.1-mini", {"OPENAI_API_KEY": " "}, "OPENAI_API_KEY"),
        ("openai/gpt-4.1-mini", {"OPENAI_API_KEY": "secret"}, None),
        ("anthropic/claude-sonnet-4-5", {}, "ANTHROPIC_API_KEY"),
        ("anthropic/claude-sonnet-4-5", {"ANTHROPIC_API_KEY": "secret"}, None),
        ("gemini/gemini-2.5-pro", {}, "GEMINI_API_KEY"),
        ("perplexity/sonar", {"PERPLEXITY_API_KEY": "secret"}, None),  # LiteLLM reports PERPLEXITYAI_API_KEY
        ("azure/mine", {}, None),  # Entra ID
        ("bedrock/amazon.nova-lite-v1:0", {}, None),  # a role of the machine
        ("ollama/qwen3", {}, None),
    ],
)
def test_the_variable_of_a_missing_key_is_known(
    model: str, environ: dict[str, str], variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in filter(re.compile(r"(OPENAI|ANTHROPIC|GEMINI|GOOGLE|PERPLEXITY|AZURE|AWS)").match, [*os.environ]):
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert asyncio.run(missing_key(keys_of_provider(model))) == variable


def test_the_quickstart_shows_the_written_files() -> None:
    page = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    shown = dict(re.findall(r"```yaml\n# (\S+)\n(.*?)```", page, re.DOTALL))
    assert shown == {str(path): text for path, text in gateway().files().items() if path.suffix == ".yaml"}


def test_names_with_any_characters_are_quoted() -> None:
    name = 'a: "b" #\\ yes ${HOME} $${HOME}'
    student = ChosenEngine("student", name, {**STUDENT.keys, "model": name})
    adapter = ChosenEngine("teacher", "large\n- evil: 1", {**TEACHER.keys, "model": "yes"})
    files = gateway(
        engines=((adapter, ANSWERS), (student, CONTINUES)), tenant="on", route="no", redis="redis://127.0.0.1:6379/0"
    ).files()
    settings, book = checked(files, Path())
    assert (settings.by_name["small"].model, settings.by_name["big"].model) == (name, "yes")
    assert settings.redis.url.get_secret_value() == "redis://127.0.0.1:6379/0"
    assert (book.policies[0].tenant, book.policies[0].routes[0].model) == ("on", "no")


def test_other_ports_are_written() -> None:
    settings, book = checked(gateway(ports=Ports(8100, 8101)).files(), Path())
    assert (settings.server.port, settings.admin.port) == (8100, 8101)
    assert settings.admin.key is not None
    assert settings.admin.key.get_secret_value() == "an-admin-key-for-tests"
    assert book.policies[0].routes[0].guidance.deadline == "auto"


def test_files_with_an_issue_are_an_error() -> None:
    own_address = ChosenEngine("teacher", "it", {**TEACHER.keys, "api_base": "http://127.0.0.1:8080"})
    with pytest.raises(ConfigError, match="is the address of this gateway itself"):
        checked(gateway(engines=((own_address, ANSWERS), (STUDENT, CONTINUES))).files(), Path())
