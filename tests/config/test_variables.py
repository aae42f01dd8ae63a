"""`${NAME}` in config.yaml: values from the environment, which change no structure and appear in no message."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.settings import admin_key, admin_listener, check_settings, worker_settings
from gateway.config.variables import Substituted, hide, substitute
from gateway.config.yaml_source import parse
from gateway.errors import ConfigError
from gateway.policy.schema import TenantPolicy
from tests.cli.in_process import run

if TYPE_CHECKING:
    from gateway.config.settings import Settings

MODELS = """\
models:
  - name: big
    protocol: tgi
    api_base: http://tgi:80
    price: {input_per_1m: 1, output_per_1m: 2}
"""
NOT_SET = "is not set: set it, or, unless it is a secret, write"
NO_SECRET = "a secret must not be written in this file: write env:NAME or file:/path"


def settings_of(folder: Path, text: str, **environ: str) -> Settings:
    (folder / "config.yaml").write_text(text)
    settings, _, issues = check_settings(folder / "config.yaml", environ)
    assert settings is not None, [str(issue) for issue in issues]
    return settings


def issues_of(folder: Path, text: str, **environ: str) -> list[str]:
    (folder / "config.yaml").write_text(text)
    settings, _, issues = check_settings(folder / "config.yaml", environ)
    assert settings is None
    return [str(issue).partition("config.yaml:")[2] for issue in issues]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${HOST}", "h.example"),
        ("https://${HOST}:${PORT}/v1", "https://h.example:80/v1"),
        ("${NONE:-a default}", "a default"),
        ("${EMPTY:-a default}", "a default"),
        ("${NONE:-}", ""),
        ("${HOST:-a default}", "h.example"),
        ("$${HOST} ${HOST}", "${HOST} h.example"),
        ("$HOST costs 5$", "$HOST costs 5$"),
        ("${NESTED}", "${HOST}"),
    ],
)
def test_variables_are_replaced_once(text: str, expected: str) -> None:
    environ = {"HOST": " h.example\n", "PORT": "80", "EMPTY": " ", "NESTED": "${HOST}"}
    assert substitute(text, environ) == expected


@pytest.mark.parametrize("text", ["${", "${}", "${1}", "${A B}", "${A:?x}", "a ${A", "${A-b}"])
def test_another_syntax_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="not closed, or without a variable's name: write"):
        substitute(text, {"A": "x"})


@given(st.text(alphabet="${}:-AB$ ", max_size=20))
def test_no_text_raises_another_error(text: str) -> None:
    try:
        substitute(text, {"A": "x"})
    except ValueError as error:
        assert str(error)  # noqa: PT017  the other outcome is a text


@pytest.mark.parametrize(
    ("value", "expected"),
    [("8080", 8080), ("-1", -1), ("0.50", Decimal("0.50")), ("true", True), ("False", False), ("1e3", "1e3"),
     ("0x10", "0x10"), ("null", "null"), ("9" * 5000, "9" * 5000)],
)  # fmt: skip
def test_a_text_can_stand_for_a_number_or_a_truth_value(value: str, expected: object) -> None:
    plain = substitute("${A}", {"A": value}).plain
    assert (plain, type(plain)) == (expected, Substituted if isinstance(expected, str) else type(expected))


def test_values_have_the_type_of_their_key(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        MODELS.replace("input_per_1m: 1", "input_per_1m: '${PRICE}'").replace("name: big", "name: ${NUMBER}")
        + "    echo: ${OFF}\n    always_stream: ${ON}\n"
        "server:\n  port: ${PORT}\n  drain_timeout: ${WAIT}\n  max_body: ${SIZE}\n  workers: ${NONE:-2}\n"
        'redis: {lease: "${WAIT}", prefix: "gkt-${NUMBER}"}\n'
        'log: {level: "${LEVEL}", requests: {sample: "${SAMPLE}"}}\n'
        "tracing: {propagate: '${OFF}'}\npolicies: ${FOLDER}/policies\n",
        PRICE="0.10", NUMBER="7", OFF="false", ON="true", PORT="8088", WAIT="3s", SIZE="4MB", LEVEL="debug",
        SAMPLE="0.5", FOLDER="/etc/gkt",
    )  # fmt: skip
    model, server, log = settings.models[0], settings.server, settings.log
    assert model.price_rule is not None
    assert model.price_rule.input_per_1m == Decimal("0.10")
    assert (model.name, model.echo, model.always_stream) == ("7", False, True)
    assert (server.port, server.drain_timeout_s, server.max_body_bytes, server.workers) == (8088, 3.0, 4_000_000, 2)
    assert (settings.redis.lease_s, settings.redis.prefix) == (3.0, "gkt-7")
    assert (log.level, log.requests.sample, settings.tracing.propagate) == ("debug", 0.5, False)
    assert settings.policies == Path("/etc/gkt/policies")
    assert {type(text) for text in (model.name, settings.redis.prefix, log.level)} == {str}


def test_a_value_adds_no_keys_and_no_entries(tmp_path: Path) -> None:
    """The value of a variable is one text, whatever it contains."""
    yaml = "x\nadmin: {key: stolen}"
    settings = settings_of(tmp_path, MODELS.replace("api_base", "model: ${A}\n    api_base"), A=yaml)
    assert (settings.models[0].model, settings.admin.key) == (yaml, None)
    assert issues_of(tmp_path, "models: ${A}\n", A="[{model: openai/gpt-4o-mini}]") == [
        "1: models: must be a list: one '- ...' per entry"
    ]


def test_an_alias_is_not_replaced_twice(tmp_path: Path) -> None:
    text = MODELS + "tracing: {service: &a '$${A}'}\nredis: {prefix: gkt}\nalerts: {webhook: *a}\n"
    assert issues_of(tmp_path, text, A="https://h.example/") == [
        "8: alerts.webhook: must be a URL like https://host/path, or a reference to one: env:NAME or file:/path"
    ]


def test_an_undefined_variable_is_an_issue_at_its_line(tmp_path: Path) -> None:
    text = MODELS.replace("http://tgi:80", "http://${HOST}:80") + "server:\n  port: ${PORT}\n  host: ${A B}\n"
    assert issues_of(tmp_path, text, PORT=" ") == [
        f"4: models[0].api_base: the environment variable HOST {NOT_SET} ${{HOST:-default}}",
        f"7: server.port: the environment variable PORT {NOT_SET.replace('not set', 'empty')} ${{PORT:-default}}",
        (
            "8: server.host: has a '${' that is not closed, or without a variable's name: write ${NAME} or "
            "${NAME:-default}, or $${ for a literal ${"
        ),
    ]


def test_a_value_that_does_not_fit_is_an_issue_without_the_value(tmp_path: Path) -> None:
    text = MODELS.replace("http://tgi:80", "https://h/${TOKEN}/v1/completions") + (
        "server: {port: '${PORT}', workers: '${TOKEN}'}\n"
    )
    assert issues_of(tmp_path, text, TOKEN="token-for-the-path", PORT="80800") == [
        (
            "4: models[0].api_base: must not include /completions: the gateway adds the route. Did you mean "
            "'https://h/${TOKEN}'?"
        ),
        "6: server.port: must be at most 65535",
        "6: server.workers: must be a whole number, without quotes",
    ]


def secrets_of(folder: Path, lines: str, **environ: str) -> Settings:
    return settings_of(folder, MODELS + lines, **environ)


def test_a_variable_in_place_of_a_secret_is_a_reference(tmp_path: Path) -> None:
    """Digits stay text there, and the value is no reference itself."""
    (tmp_path / "token").write_text("from-the-file")
    settings = secrets_of(
        tmp_path,
        "    api_key: ${DIGITS}\n"
        "admin: {key: '${KEY}'}\n"
        "redis: {url: 'redis://:${PASSWORD}@redis:6379'}\n"
        "alerts: {webhook: 'https://h.example/${KEY}', webhook_secret: 'file:${FOLDER}/token'}\n"
        "tracing: {headers: {authorization: 'Bearer ${KEY}'}}\n",
        DIGITS="0123", KEY="file:sixteen-letters", PASSWORD="hunter2", FOLDER=str(tmp_path),
    )  # fmt: skip
    alerts, headers = settings.alerts, settings.tracing.headers
    given = (settings.models[0].api_key, settings.admin.key, settings.redis.url, alerts.webhook, alerts.webhook_secret)
    assert [secret.get_secret_value() for secret in (*given, headers["authorization"]) if secret is not None] == [
        "0123", "file:sixteen-letters", "redis://:hunter2@redis:6379", "https://h.example/file:sixteen-letters",
        "from-the-file", "Bearer file:sixteen-letters",
    ]  # fmt: skip
    assert not any(value in repr(settings) for value in ("0123", "sixteen", "hunter2", "from-the-file"))


@pytest.mark.parametrize("text", ["${NONE:-plain-secret}", "$${KEY}", "plain$${"])
def test_a_secret_is_not_written_in_the_file(tmp_path: Path, text: str) -> None:
    assert issues_of(tmp_path, MODELS + f"    api_key: '{text}'\n", KEY="s3cret") == [
        f"6: models[0].api_key: {NO_SECRET}"
    ]


def test_a_secret_for_a_header_is_checked_without_showing_it(tmp_path: Path) -> None:
    assert issues_of(tmp_path, MODELS + "    api_key: ${KEY}\n", KEY="two words") == [
        "6: models[0].api_key: the secret contains a space or another character that is not allowed in a header"
    ]


def test_check_prints_no_value(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        MODELS.replace("big", "${SECRET}").replace("http://tgi:80", "http://u:${SECRET}@tgi/")
        + "    model: ${SECRET}/x\n    api_key: ${SECRET}\n    tokenizer: ${SECRET}\n"
        "    timeouts: {total: '${SECRET}'}\n  - {name: '${SECRET}', model: 'antropic/${SECRET}'}\nredis: {url: 'redis://:${SECRET}/@h'}\n"
    )
    done = run("check", "--config", str(tmp_path / "config.yaml"), SECRET="pass-word-9")
    assert done.returncode == 1
    assert "models[1].protocol: missing, and LiteLLM has no provider 'antropic'" in done.stderr
    assert "or write model: anthropic/${SECRET}" in done.stderr
    assert "models[1].name: models[0] is also called ${SECRET}" in done.stderr
    assert "pass-word-9" not in done.stdout + done.stderr


def test_short_values_leave_messages_readable() -> None:
    assert hide("must be at most 10, not secret-value", {"A": "10", "B": "secret-value"}) == (
        "must be at most 10, not ${B}"
    )


def test_commands_need_only_the_variables_of_their_sections(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        MODELS + "    api_key: ${KEY}\nadmin: {port: '${PORT:-8099}', key: '${ADMIN}'}\nusage: {url: '${URL}'}\n"
    )
    assert admin_listener(file, {}) == ("127.0.0.1", 8099)
    assert worker_settings(file, {"URL": "postgresql://db/gkt"}).usage.url.get_secret_value() == "postgresql://db/gkt"
    key = admin_key(file, {"ADMIN": "sixteen-letters!"})
    assert key is not None
    assert key.get_secret_value() == "sixteen-letters!"


def test_an_undefined_variable_does_not_select_a_default(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(MODELS + "admin: {port: '${PORT}', key: '${ADMIN}'}\nusage: {url: '${URL}'}\n")
    for read, name in ((admin_listener, "PORT"), (admin_key, "ADMIN"), (worker_settings, "URL")):
        reader: Any = read
        with pytest.raises(ConfigError, match=f"the environment variable {name} is not set"):
            reader(file, {})
    assert admin_listener(file, {"GKT_ADMIN_PORT": "8090"}) == ("127.0.0.1", 8090)


def test_policies_have_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/root")
    policy = b"tenant: a\nroutes:\n  - {model: chat, mode: student, student: small, when: {contains: '${HOME}'}}\n"
    source, issues = parse(policy, "a.yaml")
    assert source is not None
    tenant, more = source.check(TenantPolicy)
    assert [*issues, *more] == []
    assert tenant is not None
    assert tenant.routes[0].when is not None
    assert tenant.routes[0].when.contains == ("${HOME}",)
