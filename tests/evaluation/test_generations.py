"""A teacher's text at a lower limit, derived from a text at a higher one."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs

from gateway.engines.base import EngineState, TeacherReply, TeacherRequest, TokenUsage
from gateway.engines.chat import read_usage
from gateway.evaluation.generations import Generations, RecordingEngine, TeacherText, _as_reply
from gateway.evaluation.pair import ConfiguredPair, engine
from gateway.protocol.capabilities.continuation import Continuation, Prefill
from tests.evaluation.run_world import settings_for

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.local.stack import LocalStack

ENDED = TeacherText(
    pieces=("The", " answer", " is", " 54", "."),
    at_ms=(100, 200, 300, 400, 500),
    text="The answer is 54.",
    finish="stop",
    input_tokens=20,
    output_tokens=6,  # with the one that ended it
    cached_tokens=3,
    asked_tokens=40,
    seconds=0.7,
)


@pytest.mark.parametrize(
    ("limit", "text", "finish", "written"),
    [
        (1, "The", "length", 1),
        (4, "The answer is 54", "length", 4),
        (5, "The answer is 54.", "length", 5),
        (6, "The answer is 54.", "length", 6),
        (7, "The answer is 54.", "stop", 6),
        (40, "The answer is 54.", "stop", 6),
        (400, "The answer is 54.", "stop", 6),
    ],
)
def test_an_end_is_known_only_below_the_limit(limit: int, text: str, finish: str, written: int) -> None:
    """Guidance of exactly m tokens is not a whole answer on the request path, either."""
    reply = ENDED.truncated(limit, ())
    assert reply is not None
    assert reply.usage is not None
    assert (reply.text, reply.finish) == (text, finish)
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.cached_input_tokens) == (20, written, 3)


def test_stored_tokens_are_kept_and_lines_of_earlier_runs_have_none(tmp_path: Path) -> None:
    file = tmp_path / "generations.jsonl"
    kept = Generations(file)
    kept.store_opening("old", "big", ENDED)
    kept.store_opening("new", "big", replace(ENDED, cache_write_tokens=9))
    kept.close()
    file.write_text(file.read_text().replace(',"cache_write_tokens":0', ""))
    kept = Generations(file)
    texts = [kept.teacher_texts.get(key) for key in ("old", "new")]
    kept.close()
    assert texts == [ENDED, replace(ENDED, cache_write_tokens=9)]
    reply = replace(ENDED, cache_write_tokens=9).truncated(40, ())
    assert reply is not None
    assert reply.usage == TokenUsage(20, 6, 3, cache_write_input_tokens=9)
    answer = {"text": "x", "finish": "stop", "usage": [20, 4, 3], "seconds": 0.1}
    of_earlier, of_now = (read_usage(_as_reply(answer | {"usage": [20, 4, 3, *more]})["usage"]) for more in ([], [9]))
    assert (of_earlier, of_now) == (TokenUsage(20, 4, 3), TokenUsage(20, 4, 3, cache_write_input_tokens=9))


@dataclass
class CachingEngine:
    """An engine that reports these usages for guidance and for answers."""

    usage: TokenUsage
    counted: dict[str, Any]
    name: str = "model"
    state: EngineState = field(default_factory=EngineState)

    async def generate_guidance(self, request: TeacherRequest, **_: Any) -> TeacherReply:
        return TeacherReply("Hi", "stop", self.usage)

    async def complete(self, body: dict[str, Any], prefill: Prefill | None = None) -> dict[str, Any]:
        return {"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}], "usage": self.counted}


@pytest.mark.parametrize(
    ("cached", "no_cache_reads"), [(0, False), (0, True), (3, False)], ids=["not reported", "0 reported", "3 reported"]
)
async def test_stored_texts_tell_whether_cache_reads_were_reported(
    tmp_path: Path, cached: int, no_cache_reads: bool
) -> None:
    usage = TokenUsage(20, 4, cached, no_cache_reads=no_cache_reads)
    details = {"prompt_tokens_details": {"cached_tokens": cached}} if cached or no_cache_reads else {}
    counted: dict[str, Any] = {"prompt_tokens": 20, "completion_tokens": 4} | details
    request, body = TeacherRequest(max_tokens=4, prompt="Q"), {"prompt": "Q"}
    for engine_of_session in (CachingEngine(usage, counted), None):
        with closing(Generations(tmp_path / "generations.jsonl")) as storage:
            recorded = RecordingEngine(engine_of_session, storage, "model")  # type: ignore[arg-type]
            assert (await recorded.generate_guidance(request)).usage == usage
            assert read_usage((await recorded.complete(body))["usage"]) == usage


def test_stored_pieces_are_replayed_in_order() -> None:
    assert list(ENDED.streamed_pieces(3)) == ["The", " answer", " is"]
    assert list(ENDED.streamed_pieces(40)) == list(ENDED.pieces)


def test_a_text_without_pieces_is_not_streamed() -> None:
    """A stream without pieces would count the whole reply as one token."""
    whole = replace(ENDED, pieces=(ENDED.text,), at_ms=(700,))
    assert list(whole.streamed_pieces(3)) == []


CHAT = [{"role": "user", "content": "Hi! Answer with one word: yes or no?"}]


@pytest.mark.models
@pytest.mark.timeout(300)
async def test_a_truncated_text_equals_the_engines_answer_with_that_limit(engines: LocalStack) -> None:
    """The answer ends by itself."""
    pair = ConfiguredPair(settings_for(engines.teacher.url, engines.student.url), "big", "small")
    request = TeacherRequest(max_tokens=120, temperature=0.0, stop=(), messages=CHAT)
    async with engine(pair, "teacher") as teacher:
        pieces: list[str] = []
        whole = await teacher.generate_guidance(request, on_text=pieces.append)
        assert whole.usage is not None
        assert whole.finish == "stop"
        count = whole.usage.output_tokens
        written = TeacherText(
            pieces=tuple(pieces), at_ms=tuple(range(len(pieces))), text=whole.text, finish=whole.finish,
            input_tokens=whole.usage.input_tokens, output_tokens=count, cached_tokens=0, asked_tokens=120, seconds=1.0,
        )  # fmt: skip
        for limit in (1, count - 1, count + 1):
            reply = await teacher.generate_guidance(structs.replace(request, max_tokens=limit), on_text=lambda _: None)
            cut = written.truncated(limit, ())
            assert cut is not None
            assert reply.usage is not None
            usage = structs.replace(reply.usage, cached_input_tokens=0)  # the engine has the prompt in its cache
            assert (limit, cut.text, cut.finish, cut.usage) == (limit, reply.text, reply.finish, usage)


def test_a_text_with_a_smaller_limit_is_unknown() -> None:
    cut = replace(ENDED, finish="length", output_tokens=5, asked_tokens=5)
    assert cut.truncated(6, ()) is None
    reply = cut.truncated(5, ())
    assert reply is not None
    assert (reply.text, reply.finish) == ("The answer is 54.", "length")


def test_a_stop_string_is_found_over_several_pieces() -> None:
    """The stop string counts only if it is within the limit."""
    stopped = replace(ENDED, pieces=("54", ".", "\n", "Q", ":"), text="54.", output_tokens=5, at_ms=(1, 2, 3, 4, 5))
    whole, half = stopped.truncated(5, ("\nQ:",)), stopped.truncated(4, ("\nQ:",))
    assert whole is not None
    assert half is not None
    assert (whole.text, whole.finish) == ("54.", "stop")
    assert (half.text, half.finish) == ("54.\nQ", "length")


def test_pieces_with_several_tokens_are_truncated_in_proportion() -> None:
    """Cutting by pieces would yield four times the tokens paid for."""
    coarse = replace(ENDED, pieces=("12345678", "abcdefgh"), text="12345678abcdefgh", output_tokens=8, at_ms=(10, 20))
    cuts = [coarse.truncated(limit, ()) for limit in (2, 4, 6)]
    assert [cut.text for cut in cuts if cut is not None] == ["1234", "12345678", "12345678abcd"]
    assert [cut.usage.output_tokens for cut in cuts if cut is not None and cut.usage is not None] == [2, 4, 6]
    assert [coarse.seconds_to_tokens(limit) for limit in (1, 4, 5, 8)] == [0.01, 0.01, 0.7, 0.7]


def test_a_text_without_pieces_is_truncated_as_well() -> None:
    silent = replace(ENDED, pieces=("abcdefghij",), at_ms=(700,), text="abcdefghij", output_tokens=10)
    cut = silent.truncated(3, ())
    assert cut is not None
    assert (cut.text, cut.finish) == ("abc", "length")


def test_an_empty_text_has_its_whole_time() -> None:
    empty = replace(ENDED, pieces=("",), at_ms=(30,), text="", output_tokens=0)
    assert [empty.seconds_to_tokens(limit) for limit in (1, 5)] == [empty.seconds] * 2


def test_the_time_of_a_cut_is_that_of_its_last_piece() -> None:
    assert [ENDED.seconds_to_tokens(limit) for limit in (1, 4, 5, 6)] == [0.1, 0.4, 0.7, 0.7]


@dataclass
class ScoringStudent:
    """A vLLM student that reports these texts and log-probabilities of its prompt's tokens."""

    tokens: list[tuple[str, float]]
    raw: bool
    name: str = "student"
    state: EngineState = field(default_factory=EngineState)
    bodies: list[dict[str, Any]] = field(default_factory=list)

    async def complete(self, body: dict[str, Any], prefill: Prefill | None = None) -> dict[str, Any]:
        self.bodies.append(body)
        choice: dict[str, Any] = {"index": 0, "message": {"content": " blue."}, "finish_reason": "stop"}
        if body.get("prompt_logprobs") is None:
            return {"choices": [choice]}
        tokens = [{"7": {"logprob": logprob, "rank": 1, "decoded_token": text}} for text, logprob in self.tokens]
        scored = {"prompt_logprobs": [None, *tokens]}
        return {"choices": [choice | scored]} if self.raw else {"choices": [choice], **scored}


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([("assistant\n", -9.0), ("The", -1.0), (" sky", -0.5), (" is", 0.0)], -0.5),
        ([("assistant\n", -9.0), (" The", -1.0), (" sky", -0.5), (" is", 0.0)], -0.5),
        ([("The sky is", -2.0)], -2.0),
        ([("assistant\n", -9.0), ("The", -1.0), (" sea", -0.5), (" is", 0.0)], None),
        ([], None),
    ],
)
async def test_the_log_probability_of_guidance_is_that_of_the_prompts_last_tokens(
    tmp_path: Path, tokens: list[tuple[str, float]], expected: float | None, *, raw: bool
) -> None:
    student: Any = ScoringStudent(tokens, raw)
    prefill = Prefill("The sky is", Continuation("vllm"))
    with closing(Generations(tmp_path / "generations.jsonl")) as storage:
        recorded = RecordingEngine(student, storage, "student", scores_guidance=True)
        replies = [await recorded.complete({"messages": []}, prefill) for _ in range(2)]
    assert [reply.get("guidance_logprob") for reply in replies] == [expected] * 2
    assert [body["prompt_logprobs"] for body in student.bodies] == [0]


@dataclass
class LoggingStudent(ScoringStudent):
    """A student that reports the log-probabilities of the tokens that it writes."""

    async def complete(self, body: dict[str, Any], prefill: Prefill | None = None) -> dict[str, Any]:
        self.bodies.append(body)
        choice: dict[str, Any] = {"index": 0, "message": {"content": " blue."}, "finish_reason": "stop"}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": text, "logprob": logprob} for text, logprob in self.tokens]}
        return {"choices": [choice]}


@pytest.mark.parametrize(("tokens", "expected"), [([(" blue", -1.0), (".", -0.5)], [-0.75, -1.0]), ([], None)])
async def test_the_log_probabilities_of_an_answer_are_stored_if_requested(
    tmp_path: Path, tokens: list[tuple[str, float]], expected: list[float] | None
) -> None:
    student: Any = LoggingStudent(tokens, raw=False)
    with closing(Generations(tmp_path / "generations.jsonl")) as storage:
        recorded = RecordingEngine(student, storage, "student", scores_answers=True)
        replies = [await recorded.complete({"messages": []}) for _ in range(2)]
        recorded.scores_answers = False
        assert "answer_logprobs" not in await recorded.complete({"messages": [], "seed": 1})
    assert [reply.get("answer_logprobs") for reply in replies] == [expected] * 2
    assert [body.get("logprobs") for body in student.bodies] == [True, None]


@pytest.mark.parametrize(("prefill", "scores"), [(None, True), (Prefill("The", Continuation("vllm")), False)])
async def test_no_log_probability_is_requested_without_guidance_or_the_option(
    tmp_path: Path, prefill: Prefill | None, *, scores: bool
) -> None:
    student: Any = ScoringStudent([], raw=False)
    with closing(Generations(tmp_path / "generations.jsonl")) as storage:
        recorded = RecordingEngine(student, storage, "student", scores_guidance=scores)
        assert "guidance_logprob" not in await recorded.complete({"messages": []}, prefill)
    assert student.bodies == [{"messages": []}]
