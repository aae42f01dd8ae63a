"""Replace `${NAME}` in the texts of config.yaml by environment variables.

    ${NAME}            the variable, which must be set and not empty
    ${NAME:-default}   the default, perhaps empty, if the variable is not set or empty
    $${                a literal ${

Only texts are replaced, after the YAML was parsed. So a value never adds keys or entries.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_PART = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)", re.ASCII)
_EXPRESSION = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.ASCII | re.DOTALL)
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?[0-9]{1,40}\.[0-9]{1,40}", re.ASCII)
_FLAGS = {"true": True, "false": False}
HIDDEN_FROM_CHARS = 8
"""Shorter values may be in a message by chance, so messages replace only values of at least this length."""


class Substituted(str):
    """A text whose variables were replaced.

    Attributes:
        written: the text in the file.
        values: the values from the environment, by variable. Defaults are not among them.
    """

    written: str
    values: Mapping[str, str]

    @property
    def plain(self) -> object:
        """Return the number, `true` or `false` that the text is; another text unchanged."""
        if _INTEGER.fullmatch(self):
            return int(self)
        return Decimal(self) if _DECIMAL.fullmatch(self) else _FLAGS.get(self.lower(), self)


def substitute(text: str, environ: Mapping[str, str]) -> Substituted:
    """Return the text with the values of its variables. Raises ValueError with a message that contains no value."""
    values: dict[str, str] = {}

    def value_of(part: re.Match[str]) -> str:
        if part[0] == "$${":
            return "${"
        expression = _EXPRESSION.fullmatch(part[1])
        if not part[2] or expression is None:
            raise ValueError(
                "has a '${' that is not closed, or without a variable's name: write ${NAME} or ${NAME:-default}, or "
                "$${ for a literal ${"
            )
        name, default = expression.groups()
        if value := environ.get(name, "").strip():
            return values.setdefault(name, value)
        if default is not None:
            return default
        state = "empty" if name in environ else "not set"
        remedy = f"set it, or, unless it is a secret, write ${{{name}:-default}}"
        raise ValueError(f"the environment variable {name} is {state}: {remedy}")

    result = Substituted(_PART.sub(value_of, text))
    result.written, result.values = text, values
    return result


def escaped(value: object) -> object:
    """Return a text for config.yaml that `substitute` turns back into `value`; other values unchanged."""
    return value.replace("${", "$${") if isinstance(value, str) else value


def plain(value: object) -> object:
    """Return the number, `true` or `false` of a text from variables; other values unchanged."""
    return value.plain if isinstance(value, Substituted) else value


def hide(message: str, values: Mapping[str, str]) -> str:
    """Return the message with the names of variables in place of their values."""
    for name, value in sorted(values.items(), key=lambda item: -len(item[1])):
        if len(value) >= HIDDEN_FROM_CHARS:
            message = message.replace(value, f"${{{name}}}")
    return message
