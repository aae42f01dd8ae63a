"""Conditions of a route's `when` on requests. Pure, and bounded in time.

RE2 matches patterns in time linear in the text, for every pattern. Only the first MAX_TEXT_CHARS of a request are
matched.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import re2
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from gateway.config.scalars import Flag, InvalidValue, Whole, text_pattern
from gateway.config.yaml_source import StrictModel
from gateway.protocol.chat import ChatRequest
from gateway.protocol.messages import text_of
from gateway.protocol.tags import RULE, TAG, tags_of
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.protocol.requests import AnyRequest

MAX_TEXT_CHARS = 64_000
_MAX_PATTERN_CHARS = 1000
# A pattern that RE2 cannot run as a DFA takes 2 ns per instruction and character: 0.13 s for a whole text.
_MAX_PROGRAM = 1000
_MAX_NUMBER = 2**53
_BOUNDS = (
    ("eq", "", operator.eq), ("gte", "at least ", operator.ge), ("gt", "more than ", operator.gt),
    ("lte", "at most ", operator.le), ("lt", "less than ", operator.lt),
)  # fmt: skip
_MAX_REASONS = 3
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}", re.ASCII)
_SECRET_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "set-cookie", "api-key", "x-api-key", "x-goog-api-key"}
)
_LOOK_AROUND = ("(?=", "(?!", "(?<=", "(?<!")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression, as text and compiled. Patterns with equal text are equal."""

    text: str
    compiled: Any = field(compare=False, repr=False)

    def matches_text(self, text: bytes) -> bool:
        """Return whether the pattern matches anywhere in UTF-8 text. Releases the GIL."""
        return self.compiled.search(text) is not None


def to_pattern(value: object) -> Pattern:
    """Return the compiled regular expression. Raises InvalidValue with the reason if RE2 rejects it."""
    if isinstance(value, Pattern):
        return value
    if not isinstance(value, str) or not value:
        raise InvalidValue("must be a regular expression: put it in quotes")
    if len(value) > _MAX_PATTERN_CHARS:
        raise InvalidValue(f"must have at most {_MAX_PATTERN_CHARS} characters")
    options = re2.Options()
    options.never_capture, options.log_errors = True, False
    try:
        compiled = re2.compile(value.encode(), options)
    except re2.error as error:
        raise InvalidValue(_message_of(value, error.args[0].decode("utf-8", "replace"))) from None
    except UnicodeEncodeError:
        raise InvalidValue("contains half of a surrogate pair: remove it") from None
    if max(compiled.programsize, compiled.reverseprogramsize) > _MAX_PROGRAM:
        raise InvalidValue(
            "would take too long: shorten its repetitions, like .{0,300}, or leave their upper bound open"
        )
    return Pattern(value, compiled)


def _message_of(pattern: str, error: str) -> str:
    """Return RE2's error as a message, with its position in the pattern."""
    what, _, part = error.partition(": ")
    at = pattern.find(part) + 1 if part and part != pattern else 0
    where = f" at character {at}" if at else ""
    if what in {"missing )", "missing ]"}:
        return f"is no regular expression: a '{'(' if what[-1] == ')' else '['}' is never closed"
    if what == "unexpected )":
        return "is no regular expression: a ')' closes nothing; for the character itself write \\)"
    if what == "invalid perl operator" and part.startswith(_LOOK_AROUND):
        return f"has look-around{where}, which takes more than linear time: RE2 has none"
    if what == "invalid escape sequence" and part[1:].isdigit():
        return f"has a back-reference{where}, which takes more than linear time: RE2 has none"
    if what == "no argument for repetition operator":
        return f"is no regular expression: '{part}'{where} has nothing to repeat; for the character write \\{part}"
    if what == "invalid repetition size":
        return f"repeats too often, or backwards: '{part}'{where}; at most 1000 times in all"
    if what.startswith("trailing"):
        return "is no regular expression: it ends in a single \\; for the character itself write \\\\"
    return f"is no regular expression of RE2: {what}{f' {part!r}' if at else ''}{where}"


PatternText: TypeAlias = Annotated[
    Pattern, BeforeValidator(to_pattern, json_schema_input_type=Annotated[str, Field(min_length=1, max_length=1000)])
]
"""A regular expression of RE2."""

Bound: TypeAlias = Annotated[Whole, Field(ge=0, le=_MAX_NUMBER)]


class NumberRange(StrictModel):
    """Bounds of a number; all given bounds must hold."""

    gte: Bound | None = None
    """At least this number."""
    gt: Bound | None = None
    """More than this number."""
    lte: Bound | None = None
    """At most this number."""
    lt: Bound | None = None
    """Less than this number."""
    eq: Bound | None = None
    """Exactly this number."""

    @model_validator(mode="after")
    def _is_satisfiable(self) -> NumberRange:
        low = max(0, self.gte or 0, -1 if self.gt is None else self.gt + 1, self.eq or 0)
        high = min(
            _MAX_NUMBER if one is None else one for one in (self.lte, None if self.lt is None else self.lt - 1, self.eq)
        )
        if not self.model_fields_set:
            raise InvalidValue("empty: write a number, or one or two of gte, gt, lte, lt")
        if low > high:
            raise InvalidValue("no number satisfies all bounds")
        return self

    def mismatch(self, number: int) -> str | None:
        """Return the first bound that the number violates; None if it satisfies all."""
        for name, sign, holds in _BOUNDS:
            if (bound := getattr(self, name)) is not None and not holds(number, bound):
                return f"not {sign}{bound}"
        return None


def _bounds(value: object) -> object:
    return {"eq": value} if isinstance(value, int) and not isinstance(value, bool) else value


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
        for name in headers:
            if not isinstance(name, str) or not _HEADER.fullmatch(name.lower()):
                raise InvalidValue("a header name consists of letters, digits and -, like x-team: correct the name")
            if name.lower() in _SECRET_HEADERS:
                raise InvalidValue(f"{name.lower()} may contain a secret and cannot be a condition: use another header")
        if len({name.lower() for name in headers}) < len(headers):
            raise InvalidValue("has a header twice: names are case-insensitive")
        return {name.lower(): rule for name, rule in headers.items()}

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

    def __init__(self, request: AnyRequest, headers: Mapping[str, str]) -> None:
        self._request = request
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
