"""Conversion of a LiteLLM proxy configuration: each setting is converted or listed, and the result is valid."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from gateway.config.scalars import ValueOrigin
from gateway.config.settings import Settings, check_settings
from gateway.config.yaml_source import parse
from gateway.engines import litellm_library
from gateway.errors import ConfigError
from gateway.migration.litellm import CONFIG_FILE, POLICY_FILE, Conversion, convert_litellm
from gateway.migration.notes import EQUIVALENTS
from gateway.policy.schema import TenantPolicy
from tests.migration import litellm_keys
from tests.migration.litellm_sample import SAMPLE, VARIABLES

DOCS = Path(__file__).parents[2] / "docs" / "litellm.md"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(text: str) -> Conversion:
    """Convert a configuration. Assert that the gateway accepts both files, except unknown prices."""
    Path("litellm.yaml").write_text(text)
    result = convert_litellm(Path("litellm.yaml"))
    environ = {
        name: "redis://:x@redis:6379/0" if "REDIS" in name else "http://host" if name.endswith("_URL") else "x" * 32
        for name in result.variables
    }
    for path, model in ((CONFIG_FILE, Settings), (POLICY_FILE, TenantPolicy)):
        source, issues = parse(result.files[path].encode(), str(path), environ=environ)
        assert issues == []
        assert source is not None
        issues = source.check(model, ValueOrigin(environ, Path()) if model is Settings else None)[1]
        assert [issue for issue in issues if not issue.field.endswith(".price")] == []
    return result


def deployment(params: str, more: str = "", name: str = "m") -> str:
    """Return a configuration with one model."""
    return f"model_list:\n  - model_name: {name}\n    litellm_params: {{{params}}}\n    {more}\n"


def config(result: Conversion) -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(result.files[CONFIG_FILE])
    return loaded


def models(result: Conversion) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = config(result)["models"]
    return loaded


def routes(result: Conversion) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = YAML(typ="safe").load(result.files[POLICY_FILE])["routes"]
    return loaded


def messages(result: Conversion, field: str) -> list[str]:
    return [one.message for one in result.not_converted if one.field == field]


ONE = deployment("model: gpt-4o")


# --- nothing is lost ---

LITELLM_PARAMS = litellm_keys.of_classes(
    "types/router.py", "CredentialLiteLLMParams", "GenericLiteLLMParams", "LiteLLMParamsTypedDict"
)
KNOWN_KEYS = {
    "litellm_params": {*LITELLM_PARAMS, "temperature", "max_tokens", "extra_headers", "base_url", "not_of_litellm"},
    "model_info": {*litellm_keys.of_classes("types/router.py", "ModelInfo"), "mode", "max_output_tokens", "not_there"},
    "router_settings": {
        *litellm_keys.of_classes("types/router.py", "UpdateRouterConfig"),
        *litellm_keys.of_function("router.py", "_router_init"),
        "not_of_litellm",
    },
    "litellm_settings": {*litellm_keys.of_module("__init__.py"), "request_timeout", "guardrails", "nothing"},
    "general_settings": {*litellm_keys.of_classes("proxy/_types.py", "ConfigGeneralSettings"), "not_of_litellm"},
}
"""Each setting that LiteLLM knows, by section, and some that no version knows."""
_STRUCTURE = {
    "model": "azure/gpt-4o",
    "custom_llm_provider": "azure",
    "api_base": "https://eu.example.openai.azure.com",
    "mode": "chat",
}
"""Values without which nothing could be converted."""
_WHOLE = ("model_list", "model_name", "litellm_params", "model_info", "litellm_credential_name")
CONVERTED = {
    "litellm_params": {"model", "custom_llm_provider", "api_base", "api_version"},
    "model_info": {"mode"},
    "router_settings": set[str](),
    "litellm_settings": set[str](),
    "general_settings": set[str](),
}
"""Settings that a text converts. Secrets are converted and listed. Numbers and names of models have other tests."""


def everything(value: str) -> str:
    """Return a configuration with each known setting on its own line."""
    lines = []
    for section, keys in KNOWN_KEYS.items():
        if section == "litellm_params":
            lines += ["model_list:", "  - model_name: chat", "    litellm_params:"]
        else:
            lines.append("    model_info:" if section == "model_info" else f"{section}:")
        indent = "      " if section in {"litellm_params", "model_info"} else "  "
        lines += [f"{indent}{name}: {_STRUCTURE.get(name, value)}" for name in sorted(keys) if name not in _WHOLE]
    return "\n".join(lines) + "\n"


def test_each_setting_is_converted_or_listed_with_its_line() -> None:
    text = everything("some-text")
    listed = {(one.line, one.field) for one in convert(text).not_converted}
    section = ""
    unlisted: dict[str, set[str]] = {name: set() for name in KNOWN_KEYS}
    for number, line in enumerate(text.splitlines(), 1):
        name = line.split(":")[0].strip()
        if name in KNOWN_KEYS:
            section = name
        if name in _WHOLE or name in KNOWN_KEYS or name.startswith("- "):
            continue
        path = f"model_list[0].{section}.{name}" if section in {"litellm_params", "model_info"} else f"{section}.{name}"
        if (number, path) not in listed:
            unlisted[section].add(name)
    assert unlisted == CONVERTED


def test_no_value_of_a_setting_for_secrets_is_copied_or_shown() -> None:
    words = ("key", "secret", "password", "token", "credential", "pass")
    secrets: list[str] = []

    def hidden(line: str) -> str:
        name, colon, value = line.partition(": ")
        if colon and any(word in name for word in words) and "of_litellm" not in name and value == "some-text":
            secrets.append(f"literal-{len(secrets)}-secret")
            return f"{name}: {secrets[-1]}"
        return line

    text = "\n".join(map(hidden, everything("some-text").splitlines()))
    result = convert(text)
    shown = "\n".join([*result.files.values(), *map(str, result.not_converted), *result.variables])
    assert len(secrets) > 50
    assert [one for one in secrets if one in shown] == []


def test_other_sections_are_listed_once_with_their_equivalent() -> None:
    more = "guardrails:\n  - {guardrail_name: pii}\nenvironment_variables: {A: b}\ninclude: [more.yaml]\n"
    listed = [str(one) for one in convert(ONE + more).not_converted]
    assert listed == [
        "litellm.yaml:5: guardrails: not converted",
        "litellm.yaml:7: environment_variables: not converted: set them in the gateway's environment",
        "litellm.yaml:8: include: not converted: copy the included files into this file, and import again",
    ]


def test_each_equivalent_is_one_of_the_guide() -> None:
    text = DOCS.read_text("utf-8")
    assert [setting for setting in EQUIVALENTS if setting.rpartition(".")[2] not in text] == []


# --- models ---


def test_the_sample_becomes_models() -> None:
    assert models(convert(SAMPLE)) == [
        {
            "name": "gpt-4o",
            "model": "azure/gpt-4o-eu",
            "api_base": "https://eu.example.openai.azure.com",
            "api_version": "2024-10-21",
            "api_key": "env:AZURE_EU_KEY",
            "price": {"input_per_1m": 2.5, "output_per_1m": 10},
        },
        {"name": "gpt-4o-2", "model": "openai/gpt-4o", "api_key": "env:GPT_4O_2_API_KEY"},
        {"name": "claude", "model": "anthropic/claude-sonnet-4-5", "api_key": "env:ANTHROPIC_API_KEY"},
        {
            "name": "llama",
            "protocol": "openai",
            "model": "meta-llama/Llama-3.1-8B-Instruct",
            "api_base": "http://vllm:8000/v1",
            "price": {"input_per_1m": 0.05, "output_per_1m": 0.08},
        },
        {"name": "embeddings", "model": "openai/text-embedding-3-small", "api_key": "env:OPENAI_API_KEY"},
    ]


def test_the_sample_needs_exactly_its_variables() -> None:
    assert convert(SAMPLE).variables == list(VARIABLES)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ("model: gpt-4o", {"model": "openai/gpt-4o", "api_key": "env:OPENAI_API_KEY"}),
        ("model: claude-sonnet-4-5", {"model": "anthropic/claude-sonnet-4-5"}),
        ("model: gemini-2.5-pro", {"model": "vertex_ai/gemini-2.5-pro"}),
        ("model: x, custom_llm_provider: openai, api_base: http://h/v1", {"protocol": "openai", "model": "x"}),
        ("model: openai/responses/x", {"protocol": "litellm", "model": "openai/responses/x", "continuation": "none"}),
        ("model: huggingface/org/m, api_base: http://tgi:80", {"protocol": "tgi", "api_base": "http://tgi:80"}),
        ("model: huggingface/org/m", {"model": "huggingface/org/m"}),
        ("model: ollama/llama3, api_base: http://o:11434", {"model": "ollama/llama3", "api_base": "http://o:11434"}),
        ("model: hosted_vllm/m", {"model": "hosted_vllm/m"}),
        ("model: bedrock/m, aws_region_name: eu-central-1", {"aws_region_name": "eu-central-1"}),
        ("model: vertex_ai/m, vertex_project: p, vertex_location: l", {"vertex_project": "p", "vertex_location": "l"}),
        ("model: openai/m, base_url: os.environ/VLLM_URL", {"api_base": "${VLLM_URL}"}),
        ("model: openai/m, api_base: 'http://h/v1', api_key: os.environ/KEY", {"api_key": "env:KEY"}),
    ],
)
def test_a_deployment_becomes_a_model(params: str, expected: dict[str, Any]) -> None:
    (one,) = models(convert(deployment(params)))
    assert {name: one.get(name) for name in expected} == expected


def test_an_address_of_the_environment_is_a_variable_to_set() -> None:
    assert convert(deployment("model: openai/m, api_base: os.environ/VLLM_URL")).variables == ["VLLM_URL"]


def test_a_server_does_not_get_openais_key() -> None:
    result = convert(deployment("model: openai/m, api_base: 'http://h/v1'"))
    assert "api_key" not in models(result)[0]
    assert messages(result, "model_list[0].litellm_params.api_key") == [
        "not converted: LiteLLM sends OPENAI_API_KEY to api_base; the gateway sends no key"
    ]


def test_equal_secrets_share_a_variable_and_different_ones_do_not() -> None:
    secrets = ("a", "b", "a", "c", "os.environ/M_4_API_KEY")
    text = "model_list:\n" + "".join(
        f"  - {{model_name: m, litellm_params: {{model: openai/m, api_key: {secret}}}}}\n" for secret in secrets
    )
    result = convert(text)
    assert [one["api_key"].removeprefix("env:") for one in models(result)] == [
        "M_API_KEY",
        "M_2_API_KEY",
        "M_API_KEY",
        "M_4_API_KEY_2",
        "M_4_API_KEY",
    ]
    assert messages(result, "model_list[1].litellm_params.api_key") == [
        "not converted: set the environment variable M_2_API_KEY to this secret"
    ]


@pytest.mark.parametrize(
    ("params", "more", "reason"),
    [
        ("model: 'anthropic/*'", "", "a wildcard"),
        ("model: unknown-model", "", "the provider of 'unknown-model' is unknown"),
        ("model: m, custom_llm_provider: nobody", "", "name the provider in model"),
        ("api_key: x", "", "needs model_name and litellm_params.model"),
        ("model: openai/dall-e-9", "model_info: {mode: image_generation}", "mode image_generation"),
        ("model: whisper-1", "", "mode audio_transcription"),
        ("model: azure/ada", "model_info: {mode: embedding}", "embeddings need a server with OpenAI's API"),
        ("model: openai/m, litellm_credential_name: c", "", "write the values of its credential"),
        ("model: openai/m, api_base: no-address, api_key: literal, rpm: 1", "", "api_base: must be an address"),
        ("model: anthropic/m, api_base: 'https://user:x@h'", "", "api_base: must not contain a user name"),
        ("model: openai/m, api_base: 'https://h/${A}'", "", "api_base: must not contain ${"),
        ("model: openai/m, api_base: [h]", "", "api_base: must be text"),
    ],
)
def test_a_deployment_that_the_gateway_cannot_call_is_listed_once_with_the_reason(
    params: str, more: str, reason: str
) -> None:
    result = convert(deployment(params, more) + deployment("model: gpt-4o", name="ok").removeprefix("model_list:\n"))
    assert [one["name"] for one in models(result)] == ["ok"]
    assert [one.field for one in result.not_converted] == ["model_list[0]"]
    assert reason in result.not_converted[0].message
    assert result.variables == ["OPENAI_API_KEY"]


def test_without_any_model_the_error_has_the_reasons() -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)litellm.yaml:2: model_list\[0\]: not converted: a wildcard.*no model of"
    ):
        convert(deployment("model: 'anthropic/*'"))


# --- prices ---


@pytest.mark.parametrize(
    ("params", "info", "price"),
    [
        (
            "",
            "input_cost_per_token: 1.2345678e-07, output_cost_per_token: '4e-7', cache_read_input_token_cost: 1e-08",
            "{input_per_1m: 0.12345678, output_per_1m: 0.4, cached_input_per_1m: 0.01}",
        ),
        (
            ", input_cost_per_token: 0.000001, output_cost_per_token: 0",
            "input_cost_per_token: 0.000002",
            "{input_per_1m: 1, output_per_1m: 0}",
        ),
        ("", "input_cost_per_token: 0, output_cost_per_token: 0", "{free: true}"),
    ],
)
def test_prices_of_the_file_are_exact(params: str, info: str, price: str) -> None:
    result = convert(deployment(f"model: openai/m, api_base: 'http://h/v1'{params}", f"model_info: {{{info}}}"))
    assert f"price: {price}\n" in result.files[CONFIG_FILE]


def test_of_two_prices_that_of_litellm_params_applies_and_the_other_is_listed() -> None:
    text = deployment("model: gpt-4o, input_cost_per_token: 0.000001", "model_info: {input_cost_per_token: 0.000002}")
    result = convert(text)
    assert models(result)[0]["price"] == {"input_per_1m": 1, "output_per_1m": None}
    assert messages(result, "model_list[0].model_info.input_cost_per_token") == ["not converted"]


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        ("{}", "missing, and no list price is known: add input_per_1m and output_per_1m, or free: true"),
        ("{input_cost_per_token: 0.000001}", "needs output_per_1m too"),
        ("{input_cost_per_token: .nan, output_cost_per_token: 0.000001}", "needs input_per_1m too"),
        ("{base_model: azure/gpt-4o}", "missing, and no list price is known: add input_per_1m and output_per_1m, or "),
    ],
)
def test_an_unknown_price_is_an_issue_of_check(info: str, problem: str, tmp_path: Path) -> None:
    result = convert(deployment("model: openai/mine, api_base: 'http://h/v1'", f"model_info: {info}"))
    _, _, issues = check_settings(tmp_path / "config.yaml", {}, result.files[CONFIG_FILE].encode())
    assert [issue.field for issue in issues] == ["models[0].price"]
    assert issues[0].message.startswith(problem)


# --- routes ---


def group(*params: str, settings: str = "") -> str:
    """Return a configuration with several deployments of `m`, and one each of `other` and `third`, of one server."""
    names = {**{f"m-{index}": ("m", one) for index, one in enumerate(params)}, "o": ("other", ""), "t": ("third", "")}
    entries = "".join(
        f"  - {{model_name: {name}, litellm_params: {{model: openai/m, api_base: 'http://h/v1', api_key: k, {one}}}}}\n"
        for name, one in names.values()
    )
    return f"model_list:\n{entries}{settings}"


@pytest.mark.parametrize(
    ("params", "settings", "students"),
    [
        (("rpm: 1",), "", {"student": "m"}),
        (("", ""), "", {"students": [{"model": "m", "weight": 1}, {"model": "m-2", "weight": 1}]}),
        (("weight: 3", "weight: 1"), "", {"students": [{"model": "m", "weight": 3}, {"model": "m-2", "weight": 1}]}),
        (
            ("weight: 600", "weight: 300"),
            "",
            {"students": [{"model": "m", "weight": 100}, {"model": "m-2", "weight": 50}]},
        ),
        (("order: 2", "order: 1", ""), "", {"students": ["m-2", "m", "m-3"]}),
        (("weight: 0", "weight: 5"), "", {"students": ["m-2", "m"]}),
        (("",), "router_settings: {fallbacks: [{m: [other]}]}", {"students": ["m", "other"]}),
        (
            ("", ""),
            "litellm_settings: {fallbacks: [{m: [other]}]}",
            {
                "students": [
                    {"model": "m", "weight": 100},
                    {"model": "m-2", "weight": 100},
                    {"model": "other", "weight": 0.01},
                ]
            },
        ),
    ],
)
def test_deployments_and_fallbacks_become_students(
    params: tuple[str, ...], settings: str, students: dict[str, Any]
) -> None:
    route = routes(convert(group(*params, settings=settings)))[0]
    assert {name: value for name, value in route.items() if name.startswith("student")} == students
    assert route["mode"] == "student"


def test_a_route_has_at_most_eight_students_and_the_others_are_listed() -> None:
    result = convert(group(*["weight: 1"] * 10))
    assert len(routes(result)[0]["students"]) == 8
    assert messages(result, "model_list[0]") == ["not converted: a route has at most 8 students; without m-9, m-10"]


def test_aliases_are_names_of_their_route_and_unknown_targets_are_listed() -> None:
    settings = (
        "router_settings: {model_group_alias: {a: m, b: {model: nobody}, c: {model: m, hidden: false}, other: m, "
        "'d e': m}, fallbacks: [{x: [m]}, {a: [other]}, {m: [y, {model: other, messages: []}, a, third]}, [m]]}"
    )
    result = convert(group("", settings=settings))
    assert [(one["model"], one.get("aliases")) for one in routes(result)] == [
        ("m", ["a", "c"]),
        ("other", None),
        ("third", None),
    ]
    assert routes(result)[0]["students"] == ["m", "third"]
    listed = [one.field.removeprefix("router_settings.") for one in result.not_converted if "router" in one.field]
    assert sorted(listed) == [
        "fallbacks[0].x",
        "fallbacks[1].a",
        "fallbacks[2].m[0]",
        "fallbacks[2].m[1]",
        "fallbacks[3]",
        "model_group_alias.b",
        "model_group_alias.c.hidden",
        "model_group_alias.d e",
        "model_group_alias.other",
    ]


CHAINS = (
    ("[{'*': [other]}, {'*': [third]}]", "null", ["m", "third"], "fallbacks[0].*"),
    ("[{'*': [third]}]", "[other]", ["m", "other"], "fallbacks[0].*"),
    ("[{m: [third]}]", "[other]", ["m", "third"], None),
    ("[{m: [third]}, {m: [other]}]", "null", ["m", "third"], "fallbacks[1].m"),
    ("[{'*': [third]}, {m: [other]}]", "null", ["m", "other"], None),
    ("[]", "[other, m]", ["m", "other"], None),
)
"""`fallbacks` and `default_fallbacks` with the fallbacks that LiteLLM then uses for `m`, and the overridden entry."""


@pytest.mark.parametrize(("fallbacks", "default", "students", "overridden"), CHAINS)
def test_of_several_entries_that_of_litellm_applies(
    fallbacks: str, default: str, students: list[str], overridden: str | None
) -> None:
    settings = f"router_settings: {{fallbacks: {fallbacks}, default_fallbacks: {default}}}\n"
    result = convert(group("", settings=settings))
    assert routes(result)[0]["students"] == students
    assert [one for one in _litellm_chain(fallbacks, default, "m") if one != "m"] == students[1:]
    listed = [one.field for one in result.not_converted if one.field.startswith("router_settings")]
    assert listed == ([] if overridden is None else [f"router_settings.{overridden}"])


def _litellm_chain(fallbacks: str, default: str, name: str) -> list[str]:
    """Return the fallbacks of a name in the installed LiteLLM, whose router appends the default ones as `*`."""
    asyncio.run(litellm_library.load())  # offline
    handlers: Any = importlib.import_module("litellm.router_utils.fallback_event_handlers")
    yaml = YAML(typ="safe")
    entries, everywhere = yaml.load(fallbacks), yaml.load(default)
    if everywhere is not None:
        entries.append({"*": everywhere})
    found: list[str] = handlers.get_fallback_model_group(entries, name)[0]
    return found


def test_fallbacks_of_two_sections_are_those_of_the_router() -> None:
    settings = "litellm_settings: {fallbacks: [{m: [other]}]}\nrouter_settings: {fallbacks: [{m: [third]}]}\n"
    result = convert(group("", settings=settings))
    assert routes(result)[0]["students"] == ["m", "third"]
    assert messages(result, "litellm_settings.fallbacks") == ["not converted"]


def test_chats_and_embeddings_share_no_route() -> None:
    fallbacks = "litellm_settings: {fallbacks: [{claude: [embeddings, llama]}, {embeddings: [claude]}]}\n"
    mixed = "  - {model_name: claude, litellm_params: {model: openai/text-embedding-3-small}}\n"
    result = convert(SAMPLE.partition("router_settings")[0] + mixed + fallbacks)
    by_name = {one["model"]: one for one in routes(result)}
    assert by_name["claude"]["students"] == ["claude", "llama"]
    assert (by_name["embeddings"]["mode"], by_name["embeddings"]["student"]) == ("embeddings", "embeddings")
    listed = [one.field for one in result.not_converted if one.message.endswith(("embeddings", "name them apart"))]
    assert listed == [
        "model_list[5]",
        "litellm_settings.fallbacks[0].claude[0]",
        "litellm_settings.fallbacks[1].embeddings[0]",
    ]


def test_a_name_that_routes_cannot_have_is_listed() -> None:
    result = convert(ONE + deployment("model: gpt-4o", name="'GPT 4o (eu)'").removeprefix("model_list:\n"))
    assert [one["model"] for one in routes(result)] == ["m"]
    assert "name: must be 1 to 128 letters" in messages(result, "model_list[1]")[0]


# --- sections ---


@pytest.mark.parametrize(
    ("settings", "url", "variables"),
    [
        ("{redis_host: redis, redis_port: 6380}", "redis://redis:6380", []),
        ("{redis_host: redis}", "redis://redis:6379", []),
        ("{redis_host: redis, redis_password: literal}", "env:GKT_REDIS_URL", ["GKT_REDIS_URL"]),
        ("{redis_host: 'user:literal@redis'}", "env:GKT_REDIS_URL", ["GKT_REDIS_URL"]),
        ("{redis_host: os.environ/REDIS_HOST}", "env:GKT_REDIS_URL", ["GKT_REDIS_URL"]),
        ("{redis_url: os.environ/REDIS_URL}", "env:REDIS_URL", ["REDIS_URL"]),
        ("{redis_url: 'redis://:literal@redis'}", "env:GKT_REDIS_URL", ["GKT_REDIS_URL"]),
    ],
)
def test_redis_is_used_without_its_password(settings: str, url: str, variables: list[str]) -> None:
    result = convert(f"{ONE}router_settings: {settings}\n")
    assert config(result)["redis"] == {"url": url}
    assert [name for name in result.variables if name != "OPENAI_API_KEY"] == variables
    assert "literal" not in "".join([*result.files.values(), *map(str, result.not_converted)])
    assert bool(result.not_converted) == (url == "env:GKT_REDIS_URL")


@pytest.mark.parametrize(("key", "name"), [("os.environ/MASTER", "MASTER"), ("sk-1234", "GKT_ADMIN_KEY")])
def test_the_master_key_is_the_admin_key(key: str, name: str) -> None:
    result = convert(f"{ONE}general_settings: {{master_key: {key}}}\n")
    assert config(result)["admin"] == {"key": f"env:{name}"}
    assert name in result.variables
    assert bool(messages(result, "general_settings.master_key")) == (name == "GKT_ADMIN_KEY")
