from __future__ import annotations

import subprocess
import sys

import pytest

from gateway import pricing
from gateway.capabilities import providers


def test_the_names_are_read_without_importing_litellm() -> None:
    code = "import sys; from gateway.capabilities.providers import providers; assert 'litellm' not in sys.modules; "
    code += "print(len(providers()), 'anthropic' in providers(), 'litellm' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert int(output[0]) > 100
    assert output[1:] == ["True", "False"]


@pytest.mark.parametrize(
    "name",
    [
        "openai", "azure", "anthropic", "bedrock", "gemini", "vertex_ai", "mistral", "deepseek", "groq", "openrouter",
        "together_ai", "fireworks_ai", "hosted_vllm", "ollama", "ollama_chat", "lm_studio", "cohere_chat", "xai",
    ],
)  # fmt: skip
def test_common_providers_are_known(name: str) -> None:
    assert name in providers.providers()


def test_without_litellm_no_name_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    providers.providers.cache_clear()
    monkeypatch.setattr(pricing, "find_spec", lambda _: None)
    try:
        assert providers.providers() == frozenset()
    finally:
        providers.providers.cache_clear()
