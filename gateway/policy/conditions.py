"""Conditions of a route's `when` on requests. Pure, and bounded in time.

RE2 matches patterns in time linear in the text, for every pattern. Only the first MAX_TEXT_CHARS of a request are
matched.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from gateway.config.scalars import Flag, InvalidValue, LabelName, Whole, label_names, text_pattern
from gateway.config.yaml_source import StrictModel
from gateway.policy.header_names import checked_header
from gateway.policy.labels import LabelValue, read_request_labels
from gateway.policy.patterns import PatternText
from gateway.protocol.chat import ChatRequest
from gateway.protocol.messages import text_of
from gateway.protocol.tags import RULE, TAG, tags_of
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.policy.book import Caller
    from gateway.protocol.requests import AnyRequest

MAX_TEXT_CHARS = 64_000
_MAX_NUMBER = 2**53
_MAX_REASONS = 3


Bound: TypeAlias = Annotated[Whole, Field(ge=0, le=_MAX_NUMBER)]


class NumberRange(StrictModel):
    """Bounds of a number; all given bounds must hold."""

    gte: Bound | None = None
    """At least this number."""
    lt: Bound | None = None
    """Less than this number."""

    @model_validator(mode="after")
    def _is_satisfiable(self) -> NumberRange:
        if self.gte is None and self.lt is None:
            raise InvalidValue("empty: write a number, or bounds: gte, lt or both")
        if self.lt is not None and self.lt <= (self.gte or 0):
            raise InvalidValue("no number satisfies all bounds")
        return self

    def mismatch(self, number: int) -> str | None:
        """Return the first bound that the number violates; None if it satisfies all."""
        if self.gte is not None and number < self.gte:
            return f"not at least {self.gte}"
        if self.lt is not None and number >= self.lt:
            return f"not less than {self.lt}"
        return None


def _bounds(value: object) -> object:
    """Return the bounds of a single number."""
    return {"gte": value, "lt": value + 1} if isinstance(value, int) and not isinstance(value, bool) else value


NumberIs: TypeAlias = Annotated[NumberRange, BeforeValidator(_bounds, json_schema_input_type=Bound | NumberRange)]
"""A number, or bounds."""


class HeaderRule(StrictModel):
    """Condition on a request header."""

    equals: Annotated[str, Field(max_length=1000)] | None = None
    """The exact value."""
    matches: PatternText | None = None
    """A regular expression that matches anywhere in the value."""
    present: Flag | None = None
    """true: the header is present, with any value. false: the header is absent."""

    @model_validator(mode="after")
    def _exactly_one(self) -> HeaderRule:
        if len(self.model_fields_set) != 1:
            raise InvalidValue("must be one of: the value itself, {matches: ...}, {present: true}, {present: false}")
        return self

    def mismatch(self, value: str | None) -> str | None:
        """Return why the header does not match; None if it does. The reason contains no header value."""
        if self.present is False:
            return None if value is None else "is sent"
        if value is None:
            return "is not sent"
        if self.equals is not None and value != self.equals:
            return "has another value"
        if self.matches is not None and not self.matches.matches_text(value.encode("utf-8", "replace")):
            return "does not match"
        return None


def _header_rule(value: object) -> object:
    if isinstance(value, str):
        return {"equals": value}
    if not isinstance(value, dict | HeaderRule):
        raise InvalidValue("must be the value in quotes, or {matches: ...}, {present: true}, {present: false}")
    return value


HeaderIs: TypeAlias = Annotated[HeaderRule, BeforeValidator(_header_rule, json_schema_input_type=str | HeaderRule)]
"""A value, or a rule."""
Words: TypeAlias = Annotated[str, Field(min_length=1, max_length=1000)]


def as_list(value: object) -> object:
    """Return a single text as a list."""
    return [value] if isinstance(value, str) else value


def _tag(value: str) -> str:
    if not TAG.fullmatch(value):
        raise InvalidValue(f"must be {RULE}")
    return value


TagText: TypeAlias = Annotated[str, AfterValidator(_tag), text_pattern(TAG.pattern)]
"""A tag."""


LabelIs: TypeAlias = Annotated[
    tuple[LabelValue, ...],
    Field(min_length=1, max_length=100),
    BeforeValidator(as_list, json_schema_input_type=LabelValue | tuple[LabelValue, ...]),
]
"""A value of a label, or several."""


class RouteCondition(StrictModel):
    """Condition on requests. All given parts must hold."""

    prompt_bytes: NumberIs | None = None
    """Size of the request body in bytes: text, images, tools and the JSON around them."""
    max_tokens: NumberIs | None = None
    """The caller's max_tokens, else the route's default_max_tokens; without both, the condition does not hold."""
    tools: Flag | None = None
    """Whether the request offers tools or functions."""
    stream: Flag | None = None
    """Whether the answer is streamed."""
    header: Annotated[dict[str, HeaderIs], Field(min_length=1, max_length=16)] | None = None
    """Headers by name: a value, {matches: a regular expression} or {present: true}. No headers with secrets."""
    tags: (
        Annotated[
            tuple[TagText, ...],
            Field(min_length=1, max_length=100),
            BeforeValidator(as_list, json_schema_input_type=TagText | tuple[TagText, ...]),
        ]
        | None
    ) = None
    """A tag of the request, or several of which one must be among its tags."""
    labels: (
        Annotated[dict[LabelName, LabelIs], Field(min_length=1, max_length=8), BeforeValidator(label_names)] | None
    ) = None
    """Labels of the request by name: a value, or several of which it must have one."""
    contains: (
        Annotated[
            tuple[Words, ...],
            Field(min_length=1, max_length=100),
            BeforeValidator(as_list, json_schema_input_type=Words | tuple[Words, ...]),
        ]
        | None
    ) = None
    """A text, or several of which one must occur in the first 64,000 characters; case-insensitive."""
    matches: PatternText | None = None
    """An RE2 regular expression that matches anywhere in the first 64,000 characters."""
    any_of: Annotated[tuple[RouteCondition, ...], Field(min_length=1, max_length=20)] | None = Field(None, alias="any")
    """Several conditions, of which one must hold."""
    none_of: RouteCondition | None = Field(None, alias="not")
    """A condition that must not hold."""

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        if value is None:
            raise InvalidValue("empty: write a value, or remove the line")
        return value

    @field_validator("header", mode="before")
    @classmethod
    def _valid_header_names(cls, headers: object) -> object:
        if not isinstance(headers, dict):
            return headers
        named = [(checked_header(name, "condition"), rule) for name, rule in headers.items()]
        if len(dict(named)) < len(headers):
            raise InvalidValue("has a header twice: names are case-insensitive")
        return dict(named)

    @model_validator(mode="after")
    def _has_a_part(self) -> RouteCondition:
        if not self.model_fields_set:
            raise InvalidValue("empty: add a condition, or remove it: a route without `when` matches every request")
        return self

    @cached_property
    def reads_text(self) -> bool:
        """Return whether the condition reads the request's text."""
        return self.names("contains") or self.names("matches")

    def names(self, condition: str) -> bool:
        """Return whether the condition uses this field, also in nested conditions; `condition` is its name in YAML."""
        parts = (*(self.any_of or ()), *((self.none_of,) if self.none_of else ()))
        return getattr(self, condition) is not None or any(part.names(condition) for part in parts)

    @property
    def named_labels(self) -> tuple[str, ...]:
        """Return the labels that the condition reads, also in nested conditions."""
        parts = (*(self.any_of or ()), *((self.none_of,) if self.none_of else ()))
        return (*(self.labels or ()), *(name for part in parts for name in part.named_labels))

    def mismatch(self, facts: RequestFacts, default_max_tokens: int | None) -> str | None:
        """Return the first part that does not hold, in a few words; None if all hold. It contains no request text."""
        return (
            self._mismatch_of_size(facts, default_max_tokens)
            or self._mismatch_of_text(facts)
            or self._mismatch_of_parts(facts, default_max_tokens)
        )

    def _mismatch_of_size(self, facts: RequestFacts, default_max_tokens: int | None) -> str | None:
        if self.tools is not None and facts.tools != self.tools:
            return "it offers no tools" if self.tools else "it offers tools"
        if self.stream is not None and facts.stream != self.stream:
            return "it is not streamed" if self.stream else "it is streamed"
        if self.prompt_bytes is not None and (reason := self.prompt_bytes.mismatch(facts.prompt_bytes)):
            return f"prompt_bytes is {facts.prompt_bytes}, {reason}"
        if self.max_tokens is not None:
            limit = facts.max_tokens if facts.max_tokens is not None else default_max_tokens
            if limit is None:
                return "max_tokens is not set"
            if reason := self.max_tokens.mismatch(limit):
                return f"max_tokens is {limit}, {reason}"
        return None

    def _mismatch_of_text(self, facts: RequestFacts) -> str | None:
        for name, rule in (self.header or {}).items():
            if reason := rule.mismatch(facts.headers.get(name)):
                return f"header {name} {reason}"
        if self.tags is not None and not any(tag in facts.tags for tag in self.tags):
            return "tags: it has none of them" if len(self.tags) > 1 else "tags: it does not have it"
        for name, values in (self.labels or {}).items():
            if facts.labels.get(name) not in values:
                return f"labels: {name} has another value"
        if self.contains is not None and not any(text.casefold() in facts.folded for text in self.contains):
            return "contains: none of it is there" if len(self.contains) > 1 else "contains: it is not there"
        if self.matches is not None and not self.matches.matches_text(facts.encoded):
            return "matches: nothing does"
        return None

    def _mismatch_of_parts(self, facts: RequestFacts, default_max_tokens: int | None) -> str | None:
        if self.any_of is not None:
            reasons = []
            for part in self.any_of:
                reason = part.mismatch(facts, default_max_tokens)
                if reason is None:
                    break
                reasons.append(reason)
            else:
                more = ", ..." if reasons[_MAX_REASONS:] else ""
                return f"any: none holds ({', '.join(reasons[:_MAX_REASONS])}{more})"
        if self.none_of is not None and self.none_of.mismatch(facts, default_max_tokens) is None:
            return "not: it holds"
        return None


class RequestFacts:
    """The facts of one request that conditions read. The text is joined once, on first use."""

    def __init__(self, request: AnyRequest, headers: Mapping[str, str], caller: Caller | None = None) -> None:
        self._request, self._caller = request, caller
        self.headers = headers
        self.prompt_bytes = request.size_bytes
        completion = request if isinstance(request, ChatRequest | TextRequest) else None
        self.max_tokens = completion.max_tokens if completion is not None else None
        self.stream = completion is not None and completion.stream
        offered = request.body.get("tools") or request.body.get("functions")
        self.tools = isinstance(request, ChatRequest) and bool(offered)

    @cached_property
    def tags(self) -> tuple[str, ...]:
        """Return the tags. Raises InvalidRequest for an invalid header."""
        return tags_of(self.headers, self._request.tags)

    @cached_property
    def labels(self) -> dict[str, str]:
        """Return the values of labels that sources have. Raises InvalidRequest as `read_labels`."""
        found = read_request_labels(self._caller, self.headers, self._request) if self._caller is not None else {}
        return {name: one.value for name, one in found.items()}

    @cached_property
    def text(self) -> str:
        """Return the joined text of all messages, or of the prompt or input: its first MAX_TEXT_CHARS."""
        parts, remaining = [], MAX_TEXT_CHARS
        for text in _texts_of(self._request):
            parts.append(text[:remaining])
            remaining -= len(text) + 1
            if remaining <= 0:
                break
        return "\n".join(parts)

    @cached_property
    def folded(self) -> str:
        """Return the case-folded text, for `contains`."""
        return self.text.casefold()

    @cached_property
    def encoded(self) -> bytes:
        """Return the UTF-8 text, for RE2."""
        return self.text.encode("utf-8", "replace")


def _texts_of(request: AnyRequest) -> Iterator[str]:
    if isinstance(request, ChatRequest):
        for message in request.messages:
            if text := text_of(message.get("content")):
                yield text
    else:
        texts = request.body["prompt" if isinstance(request, TextRequest) else "input"]
        for text in (texts,) if isinstance(texts, str) else texts:
            if isinstance(text, str):
                yield text
