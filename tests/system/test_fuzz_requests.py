"""Parsers accept or reject request bodies of every kind; a running gateway never has an internal error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.errors import InvalidRequest
from gateway.protocol.chat import parse_chat
from gateway.protocol.embeddings import parse_embeddings
from gateway.protocol.text import parse_text_completion
from tests.fakes import FakeEngine, says
from tests.gateway_process import KEY, STUDENT_ONLY, GatewayProcess, guided, model, running_gateway

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

USER = {"role": "user", "content": "Why?"}
KINDS: dict[str, tuple[Callable[[bytes], Any], dict[str, Any]]] = {
    "chat": (parse_chat, {"model": "chat", "messages": [USER]}),
    "text": (parse_text_completion, {"model": "chat", "prompt": "Q: Why?\nA:"}),
    "embeddings": (parse_embeddings, {"model": "vectors", "input": "Why?"}),
}
STREAM = {**KINDS["chat"][1], "stream": True}
SENT = {
    "chat": ("/v1/chat/completions", KINDS["chat"][1]),
    "stream": ("/v1/chat/completions", STREAM),
    "embeddings": ("/v1/embeddings", KINDS["embeddings"][1]),
}

NAMES = st.sampled_from(
    [
        *("model", "messages", "role", "content", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n"),
        *("stop", "seed", "stream", "stream_options", "include_usage", "tools", "response_format", "type", "logprobs"),
        *("text", "logit_bias", "user", "tool_calls", "prompt", "best_of", "echo", "suffix", "input", "dimensions"),
        *("encoding_format", "functions", "modalities", "top_logprobs"),
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["user", "chat", "\ud800", 10**400, -(2**63), 2**64, 1e308, "\x00", "x" * 5_000])
)
ANY_JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=6),
    max_leaves=25,
)
DEEP = st.builds(
    lambda levels, open_bracket: open_bracket * levels + b"1" + {b"[": b"]", b'{"a":': b"}"}[open_bracket] * levels,
    st.integers(1, 3_000),
    st.sampled_from([b"[", b'{"a":']),
)


def dumped(value: Any, *, escaped: bool = True) -> bytes:
    return json.dumps(value, ensure_ascii=escaped).encode("utf-8", "surrogatepass")


@st.composite
def bodies(draw: st.DrawFn, least: dict[str, Any]) -> bytes:
    """Draw a valid body with added, removed, repeated or deeply nested fields, or with changed bytes."""
    body = {**least, **draw(st.dictionaries(NAMES, ANY_JSON, max_size=4))}
    for name in draw(st.sets(st.sampled_from(sorted(body)), max_size=1)):
        del body[name]
    raw = dumped(body, escaped=draw(st.booleans()))
    match draw(st.sampled_from(["as it is", "as it is", "twice", "deep", "cut", "changed"])):
        case "twice":
            name, value = draw(NAMES), draw(ANY_JSON)
            raw = raw[:-1] + (b"," if body else b"") + dumped({name: value})[1:]
        case "deep":
            raw = raw[:-1] + (b"," if body else b"") + b'"deep":' + draw(DEEP) + b"}"
        case "cut":
            raw = raw[: draw(st.integers(0, len(raw)))]
        case "changed":
            at = draw(st.integers(0, len(raw) - 1))
            raw = raw[:at] + draw(st.binary(max_size=3)) + raw[at + 1 :]
    return raw


def check(kind: str, raw: bytes) -> None:
    """Check that an accepted body can be encoded, and that a rejection can be encoded and names the field."""
    try:
        parsed = KINDS[kind][0](raw)
    except InvalidRequest as error:
        shown, param = error.message, error.param
    else:
        shown, param = orjson.dumps(parsed.body).decode(), None
    shown.encode()
    assert param is None or param in shown


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_body_near_a_valid_one_is_read_or_refused(kind: str, data: st.DataObject) -> None:
    """Huge integers, NaN, lone surrogates, wrong types and repeated fields are included."""
    check(kind, data.draw(bodies(KINDS[kind][1])))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=100)
@given(value=ANY_JSON, escaped=st.booleans())
@example(value={"model": "m", "messages": [USER], "prompt": "a", "input": "a", "seed": 10**400}, escaped=True)
def test_any_json_is_read_or_refused(kind: str, value: Any, escaped: bool) -> None:
    """The parsers raise no other error than InvalidRequest."""
    check(kind, dumped(value, escaped=escaped))


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=100)
@given(raw=st.binary() | DEEP)
def test_any_bytes_are_read_or_refused(kind: str, raw: bytes) -> None:
    """Bodies are no text, or never close what they open."""
    check(kind, raw)


@pytest.mark.parametrize(("kind", "least"), [(kind, least) for kind, (_, least) in KINDS.items()])
def test_of_a_repeated_field_the_last_counts(kind: str, least: dict[str, Any]) -> None:
    """The checked value is the value that is sent to the engine."""
    parse = KINDS[kind][0]
    assert parse(orjson.dumps(least)[:-1] + b',"model":"other"}').body["model"] == "other"
    with pytest.raises(InvalidRequest) as caught:
        parse(orjson.dumps(least)[:-1] + b',"user":"me","user":5}')
    assert caught.value.param == "user"


@pytest.fixture(scope="module")
def gate(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with (
        FakeEngine(says("Hi there")).running() as engine,
        running_gateway(
            tmp_path_factory.mktemp("fuzz"),
            redis_url=redis_url,
            models=[
                model("big", "tgi", engine.url),
                model("small", "openai", f"{engine.url}/v1", continuation="trailing", echo=False),
            ],
            routes=[guided(), STUDENT_ONLY, {"model": "vectors", "mode": "embeddings", "student": "small"}],
        ) as process,
    ):
        yield process


@pytest.mark.parametrize(("path", "least"), SENT.values(), ids=SENT)
def test_a_gateway_answers_any_request_body(gate: GatewayProcess, path: str, least: dict[str, Any]) -> None:
    """The reply is 200, 400 or 404, in time and in OpenAI's shape."""
    with httpx.Client(base_url=gate.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=10) as caller:

        @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
        @given(raw=bodies(least) | st.binary())
        def asks(raw: bytes) -> None:
            answer = caller.post(path, content=raw)
            assert answer.status_code in {200, 400, 404}
            if answer.headers["Content-Type"].startswith("text/event-stream"):
                assert answer.text.endswith("data: [DONE]\n\n")
            elif answer.status_code != 200:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

        asks()
    assert not [line for line in gate.log if line["event"] in {"request_broke", "stream_broke"}]
