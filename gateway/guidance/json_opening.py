"""Where an answer that opens as JSON may be cut: never where what follows could change what stands there.

"12" may go on to "125", and a key "user" to "user_id"; half of an escape cannot be read at all. So a number, a key and
an escape are kept whole or not at all. A string that is a value is prose and may be cut like it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

_TOKEN = re.compile(r"\s+|[{}\[\],:]|-?\d[\d.eE+-]*|-|true|false|null")
_LITERALS = ("true", "false", "null")
_HEX = "[0-9a-fA-F]"
_HIGH = rf"\\u[dD][89abAB]{_HEX}{{2}}"
# A character beyond U+FFFF is written as two escapes, of which the first says nothing alone.
_STRING = re.compile(
    rf'(?:[^"\\]+|\\[^u]|\\u(?![dD][89abAB]){_HEX}{{4}}|{_HIGH}\\u{_HEX}{{4}}|{_HIGH}(?=[^\\]|\\[^u]))*+', re.DOTALL
)
_HALF_ESCAPE = re.compile(rf"(?:{_HIGH})?(?:\\(?:u{_HEX}{{0,3}})?)?")


@dataclass(slots=True)
class JsonOpening:
    """Reads JSON from its beginning, in pieces, and says how much of it may stand.

    Attributes:
        valid: what was read may be JSON. Once it cannot, it is prose, and nothing is said of it any more.
        stack: the brackets that are open, outermost first.
        last: the last token's first character, white space apart.
        within: the kind of string that is open where reading stopped.
    """

    valid: bool = True
    stack: str = ""
    last: str = ""
    within: Literal["", "key", "value"] = ""

    def limit(self, text: str) -> int:
        """How many characters of `text`, which follows what was taken, may end a text that was cut for length.

        All of them when it is not JSON.
        """
        ahead = replace(self)
        return ahead.take(text)

    def reads(self, text: str) -> bool:
        """Read on: is it still JSON?"""
        self.take(text)
        return self.valid

    def take(self, text: str) -> int:
        """Read on, and return what `limit` would have. `text` is to end where that lets it."""
        if not self.valid:
            return len(text)
        at = 0
        if self.within:
            closed = self._string(text, 0)
            if closed is None:
                return self._open_string(text, 0)
            at = closed
        while at < len(text):
            if text[at] == '"':
                is_key = self.stack[-1:] == "{" and self.last in "{,"
                self.last, self.within = '"', "key" if is_key else "value"
                closed = self._string(text, at + 1)
                if closed is None:
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
        """Where the string that is open at `at` has ended; None if it has not."""
        body = _STRING.match(text, at)
        assert body is not None, "it matches nothing too"
        if text[body.end() : body.end() + 1] != '"':
            return None
        self.within = ""
        return body.end() + 1

    def _open_string(self, text: str, at: int) -> int:
        body = _STRING.match(text, at)
        assert body is not None, "it matches nothing too"
        if not _HALF_ESCAPE.fullmatch(text, body.end()):
            self.valid = False
            return len(text)
        return at if self.within == "key" else body.end()
