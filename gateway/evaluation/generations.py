"""Storage of every text that an engine wrote for an evaluation, as lines of JSON. A stored request is not sent again.

A killed run resumes from these texts, and a run with more settings sends only the missing requests. A line records an
engine's output without a score, so answers can be scored again without a model.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

from gateway.engines.base import EngineState, TeacherReply, TokenUsage
from gateway.engines.chat import read_usage
from gateway.engines.stops import before_stop
from gateway.engines.token_ends import token_ends
from gateway.evaluation.record import stored_lines

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from pathlib import Path

    from gateway.engines.base import Engine, EngineEmbeddings, Finish, TeacherRequest
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.continuation import Prefill
    from gateway.protocol.content_run import ChunkGroup


# Lines of earlier runs lack the fourth one.
_COUNTS = ("input_tokens", "output_tokens", "cached_input_tokens", "cache_write_input_tokens")


@dataclass(frozen=True, slots=True)
class TeacherText:
    """A teacher's text in pieces: one for each token if the engine streams tokens. Stored lines have the same fields.

    Attributes:
        pieces: The pieces, possibly with a stop string; the token that ends an answer has none.
        at_ms: Milliseconds from the call to each piece; the engine works on the rest of the batch too.
        asked_tokens: The token limit of the request.
        cache_write_tokens: Prompt tokens that the engine wrote to its prompt cache; 0 for older lines.
        no_cache_reads: Whether the engine reported 0 cached tokens, rather than no count; False for older lines.
    """

    pieces: tuple[str, ...]
    at_ms: tuple[int, ...]
    text: str
    finish: str
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    asked_tokens: int
    seconds: float
    cache_write_tokens: int = 0
    no_cache_reads: bool = False

    def truncated(self, tokens: int, stop: tuple[str, ...]) -> TeacherReply | None:
        """Return the reply that a lower limit would have produced; None if this text had a lower limit.

        A reply ends with "stop" only within its limit. Since TGI checks the length first, an answer of n tokens with a
        limit of n ends with "length". If the pieces are not tokens, a proportional part of the text is returned.
        """
        stopped_itself = self.finish == "stop"
        if tokens == self.asked_tokens or (stopped_itself and tokens > self.output_tokens):
            finish: Finish = "stop" if stopped_itself else "length"
            return TeacherReply(
                self.text, finish, self._usage(self.output_tokens), token_ends=self._token_ends(self.text, tokens)
            )
        if tokens > self.asked_tokens:
            return None
        text, stopped = before_stop("".join(self._first_pieces(tokens)), stop)
        return TeacherReply(
            text,
            "stop" if stopped else "length",
            self._usage(min(tokens, self.output_tokens)),
            token_ends=self._token_ends(text, tokens),
        )

    def streamed_pieces(self, tokens: int) -> Iterator[str]:
        """Yield the pieces of the first tokens as the engine streamed them; nothing if it sent a whole reply."""
        # One piece is a whole reply, unless the text has no more than one piece.
        if len(self.pieces) > 1 or self.output_tokens <= 2:  # includes the token that ends an answer
            yield from self._first_pieces(tokens)

    def seconds_to_tokens(self, tokens: int) -> float:
        """Return the seconds until the first `tokens` tokens had arrived."""
        count = math.ceil(self._piece_count(tokens))
        return self.seconds if count >= len(self.at_ms) else self.at_ms[max(1, count) - 1] / 1000

    def _first_pieces(self, tokens: int) -> Iterator[str]:
        """Yield the pieces of the first `tokens` tokens; the last piece may be partial."""
        count = self._piece_count(tokens)
        whole = int(count)
        yield from self.pieces[:whole]
        if whole < min(count, len(self.pieces)):
            piece = self.pieces[whole]
            yield piece[: round(len(piece) * (count - whole))]

    def _piece_count(self, tokens: int) -> float:
        """Return the number of pieces of `tokens` tokens. One more token than pieces is the end token."""
        if self.output_tokens - len(self.pieces) in {0, 1} or not self.output_tokens:
            return tokens
        return len(self.pieces) * tokens / self.output_tokens

    def _token_ends(self, text: str, tokens: int) -> tuple[int, ...] | None:
        """Return the number of characters after each token of the text; None if the pieces are not tokens."""
        are_tokens = len(self.pieces) > 1 and self.output_tokens - len(self.pieces) in {0, 1}
        return token_ends(text, self.pieces[:tokens]) if are_tokens else None

    def _usage(self, output_tokens: int) -> TokenUsage:
        return TokenUsage(
            self.input_tokens,
            output_tokens,
            self.cached_tokens,
            cache_write_input_tokens=self.cache_write_tokens,
            no_cache_reads=self.no_cache_reads,
        )


class Generations:
    """The texts of one run in a file that grows."""

    def __init__(self, path: Path) -> None:
        self.teacher_texts: dict[str, TeacherText] = {}
        """The teacher's texts by request, whatever their token limits."""
        self.answers: dict[str, Json] = {}
        """The replies by request: `text`, `finish`, `usage`, `seconds`, and the optional keys of `_send_completion`."""
        for line in stored_lines(path):
            line.pop("engine", None)
            if key := line.pop("opening", None):
                line["pieces"], line["at_ms"] = tuple(line["pieces"]), tuple(line["at_ms"])
                self.teacher_texts[key] = TeacherText(**line)
            elif key := line.pop("answer", None):
                self.answers[key] = line
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def close(self) -> None:
        self._file.close()

    def store_opening(self, key: str, engine: str, teacher_text: TeacherText) -> None:
        self.teacher_texts[key] = teacher_text
        self._write({"opening": key, "engine": engine, **asdict(teacher_text)})

    def store_answer(self, key: str, engine: str, answer: Json) -> None:
        self.answers[key] = answer
        self._write({"answer": key, "engine": engine, **answer})

    def _write(self, line: Json) -> None:
        self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()


@dataclass
class RecordingEngine:
    """An engine that stores its texts; it does not send a stored request again.

    `engine` is None if it does not run: a missing text then raises KeyError, and `name` and `state` describe it.
    `revision` identifies the weights and their serving; texts of another revision are not used. With `scores_guidance`,
    each new answer that continues guidance has its `guidance_logprob`; with `scores_answers`, each new answer has its
    `answer_logprobs`.
    """

    engine: Engine | None
    storage: Generations
    revision: str
    name: str = ""
    state: EngineState = field(default_factory=EngineState)
    calls: int = 0
    """Number of requests sent to the engine."""
    scores_guidance: bool = False
    scores_answers: bool = False

    def __post_init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        if self.engine is not None:
            self.name, self.state = self.engine.name, self.engine.state

    async def teacher_text(self, request: TeacherRequest) -> TeacherText:
        """Return a teacher text at least as long as requested, sending the request if needed. Raises EngineErrors."""
        key = self.key_of(request)
        async with self._locks.setdefault(key, asyncio.Lock()):
            teacher_text = self.stored(request)
            if teacher_text is None:
                teacher_text = await self._send_opening(self._running(key), request)
                self.storage.store_opening(key, self.name, teacher_text)
        return teacher_text

    def stored(self, request: TeacherRequest) -> TeacherText | None:
        """Return the stored text of the request; None if it would be sent."""
        text = self.storage.teacher_texts.get(self.key_of(request))
        return text if text and text.truncated(request.max_tokens, tuple(request.stop)) else None

    def key_of(self, request: TeacherRequest) -> str:
        """Return a key of the request, whatever its token limit."""
        parts = (request.messages, request.prompt, request.temperature, request.top_p, request.seed, request.stop)
        return _key(self.revision, "opening", parts)

    async def generate_guidance(
        self, request: TeacherRequest, *, batch: str | None = None, on_text: Callable[[str], None] | None = None
    ) -> TeacherReply:
        """Return the stored or new reply, and pass its pieces to `on_text` at once, as the engine streamed them."""
        text = await self.teacher_text(request)
        if on_text is not None:
            for piece in text.streamed_pieces(request.max_tokens):
                on_text(piece)
        reply = text.truncated(request.max_tokens, tuple(request.stop))
        assert reply is not None, "teacher_text() returns at least the requested length"
        return reply

    async def _send_opening(self, engine: Engine, request: TeacherRequest) -> TeacherText:
        pieces: list[str] = []
        at_ms: list[int] = []
        started = time.perf_counter()

        def record(piece: str) -> None:
            pieces.append(piece)
            at_ms.append(round((time.perf_counter() - started) * 1000))

        reply = await engine.generate_guidance(request, on_text=record)
        self.calls += 1
        seconds = round(time.perf_counter() - started, 3)
        usage = reply.usage or TokenUsage(0, len(pieces), estimated=True)
        return TeacherText(
            pieces=tuple(pieces or [reply.text]),
            at_ms=tuple(at_ms or [round(seconds * 1000)]),
            text=reply.text,
            finish=reply.finish,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cached_tokens=usage.cached_input_tokens,
            asked_tokens=request.max_tokens,
            seconds=seconds,
            cache_write_tokens=usage.cache_write_input_tokens,
            no_cache_reads=usage.no_cache_reads,
        )

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        sent = {name: value for name, value in body.items() if name != "model"}
        how = None if prefill is None else (prefill.text, prefill.continuation.mode)
        key = _key(self.revision, "answer", (sent, how))
        async with self._locks.setdefault(key, asyncio.Lock()):
            answer = self.storage.answers.get(key)
            if answer is None:
                answer = await self._send_completion(self._running(key), body, prefill)
                self.storage.store_answer(key, self.name, answer)
        return _as_reply(answer)

    async def _send_completion(self, engine: Engine, body: Json, prefill: Prefill | None) -> Json:
        scored = prefill if self.scores_guidance else None
        started = time.perf_counter()
        scores: Json = {} if scored is None else {"prompt_logprobs": 0}
        scores |= {"logprobs": True, "top_logprobs": 1} if self.scores_answers else {}
        reply = await engine.complete({**body, **scores}, prefill)
        self.calls += 1
        choice = reply["choices"][0]
        usage = read_usage(reply.get("usage"))
        answer = {
            "text": choice["message"].get("content") or "",
            "finish": choice.get("finish_reason"),
            "usage": None if usage is None else [getattr(usage, name) for name in _COUNTS],
            "seconds": round(time.perf_counter() - started, 3),
        }
        if usage is not None and usage.no_cache_reads:
            answer["no_cache_reads"] = True
        if scored is not None and (logprob := _mean_logprob(reply, scored.text)) is not None:
            answer["guidance_logprob"] = round(logprob, 4)
        tokens = (choice.get("logprobs") or {}).get("content") if self.scores_answers else None
        if tokens:
            logprobs = [token["logprob"] for token in tokens]
            answer["answer_logprobs"] = [round(sum(logprobs) / len(logprobs), 4), round(min(logprobs), 4)]
        return answer

    def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[ChunkGroup, None]:
        return self._running("a stream").stream(body, prefill)

    async def embed(self, body: Json) -> EngineEmbeddings:
        return await self._running("embeddings").embed(body)

    async def probe(self) -> None:
        await self._running("a probe").probe()

    async def close(self) -> None: ...

    def _running(self, key: str) -> Engine:
        if self.engine is None:
            raise KeyError(key)
        return self.engine


def _mean_logprob(reply: Json, text: str) -> float | None:
    """Return the mean log-probability of the tokens of `text`, which ends the prompt; None if they are not found.

    vLLM reports one entry for each token of the prompt, without alternatives: `{id: {logprob, decoded_token}}`. A chat
    has them in the reply, a raw prompt in the choice.
    """
    entries = reply.get("prompt_logprobs") or reply["choices"][0].get("prompt_logprobs")
    if not isinstance(entries, list):
        return None
    found, logprobs = "", []
    for entry in reversed(entries):
        if len(found) >= len(text) or not isinstance(entry, dict):
            break
        token = next(iter(entry.values()))
        found = token["decoded_token"] + found
        logprobs.append(token["logprob"])
    return sum(logprobs) / len(logprobs) if logprobs and found.strip() == text.strip() else None


def _as_reply(answer: Json) -> Json:
    message: Json = {"role": "assistant", "content": answer["text"], "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer["finish"]}
    reply: Json = {"choices": [choice], "seconds": answer["seconds"]}
    reply |= {name: answer[name] for name in ("guidance_logprob", "answer_logprobs") if name in answer}
    if answer["usage"] is not None:
        read, written, cached, *stored = answer["usage"]
        details = {"cache_write_tokens": sum(stored)}
        if cached or answer.get("no_cache_reads"):
            details["cached_tokens"] = cached
        reply["usage"] = {"prompt_tokens": read, "completion_tokens": written, "prompt_tokens_details": details}
    return reply


def _key(*parts: Any) -> str:
    return hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()
