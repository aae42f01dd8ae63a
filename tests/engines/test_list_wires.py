"""The list calls to each kind of server, and the parsing of their replies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.engines.base import TeacherReply, TokenUsage
from gateway.engines.list_wires import COUNT_LIMIT_S
from gateway.errors import EngineFailed
from tests.engines.list_servers import (
    BATCH,
    GENERATE,
    LLAMA,
    RAW,
    TEMPLATE,
    TOKENIZE,
    ListServer,
    chat,
    listing,
    prompt,
)

SAMPLED = {"temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ("x", "y")}
SENT = {"temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ["x", "y"]}


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def by_path(fake: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for path, body in zip(fake.paths, fake.bodies, strict=True):
        found.setdefault(path, []).append(body)
    return found


async def replies(engine: Any, *requests: Any) -> list[Any]:
    calls = (engine.generate_guidance(request, batch="b1") for request in requests)
    return await asyncio.gather(*calls, return_exceptions=True)


async def test_vllm_gets_exactly_this() -> None:
    """Chats use the batch route, prompts use /completions. Each member reports its tokens.

    The batch route has no ids of prompts, so /tokenize counts them.
    """
    async with listing(ListServer("vllm", counts=True)) as (engine, fake):
        chats = await replies(engine, chat("What is one", **SAMPLED), chat("So what is two", **SAMPLED))
        prompts = await replies(engine, prompt("It is one", 1), prompt("And now it is two", 1))
    assert by_path(fake) == {
        BATCH: [
            {"model": "org/model", "messages": [messages("What is one"), messages("So what is two")], "max_tokens": 3}
            | SENT
            | {"logprobs": True, "top_logprobs": 0, "return_token_ids": True}
        ],
        RAW: [
            {"model": "org/model", "prompt": ["It is one", "And now it is two"], "max_tokens": 1, "temperature": 0.0}
            | {"logprobs": 0, "return_token_ids": True}
        ],
        TOKENIZE: [{"model": "org/model", "messages": messages(one)} for one in ("What is one", "So what is two")],
    }
    assert chats == [
        TeacherReply("one says the", "length", TokenUsage(3, 3), token_ends=(3, 8, 12)),
        TeacherReply("two says the", "length", TokenUsage(4, 3), token_ends=(3, 8, 12)),
    ]
    assert prompts == [
        TeacherReply("one", "length", TokenUsage(3, 1), token_ends=(3,)),
        TeacherReply("two", "length", TokenUsage(5, 1), token_ends=(3,)),
    ]


async def test_each_member_of_a_vllm_list_has_its_own_tokens() -> None:
    """Answers of 36 and 64 tokens were charged 22 and 78 tokens, in proportion to their characters."""
    server = ListServer("vllm")
    server.answer = lambda question: " ".join(["a"] * 36 if "one" in question else ["incontrovertibly"] * 64)
    async with listing(server) as (engine, _):
        found = await replies(engine, chat("What is one", 100), chat("What is two", 100))
    assert [reply.usage.output_tokens for reply in found] == [36, 64]


@pytest.mark.parametrize("spoiled", ["route", "sum"])
async def test_prompts_that_vllm_does_not_count_have_an_estimated_share(spoiled: str) -> None:
    """The counts of /tokenize must add up to the usage of the list. A missing route is called once."""
    server = ListServer("vllm", counts=spoiled == "sum")
    async with listing(server) as (engine, fake):
        if spoiled == "sum":
            server.count = lambda question: 1
        for _ in range(2):
            found = await replies(engine, chat("What is one"), chat("So what is two"))
            assert [(one.usage.input_tokens, one.usage.estimated) for one in found] == [(3, True), (4, True)]
    assert fake.paths.count(TOKENIZE) == (0 if spoiled == "route" else 4)


async def test_a_list_does_not_wait_for_the_counts_of_its_prompts() -> None:
    """/tokenize has a limit of its own."""
    server = ListServer("vllm", counts=True)
    async with listing(server) as (engine, _):
        server.render.clear()
        async with asyncio.timeout(COUNT_LIMIT_S + 2):
            found = await replies(engine, chat("What is one"), chat("So what is two"))
    assert [(one.text, one.usage.estimated) for one in found] == [("one says the", True), ("two says the", True)]


async def test_llamacpp_gets_exactly_this() -> None:
    """The route /completion, outside of /v1, with rendered chats. Each entry has its own counts."""
    async with listing(ListServer("llamacpp")) as (engine, fake):
        chats = await replies(engine, chat("What is one", **SAMPLED), chat("So what is two", **SAMPLED))
    fields = ["index", "content", "stop_type", "tokens_evaluated", "tokens_predicted", "timings",
              "completion_probabilities"]  # fmt: skip
    detailed = {"n_probs": 1, "post_sampling_probs": True}
    sent = by_path(fake)
    assert sent.keys() == {TEMPLATE, LLAMA}
    assert {body["messages"][0]["content"] for body in sent[TEMPLATE]} == {"What is one", "So what is two"}
    assert all(body.keys() == {"messages"} for body in sent[TEMPLATE])
    assert sent[LLAMA] == [
        {"prompt": ["<chat>What is one", "<chat>So what is two"], "n_predict": 3, "response_fields": fields}
        | detailed
        | SENT
    ]
    assert chats == [
        TeacherReply("one says the", "length", TokenUsage(3, 3, 1), token_ends=(3, 8, 12)),
        TeacherReply("two says the", "length", TokenUsage(4, 3, 1), token_ends=(3, 8, 12)),
    ]


async def test_sglang_gets_exactly_this() -> None:
    """The route /generate with the token ids from /tokenize. Each entry has its own counts."""
    async with listing(ListServer("sglang")) as (engine, fake):
        chats = await replies(engine, chat("What is one", **SAMPLED), chat("So what is two", **SAMPLED))
        await replies(engine, prompt("It is one", 1), prompt("It is two", 1))
    sent = by_path(fake)
    assert sent.keys() == {TOKENIZE, GENERATE}
    assert {body["messages"][0]["content"] for body in sent[TOKENIZE]} == {"What is one", "So what is two"}
    assert {body["model"] for body in sent[TOKENIZE]} == {"org/model"}
    parameters = {"max_new_tokens": 3, "temperature": 0.7, "top_p": 0.9, "sampling_seed": 3, "stop": ["x", "y"]}
    assert sent[GENERATE] == [
        {"input_ids": [list(b"What is one"), list(b"So what is two")], "sampling_params": parameters},
        {"text": ["It is one", "It is two"], "sampling_params": {"max_new_tokens": 1, "temperature": 0.0}},
    ]
    assert chats == [
        TeacherReply("one says the", "length", TokenUsage(3, 3, 1)),
        TeacherReply("two says the", "length", TokenUsage(4, 3, 1)),
    ]


@pytest.mark.parametrize("kind", ["vllm", "llamacpp", "sglang"])
async def test_a_finished_member_has_finish_reason_stop(kind: str) -> None:
    """A finished member's answer may be complete, independently of the other members."""
    server = ListServer(kind, counts=True)
    server.answer = lambda question: "yes" if "one" in question else "no and so on for long"
    async with listing(server) as (engine, _):
        ended, cut = await replies(engine, chat("What is one"), chat("What is two"))
    assert (ended.text, ended.finish, ended.usage.output_tokens) == ("yes", "stop", 1)
    assert (cut.text, cut.finish, cut.usage.output_tokens) == ("no and so", "length", 3)
    assert not ended.usage.estimated
    assert not cut.usage.estimated


@pytest.mark.parametrize("stop_type", ["limit", "none", None, 5])
async def test_an_unknown_stop_type_of_llama_cpp_is_a_cut(stop_type: Any) -> None:
    """The student continues it."""
    server = ListServer("llamacpp", answer=lambda _: "yes")
    async with listing(server) as (engine, _):
        server.spoil = lambda entries: [{**entry, "stop_type": stop_type} for entry in entries]
        assert [reply.finish for reply in await replies(engine, chat("a"), chat("b"))] == ["length", "length"]


@pytest.mark.parametrize("kind", ["llamacpp", "sglang"])
async def test_a_member_without_counts_has_no_usage(kind: str) -> None:
    """The gateway counts the tokens instead."""
    server = ListServer(kind)
    async with listing(server) as (engine, _):
        uncounted = {"tokens_evaluated": None, "timings": None, "meta_info": None}
        server.spoil = lambda entries: [{**entry, **uncounted} for entry in entries]
        assert [reply.usage for reply in await replies(engine, chat("a"), chat("b"))] == [None, None]


async def test_an_aborted_entry_of_sglang_fails_alone() -> None:
    """The other entries of the list are valid."""
    server = ListServer("sglang")
    async with listing(server) as (engine, _):
        abort = {"meta_info": {"finish_reason": {"type": "abort", "message": "no"}}}
        server.spoil = lambda entries: [{**entries[0], **abort}, *entries[1:]]
        failed, well = await replies(engine, chat("a"), chat("b"))
    assert isinstance(failed, EngineFailed)
    assert well.text == "b says the"


@pytest.mark.parametrize(("kind", "path"), [("llamacpp", TEMPLATE), ("sglang", TOKENIZE)])
async def test_a_chat_that_cannot_be_rendered_splits_the_list_into_single_calls(kind: str, path: str) -> None:
    """The template rejects one chat; the others succeed in separate calls."""
    server = ListServer(kind)
    async with listing(server) as (engine, fake):
        server.unrenderable = "bad"
        server.refuse = lambda body, _: 400 if "bad" in str(body) else None
        bad, good = await replies(engine, chat("a bad"), chat("a good"))
    assert bad.status_sent == 400
    assert good.text == "good says the"
    assert path in fake.paths
    assert not {LLAMA, GENERATE} & set(fake.paths)
