"""Routes of the admin listener."""

from __future__ import annotations

import asyncio
from itertools import chain
from typing import TYPE_CHECKING

import orjson
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from gateway.admin.assets import show_file, show_login, show_page, show_root
from gateway.admin.audit import show_audit
from gateway.admin.auth import authorize, log_in, log_out, show_session
from gateway.admin.budgets import list_budgets, raise_budget, show_budgets, show_key_budget
from gateway.admin.collected import delete_samples, read_requests, show_samples
from gateway.admin.config import show_config
from gateway.admin.guidance import list_guidance, switch_guidance_off, switch_guidance_on
from gateway.admin.host_check import require_known_host
from gateway.admin.keys import create_key, list_keys, revoke_key, rotate_key
from gateway.admin.label_budgets import list_label_budgets, raise_label_budget
from gateway.admin.login_state import CALLBACK_PATH
from gateway.admin.oidc import START_PATH
from gateway.admin.oidc_login import finish_login, start_login
from gateway.admin.playground import run_playground, show_options, show_run
from gateway.admin.policies import show_policies
from gateway.admin.quality import show_quality
from gateway.admin.receipts import list_receipts, show_receipt
from gateway.admin.reconciliation import reconciliation
from gateway.admin.reliability import show_reliability
from gateway.admin.roles import Role
from gateway.admin.split import show_split
from gateway.admin.summary import show_summary
from gateway.admin.usage import show_usage
from gateway.api.keys import BATCHER, METRICS, POLICIES, REDIS, WORKER
from gateway.api.probes import healthz, readyz_in_detail
from gateway.batching.view import QueuesReply

if TYPE_CHECKING:
    from aiohttp.typedefs import Middleware

    from gateway.admin.oidc import OidcProvider
    from gateway.admin.session import Sessions
    from gateway.config.sections import AdminSettings


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus text."""
    # In a thread: rendering takes milliseconds per worker and per thousand series.
    body = await asyncio.to_thread(request.app[METRICS].render)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def queue(request: web.Request) -> web.Response:
    """GET /queue: every teacher's queue over all processes. While Redis is down, the queue of this process."""
    app = request.app
    teachers = await app[BATCHER].views(app[POLICIES].policy_set.teachers())
    body = QueuesReply(app[WORKER], app[REDIS].up, teachers)
    raw = orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return web.Response(body=raw, content_type="application/json")


# Pages, their files and the login. They contain no secrets.
PAGE_ROUTES = [
    web.get("/", show_root),
    web.get("/login", show_login),
    web.get(START_PATH, start_login),
    web.get(CALLBACK_PATH, finish_login),
    web.get("/dashboard", show_page),
    web.get("/dashboard/{page:.+}", show_page),
    web.get("/playground", show_page),
    web.get("/static/{path:.+}", show_file),
    web.get("/session", show_session),
    web.post("/session", log_in),
    web.delete("/session", log_out),
]
# Routes without a key. The listener therefore binds to 127.0.0.1 by default.
OPEN_ROUTES = [
    web.get("/metrics", metrics),
    web.get("/queue", queue),
    web.get("/healthz", healthz),
    web.get("/readyz", readyz_in_detail),
    *PAGE_ROUTES,
]
# All other routes need a role; a route outside these lists would need ADMIN. The admin key has the role ADMIN.
ROUTES_BY_ROLE = {
    Role.VIEWER: [
        web.get("/keys", list_keys),
        web.get("/budgets", list_budgets),
        web.get("/budgets/{tenant}", show_budgets),
        web.get("/budgets/{tenant}/keys/{id}", show_key_budget),
        web.get("/budgets/{tenant}/labels", list_label_budgets),
        web.get("/guidance", list_guidance),
        web.get("/collected/{tenant}", show_samples),
        web.get("/policies", show_policies),
        web.get("/quality", show_quality),
        web.get("/summary", show_summary),
        web.get("/reliability", show_reliability),
        web.get("/config", show_config),
        web.get("/usage", show_usage),
        web.get("/usage/split", show_split),
        web.get("/receipts", list_receipts),
        web.get("/receipts/{id}", show_receipt),
        web.get("/reconciliation", reconciliation),
        web.get("/playground/options", show_options),
        web.get("/playground/receipts/{tenant}/{id}", show_run),
    ],
    Role.OPERATOR: [
        web.post("/keys", create_key),
        web.post("/keys/{tenant}/{id}/rotate", rotate_key),
        web.delete("/keys/{tenant}/{id}", revoke_key),
        web.post("/budgets/{tenant}/raise", raise_budget),
        web.post("/budgets/{tenant}/keys/{id}/raise", raise_budget),
        web.post("/budgets/{tenant}/labels/{label}/raise", raise_label_budget),
        web.post("/guidance/off", switch_guidance_off),
        web.post("/guidance/on", switch_guidance_on),
        web.post("/playground/run", run_playground),
    ],
    Role.ADMIN: [
        web.get("/audit", show_audit),
        web.get("/collected/{tenant}/requests", read_requests),
        web.delete("/collected/{tenant}", delete_samples),
    ],
}
ROUTES = [*OPEN_ROUTES, *chain.from_iterable(ROUTES_BY_ROLE.values())]


def access_checks(settings: AdminSettings, sessions: Sessions, oidc: OidcProvider | None) -> list[Middleware]:
    """Return the middlewares that check a request: its Host header, then its key or session."""
    return [require_known_host(settings), authorize(sessions, OPEN_ROUTES, ROUTES_BY_ROLE, oidc)]
