from __future__ import annotations

from typing import get_args

import pytest

from gateway.continuation import (
    PROBE_MAX_TOKENS,
    Continuation,
    Mode,
    candidates,
    judge_probe,
    place_prefix,
    probe_body,
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
def test_each_mode_asks_in_its_servers_way(mode: Mode, marks: dict[str, bool], fields: dict[str, bool]) -> None:
    """The guidance is the last message, as the assistant's; the rest of the body goes along as it came."""
    body = {"messages": [QUESTION], "temperature": 0.3, "unknown": 1}
    assert place_prefix(mode, body, "Because") == {
        "messages": [QUESTION, {"role": "assistant", "content": "Because", **marks}],
        "temperature": 0.3,
        "unknown": 1,
        **fields,
    }
    assert body == {"messages": [QUESTION], "temperature": 0.3, "unknown": 1}


@pytest.mark.parametrize("mode", get_args(Mode))
@pytest.mark.parametrize("said", [True, False, "content"])
def test_what_the_caller_said_of_continuing_is_left_out(mode: Mode, said: object) -> None:
    """It was said of the caller's last message. vLLM refuses both, and `false` would have the opening answered."""
    body = {"messages": [QUESTION]}
    of_the_caller = {"continue_final_message": said, "add_generation_prompt": said}
    assert place_prefix(mode, body | of_the_caller, "Because") == place_prefix(mode, body, "Because")


def test_the_probe_is_short_and_greedy() -> None:
    """It costs next to nothing, and says the same each time."""
    asked = probe_body()
    assert (asked["max_tokens"], asked["temperature"], len(asked["messages"])) == (PROBE_MAX_TOKENS, 0, 1)


def test_a_probe_is_too_short_for_a_new_start_to_look_like_an_echo() -> None:
    """A server that writes the alphabet anew, one token a letter, does not come to the end of the opening."""
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
def test_a_reply_that_goes_on_is_a_continuation(reply: str, echo: bool, strips: bool) -> None:
    """Whether it repeats the opening, and whether it keeps the space before its first word, is seen in it."""
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
def test_a_reply_that_starts_anew_is_no_continuation(reply: str) -> None:
    """Nor is one that says something else, or nothing, or the opening alone."""
    assert judge_probe("trailing", reply) is None


@pytest.mark.parametrize(
    ("owner", "first"),
    [
        ("vllm", "vllm"),
        ("sglang", "sglang"),
        ("SGLang", "sglang"),
        ("llamacpp", "trailing"),
        ("library", "trailing"),
        ("somebody", "trailing"),
        ("", "trailing"),
        (None, "trailing"),
        (7, "trailing"),
        (["vllm"], "trailing"),
    ],
)
def test_the_likeliest_mode_is_tried_first_and_every_mode_once(owner: object, first: Mode) -> None:
    """By what the server says of its owner, whatever that is."""
    modes = candidates(owner)
    assert modes[0] == first
    assert sorted(modes) == sorted(get_args(Mode))
