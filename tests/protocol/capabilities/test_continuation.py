from __future__ import annotations

from typing import Any, get_args

import pytest

from gateway.protocol.capabilities.continuation import (
    INSTRUCTION,
    NATIVE_MODES,
    PROBE_MAX_TOKENS,
    Continuation,
    Mode,
    judge_probe,
    place_prefix,
    probes,
    unsupported_as_text,
)

OPENING = "a b c d e f g h i j k l m n"
QUESTION = {"role": "user", "content": "Why?"}


@pytest.mark.parametrize(
    ("mode", "marks", "fields"),
    [
        ("vllm", {}, {"continue_final_message": True, "add_generation_prompt": False}),
        ("sglang", {}, {"continue_final_message": True}),
        ("trailing", {}, {}),
        ("prefix", {"prefix": True}, {}),
        ("partial", {"partial": True}, {}),
    ],
)
def test_each_mode_has_its_servers_parameters(mode: Mode, marks: dict[str, bool], fields: dict[str, bool]) -> None:
    """The guidance is the last message, with role assistant. The rest of the body is unchanged."""
    body = {"messages": [QUESTION], "temperature": 0.3, "unknown": 1}
    assert place_prefix(mode, body, "Because") == {
        "messages": [QUESTION, {"role": "assistant", "content": "Because", **marks}],
        "temperature": 0.3,
        "unknown": 1,
        **fields,
    }
    assert body == {"messages": [QUESTION], "temperature": 0.3, "unknown": 1}


def test_mode_instruct_changes_the_last_user_message() -> None:
    """Later messages and braces in the guidance have no effect. The caller's body is unchanged."""
    body = {"messages": [QUESTION, {"role": "assistant", "content": "So?"}, QUESTION], "temperature": 0.3}
    instruction = f"Why?\n\n{INSTRUCTION}".replace("{opening}", "{opening} {0}")
    assert place_prefix("instruct", body, "{opening} {0}") == {
        "messages": [*body["messages"][:2], {"role": "user", "content": instruction}],
        "temperature": 0.3,
    }
    assert body["messages"][2] is QUESTION
    assert QUESTION == {"role": "user", "content": "Why?"}


@pytest.mark.parametrize("mode", [*NATIVE_MODES, "instruct"])
@pytest.mark.parametrize("value", [True, False, "content"])
def test_the_callers_continuation_parameters_are_removed(mode: Mode, value: object) -> None:
    """The parameters refer to the caller's last message. vLLM rejects both together."""
    body = {"messages": [QUESTION]}
    of_the_caller = {"continue_final_message": value, "add_generation_prompt": value}
    assert place_prefix(mode, body | of_the_caller, "Because") == place_prefix(mode, body, "Because")


def test_every_mode_is_listed() -> None:
    """No mode is missing from the lists of modes."""
    assert {*NATIVE_MODES, "completions", "instruct"} == set(get_args(Mode))
    assert [mode for mode in get_args(Mode) if Continuation(mode).writes_again] == ["instruct"]


@pytest.mark.parametrize("mode", get_args(Mode))
def test_a_probe_is_short_and_greedy(mode: Mode) -> None:
    """The probe has a minimal cost and a deterministic reply."""
    for probe in probes(mode):
        request = probe.body()
        assert request["max_tokens"] <= 24
        assert (request["temperature"], len(request["messages"])) == (0, 1)


def test_a_new_start_cannot_look_like_an_echo() -> None:
    """A server that writes the alphabet again, one token per letter, does not reach the end of the prefix."""
    assert len(OPENING.split()) > PROBE_MAX_TOKENS


@pytest.mark.parametrize(
    ("reply", "echo", "strips"),
    [
        (" o p q r s t u v w x y z", False, False),
        ("o p q r s", False, True),
        ("\no p q", False, False),
        (" o, p, q", False, False),
        (" o", False, False),
        ("opqrstuvwxyz", False, True),
        (f"{OPENING} o p q", True, False),
        (f" {OPENING} o p q", True, False),
        (f"{OPENING}o p q", True, True),
        (f"{OPENING}\no p q", True, False),
    ],
)
def test_a_continuing_reply_is_a_continuation(reply: str, echo: bool, strips: bool) -> None:
    """The reply shows whether the engine repeats the prefix, and whether it keeps the space before its first word."""
    assert judge_probe("vllm", reply) == Continuation("vllm", echo=echo, strips_leading_space=strips)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        " ",
        "a b c d e f g h i j k l",
        "A B C D E F",
        "Sure! Here is the alphabet: a b c",
        "Of course! a b c",
        "of course! a b c",
        "ok, here it is: a b c",
        "open the book",
        OPENING,
        f"{OPENING} a b c",
        f"{OPENING} of the alphabet",
        "p q r s",
        " It seems you've started the alphabet.",
    ],
)
def test_a_new_answer_is_no_continuation(reply: str) -> None:
    """Another text, an empty text, or the prefix alone is no continuation."""
    assert judge_probe("trailing", reply) is None


@pytest.mark.parametrize(
    ("reply", "obeyed"),
    [
        ("Dear reader, the capital of France is Paris.", True),
        ("\n Dear reader, the capital of France is Paris.", True),
        ("Dear reader, the capital of France is", False),
        ("Dear reader, the capital of France is ", False),
        ("The capital of France is Paris.", False),
        (" Paris.", False),
        ("Sure! Dear reader, the capital of France is Paris.", False),
        ("", False),
    ],
)
def test_mode_instruct_requires_the_repetition_and_a_continuation(reply: str, *, obeyed: bool) -> None:
    """A continuation alone is not enough, because such an engine's text is the whole answer."""
    first = probes("instruct")[0]
    assert judge_probe("instruct", reply, first) == (Continuation("instruct", echo=True) if obeyed else None)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
TEXT = {"type": "text", "text": "Why?"}


@pytest.mark.parametrize(
    ("fields", "unsupported"),
    [
        ({}, None),
        ({"tools": [], "functions": None, "tool_choice": "none"}, None),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"functions": [{}]}, "tools"),
        ({"tool_choice": "auto"}, "tools"),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"logprobs": False}, None),
        ({"logprobs": True}, "logprobs"),
        ({"modalities": ["text"]}, None),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "modalities"),
        ({"messages": [{"role": "user", "content": [TEXT, TEXT]}]}, None),
        ({"messages": [{"role": "user", "content": [TEXT, IMAGE]}, QUESTION]}, "not_text"),
        ({"logit_bias": {"5": 1}, "seed": 3, "top_k": 4, "n": 1}, None),
    ],
)
def test_fields_that_a_raw_prompt_does_not_support_are_named(fields: dict[str, Any], unsupported: str | None) -> None:
    """A request with such fields is answered without guidance, so no field is lost. Other modes support all fields."""
    body = {"messages": [QUESTION], **fields}
    assert unsupported_as_text(body) == unsupported
    for mode in get_args(Mode):
        assert Continuation(mode).unsupported(body) == (unsupported if mode == "completions" else None)
