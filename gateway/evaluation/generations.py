"""Every text that an engine wrote for an evaluation, kept as lines of JSON: what was asked once is not asked again.

A run that was killed goes on from here, and so does one with more settings: they ask for what is missing. A line is a
fact about an engine, and holds no verdict: answers may be scored anew without a model.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import orjson
from msgspec.structs import replace

from gateway.engines.base import OpeningReply, TokenUsage
from gateway.engines.chat import read_usage
from gateway.engines.stops import before_stop

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator
    from pathlib import Path

    from gateway.capabilities.continuation import Prefill
    from gateway.engines.base import Engine, EngineEmbeddings, EngineState, OpeningRequest
    from gateway.protocol.body import Json


@dataclass(frozen=True, slots=True)
class TeacherText:
    """What a teacher wrote, in its pieces: one for each token, where the engine tells so.

    Attributes:
        pieces: a stop string may be in them; the token that ends an answer is none.
        at_ms: when each piece came, after the call; beside it the engine worked on others of the batch.
        asked_tokens: the limit that it had.
        seconds: until the whole reply was there.
        cache_write_tokens: prompt tokens that the engine wrote to its prompt cache; lines without them have 0.
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

    def first(self, tokens: int, stop: tuple[str, ...]) -> OpeningReply | None:
        """What it would have written with this limit; None where it was asked for less.

        That it has ended shows within the limit alone: an answer of n tokens is cut for length with a limit of n, for
        TGI looks at the length before it looks at the token. Of a text whose pieces are not its tokens the part is
        taken that so many tokens are of all.
        """
        ended = self.finish == "stop"
        if tokens == self.asked_tokens or (ended and tokens > self.output_tokens):
            return OpeningReply(self.text, "stop" if ended else "length", self._usage(self.output_tokens))
        if tokens > self.asked_tokens:
            return None
        text, met = before_stop(self._begin(tokens), stop)
        return OpeningReply(text, "stop" if met else "length", self._usage(min(tokens, self.output_tokens)))

    def told(self, tokens: int) -> Iterator[str]:
        """The pieces of so many tokens, as they were told of while it wrote; none where it was told of at its end."""
        # A text in one piece is a whole reply, unless there is no more of it than that.
        if len(self.pieces) > 1 or self.output_tokens <= 2:  # with the one that ends an answer
            yield from self._first_pieces(tokens)

    def seconds_until(self, chars: int) -> float:
        """How long it took until so much of the text was there."""
        ends = accumulate(map(len, self.pieces))
        return next((ms / 1000 for end, ms in zip(ends, self.at_ms, strict=True) if end >= chars), self.seconds)

    def seconds_to(self, tokens: int) -> float:
        """How long its first tokens took."""
        place = math.ceil(self._place(tokens))
        return self.seconds if place >= len(self.at_ms) else self.at_ms[max(1, place) - 1] / 1000

    def _begin(self, tokens: int) -> str:
        return "".join(self._first_pieces(tokens))

    def _first_pieces(self, tokens: int) -> Iterator[str]:
        """Those of so many tokens; of the last one the part that is of them."""
        place = self._place(tokens)
        whole = int(place)
        yield from self.pieces[:whole]
        if whole < min(place, len(self.pieces)):
            piece = self.pieces[whole]
            yield piece[: round(len(piece) * (place - whole))]

    def _place(self, tokens: int) -> float:
        """How many of the pieces so many tokens are. One token more than pieces is that which ended the answer."""
        if self.output_tokens - len(self.pieces) in {0, 1}:
            return tokens
        return len(self.pieces) * tokens / self.output_tokens

    def _usage(self, output_tokens: int) -> TokenUsage:
        return TokenUsage(
            self.input_tokens, output_tokens, self.cached_tokens, cache_write_input_tokens=self.cache_write_tokens
        )


class Generations:
    """The texts of one run, in a file that grows. `close` it."""

    def __init__(self, path: Path) -> None:
        self._openings: dict[str, TeacherText] = {}
        self._answers: dict[str, Json] = {}
        self.torn = 0
        """Lines that a kill left half written, and that were passed over."""
        if path.exists():
            self._load(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")

    def close(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._openings) + len(self._answers)

    def opening(self, key: str) -> TeacherText | None:
        """What was written for this request, whatever length was asked for."""
        return self._openings.get(key)

    def answer(self, key: str) -> Json | None:
        """The reply to this request: `text`, `finish`, `usage`, `seconds`."""
        return self._answers.get(key)

    def keep_opening(self, key: str, engine: str, written: TeacherText) -> None:
        self._openings[key] = written
        facts = {name: getattr(written, name) for name in TeacherText.__slots__}
        self._write({"opening": key, "engine": engine, **facts})

    def keep_answer(self, key: str, engine: str, answer: Json) -> None:
        self._answers[key] = answer
        self._write({"answer": key, "engine": engine, **answer})

    def _write(self, line: Json) -> None:
        self._file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self._file.flush()

    def _load(self, path: Path) -> None:
        whole = path.read_bytes()
        if whole and not whole.endswith(b"\n"):
            # What comes next must not join a line that a kill cut short.
            with path.open("ab") as file:
                file.write(b"\n")
        for raw in whole.splitlines():
            try:
                line = orjson.loads(raw)
            except orjson.JSONDecodeError:
                self.torn += 1
                continue
            line.pop("engine", None)
            if key := line.pop("opening", None):
                line["pieces"], line["at_ms"] = tuple(line["pieces"]), tuple(line["at_ms"])
                self._openings[key] = TeacherText(**line)
            elif key := line.pop("answer", None):
                self._answers[key] = line


class RecordingEngine:
    """An engine whose texts are kept: one that is there is not asked for again.

    Args:
        revision: which weights it serves, and how; texts of another are not its own.
        longest: how many tokens an opening is asked for, whatever is wanted of it now.
        asks: whether it may be asked; if not, a text that is missing raises KeyError.
    """

    def __init__(
        self, engine: Engine, kept: Generations, revision: str, *, longest: int = 0, asks: bool = True
    ) -> None:
        self._engine = engine
        self._kept = kept
        self._revision = revision
        self._longest = longest
        self._asks = asks
        self._flights: dict[str, asyncio.Lock] = {}
        self.calls = 0
        """How often the engine was asked."""

    @property
    def name(self) -> str:
        return self._engine.name

    @property
    def state(self) -> EngineState:
        return self._engine.state

    async def written(self, request: OpeningRequest) -> TeacherText:
        """The beginning of an answer, at least as long as asked. Raises EngineErrors."""
        key = self._opening_key(request)
        async with self._flights.setdefault(key, asyncio.Lock()):
            written = self._kept.opening(key)
            if written is None or written.first(request.max_tokens, tuple(request.stop)) is None:
                self._may_ask(key)
                written = await self._open(request, max(self._longest, request.max_tokens))
                self._kept.keep_opening(key, self.name, written)
        return written

    def holds(self, request: OpeningRequest) -> bool:
        """Whether `written` has it without asking."""
        written = self._kept.opening(self._opening_key(request))
        return written is not None and written.first(request.max_tokens, tuple(request.stop)) is not None

    def _opening_key(self, request: OpeningRequest) -> str:
        parts = (request.messages, request.prompt, request.temperature, request.top_p, request.seed, request.stop)
        return _key(self._revision, "opening", parts)

    async def opening(
        self, request: OpeningRequest, *, batch: str | None = None, tell: Callable[[str], None] | None = None
    ) -> OpeningReply:
        """As an engine's: `tell` hears the pieces as they were heard when it wrote, at once."""
        written = await self.written(request)
        if tell is not None:
            for piece in written.told(request.max_tokens):
                tell(piece)
        reply = written.first(request.max_tokens, tuple(request.stop))
        assert reply is not None, "it was asked for as much"
        return reply

    async def _open(self, request: OpeningRequest, tokens: int) -> TeacherText:
        pieces: list[str] = []
        at_ms: list[int] = []
        started = time.perf_counter()

        def hear(piece: str) -> None:
            pieces.append(piece)
            at_ms.append(round((time.perf_counter() - started) * 1000))

        reply = await self._engine.opening(replace(request, max_tokens=tokens), tell=hear)
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
            asked_tokens=tokens,
            seconds=seconds,
            cache_write_tokens=usage.cache_write_input_tokens,
        )

    async def complete(self, body: Json, prefill: Prefill | None = None) -> Json:
        sent = {name: value for name, value in body.items() if name != "model"}
        how = None if prefill is None else (prefill.text, prefill.continuation.mode)
        key = _key(self._revision, "answer", (sent, how))
        async with self._flights.setdefault(key, asyncio.Lock()):
            answer = self._kept.answer(key)
            if answer is None:
                self._may_ask(key)
                answer = await self._complete(body, prefill)
                self._kept.keep_answer(key, self.name, answer)
        return _as_reply(answer)

    async def _complete(self, body: Json, prefill: Prefill | None) -> Json:
        started = time.perf_counter()
        reply = await self._engine.complete(body, prefill)
        self.calls += 1
        choice = reply["choices"][0]
        usage = read_usage(reply.get("usage"))
        return {
            "text": choice["message"].get("content") or "",
            "finish": choice.get("finish_reason"),
            "usage": None if usage is None else _counts(usage),
            "seconds": round(time.perf_counter() - started, 3),
        }

    def stream(self, body: Json, prefill: Prefill | None = None) -> AsyncGenerator[list[Json], None]:
        return self._engine.stream(body, prefill)

    async def embed(self, body: Json) -> EngineEmbeddings:
        return await self._engine.embed(body)

    async def probe(self) -> None:
        await self._engine.probe()

    async def close(self) -> None:
        await self._engine.close()

    def _may_ask(self, key: str) -> None:
        if not self._asks:
            raise KeyError(key)


def _as_reply(answer: Json) -> Json:
    message = {"role": "assistant", "content": answer["text"], "refusal": None}
    reply: Json = {"choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": answer["finish"]}]}
    reply["seconds"] = answer["seconds"]
    if answer["usage"] is not None:
        read, written, cached, *stored = answer["usage"]
        reply["usage"] = {
            "prompt_tokens": read,
            "completion_tokens": written,
            "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": sum(stored)},
        }
    return reply


def _counts(usage: TokenUsage) -> list[int]:
    """The fourth count is new: lines of earlier runs have three."""
    return [usage.input_tokens, usage.output_tokens, usage.cached_input_tokens, usage.cache_write_input_tokens]


def _key(*parts: Any) -> str:
    return hashlib.blake2b(orjson.dumps(parts), digest_size=16).hexdigest()
