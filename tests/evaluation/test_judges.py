"""A configured model as a judge."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from gateway.config.settings import Settings
from gateway.errors import StartupError
from gateway.evaluation.pair import ConfiguredPair, judge_of
from gateway.evaluation.record import Question, ScoredAnswer
from gateway.evaluation.scoring import Scoring
from tests.fakes import served

if TYPE_CHECKING:
    from pathlib import Path

QUESTION = Question("q", "Why is the sky blue?", "Short waves are scattered most.", "judge")


def settings(url: str) -> Settings:
    price = {"input_per_1m": Decimal(1), "output_per_1m": Decimal(1)}
    return Settings.model_validate(
        {"models": [{"name": "big", "protocol": "openai", "api_base": f"{url}/v1", "price": price}]}
    )


async def test_scores_of_a_judge_are_stored_and_not_requested_again(tmp_path: Path) -> None:
    """A fake model that always returns a score."""
    bodies: list[dict[str, Any]] = []

    async def judge(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        message = {"role": "assistant", "content": "Score: 8"}
        return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", judge)
    file = tmp_path / "generations.jsonl"
    with served(app) as url:
        for _ in range(2):
            async with judge_of(ConfiguredPair(settings(url), "big", "big"), "big", file) as found:
                assert await Scoring(found).score("Blue light bounces most.", QUESTION) == ScoredAnswer(0.8, "8")
    (body,) = bodies
    assert body["temperature"] == 0
    assert "Blue light bounces most." in body["messages"][0]["content"]
    async with judge_of(ConfiguredPair(settings("http://127.0.0.1:9"), "big", "big"), "big", file) as found:
        assert (await Scoring(found).score("Blue light bounces most.", QUESTION)).correct


async def test_a_missing_judge_is_an_error(tmp_path: Path) -> None:
    pair = ConfiguredPair(settings("http://127.0.0.1:9"), "big", "big")
    with pytest.raises(StartupError, match="the configuration has no such model"):
        async with judge_of(pair, "tiny", tmp_path / "generations.jsonl"):
            pass
