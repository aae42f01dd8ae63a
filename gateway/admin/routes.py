"""What the admin listener answers."""

from __future__ import annotations

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from gateway.web.keys import METRICS
from gateway.web.probes import healthz, readyz_in_detail


async def metrics(request: web.Request) -> web.Response:
    """GET /metrics: Prometheus text."""
    return web.Response(body=request.app[METRICS].render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


ROUTES = [web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz_in_detail)]
