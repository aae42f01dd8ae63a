"""Regular expressions of RE2, which match in time linear in the text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias

import re2
from pydantic import BeforeValidator, Field

from gateway.config.scalars import InvalidValue

_MAX_PATTERN_CHARS = 1000
# A pattern that RE2 cannot run as a DFA takes 2 ns per instruction and character: 0.13 s for a whole text.
_MAX_PROGRAM = 1000
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
