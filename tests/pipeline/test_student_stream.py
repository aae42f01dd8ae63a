from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.accounting.shares import EngineCall
from gateway.api.events import event
from gateway.engines.chat import ChunkReader
from gateway.guidance.seam import SeamJoin
from gateway.pipeline.generation import GenerationTracker
from gateway.pipeline.prefill_echo import PrefillEcho
from gateway.pipeline.stream import StreamRelay
from gateway.pipeline.student_stream import StudentStream
from gateway.protocol.capabilities.reasoning import ReasoningFilter
from gateway.protocol.content_run import ContentRun
from gateway.protocol.reply import ReplyHead, TextReplyHead

if TYPE_CHECKING:
    from gateway.accounting.receipt_builder import ReceiptBuilder
    from gateway.protocol.body import Json

GUIDANCE = "The quick brown fox jumps over"


@dataclass
class Builder:
    first_token: float | None = None
    student_began: float | None = None

    def mark_first_token(self) -> None:
        self.first_token = 1.0


@dataclass
class Case:
    """The settings of one stream."""

    guidance: str = ""
    pending_space: str = ""
    echo: bool | None = False
    stop: tuple[str, ...] = ()
    written_again: bool = False
    reasons: bool = False
    prefill: str = ""
    limit: int | None = None
    wants_usage: bool = False
    head: type[ReplyHead] = ReplyHead
    choices: int = 1


@dataclass
class Result:
    """The events that the caller gets, and the counts of the call."""

    events: list[bytes] = field(default_factory=list)
    runs: int = 0
    text: str = ""
    facts: tuple[Any, ...] = ()


def relayed(case: Case, groups: list[list[Json]], *, with_runs: bool) -> Result:
    relay = StreamRelay(case.head("ours", 7, "route"), wants_usage=case.wants_usage)
    call = EngineCall("small", ())
    generation = GenerationTracker(
        call, limit=case.limit, choices=case.choices, generated_choices=case.choices,
        stops_within_s=None, preface="", now=0.0,
    )  # fmt: skip
    builder, result = Builder(), Result()
    echo = PrefillEcho(case.prefill, echo=None) if case.prefill else None
    stream = StudentStream(generation, echo, relay, cast("ReceiptBuilder", builder))
    seam = None
    if case.guidance:
        seam = SeamJoin(
            case.guidance, pending_space=case.pending_space, echo=case.echo, strips_leading_space=True,
            stop=case.stop, written_again=case.written_again,
        )  # fmt: skip
    result.events += map(event, relay.join(seam, ReasoningFilter(case.guidance) if case.reasons else None))
    reader = ChunkReader(orjson.loads)
    for group in groups:
        raw = list(map(orjson.dumps, group))
        parts = stream.read(reader.read(raw)[0] if with_runs else list(map(orjson.loads, raw)))
        result.runs += sum(isinstance(part, ContentRun) for part in parts)
        result.events += [event(part) for part in parts]
        if stream.done:
            break
    result.events += map(event, relay.end())
    generation.close(1.0)
    result.text = call.text.getvalue()
    result.facts = (builder.first_token, relay.finish_reason, relay.restarted, stream.done, call.usage, call.ended,
                    call.lost_tokens, call.unbounded, call.min_output_tokens, call.seen_tokens)  # fmt: skip
    return result


def chunk(delta: Any, finish: str | None = None, index: int = 0, **fields: Any) -> Json:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "theirs", "created": 3, "model": "static", "choices": [choice], **fields}


def says(content: Any, **fields: Any) -> Json:
    return chunk({"content": content}, **fields)


_PIECES = [
    " word",
    "",
    " a b c",
    "é",
    '"\\',
    "\n",
    "\u2028",
    "The quick",
    " brown fox jumps over",
    "<think>",
    "no</think>",
]
TEXT = st.sampled_from([*_PIECES, " ", "st", "op", "quick"]) | st.text(
    st.characters(exclude_categories=("Cs",)), max_size=5
)
CHUNK = st.one_of(
    *[TEXT.map(says)] * 6,
    TEXT.map(lambda text: chunk({"role": "assistant", "content": text, "refusal": None})),
    TEXT.map(lambda text: says(text, index=1)),
    TEXT.map(lambda text: says(text, system_fingerprint="fp", service_tier=None)),
    TEXT.map(lambda text: chunk({"reasoning_content": text})),
    st.sampled_from([
        chunk({"role": "assistant", "content": ""}), chunk({}, "stop"), says("end", finish="length"), says(None),
        chunk(None), {"choices": []}, {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}},
        chunk({"content": "x", "tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}),
        {**says("p"), "choices": [{**says("p")["choices"][0], "logprobs": {"content": []}}]},
    ]),
)  # fmt: skip
CASES = st.builds(
    Case,
    guidance=st.sampled_from(["", GUIDANCE, "The"]),
    pending_space=st.sampled_from(["", " "]),
    echo=st.sampled_from([None, True, False]),
    stop=st.sampled_from([(), ("stop",), ("over st",)]),
    written_again=st.booleans(),
    reasons=st.booleans(),
    prefill=st.sampled_from(["", "", "The quick"]),
    limit=st.sampled_from([None, 1, 3, 50]),
    wants_usage=st.booleans(),
    head=st.sampled_from([ReplyHead, ReplyHead, TextReplyHead]),
    choices=st.sampled_from([1, 1, 2]),
)


def grouped(chunks: list[Json], cuts: list[int]) -> list[list[Json]]:
    edges = [0, *sorted(cut % (len(chunks) + 1) for cut in cuts), len(chunks)]
    return [chunks[start:end] for start, end in pairwise(edges)]


@settings(deadline=None, max_examples=400)
@given(CASES, st.lists(CHUNK, max_size=25), st.lists(st.integers(0, 100), max_size=6))
def test_a_run_gives_what_its_chunks_give(case: Case, chunks: list[Json], cuts: list[int]) -> None:
    """The caller gets the same bytes, and the call the same counts."""
    at_once = relayed(case, grouped(chunks, cuts), with_runs=True)
    each = relayed(case, grouped(chunks, cuts), with_runs=False)
    assert b"".join(at_once.events) == b"".join(each.events)
    assert (at_once.text, at_once.facts) == (each.text, each.facts)


@pytest.mark.parametrize(
    "case",
    [Case(), Case(guidance=GUIDANCE, pending_space=" "), Case(limit=500, wants_usage=True), Case(stop=("stop",))],
)
def test_texts_that_arrive_together_are_one_run(case: Case) -> None:
    """All but the first two, which have the role and the template."""
    chunks = [chunk({"role": "assistant", "content": ""}), *[says(f" word{index}") for index in range(20)]]
    result = relayed(case, [[*chunks, chunk({}, "stop")]], with_runs=True)
    assert (result.runs, result.text.count("word")) == (1, 20)
    assert len(result.events) <= 4


def test_texts_within_a_limit_that_they_exceed_are_read_one_by_one() -> None:
    """The answer ends with the last word within the limit."""
    result = relayed(Case(limit=4), [[says(f" w{index}") for index in range(9)]], with_runs=True)
    assert b"w3" in b"".join(result.events)
    assert b"w4" not in b"".join(result.events)
    assert result.runs == 0
