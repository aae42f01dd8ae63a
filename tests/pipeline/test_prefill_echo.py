"""The caller's beginning of the answer is removed from the reply, whichever engine repeats it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.pipeline.prefill_echo import PrefillEcho, prefill_echo
from gateway.policy.plan import StudentPlan
from gateway.protocol.capabilities.continuation import Continuation, Mode
from gateway.protocol.chat import parse_chat
from gateway.protocol.text import parse_text_completion

if TYPE_CHECKING:
    from gateway.protocol.chat import ChatRequest

SHORT = "The"
LONG = "The capital of the country of France is the city of"


def chat(content: Any, role: str = "assistant", **more: Any) -> ChatRequest:
    messages = [{"role": "user", "content": "Where?"}, {"role": role, "content": content}]
    return parse_chat(orjson.dumps({"model": "m", "messages": messages, **more}))


def by(mode: Mode | None, *, echo: bool | None = None) -> StudentPlan:
    return StudentPlan("small", None if mode is None else Continuation(mode, echo=echo))


def streamed(echo_filter: PrefillEcho, *choices: str, cuts: int = 3) -> list[str]:
    texts = [""] * len(choices)
    for index, text in enumerate(choices):
        pieces = [text[at : at + cuts] for at in range(0, len(text), cuts)] or [""]
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            part: Any = {"index": index, "delta": {"content": piece}, "finish_reason": "stop" if last else None}
            echo_filter.chunk({"choices": [part]})
            texts[index] += part["delta"].get("content") or ""
    return texts


@given(
    beginning=st.text(min_size=1, max_size=40).filter(str.strip),
    rest=st.text(max_size=20),
    cuts=st.integers(1, 9),
    echo=st.sampled_from([True, None]),
)
def test_replies_and_streams_are_changed_alike(beginning: str, rest: str, cuts: int, echo: bool | None) -> None:
    for text in (beginning + rest, rest):
        whole: Any = {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}
        PrefillEcho(beginning, echo=echo).reply(whole)
        assert streamed(PrefillEcho(beginning, echo=echo), text, cuts=cuts) == [
            whole["choices"][0]["message"]["content"]
        ]
        if echo and text == beginning + rest:
            assert whole["choices"][0]["message"]["content"] == rest


def test_the_repetition_is_removed_from_each_choice() -> None:
    assert streamed(PrefillEcho(LONG, echo=True), LONG + " Paris", LONG + " Lyon", " Nice") == [
        " Paris", " Lyon", " Nice",
    ]  # fmt: skip


def test_other_fields_of_a_message_are_kept() -> None:
    message = {"content": LONG + " Paris", "reasoning_content": "Hm", "refusal": None}
    PrefillEcho(LONG, echo=True).reply({"choices": [{"index": 0, "message": message}]})
    assert message == {"content": " Paris", "reasoning_content": "Hm", "refusal": None}
    called: Any = {"content": None, "tool_calls": [{}]}
    PrefillEcho(LONG, echo=True).reply({"choices": [{"index": 0, "message": called}]})
    assert called == {"content": None, "tool_calls": [{}]}


@pytest.mark.parametrize(
    ("student", "stream", "beginning", "text", "left"),
    [
        # JSON replies were probed. A stream may not repeat the text, so a short beginning is kept there.
        (by("trailing", echo=True), False, SHORT, "The end", " end"),
        (by("trailing", echo=True), True, SHORT, "There", "There"),
        (by("trailing", echo=True), True, LONG, LONG + " Paris", " Paris"),
        (by("prefix", echo=True), True, SHORT, "The end", " end"),
        # The behavior is unknown: only text too long for a coincidence is removed.
        (by("trailing"), False, SHORT, "The end", "The end"),
        (by("trailing"), False, LONG, LONG + " Paris", " Paris"),
        (by(None), True, LONG, LONG + " Paris", " Paris"),
        # The known behavior of another mode does not apply to the caller's prefill.
        (by("instruct", echo=True), False, SHORT, "The end", "The end"),
        (by("completions", echo=False), False, LONG, LONG + " Paris", " Paris"),
    ],
)
def test_the_engines_known_behavior_decides(
    student: StudentPlan, beginning: str, text: str, left: str, *, stream: bool
) -> None:
    echo_filter = prefill_echo(student, chat(beginning), stream=stream)
    assert echo_filter is not None
    assert streamed(echo_filter, text) == [left]


@pytest.mark.parametrize(
    ("student", "request_"),
    [
        (by("trailing", echo=False), chat(LONG)),
        (by("trailing", echo=True), chat(LONG, "user")),
        (by("trailing", echo=True), chat(LONG, echo=True)),
        (by("trailing", echo=True), chat([{"type": "refusal", "refusal": "No"}])),
        (by("trailing", echo=True), parse_text_completion(b'{"model":"m","prompt":"Q:"}')),
    ],
    ids=["the engine never repeats", "no answer was begun", "the caller asks for it", "no text", "a raw prompt"],
)
def test_other_replies_are_unchanged(student: StudentPlan, request_: Any) -> None:
    assert prefill_echo(student, request_, stream=False) is None
