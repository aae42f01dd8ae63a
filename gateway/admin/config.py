"""GET /config: the settings in effect without secrets, and the result of the last edit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from gateway.admin.bodies import only_query
from gateway.admin.replies import json_reply
from gateway.api.keys import POLICIES, RELOADER, WORKER
from gateway.api.probes import config_shown, policies_shown, time_to_ms
from gateway.errors import NotFound

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.config.edits import EditResult
    from gateway.config.effective import EffectiveSetting


async def show_config(request: web.Request) -> web.Response:
    """GET /config: the settings of the process that answers."""
    only_query(request)
    app = request.app
    reloader = app.get(RELOADER)
    if reloader is None:
        raise NotFound("This gateway has no config.yaml: another program runs it.")
    # In a thread: it reads the file to find lines.
    file, settings = await asyncio.to_thread(reloader.files.in_effect)
    return json_reply(
        {
            "object": "config",
            "worker": app[WORKER],
            "file": file,
            **config_shown(reloader),
            "settings": [_setting(one) for one in settings],
            "last_reload": _result(reloader.last_config),
            "policies": {**policies_shown(app[POLICIES]), "last_reload": _result(reloader.last_policies)},
        }
    )


def _setting(one: EffectiveSetting) -> dict[str, Any]:
    return {
        "name": one.name,
        "value": one.value,
        "secret": one.is_secret,
        "from": one.origin,
        "variable": one.variable,
        "line": one.line,
    }


def _result(last: EditResult | None) -> dict[str, Any] | None:
    if last is None:
        return None
    return {
        "at": time_to_ms(last.at),
        "result": last.result,
        "settings": list(last.settings),
        "issues": list(last.issues),
    }
