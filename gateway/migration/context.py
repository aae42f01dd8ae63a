"""State of one import: notices, environment variables to set, and the values of references."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from gateway.config.scalars import ValueOrigin
from gateway.config.yaml_messages import MUST_BE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from gateway.errors import ConfigIssue
    from gateway.migration.source import SourceField

_REFERENCE = "os.environ/"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_TRUE = {"true", "yes", "on"}
_PLACEHOLDER = "x" * 32


class ImportContext:
    """Notices and environment variables of one import.

    Attributes:
        notices: settings without an equivalent, and remarks, each with its file and line.
        variables: environment variables that the written files or the providers read.
        missing: values that the operator fills in.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.notices: list[ConfigIssue] = []
        self.variables: dict[str, str] = {}
        self.missing: list[str] = []
        self._environ = dict(environ)
        self._literals: dict[str, str] = {}

    def notice(self, field: SourceField, message: str) -> None:
        """Add a notice at the line of a value. The message must not contain a secret."""
        self.notices.append(field.issue(message))

    def need(self, variable: str, example: str = _PLACEHOLDER) -> str:
        """Record an environment variable to set, with a valid example value. Return a reference to it."""
        self.variables.setdefault(variable, example)
        return f"env:{variable}"

    def add_variable(self, name: str, value: str) -> None:
        """Set an environment variable for the values of references, unless the value is a reference itself."""
        if not value.startswith(_REFERENCE):
            self._environ[name] = value

    def origin(self, folder: Path) -> ValueOrigin:
        """Return the origin with which written values are validated: each variable has its example value."""
        return ValueOrigin(self.variables, folder)

    def secret(self, field: SourceField, variable: str) -> str | None:
        """Return a reference for config.yaml. A literal secret is not copied: `variable` is the name to set for it."""
        text = str(field.value)
        if text.startswith(_REFERENCE):
            name = text.removeprefix(_REFERENCE)
            if _VARIABLE.fullmatch(name):
                return self.need(name)
            self.notice(field, "not imported: refers to no valid environment variable")
            return None
        if text.startswith("oidc/"):
            self.notice(field, "not imported: the gateway reads no OIDC tokens; write api_key: env:NAME")
            return None
        while text not in self._literals and variable in {*self.variables, *self._literals.values()}:
            variable += "_2"
        name = self._literals.setdefault(text, variable)
        self.notice(field, f"a secret in the file, not copied: set the environment variable {name} to it")
        return self.need(name)

    def text(self, field: SourceField | None) -> str | None:
        """Return the text of a value that is no secret. A reference is replaced by the variable's present value."""
        if field is None:
            return None
        if isinstance(field.value, dict | list):
            self.notice(field, "not imported: must be text")
            return None
        text = str(field.value)
        if not text.startswith(_REFERENCE):
            return text
        name = text.removeprefix(_REFERENCE)
        value = self._environ.get(name, "").strip()
        if not value:
            self.notice(field, f"not imported: {name} is not set here. Set it and import again, or write the value")
            return None
        self.notice(field, f"the present value of {name} is written, because only secrets can be references")
        return value

    def is_unset(self, field: SourceField | None) -> bool:
        """Return whether a value refers to an environment variable that is not set."""
        text = "" if field is None else str(field.value)
        return text.startswith(_REFERENCE) and not self._environ.get(text.removeprefix(_REFERENCE), "").strip()

    def number(self, field: SourceField | None) -> Decimal | None:
        """Return the number of a value, which may be a reference or text; None if there is none."""
        if field is None:
            return None
        is_number = isinstance(field.value, int | Decimal) and not isinstance(field.value, bool)
        text = str(field.value) if is_number else self.text(field)
        if text is None:
            return None
        try:
            number = Decimal(text)
        except InvalidOperation:
            number = Decimal("NaN")
        if not number.is_finite():
            self.notice(field, "not imported: must be a number")
            return None
        return number

    def clamped(self, field: SourceField, number: Decimal, low: str, high: str) -> Decimal:
        """Return a number within the gateway's limits. A notice states a changed number."""
        within = min(max(number, Decimal(low)), Decimal(high))
        if within != number:
            self.notice(field, f"written as {within}: the gateway permits {low} to {high}")
        return within

    def entries(
        self, field: SourceField | None, kind: type[dict[str, object]] | type[list[object]]
    ) -> list[SourceField]:
        """Return the entries of a mapping or a list. A notice states a value that is not of this kind."""
        if field is None:
            return []
        if not isinstance(field.value, kind):
            self.notice(field, f"not imported: {MUST_BE[kind]}")
        return field.children() if isinstance(field.value, kind) else []

    def first(self, *fields: SourceField | None) -> SourceField | None:
        """Return the first of several values for one setting. Notices state that it overrides the others."""
        found = [field for field in fields if field is not None]
        for field in found[1:]:
            self.notice(field, f"not imported: {found[0].section}.{found[0].name} has precedence")
        return found[0] if found else None

    def flag(self, field: SourceField | None) -> bool:
        """Return whether a value is true. YAML 1.1, which LiteLLM reads, also writes it as yes and on."""
        return field is not None and (field.value is True or str(field.value).lower() in _TRUE)
