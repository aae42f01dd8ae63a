"""Decode the input of a custom tool from the JSON arguments of its function, as they arrive. Sans-io."""

from __future__ import annotations

import re

import orjson

from gateway.protocol.responses.tools import INPUT_FIELD

_START = re.compile(rf'\s*\{{\s*"{INPUT_FIELD}"\s*:\s*"')
# The part of a JSON string up to its end or to an escape that is not complete.
_DECODABLE = re.compile(r'[^"\\]*(?:\\(?:u[0-9a-fA-F]{4}|u[0-9a-fA-F]{0,3}(?=[^0-9a-fA-F])|[^u])[^"\\]*)*')
_HALF_PAIR = re.compile(r"(?<!\\)(?:\\\\)*\\u[dD][89abAB][0-9a-fA-F]{2}\Z")
_ESCAPE_CHARS = 6
_ESCAPE = re.compile(
    r"\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|\\u([0-9a-fA-F]{4})|\\(.)", re.DOTALL
)
_SIMPLE = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "/": "/"}
_SURROGATES = range(0xD800, 0xE000)


class CustomInput:
    """The input of one call. Invalid escapes, which models write in patches, are read as they stand."""

    __slots__ = ("_arguments", "_ended", "_started", "_tail", "_texts")

    def __init__(self) -> None:
        self._arguments: list[str] = []
        self._texts: list[str] = []
        self._tail = ""  # arguments that are not decoded
        self._started = self._ended = False

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def feed(self, arguments: str) -> str:
        """Return the text of the next arguments, as far as it is certain."""
        self._arguments.append(arguments)
        if self._ended:
            return ""
        if not self._started and arguments.isspace() and self._tail[-1:].isspace():
            return ""  # one space is like many
        self._tail += arguments
        if not self._started:
            if (start := _START.match(self._tail)) is None:
                return ""
            self._started, self._tail = True, self._tail[start.end() :]
        match = _DECODABLE.match(self._tail)
        end = match.end() if match is not None else 0
        self._ended = self._tail[end : end + 1] == '"'
        if not self._ended and _HALF_PAIR.search(self._tail, 0, end):
            end -= _ESCAPE_CHARS
        text, self._tail = _ESCAPE.sub(_unescaped, self._tail[:end]), self._tail[end:]
        self._texts.append(text)
        return text

    def finish(self) -> str:
        """Return the rest of the text: all of it, if the arguments had another form than the declared one."""
        if self._started:
            return ""
        arguments = "".join(self._arguments)
        text = arguments
        try:
            value = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            pass
        else:
            if isinstance(value, str):
                text = value
            elif isinstance(value, dict) and isinstance(value.get(INPUT_FIELD), str):
                text = value[INPUT_FIELD]
        self._texts.append(text)
        return text


def decode_custom_input(arguments: str) -> str:
    """Return the input of a complete call."""
    decoder = CustomInput()
    decoder.feed(arguments)
    decoder.finish()
    return decoder.text


def _unescaped(match: re.Match[str]) -> str:
    high, low, single, char = match.groups()
    if high is not None:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00)
    if single is not None:
        code = int(single, 16)
        return "\ufffd" if code in _SURROGATES else chr(code)
    return _SIMPLE.get(char) or f"\\{char}"
