"""The addresses of a running gateway."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayAddresses:
    """The addresses of a running gateway, and its process id in Redis as shown by `gkt-gateway queue`."""

    public: str
    admin: str
    process: str
