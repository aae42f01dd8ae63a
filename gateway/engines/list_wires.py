"""The list routes of each kind of server: several guidance requests in one call.

A reply has one entry for each member, in any order; any other reply is an EngineProtocolError for all members. An entry
without text is an error for its member only. docs/engines.md lists the routes of each server.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

from gateway.engines.base import TeacherReply, TokenUsage
from gateway.engines.chat import read_usage, sampling_body, teacher_finish, token_fields
from gateway.engines.raw_prompts import LlamaCppRenderer, SGLangRenderer, VllmRenderer, all_of
from gateway.engines.replies import bad_reply
from gateway.engines.reply_json import encoded
from gateway.engines.token_ends import token_ends, token_texts
from gateway.errors import EngineError, EngineFailed, EngineProtocolError, EngineRejected
from gateway.protocol.capabilities.kinds import kind_of
from gateway.protocol.capabilities.reasoning import without_reasoning
from gateway.protocol.messages import only_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from gateway.engines.base import TeacherRequest
    from gateway.engines.http import EngineHttp
    from gateway.protocol.body import Json
    from gateway.protocol.capabilities.reasoning import Reasoning

Outcome: TypeAlias = TeacherReply | EngineError

_TOKEN_FIELDS = kind_of("vllm", "").token_fields
COUNT_LIMIT_S = 2.0
# All fields of llama.cpp's entries but the prompt and the settings.
_LLAMA_FIELDS = [
    *("index", "content", "stop_type", "tokens_evaluated", "tokens_predicted", "timings"),
    "completion_probabilities",
]


class ListWire:
    """The list route of one kind of server. The members are all chats or all prompts, with the same parameters.

    By default, the route is OpenAI's /completions: a list of prompts and no chats, with one sum of tokens.
    """

    reasoning: Reasoning = "none"  # the setting of the model

    def __init__(self, http: EngineHttp, model: str) -> None:
        self._http = http
        self._model = model

    def takes(self, request: TeacherRequest) -> bool:
        """Return whether a request can be a member of a list."""
        return request.prompt is not None

    async def render(self, requests: Sequence[TeacherRequest]) -> list[Any]:
        """Return each request as this server reads it in a list. This may send calls. Raises EngineErrors."""
        return [_prompt_of(request) for request in requests]

    async def send(self, requests: Sequence[TeacherRequest], rendered: Sequence[Any]) -> list[Outcome]:
        """Send the list and return the outcome of each member. Raises an EngineError if the whole call fails."""
        return await self._send("/completions", {"prompt": list(rendered)}, requests)

    async def _send(
        self, path: str, prompts: Json, requests: Sequence[TeacherRequest], count: Awaitable[list[int]] | None = None
    ) -> list[Outcome]:
        """Send the list and, at the same time, `count` the tokens of each prompt."""
        body = {"model": self._model, **sampling_body(requests[0]), **prompts, **self._details(requests[0])}
        call: Awaitable[Any] = self._http.post(path, body)
        answer, sizes = (await call, []) if count is None else await all_of((call, count))
        reply = answer.body
        choices = _in_order(reply.get("choices") if isinstance(reply, dict) else None, len(requests), self._http.name)
        texts = [_text_of(choice) for choice in choices]
        reasons = [choice.get("finish_reason") for choice in choices]
        read = [len(await encoded(_prompt_of(request))) for request in requests]
        written = [
            None if reason == "length" else len((text or "").encode("utf-8", "replace"))
            for text, reason in zip(texts, reasons, strict=True)
        ]
        total = read_usage(reply.get("usage"))
        usages = _counted(total, choices, read, sizes) or shares(total, requests[0].max_tokens, read, written)
        return [
            _outcome(text, teacher_finish(reason), usage, self._http.name, token_texts(choice))
            for text, reason, usage, choice in zip(texts, reasons, usages, choices, strict=True)
        ]

    def _details(self, request: TeacherRequest) -> Json:
        """Return the fields that request the tokens of each member."""
        return {}


class VllmLists(ListWire):
    """vLLM: chats use the batch route, which renders them like the chat route. Both routes report each token.

    The batch route counts its prompts together, so /tokenize counts each of them while the list is generated.
    """

    def __init__(self, http: EngineHttp, model: str) -> None:
        super().__init__(http, model)
        self._renderer = VllmRenderer(http, model)
        self._counts = True

    def _details(self, request: TeacherRequest) -> Json:
        return {**token_fields(request, _TOKEN_FIELDS), "return_token_ids": True}

    def takes(self, request: TeacherRequest) -> bool:
        return True

    async def send(self, requests: Sequence[TeacherRequest], rendered: Sequence[Any]) -> list[Outcome]:
        if requests[0].messages is None:
            return await super().send(requests, rendered)
        chats = without_reasoning(self.reasoning, {"messages": list(rendered)})
        count = self._prompt_sizes(chats) if self._counts else None
        return await self._send("/chat/completions/batch", chats, requests, count)

    async def _prompt_sizes(self, chats: Json) -> list[int]:
        """Return the number of tokens of each chat; empty if the server does not count them in time."""
        calls = (self._renderer.render({**chats, "messages": messages}) for messages in chats["messages"])
        try:
            async with asyncio.timeout(COUNT_LIMIT_S):
                return [len(tokens) for tokens in await all_of(calls)]
        except EngineRejected:
            self._counts = False  # until the next probe of the lists
        except (EngineError, TimeoutError):
            pass  # the list itself may succeed
        return []


class _RenderedLists(ListWire):
    _RENDERER: type[LlamaCppRenderer | SGLangRenderer]

    def __init__(self, http: EngineHttp, model: str) -> None:
        super().__init__(http, model)
        self._renderer = self._RENDERER(http, model)

    def takes(self, request: TeacherRequest) -> bool:
        return only_text(request.messages or ())

    async def render(self, requests: Sequence[TeacherRequest]) -> list[Any]:
        chats = [{"messages": list(request.messages)} for request in requests if request.messages is not None]
        rendered = (self._renderer.render(without_reasoning(self.reasoning, chat)) for chat in chats)
        prompts = iter(await all_of(rendered))
        return [request.prompt if request.messages is None else next(prompts) for request in requests]

    async def _send_native(self, path: str, body: Json, count: int) -> list[Outcome]:
        reply = (await self._http.post(path, body, native=True)).body
        return [self._read(entry) for entry in _in_order(reply, count, self._http.name)]

    def _read(self, entry: Json) -> Outcome:
        raise NotImplementedError


class LlamaCppLists(_RenderedLists):
    """llama.cpp: /completion counts the tokens of each member; /v1/completions counts the first one only."""

    _RENDERER = LlamaCppRenderer

    async def send(self, requests: Sequence[TeacherRequest], rendered: Sequence[Any]) -> list[Outcome]:
        sampling = sampling_body(requests[0])
        body = {
            "prompt": list(rendered),
            "n_predict": sampling.pop("max_tokens"),
            **sampling,
            # The text of each token, without a sorted vocabulary.
            "n_probs": 1,
            "post_sampling_probs": True,
            "response_fields": _LLAMA_FIELDS,
        }
        return await self._send_native("/completion", body, len(requests))

    def _read(self, entry: Json) -> Outcome:
        timings = entry.get("timings")
        cached = timings.get("cache_n") if isinstance(timings, dict) else None
        usage = _usage(entry.get("tokens_evaluated"), entry.get("tokens_predicted"), cached)
        ended = "stop" if entry.get("stop_type") in {"eos", "word"} else "length"
        tokens = token_texts({"logprobs": {"content": entry.get("completion_probabilities")}})
        return _outcome(entry.get("content"), teacher_finish(ended), usage, self._http.name, tokens)


class SGLangLists(_RenderedLists):
    """SGLang: /generate counts the tokens of each member. /tokenize renders chats to token ids."""

    _RENDERER = SGLangRenderer

    async def send(self, requests: Sequence[TeacherRequest], rendered: Sequence[Any]) -> list[Outcome]:
        sampling = sampling_body(requests[0])
        sampling["max_new_tokens"] = sampling.pop("max_tokens")
        if "seed" in sampling:
            sampling["sampling_seed"] = sampling.pop("seed")
        kind = "text" if requests[0].messages is None else "input_ids"
        body = {"sampling_params": sampling, kind: list(rendered)}
        return await self._send_native("/generate", body, len(requests))

    def _read(self, entry: Json) -> Outcome:
        info = entry.get("meta_info")
        meta: Json = info if isinstance(info, dict) else {}
        finish = meta.get("finish_reason")
        reason = finish.get("type") if isinstance(finish, dict) else finish
        if reason == "abort":
            return EngineFailed(f"Engine '{self._http.name}' aborted one answer of a list.", engine=self._http.name)
        usage = _usage(meta.get("prompt_tokens"), meta.get("completion_tokens"), meta.get("cached_tokens"))
        return _outcome(entry.get("text"), teacher_finish(reason), usage, self._http.name)


_BY_OWNER = {"vllm": VllmLists, "vllm-frontend-rs": VllmLists, "llamacpp": LlamaCppLists, "sglang": SGLangLists}


def list_wire(owner: object, http: EngineHttp, model: str) -> ListWire:
    """Return the list route for a server. `owner` is `owned_by` in /models."""
    kind = _BY_OWNER.get(owner.lower(), ListWire) if isinstance(owner, str) else ListWire
    return kind(http, model)


def _in_order(entries: Any, count: int, engine: str) -> list[Json]:
    """Return the entries in the order of their indexes. An entry without an index has its position as index."""
    found = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    by_index = {entry.get("index", position): entry for position, entry in enumerate(found)}
    if len(found) != count or by_index.keys() != set(range(count)):
        raise EngineProtocolError(
            f"Engine '{engine}' did not return one entry for each of the {count} prompts of a list.", engine=engine
        )
    return [by_index[index] for index in range(count)]


def _outcome(
    text: Any, finish: Any, usage: TokenUsage | None, engine: str, tokens: Sequence[str] | None = None
) -> Outcome:
    if not isinstance(text, str):
        return bad_reply(engine, "a reply without text")
    return TeacherReply(text, finish, usage, token_ends=token_ends(text, tokens) if tokens else None)


def _counted(
    total: TokenUsage | None, choices: Sequence[Json], read: Sequence[int], sizes: Sequence[int]
) -> list[TokenUsage | None] | None:
    """Return the usage of each member by its token ids; None if the reply does not have them.

    The batch route returns no ids of prompts. Their `sizes` are exact if they add up to the total. Otherwise each
    member has an estimated share of it.
    """
    ids = [choice.get("token_ids") for choice in choices]
    if total is None or not all(isinstance(one, list) for one in ids):
        return None
    prompts = [choice.get("prompt_token_ids") for choice in choices]
    if all(isinstance(one, list) and one for one in prompts):
        sizes = [len(prompt or ()) for prompt in prompts]
    if not (exact := sum(sizes) == total.input_tokens):
        sizes = apportion(total.input_tokens, read)
    parts = (total.cached_input_tokens, total.cache_write_input_tokens)
    cached, stored = (apportion(tokens, sizes) for tokens in parts)
    return [
        TokenUsage(size, len(one or ()), from_cache, estimated=not exact, cache_write_input_tokens=to_cache)
        for size, one, from_cache, to_cache in zip(sizes, ids, cached, stored, strict=True)
    ]


def _text_of(choice: Json) -> Any:
    message = choice.get("message")
    return message.get("content") if isinstance(message, dict) else choice.get("text")


def _usage(read: Any, written: Any, cached: Any) -> TokenUsage | None:
    return read_usage(
        {"prompt_tokens": read, "completion_tokens": written, "prompt_tokens_details": {"cached_tokens": cached}}
    )


def _prompt_of(request: TeacherRequest) -> Any:
    return request.prompt if request.messages is None else list(request.messages)


def shares(
    total: TokenUsage | None, max_tokens: int, read: Sequence[int], written: Sequence[int | None]
) -> list[TokenUsage | None]:
    """Return the estimated usage of each member of a list, since OpenAI's routes report one sum.

    The estimates add up to the total. A member that was cut has exactly `max_tokens`. The rest is shared in proportion
    to size. Each member has None without a total, or with a total below the tokens of the cut members. The route
    /v1/completions of llama.cpp reports such a total, of one member only.

    Args:
        read: the size of each prompt, in any unit.
        written: the size of each text, in any unit; None if it was cut at `max_tokens`.
    """
    cut = [size is None for size in written]
    rest = -1 if total is None else total.output_tokens - max_tokens * sum(cut)
    if total is None or rest < 0:
        return [None] * len(written)
    # Plus one for the token that ended the text, which also counts for an empty text.
    output = apportion(rest, [0 if size is None else size + 1 for size in written])
    parts = (total.input_tokens, total.cached_input_tokens, total.cache_write_input_tokens)
    inputs = zip(*(apportion(tokens, read) for tokens in parts), strict=True)
    return [
        TokenUsage(
            tokens_read,
            max_tokens * was_cut + tokens_written,
            min(cached, tokens_read - min(stored, tokens_read)),
            estimated=True,
            cache_write_input_tokens=min(stored, tokens_read),
        )
        for (tokens_read, cached, stored), was_cut, tokens_written in zip(inputs, cut, output, strict=True)
    ]


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Return integer shares of `total` by weight, each within one of its exact share. Equal without weights."""
    whole = sum(weights)
    if whole == 0:
        weights, whole = [1] * len(weights), len(weights)
    portions, weight_sum, portion_sum = [], 0, 0
    for weight in weights:
        weight_sum += weight
        portions.append(total * weight_sum // whole - portion_sum)
        portion_sum += portions[-1]
    return portions
