from __future__ import annotations

from typing import Any

import pytest

from gateway.guidance.seam import SeamJoin
from gateway.pipeline.stream import StreamRelay, join_reply
from gateway.protocol.reply import ReplyHead, usage_body

HEAD = ReplyHead("chatcmpl-ours", 1_700_000_000, "route")
GUIDANCE = "The quick brown fox jumps over the lazy dog."
COUNTED = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def relay(*, wants_usage: bool = False) -> StreamRelay:
    return StreamRelay(HEAD, wants_usage=wants_usage)


def chunk(
    delta: dict[str, Any] | None, finish_reason: str | None = None, index: int = 0, **fields: Any
) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return {"id": "theirs", "created": 1, "model": "org/model", "object": "other", "choices": [choice], **fields}


def says(text: str | None, finish_reason: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    return chunk({"content": text}, finish_reason, index, **fields)


def relayed_chunks(one: StreamRelay, *chunks: dict[str, Any], seam: SeamJoin | None = None) -> list[dict[str, Any]]:
    """Return the chunks that the caller gets: the guidance, the converted chunks, and the end."""
    return [*one.join(seam), *(relayed for each in chunks if (relayed := one.feed(each)) is not None), *one.end()]


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for each in chunks for choice in each["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def finishes(chunks: list[dict[str, Any]]) -> list[str]:
    return [choice["finish_reason"] for each in chunks for choice in each["choices"] if choice["finish_reason"]]


def roles(chunks: list[dict[str, Any]]) -> list[tuple[int, str]]:
    return [(c["index"], c["delta"]["role"]) for each in chunks for c in each["choices"] if "role" in c["delta"]]


STUDENTS_ROLE = chunk({"role": "assistant", "content": "", "refusal": None})


def test_a_guided_stream_is_one_answer() -> None:
    """Teacher and student share id, time and model. The first chunk has the role, the last the finish_reason."""
    seam = SeamJoin("Because the", echo=False)
    received = relayed_chunks(relay(), STUDENTS_ROLE, says(" sky"), says("."), chunk({}, "stop"), seam=seam)
    assert {(each["id"], each["created"], each["model"], each["object"]) for each in received} == {
        ("chatcmpl-ours", 1_700_000_000, "route", "chat.completion.chunk")
    }
    assert received[0]["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": "Because the", "refusal": None},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert roles(received) == [(0, "assistant")]
    assert text_of(received) == "Because the sky."
    assert finishes(received) == ["stop"]
    assert received[-1]["choices"][0]["delta"] == {}
    assert all("usage" not in each for each in received)


def test_an_unguided_stream_is_passed_through() -> None:
    """The head changes, and the role is sent with the first text, because before it another student could answer."""
    first = chunk({"role": "assistant", "content": "", "refusal": None}, system_fingerprint="fp")
    received = relayed_chunks(relay(), first, says("Hi", service_tier="x"), chunk({}, "length"))
    assert [each["choices"] for each in received] == [
        chunk({"role": "assistant", "content": "Hi", "refusal": None})["choices"],
        chunk({}, "length")["choices"],
    ]
    assert received[0]["service_tier"] == "x"
    assert {each["id"] for each in received} == {"chatcmpl-ours"}


def test_a_second_role_is_dropped() -> None:
    """TGI sends a role in every delta."""
    received = relayed_chunks(relay(), *(chunk({"role": "assistant", "content": text}) for text in ("One", " two", "")))
    assert roles(received) == [(0, "assistant")]
    assert text_of(received) == "One two"
    assert len(received) == 3


def test_a_null_role_is_ignored() -> None:
    """A null role is not sent, and does not replace the real one."""
    received = relayed_chunks(
        relay(), chunk({"role": None, "content": "One"}), chunk({"role": "assistant", "content": " two"})
    )
    assert roles(received) == [(0, "assistant")]
    assert text_of(received) == "One two"


def test_every_choice_has_a_role_of_its_own() -> None:
    """With n > 1 each choice begins separately."""
    received = relayed_chunks(
        relay(), *(chunk({"role": "assistant", "content": "x"}, index=index) for index in (0, 1, 0, 1))
    )
    assert roles(received) == [(0, "assistant"), (1, "assistant")]


def test_several_choices_are_passed_through() -> None:
    """Each has its own text and finish_reason, also if they share a chunk."""
    both = {**says("a"), "choices": [says("a")["choices"][0], says("b", index=1)["choices"][0]]}
    received = relayed_chunks(relay(), both, chunk({}, "stop"), says("c", index=1), chunk({}, "length", index=1))
    assert (text_of(received, 0), text_of(received, 1)) == ("a", "bc")
    assert finishes(received) == ["stop", "length"]
    assert len(received[0]["choices"]) == 2


def test_tool_call_deltas_are_unchanged() -> None:
    """Piece by piece."""
    pieces = [
        [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}}],
        [{"index": 0, "function": {"arguments": '{"a"'}}],
        [{"index": 0, "function": {"arguments": ": 1}"}}],
    ]
    received = relayed_chunks(relay(), *(chunk({"tool_calls": piece}) for piece in pieces), chunk({}, "tool_calls"))
    assert [each["choices"][0]["delta"].get("tool_calls") for each in received] == [*pieces, None]
    assert finishes(received) == ["tool_calls"]


@pytest.mark.parametrize(
    ("seam", "added"),
    [(None, {"role": "assistant", "content": None, "refusal": None}), (SeamJoin("So", echo=False), {})],
)
def test_other_fields_of_a_delta_are_unchanged(seam: SeamJoin | None, added: dict[str, Any]) -> None:
    """A student may send more than content."""
    received = relayed_chunks(relay(), chunk({"reasoning_content": "hm", "content": None}), seam=seam)
    assert received[0 if seam is None else 1]["choices"][0]["delta"] == {"reasoning_content": "hm", **added}


def test_empty_deltas_are_dropped() -> None:
    """The content is empty, null or missing."""
    assert [relay().feed(each) for each in (says(""), says(None), chunk({}), chunk(None), {"choices": []})] == [
        None
    ] * 5


def test_logprobs_of_a_token_without_text_are_kept() -> None:
    """A token may be half a character, and still has a logprob."""
    each = says("")
    each["choices"][0]["logprobs"] = {"content": [{"token": "\\xe2", "logprob": -0.1, "bytes": [226]}]}
    received = relay().feed(each)
    assert received is not None
    assert received["choices"][0]["logprobs"] == each["choices"][0]["logprobs"] | {"refusal": None}


def test_a_missing_role_and_index_are_added() -> None:
    """OpenAI's first delta of each choice has the role, and each choice has its index."""
    bare = says("Hello")
    del bare["choices"][0]["index"]
    received = relayed_chunks(relay(), bare, says(" there"))
    assert [each["choices"][0]["delta"] for each in received[:2]] == [
        {"role": "assistant", "content": "Hello", "refusal": None},
        {"content": " there"},
    ]
    assert received[0]["choices"][0]["index"] == 0


def test_only_known_top_level_fields_reach_the_caller() -> None:
    """A student's fields about its hosts are dropped."""
    student_chunk = says("Hello") | {"system_fingerprint": "fp_1", "kv_transfer_params": {"remote_host": "10.0.0.7"}}
    received = relay().feed(student_chunk)
    assert received is not None
    assert received["system_fingerprint"] == "fp_1"
    assert "kv_transfer_params" not in received


@pytest.mark.parametrize(
    "pieces", [[GUIDANCE + " And"], [GUIDANCE[:10], GUIDANCE[10:], " And"], [*(GUIDANCE + " And")]]
)
def test_an_echo_is_removed(pieces: list[str]) -> None:
    """The caller has read the guidance already."""
    seam = SeamJoin(GUIDANCE, echo=True)
    received = relayed_chunks(relay(), STUDENTS_ROLE, *map(says, pieces), chunk({}, "stop"), seam=seam)
    assert text_of(received) == GUIDANCE + " And"
    assert seam.echoed


def test_held_text_is_released_with_the_finish_reason() -> None:
    """A possible beginning of an echo is sent before the finish_reason or in the same chunk."""
    seam = SeamJoin(GUIDANCE, echo=True)
    received = relayed_chunks(relay(), says("The quick"), chunk({}, "stop"), seam=seam)
    assert text_of(received) == GUIDANCE + "The quick"
    assert finishes(received) == ["stop"]
    assert received[-1]["choices"][0]["finish_reason"] == "stop"


def test_held_text_gets_a_role_if_nothing_was_sent_before() -> None:
    """A student that was to write the guidance again stopped in the middle without a finish_reason."""
    received = relayed_chunks(relay(), STUDENTS_ROLE, says("The quick"), seam=SeamJoin(GUIDANCE, written_again=True))
    assert (text_of(received), roles(received)) == ("The quick", [(0, "assistant")])


PARTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
    {"type": "text", "text": " sky is"},
    {"type": "text", "text": " blue"},
]


def test_text_in_content_parts_is_joined() -> None:
    """Mistral's reasoning models send parts (mistral client, `ContentChunk`)."""
    seam = SeamJoin("Because the", echo=False)
    received = relayed_chunks(relay(), chunk({"content": PARTS}), chunk({"content": "."}, "stop"), seam=seam)
    assert text_of(received) == "Because the sky is blue."


def test_held_text_is_released_without_a_finish_reason() -> None:
    """A student that sends only [DONE] loses no text, and the caller still gets a finish_reason."""
    seam = SeamJoin(GUIDANCE, echo=True)
    received = relayed_chunks(relay(), says("The quick"), seam=seam)
    assert text_of(received) == GUIDANCE + "The quick"
    assert finishes(received) == ["stop"]
    assert received[-1]["choices"][0]["delta"] == {}


def test_guidance_that_may_begin_a_stop_string_is_held_back() -> None:
    """The guidance is shown when the student's text continues differently."""
    seam = SeamJoin("One\nQ", echo=False, stop=["\nQ:"])
    one = relay()
    received = relayed_chunks(one, says("uick"), chunk({}, "stop"), seam=seam)
    assert received[0]["choices"][0]["delta"]["content"] == "One"
    assert text_of(received) == "One\nQuick"
    assert not one.done


def test_a_stop_string_across_the_seam_ends_the_answer() -> None:
    """The finish_reason is stop, sent once. The student's later text is dropped."""
    seam = SeamJoin("One\nQ", echo=False, stop=["\nQ:"])
    one = relay()
    received = one.join(seam)
    assert not one.done
    ended = one.feed(says(": two"))
    assert one.done
    assert ended is not None
    assert finishes([ended]) == ["stop"]
    later = (says("three"), chunk({}, "length"), says("", "stop"))
    assert [one.feed(each) for each in later] == [None] * 3
    assert one.end("length") == []
    assert text_of([*received, ended]) == "One"
    assert one.finish_reason == "stop"


@pytest.mark.parametrize("seam", [None, SeamJoin("So", echo=False)])
def test_no_chunk_of_a_choice_follows_its_finish(seam: SeamJoin | None) -> None:
    """A finished choice gets neither text nor a second finish_reason."""
    one = relay()
    one.join(seam)
    assert one.feed(says("x", "stop")) is not None
    assert [one.feed(each) for each in (says("y"), chunk({}, "length"), chunk({"tool_calls": [{}]}))] == [None] * 3
    assert (one.finish_reason, one.end()) == ("stop", [])


def test_an_empty_finish_reason_is_ignored() -> None:
    """Some servers send an empty finish_reason with every chunk."""
    received = relayed_chunks(relay(), says("One", ""), says(" two", ""), says("", "length"))
    assert text_of(received) == "One two"
    assert finishes(received) == ["length"]


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_an_answer_without_a_student_has_a_finish_reason(reason: str) -> None:
    """The guidance is the whole answer."""
    one = relay()
    received = [*one.show("All of it."), *one.end(reason)]
    assert (text_of(received), finishes(received), one.finish_reason) == ("All of it.", [reason], reason)


def test_upstream_usage_is_not_sent_without_a_request() -> None:
    """Usage may come alone, with text, or in every chunk."""
    one = relay()
    sent = (says("x", usage=None), says("y", "stop", usage=COUNTED), {"choices": [], "usage": COUNTED})
    received = relayed_chunks(one, *sent)
    assert len(received) == 2
    assert all("usage" not in each for each in received)


def test_usage_is_null_in_every_chunk_if_requested() -> None:
    """The student's own counts are never sent. The answer's counts come last, in a chunk without choices."""
    seam = SeamJoin("So", echo=False)
    one = relay(wants_usage=True)
    sent = (says(" x", usage=COUNTED), says("y", "stop"), {"choices": [], "usage": COUNTED})
    received = relayed_chunks(one, *sent, seam=seam)
    assert len(received) == 3
    assert all(each["usage"] is None for each in received)
    last = one.usage_chunk(usage_body(1, 2), {"mode": "guided"})
    assert last == {**HEAD.chunk([]), "usage": usage_body(1, 2), "gkt": {"mode": "guided"}}


def test_the_students_chunk_is_not_changed() -> None:
    """The ledger reads it too."""
    each = chunk({"role": "assistant", "content": " x"}, "stop", usage=COUNTED)
    before = repr(each)
    one = relay()
    one.join(SeamJoin("So", echo=False))
    one.feed(each)
    assert repr(each) == before


def reply(content: Any, finish_reason: str = "length") -> dict[str, Any]:
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}]
    }


@pytest.mark.parametrize(
    ("seam", "student_text", "joined", "finish"),
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
def test_a_complete_reply_is_joined_like_a_stream(seam: SeamJoin, student_text: Any, joined: str, finish: str) -> None:
    """The guidance is in front once, and a stop string across the seam ends the answer."""
    answer = reply(student_text)
    join_reply(answer, seam)
    choice = answer["choices"][0]
    assert (choice["message"], choice["finish_reason"]) == ({"role": "assistant", "content": joined}, finish)


def test_a_stop_string_across_the_seam_is_named() -> None:
    """The engine cannot report it, because its beginning is in the guidance."""
    seam = SeamJoin("Because E", echo=False, stop=["END", "E!"])
    received = relayed_chunks(relay(), STUDENTS_ROLE, says("ND"), seam=seam)
    assert received[-1]["choices"][0] | {"logprobs": None} == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": "END",
    }
    reply: dict[str, Any] = {"choices": [{"message": {"content": "ND"}, "finish_reason": "length"}]}
    join_reply(reply, SeamJoin("Because E", echo=False, stop=["END", "E!"]))
    assert reply["choices"] == [{"message": {"content": "Because "}, "finish_reason": "stop", "stop_reason": "END"}]
