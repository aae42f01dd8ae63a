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
    assert first["logprobs"] == {"content": [token("A", 0.0), token("A", -0.5)]}
    assert [one["message"]["content"] for one in (first, second)] == ["AA", "b"]
    assert [one["finish_reason"] for one in (first, second)] == ["length", "stop"]


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
