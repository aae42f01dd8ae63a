"""Streams that are collected for a JSON caller."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.guidance.seam import SeamJoin
from gateway.pipeline.collected_reply import CollectingRelay
from gateway.protocol.content_run import ContentRun, template_of


def chunk(delta: Any, finish_reason: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason, **more}
    return {"id": "theirs", "choices": [choice]}


def collected(*chunks: Any, seam: SeamJoin | None = None) -> dict[str, Any]:
    relay = CollectingRelay()
    assert relay.join(seam) == []
    for one in chunks:
        if (relayed := relay.feed(one)) is not None:
            relay.collect([relayed])
    relay.collect(relay.end())
    return relay.reply()


def test_deltas_become_one_message() -> None:
    reply = collected(
        chunk({"role": "assistant", "content": ""}),
        {**chunk({"reasoning_content": "Hm"}), "system_fingerprint": "fp"},
        chunk({"reasoning_content": "m."}),
        chunk({"content": "Blue"}),
        chunk({"content": " sky."}),
        chunk({}, "stop", stop_reason=None),
    )
    assert reply["system_fingerprint"] == "fp"
    [choice] = reply["choices"]
    message = {"role": "assistant", "content": "Blue sky.", "refusal": None, "reasoning_content": "Hmm."}
    assert choice["message"] == message
    assert (choice["index"], choice["finish_reason"]) == (0, "stop")


def test_tool_calls_are_joined_by_their_index() -> None:
    """Some engines repeat id, type and name in each delta."""

    def call(index: int, arguments: str, **more: Any) -> dict[str, Any]:
        function = {"arguments": arguments, **({"name": more.pop("name")} if "name" in more else {})}
        return chunk({"tool_calls": [{"index": index, **more, "function": function}]})

    reply = collected(
        call(0, "", id="a", type="function", name="weather"),
        call(0, '{"city": ', id="a", type="function", name="weather"),
        call(0, '"Graz"}'),
        call(1, "{}", id="b", type="function", name="time"),
        chunk({}, "tool_calls"),
    )
    [choice] = reply["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Graz"}'}},
        {"id": "b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
    ]


def test_log_probabilities_and_choices_keep_their_order() -> None:
    def token(text: str, logprob: float) -> dict[str, Any]:
        top = [{"token": text, "logprob": logprob, "bytes": [1, 2]}]
        return {"token": text, "logprob": logprob, "bytes": None, "top_logprobs": top}

    reply = collected(
        chunk({"content": "b"}, index=1),
        chunk({"content": "A"}, logprobs={"content": [token("A", 0.0)]}),
        chunk({"content": "A"}, logprobs={"content": [token("A", -0.5)]}),
        chunk({}, "length"),
        chunk({}, "stop", index=1),
    )
    first, second = reply["choices"]
    assert first["logprobs"] == {"content": [token("A", 0.0), token("A", -0.5)], "refusal": None}
    assert [one["message"]["content"] for one in (first, second)] == ["AA", "b"]
    assert [one["finish_reason"] for one in (first, second)] == ["length", "stop"]


def test_a_guided_message_has_its_role() -> None:
    """A stream has the role in the chunk with the guidance."""
    seam = SeamJoin("The sky", pending_space=" ")
    reply = collected(chunk({"role": "assistant", "content": " is blue."}), chunk({}, "stop"), seam=seam)
    message = reply["choices"][0]["message"]
    assert (message["role"], message["content"]) == ("assistant", "The sky is blue.")
    assert collected()["choices"][0]["message"]["role"] == "assistant"


def test_texts_that_each_chunk_repeats_are_not_joined() -> None:
    """Azure repeats the results of its content filter in each choice, OpenRouter the format of its reasoning."""
    results = {"hate": {"filtered": False, "severity": "safe"}}
    details = {"type": "reasoning.text", "format": "anthropic-claude-v1", "index": 0}
    reply = collected(
        chunk({"content": "A", "reasoning_details": [{**details, "text": "Hm"}]}, content_filter_results=results),
        chunk({"content": "B", "reasoning_details": [{**details, "text": "m."}]}, content_filter_results=results),
        chunk({}, "stop", content_filter_results={}, stop_reason="x"),
    )
    [choice] = reply["choices"]
    assert (choice["content_filter_results"], choice["stop_reason"]) == (results, "x")
    assert choice["message"]["reasoning_details"] == [{**details, "text": "Hmm."}]


def test_content_that_arrives_in_parts_is_a_list() -> None:
    """Mistral's reasoning models send their thoughts as parts, and the answer as texts."""

    def thought(text: str) -> dict[str, Any]:
        return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}

    reply = collected(
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": [thought("H")]}),
        chunk({"content": [thought("m."), {"type": "text", "text": "Bl"}]}),
        chunk({"content": "ue"}),
        chunk({"content": "."}, "stop"),
    )
    thoughts = [{"type": "text", "text": "H"}, {"type": "text", "text": "m."}]
    content = [{"type": "thinking", "thinking": thoughts}, {"type": "text", "text": "Blue."}]
    assert reply["choices"][0]["message"]["content"] == content
    later = collected(chunk({"content": "A"}), chunk({"content": [thought("H")]}))["choices"][0]["message"]
    assert later["content"] == [{"type": "text", "text": "A"}, thought("H")]


def test_all_collected_fields_count_toward_the_size() -> None:
    """Items that arrive whole are kept as they are: reading thousands of them at once would block the event loop."""
    entry = {"token": "A", "logprob": 0.0, "bytes": None, "top_logprobs": []}
    relay = CollectingRelay()
    relay.join(None)
    one = chunk({"content": "A", "reasoning_content": "Hmm."}, logprobs={"content": [entry]})
    relay.collect([relay.feed(one)])  # type: ignore[list-item]
    assert relay.size == len("A") + len("Hmm.") + 100
    relay.collect(relay.end())
    assert relay.reply()["choices"][0]["logprobs"]["content"][0] is entry


def test_a_run_of_chunks_is_text() -> None:
    one = chunk({"content": "a"})
    template = template_of(orjson.dumps(one), one)
    assert template is not None
    relay = CollectingRelay()
    relay.join(SeamJoin("The sky", pending_space=" "))
    relay.collect([relay.feed(chunk({"content": " is"})), ContentRun(template, [" ", "blue", "."])])  # type: ignore[list-item]
    relay.collect(relay.end("stop"))
    assert relay.reply()["choices"][0]["message"]["content"] == "The sky is blue."
    assert relay.size == len(" is blue.")


def test_an_answer_that_starts_anew_keeps_nothing() -> None:
    relay = CollectingRelay()
    relay.join(SeamJoin("The sky"))
    relay.collect([relay.feed(chunk({"content": " is", "reasoning_content": "Hm."}))])  # type: ignore[list-item]
    assert relay.restart()
    relay.join(None)
    relay.collect([relay.feed(chunk({"content": "Blue."}, "stop"))])  # type: ignore[list-item]
    relay.collect(relay.end())
    message = relay.reply()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "Blue.", "refusal": None}


def test_an_answer_without_text_is_empty() -> None:
    assert collected(chunk({}, "stop"))["choices"][0]["message"]["content"] == ""
