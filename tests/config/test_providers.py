"""Entries of `models` that name their provider in `model`, without a protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.config.settings import check_settings
from gateway.policy.book import check_all
from gateway.pricing import litellm_table

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.config.models import ModelSettings

FREE = "price: {input_per_1m: 0, output_per_1m: 0}"


def models_of(folder: Path, entries: str, **environ: str) -> tuple[ModelSettings, ...]:
    (folder / "config.yaml").write_text(f"models: [{entries}]\n")
    settings, _, issues = check_settings(folder / "config.yaml", environ)
    assert settings is not None, [str(issue) for issue in issues]
    return settings.models


def issues_of(folder: Path, entries: str) -> list[str]:
    (folder / "config.yaml").write_text(f"models: [{entries}]\n")
    settings, _, issues = check_settings(folder / "config.yaml", {})
    assert settings is None
    return [f"{issue.line} {issue.field}: {issue.message}" for issue in issues]


def test_openai_needs_only_its_model_and_key(tmp_path: Path) -> None:
    """The key is sent to OpenAI alone, and no probe is charged."""
    (gpt,) = models_of(tmp_path, "{name: gpt, model: openai/gpt-4o-mini}", OPENAI_API_KEY="sk-1")
    assert (gpt.name, gpt.protocol, gpt.model, gpt.continuation) == ("gpt", "openai", "gpt-4o-mini", "none")
    assert gpt.api_base == "https://api.openai.com/v1"
    assert gpt.api_key is not None
    assert gpt.api_key.get_secret_value() == "sk-1"
    assert gpt.price == litellm_table("openai/gpt-4o-mini")


def test_a_missing_key_of_openai_is_an_issue(tmp_path: Path) -> None:
    assert issues_of(tmp_path, "{model: openai/gpt-4o-mini}") == [
        "1 models[0].api_key: the environment variable OPENAI_API_KEY is not set: set it, or correct the name"
    ]


def test_openai_at_an_address_is_that_server(tmp_path: Path) -> None:
    """OpenAI's key does not reach another server, whose probes cost nothing."""
    entry = f"{{model: openai/Qwen/Qwen2.5-7B-Instruct, api_base: 'http://vllm:8000/v1', {FREE}}}"
    (qwen,) = models_of(tmp_path, entry, OPENAI_API_KEY="sk-1")
    assert (qwen.name, qwen.protocol, qwen.model) == ("Qwen2.5-7B-Instruct", "openai", "Qwen/Qwen2.5-7B-Instruct")
    assert (qwen.api_base, qwen.api_key, qwen.continuation) == ("http://vllm:8000/v1", None, "auto")


def test_other_providers_are_called_through_litellm(tmp_path: Path) -> None:
    claude, azure = models_of(
        tmp_path,
        "{model: anthropic/claude-sonnet-4-5}, {name: a, model: azure/gpt-4o, api_base: 'https://a.example', "
        "api_version: 2024-10-21, continuation: instruct}",
    )
    assert (claude.name, claude.protocol, claude.model) == (
        "claude-sonnet-4-5", "litellm", "anthropic/claude-sonnet-4-5"
    )  # fmt: skip
    assert (claude.api_base, claude.api_key, claude.continuation) == (None, None, "none")
    assert claude.price == litellm_table("anthropic/claude-sonnet-4-5")
    assert (azure.protocol, azure.options, azure.continuation) == ("litellm", {"api_version": "2024-10-21"}, "instruct")


def test_a_written_protocol_is_not_changed(tmp_path: Path) -> None:
    """The organization of a model on the hub is no provider there."""
    entry = f"{{protocol: openai, model: openai/gpt-oss-20b, api_base: 'http://vllm:8000/v1', {FREE}}}"
    (oss,) = models_of(tmp_path, entry)
    assert (oss.name, oss.protocol, oss.model, oss.continuation) == (
        "gpt-oss-20b", "openai", "openai/gpt-oss-20b", "auto"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "{name: a, model: Qwen/Qwen2.5-7B-Instruct, api_base: 'http://vllm:8000/v1', PRICE}",
            (
                "1 models[0].protocol: missing: write openai (any OpenAI-compatible server), tgi, or litellm, or name "
                "the provider in model, like openai/gpt-4o-mini"
            ),
        ),
        (
            "{model: antropic/claude-sonnet-4-5, PRICE}",
            (
                "1 models[0].protocol: missing, and LiteLLM has no provider 'antropic': write openai (any "
                "OpenAI-compatible server), tgi, or litellm, or write model: anthropic/claude-sonnet-4-5"
            ),
        ),
        ("{protocol: openai, api_base: 'http://vllm:8000/v1', PRICE}", "1 models[0].name: missing: add it"),
    ],
)
def test_an_incomplete_entry_is_one_issue_that_says_what_to_write(tmp_path: Path, entry: str, message: str) -> None:
    assert issues_of(tmp_path, entry.replace("PRICE", FREE)) == [message]


def test_names_that_follow_from_models_differ(tmp_path: Path) -> None:
    entries = "{model: gemini/gemini-2.5-flash}, {model: vertex_ai/gemini-2.5-flash}"
    assert issues_of(tmp_path, entries) == [
        "1 models[1].name: models[0] is also called gemini-2.5-flash: names must be unique"
    ]


def test_policies_are_checked_with_the_protocol_that_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    (tmp_path / "config.yaml").write_text(
        "models: [{model: openai/text-embedding-3-small}, {name: voyage, model: voyage/voyage-3}]\n"
    )
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "a.yaml").write_text(
        "tenant: a\nroutes:\n"
        "  - {model: one, mode: embeddings, student: text-embedding-3-small}\n"
        "  - {model: two, mode: embeddings, student: voyage}\n"
    )
    _, _, issues = check_all(tmp_path / "config.yaml")
    assert [(issue.field, issue.message.partition(",")[0]) for issue in issues] == [
        ("routes[1].student", "voyage has protocol litellm")
    ]
