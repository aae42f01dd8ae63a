"""Find where an answer that begins as JSON may be cut, so that later text cannot change the meaning of the kept part.

"12" may continue as "125", and a key "user" as "user_id"; half of an escape cannot be decoded. Numbers, keys and
escapes are therefore kept whole or dropped. A string value is prose and may be cut like it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

_TOKEN = re.compile(r"\s+|[{}\[\],:]|-?\d[\d.eE+-]*|-|true|false|null")
_LITERALS = ("true", "false", "null")
_HEX = "[0-9a-fA-F]"
_HIGH = rf"\\u[dD][89abAB]{_HEX}{{2}}"
# A character beyond U+FFFF is written as two escapes; the first alone is invalid.
_STRING = re.compile(
    rf'(?:[^"\\]+|\\[^u]|\\u(?![dD][89abAB]){_HEX}{{4}}|{_HIGH}\\u{_HEX}{{4}}|{_HIGH}(?=[^\\]|\\[^u]))*+', re.DOTALL
)
_HALF_ESCAPE = re.compile(rf"(?:{_HIGH})?(?:\\(?:u{_HEX}{{0,3}})?)?")


@dataclass(slots=True)
class JsonOpening:
    """Read JSON from its beginning, in pieces, and determine how much of it may be kept."""

    valid: bool = True  # whether the text may still be JSON. Once it cannot, it is treated as prose.
    stack: str = ""  # the open brackets, outermost first
    last: str = ""  # the first character of the last token that is not whitespace
    within: Literal["", "key", "value"] = ""  # the kind of string that is open at the end of the text

    def limit(self, text: str) -> int:
        """Return how many characters of the next `text` may be kept if the guidance ends with it. Keep the state."""
        return replace(self).take(text)

    def reads(self, text: str) -> bool:
        """Read `text`, and return whether all of it may still be JSON."""
        self.take(text)
        return self.valid

    def take(self, text: str) -> int:
        """Read `text`, and return how many of its characters may be kept, like `limit`.

        A further call requires that all characters were kept.
        """
        if not self.valid:
            return len(text)
        at = 0
        if self.within:
            if (closed := self._string(text, 0)) is None:
                return self._open_string(text, 0)
            at = closed
        while at < len(text):
            if text[at] == '"':
                is_key = self.stack[-1:] == "{" and self.last in "{,"
                self.last, self.within = '"', "key" if is_key else "value"
                if (closed := self._string(text, at + 1)) is None:
                    return self._open_string(text, at + 1)
                at = closed
                continue
            token = _TOKEN.match(text, at)
            if token is None:
                if any(word.startswith(text[at:]) for word in _LITERALS):
                    return at
                self.valid = False
                return len(text)
            at = token.end()
            self._note(token[0])
            if at == len(text) and token[0][0] in "-0123456789":
                return token.start()
        return len(text)

    def _note(self, token: str) -> None:
        first = token[0]
        if first.isspace():
            return
        if first in "{[":
            self.stack += first
        elif first in "}]":
            self.stack = self.stack[:-1]
        self.last = first

    def _string(self, text: str, at: int) -> int | None:
        """Return the end of the string that is open at `at`; None if it has not ended."""
        body = _STRING.match(text, at)
        assert body is not None, "it matches an empty text"
        if text[body.end() : body.end() + 1] != '"':
            return None
        self.within = ""
        return body.end() + 1

    def _open_string(self, text: str, at: int) -> int:
        body = _STRING.match(text, at)
        assert body is not None, "it matches an empty text"
        if not _HALF_ESCAPE.fullmatch(text, body.end()):
            self.valid = False
            return len(text)
        return at if self.within == "key" else body.end()
