"""Which tenants and routes get metrics of their own: their files may change for ever, and a series stays for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

OTHER = "(other)"
"""All others together. It has brackets, so no tenant is called so."""
_ROUTES_PER_TENANT = 10


class SeriesLimit:
    """Which tenants and routes are named in labels: the first ones, for as long as the process lives.

    A name is not given up when its tenant is: a counter that came back would have gone backwards. A tenant has as many
    routes as it likes, as long as all together have no more than ten for each tenant that there may be.

    Args:
        max_tenants: how many tenants are named.
        reserved: labels that are no tenant's. They always stand for themselves and take no tenant's place.
    """

    def __init__(self, max_tenants: int, reserved: Iterable[str] = ()) -> None:
        self._max_tenants = max_tenants
        self._reserved = frozenset(reserved)
        self._max_routes = _ROUTES_PER_TENANT * max_tenants
        self._tenants: set[str] = set()
        self._routes: set[tuple[str, str]] = set()
        self._route_names: set[str] = set()

    def name(self, tenant: str, routes: Iterable[str] = ()) -> None:
        """Name a tenant and its routes, if there is still room."""
        self.tenant(tenant)
        for route in routes:
            self.route(tenant, route)

    def tenant(self, tenant: str) -> str:
        """The label for a tenant."""
        if tenant not in self._tenants and tenant not in self._reserved:
            if tenant == OTHER or len(self._tenants) >= self._max_tenants:
                return OTHER
            self._tenants.add(tenant)
        return tenant

    def route(self, tenant: str, route: str) -> str:
        """The label for a route of a tenant, to stand beside the tenant's."""
        tenant = self.tenant(tenant)
        if (tenant, route) not in self._routes:
            if OTHER in (tenant, route) or len(self._routes) >= self._max_routes:
                return OTHER
            self._routes.add((tenant, route))
            self._route_names.add(route)
        return route

    def route_alone(self, route: str) -> str:
        """The label for a route of that name, whoever's, to stand without a tenant's."""
        return route if route in self._route_names else OTHER
