"""The demo marks as the teacher's what is the teacher's, and says of all else whose it is and why."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from rich.console import Console

from gateway.cli.guided_answer import print_answer
from tests.fakes import chunk, event, served

if TYPE_CHECKING:
    from gateway.policy.projections import Placement

MODELS = {"teacher": "big [1]", "student": "small"}
SHARE = {"input_tokens": 10, "output_tokens": 5, "cost_usd": "0.00001"}


def _gateway(mode: str, unguided: str | None, *, hidden: bool, completed: bool) -> web.Application:
    """A gateway that answers in this mode, as the playground is answered; an opening comes in two chunks and a half."""
    opened = mode == "teacher_complete" or (mode == "guided" and not hidden)

    async def chat(request: web.Request) -> web.StreamResponse:
        why = {"x-gkt-unguided": unguided} if unguided else {}
        response = web.StreamResponse(headers={"x-request-id": "req_1", "x-gkt-mode": mode, **why})
        await response.prepare(request)
        for guidance, text in (("First", ""), (" then", ""), (" a", " word")):
            marks = {"x_gkt": {"opening": guidance}} if opened else {}
            await response.write(event(chunk({"content": guidance + text}) | marks))
        receipt = _receipt("teacher_complete" if completed else mode, unguided)
        await response.write(event(receipt | ({"student": None} if completed else {})))
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/playground/run", chat)
    return app


def _receipt(mode: str, unguided: str | None) -> dict[str, object]:
    amounts = dict.fromkeys(("cost_usd", "baseline_usd", "savings_usd"), "0.00001")
    shares = {role: {"model": role, **SHARE} for role in MODELS}
    rest = {"batch": None, "timings": {}, "baseline_estimated": True, "unguided": unguided}
    return {"id": "req_1", "mode": mode, **amounts, **shares, **rest}


async def _printed(mode: str, placement: Placement, unguided: str | None = None, *, completed: bool = False) -> str:
    paper = io.StringIO()
    console = Console(file=paper, width=200)
    with served(_gateway(mode, unguided, hidden=placement == "context", completed=completed)) as url:
        async with aiohttp.ClientSession() as session:
            await print_answer(console, session, url, "Why?", placement=placement, models=MODELS)
    return paper.getvalue()


@pytest.mark.parametrize(
    ("mode", "placement", "unguided", "expected"),
    [
        ("guided", "prefix", None, "by the teacher, then the student\n\n[First then a] word\n"),
        ("teacher_complete", "prefix", None, "by the teacher to the end\n\n[First then a] word\n"),
        ("teacher_complete", "context", None, "by the teacher to the end\n\n[First then a] word\n"),
        (
            "guided",
            "context",
            None,
            "by the student, after a hint by the teacher that is not shown\n\nFirst then a word\n",
        ),
        ("student", "prefix", "teacher_late", "by the student alone: unguided, teacher_late ("),
        ("student", "context", "guidance_empty", "by the student alone: unguided, guidance_empty ("),
    ],
)
async def test_only_visible_guidance_is_marked(
    mode: str, placement: Placement, unguided: str | None, expected: str
) -> None:
    text = await _printed(mode, placement, unguided)
    assert f"Answer   {expected}" in text
    assert ("[First then a]" in text) == ("[First then a]" in expected)


async def test_an_answer_that_the_teacher_completed_after_the_head_is_the_teachers() -> None:
    said = "The teacher wrote the whole answer. No student was called."
    assert said in await _printed("guided", "prefix", completed=True)
    assert said not in await _printed("guided", "prefix")


async def test_the_receipt_names_roles_and_models() -> None:
    text = await _printed("guided", "prefix")
    assert "teacher big [1] " in text
    assert "student small " in text
