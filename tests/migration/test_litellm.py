"""Conversion of a LiteLLM proxy configuration: nothing is lost, and the result is valid."""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from gateway.config.scalars import ValueOrigin
from gateway.config.settings import Settings, check_settings
from gateway.config.yaml_messages import MUST_BE
from gateway.config.yaml_source import parse
from gateway.engines import litellm_library
from gateway.errors import ConfigError
from gateway.migration.litellm import CONFIG_FILE, POLICY_FILE, Conversion, convert_litellm
from gateway.policy.schema import TenantPolicy
from gateway.pricing import litellm_table
from tests.migration import litellm_keys
from tests.migration.litellm_sample import SAMPLE, VARIABLES

if TYPE_CHECKING:
    from collections.abc import Mapping


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(text: str, environ: Mapping[str, str] | None = None) -> Conversion:
    """Convert a configuration. Assert that the gateway accepts both files, except prices to fill in."""
    Path("litellm.yaml").write_text(text)
    result = convert_litellm(Path("litellm.yaml"), environ or {})
    secrets = {name: "redis://:x@redis:6379/0" if name == "GKT_REDIS_URL" else "x" * 32 for name in result.variables}
    for path, model, scope in (
        (CONFIG_FILE, Settings, ValueOrigin(secrets, Path())),
        (POLICY_FILE, TenantPolicy, None),
    ):
        source, issues = parse(result.files[path].encode(), str(path))
        assert issues == []
        assert source is not None
        unknown = [name for name in result.missing if name.startswith("price of ") and model is Settings]
        issues = source.check(model, scope)[1]
        assert [issue.field.rpartition(".")[2] for issue in issues] == ["price"] * len(unknown)
    return result


def deployment(params: str, more: str = "", name: str = "m") -> str:
    """Return a configuration with one model."""
    return f"model_list:\n  - model_name: {name}\n    litellm_params: {{{params}}}\n    {more}\n"


def models(result: Conversion) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = YAML(typ="safe").load(result.files[CONFIG_FILE])["models"]
    return loaded


def policy(result: Conversion) -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(result.files[POLICY_FILE])
    return loaded


def messages(result: Conversion, field: str) -> list[str]:
    return [one.message for one in result.notices if one.field == field]


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
    "litellm_settings": {
        *litellm_keys.of_module("__init__.py"),
        "request_timeout",
        "guardrails",
        "json_logs",
        "nothing",
    },
    "general_settings": {*litellm_keys.of_classes("proxy/_types.py", "ConfigGeneralSettings"), "not_of_litellm"},
}
"""Each setting that LiteLLM knows, by section, and some that no version knows."""
_STRUCTURE = {
    "model": "gpt-4o",
    "custom_llm_provider": "azure",
    "api_base": "https://eu.example.openai.azure.com",
    "mode": "chat",
    "default_team_params": "{max_budget: 3}",
    "default_key_generate_params": "{max_budget: 3}",
}
"""Values without which nothing could be imported."""
_WHOLE = ("model", "model_list", "model_name", "litellm_params", "model_info")


def everything(value: str, left_out: tuple[str, str] | None = None) -> str:
    """Return a configuration with each known setting on its own line, without the setting `left_out`."""
    lines = []
    for section, keys in KNOWN_KEYS.items():
        if section == "litellm_params":
            lines += ["model_list:", "  - model_name: chat", "    litellm_params:"]
        else:
            lines.append("    model_info:" if section == "model_info" else f"{section}:")
        indent = "      " if section in {"litellm_params", "model_info"} else "  "
        names = sorted({*keys, *(["model"] if section == "litellm_params" else [])})
        lines += [
            f"{indent}{name}: {_STRUCTURE.get(name, value)}"
            for name in names
            if (section, name) != left_out and (name == "model" or name not in _WHOLE)
        ]
    return "\n".join(lines) + "\n"


def alone(value: str, section: str, name: str) -> str:
    """Return a configuration with one setting and one model."""
    setting = f"{name}: {_STRUCTURE.get(name, value)}"
    if section == "litellm_params":
        return deployment(f"model: azure/gpt-4o, {setting}")
    if section == "model_info":
        return deployment("model: azure/gpt-4o", f"model_info: {{{setting}}}")
    return f"{ONE}{section}: {{{setting}}}\n"


def has_effect(result: Conversion, value: str, section: str, name: str) -> bool:
    """Return whether a setting changes the result or is listed, beside all others or alone: others may override it."""
    try:
        without = convert(everything(value, (section, name)))
    except ConfigError:
        return True
    if (without.files, without.variables) != (result.files, result.variables):
        return True
    own = convert(alone(value, section, name))
    other = convert(alone(value, section, "not_a_setting"))
    return own.files != other.files or any(name in one.field for one in own.notices)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "value", ["7", "some-text", "true", "[claude, chat]", "{chat: [claude], a: b}", "99999999999", ".nan"]
)
def test_each_setting_changes_the_result_or_is_listed_with_its_line(value: str) -> None:
    text = everything(value)
    result = convert(text)
    listed = {(one.line, one.field) for one in result.notices}
    section = ""
    unlisted = []
    for number, line in enumerate(text.splitlines(), 1):
        name = line.split(":")[0].strip()
        if name in KNOWN_KEYS:
            section = name
        if name in _WHOLE or name in KNOWN_KEYS or name.startswith("- "):
            continue
        path = f"model_list[0].{section}.{name}" if section in {"litellm_params", "model_info"} else f"{section}.{name}"
        if not any(line_number == number and field.startswith(path) for line_number, field in listed):
            unlisted.append((section, name))
    assert len(unlisted) < 60
    # Without model_info.mode, a model is for chats.
    unlisted.remove(("model_info", "mode"))
    without_effect = [one for one in unlisted if not has_effect(result, value, *one)]
    assert without_effect == []


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
    shown = "\n".join([*result.files.values(), *map(str, result.notices), *result.variables])
    assert len(secrets) > 50
    assert [one for one in secrets if one in shown] == []


def test_other_sections_and_nested_keys_are_listed_once(folder: Path) -> None:
    more = (
        "guardrails:\n  - {guardrail_name: pii, litellm_params: {guardrail: presidio}}\nenvironment_variables: {A: b}\n"
    )
    result = convert(SAMPLE + more)
    assert [one.field for one in result.notices if "guardrail" in one.field] == ["guardrails"]
    assert messages(result, "environment_variables.A") == [
        "not copied: set A in the gateway's environment, if it is needed"
    ]


# --- models ---


def test_the_sample_becomes_models_with_the_same_settings() -> None:
    azure, gpt, claude, llama, embeddings = models(convert(SAMPLE))
    assert azure["name"] == "azure-eu"
    assert azure["model"] == "azure/gpt-4o-eu"
    assert azure["price"]["input_per_1m"] == 2.5
    assert (gpt["protocol"], gpt["api_base"], gpt["model"]) == ("openai", "https://api.openai.com/v1", "gpt-4o")
    assert gpt["api_key"] == "env:GPT_4O_API_KEY"
    assert "price" not in gpt
    assert claude == {
        "name": "claude",
        "protocol": "litellm",
        "model": "anthropic/claude-sonnet-4-5",
        "api_key": "env:ANTHROPIC_API_KEY",
        "timeouts": {"first_token": "120s", "total": "120s"},
        "breaker": {"failures": 4, "cooldown": "30s"},
        "continuation": "none",
    }
    assert llama == {
        "name": "llama",
        "protocol": "openai",
        "api_base": "http://vllm:8000/v1",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "max_concurrency": 32,
        "timeouts": {"first_token": "60s", "total": "60s"},
        "breaker": {"failures": 4, "cooldown": "30s"},
        "price": {"input_per_1m": 0.05, "output_per_1m": 0.08},
    }
    assert embeddings["model"] == "text-embedding-3-small"


def test_the_sample_needs_exactly_its_variables() -> None:
    assert convert(SAMPLE).variables == list(VARIABLES)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ("model: gpt-4o", {"protocol": "openai", "model": "gpt-4o", "api_key": "env:OPENAI_API_KEY"}),
        ("model: claude-sonnet-4-5", {"protocol": "litellm", "model": "anthropic/claude-sonnet-4-5"}),
        ("model: gemini-2.5-pro", {"protocol": "litellm", "model": "vertex_ai/gemini-2.5-pro"}),
        ("model: x, custom_llm_provider: openai, api_base: http://h/v1", {"protocol": "openai", "model": "x"}),
        (
            "model: huggingface/org/m, api_base: http://tgi:80/v1/chat/completions",
            {"protocol": "tgi", "api_base": "http://tgi:80"},
        ),
        ("model: huggingface/org/m", {"protocol": "litellm", "model": "huggingface/org/m"}),
        ("model: ollama/llama3, api_base: http://o:11434", {"protocol": "litellm", "api_base": "http://o:11434"}),
        ("model: hosted_vllm/m", {"protocol": "litellm", "model": "hosted_vllm/m"}),
        ("model: bedrock/m, region_name: eu-central-1", {"aws_region_name": "eu-central-1"}),
        ("model: vertex_ai/m, vertex_project: p, vertex_location: l", {"vertex_project": "p", "vertex_location": "l"}),
        ("model: anthropic/m, api_base: os.environ/ANTHROPIC_API_BASE", {"model": "anthropic/m"}),
        ("model: openai/m, api_base: os.environ/VLLM_URL", {"api_base": "http://vllm-url.invalid"}),
        ("model: openai/m, api_base: os.environ/SET", {"api_base": "http://set:8000/v1"}),
        ("model: openai/m, api_base: 'http://h/v1', timeout: 1", {"timeouts": {"connect": "1s", "first_token": "1s",
                                                                             "total": "1s"}}),
        ("model: openai/m, timeout: 20, stream_timeout: 5", {"timeouts": {"first_token": "5s", "idle": "5s",
                                                                         "total": "20s"}}),
        ("model: openai/m, stream_timeout: 400", {"timeouts": {"first_token": "400s", "idle": "400s",
                                                              "total": "400s"}}),
        ("model: openai/m, cooldown_time: 90", {"breaker": {"cooldown": "90s"}}),
    ],
)  # fmt: skip
def test_a_deployment_becomes_a_model(params: str, expected: dict[str, Any]) -> None:
    (one,) = models(convert(deployment(params), {"SET": "http://set:8000/v1"}))
    assert {name: one.get(name) for name in expected} == expected


@pytest.mark.parametrize(("params", "count"), [("timeout: 60", 1), ("timeout: 600", 0), ("stream_timeout: 60", 0)])
def test_a_timeout_that_ends_streams_early_is_listed(params: str, count: int) -> None:
    result = convert(deployment(f"model: openai/m, {params}"))
    found = messages(result, f"model_list[0].litellm_params.{params.partition(':')[0]}")
    assert found == ["ends streams, too: raise timeouts.total if answers take longer"] * count


def test_an_address_to_fill_in_is_named() -> None:
    result = convert(deployment("model: openai/m, api_base: os.environ/VLLM_URL"))
    assert result.missing == ["api_base of m", "price of m"]
    assert "# fill in the value of VLLM_URL" in result.files[CONFIG_FILE]


def test_credentials_of_the_environment_are_variables() -> None:
    result = convert(deployment("model: bedrock/m, aws_access_key_id: os.environ/MINE, aws_secret_access_key: abc"))
    assert result.variables == ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]


def test_a_named_credential_completes_a_deployment() -> None:
    credentials = (
        "credential_list:\n  - credential_name: c\n    credential_values: {api_key: abc, api_base: 'http://h/v1'}\n"
    )
    result = convert(deployment("model: openai/m, litellm_credential_name: c") + credentials)
    (one,) = models(result)
    assert (one["api_base"], one["api_key"]) == ("http://h/v1", "env:M_API_KEY")
    assert messages(convert(deployment("model: openai/m") + credentials), "credential_list[0].credential_values") == [
        "not imported: no imported model names this credential"
    ]


def test_equal_secrets_share_a_variable_and_different_ones_do_not() -> None:
    text = "model_list:\n" + "".join(
        f"  - {{model_name: m, litellm_params: {{model: openai/m, api_key: {secret}}}}}\n" for secret in ("a", "b", "a")
    )
    assert [one["api_key"] for one in models(convert(text))] == ["env:M_API_KEY", "env:M_API_KEY_2", "env:M_API_KEY"]


def test_a_placeholder_is_no_key() -> None:
    result = convert(deployment("model: openai/m, api_base: 'http://h/v1', api_key: none"))
    assert "api_key" not in models(result)[0]
    assert "a placeholder" in messages(result, "model_list[0].litellm_params.api_key")[0]


@pytest.mark.parametrize(
    ("params", "more", "reason"),
    [
        ("model: 'anthropic/*'", "", "a wildcard"),
        ("model: auto_router/complexity_router", "", "use routes with conditions"),
        ("model: unknown-model", "", "the provider of 'unknown-model' is unknown"),
        ("model: openai/dall-e-9", "model_info: {mode: image_generation}", "mode image_generation"),
        ("model: whisper-1", "", "mode audio_transcription"),
        ("model: azure/ada", "model_info: {mode: embedding}", "embeddings need an OpenAI-compatible server"),
        ("model: openai/m, api_base: no-address", "", "api_base: missing"),
        ("model: anthropic/m, api_base: 'https://user:x@h'", "", "its api_base is not valid"),
    ],
)
def test_a_deployment_that_the_gateway_cannot_call_is_left_out_with_the_reason(
    params: str, more: str, reason: str
) -> None:
    result = convert(deployment(params, more) + deployment("model: gpt-4o", name="ok").removeprefix("model_list:\n"))
    assert [one["name"] for one in models(result)] == ["ok"]
    assert [one for one in messages(result, "model_list[0]") if "not imported" in one and reason in one]
    assert result.left_out == ["m"]


def test_a_deployment_that_is_left_out_needs_nothing_else() -> None:
    broken = deployment("model: openai/m, api_base: no-address, api_key: literal, rpm: 1")
    result = convert(broken + deployment("model: gpt-4o", name="ok").removeprefix("model_list:\n"))
    assert sorted(one.field for one in result.notices) == ["model_list[0]", "model_list[0].litellm_params.api_base"]


def test_nothing_is_to_fill_in_or_to_set_for_a_deployment_that_is_left_out() -> None:
    broken = deployment("model: openai/m, api_base: no-address, api_key: os.environ/BROKEN_KEY")
    result = convert(broken + deployment("model: gpt-4o", name="ok").removeprefix("model_list:\n"))
    assert (result.variables, result.missing) == (["OPENAI_API_KEY"], [])


def test_without_any_model_the_error_has_the_reasons() -> None:
    with pytest.raises(
        ConfigError, match=r"(?s)litellm.yaml:2: model_list\[0\]: not imported: a wildcard.*no model of"
    ):
        convert(deployment("model: 'anthropic/*'"))


# --- prices ---


def test_prices_are_exact() -> None:
    info = (
        "model_info: {input_cost_per_token: 1.23456789e-07, output_cost_per_token: '0.0000004', "
        "cache_read_input_token_cost: 1e-08}"
    )
    result = convert(deployment("model: openai/m", info))
    assert "{input_per_1m: 0.123456789, output_per_1m: 0.4, cached_input_per_1m: 0.01}" in result.files[CONFIG_FILE]


def test_a_price_in_litellm_params_has_precedence() -> None:
    text = deployment("model: openai/m, input_cost_per_token: 0.000001", "model_info: {input_cost_per_token: 0.000002}")
    result = convert(text)
    assert models(result)[0]["price"] == {"input_per_1m": 1, "output_per_1m": None}
    assert messages(result, "model_list[0]") == ["no output_cost_per_token: fill in price.output_per_1m in config.yaml"]
    assert messages(result, "model_list[0].model_info.input_cost_per_token") == [
        "not imported: litellm_params.input_cost_per_token has precedence"
    ]


def test_a_list_price_is_that_of_the_table() -> None:
    (one,) = models(convert(deployment("model: azure/mine", "model_info: {base_model: azure/gpt-4o}")))
    price = litellm_table("azure/gpt-4o")
    assert price is not None
    assert one["price"]["output_per_1m"] == float(price.output_usd * 1_000_000)
    assert one["price"]["cached_input_per_1m"] == float(price.cached_input_usd * 1_000_000)


def test_a_price_of_a_tier_is_listed_as_a_price() -> None:
    name = "input_cost_per_token_above_200k_tokens"
    result = convert(deployment("model: gpt-4o", f"model_info: {{{name}: 1}}"))
    assert "gkt-gateway docs cost#prices" in messages(result, f"model_list[0].model_info.{name}")[0]


@pytest.mark.parametrize(
    ("info", "price", "problem"),
    [
        (
            "{}",
            "{input_per_1m: null, output_per_1m: null}",
            "needs input_per_1m and output_per_1m in USD per 1M tokens, or free: true",
        ),
        (
            "{input_cost_per_token: 0.000001}",
            "{input_per_1m: 1, output_per_1m: null}",
            "needs output_per_1m too",
        ),
    ],
)
def test_an_unknown_price_is_a_line_that_check_rejects(info: str, price: str, problem: str, tmp_path: Path) -> None:
    result = convert(deployment("model: openai/mine, api_base: 'http://h/v1'", f"model_info: {info}"))
    assert f"price: {price}  # fill in: USD per 1M tokens, or {{free: true}}" in result.files[CONFIG_FILE]
    assert result.missing == ["price of m"]
    _, _, issues = check_settings(tmp_path / "config.yaml", {}, result.files[CONFIG_FILE].encode())
    assert [(issue.field, issue.message) for issue in issues] == [("models[0].price", problem)]


def test_a_written_price_of_0_is_free() -> None:
    info = "model_info: {input_cost_per_token: 0, output_cost_per_token: 0}"
    result = convert(deployment("model: openai/mine, api_base: 'http://h/v1'", info))
    assert models(result)[0]["price"] == {"free": True}
    assert result.missing == []


# --- routes ---


def group(*params: str, settings: str = "") -> str:
    """Return a configuration with several deployments of `m` and one of `other`, all of one server."""
    entries = "".join(
        f"  - {{model_name: m, litellm_params: {{model: openai/m, api_base: 'http://h/v1', {one}}}}}\n"
        for one in params
    )
    other = "  - {model_name: other, litellm_params: {model: openai/o, api_base: 'http://h/v1'}}\n"
    return f"model_list:\n{entries}{other}{settings}"


@pytest.mark.parametrize(
    ("params", "settings", "students"),
    [
        (("rpm: 1",), "", {"student": "m"}),
        (("", ""), "", {"students": [{"model": "m-1", "weight": 1}, {"model": "m-2", "weight": 1}]}),
        (("weight: 3", "weight: 1"), "", {"students": [{"model": "m-1", "weight": 3}, {"model": "m-2", "weight": 1}]}),
        (("rpm: 600", "rpm: 300"), "", {"students": [{"model": "m-1", "weight": 100}, {"model": "m-2", "weight": 50}]}),
        (("order: 2", "order: 1"), "", {"students": ["m-2", "m-1"]}),
        (("weight: 0", "weight: 5"), "", {"students": ["m-2", "m-1"]}),
        (("",), "router_settings: {fallbacks: [{m: [other]}]}", {"students": ["m", "other"]}),
        (("",), "router_settings: {fallbacks: [{'*': [other]}]}", {"students": ["m", "other"]}),
        (("",), "litellm_settings: {default_fallbacks: [other, m]}", {"students": ["m", "other"]}),
        (
            ("", ""),
            "litellm_settings: {fallbacks: [{m: [other]}]}",
            {"students": [{"model": "m-1", "weight": 100}, {"model": "m-2", "weight": 100},
                          {"model": "other", "weight": 0.01}]},
        ),
    ],
)  # fmt: skip
def test_deployments_and_fallbacks_become_students(
    params: tuple[str, ...], settings: str, students: dict[str, Any]
) -> None:
    route = policy(convert(group(*params, settings=settings)))["routes"][0]
    assert {name: value for name, value in route.items() if name.startswith("student")} == students
    assert route["mode"] == "student"


def test_a_route_has_at_most_eight_students_and_the_others_are_named() -> None:
    result = convert(group(*["rpm: 1"] * 10))
    assert len(policy(result)["routes"][0]["students"]) == 8
    assert any("m-9, m-10 not called" in one for one in messages(result, "model_list[0]"))


def test_unknown_targets_are_listed_and_aliases_get_routes() -> None:
    settings = (
        "router_settings: {model_group_alias: {a: m, b: {model: nobody, hidden: false}, other: m}, "
        "fallbacks: [{x: [m]}, {m: [y, {model: other, messages: []}]}]}"
    )
    result = convert(group("", settings=settings))
    assert [one["model"] for one in policy(result)["routes"]] == ["m", "other", "a"]
    listed = [one.field.removeprefix("router_settings.") for one in result.notices if one.field.startswith("router")]
    assert sorted(listed) == [
        "fallbacks[0].x",
        "fallbacks[1].m[0]",
        "fallbacks[1].m[1]",
        "model_group_alias.b",
        "model_group_alias.b.hidden",
        "model_group_alias.other",
    ]


def test_the_first_fallbacks_of_a_name_apply_and_an_alias_may_have_its_own() -> None:
    settings = (
        "router_settings: {model_group_alias: {a: m, b: m}, "
        "fallbacks: [{m: [other]}, {a: [third]}, {m: [third]}, {a: [other]}]}"
    )
    third = "  - {model_name: third, litellm_params: {model: openai/t, api_base: 'http://h/v1'}}\n"
    result = convert(group("", settings=third + settings))
    students = {one["model"]: one.get("students") for one in policy(result)["routes"]}
    assert (students["m"], students["a"], students["b"]) == (["m", "other"], ["m", "third"], ["m", "other"])
    listed = {one.field: one.message for one in result.notices if one.field.startswith("router")}
    assert listed == {
        "router_settings.fallbacks[2].m": "not imported: the first fallbacks of m apply, as in LiteLLM",
        "router_settings.fallbacks[3].a": "not imported: the first fallbacks of a apply, as in LiteLLM",
    }


CHAINS = (
    ("[{'*': [other]}, {'*': [third]}]", "null", ["m", "third"]),
    ("[{'*': [third]}]", "[other]", ["m", "other"]),
    ("[{m: [third]}]", "[other]", ["m", "third"]),
    ("[{'*': [third]}, {m: [other]}]", "null", ["m", "other"]),
)
"""`fallbacks` and `default_fallbacks` with the fallbacks that LiteLLM then uses for `m`."""


@pytest.mark.parametrize(("fallbacks", "default", "students"), CHAINS)
def test_one_of_several_entries_for_all_models_applies(fallbacks: str, default: str, students: list[str]) -> None:
    third = "  - {model_name: third, litellm_params: {model: openai/t, api_base: 'http://h/v1'}}\n"
    settings = f"{third}router_settings: {{fallbacks: {fallbacks}, default_fallbacks: {default}}}\n"
    assert policy(convert(group("", settings=settings)))["routes"][0]["students"] == students
    assert _litellm_chain(fallbacks, default, "m") == students[1:]


def _litellm_chain(fallbacks: str, default: str, name: str) -> list[str] | None:
    """Return the fallbacks of a name in the installed LiteLLM, whose router appends the default ones as `*`."""
    asyncio.run(litellm_library.load())  # offline
    handlers: Any = importlib.import_module("litellm.router_utils.fallback_event_handlers")
    yaml = YAML(typ="safe")
    entries, everywhere = yaml.load(fallbacks), yaml.load(default)
    if everywhere is not None:
        entries.append({"*": everywhere})
    found: list[str] | None = handlers.get_fallback_model_group(entries, name)[0]
    return found


def test_the_entries_that_others_override_are_listed() -> None:
    fallbacks = "[{'*': [other]}, {'*': [m]}, {gpt-4o: [m]}, {openai/gpt-4o: [other]}]"
    model = "  - {model_name: openai/gpt-4o, litellm_params: {model: openai/gpt-4o}}\n"
    settings = f"{model}litellm_settings: {{fallbacks: {fallbacks}, default_fallbacks: [other]}}\n"
    listed = {one.field: one.message for one in convert(group("", settings=settings)).notices if "fallb" in one.field}
    assert listed == {
        "litellm_settings.fallbacks[0].*": "not imported: a later entry * applies, as in LiteLLM",
        "litellm_settings.fallbacks[1].*": "not imported: default_fallbacks apply, as in LiteLLM",
        "litellm_settings.fallbacks[2].gpt-4o": "not imported: fallbacks of exactly openai/gpt-4o apply, as in LiteLLM",
    }


@pytest.mark.parametrize(
    ("name", "fallbacks", "students"),
    [
        ("openai/gpt-4o", "[{gpt-4o: [m]}]", ["openai/gpt-4o", "m"]),
        ("gpt-4o", "[{openai/gpt-4o: [m]}]", ["gpt-4o", "m"]),
        ("gpt-4o", "[{azure/gpt-4o: [m]}]", None),  # the provider of gpt-4o is openai
        ("team/gpt-4o", "[{gpt-4o: [m]}]", None),  # not a provider
        ("openai/gpt-4o", "[{openai/gpt-4o: [other]}, {gpt-4o: [m]}]", ["openai/gpt-4o", "other"]),
        ("openai/gpt-4o", "[{gpt-4o: [other]}, {gpt-4o: [m]}, {'*': [other]}]", ["openai/gpt-4o", "m"]),
    ],
)
def test_fallbacks_of_a_name_with_or_without_its_provider_apply_as_in_litellm(
    name: str, fallbacks: str, students: list[str] | None
) -> None:
    model = f"  - {{model_name: {name}, litellm_params: {{model: openai/gpt-4o}}}}\n"
    routes = policy(convert(group("", settings=f"{model}router_settings: {{fallbacks: {fallbacks}}}\n")))["routes"]
    assert next(one.get("students") for one in routes if one["model"] == name) == students
    assert _litellm_chain(fallbacks, "null", name) == (students and students[1:])


def test_a_fallback_that_names_no_model_of_its_own_is_listed() -> None:
    result = convert(group("", settings="router_settings: {fallbacks: [other]}"))
    assert policy(result)["routes"][0]["student"] == "m"
    assert messages(result, "router_settings.fallbacks[0]") == [f"not imported: {MUST_BE[dict]}"]


def test_a_fallback_of_the_other_mode_is_listed() -> None:
    fallbacks = "litellm_settings: {fallbacks: [{claude: [embeddings, llama]}, {embeddings: [claude]}]}\n"
    result = convert(SAMPLE.partition("router_settings")[0] + fallbacks)
    routes = {one["model"]: one for one in policy(result)["routes"]}
    assert (routes["claude"]["students"], routes["embeddings"]["student"]) == (["claude", "llama"], "embeddings")
    for field in ("fallbacks[0].claude[0]", "fallbacks[1].embeddings[0]"):
        assert messages(result, f"litellm_settings.{field}") == ["not imported: only embeddings makes embeddings"]


def test_names_that_would_share_a_route_are_not_merged() -> None:
    text = deployment("model: gpt-4o", name="a b") + deployment("model: gpt-4o-mini", name="a-b").partition("\n")[2]
    result = convert(text)
    assert [one["model"] for one in models(result)] == ["gpt-4o"]
    assert messages(result, "model_list[1].model_name") == [
        "not imported: 'a b' has the route a-b too. Rename one of them"
    ]
    assert result.left_out == ["a-b"]


def test_names_that_routes_cannot_have_are_changed_and_listed() -> None:
    result = convert(deployment("model: gpt-4o", name="'GPT 4o (eu)'"))
    assert policy(result)["routes"][0]["model"] == "GPT-4o-eu-"
    assert "callers must send GPT-4o-eu-" in messages(result, "model_list[0].model_name")[0]


def test_embeddings_get_a_route_of_their_own_mode() -> None:
    routes = policy(convert(SAMPLE))["routes"]
    assert [one["mode"] for one in routes if one["model"] == "embeddings"] == ["embeddings"]


# --- sections ---


def test_limits_and_budgets_keep_their_scope() -> None:
    result = convert(SAMPLE)
    config = YAML(typ="safe").load(result.files[CONFIG_FILE])
    assert policy(result)["budget"] == {"max_budget": 500, "budget_duration": "30d"}
    assert config["defaults"] == {
        "key_limits": {"max_parallel_requests": 8, "rpm_limit": 60, "tpm_limit": 90000},
        "key_budget": {"max_budget": 20, "budget_duration": "1mo"},
    }
    assert config["admin"] == {"key": "env:LITELLM_MASTER_KEY"}


@pytest.mark.parametrize(
    ("written", "expected", "noticed"),
    [
        ("24h", {"budget_duration": "24h"}, ""),
        ("7200s", {"budget_duration": "2h"}, ""),
        ("90m", {"budget_duration": "2h"}, "written as 2h"),
        ("500d", {"budget_duration": "366d"}, "written as 366d"),
        ("sometimes", {}, "not imported: must be a whole number with h, d, w or mo"),
        ("null", {"budget_duration": "366d", "calendar_aligned": False}, "LiteLLM never resets it"),
    ],
)
def test_budget_periods_are_converted_or_listed(written: str, expected: dict[str, Any], noticed: str) -> None:
    result = convert(f"{ONE}litellm_settings: {{max_budget: 10, budget_duration: {written}}}\n")
    assert policy(result)["budget"] == {"max_budget": 10, **expected}
    found = [one.message for one in result.notices if one.field.startswith("litellm_settings")]
    assert len(found) == (2 if noticed else 1)
    assert any(noticed in one for one in found)


@pytest.mark.parametrize(
    ("settings", "url", "variables"),
    [
        ("{redis_host: redis, redis_port: 6380}", "redis://redis:6380", []),
        ("{redis_host: redis, redis_password: literal}", "env:GKT_REDIS_URL", ["GKT_REDIS_URL"]),
        ("{redis_host: 'user:literal@redis'}", "env:GKT_REDIS_URL", ["GKT_REDIS_URL"]),
        ("{redis_host: os.environ/REDIS_HOST}", "env:GKT_REDIS_URL", ["GKT_REDIS_URL"]),
    ],
)
def test_redis_is_used_without_its_password(settings: str, url: str, variables: list[str]) -> None:
    result = convert(f"{ONE}router_settings: {settings}\n")
    assert YAML(typ="safe").load(result.files[CONFIG_FILE])["redis"] == {"url": url}
    assert [name for name in result.variables if name != "OPENAI_API_KEY"] == variables


def test_a_budget_beyond_the_gateways_limit_is_listed_once_and_left_out() -> None:
    result = convert(f"{ONE}litellm_settings: {{max_budget: 2000000, budget_duration: 1mo}}\n")
    assert "budget" not in policy(result)
    assert "not imported: must be between 0 and 1000000 USD" in messages(result, "litellm_settings.max_budget")


def test_a_master_key_that_is_too_short_is_replaced() -> None:
    result = convert(f"{ONE}general_settings: {{master_key: sk-1234}}\n")
    assert YAML(typ="safe").load(result.files[CONFIG_FILE])["admin"] == {"key": "env:GKT_ADMIN_KEY"}
    assert "too short for admin.key" in messages(result, "general_settings.master_key")[1]


def test_the_gateway_leaves_the_ports_of_local_engines_free() -> None:
    result = convert(deployment("model: openai/m, api_base: 'http://127.0.0.1:8080/v1'"))
    config = YAML(typ="safe").load(result.files[CONFIG_FILE])
    assert (config["server"]["port"], config["admin"]["port"]) == (8081, 8082)


def test_values_that_the_gateway_rejects_are_listed_and_left_out() -> None:
    settings = (
        "general_settings: {max_request_size_mb: 100000, max_parallel_requests: 0}\n"
        "litellm_settings: {num_retries: 50}\n"
    )
    result = convert(ONE + settings)
    assert messages(result, "general_settings.max_request_size_mb") == ["not imported: must be between 1kB and 1GB"]
    assert messages(result, "general_settings.max_parallel_requests") == ["not imported: must be at least 1"]
    assert policy(result)["routes"][0]["retries"] == {"num_retries": 10}
    assert messages(result, "litellm_settings.num_retries") == ["written as 10: the gateway permits 0 to 10"]


def test_a_budget_of_end_users_is_a_label_with_a_budget() -> None:
    result = convert(f"{ONE}litellm_settings: {{max_end_user_budget: 2.5}}\n")
    assert policy(result)["labels"] == {
        "end_user": {
            "user": True, "budget": {"max_budget": 2.5, "budget_duration": "366d", "calendar_aligned": False}
        }
    }  # fmt: skip
    (message,) = messages(result, "litellm_settings.max_end_user_budget")
    assert message.startswith("written as labels.end_user with a budget of each value")
    assert "labels" not in policy(convert(f"{ONE}litellm_settings: {{max_end_user_budget: 0}}\n"))
