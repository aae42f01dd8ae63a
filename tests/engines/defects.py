"""Strategies for fuzzing: valid replies of engines, and defects in them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import orjson
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator

    Json = dict[str, Any]

COUNTED = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}

# Streams.


def choice(delta: Json | None, finish_reason: str | None = None, index: int = 0, **fields: Any) -> Json:
    return {"index": index, "delta": delta, "finish_reason": finish_reason, **fields}


def chunk(*choices: Json, **fields: Any) -> Json:
    return {
        "id": "theirs",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [*choices],
    } | fields


CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}
TOKEN = {
    "token": " sky",
    "logprob": -0.5,
    "bytes": [32],
    "top_logprobs": [{"token": "x", "logprob": -1, "bytes": None}],
}
STREAMS: dict[str, list[Json]] = {
    "openai": [
        chunk(choice({"role": "assistant", "content": "", "refusal": None}), system_fingerprint="fp", usage=None),
        chunk(choice({"content": "The 青い"}), service_tier="default"),
        chunk(choice({"content": " sky"}, logprobs={"content": [TOKEN], "refusal": None})),
        chunk(choice({"content": "\nQ"})),
        chunk(choice({"content": ".🌈"})),
        chunk(choice({}, "stop")),
        chunk(usage={**COUNTED, "prompt_tokens_details": {"cached_tokens": 3}}),
    ],
    "tgi": [
        chunk(choice({"role": "assistant", "content": word, "tool_calls": None}), id="", usage=None)
        for word in ("The", " sky", "\nQ")
    ]
    + [chunk(choice({"role": "assistant", "content": ""}, "eos_token"), id=""), chunk(id="", usage=COUNTED)],
    "tools": [
        chunk(choice({"role": "assistant", "content": None, "tool_calls": [CALL]})),
        chunk(choice({"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]})),
        chunk(choice({}, "tool_calls"), usage=COUNTED),
    ],
    "two": [
        chunk(choice({"role": "assistant", "content": "a"}), choice({"content": "b"}, index=1)),
        chunk(choice({"content": "c"}, "length", index=1)),
        chunk(choice(None, "stop")),
    ],
}  # fmt: skip
BODIES = {"two": {"n": 2}}


def framed(chunks: list[bytes], line_end: bytes = b"\n", comment: bytes = b"", last: bytes = b"[DONE]") -> bytes:
    events = [*chunks, last] if last else chunks
    return b"".join(comment + b"data: " + data + line_end * 2 for data in events)


STREAM = st.sampled_from(sorted(STREAMS))
PROTOCOL = st.sampled_from(["openai", "tgi"])
FRAME = {
    "line_end": st.sampled_from([b"\n", b"\r\n"]),
    "comment": st.sampled_from([b"", b": ping\n\n", b"event: message\n"]),
    "last": st.sampled_from([b"[DONE]", b""]),
}
CUTS = st.lists(st.integers(0, 4000), max_size=40)


def split(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    return [raw[start:end] for start, end in pairwise(edges)]


# JSON replies.

MESSAGE = {"role": "assistant", "content": "The sky\nQ", "refusal": None, "tool_calls": [CALL]}
ONE = {"index": 0, "message": MESSAGE, "finish_reason": "stop", "logprobs": {"content": [TOKEN]}}
CHAT = {"id": "theirs", "model": "m", "usage": COUNTED, "choices": [ONE], "system_fingerprint": "fp"}
RAW = {"choices": [{"index": 0, "text": " is blue", "finish_reason": "length", "logprobs": None}], "usage": COUNTED}
TOKENS = [{"id": 1, "text": " is", "logprob": -0.1, "special": False}]
DETAILS = {"finish_reason": "length", "generated_tokens": 3, "seed": 1, "prefill": [], "tokens": TOKENS}
GENERATED = {"generated_text": " is blue", "details": DETAILS}
# Defects.

ODD = st.sampled_from(
    [
        *(
            b"null",
            b"true",
            b"false",
            b"0",
            b"-1",
            b"1",
            b"7",
            b"127",
            b"128",
            b"1.5",
            b'""',
            b'"x"',
            b"[]",
            b"{}",
            b"[[]]",
        ),
        *(
            b"2147483647",
            b"2147483648",
            b"18446744073709551615",
            b"18446744073709551616",
            b"9" * 400,
            b"1e308",
            b"1e999",
        ),
        *(b"-9223372036854775808", b"NaN", b'"\\ud800"', b'"\\u0000"', b'"\xff"', b'"' + b"a" * 5000 + b'"'),
        *(
            b"[" * 253 + b"]" * 253,
            b"[" * 600 + b"]" * 600,
            b'{"a":' * 300 + b"1" + b"}" * 300,
            b"[" * 5000 + b"]" * 5000,
        ),
        *(
            b'[{"type":"text","text":"hi"}]',
            b'{"content":{"content":1}}',
            b'{"message":"no","code":500}',
            b'["a",1,null]',
        ),
    ]
)
PLACE = "@@"


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the paths of all values in a JSON value."""
    yield at
    entries: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        yield from paths(entry, (*at, key))


def replaced(value: Any, path: tuple[Any, ...], raw: bytes) -> bytes:
    """Return the JSON of a value with raw JSON at the path."""

    def put(entry: Any, rest: tuple[Any, ...]) -> Any:
        if not rest:
            return PLACE
        if isinstance(entry, dict):
            return {key: put(one, rest[1:]) if key == rest[0] else one for key, one in entry.items()}
        return [put(one, rest[1:]) if key == rest[0] else one for key, one in enumerate(entry)]

    return orjson.dumps(put(value, path)).replace(b'"%s"' % PLACE.encode(), raw)


WRONG = st.builds(lambda place, raw: (place, raw), st.integers(0, 299), ODD)


NASTY = st.sampled_from(
    [
        *(
            b'"',
            b"\n",
            b"\n\n",
            b"\r",
            b"data:",
            b"data: ",
            b":",
            b"\xff",
            b"\xef\xbb\xbf",
            b"\x00",
            b"[DONE]",
            b"}",
            b"{",
        ),
        *(
            b"data: [DONE]\n\n",
            b"[" * 300,
            b"9" * 400,
            b"1e999",
            b'data: {"error":"x"}\n\n',
            b'data: {"choices":[]}\n\n',
        ),
    ]
)
HARM = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 6000), st.integers(0, 7)),
    st.tuples(st.just("delete"), st.integers(0, 6000), st.integers(1, 200)),
    st.tuples(st.just("repeat"), st.integers(0, 6000), st.integers(1, 400)),
    st.tuples(st.just("truncate"), st.integers(0, 6000), st.just(0)),
    st.tuples(st.just("insert"), st.integers(0, 6000), NASTY),
)


def corrupted(raw: bytes, defects: list[tuple[str, int, Any]]) -> bytes:
    for kind, where, what in defects:
        at = where % (len(raw) + 1)
        if kind == "flip" and at < len(raw):
            raw = raw[:at] + bytes([raw[at] ^ 1 << what]) + raw[at + 1 :]
        elif kind == "delete":
            raw = raw[:at] + raw[at + what :]
        elif kind == "repeat":
            raw = raw[:at] + raw[at : at + what] + raw[at:]
        elif kind == "truncate":
            raw = raw[:at]
        elif kind == "insert":
            raw = raw[:at] + what + raw[at:]
    return raw


def broken(reply: Json, wrong: list[tuple[int, bytes]]) -> bytes:
    within = list(paths(reply))
    raw = orjson.dumps(reply)
    for place, odd in wrong:
        raw = replaced(reply, within[place % len(within)], odd)
    return raw
