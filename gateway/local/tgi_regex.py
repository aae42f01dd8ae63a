"""Converts regular expressions, which are grammars of text-generation-inference (TGI), to llama.cpp's grammars (GBNF).

Supported are alternatives, groups, character classes and greedy quantifiers, but no negated escapes such as the
non-digit. Like TGI, an expression matches the whole answer.
"""

from __future__ import annotations

import re

_CLASSES = {"d": "0-9", "w": "a-zA-Z0-9_", "s": r" \t\n\r\x0C\x0B"}
_CHARS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_DIGITS = {"x": 2, "u": 4}
_GROUP = re.compile(r"\?(?::|P<\w+>)")
_QUANTIFIER = re.compile(r"[*+?]|\{[0-9]+(?:,[0-9]*)?\}")


def to_gbnf(pattern: str) -> str:
    """Return the grammar of an expression. Raises ValueError if it is invalid or not supported."""
    return f"root ::= {_Converter(pattern).convert()}\n"


class _Converter:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0

    def convert(self) -> str:
        grammar = self._alternatives()
        if self._at < len(self._text):
            raise ValueError("unopened group")
        return grammar

    def _alternatives(self) -> str:
        parts = [self._sequence()]
        while self._text.startswith("|", self._at):
            self._at += 1
            parts.append(self._sequence())
        return " | ".join(parts)

    def _sequence(self) -> str:
        items = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            item = self._atom()
            if found := _QUANTIFIER.match(self._text, self._at):
                self._at = found.end()
                item += found[0]
            items.append(item)
        return " ".join(items) or '""'

    def _atom(self) -> str:
        char = self._next()
        match char:
            case "(":
                return self._group()
            case "[":
                return self._class()
            case ".":
                return r"[^\n]"
            case "^" | "$":
                return '""'
            case "*" | "+" | "?" | "{":
                raise ValueError(f"nothing to repeat at position {self._at - 1}")
            case "\\":
                kind, value = self._escape()
                return f"[{value}]" if kind == "class" else f'"{value}"'
        return f'"{_code(char)}"'

    def _group(self) -> str:
        if found := _GROUP.match(self._text, self._at):
            self._at = found.end()
        elif self._text.startswith("?", self._at):
            raise ValueError(f"unsupported group at position {self._at - 1}")
        inner = self._alternatives()
        if self._next() != ")":
            raise ValueError("unclosed group")
        return f"({inner})"

    def _class(self) -> str:
        begin = self._at
        negated = self._text.startswith("^", begin)
        self._at += negated
        parts: list[str] = []
        while (char := self._next()) != "]" or not parts:
            if char == "\\":
                parts.append(self._escape()[1])
            elif char == "-" and parts and not self._text.startswith("]", self._at):
                parts.append("-")
            else:
                parts.append(_code(char))
        return f"[{'^' if negated else ''}{''.join(parts)}]"

    def _escape(self) -> tuple[str, str]:
        """Return `class` and the content of a character class, or `char` and one character, as in a grammar."""
        char = self._next()
        if char in _CLASSES:
            return "class", _CLASSES[char]
        if (count := _DIGITS.get(char)) is not None:
            number = self._text[self._at : self._at + count]
            self._at += count
            return "char", _code(chr(int(number, 16)))
        if char.isalnum() and char not in _CHARS:
            raise ValueError(f"unsupported escape \\{char}")
        return "char", _code(_CHARS.get(char, char))

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise ValueError("the expression ends too early")
        self._at += 1
        return self._text[self._at - 1]


def _code(char: str) -> str:
    """Return a character as it is written in the texts and classes of a grammar."""
    if char.isascii() and char.isalnum():
        return char
    return f"\\x{ord(char):02X}" if ord(char) < 0x100 else f"\\U{ord(char):08X}"
