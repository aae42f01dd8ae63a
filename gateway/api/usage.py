"""GET /v1/usage: usage, cost and savings of the caller's tenant; and the query parameters of usage requests."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import orjson
from aiohttp import web
from redis.exceptions import RedisError

from gateway.api.auth import authenticate
from gateway.api.keys import REDIS, USAGE
from gateway.config.yaml_messages import suggestion
from gateway.errors import InvalidRequest, UsageUnavailable
from gateway.policy.labels import MAX_VALUE_CHARS
from gateway.usage.receipt_sums import COLUMNS, LABEL, TAG, label_in, needs_receipt_sums, total_of
from gateway.usage.span import TIMES, requested_range, span
from gateway.usage.sums import OTHER, Granularity
from gateway.usage.threads import with_pauses
from gateway.usage.usage import MODES, UsageQuery, usage_header

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.policy.schema import TenantPolicy
    from gateway.protocol.body import Json
    from gateway.usage.receipt_sums import ReceiptSum
    from gateway.usage.rollup import SumDimensions
    from gateway.usage.sums import Retention
    from gateway.usage.usage import UsageResult

DIMENSIONS = ("key", "route", "mode", "teacher", "student")
"""Dimensions that a tenant may group by."""
FILTERS = ("key", "route", "mode")

_LABEL_FILTER = rf"^(|[a-z][a-z0-9_]{{0,31}}=[^\x00]{{1,{MAX_VALUE_CHARS}}})$"
PARAMETERS: dict[str, tuple[str, Json]] = {
    "since": (
        f"Start of the range: {TIMES}. The default is 24h; 1h with granularity minute, and 30d with day.",
        {"type": "string"},
    ),
    "until": ("End of the range, exclusive, in the same format. The default is now.", {"type": "string"}),
    "granularity": (
        "The length of a row's period. The default is one row for the whole range.",
        {"enum": ["", *get_args(Granularity)]},
    ),
    "by": (
        f"Dimensions to group by, separated by commas: {', '.join(DIMENSIONS)}, label:NAME. `model` means route.",
        {"type": "string"},
    ),
    **{name: (f"Only usage of this {name}.", {"type": "string"}) for name in ("key", "route", "model")},
    "label": (
        "Only requests with this label: NAME=VALUE. Rows have fewer figures, as for a dimension `label:NAME`.",
        {"type": "string", "pattern": _LABEL_FILTER},
    ),
    "mode": ("Only answers of this mode.", {"enum": ["", *MODES]}),
}
"""Parameters of a tenant, for the OpenAPI document. An empty value is ignored."""

_ALIASES = {"model": "route"}
# Ranges that fit one chart.
_DEFAULT_SINCE: dict[Granularity | None, str] = {None: "24h", "minute": "1h", "hour": "24h", "day": "30d"}


async def show_usage(request: web.Request) -> web.Response:
    """GET /v1/usage. Rows sum all keys of the caller's tenant, unless `by` names the key."""
    policy = (await authenticate(request)).policy
    reader = request.app[USAGE]
    query = read_query(request, reader.retention).for_tenant(policy.tenant)
    is_by_label = needs_receipt_sums(query)
    if is_by_label:
        check_dimensions(query)
    try:
        if is_by_label:
            body = await reader.read_receipt_sums(
                query,
                lambda sums: encoded_sums(query, sums, money=_shows_all_money(policy, query)),
                tenant=policy.tenant,
            )
            return _json(body)
        body = await reader.read(
            query, encoded, tenant=policy.tenant, shows_money=lambda where: shows_money(policy, where)
        )
    except (RedisError, OSError) as error:
        raise UsageUnavailable from error
    return _json(body)


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json", headers={"Cache-Control": "no-store"})


def check_dimensions(query: UsageQuery) -> None:
    """Raise InvalidRequest if sums by tags and labels cannot be grouped by a dimension of the query."""
    for name in query.by:
        if name not in (*COLUMNS, TAG) and label_in(name) is None:
            kind = TAG if TAG in query.by else "a label"
            raise InvalidRequest(f"'by': {kind} cannot be combined with {name}: use {', '.join(COLUMNS)}.", param="by")
    if TAG in query.by and query.granularity is not None:
        raise InvalidRequest("'granularity' does not apply to tag: omit it.", param="granularity")


def encoded_sums(query: UsageQuery, sums: Sequence[ReceiptSum], *, money: bool = True) -> bytes:
    """Return sums by tags and labels as JSON. Call it in a thread. Those by tag have no total."""
    rows = b",".join(orjson.dumps(one.as_json(query.by, money=money)) for one in with_pauses(sums))
    total = b"" if TAG in query.by else b',"total":' + orjson.dumps(total_of(sums).as_json((), money=money))
    return b'%b,"rows":[%b]%b}\n' % (orjson.dumps(usage_header(query))[:-1], rows, total)


def _shows_all_money(policy: TenantPolicy, query: UsageQuery) -> bool:
    """Return whether sums show costs: only if the receipts of all routes in them do."""
    routes = [route for name, route in policy.routes_of.items() if query.only.get("route", name) == name]
    return bool(routes) and all(route.show_cost for same in routes for _, route in same)


def encoded(usage: UsageResult) -> bytes:
    """Return the usage as JSON. Call it in a thread: there may be many rows.

    Each row is encoded by a call of its own, because a call holds the interpreter lock.
    """
    *rows, total = (orjson.dumps(one) for one in with_pauses(usage.rows_as_json()))
    return b'%b,"rows":[%b],"total":%b}\n' % (orjson.dumps(usage.header())[:-1], b",".join(rows), total)


def shows_money(policy: TenantPolicy, where: SumDimensions) -> bool:
    """Return whether a row shows costs: only if the receipts of its route do, or of all routes for a combined row."""
    routes_of = policy.routes_of
    routes = [route for _, route in routes_of.get(where.route, ())]
    if where.route == OTHER:
        routes = [route for same in routes_of.values() for _, route in same]
    return bool(routes) and all(route.show_cost for route in routes)


def read_query(
    request: web.Request,
    retention: Retention,
    *,
    dimensions: tuple[str, ...] = DIMENSIONS,
    filters: tuple[str, ...] = FILTERS,
    more: tuple[str, ...] = (),
) -> UsageQuery:
    """Return the usage query of a request. Raises InvalidRequest with the parameter and its allowed values.

    `dimensions` are the allowed values of `by`, `filters` the parameters that filter by a dimension, and `more` those
    that the handler reads itself.
    """
    aliases = (alias for alias, name in _ALIASES.items() if name in filters)
    _only(request, ("since", "until", "granularity", "by", "label", *filters, *aliases, *more))
    now = request.app[REDIS].now()
    granularity = _granularity(request.query.get("granularity", ""))
    requested = requested_range(
        request.query.get("since") or _DEFAULT_SINCE[granularity], request.query.get("until", ""), now
    )
    only = {}
    for name, value in request.query.items():
        if value and (dimension := _ALIASES.get(name, name)) in filters:
            if dimension in only:
                raise InvalidRequest(f"'{name}' repeats the filter '{dimension}': keep one of the two.", param=name)
            only[dimension] = value
    if "mode" in only and only["mode"] not in MODES:
        raise InvalidRequest(
            f"'mode' must be one of {', '.join(MODES)}.{suggestion(only['mode'], MODES)}", param="mode"
        )
    if text := request.query.get("label", ""):
        only |= label_filter(text)
    by = _dimensions(request.query.get("by", ""), dimensions)
    return UsageQuery(span(requested, granularity, retention, now), granularity, by, only)


def label_filter(text: str) -> dict[str, str]:
    """Return the filter of NAME=VALUE by its dimension. Raises InvalidRequest."""
    name, sign, value = text.partition("=")
    if not sign or not value or label_in(LABEL + name) is None or len(value) > MAX_VALUE_CHARS or "\0" in value:
        raise InvalidRequest("'label': expected a label's name, = and a value, like team=research.", param="label")
    return {LABEL + name: value}


def _only(request: web.Request, known: tuple[str, ...]) -> None:
    for name in request.query:
        if name not in known:
            raise InvalidRequest(
                f"'{name}': unknown parameter; known parameters: {', '.join(known)}.{suggestion(name, known)}",
                param=name,
            )
        if len(request.query.getall(name)) > 1:
            raise InvalidRequest(f"'{name}' occurs twice: send it once.", param=name)


def _granularity(text: str) -> Granularity | None:
    known: tuple[Granularity, ...] = get_args(Granularity)
    found = next((one for one in known if one == text), None)
    if text and found is None:
        raise InvalidRequest(
            f"'granularity' must be one of {', '.join(known)}, or absent for one row of the whole range."
            f"{suggestion(text, known)}",
            param="granularity",
        )
    return found


def _dimensions(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for part in map(str.strip, text.split(",") if text else ()):
        name = _ALIASES.get(part, part)
        if name not in known and label_in(name) is None:
            raise InvalidRequest(
                f"'by': unknown dimension '{part[:64]}'. Known dimensions: {', '.join(known)}, label:NAME. `model` "
                f"means route.{suggestion(part, known)}",
                param="by",
            )
        if name in found:
            raise InvalidRequest(f"'by' names '{name}' twice: once is enough.", param="by")
        found.append(name)
    return tuple(found)
