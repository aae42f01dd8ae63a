"""Encode the answers: JSON bodies and events of each route, in TGI's and OpenAI's format, as cached bytes.

The content of an answer depends only on its `Text`, so each event is encoded once.
"""

from __future__ import annotations

import time
from functools import lru_cache
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson

from load_tests.fake.http import EVENTS_END, EVENTS_HEAD, event, reply

if TYPE_CHECKING:
    from load_tests.fake.requests import InvalidRequestBody

Finish = Literal["stop", "length"]
Tape = Literal["prose", "letters"]

# One string is one token. The tape is cyclic: after the last line break, a word may follow.
_PROSE = (
    "So", " we", " take", " the", " first", " of", " them", " and", " see", " how", " far", " it", " goes", ",",
    " then", " the", " next", " one", ",", " until", " all", " are", " done", ".", " What", " is", " left", " at",
    " the", " end", " is", " the", " answer", ".", " If", " it", " is", " more", " than", " there", " was", " to",
    " begin", " with", ",", " something", " was", " counted", " twice", ";", " if", " it", " is", " less", ",",
    " something", " was", " left", " out", ".", " Let", " us", " check", ".\n",
)  # fmt: skip
TAPES: dict[Tape, tuple[str, ...]] = {"prose": _PROSE, "letters": tuple(f" {letter}" for letter in ascii_lowercase)}


_NOT_JSON = "Failed to parse the request body as JSON"
_OTHER_TYPES = "Failed to deserialize the JSON body into the target type"


class Text(NamedTuple):
    """An answer: `length` tokens of a tape from its position `at`, for choice `choice`."""

    choice: int
    tape: Tape
    at: int
    length: int
    finish: Finish

    def __str__(self) -> str:
        tape = TAPES[self.tape]
        rounds, rest = divmod(self.at + self.length, len(tape))
        return "".join(tape * rounds + tape[:rest]).removeprefix("".join(tape[: self.at]))


class Form:
    """A route of OpenAI's API, `chat` or completions, in TGI's or OpenAI's format.

    TGI's last token contains the finish_reason, and each of its deltas a role. OpenAI sends both in separate events. In
    completions, TGI's last token also contains the usage, and the end token is text.
    """

    def __init__(self, model: str, *, chat: bool, tgi: bool) -> None:
        self.is_chat = chat
        self._tgi = tgi
        self.counts_in_closing = tgi and not chat
        self._name = "chat.completion" if chat else "text_completion"
        self._common: dict[str, Any] = {
            "id": "" if tgi else "chatcmpl-fake" if chat else "cmpl-fake",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": "3.3.7-native" if tgi else "fp_fake",
        }
        # Bounded: lengths and positions differ between calls.
        self.events = lru_cache(maxsize=512)(self._events)
        self.closing = lru_cache(maxsize=4096)(self._closing)
        self.all_events = lru_cache(maxsize=256)(self._all_events)
        self.whole = lru_cache(maxsize=256)(self._whole)

    def first_events(self, index: int) -> bytes:
        """Return the events before the first token."""
        if self._tgi or not self.is_chat:
            return b""
        return self._event([self._choice(index, {"role": "assistant", "content": ""}, None)])

    def _events(self, index: int, tape: Tape) -> tuple[bytes, ...]:
        """Return the event of each token of a tape."""
        return tuple(self._event([self._choice(index, self._delta(token), None)]) for token in TAPES[tape])

    def _closing(self, text: Text, read: int) -> bytes:
        """Return the event of the last token, with the finish reason. `read` is used if it contains the usage."""
        tape = TAPES[text.tape]
        token = tape[(text.at + text.length - 1) % len(tape)]
        if self.counts_in_closing:
            ended = ("<|im_end|>", "eos_token") if text.finish == "stop" else (token, "length")
            return self._event([self._choice(text.choice, *ended)], usage=_usage(read, text.length))
        if self._tgi:
            return self._event([self._choice(text.choice, self._delta(token), text.finish)])
        content = self._event([self._choice(text.choice, self._delta(token), None)])
        return content + self._event([self._choice(text.choice, {} if self.is_chat else "", text.finish)])

    def end(self, read: int, written: int, *, usage: bool) -> bytes:
        """Return the end of a stream. With `usage`, a chat and OpenAI's completion have a usage event."""
        counted = self._event([], usage=_usage(read, written)) if usage and not self.counts_in_closing else b""
        return counted + event(b"[DONE]") + EVENTS_END

    def _all_events(self, text: Text, read: int) -> bytes:
        """Return a whole answer as events, without the end of the stream."""
        events = self.events(text.choice, text.tape)
        return b"".join(
            (
                self.first_events(text.choice),
                *(events[(text.at + number) % len(events)] for number in range(text.length - 1)),
                self.closing(text, read),
            )
        )

    def _whole(self, texts: tuple[Text, ...], read: int) -> bytes:
        """Return a whole reply in JSON."""
        written = sum(text.length for text in texts)
        choices = [self._whole_choice(text) for text in texts]
        return orjson.dumps({"object": self._name, **self._common, "choices": choices, "usage": _usage(read, written)})

    def _whole_choice(self, text: Text) -> dict[str, Any]:
        content = {"message": {"role": "assistant", "content": str(text)}} if self.is_chat else {"text": str(text)}
        return {"index": text.choice, **content, "logprobs": None, "finish_reason": text.finish}

    def _delta(self, token: str) -> Any:
        if not self.is_chat:
            return token
        return {"role": "assistant", "content": token} if self._tgi else {"content": token}

    def _choice(self, index: int, delta: Any, finish: str | None) -> dict[str, Any]:
        return {"index": index, "delta" if self.is_chat else "text": delta, "logprobs": None, "finish_reason": finish}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self.is_chat else self._name
        return event(orjson.dumps({"object": kind, **self._common, "choices": choices, **more}))


@lru_cache(maxsize=256)
def generated(text: Text, details: bool) -> bytes:
    """Return a reply of TGI's /generate."""
    body: dict[str, Any] = {"generated_text": str(text)}
    if details:
        tape = TAPES[text.tape]
        places = [(text.at + number) % len(tape) for number in range(text.length)]
        body["details"] = {
            "finish_reason": "eos_token" if text.finish == "stop" else "length",
            "generated_tokens": text.length,
            "seed": None,
            "prefill": [],
            "tokens": [{"id": at, "text": tape[at], "logprob": -0.25, "special": False} for at in places],
        }
    return orjson.dumps(body)


def _usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def error(status: int, message: str, kind: str, *, tgi: bool) -> bytes:
    """Return an error in the format of the dialect. TGI sends no Retry-After, so there is none."""
    body: Any = {"error": message, "error_type": kind} if tgi else {"error": {"message": message, "type": kind}}
    return reply(orjson.dumps(body), status)


def tgi_parser_error(invalid: InvalidRequestBody) -> bytes:
    """Return TGI's reply to a body that is not JSON or has other types. It is plain text, also for a stream."""
    status, start = (400, _NOT_JSON) if invalid.kind == "syntax" else (422, _OTHER_TYPES)
    return reply(f"{start}: {invalid}".encode(), status, content_type=b"text/plain; charset=utf-8")


def tgi_stream_error(message: str) -> bytes:
    """Return a stream of TGI that is rejected: 200 is sent before the request is checked.

    The event has no error type, and the status in it is 422 for every error.
    """
    rejected = {"error": {"message": message, "http_status_code": 422}}
    return EVENTS_HEAD + event(orjson.dumps(rejected)) + event(b"[DONE]") + EVENTS_END
