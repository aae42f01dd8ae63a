"""Messages of the export stream: receipts as JSON, with a version of their schema and a revision. Pure.

docs/schema/receipt-export.json is the schema. Within a version, fields are only added, never renamed or removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.accounting.receipt import Receipt

if TYPE_CHECKING:
    from gateway.protocol.body import Json

SCHEMA_VERSION = 1
_ABANDONED = "abandoned"
FIRST_REVISION, FINAL_REVISION = 1, 2
"""Revisions of a receipt that was settled for a process that seemed dead, and of every other receipt."""


class ExportMessage(NamedTuple):
    """A message for a broker. `created_ms` is its timestamp in Unix milliseconds."""

    key: bytes
    value: bytes
    created_ms: int


def revision_of(status: str) -> int:
    """Return the revision of a receipt. The receipt that replaces an abandoned one has a higher revision."""
    return FIRST_REVISION if status == _ABANDONED else FINAL_REVISION


def message_of(raw: bytes) -> ExportMessage:
    """Return the message of a receipt as JSON. Messages of one receipt have the same key, and so the same partition.

    Raises msgspec.DecodeError for invalid JSON.
    """
    receipt = Receipt.from_json(raw)
    body: Json = {"schema_version": SCHEMA_VERSION, "revision": revision_of(receipt.status), **receipt.as_dict()}
    return ExportMessage(f"{receipt.tenant}/{receipt.id}".encode(), msgspec.json.encode(body), receipt.created * 1000)


def message_schema() -> dict[str, Any]:
    """Return the JSON Schema of messages, generated from the receipt's fields."""
    definitions = msgspec.json.schema(Receipt)["$defs"]
    receipt = definitions.pop("Receipt")
    properties = {
        "schema_version": {"const": SCHEMA_VERSION, "description": "Version of this schema."},
        "revision": {
            "type": "integer",
            "minimum": FIRST_REVISION,
            "description": "The message with the highest revision of an id and tenant is valid.",
        },
        **receipt["properties"],
        "savings_about_zero": {"type": "boolean"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "GKT Gateway: a receipt in the export stream",
        "description": "The fields are those of GET /v1/receipts/{id}. Amounts are decimal text in USD.",
        "type": "object",
        "properties": {name: _without_default(value) for name, value in properties.items()},
        "required": ["schema_version", "revision", *receipt["required"]],
        "$defs": {name: _definition(value) for name, value in sorted(definitions.items())},
    }


def _definition(schema: dict[str, Any]) -> dict[str, Any]:
    fields = {name: _without_default(value) for name, value in schema.get("properties", {}).items()}
    return schema | ({"properties": fields} if fields else {})


def _without_default(schema: dict[str, Any]) -> dict[str, Any]:
    """Omit defaults of the code: they say nothing about a field that is missing in a message."""
    return {name: value for name, value in schema.items() if name != "default"}
