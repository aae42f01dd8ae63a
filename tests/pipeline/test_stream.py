from __future__ import annotations

from typing import Any

import pytest

from gateway.guidance.seam import SeamJoin
from gateway.pipeline.stream import StreamRelay, join_reply
from gateway.protocol.reply import ReplyHead, usage_body

HEAD = ReplyHead("chatcmpl-ours", 1_700_000_000, "route")
GUIDANCE = "The quick brown fox jumps over the lazy dog."
COUNTED = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def relay(seam: SeamJoin | None = None, *, wants_usage: bool = False) -> StreamRelay:
    """One that has not shown the opening yet."""
    one = StreamRelay(HEAD, wants_usage=wants_usage)
    one._seam = seam
    return one


def chunk(
    delta: dict[str, Any] | None, finish_reason: str | None = None, index: int = 0, **fields: Any
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {"id": "theirs", "created": 1, "model": "org/model", "object": "other", "choices": [choice], **fields}


def says(text: str | None, finish_reason: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    return chunk({"content": text}, finish_reason, index, **fields)


def played(one: StreamRelay, *chunks: dict[str, Any], opening: str | None = None) -> list[dict[str, Any]]:
    """What the caller gets: the opening, what became of the student's chunks, and the end."""
    opened = [] if opening is None else one.show(opening)
    return [*opened, *(relayed for each in chunks if (relayed := one.feed(each)) is not None), *one.end()]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for each in chunks for choice in each["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def finishes(chunks: list[dict[str, Any]]) -> list[str]:
    return [choice["finish_reason"] for each in chunks for choice in each["choices"] if choice["finish_reason"]]


def roles(chunks: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(c["index"], c["delta"]["role"]) for each in chunks for c in each["choices"] if "role" in c["delta"]]


STUDENTS_ROLE = chunk({"role": "assistant", "content": "", "refusal": None})


def test_a_guided_stream_is_one_answer() -> None:
    """One id, time and model over teacher and student; one role, in the first chunk; one finish, in the last."""
    seam = SeamJoin("Because the", echo=False)
    got = played(relay(seam), STUDENTS_ROLE, says(" sky"), says("."), chunk({}, "stop"), opening=seam.opening())
    assert {(each["id"], each["created"], each["model"], each["object"]) for each in got} == {
        ("chatcmpl-ours", 1_700_000_000, "route", "chat.completion.chunk")
    }
    assert got[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "Because the", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert roles(got) == [(0, "assistant")]
    assert text_of(got) == "Because the sky."
    assert finishes(got) == ["stop"]
    assert got[-1]["choices"][0]["delta"] == {}
    assert all("usage" not in each for each in got)


def test_an_unguided_stream_comes_through_as_it_is() -> None:
    """But for its head, and for the role, which goes with the first words: until then another student could answer."""
    first = chunk({"role": "assistant", "content": "", "refusal": None}, system_fingerprint="fp")
    got = played(relay(), first, says("Hi", service_tier="x"), chunk({}, "length"))
    assert [each["choices"] for each in got] == [
        chunk({"role": "assistant", "content": "Hi", "refusal": None})["choices"],
        chunk({}, "length")["choices"],
    ]
    assert got[0]["service_tier"] == "x"
    assert {each["id"] for each in got} == {"chatcmpl-ours"}


def test_a_second_role_is_dropped() -> None:
    """TGI sends one in every delta."""
    got = played(relay(), *(chunk({"role": "assistant", "content": text}) for text in ("One", " two", "")))
    assert roles(got) == [(0, "assistant")]
    assert text_of(got) == "One two"
    assert len(got) == 3


def test_a_role_of_null_is_none() -> None:
    """It neither goes out nor keeps the real one from going out."""
    got = played(relay(), chunk({"role": None, "content": "One"}), chunk({"role": "assistant", "content": " two"}))
    assert roles(got) == [(0, "assistant")]
    assert text_of(got) == "One two"


def test_every_choice_has_a_role_of_its_own() -> None:
    """With n > 1 each answer begins by itself."""
    got = played(relay(), *(chunk({"role": "assistant", "content": "x"}, index=index) for index in (0, 1, 0, 1)))
    assert roles(got) == [(0, "assistant"), (1, "assistant")]


def test_several_answers_come_through() -> None:
    """Each with its own text and its own finish, also out of one chunk."""
    both = {**says("a"), "choices": [says("a")["choices"][0], says("b", index=1)["choices"][0]]}
    got = played(relay(), both, chunk({}, "stop"), says("c", index=1), chunk({}, "length", index=1))
    assert (text_of(got, 0), text_of(got, 1)) == ("a", "bc")
    assert finishes(got) == ["stop", "length"]
    assert len(got[0]["choices"]) == 2


def test_tool_call_deltas_are_untouched() -> None:
    """Piece by piece."""
    pieces = [
        [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a"'}}],
        [{"index": 0, "function": {"arguments": ": 1}"}}],
    ]
    got = played(relay(), *(chunk({"tool_calls": piece}) for piece in pieces), chunk({}, "tool_calls"))
    assert [each["choices"][0]["delta"].get("tool_calls") for each in got] == [*pieces, None]
    assert finishes(got) == ["tool_calls"]


def test_fields_beside_the_text_are_untouched() -> None:
    """A student may say more than content."""
    got = played(relay(SeamJoin("So", echo=False)), chunk({"reasoning_content": "hm", "content": None}))
    assert got[0]["choices"][0]["delta"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning_content": "hm",
    }


def test_deltas_that_say_nothing_are_dropped() -> None:
    """Empty, null or missing."""
    assert [relay().feed(each) for each in (says(""), says(None), chunk({}), chunk(None), {"choices": []})] == [
        None
    ] * 5


def test_logprobs_of_a_token_without_text_are_kept() -> None:
    """A token may be half a character; its logprob counts all the same."""
    each = says("")
    each["choices"][0]["logprobs"] = {"content": [{"token": "\\xe2", "logprob": -0.1, "bytes": [226]}]}
    got = relay().feed(each)
    assert got is not None
    assert got["choices"][0]["logprobs"] == each["choices"][0]["logprobs"]


def test_a_role_and_an_index_are_there_even_when_the_student_sends_none() -> None:
    """OpenAI's first delta of each choice has the role, and each choice its index."""
    bare = says("Hello")
    del bare["choices"][0]["index"]
    got = played(relay(), bare, says(" there"))
    assert [each["choices"][0]["delta"] for each in got[:2]] == [
        {"role": "assistant", "content": "Hello", "refusal": None},
        {"content": " there"},
    ]
    assert got[0]["choices"][0]["index"] == 0


def test_only_known_fields_beside_the_choices_reach_the_caller() -> None:
    """What a student says of its hosts is not the caller's."""
    told = says("Hello") | {"system_fingerprint": "fp_1", "kv_transfer_params": {"remote_host": "10.0.0.7"}}
    got = relay().feed(told)
    assert got is not None
    assert got["system_fingerprint"] == "fp_1"
    assert "kv_transfer_params" not in got


@pytest.mark.parametrize(
    "pieces", [[GUIDANCE + " And"], [GUIDANCE[:10], GUIDANCE[10:], " And"], [*(GUIDANCE + " And")]]
)
def test_an_echo_is_removed(pieces: list[str]) -> None:
    """The caller has seen the guidance once."""
    seam = SeamJoin(GUIDANCE, echo=True)
    got = played(relay(seam), STUDENTS_ROLE, *map(says, pieces), chunk({}, "stop"), opening=seam.opening())
    assert text_of(got) == GUIDANCE + " And"
    assert seam.echoed


def test_text_held_back_is_released_when_the_student_finishes() -> None:
    """What looked like the beginning of an echo goes out with the finish, before it or in the same chunk."""
    seam = SeamJoin(GUIDANCE, echo=True)
    got = played(relay(seam), says("The quick"), chunk({}, "stop"), opening=seam.opening())
    assert text_of(got) == GUIDANCE + "The quick"
    assert finishes(got) == ["stop"]
    assert got[-1]["choices"][0]["finish_reason"] == "stop"


def test_text_held_back_has_a_role_where_nothing_left_before_it() -> None:
    """A student that was told to write the opening again, and stopped in its middle without a finish_reason."""
    got = played(relay(SeamJoin(GUIDANCE, written_again=True)), STUDENTS_ROLE, says("The quick"))
    assert (text_of(got), roles(got)) == ("The quick", [(0, "assistant")])


PARTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
    {"type": "text", "text": " sky is"},
    {"type": "text", "text": " blue"},
]


def test_words_that_come_in_parts_are_joined_too() -> None:
    """Mistral's reasoning models answer so (mistral client, `ContentChunk`): they may not be lost at the seam."""
    seam = SeamJoin("Because the", echo=False)
    got = played(relay(seam), chunk({"content": PARTS}), chunk({"content": "."}, "stop"), opening=seam.opening())
    assert text_of(got) == "Because the sky is blue."


def test_text_held_back_is_released_when_the_student_just_ends() -> None:
    """A student that sends [DONE] alone loses nothing, and the caller still gets a finish."""
    seam = SeamJoin(GUIDANCE, echo=True)
    got = played(relay(seam), says("The quick"), opening=seam.opening())
    assert text_of(got) == GUIDANCE + "The quick"
    assert finishes(got) == ["stop"]
    assert got[-1]["choices"][0]["delta"] == {}


def test_guidance_that_may_begin_a_stop_string_is_held_back() -> None:
    """And shown when the student's text says that it does not."""
    seam = SeamJoin("One\nQ", echo=False, stop=["\nQ:"])
    one = relay(seam)
    got = played(one, says("uick"), chunk({}, "stop"), opening=seam.opening())
    assert got[0]["choices"][0]["delta"]["content"] == "One"
    assert text_of(got) == "One\nQuick"
    assert not one.done


def test_a_stop_string_over_the_seam_ends_the_answer() -> None:
    """With finish_reason stop, once; what the student goes on to say is swallowed."""
    seam = SeamJoin("One\nQ", echo=False, stop=["\nQ:"])
    one = relay(seam)
    got = one.show(seam.opening())
    assert not one.done
    ended = one.feed(says(": two"))
    assert one.done
    assert ended is not None
    assert finishes([ended]) == ["stop"]
    later = (says("three"), chunk({}, "length"), says("", "stop"))
    assert [one.feed(each) for each in later] == [None] * 3
    assert one.end("length") == []
    assert text_of([*got, ended]) == "One"
    assert one.finish_reason == "stop"


@pytest.mark.parametrize("seam", [None, SeamJoin("So", echo=False)])
def test_nothing_of_a_choice_comes_after_its_finish(seam: SeamJoin | None) -> None:
    """No text, no second finish."""
    one = relay(seam)
    assert one.feed(says("x", "stop")) is not None
    assert [one.feed(each) for each in (says("y"), chunk({}, "length"), chunk({"tool_calls": [{}]}))] == [None] * 3
    assert (one.finish_reason, one.end()) == ("stop", [])


def test_an_empty_finish_reason_is_none() -> None:
    """Some servers send one with every chunk."""
    got = played(relay(), says("One", ""), says(" two", ""), says("", "length"))
    assert text_of(got) == "One two"
    assert finishes(got) == ["length"]


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_that_needed_no_student_has_a_finish(reason: str) -> None:
    """The opening is the answer."""
    one = relay()
    got = [*one.show("All of it."), *one.end(reason)]
    assert (text_of(got), finishes(got), one.finish_reason) == ("All of it.", [reason], reason)


def test_upstream_usage_does_not_go_out_unasked() -> None:
    """Alone, beside text, or in every chunk."""
    one = relay()
    sent = (says("x", usage=None), says("y", "stop", usage=COUNTED), {"choices": [], "usage": COUNTED})
    got = played(one, *sent)
    assert len(got) == 2
    assert all("usage" not in each for each in got)


def test_usage_is_null_on_every_chunk_of_a_caller_that_wants_it() -> None:
    """The student's own counts never go out: the answer's come last, in a chunk without choices."""
    seam = SeamJoin("So", echo=False)
    one = relay(seam, wants_usage=True)
    sent = (says(" x", usage=COUNTED), says("y", "stop"), {"choices": [], "usage": COUNTED})
    got = played(one, *sent, opening=seam.opening())
    assert len(got) == 3
    assert all(each["usage"] is None for each in got)
    last = one.usage_chunk(usage_body(1, 2), {"mode": "guided"})
    assert last == {**HEAD.chunk([]), "usage": usage_body(1, 2), "gkt": {"mode": "guided"}}


def test_the_students_chunk_is_not_changed() -> None:
    """The ledger reads it too."""
    each = chunk({"role": "assistant", "content": " x"}, "stop", usage=COUNTED)
    before = repr(each)
    one = relay(SeamJoin("So", echo=False))
    one.show("So")
    one.feed(each)
    assert repr(each) == before


def reply(content: Any, finish_reason: str = "length") -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}]
    }


@pytest.mark.parametrize(
    ("seam", "said", "joined", "finish"),
    [
        (SeamJoin("Because the", echo=False), " sky", "Because the sky", "length"),
        (SeamJoin("Because the", echo=False), None, "Because the", "length"),
        (SeamJoin("Because the", echo=False), PARTS, "Because the sky is blue", "length"),
        (SeamJoin(GUIDANCE, echo=True), GUIDANCE + " And", GUIDANCE + " And", "length"),
        (SeamJoin(GUIDANCE, echo=True), "The quick", GUIDANCE + "The quick", "length"),
        (SeamJoin("One\nQ", echo=False, stop=["\nQ:"]), ": two", "One", "stop"),
        (SeamJoin("One\nQ", echo=False, stop=["\nQ:"]), "uick", "One\nQuick", "length"),
        (SeamJoin("So", pending_space=" ", echo=False, strips_leading_space=True), "it is", "So it is", "length"),
    ],
)
def test_a_whole_reply_is_joined_as_a_stream_is(seam: SeamJoin, said: Any, joined: str, finish: str) -> None:
    """The guidance stands in front once, and a stop string over the seam ends it."""
    answer = reply(said)
    join_reply(answer, seam)
    choice = answer["choices"][0]
    assert (choice["message"], choice["finish_reason"]) == ({"role": "assistant", "content": joined}, finish)
