"""The conversion of llama.cpp's chunks, as recorded on the wire, to TGI's format."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gateway.local.generation import GeneratedToken, LocalGeneration
from gateway.local.tgi_errors import TgiError
from gateway.local.tgi_request import TgiJob

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

END = {"content": "", "tokens": [], "tokens_predicted": 0, "stop": True, "stop_type": "limit"}


def chunk(text: str, predicted: int, token_id: int = 5) -> dict[str, Any]:
    return {"content": text, "tokens": [token_id], "tokens_predicted": predicted, "stop": False}


class Llama:
    """Replays chunks and records whether the stream was closed before its end."""

    def __init__(self, *chunks: dict[str, Any]) -> None:
        self.chunks = chunks
        self.closed_early = False
        self.body: dict[str, Any] = {}

    async def complete(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        self.body = body
        done = False
        try:
            for each in self.chunks:
                yield each
            done = True
        finally:
            self.closed_early = not done

    async def special_text(self, token_id: int) -> str:
        return f"<|{token_id}|>"


async def run(
    llama: Llama, *, max_new_tokens: int = 10, stop: tuple[str, ...] = ()
) -> tuple[LocalGeneration, list[GeneratedToken]]:
    job = TgiJob((1, 2), max_new_tokens, stop, None, 0, {"temperature": 0.0})
    generation = LocalGeneration(llama, job, logprobs=False)  # type: ignore[arg-type]
    return generation, [token async for token in generation.tokens()]


async def test_length_is_tested_before_the_closing_token():
    eos = END | {"stop_type": "eos", "tokens_predicted": 2}
    generation, tokens = await run(Llama(chunk("a", 1), chunk("", 2, 9), eos), max_new_tokens=2)
    assert generation.finish_reason == "length"
    assert (tokens[-1].text, tokens[-1].special) == ("<|9|>", True)


async def test_a_closing_token_before_the_length_ends_the_answer():
    eos = END | {"stop_type": "eos", "tokens_predicted": 2}
    generation, tokens = await run(Llama(chunk("a", 1), chunk("", 2, 9), eos))
    assert (generation.finish_reason, generation.text, generation.generated_tokens) == ("eos_token", "a", 2)
    assert [token.finish_reason for token in tokens] == [None, "eos_token"]


async def test_an_unclosing_special_token_does_not_end_the_answer():
    limit = END | {"tokens_predicted": 3}
    generation, tokens = await run(Llama(chunk("a", 1), chunk("", 2, 9), chunk("b", 3), limit), max_new_tokens=3)
    assert [token.special for token in tokens] == [False, True, False]
    assert (generation.finish_reason, generation.text) == ("length", "ab")


async def test_a_stop_sequence_is_found_across_tokens_kept_and_the_rest_cancelled():
    llama = Llama(chunk("one\n", 1), chunk("Q", 2), chunk(":", 3), chunk(" more", 4))
    generation, tokens = await run(llama, stop=("\nQ:",))
    assert (generation.finish_reason, generation.text) == ("stop_sequence", "one\nQ:")
    assert len(tokens) == 3
    assert llama.closed_early
    assert "stop" not in llama.body


async def test_a_stop_sequence_in_the_middle_of_a_token_does_not_stop():
    limit = END | {"tokens_predicted": 1}
    generation, _ = await run(Llama(chunk("a.b", 1), limit), stop=(".",), max_new_tokens=1)
    assert (generation.finish_reason, generation.text) == ("length", "a.b")


async def test_tokens_inside_a_character_are_counted_without_text():
    generation, tokens = await run(Llama(chunk("a", 1), chunk("🔍", 4, 231)), max_new_tokens=4)
    assert [token.text for token in tokens] == ["a", "", "", "🔍"]
    assert [token.id for token in tokens] == [5, 0, 0, 231]
    assert generation.finish_reason == "length"


async def test_a_character_cut_by_the_length_leaves_its_tokens_counted():
    generation, tokens = await run(Llama(chunk("a", 1), END | {"tokens_predicted": 3}), max_new_tokens=3)
    assert [token.text for token in tokens] == ["a", "", ""]
    assert (generation.finish_reason, generation.generated_tokens) == ("length", 3)


async def test_a_stream_that_just_ends_is_incomplete():
    with pytest.raises(TgiError) as caught:
        await run(Llama(chunk("a", 1)))
    assert (caught.value.status, caught.value.error_type) == (500, "incomplete_generation")


async def test_queue_time_excludes_the_time_in_llama_cpp():
    timings = {"prompt_ms": 10.0, "predicted_ms": 5.0}
    generation, _ = await run(Llama(chunk("a", 1) | {"timings": timings}), max_new_tokens=1)
    assert generation.inference_s == pytest.approx(0.015)
    assert generation.queue_s >= 0.0
