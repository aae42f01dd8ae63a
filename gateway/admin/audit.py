"""GET /audit: the audit trail of the admin API."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from gateway.admin.bodies import number_of, only_query
from gateway.admin.replies import json_reply, needs_redis, time_shown
from gateway.admin.usage import check_tenant
from gateway.api.keys import AUDIT
from gateway.errors import InvalidRequest

if TYPE_CHECKING:
    from aiohttp import web

_PAGE = 100
_MAX_PAGE = 1000
_TIMES = ("expires", "until")  # of keys and raises, in Unix seconds
_ENTRY_ID = re.compile(r"[0-9]{1,15}-[0-9]{1,10}", re.ASCII)


@needs_redis
async def show_audit(request: web.Request) -> web.Response:
    """GET /audit: entries of all tenants or of one, the newest first. `before` continues where the last reply ended."""
    only_query(request, "limit", "before", "tenant")
    limit = number_of(request, "limit", default=_PAGE, maximum=_MAX_PAGE)
    before = request.query.get("before")
    if before is not None and not _ENTRY_ID.fullmatch(before):
        raise InvalidRequest("'before': expected the id of an entry, like 1780000000000-0.", param="before")
    entries = await request.app[AUDIT].read(limit, before_id=before, tenant=request.query.get("tenant") or None)
    if not entries:
        check_tenant(request, request.query.get("tenant") or None)
    following = entries[-1].id if len(entries) == limit else None
    shown = [
        one._asdict() | {"at": time_shown(one.at), "before": _json(one.before), "after": _json(one.after)}
        for one in entries
    ]
    return json_reply({"entries": shown, "next": following})


def _json(text: str) -> object:
    """Return the decoded JSON with its times in RFC 3339, or the text itself if it is not JSON."""
    try:
        state = msgspec.json.decode(text) if text else None
    except msgspec.DecodeError:
        return text
    if isinstance(state, dict):
        state |= {name: time_shown(state[name]) for name in _TIMES if isinstance(state.get(name), int | float)}
    return state
