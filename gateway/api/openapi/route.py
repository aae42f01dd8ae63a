"""GET /openapi.json"""

from __future__ import annotations

from aiohttp import ETag, web

from gateway.api.keys import DOCUMENT


async def openapi_json(request: web.Request) -> web.Response:
    """GET /openapi.json"""
    document = request.app[DOCUMENT]
    etags = request.if_none_match or ()
    if any(one.value in {document.etag, "*"} for one in etags):
        response = web.Response(status=304)
    else:
        response = web.Response(body=document.body, content_type="application/json")
    response.etag = ETag(document.etag)
    response.headers["Cache-Control"] = "no-cache"  # a client must revalidate by ETag
    return response
