"""The clients of OpenAI's completions routes, and readers of their replies. All engine classes share them."""

from __future__ import annotations

from contextlib import aclosing
from io import StringIO
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeGuard

from gateway.engines.base import CONTENT_FILTER, TeacherReply, TokenUsage
from gateway.engines.http import LAST_EVENT
from gateway.engines.replies import aborted, bad_reply, closed_early, finish_reason, first_choice
from gateway.engines.reply_json import Unreadable, are_few, decode, in_thread
from gateway.engines.token_ends import token_ends, token_texts
from gateway.errors import EngineError, EngineTimeout, EngineUnreachable
from gateway.protocol.body import MAX_CHOICES, MAX_TOKENS
from gateway.protocol.content_run import ContentRun, each_chunk, template_of
from gateway.protocol.messages import text_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from gateway.engines.base import Finish, TeacherRequest
    from gateway.engines.http import EngineHttp
    from gateway.protocol.body import Json
    from gateway.protocol.content_run import ChunkGroup, ChunkTemplate

# vLLM and SGLang end a request so that the operator aborts, also by putting the engine to sleep.
_ABORTED = "abort"

# Names of the tokens written to the prompt cache, in `prompt_tokens_details`. In this order: OpenAI, OpenRouter and
# LiteLLM; older LiteLLM; Alibaba Cloud Model Studio (DashScope).
_CACHE_WRITES = ("cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens")
_PROXY_CACHE_WRITES = "cache_creation_input_tokens"  # in `usage` itself: LiteLLM's proxy
CACHE_WRITE_DETAILS = "cache_creation_token_details"
"""LiteLLM's name of the cache writes by lifetime, with Anthropic's names of the lifetimes."""

# llama.cpp sends this event first in a stream for several prompts.
_NO_CHUNK = b"null"

# Constants, since `isinstance` would otherwise build the tuples at each call.
_CONTENT = (str, list, NoneType)
_OPTIONAL_TEXT = (str, NoneType)


class ChatWire:
    """The chat completions route of one engine. All methods raise EngineErrors."""

    def __init__(self, http: EngineHttp, path: str) -> None:
        self._http = http
        self._path = path
        self._name = http.name

    async def complete(self, body: Json) -> Json:
        """POST a body and return the reply, which has at least one choice. Each choice has a message."""
        reply = (await self._http.post(self._path, body)).body
        choices = reply.get("choices") if isinstance(reply, dict) else None
        if not choices or not self._are_whole(choices):
            raise bad_reply(self._name, "a reply without a message")
        if choices[0].get("finish_reason") == _ABORTED:
            raise aborted(self._name)
        for choice in choices:
            if finish := choice.get("finish_reason"):
                choice["finish_reason"] = finish_reason(finish)
        return reply  # type: ignore[no-any-return]

    async def stream(self, body: Json) -> AsyncGenerator[ChunkGroup, None]:
        """Yield chunks, grouped as they arrived. Without an error all choices have finished, or [DONE] came."""
        unfinished = set(range(self._choices(body)))
        reader = ChunkReader(self._chunk, may_start_with_null=self._prompts(body) > 1)
        started = False
        try:
            async with aclosing(self._http.events(self._path, body, is_complete=lambda: not unfinished)) as groups:
                async for events in groups:
                    if LAST_EVENT in events:
                        return
                    chunks, failure = reader.read(events) if are_few(events) else await in_thread(reader.read, events)
                    if self._finish(chunks, unfinished):
                        failure = aborted(self._name)
                    if chunks:
                        started = True
                        yield chunks
                    if failure is not None:
                        failure.may_have_run = failure.may_have_run or started
                        raise failure
        except (EngineTimeout, EngineUnreachable):
            if unfinished:
                raise
        if unfinished:
            raise closed_early(self._name)

    @staticmethod
    def _finish(chunks: list[Json | ContentRun], unfinished: set[int]) -> bool:
        """Remove the finished choices from `unfinished`. Return whether the engine aborted one."""
        is_aborted = False
        for chunk in chunks:
            if not isinstance(chunk, ContentRun):
                for choice in chunk["choices"]:
                    if finish := choice.get("finish_reason"):
                        unfinished.discard(choice.get("index", 0))
                        if finish == _ABORTED:
                            choice["finish_reason"], is_aborted = None, True
                        else:
                            choice["finish_reason"] = finish_reason(finish)
        return is_aborted

    @classmethod
    def _choices(cls, body: Json) -> int:
        return cls._prompts(body) * (body.get("n") or 1)

    @staticmethod
    def _prompts(_: Json) -> int:
        return 1

    def _chunk(self, data: bytes) -> Json:
        try:
            chunk: Any = decode(data)
        except Unreadable:
            chunk = None
        if not isinstance(chunk, dict) or chunk.get("error") or not self._are_parts(chunk.get("choices")):
            self._http.read_event(data)  # raises for invalid JSON and for an error that the engine reports
            raise bad_reply(self._name, "an event without choices")
        return chunk

    @staticmethod
    def _are_whole(choices: Any) -> bool:
        return _are_choices(choices, _has_message)

    @staticmethod
    def _are_parts(choices: Any) -> bool:
        """Return whether the choices of a chunk are valid. A missing delta counts as an empty one."""
        return _are_choices(choices, lambda choice: choice.get("delta") is None or _is_message(choice["delta"]))


class ChunkReader:
    """Decode the events of one stream. `decode` is called for events that differ in more than their content.

    `may_start_with_null`: the first event of the stream is skipped if it is null.
    """

    # Templates that no event matched, after which the events of a stream are expected to differ.
    _MAX_MISSES = 8

    def __init__(self, decode: Callable[[bytes], Json], *, may_start_with_null: bool = False) -> None:
        self._decode = decode
        self._may_be_null = may_start_with_null
        self._template: ChunkTemplate | None = None
        self._misses = 0

    def read(self, events: list[bytes]) -> tuple[list[Json | ContentRun], EngineError | None]:
        """Return the chunks before the first EngineError, and this error."""
        chunks: list[Json | ContentRun] = []
        contents: list[str] | None = None
        template = self._template
        if self._may_be_null and events:
            self._may_be_null = False
            if events[0] == _NO_CHUNK:
                events = events[1:]
        for event in events:
            if template is not None and (content := template.content_of(event)) is not None:
                if contents is None:
                    contents = []
                    chunks.append(ContentRun(template, contents))
                    self._misses = 0
                contents.append(content)
                continue
            try:
                chunk = self._decode(event)
            except EngineError as error:
                return chunks, error
            chunks.append(chunk)
            contents = None
            if self._misses < self._MAX_MISSES and (found := template_of(event, chunk)) is not None:
                self._template = template = found
                self._misses += 1
        return chunks, None


class TextWire(ChatWire):
    """The text completions route: for chats that continue as raw prompts, and for text completions of callers."""

    @staticmethod
    def _prompts(body: Json) -> int:
        prompt = body.get("prompt")
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)  # all items have one type
        return len(prompt or ()) if several else 1

    @staticmethod
    def _are_whole(choices: Any) -> bool:
        return _are_choices(choices, lambda choice: isinstance(choice.get("text"), str))

    @staticmethod
    def _are_parts(choices: Any) -> bool:
        return _are_choices(choices, lambda choice: isinstance(choice.get("text"), _OPTIONAL_TEXT))


async def collect_stream(chunks: AsyncGenerator[ChunkGroup, None], on_text: Callable[[str], None]) -> TeacherReply:
    """Return the reply that a stream of chunks contains, and call `on_text` with each piece of its text."""
    text = StringIO()
    finish: Any = None
    usage: TokenUsage | None = None
    tokens: list[str] = []
    async with aclosing(chunks) as groups:
        async for group in groups:
            for chunk in each_chunk(group):
                usage = read_usage(chunk.get("usage")) or usage
                choice = first_choice(chunk)
                if (reported := token_texts(choice) if choice.get("logprobs") else None) is not None:
                    tokens += reported
                if piece := text_of((choice.get("delta") or {}).get("content")):
                    text.write(piece)
                    if reported is not None and len(reported) > 1 and "".join(reported) == piece:
                        for token in filter(None, reported):
                            on_text(token)
                    else:
                        on_text(piece)
                finish = choice.get("finish_reason") or finish
    ends = token_ends(text.getvalue(), tokens) if tokens else None
    return TeacherReply(text.getvalue(), teacher_finish(finish), usage, token_ends=ends)


def _are_choices(choices: Any, has_content: Callable[[Json], bool]) -> bool:
    """Return whether a value is a list of choices in OpenAI's shape, as far as the gateway relies on it."""
    if not isinstance(choices, list) or len(choices) > MAX_CHOICES:
        return False
    for choice in choices:
        if not isinstance(choice, dict):
            return False
        index = choice.get("index", 0)
        if not isinstance(index, int) or not 0 <= index < MAX_CHOICES:
            return False
        if not isinstance(choice.get("finish_reason"), _OPTIONAL_TEXT) or not has_content(choice):
            return False
    return True


def _has_message(choice: Json) -> bool:
    return _is_message(choice.get("message"))


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and isinstance(message.get("content"), _CONTENT)


def sampling_body(request: TeacherRequest) -> Json:
    """Return the token limit and sampling parameters of a request in OpenAI's names, without model and prompt."""
    body: Json = {"max_tokens": request.max_tokens, "temperature": request.temperature}
    if request.top_p is not None:
        body["top_p"] = request.top_p
    if request.seed is not None:
        body["seed"] = request.seed
    if request.stop:
        body["stop"] = list(request.stop)
    if request.constraints is not None:
        body.update(request.constraints)
    return body


def token_fields(request: TeacherRequest, of_chat: Mapping[str, Any]) -> Json:
    """Return the fields that request the text of each token, which are `of_chat` for a chat.

    Token ids alone do not show how many tokens a part of the text has, and come with the ids of the prompt.
    """
    if request.messages is not None:
        return {**of_chat}
    return {name: value for name, value in of_chat.items() if name != "top_logprobs"} | {
        "logprobs": of_chat["top_logprobs"]
    }


def teacher_finish(reason: Any) -> Finish:
    """Return how the teacher's text ended. An unknown reason counts as `length`, so that the student continues."""
    if not isinstance(reason, str):
        return "length"
    if reason == CONTENT_FILTER:
        return CONTENT_FILTER
    return "stop" if finish_reason(reason) == "stop" else "length"


def teacher_reply(engine: str, reply: Json, text: Any) -> TeacherReply:
    """Return the teacher's reply with this text. Raises EngineProtocolError if it is no text."""
    choice = first_choice(reply)
    finish = teacher_finish(choice.get("finish_reason"))
    if text is None and finish == CONTENT_FILTER:
        text = ""
    if not isinstance(text, str):
        raise bad_reply(engine, "a reply without text")
    tokens = token_texts(choice) if choice.get("logprobs") else None
    ends = token_ends(text, tokens) if tokens else None
    return TeacherReply(text, finish, read_usage(reply.get("usage")), token_ends=ends)


def read_usage(usage: Any) -> TokenUsage | None:
    """Return the counts of an engine's `usage` object; None if it contains no usable counts.

    Some engines count hidden reasoning only in `total_tokens`. The output is at least the total minus the prompt.
    """
    if not isinstance(usage, dict):
        return None
    read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not (is_count(read) and is_count(written)) or read == 0:
        return None  # no chat has an empty prompt, so the engine did not count
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
        read,
        written,
        min(cached, read - stored) if is_count(cached) else 0,
        cache_write_input_tokens=stored,
        cache_write_1h_input_tokens=_stored_1h(details, usage, stored) if stored else None,
        no_cache_reads=is_count(cached) and cached == 0,
    )


def _stored_1h(details: Json, usage: Json, stored: int) -> int | None:
    """Return the tokens written to the cache for one hour; None if not reported.

    Tokens without a reported lifetime count as written for one hour.
    """
    lifetimes = details.get(CACHE_WRITE_DETAILS) or usage.get("cache_creation")
    if not isinstance(lifetimes, dict):
        return None
    short, long = lifetimes.get("ephemeral_5m_input_tokens"), lifetimes.get("ephemeral_1h_input_tokens")
    if not (is_count(short) or is_count(long)):
        return None
    return min(stored, max(long if is_count(long) else 0, stored - (short if is_count(short) else 0)))


def is_count(value: Any) -> TypeGuard[int]:
    """Return whether a value is a token count within the range that receipts can store."""
    return type(value) is int and 0 <= value <= MAX_TOKENS


def tokens_of(value: Any) -> int | None:
    """Return a positive token count that an engine reported, or None."""
    return value if is_count(value) and value > 0 else None
