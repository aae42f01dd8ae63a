"""What a route's `when` asks of a request, and whether it holds. Pure, and bounded in time.

Patterns are RE2's: the time they take grows with the text and not with the cunning of who wrote it. Of a request's
words the first MAX_TEXT_CHARS are looked at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import re2
from pydantic import BeforeValidator, Field, field_validator, model_validator

from gateway.config.scalars import Flag, InvalidValue, Whole
from gateway.config.yaml_source import StrictModel
from gateway.protocol.chat import ChatRequest
from gateway.protocol.messages import text_of
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gateway.protocol.requests import AnyRequest

MAX_TEXT_CHARS = 64_000
_MAX_PATTERN_CHARS = 1000
# A pattern that RE2 cannot run as a table takes 2 ns for each of these and each character: 0.13 s for a whole text.
_MAX_PROGRAM = 1000
_MAX_NUMBER = 2**53
_SIGNS = {"gte": "at least", "gt": "more than", "lte": "at most", "lt": "less than"}
_HEADER = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,64}", re.ASCII)
_SECRET_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "cookie", "set-cookie", "api-key", "x-api-key", "x-goog-api-key"}
)
_LOOK_AROUND = ("(?=", "(?!", "(?<=", "(?<!")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression as it was written, and compiled. Equal where it was written alike."""

    text: str
    compiled: Any = field(compare=False, repr=False)

    def found_in(self, text: bytes) -> bool:
        """Whether it matches anywhere in UTF-8 text. Other threads run meanwhile."""
        return self.compiled.search(text) is not None


def to_pattern(value: object) -> Pattern:
    """A regular expression that is compiled. Raises Wrong, which says what RE2 cannot make of it."""
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
        raise InvalidValue(_said_of(value, error.args[0].decode("utf-8", "replace"))) from None
    except UnicodeEncodeError:
        raise InvalidValue("holds a character that cannot be") from None
    if max(compiled.programsize, compiled.reverseprogramsize) > _MAX_PROGRAM:
        raise InvalidValue(
            "would take too long: shorten its repetitions, like .{0,300}, or leave their upper bound open"
        )
    return Pattern(value, compiled)


def _said_of(pattern: str, error: str) -> str:
    """What RE2 found, in words, and at which character of the pattern."""
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
    """What a number must be: all that is given must hold."""

    gte: Bound | None = None
    """At least so many."""
    gt: Bound | None = None
    """More than so many."""
    lte: Bound | None = None
    """At most so many."""
    lt: Bound | None = None
    """Fewer than so many."""
    eq: Bound | None = None
    """Exactly so many."""

    @model_validator(mode="after")
    def _some_number_fits(self) -> NumberRange:
        low = max(0, self.gte or 0, -1 if self.gt is None else self.gt + 1, self.eq or 0)
        high = min(
            _MAX_NUMBER if one is None else one for one in (self.lte, None if self.lt is None else self.lt - 1, self.eq)
        )
        if not self.model_fields_set:
            raise InvalidValue("empty: write a number, or one or two of gte, gt, lte, lt")
        if low > high:
            raise InvalidValue("no number fits all of it")
        return self

    def why_not(self, number: int) -> str | None:
        """What is asked of it and does not hold; None if all does."""
        if self.eq is not None and number != self.eq:
            return f"not {self.eq}"
        if self.gte is not None and number < self.gte:
            return f"not {_SIGNS['gte']} {self.gte}"
        if self.gt is not None and number <= self.gt:
            return f"not {_SIGNS['gt']} {self.gt}"
        if self.lte is not None and number > self.lte:
            return f"not {_SIGNS['lte']} {self.lte}"
        if self.lt is not None and number >= self.lt:
            return f"not {_SIGNS['lt']} {self.lt}"
        return None


def _bounds(value: object) -> object:
    return {"eq": value} if isinstance(value, int) and not isinstance(value, bool) else value


NumberIs: TypeAlias = Annotated[NumberRange, BeforeValidator(_bounds, json_schema_input_type=Bound | NumberRange)]
"""One number, or bounds."""


class HeaderRule(StrictModel):
    """What a header of the request must be."""

    equals: Annotated[str, Field(max_length=1000)] | None = None
    """Exactly this."""
    matches: PatternText | None = None
    """A regular expression that is found in it."""
    present: Flag | None = None
    """true: it is there, whatever it says. false: it is not there."""

    @model_validator(mode="after")
    def _one_of_them(self) -> HeaderRule:
        if len(self.model_fields_set) != 1:
            raise InvalidValue("must be one of: the value itself, {matches: ...}, {present: true}, {present: false}")
        return self

    def why_not(self, value: str | None) -> str | None:
        """Likewise. Never tells a value: not the caller's, and not the policy's."""
        if self.present is False:
            return None if value is None else "is sent"
        if value is None:
            return "is not sent"
        if self.equals is not None and value != self.equals:
            return "has another value"
        if self.matches is not None and not self.matches.found_in(value.encode("utf-8", "replace")):
            return "does not match"
        return None


def _header_rule(value: object) -> object:
    if isinstance(value, str):
        return {"equals": value}
    if not isinstance(value, dict | HeaderRule):
        raise InvalidValue("must be the value in quotes, or {matches: ...}, {present: true}, {present: false}")
    return value


HeaderIs: TypeAlias = Annotated[HeaderRule, BeforeValidator(_header_rule, json_schema_input_type=str | HeaderRule)]
"""A value alone, or a rule."""
Words: TypeAlias = Annotated[str, Field(min_length=1, max_length=1000)]


def _several(value: object) -> object:
    return [value] if isinstance(value, str) else value


class RouteCondition(StrictModel):
    """Which requests a route takes. All that is named must hold."""

    prompt_bytes: NumberIs | None = None
    """The size of the request's body in bytes: its words, images and tools, and the JSON around them."""
    max_tokens: NumberIs | None = None
    """The caller's limit on the answer; unset, the route's default_max_tokens; without one it does not hold."""
    tools: Flag | None = None
    """Whether the request offers tools or functions."""
    stream: Flag | None = None
    """Whether the answer is to be streamed."""
    header: Annotated[dict[str, HeaderIs], Field(min_length=1, max_length=16)] | None = None
    """Headers by name: a value, {matches: a regular expression} or {present: true}. Never one that carries a secret."""
    contains: (
        Annotated[
            tuple[Words, ...],
            Field(min_length=1, max_length=100),
            BeforeValidator(_several, json_schema_input_type=Words | tuple[Words, ...]),
        ]
        | None
    ) = None
    """A text, or several of which one must be there, in the first 64,000 characters; small letters equal capitals."""
    matches: PatternText | None = None
    """A regular expression of RE2 that is found in the first 64,000 characters."""
    any_of: Annotated[tuple[RouteCondition, ...], Field(min_length=1, max_length=20)] | None = Field(None, alias="any")
    """Several of the same kind as this one, of which one must hold."""
    none_of: RouteCondition | None = Field(None, alias="not")
    """One of the same kind as this one, which must not hold."""

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: object) -> object:
        if value is None:
            raise InvalidValue("empty: write a value, or remove the line")
        return value

    @field_validator("header", mode="before")
    @classmethod
    def _named_alike(cls, headers: object) -> object:
        if not isinstance(headers, dict):
            return headers
        for name in headers:
            if not isinstance(name, str) or not _HEADER.fullmatch(name.lower()):
                raise InvalidValue("the name of a header has letters, digits and -, like x-team")
            if name.lower() in _SECRET_HEADERS:
                raise InvalidValue(
                    f"{name.lower()} carries a secret and decides nothing here: take a header of your own"
                )
        if len({name.lower() for name in headers}) < len(headers):
            raise InvalidValue("names a header twice: capitals do not matter")
        return {name.lower(): rule for name, rule in headers.items()}

    @model_validator(mode="after")
    def _something(self) -> RouteCondition:
        if not self.model_fields_set:
            raise InvalidValue("empty: name a condition, or remove it: without `when` a route takes every request")
        return self

    @cached_property
    def reads_text(self) -> bool:
        """Whether it looks at the request's words."""
        parts = (*(self.any_of or ()), *((self.none_of,) if self.none_of else ()))
        return self.contains is not None or self.matches is not None or any(part.reads_text for part in parts)

    def names(self, condition: str) -> bool:
        """Whether it asks for this anywhere, by the name that YAML has for it."""
        parts = (*(self.any_of or ()), *((self.none_of,) if self.none_of else ()))
        return getattr(self, condition) is not None or any(part.names(condition) for part in parts)

    def why_not(self, facts: RequestFacts, default_max_tokens: int | None) -> str | None:
        """The first thing that does not hold, in a few words; None if all does. Never tells the request's words."""
        return (
            self._why_not_by_size(facts, default_max_tokens)
            or self._why_not_by_header(facts)
            or self._why_not_by_words(facts)
            or self._why_not_by_parts(facts, default_max_tokens)
        )

    def _why_not_by_size(self, facts: RequestFacts, default_max_tokens: int | None) -> str | None:
        if self.tools is not None and facts.tools != self.tools:
            return "it offers no tools" if self.tools else "it offers tools"
        if self.stream is not None and facts.stream != self.stream:
            return "it is not streamed" if self.stream else "it is streamed"
        if self.prompt_bytes is not None and (why := self.prompt_bytes.why_not(facts.prompt_bytes)):
            return f"prompt_bytes is {facts.prompt_bytes}, {why}"
        if self.max_tokens is not None:
            limit = facts.max_tokens if facts.max_tokens is not None else default_max_tokens
            if limit is None:
                return "max_tokens is not set"
            if why := self.max_tokens.why_not(limit):
                return f"max_tokens is {limit}, {why}"
        return None

    def _why_not_by_header(self, facts: RequestFacts) -> str | None:
        for name, rule in (self.header or {}).items():
            if why := rule.why_not(facts.headers.get(name)):
                return f"header {name} {why}"
        return None

    def _why_not_by_words(self, facts: RequestFacts) -> str | None:
        if self.contains is not None and not any(text.casefold() in facts.folded for text in self.contains):
            return "contains: none of it is there" if len(self.contains) > 1 else "contains: it is not there"
        if self.matches is not None and not self.matches.found_in(facts.encoded):
            return "matches: nothing does"
        return None

    def _why_not_by_parts(self, facts: RequestFacts, default_max_tokens: int | None) -> str | None:
        if self.any_of is not None:
            whys = []
            for part in self.any_of:
                why = part.why_not(facts, default_max_tokens)
                if why is None:
                    break
                whys.append(why)
            else:
                return f"any: none holds ({', '.join(whys[:_MOST_WHYS])}{', ...' if whys[_MOST_WHYS:] else ''})"
        if self.none_of is not None and self.none_of.why_not(facts, default_max_tokens) is None:
            return "not: it holds"
        return None


_MOST_WHYS = 3


class RequestFacts:
    """What conditions look at, of one request. The words are put together when a condition asks for them, and once."""

    def __init__(self, asked: AnyRequest, headers: Mapping[str, str]) -> None:
        self._asked = asked
        self.headers = headers

    @property
    def prompt_bytes(self) -> int:
        return self._asked.size_bytes

    @property
    def max_tokens(self) -> int | None:
        asked = self._asked
        return asked.max_tokens if isinstance(asked, ChatRequest | TextRequest) else None

    @property
    def stream(self) -> bool:
        return isinstance(self._asked, ChatRequest | TextRequest) and self._asked.stream

    @property
    def tools(self) -> bool:
        body = self._asked.body
        return isinstance(self._asked, ChatRequest) and bool(body.get("tools") or body.get("functions"))

    @cached_property
    def text(self) -> str:
        """The words of all messages, or of the prompt or input, one after the other; the first MAX_TEXT_CHARS."""
        parts, left = [], MAX_TEXT_CHARS
        for said in _words_of(self._asked):
            parts.append(said[:left])
            left -= len(said) + 1
            if left <= 0:
                break
        return "\n".join(parts)

    @cached_property
    def folded(self) -> str:
        """The text as `contains` compares it."""
        return self.text.casefold()

    @cached_property
    def encoded(self) -> bytes:
        """The text as RE2 reads it."""
        return self.text.encode("utf-8", "replace")


def _words_of(asked: AnyRequest) -> Iterator[str]:
    if isinstance(asked, ChatRequest):
        for message in asked.messages:
            if said := text_of(message.get("content")):
                yield said
    else:
        texts = asked.body["prompt" if isinstance(asked, TextRequest) else "input"]
        for text in (texts,) if isinstance(texts, str) else texts:
            if isinstance(text, str):
                yield text
