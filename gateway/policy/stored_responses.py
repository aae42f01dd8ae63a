"""Rule of a policy for stored responses of /v1/responses."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from gateway.config.scalars import Duration, InvalidValue, Size, duration_between, size_between
from gateway.config.yaml_source import StrictModel


class StoredResponsesRule(StrictModel):
    """Storage of responses in Redis, for `previous_response_id` and for reading them again.

    A stored response contains the whole conversation up to it.
    """

    ttl_s: Annotated[Duration, duration_between("1s", "30d")] = Field(86_400.0, alias="ttl")
    """Time after which a response is deleted."""
    max_response_bytes: Annotated[Size, size_between("1kB", "8MB")] = Field(1_000_000, alias="max_response")
    """Largest response that is stored, with its conversation, as JSON before compression."""
    max_total_bytes: Annotated[Size, size_between("1kB", "1000GB")] = Field(64_000_000, alias="max_total")
    """Most memory in Redis for the tenant's responses, compressed. Beyond it, those that expire first are deleted."""

    @field_validator("max_total_bytes")
    @classmethod
    def _holds_a_response(cls, size: int, info: ValidationInfo) -> int:
        if size < 2 * info.data.get("max_response_bytes", 0):
            raise InvalidValue("must be at least twice max_response")
        return size
