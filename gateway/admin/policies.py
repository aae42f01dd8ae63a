"""GET /policies: the policies in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.admin.bodies import only_query
from gateway.admin.replies import json_reply
from gateway.api.keys import POLICIES
from gateway.api.probes import policies_shown

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.policy.schema import TenantPolicy


async def show_policies(request: web.Request) -> web.Response:
    """GET /policies: the policy in use of each tenant, and the issues that keep the folder's edits from being used."""
    only_query(request)
    policies = request.app[POLICIES]
    data = [_policy(one) for one in policies.policy_set.policies]
    return json_reply(policies_shown(policies) | {"object": "policies", "data": data})


def _policy(policy: TenantPolicy) -> dict[str, Any]:
    return {
        "tenant": policy.tenant,
        "keys": len(policy.keys),
        "budget": policy.budget is not None,
        "labels": list(policy.labels),
        "routes": [
            {"model": one.model, "mode": one.mode, "teacher": one.teacher, "student": one.student}
            for one in policy.routes
        ],
    }
