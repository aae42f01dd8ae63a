"""Tags of requests: labels that a caller chooses, by which conditions select routes and reports group usage.

A header has them, or `metadata.tags` of the body: a list as for LiteLLM, or a text with commas as OpenAI's type allows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

HEADER = "x-gkt-tags"
MAX_TAGS = 10
"""Most tags of one request."""
TAG = re.compile(r"[A-Za-z0-9._:/@=+-]{1,64}", re.ASCII)
LIST = re.compile(rf"({TAG.pattern}( *, *{TAG.pattern}){{0,{MAX_TAGS - 1}}})?", re.ASCII)
"""The value of the header."""
_MAX_LISTED, _MAX_TEXT_CHARS = 100, 1_000  # of `metadata.tags` that are read
RULE = "1 to 64 letters, digits or any of . _ : / @ = + -"
"""The spelling of a tag, for messages."""


def tags_of(headers: Mapping[str, str], of_body: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tags of a request, those of its header first. Raises InvalidRequest for an invalid header."""
    value = headers.get(HEADER)
    if value is None:
        return of_body
    if not LIST.fullmatch(value):
        text = f"'{HEADER}': expected at most {MAX_TAGS} tags, separated by commas, each of {RULE}."
        raise InvalidRequest(text, param=HEADER)
    return _listed((*value.split(","), *of_body))[:MAX_TAGS]


def tags_of_metadata(metadata: object) -> tuple[str, ...]:
    """Return the tags in `metadata` of a body. OpenAI allows any text there, so others are ignored."""
    tags = metadata.get("tags") if isinstance(metadata, dict) else None
    if isinstance(tags, str):
        tags = tags[:_MAX_TEXT_CHARS].split(",")
    if not isinstance(tags, list):
        return ()
    return _listed(tag for tag in tags[:_MAX_LISTED] if isinstance(tag, str) and TAG.fullmatch(tag.strip()))[:MAX_TAGS]


def metadata_of(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `metadata` of a body; None if there is none, or another type."""
    metadata = body.get("metadata")
    return metadata if isinstance(metadata, dict) else None


def take_tags(body: dict[str, Any]) -> tuple[str, ...]:
    """Return the tags in `metadata` of a body. Remove a list of tags: OpenAI rejects `metadata` with a list."""
    metadata = body.get("metadata")
    tags = tags_of_metadata(metadata)
    if isinstance(metadata, dict) and isinstance(metadata.get("tags"), list):
        rest = {name: value for name, value in metadata.items() if name != "tags"}
        body |= {"metadata": rest}
        if not rest:
            del body["metadata"]
    return tags


def _listed(tags: Iterable[str]) -> tuple[str, ...]:
    """Return each tag once, without spaces around it."""
    return tuple(dict.fromkeys(filter(None, (tag.strip() for tag in tags))))
