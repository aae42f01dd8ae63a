"""Roles of operators, and the operator who sent a request."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Role(IntEnum):
    """Permissions of an operator. Each role includes the permissions of the lower ones.

    Session cookies contain the numbers: do not change them.
    """

    VIEWER = 1
    """Read usage, receipts, quality, reliability, keys without secrets, budgets, and the effective configuration."""
    OPERATOR = 2
    """Change keys, budgets and guidance, and run the playground, which costs money."""
    ADMIN = 3
    """Read the audit trail, and read and delete collected requests, which contain texts of callers."""

    @property
    def label(self) -> str:
        """Return the name in replies, messages and config.yaml."""
        return self.name.lower()


class Operator(NamedTuple):
    """The authenticated sender of a request."""

    name: str
    role: Role
    is_person: bool = False
    """True for a name from an identity provider, False for the admin key, which belongs to no particular person."""

    @property
    def actor(self) -> str:
        """Return the name in the audit trail."""
        return f"{self.name} ({self.role.label})" if self.is_person else self.name


KEY_HOLDER = Operator("admin", Role.ADMIN)
"""The holder of the admin key."""
OPERATOR = web.RequestKey("operator", Operator)


def required_roles(routes: Mapping[Role, Iterable[web.RouteDef]]) -> dict[object, Role]:
    """Return the role that each handler needs. A handler with routes of several roles needs the highest of them."""
    return {route.handler: role for role, of_role in sorted(routes.items()) for route in of_role}
