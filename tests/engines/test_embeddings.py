"""Embeddings of OpenAI-compatible servers: vectors are forwarded as bytes, and counts are validated."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.engines import embeddings
from gateway.engines.base import TokenUsage
from gateway.engines.embeddings import read_embeddings
from gateway.engines.openai import OpenAIEngine
from gateway.engines.tgi import TGIEngine
from gateway.errors import EngineProtocolError, EngineRejected
from tests.engines.fake_server import NAME, engine_http, failure, replying, serving
from tests.fakes import embedded

PATH = "/v1/embeddings"


async def test_only_the_model_name_of_the_body_changes() -> None:
    """Each field of the reply is forwarded in the engine's own bytes."""
    body = {"model": "vectors", "input": [[1, 2], [3]], "dimensions": 64, "unknown": {"a": None}}
    async with serving({PATH: replying(embedded(2))}) as fake, engine_http(fake.url + "/v1") as http:
        reply = await OpenAIEngine(NAME, "org/model", http).embed(body)
    assert fake.bodies == [{**body, "model": "org/model"}]
    assert reply.usage == TokenUsage(10, 0)
    assert b'"embedding": [1e-05, 0.50]' in b"".join(reply.data)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"{}",
        b'{"data": null}',
        b'{"data": {}}',
        b'{"data": "[]"}',
        b'{"data": [1,}',
        b'{"data": [], "usage": {',
        b'{"data": ["\xff"]}',
    ],
)
async def test_a_reply_without_a_list_of_vectors_is_a_protocol_error(raw: bytes) -> None:
    """A defect in the part that is not decoded counts, too."""
    with pytest.raises(EngineProtocolError):
        await read_embeddings(raw, NAME)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        5,
        [],
        {},
        {"prompt_tokens": 0},
        {"prompt_tokens": -1},
        {"prompt_tokens": True},
        {"prompt_tokens": "9"},
        {"prompt_tokens": 2**31},
    ],
)
async def test_a_count_that_cannot_be_used_is_none(usage: Any) -> None:
    """The gateway counts the tokens instead."""
    assert (await read_embeddings(msgspec.json.encode({"data": [], "usage": usage}), NAME)).usage is None


async def test_a_reply_without_end_is_cut_off() -> None:
    """The limit is above that of a chat, since vectors are large."""
    assert embeddings.MAX_REPLY_BYTES > 34_000_000
    async with (
        serving({PATH: replying(b" " * (embeddings.MAX_REPLY_BYTES + 1))}) as fake,
        engine_http(fake.url + "/v1") as http,
    ):
        error = await failure(OpenAIEngine(NAME, "m", http).embed({"input": "a"}), fake.url)
    assert isinstance(error, EngineProtocolError)
    assert "64000000 bytes" in error.message


async def test_tgi_makes_none() -> None:
    """TGI has no such route, and gets no call."""
    async with serving({}) as fake, engine_http(fake.url) as http:
        error = await failure(TGIEngine(NAME, http).embed({"input": "a"}), fake.url)
    assert isinstance(error, EngineRejected)
    assert not fake.bodies
