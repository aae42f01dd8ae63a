"""Requests to /v1/completions, whose raw prompt is continued."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta

from gateway.errors import InvalidRequest
from gateway.protocol.body import MAX_CHOICES, MAX_TOKENS, SamplingBody, read_body, stop_texts, wants_usage
from gateway.protocol.other_endpoint import missing_content
from gateway.protocol.tags import metadata_of, take_tags
from gateway.protocol.texts import Texts, each_text
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from gateway.protocol.body import Json

DEFAULT_TEXT_TOKENS = 16
"""OpenAI's default of `max_tokens` for text completions."""


class TextBody(SamplingBody, frozen=True, kw_only=True):
    """The fields of /v1/completions that the gateway reads, with OpenAI's ranges."""

    prompt: Texts | None = None
    max_tokens: Annotated[int, Meta(ge=0, le=MAX_TOKENS)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None


class TextRequest(Record, frozen=True):
    """A checked request. `body` is the body as the caller sent it; do not change it."""

    body: Json
    model: str
    prompt: str | None  # the only prompt; None if there are several, or token ids
    choices: int  # number of answers: n for each prompt
    max_tokens: int | None
    stop: tuple[str, ...]
    stream: bool
    wants_usage: bool
    size_bytes: int
    has_empty_prompt: bool = False
    tags: tuple[str, ...] = ()  # of `metadata`
    metadata: Json | None = None  # as the caller sent it
    non_text_parts: ClassVar[int] = 0
    limit_field: ClassVar[str] = "max_tokens"  # the name of the field in which the caller sends its token limit

    @property
    def generated_choices(self) -> int:
        """Return the number of answers that are generated, of which the best are returned."""
        n = self.body.get("n") or 1
        return self.choices // n * max(n, self.body.get("best_of") or 1)


def parse_text_completion(raw: bytes) -> TextRequest:
    """Decode and check the body of a completion request. Raises InvalidRequest with the field."""
    body, known = read_body(raw, TextBody, "'model' and 'prompt'")
    if known.prompt is None:
        if (error := missing_content(body, TextBody.__struct_fields__)) is not None:
            raise error
        body["prompt"] = ""  # OpenAI: the beginning of a new document. Engines reject null.
    prompts = each_text(body["prompt"], "prompt", may_be_empty=True)
    n, best_of = known.n or 1, known.best_of
    if len(prompts) * n > MAX_CHOICES:
        raise InvalidRequest(
            f"'prompt' and 'n' ask for {len(prompts) * n} answers: send for at most {MAX_CHOICES} at once.",
            param="prompt",
        )
    if best_of is not None and best_of < n:
        raise InvalidRequest("'best_of' must be at least 'n': the best n of so many are returned.", param="best_of")
    if known.stream and best_of is not None and best_of > n:
        raise InvalidRequest("'best_of' cannot be streamed: which one is best is known at the end.", param="best_of")
    if known.max_tokens == 0 and not known.echo:
        text = "'max_tokens' may be 0 only with 'echo': there would be nothing to return."
        raise InvalidRequest(text, param="max_tokens")
    only = prompts[0] if len(prompts) == 1 else None
    return TextRequest(
        body=body,
        model=known.model,
        prompt=only if isinstance(only, str) else None,
        choices=len(prompts) * n,
        max_tokens=known.max_tokens,
        stop=stop_texts(known.stop),
        stream=bool(known.stream),
        wants_usage=wants_usage(known.stream_options, stream=known.stream),
        size_bytes=len(raw),
        has_empty_prompt="" in prompts,
        metadata=metadata_of(body),
        tags=take_tags(body),
    )
