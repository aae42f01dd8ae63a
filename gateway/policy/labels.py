"""Labels: names and values by which the cost of requests is attributed, such as a team. Pure.

A policy declares each label and its sources. The most trusted source that has a value decides, valid or not. So a
header cannot replace the value of a token's claim or of a key.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from gateway.config.claims import claim_of
from gateway.config.limits import BudgetRule, LimitsRule
from gateway.config.scalars import Flag, InvalidValue, LabelName, Whole, label_names
from gateway.config.yaml_source import StrictModel
from gateway.errors import InvalidRequest
from gateway.policy.header_names import checked_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gateway.policy.book import Caller
    from gateway.protocol.requests import AnyRequest

MAX_LABELS = 8
"""Most labels of a tenant."""
OTHER = "(other)"
"""The value of requests whose own value is invalid, or beyond the bound of distinct values."""
NONE = "(none)"
"""The value of requests that no source gives a value."""
MAX_VALUE_CHARS = 64
VALUE_RULE = f"1 to {MAX_VALUE_CHARS} printable characters that do not begin with '('"
"""The spelling of a value, for messages."""
_MAX_RAW_CHARS = 1000
_MAX_INTEGER = 2**64
_MAX_PATH_CHARS = 256

Source: TypeAlias = Literal["claim", "key", "header", "metadata", "user", "none"]
TRUSTED_SOURCES = frozenset({"claim", "key"})
"""Sources that a caller cannot choose."""


def clean_value(text: str) -> str | None:
    """Return a value without spaces around it, in Unicode's normal form C; None if it is not valid."""
    text = text.strip()
    if not text.isascii():
        text = unicodedata.normalize("NFC", text[: 4 * MAX_VALUE_CHARS + 1])
    return text if 0 < len(text) <= MAX_VALUE_CHARS and text.isprintable() and text[0] != "(" else None


def _value(value: str) -> str:
    if (cleaned := clean_value(value)) is None:
        raise InvalidValue(f"must be {VALUE_RULE}")
    return cleaned


def _value_or_collective(value: str) -> str:
    return value if value in (OTHER, NONE) else _value(value)


LabelValue: TypeAlias = Annotated[str, AfterValidator(_value)]
"""A value of a label."""
KeyLabels: TypeAlias = Annotated[
    dict[LabelName, LabelValue], Field(max_length=MAX_LABELS), BeforeValidator(label_names)
]
"""Labels that a key sets."""
_AnyValue: TypeAlias = Annotated[str, AfterValidator(_value_or_collective)]
_Header: TypeAlias = Annotated[str, BeforeValidator(lambda name: checked_header(name, "label"))]


class ValueRule(StrictModel):
    """Limits and budget of one value of a label."""

    limits: LimitsRule | None = None
    """Limits of this value; None: the label's `limits`."""
    budget: BudgetRule | None = None
    """Budget of this value. Fields that it omits have the values of the label's `budget`."""


class LabelRule(StrictModel):
    """A label of requests: its sources, its values, and the limits and budget of each value."""

    claim: Annotated[str, Field(min_length=1, max_length=_MAX_PATH_CHARS)] | None = None
    """Claim of the caller's token; a dot separates the names of nested claims."""
    header: _Header | None = None
    """Request header."""
    metadata: Annotated[str, Field(min_length=1, max_length=MAX_VALUE_CHARS)] | None = None
    """Field of `metadata` in the request body."""
    user: Flag = False
    """Use the body's `safety_identifier`, else its `user`, as a source; of /v1/messages, `metadata.user_id`."""
    values: Annotated[tuple[LabelValue, ...], Field(min_length=1, max_length=1000)] | None = None
    """Allowed values; None: all."""
    invalid: Literal["other", "reject"] = "other"
    """Action for a value that is not allowed or malformed: count it as `(other)`, or answer 400."""
    required: Flag = False
    """Answer requests without the label with 400. Otherwise their value is `(none)`."""
    hash: Flag = False
    """Keep only a keyed hash of the value (`labels.hash_key` of config.yaml)."""
    max_values: Annotated[Whole, Field(ge=1, le=100_000)] = 1000
    """Most distinct values in a calendar month, without `values` and those of keys. Further values count as
    `(other)`."""
    limits: LimitsRule | None = None
    """Limits of each value; None: no limits."""
    budget: BudgetRule | None = None
    """Budget of each value, in addition to those of the tenant and the key; None: no budget."""
    exceptions: dict[_AnyValue, ValueRule] = Field({}, max_length=1000)
    """Limits and budgets of single values, also of `(none)` and `(other)`."""

    @field_validator("exceptions")
    @classmethod
    def _known(cls, exceptions: dict[str, ValueRule], info: ValidationInfo) -> dict[str, ValueRule]:
        own = [value for value in exceptions if value not in (OTHER, NONE)]
        if own and info.data.get("hash"):
            raise InvalidValue("names values of a hashed label: only (none) and (other) may have their own limits")
        allowed = info.data.get("values")
        if unknown := [value for value in own if allowed is not None and value not in allowed]:
            raise InvalidValue(f"names '{unknown[0]}', which is not among values: add it there, or remove it here")
        return {value: _completed(rule, info.data.get("budget")) for value, rule in exceptions.items()}

    @model_validator(mode="after")
    def _values_are_plain(self) -> LabelRule:
        if self.hash and self.values is not None:
            raise InvalidValue("has both hash and values: remove one of the two")
        return self

    @property
    def is_limited(self) -> bool:
        """Return whether any value has limits or a budget."""
        limits = (self.limits, *(rule.limits for rule in self.exceptions.values()))
        return self.has_budget or any(map(bool, limits))

    @property
    def has_budget(self) -> bool:
        """Return whether any value has a budget."""
        return self.budget is not None or any(rule.budget is not None for rule in self.exceptions.values())

    def limits_of(self, value: str) -> tuple[LimitsRule | None, BudgetRule | None]:
        """Return the limits and the budget of a value."""
        if (own := self.exceptions.get(value)) is None:
            return self.limits, self.budget
        return self.limits if own.limits is None else own.limits, self.budget if own.budget is None else own.budget

    def is_configured(self, value: str) -> bool:
        """Return whether the policy names the value, so that no bound applies to it."""
        return value in self.exceptions or (self.values is not None and value in self.values)

    @property
    def is_in_body(self) -> bool:
        """Return whether the body of a request is a source."""
        return self.metadata is not None or self.user

    @property
    def caller_sources(self) -> list[str]:
        """Return the sources that a caller chooses, in words."""
        body = [f"metadata.{self.metadata}"] if self.metadata is not None else []
        body += ["safety_identifier or user"] if self.user else []
        return ([f"the header {self.header}"] if self.header is not None else []) + body


PolicyLabels: TypeAlias = Annotated[
    dict[LabelName, LabelRule], Field(max_length=MAX_LABELS), BeforeValidator(label_names)
]
"""Labels of a tenant by name."""


def _completed(rule: ValueRule, general: BudgetRule | None) -> ValueRule:
    """Return the rule with the omitted fields of its budget from the label's budget."""
    if rule.budget is None or general is None:
        return rule
    missing = {name: getattr(general, name) for name in BudgetRule.model_fields.keys() - rule.budget.model_fields_set}
    budget = rule.budget.model_copy(update=missing)
    if budget.soft_budget is not None and budget.soft_budget >= budget.max_budget:
        raise InvalidValue(
            f"the label's soft_budget {budget.soft_budget} is not below max_budget {budget.max_budget}: set soft_budget"
        )
    return rule.model_copy(update={"budget": budget})


class ReadLabel(NamedTuple):
    """The value of a label of one request, before the bound of distinct values and the hash."""

    value: str
    source: Source

    @property
    def is_collective(self) -> bool:
        """Return whether requests with different values, or without one, share this value."""
        return self.value in (OTHER, NONE)


def read_labels(
    caller: Caller, headers: Mapping[str, str], metadata: object, user: object, *, strict: bool = True
) -> dict[str, ReadLabel]:
    """Return the labels of a request by name.

    Args:
        metadata: `metadata` of the body.
        user: the body's name of the end user.
        strict: whether `required` and `invalid: reject` apply.

    Raises InvalidRequest, which names the header or the field, and never the value.
    """
    found: dict[str, ReadLabel] = {}
    for name, rule in caller.policy.labels.items():
        raw, source = _first(name, rule, caller, headers, metadata, user)
        if source == "none":
            if strict and rule.required:
                raise _missing(name, rule)
            found[name] = _NO_LABEL
            continue
        value = _text_of(raw, hashed=rule.hash)
        if value is None or (rule.values is not None and value not in rule.values and source != "key"):
            if strict and rule.invalid == "reject":
                raise _invalid(name, rule, source)
            value = OTHER
        found[name] = ReadLabel(value, source)
    return found


def read_request_labels(
    caller: Caller, headers: Mapping[str, str], request: AnyRequest, *, strict: bool = True
) -> dict[str, ReadLabel]:
    """Return the labels of a request with a body; see `read_labels`."""
    body = request.body
    user = body.get("safety_identifier") or body.get("user")
    return read_labels(caller, headers, request.metadata, user, strict=strict)


_NO_LABEL = ReadLabel(NONE, "none")


def _first(
    name: str, rule: LabelRule, caller: Caller, headers: Mapping[str, str], metadata: object, user: object
) -> tuple[object, Source]:
    """Return the value of the most trusted source that has one."""
    if rule.claim is not None and caller.claims and (value := claim_of(caller.claims, rule.claim)) not in (None, ""):
        return value, "claim"
    own = caller.key.labels
    if own and (value := own.get(name)) is not None:
        return value, "key"
    if rule.header is not None and (value := headers.get(rule.header)) and value.strip():
        return value, "header"
    if rule.metadata is not None and isinstance(metadata, dict):
        value = metadata.get(rule.metadata)
        if value is not None and value != "":
            return value, "metadata"
    if rule.user and user not in (None, ""):
        return user, "user"
    return None, "none"


def _text_of(raw: object, *, hashed: bool) -> str | None:
    """Return a valid value, or None. A hashed value may be longer and have any characters."""
    if isinstance(raw, int) and not isinstance(raw, bool) and -_MAX_INTEGER < raw < _MAX_INTEGER:
        raw = str(raw)
    if not isinstance(raw, str) or len(raw) > _MAX_RAW_CHARS:
        return None
    return raw.strip() or None if hashed else clean_value(raw)


def _missing(name: str, rule: LabelRule) -> InvalidRequest:
    sources = " or ".join(rule.caller_sources)
    send = f"Send it in {sources}." if sources else "Ask the operator of this gateway for a key or token with it."
    return InvalidRequest(f"This tenant requires the label '{name}'. {send}", param=rule.header or _body_field(rule))


def _invalid(name: str, rule: LabelRule, source: Source) -> InvalidRequest:
    field = {"header": rule.header, "metadata": f"metadata.{rule.metadata}", "user": "user"}.get(source)
    where = f"'{field}'" if field is not None else f"The {source} of the label '{name}'"
    allowed = f"one of {', '.join(rule.values[:20])}" if rule.values is not None else VALUE_RULE
    return InvalidRequest(f"{where}: expected {allowed}, for the label '{name}'.", param=field)


def _body_field(rule: LabelRule) -> str | None:
    return f"metadata.{rule.metadata}" if rule.metadata is not None else "user" if rule.user else None


def undeclared(labels: Mapping[str, object], declared: Iterable[str]) -> str | None:
    """Return the first label that the policy does not declare, or None."""
    known = set(declared)
    return next((name for name in labels if name not in known), None)
