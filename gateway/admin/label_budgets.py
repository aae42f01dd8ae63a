"""The admin API's budgets of the values of labels: list them, and raise one for a limited time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from gateway.accounting.budgets import Account
from gateway.accounting.scopes import label_scope
from gateway.admin.bodies import only_query, read_shape
from gateway.admin.budgets import NewRaise, budget_view, policy_of, put_raise
from gateway.admin.replies import json_reply, needs_redis
from gateway.api.keys import BUDGETS, KEYRING, LABEL_VALUES, LABELER
from gateway.config.yaml_messages import suggestion
from gateway.errors import NotFound
from gateway.policy.labels import NONE, OTHER

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aiohttp import web

    from gateway.keys.held import HeldKey
    from gateway.policy.schema import TenantPolicy

MAX_LISTED = 500
"""Most values of a label in one reply."""


class NewLabelRaise(NewRaise):
    """POST /budgets/{tenant}/labels/{label}/raise: the value, the amount to add to its budget, and the end."""

    value: str
    """Value of the label, as in receipts."""


@needs_redis
async def list_label_budgets(request: web.Request) -> web.Response:
    """GET /budgets/{tenant}/labels: the budgets of values of labels, those with the most spending first.

    The values are those of the policy, and those that requests had in this month: at most 500 of each label.
    """
    only_query(request, "label")
    policy, only = policy_of(request), request.query.get("label")
    names = list(policy.limited_labels) if not only else [_declared(policy, only)]
    of_keys = await asyncio.to_thread(_labels_of_keys, policy, list(request.app[KEYRING].all()))
    accounts, truncated = [], False
    for name in names:
        rule = policy.labels[name]
        set_by_keys = {labels[name] for labels in of_keys if name in labels}
        if rule.hash:
            set_by_keys = {request.app[LABELER].hashed(policy.tenant, name, value) for value in set_by_keys}
        known = [*rule.exceptions, *(rule.values or ()), *sorted(set_by_keys)]
        used = await request.app[LABEL_VALUES].listed(policy.tenant, name, MAX_LISTED + 1)
        values = list(dict.fromkeys([*known, *used, NONE, OTHER]))
        truncated = truncated or len(values) > MAX_LISTED
        found = (_account(policy, name, value) for value in values[:MAX_LISTED])
        accounts += [account for account in found if account is not None]
    balances = await request.app[BUDGETS].read(accounts)
    rows = sorted(zip(accounts, balances, strict=True), key=lambda row: row[1].spent_usd, reverse=True)
    return json_reply({"budgets": [budget_view(*row) for row in rows], "truncated": truncated})


@needs_redis
async def raise_label_budget(request: web.Request) -> web.Response:
    """POST /budgets/{tenant}/labels/{label}/raise. It applies from the next request on."""
    new = await read_shape(request, NewLabelRaise)
    policy = policy_of(request)
    name = _declared(policy, request.match_info["label"])
    if (account := _account(policy, name, new.value)) is None:
        raise NotFound(
            f"Label '{name}' of tenant '{policy.tenant}' has no budget for this value. Set `labels.{name}.budget` in "
            "the tenant's policy file.",
            param="label",
        )
    return await put_raise(request, account, account.scope.name, new)


def _labels_of_keys(policy: TenantPolicy, held: Iterable[HeldKey]) -> list[Mapping[str, str]]:
    """Return the labels of each key of the tenant. Call it in a thread: there may be many keys."""
    of_redis = (key.terms.labels for key in held if key.tenant == policy.tenant)
    return [labels for labels in (*(key.labels for key in policy.keys), *of_redis) if labels]


def _declared(policy: TenantPolicy, name: str) -> str:
    if name not in policy.labels:
        close = suggestion(name, policy.labels)
        raise NotFound(f"Tenant '{policy.tenant}' has no label '{name[:64]}'.{close}", param="label")
    return name


def _account(policy: TenantPolicy, name: str, value: str) -> Account | None:
    scope = label_scope(policy, name, value)
    return None if scope is None or scope.budget is None else Account(policy.tenant, scope, policy.redis_slices)
