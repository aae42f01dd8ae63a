"""Limit the number of tenants and routes with their own series. Policy files may change, but a series remains."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

OTHER = "(other)"
"""The label value for all other tenants or routes. No tenant's name contains parentheses."""
_ROUTES_PER_TENANT = 10


class SeriesLimit:
    """Label values for tenants and routes. The first ones get their own, for the life of the process.

    A tenant keeps its value after it is deleted: a counter that is removed and returns would decrease. A tenant may
    have any number of routes. All tenants together may have ten routes for each tenant of `max_tenants`. The `reserved`
    label values are no tenants. They are always used as they are and are not counted.
    """

    def __init__(self, max_tenants: int, reserved: Iterable[str] = ()) -> None:
        self._max_tenants = max_tenants
        self._reserved = frozenset(reserved)
        self._max_routes = _ROUTES_PER_TENANT * max_tenants
        self._tenants: set[str] = set()
        self._routes: set[tuple[str, str]] = set()
        self._route_names: set[str] = set()

    def name(self, tenant: str, routes: Iterable[str] = ()) -> None:
        """Reserve label values for a tenant and its routes, within the limits."""
        self.tenant(tenant)
        for route in routes:
            self.route(tenant, route)

    def tenant(self, tenant: str) -> str:
        """Return the label value for a tenant."""
        if tenant not in self._tenants and tenant not in self._reserved:
            if tenant == OTHER or len(self._tenants) >= self._max_tenants:
                return OTHER
            self._tenants.add(tenant)
        return tenant

    def route(self, tenant: str, route: str) -> str:
        """Return the label value for a tenant's route, next to the tenant's label."""
        tenant = self.tenant(tenant)
        if (tenant, route) not in self._routes:
            if OTHER in (tenant, route) or len(self._routes) >= self._max_routes:
                return OTHER
            self._routes.add((tenant, route))
            self._route_names.add(route)
        return route

    def route_alone(self, route: str) -> str:
        """Return the label value for a route name without a tenant's label."""
        return route if route in self._route_names else OTHER


class LabelSeries:
    """Values of requests' labels. The first `limit` values, of all tenants and labels, get their own series."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._values: set[tuple[str, str, str]] = set()

    def value(self, tenant: str, label: str, value: str) -> str:
        """Return the label value for a value, next to the tenant's label."""
        if (tenant, label, value) not in self._values:
            if len(self._values) >= self._limit:
                return OTHER
            self._values.add((tenant, label, value))
        return value
