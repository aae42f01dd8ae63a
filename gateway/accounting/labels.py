"""The labels of a request, as receipts, budgets and limits use them: bounded in number, and hashed where required."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from gateway.accounting.label_values import ValueSet
from gateway.policy.key_entry import PLAYGROUND
from gateway.policy.labels import TRUSTED_SOURCES, read_labels, read_request_labels

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.accounting.label_values import LabelValues
    from gateway.policy.book import Caller
    from gateway.policy.labels import ReadLabel
    from gateway.protocol.requests import AnyRequest

HASH_DIGITS = 24
"""Hexadecimal digits of a hashed value."""


class Labeler:
    """Return the labels of requests.

    Args:
        values: bounds the distinct values; None: no bound.
        hash_key: the secret of hashed values. Without one, the hash is keyed by the tenant's name alone, so that
            anyone who guesses a value can compute its hash.
    """

    def __init__(self, values: LabelValues | None, hash_key: str | None = None) -> None:
        self._values = values
        self._hash_key = (hash_key or "").encode()

    def of_request(self, caller: Caller, headers: Mapping[str, str], request: AnyRequest) -> dict[str, str]:
        """Return the labels of a request by name. Raises InvalidRequest for a required or an invalid one.

        Requests of the playground are an operator's: no label is required of them.
        """
        if not caller.policy.labels:
            return {}
        strict = caller.key.id != PLAYGROUND
        return self._finished(caller, read_request_labels(caller, headers, request, strict=strict))

    def of_report(self, caller: Caller, headers: Mapping[str, str], metadata: object) -> dict[str, str]:
        """Return the labels of an answer that a device made alone. It was made: no label is required."""
        if not caller.policy.labels:
            return {}
        return self._finished(caller, read_labels(caller, headers, metadata, None, strict=False))

    def of_headers(self, caller: Caller, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the labels of a caller's requests with these headers, except those that a body may set.

        New values do not count as used.
        """
        rules = caller.policy.labels
        if not rules:
            return {}
        found = read_labels(caller, headers, None, None, strict=False)
        known = {name: one for name, one in found.items() if one.source != "none" or not rules[name].is_in_body}
        return self._finished(caller, known, register=False)

    def _finished(self, caller: Caller, found: Mapping[str, ReadLabel], *, register: bool = True) -> dict[str, str]:
        policy, labels = caller.policy, {}
        for name, one in found.items():
            rule, value = policy.labels[name], one.value
            if not one.is_collective:
                if rule.hash:
                    value = self.hashed(policy.tenant, name, value)
                if self._values is not None and one.source != "key" and not rule.is_configured(value):
                    values = ValueSet(policy.tenant, name, one.source in TRUSTED_SOURCES)
                    value = self._values.bounded(values, value, rule.max_values, register=register)
            labels[name] = value
        return labels

    def hashed(self, tenant: str, name: str, value: str) -> str:
        """Return the hash of a label's value, as receipts and budgets have it."""
        text = f"{tenant}\0{name}\0{value}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._hash_key, text, "sha256").hex()[:HASH_DIGITS]
