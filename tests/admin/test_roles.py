"""Roles of operators: each route needs one, and a route without one needs the highest."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from pydantic import SecretStr

from gateway.admin.bodies import actor_of
from gateway.admin.roles import KEY_HOLDER, OPERATOR, Operator, Role, required_roles
from gateway.admin.routes import OPEN_ROUTES, ROUTES, ROUTES_BY_ROLE
from gateway.admin.session import Sessions
from gateway.errors import InvalidRequest
from tests.kit.admin_listener import HERE, KEY, admin_listener

NEEDED = {
    "GET /audit": "admin",
    "GET /budgets": "viewer",
    "GET /budgets/{tenant}": "viewer",
    "GET /budgets/{tenant}/keys/{id}": "viewer",
    "GET /budgets/{tenant}/labels": "viewer",
    "POST /budgets/{tenant}/labels/{label}/raise": "operator",
    "POST /budgets/{tenant}/keys/{id}/raise": "operator",
    "POST /budgets/{tenant}/raise": "operator",
    "DELETE /collected/{tenant}": "admin",
    "GET /collected/{tenant}": "viewer",
    "GET /collected/{tenant}/requests": "admin",
    "GET /config": "viewer",
    "GET /guidance": "viewer",
    "POST /guidance/off": "operator",
    "POST /guidance/on": "operator",
    "GET /keys": "viewer",
    "POST /keys": "operator",
    "DELETE /keys/{tenant}/{id}": "operator",
    "POST /keys/{tenant}/{id}/rotate": "operator",
    "GET /playground/options": "viewer",
    "GET /playground/receipts/{tenant}/{id}": "viewer",
    "POST /playground/run": "operator",
    "GET /policies": "viewer",
    "GET /quality": "viewer",
    "GET /receipts": "viewer",
    "GET /receipts/{id}": "viewer",
    "GET /reconciliation": "viewer",
    "GET /reliability": "viewer",
    "GET /summary": "viewer",
    "GET /usage": "viewer",
    "GET /usage/split": "viewer",
}
"""The role that each route needs. Add each new route, and the table in docs/reference/admin-api.md."""


def person(role: Role) -> Operator:
    return Operator("alice@example.com", role, is_person=True)


async def secret(_: web.Request) -> web.Response:
    return web.Response(text="secret")


def test_every_route_states_its_role() -> None:
    roles, opened = required_roles(ROUTES_BY_ROLE), {route.handler for route in OPEN_ROUTES}
    closed = [route for route in ROUTES if route.handler not in opened]
    assert {f"{route.method} {route.path}": roles[route.handler].label for route in closed} == NEEDED
    assert opened.isdisjoint(roles)


def test_a_viewer_changes_nothing() -> None:
    assert {route.method for route in ROUTES_BY_ROLE[Role.VIEWER]} == {"GET"}


def test_a_handler_of_two_roles_needs_the_higher_one() -> None:
    routes = {Role.ADMIN: [web.delete("/a", secret)], Role.VIEWER: [web.get("/a", secret)]}
    assert required_roles(routes) == {secret: Role.ADMIN}


async def refused(role: Role, path: str, method: str, listed: dict[Role, list[web.RouteDef]]) -> dict[str, Any] | None:
    """Return the error that a session of this role gets, or None."""
    sessions = Sessions(SecretStr(KEY))
    response = web.Response()
    sessions.set_cookie(make_mocked_request("GET", "/"), response, sessions.begin(person(role), "sub-1"))
    cookie = f"{sessions.cookie}={response.cookies[sessions.cookie].value}"
    async with (
        admin_listener(sessions, [], [web.post("/unlisted", secret)], listed) as client,
        client.request(method, path, headers={**HERE, "Cookie": cookie}) as reply,
    ):
        if reply.status == 200:
            return None
        assert reply.status == 403
        error: dict[str, Any] = (await reply.json())["error"]
        return error


async def shown(_: web.Request) -> web.Response:
    return web.Response(text="shown")


async def changed(_: web.Request) -> web.Response:
    return web.Response(text="changed")


LISTED = {Role.VIEWER: [web.get("/read", shown)], Role.OPERATOR: [web.post("/change", changed)]}


async def test_a_role_includes_the_lower_ones_and_no_higher_one() -> None:
    routes = [("/read", "GET"), ("/change", "POST"), ("/unlisted", "POST")]
    allowed = {
        role: [path for path, method in routes if await refused(role, path, method, LISTED) is None] for role in Role
    }
    assert allowed == {
        Role.VIEWER: ["/read"],
        Role.OPERATOR: ["/read", "/change"],
        Role.ADMIN: ["/read", "/change", "/unlisted"],
    }


async def test_a_403_names_the_needed_role() -> None:
    error = await refused(Role.VIEWER, "/change", "POST", LISTED)
    assert error is not None
    assert (error["code"], error["type"]) == ("role_required", "invalid_request_error")
    assert error["message"] == (
        "This needs the role operator. alice@example.com has the role viewer: admin.oidc.roles in config.yaml assigns "
        "roles."
    )


@pytest.mark.parametrize(
    ("operator", "header", "actor"),
    [
        (person(Role.OPERATOR), None, "alice@example.com (operator)"),
        (person(Role.ADMIN), "mallory", "alice@example.com (admin)"),
        (KEY_HOLDER, None, "admin"),
        (KEY_HOLDER, "bob", "bob"),
    ],
)
def test_the_actor_is_the_person_and_only_the_key_may_name_another(
    operator: Operator, header: str | None, actor: str
) -> None:
    request = make_mocked_request("POST", "/keys", headers={} if header is None else {"x-gkt-actor": header})
    request[OPERATOR] = operator
    assert actor_of(request) == actor


def test_an_actor_of_the_key_is_a_plain_name() -> None:
    request = make_mocked_request("POST", "/keys", headers={"x-gkt-actor": "bob (admin)"})
    request[OPERATOR] = KEY_HOLDER
    with pytest.raises(InvalidRequest, match="x-gkt-actor"):
        actor_of(request)
