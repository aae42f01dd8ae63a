"""A student in the device's own process: a real model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gateway.edge import EdgeClient, LlamaStudent
from gateway.errors import StartupError
from gateway.local import weights
from tests.conftest import SMALL_MODEL
from tests.edge.devices import NOBODY
from tests.edge.fake_gateway import KEY, FakeGateway

if TYPE_CHECKING:
    from pathlib import Path

ASKED = {
    "model": "chat",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 16,
    "temperature": 0,
}


@pytest.mark.long
@pytest.mark.models
@pytest.mark.timeout(300)
async def test_llama_cpp_continues_guidance_and_answers_alone(tmp_path: Path) -> None:
    gateway = FakeGateway(text="The capital of France is", kept_tokens=5, pieces=("The capital",))
    # One thread: on a busy machine two wait for each other at every token.
    student = LlamaStudent(weights.fetch(SMALL_MODEL), name=SMALL_MODEL, threads=1, context_tokens=1024, silence_s=240)
    with gateway.running() as url:
        async with EdgeClient(url, key=KEY, student=student, queue=tmp_path) as edge:
            guided = await edge.complete(ASKED)
            gateway.fails = (503, "overloaded", "Too much in flight.")
            alone = await edge.complete(ASKED)
            await edge.sync()
    content = guided["choices"][0]["message"]["content"]
    assert content.startswith("The capital of France is Paris")
    assert content.count("The capital of France") == 1
    assert guided["gkt"]["mode"] == "guided"
    assert alone["choices"][0]["message"]["content"]
    assert alone["gkt"]["unguided"] == "gateway_busy"
    closed, offline = gateway.reports.values()
    assert closed["student"] == offline["student"] == SMALL_MODEL
    assert 0 < closed["output_tokens"] <= 11
    assert closed["input_tokens"] > 0


async def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"there is no file .*none\.gguf"):
        async with EdgeClient(NOBODY, key=KEY, student=LlamaStudent(tmp_path / "none.gguf"), queue=tmp_path):
            pass
