"""GET /login/oidc and GET /login/callback: start a login at the identity provider, and finish it.

Failures lead to the login page, whose parameter `why` selects its message. The log has the reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlencode

import structlog
from aiohttp import web

from gateway.admin.login_state import FIRST_PAGE, LoginStates, page_or_first
from gateway.admin.login_throttle import ATTEMPTS
from gateway.admin.oidc import OIDC, LoginError
from gateway.admin.session import SESSIONS
from gateway.errors import NotFound, RateLimited

if TYPE_CHECKING:
    from gateway.admin.login_state import PendingLogin
    from gateway.admin.oidc import OidcProvider, Person

log = structlog.get_logger()

LOGIN_STATES = web.AppKey("login_states", LoginStates)


async def start_login(request: web.Request) -> web.Response:
    """GET /login/oidc: redirect the browser to the provider. `next` is the page to open afterwards."""
    oidc, states, page = _oidc(request), request.app[LOGIN_STATES], page_or_first(request.query.get("next", ""))
    login = states.begin(page)
    try:
        with oidc.call(request.remote or ""):
            url = await oidc.authorization_url(login, again="again" in request.query)
    except LoginError as error:
        return await _rejected(request, error, page)
    response = _redirect(url)
    states.set_cookie(response, login)
    return response


async def finish_login(request: web.Request) -> web.Response:
    """GET /login/callback: verify the provider's reply and start a session.

    The redirect leads to the login page, because browsers send no SameSite=Strict cookie with a redirect that began at
    another site. The login page opens the requested page.
    """
    oidc, page, is_used = _oidc(request), FIRST_PAGE, False
    try:
        login = _pending(request)
        page = login.page
        with oidc.call(request.remote or ""):
            is_used = True
            person = await oidc.person_of(login, request.query)
    except LoginError as error:
        response = await _rejected(request, error, page)
    else:
        response = _logged_in(request, person, page)
    if is_used:  # another site can send a browser here with a wrong state
        request.app[LOGIN_STATES].delete_cookie(response)
    return response


def _pending(request: web.Request) -> PendingLogin:
    """Return the login that this callback ends. Raises LoginError."""
    query = request.query
    if len(set(query)) < len(query):
        raise LoginError("invalid", "the callback has a parameter twice")
    login = request.app[LOGIN_STATES].pending(request, query.get("state", ""))
    if login is None:
        raise LoginError("expired", "the browser has no login with this state, or an older one")
    return login


def _logged_in(request: web.Request, person: Person, page: str) -> web.Response:
    session = request.app[SESSIONS].begin(person.operator, person.subject)
    log.info("admin_login", method="oidc", actor=person.operator.actor, subject=person.subject, remote=request.remote)
    response = _to_login("done", page)
    request.app[SESSIONS].set_cookie(request, response, session)
    return response


async def _rejected(request: web.Request, error: LoginError, page: str) -> web.Response:
    """Return the reply to a failed login, after the delay of failed logins. Too many of them are not logged."""
    attempts, remote = request.app[ATTEMPTS], request.remote or ""
    try:
        attempts.admit(remote)
    except RateLimited:
        return _to_login("busy", page)
    log.warning("admin_login_failed", method="oidc", reason=error.why, error=str(error), remote=request.remote)
    await attempts.fail(remote)
    return _to_login(error.why, page)


def _to_login(why: str, page: str) -> web.Response:
    return _redirect("/login?" + urlencode({"why": why, "next": page}))


def _oidc(request: web.Request) -> OidcProvider:
    oidc = request.app.get(OIDC)
    if oidc is None:
        raise NotFound("This gateway has no login at an identity provider. Set admin.oidc in config.yaml.")
    return oidc


def _redirect(url: str) -> web.Response:
    headers = {"Location": url, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    return web.Response(status=303, headers=headers)
