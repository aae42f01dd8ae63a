"""The demo marks as the teacher's what is the teacher's, and says of all else whose it is and why."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from rich.console import Console

from gateway.cli.demo_print import print_answer
from tests.fakes import chunk, event, served

if TYPE_CHECKING:
    from gateway.policy.schema import Placement

MODELS = {"teacher": "big [1]", "student": "small"}
SHARE = {"input_tokens": 10, "output_tokens": 5, "cost_usd": "0.00001"}


def _gateway(mode: str, unguided: str | None) -> web.Application:
    """A gateway that answers in two chunks, in this mode."""

    async def chat(request: web.Request) -> web.StreamResponse:
        why = {"x-gkt-unguided": unguided} if unguided else {}
        response = web.StreamResponse(headers={"x-request-id": "req_1", "x-gkt-mode": mode, **why})
        await response.prepare(request)
        for text in ("First", " then"):
            await response.write(event(chunk({"content": text})))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def receipt(_: web.Request) -> web.Response:
        amounts = dict.fromkeys(("cost_usd", "baseline_usd", "savings_usd"), "0.00001")
        shares = {role: {"model": role, **SHARE} for role in MODELS}
        rest = {"batch": None, "timings": {}, "baseline_estimated": True, "unguided": unguided}
        return web.json_response({"id": "req_1", "mode": mode, **amounts, **shares, **rest})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/receipts/req_1", receipt)
    return app


async def _printed(mode: str, placement: Placement, unguided: str | None = None) -> str:
    paper = io.StringIO()
    console = Console(file=paper, width=200)
    with served(_gateway(mode, unguided)) as url:
        async with aiohttp.ClientSession() as session:
            await print_answer(console, session, url, "Why?", placement=placement, models=MODELS)
    return paper.getvalue()


@pytest.mark.parametrize(
    ("mode", "placement", "unguided", "said"),
    [
        ("guided", "prefix", None, "the teacher's words, then the student's\n\n[First] then\n"),
        ("teacher_complete", "prefix", None, "the teacher's words, to the end\n\n[First] then\n"),
        (
            "guided",
            "context",
            None,
            "the student's words, after a hint of the teacher's that is not shown\n\nFirst then\n",
        ),
        ("student", "prefix", "teacher_late", "the student's words alone: unguided, teacher_late ("),
        ("student", "context", "guidance_empty", "the student's words alone: unguided, guidance_empty ("),
    ],
)
async def test_only_an_opening_that_is_shown_is_marked(
    mode: str, placement: Placement, unguided: str | None, said: str
) -> None:
    text = await _printed(mode, placement, unguided)
    assert f"Answer   {said}" in text
    assert ("[First]" in text) == ("[First]" in said)


async def test_the_receipt_names_the_role_and_the_model_that_plays_it() -> None:
    text = await _printed("guided", "prefix")
    assert "teacher big [1] " in text
    assert "student small " in text
