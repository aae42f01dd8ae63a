"""Requests to /v1/embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta, Struct

from gateway.errors import InvalidRequest
from gateway.protocol.body import read_body
from gateway.protocol.tags import metadata_of, take_tags
from gateway.protocol.texts import FilledTexts, each_text
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from gateway.protocol.body import Json
    from gateway.protocol.texts import Text

MAX_INPUTS = 2048
_ENCODINGS = ("float", "base64")


class EmbeddingsBody(Struct, frozen=True):
    """The fields of /v1/embeddings that the gateway reads, with OpenAI's ranges."""

    model: Annotated[str, Meta(min_length=1)]
    input: FilledTexts
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    encoding_format: Annotated[str, Meta(extra_json_schema={"enum": list(_ENCODINGS)})] | None = None
    user: str | None = None


class EmbeddingsRequest(Record, frozen=True):
    """A checked request. `body` is the body as the caller sent it; do not change it."""

    body: Json
    model: str
    inputs: list[Text]  # one vector each
    size_bytes: int
    tags: tuple[str, ...] = ()  # of `metadata`
    metadata: Json | None = None  # as the caller sent it
    choices: ClassVar[int] = 0
    generated_choices: ClassVar[int] = 0
    non_text_parts: ClassVar[int] = 0


def parse_embeddings(raw: bytes) -> EmbeddingsRequest:
    """Decode and check the body of an embeddings request. Raises InvalidRequest with the field."""
    body, known = read_body(raw, EmbeddingsBody, "'model' and 'input'")
    inputs = each_text(body["input"], "input")
    if len(inputs) > MAX_INPUTS:
        raise InvalidRequest(f"'input' holds {len(inputs)} texts: send at most {MAX_INPUTS} at once.", param="input")
    if known.encoding_format is not None and known.encoding_format not in _ENCODINGS:
        raise InvalidRequest("'encoding_format': use 'float' or 'base64'.", param="encoding_format")
    metadata = metadata_of(body)
    return EmbeddingsRequest(body, known.model, inputs, len(raw), take_tags(body), metadata)
