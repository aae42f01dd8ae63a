"""The differences between two editions of config.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.config.changes import changed_settings
from gateway.config.settings import Settings, check_settings

if TYPE_CHECKING:
    from pathlib import Path

MODEL = "name: {}, protocol: openai, api_base: 'http://s:{}', price: {{input_per_1m: 1, output_per_1m: 1}}"


def edition(folder: Path, text: str, *models: tuple[str, int]) -> Settings:
    entries = ", ".join(f"{{{MODEL.format(*model)}}}" for model in models or [("small", 1)])
    (folder / "config.yaml").write_text(f"{text}\nmodels: [{entries}]\n")
    settings, _, issues = check_settings(folder / "config.yaml", {})
    assert issues == []
    assert settings is not None
    return settings


def test_changed_settings_are_named_and_a_default_is_no_change(tmp_path: Path) -> None:
    before = edition(tmp_path, "server: {port: 8080}")
    after = edition(tmp_path, "log: {level: debug, requests: {slow: 1s}}\ndefaults: {budget: {max_budget: 1}}")
    assert changed_settings(before, after) == ("log.level", "log.requests.slow", "defaults.budget")


def test_models_are_added_changed_and_removed(tmp_path: Path) -> None:
    before = edition(tmp_path, "", ("small", 1), ("gone", 1), ("edited", 1))
    after = edition(tmp_path, "", ("small", 1), ("new", 1), ("edited", 2))
    assert changed_settings(before, after) == ("models.new", "models.edited", "models.gone")
    assert changed_settings(before, before) == ()
