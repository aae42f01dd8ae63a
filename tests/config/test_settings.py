"""config.yaml and the environment: sane defaults, exact prices, and nothing accepted that does not work."""

from __future__ import annotations

from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.settings import (
    OVERRIDES,
    Settings,
    check_settings,
)
from gateway.errors import ConfigError
from gateway.pricing import Price, litellm_table

BIG = """\
models:
  - name: big
    protocol: tgi
    api_base: http://tgi:80
    price: {input_per_1m: 1, output_per_1m: 2}
"""


def load_settings(path: Path) -> Settings:
    """The settings, or every mistake."""
    settings, _, found_issues = check_settings(path)
    if settings is None:
        raise ConfigError(found_issues)
    return settings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the working one, in an environment that overrides nothing."""
    monkeypatch.chdir(tmp_path)
    for variable in OVERRIDES:
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def settings_of(folder: Path, text: str, **environ: str) -> Settings:
    (folder / "config.yaml").write_text(text)
    settings, _, found_issues = check_settings(folder / "config.yaml", environ)
    assert not [str(one) for one in found_issues]
    assert settings is not None
    return settings


def issues_of(folder: Path, text: str, **environ: str) -> list[str]:
    (folder / "config.yaml").write_text(text)
    settings, _, found_issues = check_settings(folder / "config.yaml", environ)
    assert settings is None
    return [str(one).removeprefix("config.yaml:") for one in found_issues]


def model(**keys: Any) -> str:
    """Return a file with one model, `big` by default, in one line."""
    every: dict[str, Any] = {
        "name": "big",
        "protocol": "tgi",
        "api_base": "http://tgi:80",
        "price": "{input_per_1m: 1, output_per_1m: 2}",
    }
    every.update(keys)
    given = ", ".join(f"{key}: {value}" for key, value in every.items() if value is not None)
    return f"models: [{{{given}}}]\n"


def test_names_of_the_admin_listener_are_lower_case(folder: Path) -> None:
    settings = settings_of(folder, BIG + "admin: {hosts: [GKT.Example.com., gkt_admin]}\n")
    assert settings.admin.hosts == ("gkt.example.com", "gkt_admin")
    assert settings_of(folder, BIG).admin.hosts == ()


@pytest.mark.parametrize(
    "name", ["https://gkt.example.com", "gkt.example.com:8081", "*.example.com", "*", "", "a..b", "a b", "gkt/x", "-a"]
)
def test_a_name_of_the_admin_listener_is_a_host_name(folder: Path, name: str) -> None:
    (issue,) = issues_of(folder, BIG + f"admin: {{hosts: ['{name}']}}\n")
    assert issue.startswith("6: admin.hosts[0]: must be a host name without scheme, port, path and wildcards")


def test_all_but_the_models_has_a_default(folder: Path) -> None:
    settings = settings_of(folder, BIG)
    assert (settings.server.host, settings.server.port) == ("0.0.0.0", 8080)
    assert (settings.server.max_body_bytes, settings.server.drain_timeout_s) == (8_000_000, 30.0)
    assert settings.server.max_in_flight == 1024
    assert (settings.admin.host, settings.admin.port) == ("127.0.0.1", 8081)
    assert settings.redis.url.get_secret_value() == "embedded"
    assert (settings.redis.prefix, settings.redis.timeout_s, settings.redis.on_failure) == ("gkt", 0.2, "degrade")
    assert (settings.receipts.ttl_s, settings.log.level, settings.log.format) == (86400.0, "info", "auto")
    assert settings.policies == folder / "policies"
    big = settings.by_name["big"]
    assert (big.model, big.continuation, big.echo, big.api_key) == ("tgi", "trailing", "auto", None)
    assert (big.tokenizer, big.max_concurrency) == (None, 96)
    assert big.batch.model_dump() == {
        "max_size": 32, "max_prompt_tokens": 32768, "low_water": 8, "max_queue": 1000
    }  # fmt: skip
    assert big.guidance_cache_bytes == 64_000_000
    assert big.timeouts.model_dump() == {"connect_s": 2.0, "first_token_s": 30.0, "idle_s": 30.0, "total_s": 300.0}


def test_the_engines_model_name_depends_on_its_protocol(folder: Path) -> None:
    small = settings_of(folder, model(name="small", protocol="openai")).models[0]
    assert (small.model, small.continuation) == ("small", "auto")
    assert settings_of(folder, model(model="Qwen/Q")).models[0].model == "Qwen/Q"


def test_settings_do_not_change(folder: Path) -> None:
    settings = settings_of(folder, BIG)
    with pytest.raises(ValidationError):
        settings.server.port = 1  # type: ignore[misc]


def test_a_price_is_exactly_what_was_written(folder: Path) -> None:
    written = "{input_per_1m: 0.1, output_per_1m: 0.90, cached_input_per_1m: 0.07, cache_write_per_1m: 0.125}"
    price = settings_of(folder, model(price=written)).models[0].price
    read, cached, write, stored = Decimal("1E-7"), Decimal("7E-8"), Decimal("9E-7"), Decimal("1.25E-7")
    assert price == Price(read, cached, write, stored, stored)
    written = written.replace("}", ", cache_write_1h_per_1m: 0.2}")
    price = settings_of(folder, model(price=written)).models[0].price
    assert price == Price(read, cached, write, stored, Decimal("2E-7"))


def test_an_hourly_price_and_a_list_price_and_an_explicit_0_are_prices(folder: Path) -> None:
    hourly = "{gpu_usd_per_hour: 1.20, input_tokens_per_s: 9000, output_tokens_per_s: 1500}"
    assert settings_of(folder, model(price=hourly)).models[0].price == Price.of_gpu_hour(
        Decimal("1.20"), Decimal(9000), Decimal(1500)
    )
    assert settings_of(folder, model(model="gpt-4o", price=None)).models[0].price == litellm_table("gpt-4o")
    free = "{input_per_1m: 0, output_per_1m: 0}"
    assert settings_of(folder, model(price=free)).models[0].price.output_usd == 0


@pytest.mark.parametrize(
    ("price", "message"),
    [
        (
            None,
            (
                "1: models[0].price: missing, and no list price is known: "
                "add input_per_1m and output_per_1m, or free: true"
            ),
        ),
        (
            "{}",
            "1: models[0].price: needs input_per_1m and output_per_1m in USD per 1M tokens, or free: true",
        ),
        ("{free: true, input_per_1m: 0}", "1: models[0].price: has free: true and other keys: keep one of the two"),
        ("{input_per_1m: 1}", "1: models[0].price: needs output_per_1m too"),
        ("{cached_input_per_1m: 1}", "1: models[0].price: needs input_per_1m and output_per_1m too"),
        ("{cache_write_per_1m: 1}", "1: models[0].price: needs input_per_1m and output_per_1m too"),
        ("{gpu_usd_per_hour: 1}", "1: models[0].price: needs input_tokens_per_s and output_tokens_per_s too"),
        (
            "{input_per_1m: 1, output_per_1m: 1, gpu_usd_per_hour: 1}",
            "1: models[0].price: has prices per 1M tokens and per GPU hour: keep one of the two",
        ),
        ("{input_per_1m: -1, output_per_1m: 1}", "1: models[0].price.input_per_1m: must be between 0 and 1000000 USD"),
        (
            "{input_per_1m: '1', output_per_1m: 1}",
            "1: models[0].price.input_per_1m: must be an amount in USD: a number without quotes, like 0.90",
        ),
        (
            "{gpu_usd_per_hour: 1, input_tokens_per_s: 0, output_tokens_per_s: 1}",
            "1: models[0].price.input_tokens_per_s: must be more than 0 and at most 1000000000",
        ),
        (
            "{input_per_1m: 1, output_per_1m: 1, output_cost_per_token: 0.000001}",
            (
                "1: models[0].price.output_cost_per_token: unknown key: prices here are USD per 1M tokens: "
                "multiply by 1,000,000 and write it as output_per_1m"
            ),
        ),
    ],
)
def test_an_unknown_or_incomplete_price_is_an_issue(folder: Path, price: str | None, message: str) -> None:
    assert issues_of(folder, model(price=price)) == [message]


def test_an_engine_of_several_gpus_costs_as_much_as_they_all_do(folder: Path) -> None:
    hourly = "{gpu_usd_per_hour: 1.25, gpus: 4, input_tokens_per_s: 9000, output_tokens_per_s: 1500}"
    one = settings_of(folder, model(price=hourly)).models[0]
    assert one.price == Price.of_gpu_hour(Decimal(5), Decimal(9000), Decimal(1500))
    assert one.price_rule is not None
    assert one.price_rule.hourly_usd == Decimal(5)
    assert issues_of(folder, model(price="{input_per_1m: 1, output_per_1m: 1, gpus: 2}")) == [
        "1: models[0].price: has prices per 1M tokens and per GPU hour: keep one of the two"
    ]
    assert issues_of(folder, model(price="{gpus: 2}"))[0].startswith("1: models[0].price: needs gpu_usd_per_hour and ")


def test_a_tokenizer_is_an_encoding_a_local_file_or_a_cached_hub_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tokenizer is fetched. Each is read with the configuration, so that a wrong one is reported there."""
    bundled = litellm_tokenizers() / "anthropic_tokenizer.json"
    assert settings_of(folder, model(tokenizer="cl100k_base")).models[0].tokenizer == "cl100k_base"
    (folder / "big.json").symlink_to(bundled)
    assert settings_of(folder, model(tokenizer="big.json")).models[0].tokenizer == str(folder / "big.json")
    assert settings_of(folder, model(tokenizer=str(bundled))).models[0].tokenizer == str(bundled)
    repo = folder / "hub" / "models--Org--big"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc").mkdir(parents=True)
    cached = repo / "snapshots" / "abc" / "tokenizer.json"
    cached.symlink_to(bundled)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub"))
    assert settings_of(folder, model(tokenizer="Org/big")).models[0].tokenizer == str(cached)
    (folder / "wrong.json").write_text("{}")
    assert issues_of(folder, model(tokenizer="wrong.json"))[0].startswith(
        "1: models[0].tokenizer: no tokenizer could be "
    )


def litellm_tokenizers() -> Path:
    spec = find_spec("litellm")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "litellm_core_utils" / "tokenizers"


def test_an_unknown_price_is_reported_with_other_issues_of_the_model(folder: Path) -> None:
    lines = issues_of(folder, model(price=None, api_base="nowhere", tokenizer="gpt4"))
    assert [line.split(": ")[1] for line in lines] == ["models[0].price", "models[0].api_base", "models[0].tokenizer"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: models: missing: add it"),
        ("models: []\n", "1: models: must have at least 1 entry"),
        ("model_list: []\n" + BIG, "1: model_list: unknown key: use models. `gkt-gateway import litellm` converts "),
        (f"include: [a.yaml]\n{BIG}", "1: include: unknown key: remove it: every file in the policies folder is read"),
        (
            f"environment_variables: {{}}\n{BIG}",
            "1: environment_variables: unknown key: set them in the gateway's environment",
        ),
        (model(rpm=60), "1: models[0].rpm: unknown key: an engine has no rate limit here: max_concurrency"),
        (model(model_info={}), "1: models[0].model_info: unknown key: put its prices under price"),
        (model(model_name="x"), "1: models[0].model_name: unknown key: use name"),
        (model(protocol="vllm"), "1: models[0].protocol: must be tgi, openai or litellm"),
        (model(protocol="litellm"), "1: models[0].model: must be provider/name with protocol litellm"),
        (
            model(api_base="http://h:1/v1/chat/completions"),
            "1: models[0].api_base: must not include /chat/completions: the gateway adds the route",
        ),
        (
            model(api_base="http://h:1/v1/chat/completions"),
            (
                "1: models[0].api_base: must not include /chat/completions: the gateway adds the route. "
                "Did you mean 'http://h:1'?"
            ),
        ),
        (
            model(api_base="http://h:1/v1/"),
            (
                "1: models[0].api_base: must not include /v1 with protocol tgi: the gateway adds it. "
                "Did you mean 'http://h:1'?"
            ),
        ),
        (
            model(protocol="tgi", continuation="vllm"),
            "1: models[0].continuation: TGI does not support it: write auto, trailing, completions, instruct",
        ),
        (model(protocol="tgi", echo="true"), "1: models[0].echo: TGI never repeats the text that it continues"),
        (model(name="'a b'"), "1: models[0].name: must be 1 to 128 letters, digits or any of . _ : / -"),
        (model(tokenizer="none.json"), "1: models[0].tokenizer: no tokenizer could be read from /"),
        (
            model(tokenizer="Org/never-fetched"),
            (
                "1: models[0].tokenizer: the Hugging Face cache on this machine has no tokenizer.json of "
                "Org/never-fetched: run "
            ),
        ),
        (model(tokenizer="o200k"), "1: models[0].tokenizer: must be one of cl100k_base, "),
        (
            model(api_key="sk-123"),
            "1: models[0].api_key: a secret must not be written in this file: write env:NAME or file:/path",
        ),
        (
            model(api_key="env:NO"),
            "1: models[0].api_key: the environment variable NO is not set: set it, or correct the name",
        ),
        (
            model(continuation="vlm"),
            (
                "1: models[0].continuation: must be auto, vllm, sglang, trailing, prefix, partial, completions, "
                "instruct or none. Did"
            ),
        ),
        (model(echo="yes"), "1: models[0].echo: must be auto, true or false. Did you mean 'true'?"),
        (model(max_concurrency=0), "1: models[0].max_concurrency: must be at least 1"),
        (model(batch="{max_size: 0}"), "1: models[0].batch.max_size: must be at least 1"),
        (model(batch="{max_prompt_tokens: 0}"), "1: models[0].batch.max_prompt_tokens: must be at least 1"),
        (model(batch="{low_water: -1}"), "1: models[0].batch.low_water: must be at least 0"),
        (
            model(batch="{max_queue: 31}"),
            (
                "1: models[0].batch.max_queue: must be at least batch.max_size, which is 32: otherwise no batch of "
                "one tenant"
            ),
        ),
        (
            model(batch="{max_size: 1001}"),
            "1: models[0].batch.max_queue: must be at least batch.max_size, which is 1001",
        ),
        (model(guidance_cache="64"), "1: models[0].guidance_cache: a size needs its unit"),
        (model(timeouts="{total: 2d}"), "1: models[0].timeouts.total: must be between 10ms and 1d"),
        (
            model(timeout="3s"),
            "1: models[0].timeout: unknown key: use timeouts.connect, .first_token, .idle or",
        ),
        ("server: {port: 70000}\n" + BIG, "1: server.port: must be at most 65535"),
        (
            "server: {threads: 2}\n" + BIG,
            "1: server.threads: unknown key; known here: host, port, max_body, drain_timeout, max",
        ),
        ("server: {max_body: 8}\n" + BIG, "1: server.max_body: a size needs its unit"),
        ("server: {max_body: 2GB}\n" + BIG, "1: server.max_body: must be between 1kB and 1GB"),
        (
            "server: {host: 'a b'}\n" + BIG,
            "1: server.host: must be an address to listen on, like 0.0.0.0, 127.0.0.1 or ::",
        ),
        ("server: {host: 1}\n" + BIG, "1: server.host: must be text: put it in quotes"),
        ("admin: {keys: x}\n" + BIG, "1: admin.keys: unknown key. Did you mean 'key'?"),
        (
            "admin: {key: x}\n" + BIG,
            "1: admin.key: a secret must not be written in this file: write env:NAME or file:/path",
        ),
        ("admin: {port: 8080}\n" + BIG, "1: admin.port: server already listens on port 8080: use another"),
        (
            "redis: {url: 'http://h'}\n" + BIG,
            "1: redis.url: must be embedded, or a URL that starts with redis://, rediss://, unix://,",
        ),
        ("redis: {prefix: '{a}'}\n" + BIG, "1: redis.prefix: must be 1 to 32 letters, digits, - or _"),
        ("redis: {timeout: 11s}\n" + BIG, "1: redis.timeout: must be between 10ms and 10s"),
        ("redis: {lease: 0s}\n" + BIG, "1: redis.lease: must be between 1s and 1h"),
        (
            "redis: {timeout: 3s}\n" + BIG,
            (
                "1: redis.lease: must be at least 4 times redis.timeout, which is 3s: otherwise one slow "
                "command could lose the lease"
            ),
        ),
        ("redis: {on_failure: fail}\n" + BIG, "1: redis.on_failure: must be degrade, allow or reject"),
        ("receipts: {ttl: 1s}\n" + BIG, "1: receipts.ttl: must be between 1m and 30d"),
        ("log: {level: warn}\n" + BIG, "1: log.level: must be debug, info, warning or error. Did you mean 'warning'?"),
        ("policies: 3\n" + BIG, "1: policies: must be the path of a folder"),
        ("policies: ''\n" + BIG, "1: policies: must be the path of a folder"),
        (
            model(protocol="openai", api_base="http://127.0.0.1:8080/v1"),
            "1: models[0].api_base: is the address of this gateway itself: use the engine's",
        ),
        (
            model(api_base="http://localhost:8081"),
            "1: models[0].api_base: is the address of this gateway itself: use the engine's",
        ),
        (
            model(api_base="'http://[::1]:8080'"),
            "1: models[0].api_base: is the address of this gateway itself: use the engine's",
        ),
        (
            "server: {host: gw, port: 80}\n" + model(api_base="http://gw"),
            "2: models[0].api_base: is the address of this gateway itself",
        ),
    ],
)
def test_an_unsupported_setting_is_one_issue(folder: Path, text: str, message: str) -> None:
    (line,) = issues_of(folder, text)
    assert line.startswith(message)


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "::", "::1", "fe80::1%eth0", "localhost", "gateway-0.example.com", "10-0"]
)
def test_an_address_or_a_name_can_be_listened_on(folder: Path, host: str) -> None:
    assert settings_of(folder, f"server: {{host: '{host}'}}\n" + BIG).server.host == host


def test_the_url_of_an_openai_engine_may_end_with_v1(folder: Path) -> None:
    assert settings_of(folder, model(protocol="openai", api_base="http://h/v1")).models[0].api_base == "http://h/v1"


def test_a_local_engine_is_not_the_gateway(folder: Path) -> None:
    settings_of(folder, model(api_base="http://127.0.0.1:8090"))
    settings_of(folder, "server: {host: 10.0.0.1}\n" + model(api_base="http://127.0.0.1:8080"))
    settings_of(folder, "server: {port: 0}\nadmin: {port: 0}\n" + model(api_base="http://127.0.0.1"))


def test_an_admin_key_is_hard_to_guess_and_never_shown(folder: Path) -> None:
    text = "admin: {key: env:KEY}\n" + BIG
    (line,) = issues_of(folder, text, KEY="fifteen-letters")
    assert line == "1: admin.key: must have at least 16 characters: create one with openssl rand -hex 24"
    settings = settings_of(folder, text, KEY="sixteen-letters!")
    assert settings.admin.key is not None
    assert settings.admin.key.get_secret_value() == "sixteen-letters!"
    assert "sixteen" not in repr(settings)


def test_model_names_differ(folder: Path) -> None:
    second = BIG.removeprefix("models:\n")
    assert issues_of(folder, BIG + second) == ["6: models[1].name: models[0] is also called big: names must be unique"]


def test_model_names_differ_in_settings_that_code_builds() -> None:
    """Engines are kept by name: the second would take the first one's place."""
    one = {"name": "a", "protocol": "tgi", "api_base": "http://h", "price": {"input_per_1m": 1, "output_per_1m": 1}}
    with pytest.raises(ValidationError, match="model names must be unique"):
        Settings.model_validate({"models": [one, {**one, "protocol": "openai"}]})


def test_cross_checks_are_reported_with_other_issues(folder: Path) -> None:
    second = BIG.removeprefix("models:\n").replace("tgi:80", "localhost:8080").replace("protocol", "protocl")
    assert [line.split(":")[0] for line in issues_of(folder, BIG + second)] == ["6", "7", "8"]


def test_the_environment_overrides_single_values(folder: Path) -> None:
    settings = settings_of(
        folder,
        "server: {port: 1}\n" + BIG,
        GKT_HOST="127.0.0.1",
        GKT_PORT="0",
        GKT_WORKERS="4",
        GKT_ADMIN_HOST="::",
        GKT_ADMIN_PORT=" 9 ",
        GKT_REDIS_URL="redis://:s3cret@h",
        GKT_POLICIES="other",
    )
    assert (settings.server.host, settings.server.port, settings.server.workers) == ("127.0.0.1", 0, 4)
    assert (settings.admin.host, settings.admin.port) == ("::", 9)
    assert settings.redis.url.get_secret_value() == "redis://:s3cret@h"
    assert "s3cret" not in repr(settings)
    assert settings.policies == folder / "other"


def test_an_empty_variable_is_not_set(folder: Path) -> None:
    assert settings_of(folder, BIG, GKT_PORT="", GKT_HOST=" ").server.port == 8080


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("GKT_PORT", "http", "must be a port: a whole number up to 65535"),
        ("GKT_PORT", "70000", "must be at most 65535"),
        (
            "GKT_PORT",
            "tcp://10.0.0.1:80",
            (
                "must be a port: a whole number up to 65535; "
                "Kubernetes sets this variable for a Service of that name: set enableServiceLinks to false"
            ),
        ),
        ("GKT_WORKERS", "two", "must be a number of processes: a whole number up to 256"),
        ("GKT_WORKERS", "0", "must be at least 1"),
        ("GKT_HOST", "a b", "must be an address to listen on, like 0.0.0.0, 127.0.0.1 or ::"),
        (
            "GKT_REDIS_URL",
            "s3cret",
            (
                "must be embedded, or a URL that starts with redis://, rediss://, unix://, redis+sentinel://, "
                "rediss+sentinel://, redis+cluster:// or rediss+cluster://"
            ),
        ),
    ],
)
def test_a_wrong_variable_is_named(folder: Path, variable: str, text: str, message: str) -> None:
    assert issues_of(folder, BIG, **{variable: text}) == [f"environment: {variable}: {message}"]


def test_relative_paths_start_at_the_file(folder: Path) -> None:
    (folder / "etc").mkdir()
    (folder / "etc" / "key").write_text("s3cret\n")
    (folder / "etc" / "config.yaml").write_text("policies: ../p\n" + model(api_key="file:key"))
    settings = load_settings(Path("etc/config.yaml"))
    assert settings.policies.resolve() == (folder / "p").resolve()
    assert settings.models[0].api_key is not None
    assert settings.models[0].api_key.get_secret_value() == "s3cret"


def test_loading_reports_all_issues_together(folder: Path) -> None:
    (folder / "config.yaml").write_text("server: {port: x}\nlog: {level: y}\n" + BIG)
    with pytest.raises(ConfigError) as caught:
        load_settings(folder / "config.yaml")
    assert [one.line for one in caught.value.issues] == [1, 2]
    assert str(caught.value).count("\n") == 1


def test_a_missing_file_is_an_issue(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"config\.yaml: cannot be read: no such file or directory: gkt-gateway init writes"
    ):
        load_settings(folder / "config.yaml")
