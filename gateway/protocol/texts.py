"""The fields `prompt` and `input`: one text or several, each as a string or as token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from gateway.errors import InvalidRequest
from gateway.protocol.token_ids import MAX_ID, TokenId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.protocol.body import Json

Text = str | list[int]

_IDS: Json = {"type": "integer", "minimum": 0, "maximum": MAX_ID}


def _of_one_kind(text: Json) -> Json:
    """Return the JSON schema of what `each_text` requires of a list beyond its types."""
    return {"anyOf": [{"items": text}, {"items": _IDS}, {"items": {"type": "array", "items": _IDS, "minItems": 1}}]}


_NOT_EMPTY: Json = {"type": "string", "minLength": 1}
_List = list[str | TokenId | list[TokenId]]
Texts = str | Annotated[_List, Meta(min_length=1, extra_json_schema=_of_one_kind({"type": "string"}))]
"""Texts that may be empty."""
FilledTexts = (
    Annotated[str, Meta(extra_json_schema={"minLength": 1})]
    | Annotated[_List, Meta(min_length=1, extra_json_schema=_of_one_kind(_NOT_EMPTY))]
)


def each_text(texts: str | Sequence[str | int | list[int]], field: str, *, may_be_empty: bool = False) -> list[Text]:
    """Return the texts as a list.

    Raises:
        InvalidRequest: a text is of another kind than the first, or empty. A list of token ids is never empty.
    """
    if isinstance(texts, str):
        return [texts if may_be_empty else _not_empty(texts, field)]
    kind = type(texts[0])
    for index, text in enumerate(texts):
        if type(text) is not kind:
            at = f"{field}[{index}]"
            raise InvalidRequest(f"'{at}': send strings, token ids or lists of token ids, and one kind only.", param=at)
    if kind is int:
        return [_token_ids(texts, field)]  # type: ignore[arg-type]
    if kind is list:
        return [_token_ids(ids, f"{field}[{index}]") for index, ids in enumerate(texts)]  # type: ignore[arg-type]
    if may_be_empty:
        return list(texts)  # type: ignore[arg-type]
    return [_not_empty(text, f"{field}[{index}]") for index, text in enumerate(texts)]  # type: ignore[arg-type]


def _not_empty(text: str, at: str) -> str:
    if not text:
        raise InvalidRequest(f"'{at}' is empty. Send at least one character.", param=at)
    return text


def _token_ids(ids: list[int], at: str) -> list[int]:
    if not ids:
        raise InvalidRequest(f"'{at}' is empty. Send at least one token id.", param=at)
    return ids
