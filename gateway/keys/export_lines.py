"""The lines of `keys export`: one JSON object for each key, raise, switch and audit entry. Pure.

A line has the SHA-256 of a key, never the key.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, NamedTuple, TypeAlias

import msgspec
from pydantic import ValidationError

from gateway.config.scalars import LABEL
from gateway.errors import StartupError
from gateway.keys.held import HeldKey
from gateway.policy.guidance_off import GuidanceOff, GuidanceScope

_MAX_PROBLEMS = 20
_MAX_USD = 1_000_000
_Name: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
_Namespace: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}(#[0-9]+)?$")]
_Scope: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^(tenant|key:.+|label:[a-z][a-z0-9_]*=.*)$")]
_EntryId: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[1-9][0-9]{0,17}-[0-9]{1,18}$")]


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """A line of an export. `name` identifies it in an export and in Redis."""

    @property
    def name(self) -> str:
        raise NotImplementedError

    @property
    def unique(self) -> tuple[str, ...]:
        """Return what no other line of an export may have."""
        return (self.name,)

    def equals(self, other: object) -> bool:
        """Return whether a line and one from Redis have the same content."""
        return self == other

    def problem(self) -> str | None:
        """Return why this version cannot import the line; None if it can."""
        return None


class KeyLine(_Line, frozen=True, tag="key", omit_defaults=True):
    """An API key of the admin API. Times are Unix seconds by Redis' clock."""

    key: HeldKey
    last_used_s: float | None = None

    @property
    def name(self) -> str:
        return f"key '{self.key.id}' of tenant '{self.key.tenant}'"

    @property
    def unique(self) -> tuple[str, ...]:
        return self.name, f"key.sha256 {self.key.sha256}"

    def equals(self, other: object) -> bool:
        """Return whether both are the same key. The times of the last use may differ."""
        return isinstance(other, KeyLine) and self.key == other.key

    def problem(self) -> str | None:
        if not all(LABEL.fullmatch(name) for name in (self.key.tenant, self.key.replaces or "none")):
            return "key: tenant and replaces must be 1 to 64 letters, digits or any of . _ -"
        try:
            _ = self.key.entry
        except ValidationError as error:
            issue = error.errors(include_url=False)[0]
            return f"key.{'.'.join(map(str, issue['loc']))}: {issue['msg']}"
        return None


class RaiseLine(_Line, frozen=True, tag="raise"):
    """A raise of a budget. `scope` is `tenant`, `key:ID` or `label:NAME=VALUE`; `until` is in Unix seconds."""

    tenant: _Namespace
    scope: _Scope
    usd: Decimal
    until: int

    @property
    def name(self) -> str:
        return f"the raise of '{self.scope}' of tenant '{self.tenant}'"

    def problem(self) -> str | None:
        return None if 0 < self.usd <= _MAX_USD else f"usd: must be above 0 and at most {_MAX_USD}"


class SwitchLine(_Line, frozen=True, tag="guidance_off"):
    """Switched-off guidance of a route, of a tenant (`route` is null) or of everything (both are null)."""

    tenant: _Name | None
    route: str | None
    off: GuidanceOff

    @property
    def name(self) -> str:
        return f"the switch of {GuidanceScope(self.tenant, self.route).text}"

    def problem(self) -> str | None:
        return "route: needs a tenant" if self.tenant is None and self.route is not None else None


class AuditLine(_Line, frozen=True, tag="audit"):
    """An entry of the audit trail. The fields are those of `AuditEntry`."""

    id: _EntryId
    actor: str
    action: str
    tenant: str
    subject: str
    before: str
    after: str

    @property
    def name(self) -> str:
        return f"audit entry {self.id}"


ExportLine: TypeAlias = KeyLine | RaiseLine | SwitchLine | AuditLine
_ENCODER = msgspec.json.Encoder(decimal_format="number")
_DECODER: msgspec.json.Decoder[ExportLine] = msgspec.json.Decoder(ExportLine, float_hook=Decimal)


class NumberedLine(NamedTuple):
    """A line with its number in the file, from 1."""

    number: int
    line: ExportLine


def line_text(line: ExportLine) -> str:
    """Return a line of the file, without its end."""
    return _ENCODER.encode(line).decode()


def read_lines(raw: bytes, file: str) -> list[NumberedLine]:
    """Return all lines of an export. Raises StartupError, which names each invalid line and how to correct it."""
    found: list[NumberedLine] = []
    problems: list[str] = []
    numbers: dict[str, int] = {}
    for number, raw_line in enumerate(raw.splitlines(), 1):
        if not raw_line.strip():
            continue
        try:
            line = _DECODER.decode(raw_line)
            problem = line.problem()
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            problems.append(f"{file}:{number}: {error}. Correct the line, or delete it.")
            continue
        for name in line.unique:
            first = numbers.setdefault(name, number)
            if problem is None and first != number:
                problem = f"{name} is also in line {first}"
        if problem is not None:
            problems.append(f"{file}:{number}: {problem}. Correct the line, or delete it.")
        found.append(NumberedLine(number, line))
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        shown = problems[:_MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise StartupError("\n".join([*shown, "Nothing was imported."]))
    return found
