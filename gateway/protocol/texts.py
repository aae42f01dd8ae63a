"""What is read as it stands: one text or several, each in words or as token ids. `prompt` and `input` are such."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from gateway.errors import InvalidRequest
from gateway.protocol.token_ids import MAX_ID, TokenId

if TYPE_CHECKING:
    from collections.abc import Sequence

Text = str | list[int]

_IDS = {"type": "integer", "minimum": 0, "maximum": MAX_ID}
# What `each_text` asks for beyond the types: one kind only, and nothing empty.
_ONE_KIND = {
    "anyOf": [
        {"items": {"type": "string", "minLength": 1}},
        {"items": _IDS},
        {"items": {"type": "array", "items": _IDS, "minItems": 1}},
    ]
}
Texts = (
    Annotated[str, Meta(extra_json_schema={"minLength": 1})]
    | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1, extra_json_schema=_ONE_KIND)]
)


def each_text(texts: str | Sequence[str | int | list[int]], field: str) -> list[Text]:
    """The texts one by one. Raises InvalidRequest where one is empty, or is of another kind than the first."""
    if isinstance(texts, str):
        return [_not_empty(texts, field)]
    kind = type(texts[0])
    for index, text in enumerate(texts):
        if type(text) is not kind:
            at = f"{field}[{index}]"
            raise InvalidRequest(f"'{at}': send strings, token ids or lists of token ids, and one kind only.", param=at)
    if kind is int:
        return [_token_ids(texts, field)]  # type: ignore[arg-type]
    if kind is list:
        return [_token_ids(ids, f"{field}[{index}]") for index, ids in enumerate(texts)]  # type: ignore[arg-type]
    return [_not_empty(text, f"{field}[{index}]") for index, text in enumerate(texts)]  # type: ignore[arg-type]


def _not_empty(text: str, at: str) -> str:
    if not text:
        raise InvalidRequest(f"'{at}' is empty. Send at least one character.", param=at)
    return text


def _token_ids(ids: list[int], at: str) -> list[int]:
    if not ids:
        raise InvalidRequest(f"'{at}' is empty. Send at least one token id.", param=at)
    return ids
