"""The client of OpenAI's text completions route.

The route serves chats that continue as raw prompts (`raw_prompts.py`), and text completion requests of callers.
"""

from __future__ import annotations

from types import NoneType
from typing import TYPE_CHECKING, Any

from gateway.engines.chat import ChatWire, are_choices

if TYPE_CHECKING:
    from gateway.protocol.body import Json

_TEXT = (str, NoneType)


class TextWire(ChatWire):
    """The text completions route at one path of one engine. All methods raise EngineErrors."""

    @staticmethod
    def _choices(body: Json) -> int:
        prompt = body.get("prompt")
        several = isinstance(prompt, list) and not isinstance(prompt[0], int)  # all items have one type
        return (len(prompt or ()) if several else 1) * (body.get("n") or 1)

    @staticmethod
    def _are_whole(choices: Any) -> bool:
        return are_choices(choices, lambda choice: isinstance(choice.get("text"), str))

    @staticmethod
    def _are_parts(choices: Any) -> bool:
        return are_choices(choices, lambda choice: isinstance(choice.get("text"), _TEXT))
