"""The client of the embedded teacher for its llama.cpp server, over a private unix socket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import aiohttp
import orjson

from gateway.local import tgi_errors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

CALL_LIMIT_S = 30.0
SILENCE_LIMIT_S = 300.0
_DATA = b"data: "


class TextPiece(NamedTuple):
    """A token of a text. `text` may be empty, since a character can span several tokens."""

    id: int
    text: str


class LlamaClient:
    """The client of one llama.cpp server, as an async context manager."""

    _session: aiohttp.ClientSession

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._special_texts: dict[int, str] = {}

    async def __aenter__(self) -> Self:
        # No keep-alive: llama.cpp may close an idle connection at the moment of its reuse.
        connector = aiohttp.UnixConnector(str(self._socket), limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_LIMIT_S)
        self._session = aiohttp.ClientSession("http://llama", connector=connector, timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def is_healthy(self) -> bool:
        """Return whether llama.cpp answers and has loaded its model."""
        try:
            async with self._session.get("/health", timeout=aiohttp.ClientTimeout(CALL_LIMIT_S)) as reply:
                return reply.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def busy_slots(self) -> int:
        """Return the number of requests in decoding."""
        async with self._session.get("/slots", timeout=aiohttp.ClientTimeout(CALL_LIMIT_S)) as reply:
            slots = orjson.loads(await reply.read())
        return sum(1 for slot in slots if slot["is_processing"])

    async def tokenize(self, text: str, *, special: bool) -> list[TextPiece]:
        """Return the tokens of `text`. `special` adds the model's first token (BOS), if it has one."""
        body = {"content": text, "add_special": special, "parse_special": True, "with_pieces": True}
        reply = await self._post("/tokenize", body)
        pieces = [(token["id"], token["piece"]) for token in reply["tokens"]]
        # A piece that is not valid UTF-8 is a list of bytes.
        return [TextPiece(number, piece if isinstance(piece, str) else "") for number, piece in pieces]

    async def special_text(self, token_id: int) -> str:
        """Return the text of a special token, such as `<|im_end|>`."""
        if token_id not in self._special_texts:
            self._special_texts[token_id] = (await self._post("/detokenize", {"tokens": [token_id]}))["content"]
        return self._special_texts[token_id]

    async def render(self, messages: Sequence[dict[str, Any]]) -> str:
        """Return the prompt up to the start of the assistant's turn. Raises TgiError 422 template_error."""
        try:
            reply = await self._post("/apply-template", {"messages": messages})
        except tgi_errors.TgiError as error:
            raise tgi_errors.failure("template_error", error.message) from error
        prompt: str = reply["prompt"]
        return prompt

    async def complete(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the events of llama.cpp's `/completion`, or raise TgiError 424. Closing the iterator cancels it."""
        try:
            async with self._session.post("/completion", json={**body, "stream": True}) as reply:
                if reply.status != 200:
                    raise tgi_errors.failure("generation", _cause(await reply.read()))
                async for line in reply.content:
                    if not line.startswith(_DATA):
                        continue
                    event = orjson.loads(line[len(_DATA) :])
                    if "error" in event:
                        raise tgi_errors.failure("generation", str(event["error"].get("message", event["error"])))
                    yield event
        except (aiohttp.ClientError, TimeoutError) as error:
            raise tgi_errors.failure("generation", f"llama.cpp is unreachable ({type(error).__name__})") from error

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        try:
            timeout = aiohttp.ClientTimeout(CALL_LIMIT_S)
            async with self._session.post(path, json=body, timeout=timeout) as reply:
                data = await reply.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise tgi_errors.failure("generation", f"llama.cpp is unreachable ({type(error).__name__})") from error
        if reply.status != 200:
            raise tgi_errors.failure("generation", _cause(data))
        return orjson.loads(data)


def _cause(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body.decode(errors="replace")[:200]
