"""The differences between two editions of config.yaml."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from gateway.config.changes import ModelChanges, is_same_engine, live_changes, needs_restart
from gateway.config.models import ModelSettings
from gateway.config.settings import Settings, check_settings

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.yaml_source import YamlSource

MODEL = "{name: small, protocol: openai, api_base: 'http://s:1', price: {input_per_1m: 1, output_per_1m: 1}}"


def edition(folder: Path, text: str, environ: dict[str, str] | None = None) -> tuple[Settings, YamlSource]:
    (folder / "config.yaml").write_text(f"{text}\nmodels: [{MODEL}]\n")
    settings, source, issues = check_settings(folder / "config.yaml", environ or {})
    assert issues == []
    assert settings is not None
    assert source is not None
    return settings, source


def model(**more: object) -> ModelSettings:
    price = {"input_per_1m": Decimal(1), "output_per_1m": Decimal(1)}
    fields = {"name": "small", "protocol": "openai", "api_base": "http://s:1", "price_rule": price}
    return ModelSettings.model_validate(fields | more)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("server: {port: 9000}", ["server.port"]),
        ("server: {max_body: 9MB, port: 9000}", ["server.port", "server.max_body"]),
        ("redis: {url: 'redis://r:1', lease: 20s}", ["redis.url", "redis.lease"]),
        ("admin: {cors: {origins: ['https://a.example']}}", ["admin.cors"]),
        ("policies: other", ["policies"]),
        ("log: {level: debug, requests: {sample: 0.5}}", ["log.level"]),
        ("defaults: {limits: {rpm_limit: 5}}\nalerts: {webhook: 'http://h/', spend_factor: 2}", []),
        ("server: {port: 8080}", []),  # its default
    ],
)
def test_settings_that_need_a_restart_are_named_with_their_lines(tmp_path: Path, text: str, names: list[str]) -> None:
    before, _ = edition(tmp_path, "")
    after, source = edition(tmp_path, text)
    issues = needs_restart(before, after, source)
    assert [issue.field for issue in issues] == names
    assert {issue.line for issue in issues} <= {1}
    assert all(str(issue).endswith(": restart the gateway to apply it") for issue in issues)


def test_a_removed_setting_needs_a_restart_too(tmp_path: Path) -> None:
    before, _ = edition(tmp_path, "server: {port: 9000}")
    issues = needs_restart(before, *edition(tmp_path, ""))
    assert [issue.field for issue in issues] == ["server.port"]


def test_a_setting_of_the_environment_keeps_its_precedence(tmp_path: Path) -> None:
    """An edit of its value in the file changes nothing, so it is not named."""
    environ = {"GKT_PORT": "7000"}
    before, _ = edition(tmp_path, "server: {port: 9000}", environ)
    assert needs_restart(before, *edition(tmp_path, "server: {port: 9001}", environ)) == []


def test_settings_that_apply_at_once_are_named(tmp_path: Path) -> None:
    before, _ = edition(tmp_path, "")
    text = "defaults: {limits: {rpm_limit: 5}, budget: {max_budget: 1}}\nlog: {level: debug, requests: {slow: 1s}}"
    after, _ = edition(tmp_path, text)
    assert live_changes(before, after) == ["log.requests.slow", "defaults.limits.rpm_limit", "defaults.budget"]


def test_models_are_added_changed_and_removed() -> None:
    before = {one.name: one for one in (model(), model(name="gone"), model(name="edited"))}
    after = (model(), model(name="new"), model(name="edited", api_key=None, max_concurrency=96))
    assert ModelChanges.between(before, after) == ModelChanges(("new",), ("edited",), ("gone",))
    assert not any(ModelChanges.between(before, tuple(before.values())))


@pytest.mark.parametrize(
    ("field", "same"),
    [
        ({"price_rule": {"input_per_1m": Decimal(2), "output_per_1m": Decimal(1)}}, True),
        ({"max_output_tokens": 7}, True),
        ({"guidance_cache_bytes": 1_000_000}, True),
        ({"batch": {"max_size": 5}}, True),
        ({"batch": {"max_queue": 500}}, False),
        ({"api_base": "http://s:2"}, False),
        ({"max_concurrency": 96}, False),  # its default, which limits calls that complete answers only if it is set
        ({"timeouts": {"idle_s": 5.0}}, False),
        ({"breaker": {"failures": 9}}, False),
        ({"reasoning": "always"}, False),
        ({"tokenizer": "o200k_base"}, False),
    ],
)
def test_a_setting_that_no_engine_reads_keeps_the_engine(field: dict[str, object], *, same: bool) -> None:
    """Each of these edits changes the model."""
    before, after = model(), model(**field)
    assert is_same_engine(before, after) == same
    assert ModelChanges.between({"small": before}, (after,)).changed == ("small",)
