"""OpenAI's chat completions as engines speak them: the part that every engine class shares."""

from __future__ import annotations

from contextlib import aclosing
from io import StringIO
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeGuard

from gateway.engines.base import OpeningReply, TokenUsage
from gateway.engines.http import LAST_EVENT
from gateway.engines.refusal import reported
from gateway.engines.replies import first_choice
from gateway.engines.reply_json import Unreadable, decode, decoded_events
from gateway.errors import EngineFailed, EngineProtocolError, EngineTimeout, EngineUnreachable
from gateway.protocol.body import MAX_CHOICES, MAX_TOKENS
from gateway.protocol.messages import text_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from gateway.engines.base import Finish, OpeningRequest
    from gateway.engines.http import EngineHttp
    from gateway.protocol.body import Json

# OpenAI's word for "it ended by itself", and TGI's two.
_ENDED = ("stop", "eos_token", "stop_sequence")


# Names of the tokens written to the prompt cache, in `prompt_tokens_details`: OpenAI, OpenRouter and LiteLLM; LiteLLM
# before it took OpenAI's name; Alibaba Cloud Model Studio (DashScope).
_CACHE_WRITES = ("cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens")
_PROXY_CACHE_WRITES = "cache_creation_input_tokens"  # in `usage` itself: LiteLLM's proxy, beside Anthropic's own counts

# Written out at each look they would be put together anew.
_CONTENT = (str, list, NoneType)
_REASON = (str, NoneType)


class ChatWire:
    """Chat completions at one path of one engine. All methods raise EngineErrors."""

    def __init__(self, http: EngineHttp, path: str) -> None:
        self._http = http
        self._path = path
        self._name = http.name

    async def complete(self, body: Json) -> Json:
        """POST, and return a reply that has at least one choice; each has a message."""
        reply = (await self._http.post(self._path, body)).body
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if not choices or not self._are_whole(choices):
            raise self._garbled("a reply without a message")
        return reply  # type: ignore[no-any-return]

    async def stream(self, body: Json) -> AsyncGenerator[list[Json], None]:
        """Yield chunks, as many at a time as came together.

        Ends normally only when all choices have finished or [DONE] was seen: a cut is an error.
        """
        unfinished = set(range(self._choices(body)))
        begun = False
        try:
            async with aclosing(self._http.events(self._path, body, is_said=lambda: not unfinished)) as groups:
                async for events in groups:
                    if LAST_EVENT in events:
                        return
                    chunks, failure = await decoded_events(events, self._chunk)
                    for chunk in chunks:
                        unfinished -= {
                            choice.get("index", 0) for choice in chunk["choices"] if choice.get("finish_reason")
                        }
                    if chunks:
                        begun = True
                        yield chunks
                    if failure is not None:
                        failure.heard = failure.heard or begun
                        raise failure
        except (EngineTimeout, EngineUnreachable):
            if unfinished:
                raise
        if unfinished:
            raise EngineFailed(f"Engine '{self._name}' broke off in the middle of its answer.", engine=self._name)

    @staticmethod
    def _choices(body: Json) -> int:
        """How many answers a body asks for."""
        return body.get("n") or 1

    def _chunk(self, data: bytes) -> Json:
        try:
            chunk: Any = decode(data)
        except Unreadable as error:
            raise EngineProtocolError(f"Engine '{self._name}' {error}.", engine=self._name) from None
        if isinstance(chunk, dict) and chunk.get("error"):
            raise reported(self._name, self._http.said(chunk), "failed in the middle of its answer")
        if not self._are_parts(chunk.get("choices") if isinstance(chunk, dict) else None):
            raise self._garbled("an event without choices")
        return chunk  # type: ignore[no-any-return]

    @staticmethod
    def _are_whole(choices: Any) -> bool:
        return are_choices(choices, lambda choice: _is_said(choice.get("message")))

    @staticmethod
    def _are_parts(choices: Any) -> bool:
        """A delta may be missing, and stands for an empty one then."""
        return are_choices(choices, lambda choice: choice.get("delta") is None or _is_said(choice["delta"]))

    def _garbled(self, what: str) -> EngineProtocolError:
        return EngineProtocolError(f"Engine '{self._name}' sent {what}.", engine=self._name)


async def listen(chunks: AsyncGenerator[list[Json], None], tell: Callable[[str], None]) -> OpeningReply:
    """An opening out of the stream of its chunks: `tell` hears each piece. Raises what the stream raises."""
    text = StringIO()
    finish: Any = None
    usage: TokenUsage | None = None
    async with aclosing(chunks) as groups:
        async for group in groups:
            for chunk in group:
                usage = read_usage(chunk.get("usage")) or usage
                choice = first_choice(chunk)
                if piece := text_of((choice.get("delta") or {}).get("content")):
                    text.write(piece)
                    tell(piece)
                finish = choice.get("finish_reason") or finish
    return OpeningReply(text.getvalue(), opening_finish(finish), usage)


def are_choices(choices: Any, says: Callable[[Json], bool]) -> bool:
    """Whether it is a list of choices in OpenAI's shape, as far as the gateway relies on it.

    says: whether what one of them says has the shape that is wanted there.
    """
    return (
        isinstance(choices, list)
        and len(choices) <= MAX_CHOICES
        and all(
            isinstance(choice, dict)
            and isinstance(index := choice.get("index", 0), int)
            and 0 <= index < MAX_CHOICES
            and isinstance(choice.get("finish_reason"), _REASON)
            and says(choice)
            for choice in choices
        )
    )


def _is_said(said: Any) -> bool:
    return isinstance(said, dict) and isinstance(said.get("content"), _CONTENT)


def opening_body(request: OpeningRequest) -> Json:
    """What an opening asks for in OpenAI's names, but for the model and what it reads."""
    body: Json = {"max_tokens": request.max_tokens, "temperature": request.temperature}
    if request.top_p is not None:
        body["top_p"] = request.top_p
    if request.seed is not None:
        body["seed"] = request.seed
    if request.stop:
        body["stop"] = list(request.stop)
    return body


def opening_finish(reason: Any) -> Finish:
    """Why a teacher ended. What is not known to be an end is a cut: then the student goes on, and nothing is lost."""
    return "stop" if reason in _ENDED else "length"


def read_usage(usage: Any) -> TokenUsage | None:
    """OpenAI's `usage` object as an engine sent it, or None when it holds no usable counts.

    Some engines count hidden reasoning in `total_tokens` alone: the output is at least the total less the prompt.
    """
    if not isinstance(usage, dict):
        return None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (is_count(read) and is_count(written)) or read == 0:
        return None  # no chat has an empty prompt: an engine that says 0 did not count
    if is_count(total := usage.get("total_tokens")):
        written = max(written, total - read)
    details = usage.get("prompt_tokens_details")
    if not isinstance(details, dict):
        if _PROXY_CACHE_WRITES not in usage:
            return TokenUsage(read, written)
        details = {}
    reported = [details.get(name) for name in _CACHE_WRITES]
    reported.append(usage.get(_PROXY_CACHE_WRITES))
    stored = min(read, max(filter(is_count, reported), default=0))
    cached = details.get("cached_tokens")
    return TokenUsage(
        read, written, min(cached, read - stored) if is_count(cached) else 0, cache_write_input_tokens=stored
    )


def is_count(value: Any) -> TypeGuard[int]:
    """Whether an engine's number of tokens can be one: no receipt could be kept with a larger one."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS


def tokens_of(value: Any) -> int | None:
    """Return a positive number of tokens as an engine reported it, or None."""
    return value if is_count(value) and value > 0 else None
