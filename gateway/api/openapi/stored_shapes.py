"""Replies of the routes for stored responses."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct


class DeletedResponse(Struct):
    """Reply to the deletion of a stored response."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputItems(Struct):
    """A page of the input items of a stored response."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
