"""Settings of protocol litellm in config.yaml. test_settings.py tests those of other protocols."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from gateway.config.models import ModelSettings

FREE = {"input_per_1m": 0, "output_per_1m": 0}


def settings(**entry: Any) -> ModelSettings:
    return ModelSettings.model_validate({"name": "big", "protocol": "litellm", "price": FREE, **entry})


def complaint(**entry: Any) -> tuple[str, str]:
    """The one mistake that is found: where, and what."""
    with pytest.raises(ValidationError) as caught:
        settings(**entry)
    (error,) = [one for one in caught.value.errors() if one["type"] != "default_factory_not_called"]
    return str(error["loc"][0]), f"{error['msg']} {getattr(error.get('ctx', {}).get('error'), 'suggestion', '') or ''}"


def test_an_address_and_a_key_may_be_left_out() -> None:
    """The provider has its own address, and its own environment variables."""
    made = settings(model="anthropic/claude-sonnet-4-5")
    assert (made.api_base, made.api_key, made.options, made.continuation) == (None, None, {}, "auto")


@pytest.mark.parametrize("protocol", ["tgi", "openai"])
def test_every_other_protocol_needs_an_address(protocol: str) -> None:
    where, what = complaint(protocol=protocol)
    assert where == "api_base"
    assert "missing: add it" in what


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("claude-sonnet-4-5", "must be provider/name"),
        ("anthropic/", "must be provider/name"),
        ("antropic/claude-sonnet-4-5", "LiteLLM has no provider 'antropic' anthropic"),
        ("/claude", "LiteLLM has no provider ''"),
    ],
)
def test_a_model_names_a_provider_that_litellm_knows(model: str, message: str) -> None:
    where, what = complaint(model=model)
    assert where == "model"
    assert message in what


def test_the_list_price_is_found_under_the_prefixed_name() -> None:
    price = settings(model="anthropic/claude-sonnet-4-5", price=None).price
    assert price.output_usd > price.input_usd > price.cached_input_usd > 0


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("azure/my-deployment", {"api_version": "2024-06-01"}),
        ("bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0", {"aws_region_name": "eu-central-1"}),
        ("vertex_ai/gemini-2.0-flash", {"vertex_project": "p-1", "vertex_location": "europe-west4"}),
    ],
)
def test_a_providers_own_options_reach_it(model: str, options: dict[str, str]) -> None:
    assert settings(model=model, **options).options == options


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        ({"model": "anthropic/x", "api_version": "2024-06-01"}, "api_version"),
        ({"protocol": "openai", "api_base": "https://h/v1", "aws_region_name": "eu"}, "aws_region_name"),
        ({"model": "azure/x", "api_version": "a b"}, "api_version"),
        ({"model": "bedrock/x", "aws_region_name": "http://h/"}, "aws_region_name"),
        ({"model": "anthropic/x", "api_base": "ftp://h"}, "api_base"),
        ({"model": "anthropic/x", "api_base": "/var/run/x"}, "api_base"),
        ({"model": "anthropic/x", "continuation": "sglang"}, "continuation"),
        ({"model": "anthropic/x", "continuation": "vllm"}, "continuation"),
        ({"model": "anthropic/x", "litellm_params": {}}, "litellm_params"),
    ],
)
def test_invalid_settings_are_rejected_at_their_line(entry: dict[str, Any], where: str) -> None:
    assert complaint(**entry)[0] == where


def test_vllms_flags_go_through_litellm_to_vllm() -> None:
    assert settings(model="hosted_vllm/x", continuation="vllm").continuation == "vllm"
