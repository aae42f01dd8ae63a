"""How each kind of server takes a list of openings in one call, and gives them back.

A reply may come in any order, and holds one entry for each member; otherwise it is garbled as a whole. An entry without
text is garbled alone. docs/engines.md says which server does what.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from gateway.engines.base import OpeningReply, TokenUsage
from gateway.engines.chat import opening_body, opening_finish, read_usage
from gateway.engines.renderers import LlamaCppRenderer, SGLangRenderer, all_of
from gateway.engines.reply_json import encoded
from gateway.engines.shares import shares
from gateway.errors import EngineError, EngineFailed, EngineProtocolError
from gateway.protocol.messages import only_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.engines.base import OpeningRequest
    from gateway.engines.http import EngineHttp
    from gateway.protocol.body import Json

Outcome: TypeAlias = OpeningReply | EngineError


class ListWire(Protocol):
    """One server's way. The members of a call are all chats or all prompts, with the same parameters."""

    def takes(self, request: OpeningRequest) -> bool:
        """Whether such an opening can be a member of a list."""
        ...

    async def render(self, requests: Sequence[OpeningRequest]) -> list[Any]:
        """Each as this server takes it in a list, which may take calls. Raises EngineErrors."""
        ...

    async def send(self, requests: Sequence[OpeningRequest], rendered: Sequence[Any]) -> list[Outcome]:
        """What became of each. Raises an EngineError that is everybody's when the call failed."""
        ...


class PromptLists:
    """OpenAI's /completions: a list of prompts, and one sum of tokens. Chats need a template: it takes none."""

    def __init__(self, http: EngineHttp, model: str) -> None:
        self._http = http
        self._model = model

    def takes(self, request: OpeningRequest) -> bool:
        return request.prompt is not None

    async def render(self, requests: Sequence[OpeningRequest]) -> list[Any]:
        return [request.prompt if request.messages is None else list(request.messages) for request in requests]

    async def send(self, requests: Sequence[OpeningRequest], rendered: Sequence[Any]) -> list[Outcome]:
        return await self._send("/completions", {"prompt": list(rendered)}, requests)

    async def _send(self, path: str, asked: Json, requests: Sequence[OpeningRequest]) -> list[Outcome]:
        body = {"model": self._model, **opening_body(requests[0]), **asked}
        reply = (await self._http.post(path, body)).body
        choices = _in_order(reply.get("choices") if isinstance(reply, dict) else None, len(requests), self._http.name)
        texts = [_text_of(choice) for choice in choices]
        reasons = [choice.get("finish_reason") for choice in choices]
        usages = shares(
            read_usage(reply.get("usage")),
            requests[0].max_tokens,
            [await _size(request) for request in requests],
            [
                None if reason == "length" else len((text or "").encode("utf-8", "replace"))
                for text, reason in zip(texts, reasons, strict=True)
            ],
        )
        return [
            _outcome(text, opening_finish(reason), usage, self._http.name)
            for text, reason, usage in zip(texts, reasons, usages, strict=True)
        ]


class VllmLists(PromptLists):
    """vLLM: chats go to a batch route of its own, which renders them as its chat route does."""

    def takes(self, request: OpeningRequest) -> bool:
        return True

    async def send(self, requests: Sequence[OpeningRequest], rendered: Sequence[Any]) -> list[Outcome]:
        if requests[0].messages is None:
            return await super().send(requests, rendered)
        return await self._send("/chat/completions/batch", {"messages": list(rendered)}, requests)


class LlamaCppLists:
    """llama.cpp: its own /completion, for it counts every member; its /v1/completions counts the first one only."""

    def __init__(self, http: EngineHttp, model: str) -> None:
        self._http = http
        self._renderer = LlamaCppRenderer(http, model)

    def takes(self, request: OpeningRequest) -> bool:
        return only_text(request.messages or ())

    async def render(self, requests: Sequence[OpeningRequest]) -> list[Any]:
        return await _rendered(self._renderer, requests)

    async def send(self, requests: Sequence[OpeningRequest], rendered: Sequence[Any]) -> list[Outcome]:
        sampling = opening_body(requests[0])
        body = {
            "prompt": list(rendered),
            "n_predict": sampling.pop("max_tokens"),
            **sampling,
            # Without this each entry repeats its prompt and all settings.
            "response_fields": ["index", "content", "stop_type", "tokens_evaluated", "tokens_predicted", "timings"],
        }
        reply = (await self._http.post("/completion", body, native=True)).body
        return [self._read(entry) for entry in _in_order(reply, len(requests), self._http.name)]

    def _read(self, entry: Json) -> Outcome:
        timings = entry.get("timings")
        usage = _usage(
            entry.get("tokens_evaluated"),
            entry.get("tokens_predicted"),
            timings.get("cache_n") if isinstance(timings, dict) else None,
        )
        ended = "stop" if entry.get("stop_type") in {"eos", "word"} else "length"
        return _outcome(entry.get("content"), opening_finish(ended), usage, self._http.name)


class SGLangLists:
    """SGLang: its own /generate, for it counts every member. Chats are rendered to token ids by /tokenize."""

    def __init__(self, http: EngineHttp, model: str) -> None:
        self._http = http
        self._renderer = SGLangRenderer(http, model)

    def takes(self, request: OpeningRequest) -> bool:
        return only_text(request.messages or ())

    async def render(self, requests: Sequence[OpeningRequest]) -> list[Any]:
        return await _rendered(self._renderer, requests)

    async def send(self, requests: Sequence[OpeningRequest], rendered: Sequence[Any]) -> list[Outcome]:
        sampling = opening_body(requests[0])
        sampling["max_new_tokens"] = sampling.pop("max_tokens")
        if "seed" in sampling:
            sampling["sampling_seed"] = sampling.pop("seed")
        kind = "text" if requests[0].messages is None else "input_ids"
        body = {"sampling_params": sampling, kind: list(rendered)}
        reply = (await self._http.post("/generate", body, native=True)).body
        return [self._read(entry) for entry in _in_order(reply, len(requests), self._http.name)]

    def _read(self, entry: Json) -> Outcome:
        said = entry.get("meta_info")
        meta: Json = said if isinstance(said, dict) else {}
        finish = meta.get("finish_reason")
        reason = finish.get("type") if isinstance(finish, dict) else finish
        if reason == "abort":
            return EngineFailed(f"Engine '{self._http.name}' gave up on one answer of a list.", engine=self._http.name)
        usage = _usage(meta.get("prompt_tokens"), meta.get("completion_tokens"), meta.get("cached_tokens"))
        return _outcome(entry.get("text"), opening_finish(reason), usage, self._http.name)


_BY_OWNER: dict[str, type[VllmLists | LlamaCppLists | SGLangLists]] = {
    "vllm": VllmLists,
    "llamacpp": LlamaCppLists,
    "sglang": SGLangLists,
}


def list_wire(owner: object, http: EngineHttp, model: str) -> ListWire:
    """The way to try; `owner` is whatever /models says of it."""
    kind = _BY_OWNER.get(owner.lower(), PromptLists) if isinstance(owner, str) else PromptLists
    return kind(http, model)


def _in_order(entries: Any, count: int, engine: str) -> list[Json]:
    """The entries by their index; without one they count as they come."""
    found = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    by_index = {entry.get("index", place): entry for place, entry in enumerate(found)}
    if len(found) != count or by_index.keys() != set(range(count)):
        raise EngineProtocolError(
            f"Engine '{engine}' did not answer each of the {count} prompts of a list.", engine=engine
        )
    return [by_index[index] for index in range(count)]


def _outcome(text: Any, finish: Any, usage: TokenUsage | None, engine: str) -> Outcome:
    if not isinstance(text, str):
        return EngineProtocolError(f"Engine '{engine}' sent a reply without text.", engine=engine)
    return OpeningReply(text, finish, usage)


def _text_of(choice: Json) -> Any:
    message = choice.get("message")
    return message.get("content") if isinstance(message, dict) else choice.get("text")


def _usage(read: Any, written: Any, cached: Any) -> TokenUsage | None:
    return read_usage(
        {"prompt_tokens": read, "completion_tokens": written, "prompt_tokens_details": {"cached_tokens": cached}}
    )


async def _rendered(renderer: LlamaCppRenderer | SGLangRenderer, requests: Sequence[OpeningRequest]) -> list[Any]:
    """Each as a prompt: what is one already stays what it is."""
    chats = iter(
        await all_of(
            renderer.render({"messages": list(request.messages)})
            for request in requests
            if request.messages is not None
        )
    )
    return [request.prompt if request.messages is None else next(chats) for request in requests]


async def _size(request: OpeningRequest) -> int:
    return len(await encoded(request.prompt if request.messages is None else list(request.messages)))
