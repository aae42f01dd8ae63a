"""Where a running gateway is found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayAddresses:
    """Where a running gateway listens, and its process's name in Redis, which `gkt-gateway queue` shows."""

    public: str
    admin: str
    process: str
