"""Routes of a running gateway. The receipt of one answer shows the settings of each route."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.errors import EngineError, StartupError
from gateway.evaluation.live import LiveRoute, request_body

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.accounting.receipt import Receipt
    from gateway.evaluation.caller import GatewayClient
    from gateway.evaluation.record import Manifest
    from gateway.evaluation.run import EvalWork

# A route that chooses the guidance length may leave a question unguided, and its receipt then lacks the settings.
_TRIES = 8


def remote_routes(names: Sequence[str], work: EvalWork) -> list[LiveRoute]:
    """Return each route with each request form. The settings of `work` give the forms, and all have mode student."""
    return [
        LiveRoute(name, f"route {name}, {setting.name.removeprefix('student, ')}", setting)
        for name in names
        for setting in work.settings
    ]


async def describe_routes(
    routes: Sequence[LiveRoute], client: GatewayClient, work: EvalWork, manifest: Manifest | None
) -> list[dict[str, Any]]:
    """Return the routes in the format of a manifest's settings.

    A route that the manifest does not know gets the first question, and further ones if its length rule leaves that
    one unguided. Raises StartupError if a route does not respond.
    """
    known = {} if manifest is None else {setting["name"]: setting for setting in manifest.settings}
    return [known.get(route.name) or await _describe(route, client, work) for route in routes]


async def _describe(route: LiveRoute, client: GatewayClient, work: EvalWork) -> dict[str, Any]:
    for question in work.questions[:_TRIES]:
        try:
            receipt = (await client.complete(request_body(route, question, work))).answered.receipt
        except EngineError as error:
            raise StartupError(f"--route {route.model}: {error.message}") from error
        if receipt.guidance is not None or receipt.length is None:
            return route.setting.as_dict() | {"name": route.name, "route": route.model} | _settings_of(receipt)
    raise StartupError(
        f"--route {route.model}: its length rule leaves the first questions unguided, so the guidance is unknown. "
        "Start with other questions: --offset, or --sample."
    )


def _settings_of(receipt: Receipt) -> dict[str, Any]:
    if receipt.guidance is None:
        return {"mode": receipt.mode}
    return {
        "mode": "guided",
        "tokens": receipt.guidance.tokens if receipt.length is None else "auto",
        "projection": receipt.guidance.projection,
        "placement": receipt.guidance.placement,
        "boundary": "word",
    }
